"""User-defined transform, `data.transforms=package.module:function`."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from ground_truth import assert_same_objects
from PIL import Image
from tiny_data import config
from torch import Tensor
from torchvision.transforms import v2

import fcos
from fcos.choices import BoxConvention
from fcos.config import Config
from fcos.data import train_transform
from fcos.data.augmentations import Flip
from fcos.data.transforms import Transform
from fcos.data.user_transforms import UserTransform
from fcos.errors import ConfigError, DataError
from fcos.structures import Objects

CONVENTIONS: tuple[BoxConvention, ...] = ("continuous", "inclusive")
CLASSES = 3
IMAGE = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 40, 60), dtype=np.uint8))
OBJECTS = Objects(
    torch.tensor([[10.0, 10, 30, 30], [5, 5, 50, 35], [20, 30, 45, 32], [0, 0, 12, 9.5]]),
    torch.tensor([0, 1, 2, 1]),
    torch.tensor([False, True, False, True]),
)


def user(name: str) -> UserTransform:
    return UserTransform.named(f"own_transforms:{name}", CLASSES)


def call(
    function: UserTransform | Callable[..., Any],
    objects: Objects = OBJECTS,
    *,
    seed: int = 0,
    convention: BoxConvention = "continuous",
) -> tuple[Tensor, Objects]:
    transform = function if isinstance(function, UserTransform) else UserTransform(function, "test", CLASSES)
    return transform(IMAGE, objects, seed=seed, convention=convention)


# -------------------------------------------------------------------------------------------------------------- input


def test_user_transform_receives_tv_tensors() -> None:
    call(user("is_wrapped"))
    image = Image.new("RGB", (60, 40))
    Transform((20,), 100, user=user("is_wrapped"))(image, OBJECTS)  # images have another memory layout


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_user_transform_receives_continuous_boxes_inside_the_image(convention: BoxConvention) -> None:
    """Resizing could move an object at the edge out of the image, by rounding or by less than a pixel."""
    seen: list[Tensor] = []

    def look(image: Tensor, target: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        seen.append(target["boxes"])
        return v2.SanitizeBoundingBoxes()(image, target)

    last = 1 if convention == "inclusive" else 0
    whole = Objects(torch.tensor([[0.0, 0.0, 635 - last, 60 - last]]), torch.tensor([2]))
    transform = Transform((48,), 64, user=UserTransform(look, "test"), box_convention=convention)
    _, found = transform(Image.new("RGB", (635, 60)), whole)
    assert seen[0].tolist() == [[0, 0, 63, 6]]
    assert found.boxes.tolist() == [[0, 0, 63 - last, 6 - last]]


def test_crowd_boxes_have_negative_labels() -> None:
    seen = []
    call(lambda image, target: (image, seen.append(target["labels"].tolist()) or target))
    assert seen == [[0, -2, 2, -2]]


# ------------------------------------------------------------------------------------------------------------ output


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("name", ["identity", "lists"])
def test_identity_transform_changes_nothing(name: str, convention: BoxConvention) -> None:
    pixels, found = call(user(name), convention=convention)
    assert torch.equal(pixels, IMAGE)
    assert_same_objects(found, OBJECTS)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_identity_transform_preserves_boxes_within_rounding_error(convention: BoxConvention) -> None:
    """Adding and subtracting one pixel does not always give the same float32 number."""
    corners = torch.rand(1000, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([50.0, 30.0])
    boxes = torch.cat([corners, corners + torch.tensor([7.7, 8.8])], dim=1)
    objects = Objects(boxes, torch.zeros(1000, dtype=torch.int64))
    _, found = call(user("identity"), objects, convention=convention)
    torch.testing.assert_close(found.boxes, boxes, rtol=0, atol=1e-5)
    if convention == "continuous":
        assert torch.equal(found.boxes, boxes)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_torchvision_flip_matches_our_flip(convention: BoxConvention) -> None:
    image = Image.fromarray(IMAGE.permute(1, 2, 0).numpy())
    theirs = Transform((40,), 100, user=user("flip"), box_convention=convention)(image, OBJECTS)
    ours = Transform((40,), 100, (Flip(1.0),), box_convention=convention)(image, OBJECTS)
    assert torch.equal(theirs.image, ours.image)
    assert_same_objects(theirs.objects, ours.objects)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_boxes_follow_their_content_through_a_torchvision_pipeline(convention: BoxConvention) -> None:
    """A white square on black is flipped, rotated and scaled: its box still encloses it."""
    last = 1 if convention == "inclusive" else 0
    image = Image.new("RGB", (60, 40))
    image.paste("white", (20, 10, 40, 30))
    square = Objects(torch.tensor([[20.0, 10.0, 40 - last, 30 - last]]), torch.tensor([1]))
    transform = Transform((40,), 100, user=user("pipeline"), box_convention=convention)
    sizes = set()
    for seed in range(30):
        pixels, found = transform(image, square, seed=seed)
        rows, columns = torch.nonzero(pixels[0] > 127, as_tuple=True)
        content = [columns.min(), rows.min(), columns.max() + 1 - last, rows.max() + 1 - last]
        assert found.boxes[0].tolist() == pytest.approx([value.item() for value in content], abs=2.0)
        assert found.labels.tolist() == [1]
        sizes.add(tuple(pixels.shape))
    assert len(sizes) > 10


def test_crowd_flags_survive_transforms_that_drop_boxes() -> None:
    _, found = call(user("only_crowd"))
    assert_same_objects(found, OBJECTS[OBJECTS.is_crowd])
    shaken = v2.Compose([v2.RandomHorizontalFlip(), v2.SanitizeBoundingBoxes(min_size=5)])
    for seed in range(10):
        _, found = call(shaken, seed=seed)
        assert (found.labels.tolist(), found.is_crowd.tolist()) == ([0, 1, 1], [False, True, True])


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_boxes_are_clipped_and_empty_boxes_are_dropped(convention: BoxConvention) -> None:
    last = 1.0 if convention == "inclusive" else 0.0
    objects = replace(OBJECTS, boxes=OBJECTS.boxes - torch.tensor([0.0, 0.0, last, last]))
    pixels, found = call(user("moved"), objects, convention=convention)
    assert pixels.shape == (3, 40, 40)
    expected = torch.tensor([[0, 10, 10, 30], [0, 5, 30, 35], [0, 30, 25, 32]]) - torch.tensor([0, 0, last, last])
    assert_same_objects(found, Objects(expected, torch.tensor([0, 1, 2]), torch.tensor([False, True, False])))


@pytest.mark.parametrize("name", ["identity", "lists", "flip", "pipeline", "only_crowd", "moved", "large_image"])
def test_user_transform_accepts_images_without_objects(name: str) -> None:
    _, found = call(user(name), OBJECTS[:0])
    assert (found.boxes.shape, found.labels.dtype, found.is_crowd.dtype) == ((0, 4), torch.int64, torch.bool)


def test_user_transform_cannot_modify_objects_in_place() -> None:
    def spoil(image: Tensor, target: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        for column in (image, target["boxes"], target["labels"]):
            column.zero_()
        return image, target

    objects = replace(OBJECTS, boxes=OBJECTS.boxes.clone(), labels=OBJECTS.labels.clone())
    Transform((40,), 100, user=UserTransform(spoil, "test"))(Image.new("RGB", (60, 40)), objects)
    assert_same_objects(objects, OBJECTS)


# ------------------------------------------------------------------------------------------------------- random numbers


def test_results_repeat_with_the_same_seed_and_differ_with_another() -> None:
    for name in ("noise", "pipeline"):
        results = [call(user(name), seed=seed) for seed in (5, 5, 6)]
        (first, objects), (again, same_objects), (other, _) = results
        assert torch.equal(first, again)
        assert_same_objects(same_objects, objects)
        assert first.shape != other.shape or not torch.equal(first, other)
    one, other = (call(user("noise"), seed=seed)[0] for seed in (5, 6))
    assert all((one[:, row] != other[:, row]).any() for row in range(40))  # each generator fills a band of rows


@pytest.mark.parametrize("name", ["noise", "raises"])
def test_global_rng_states_are_unchanged(name: str) -> None:
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    for seed in (0, 2**63 - 1):
        try:
            call(user(name), seed=seed)
        except DataError:
            assert name == "raises"
    assert random.getstate() == states[0]
    assert all(np.array_equal(now, before) for now, before in zip(np.random.get_state(), states[1], strict=True))
    assert torch.equal(torch.get_rng_state(), states[2])


def test_gpu_generators_are_not_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without loader workers, the transform runs in the training process."""
    monkeypatch.setattr(torch.cuda, "manual_seed_all", pytest.fail)
    call(user("noise"))


@pytest.mark.gpu
def test_gpu_rng_state_is_unchanged() -> None:
    torch.rand(3, device="cuda")
    before = torch.cuda.get_rng_state()
    call(user("noise"))
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_random_numbers_are_independent_of_the_augmentations() -> None:
    """Otherwise a transform that mirrors half of the images would mirror those resized to the smaller sizes."""
    drawn = []
    transform = Transform(
        range(100, 200), 1000, user=UserTransform(lambda *args: drawn.append(random.random()) or args, "test")
    )
    image = Image.new("RGB", (8, 8))
    sides = [transform(image, seed=seed).image.shape[1] for seed in range(400)]
    assert abs(np.corrcoef(sides, drawn)[0, 1]) < 0.15  # 3 standard errors
    assert 0.45 < np.mean(drawn) < 0.55


# ------------------------------------------------------------------------------------------------------------- mistakes

REFUSED = {
    "without_target": "TypeError: without_target() takes 1 positional argument but 2 were given",
    "raises": "RuntimeError: the third augmentation is broken",
    "returns_none": "expected it to return (image, {'boxes': ..., 'labels': ...}), found NoneType",
    "image_alone": "expected it to return (image, {'boxes': ..., 'labels': ...}), found Image",
    "other_keys": "expected it to return (image, {'boxes': ..., 'labels': ...}), found (image, {bboxes, labels})",
    "dictionary": "expected it to return (image, {'boxes': ..., 'labels': ...}), found dict",
    "float_image": "expected an image of torch.uint8 [3, H, W], found torch.float32 [3, 40, 60]",
    "channels_last": "expected an image of torch.uint8 [3, H, W], found torch.uint8 [40, 60, 3]",
    "array_image": "expected an image of torch.uint8 [3, H, W], found ndarray",
    "huge_image": "expected an image of at most 4,000,000 pixels, found 2000x2001",
    "image_elsewhere": "expected tensors on the CPU, found a tensor on meta",
    "boxes_elsewhere": "expected tensors on the CPU, found a tensor on meta",
    "no_pixels": "expected an image of torch.uint8 [3, H, W], found torch.uint8 [3, 0, 60]",
    "label_missing": "expected a label of torch.int64 for each of 4 boxes, found torch.int64 [3]",
    "box_missing": "expected a label of torch.int64 for each of 3 boxes, found torch.int64 [4]",
    "float_labels": "expected a label of torch.int64 for each of 4 boxes, found torch.float32 [4]",
    "labels_from_one": "expected labels 0..2 (crowd: -1..-3), found 3",
    "no_boxes": "expected tensors of boxes and labels: Could not infer dtype of NoneType",
    "boxes_with_scores": "expected boxes [M, 4], found torch.float32 [4, 5]",
    "xywh": "expected boxes in XYXY, found XYWH",
    "plain_xywh": "expected boxes in XYXY, x1 <= x2 and y1 <= y2, found [20.0, 30.0, 25.0, 2.0]",
    "infinite": "expected boxes in XYXY, x1 <= x2 and y1 <= y2, found [10.0, 10.0, inf, inf]",
    "not_a_number": "expected boxes in XYXY, x1 <= x2 and y1 <= y2, found [10.0, inf, 30.0, 30.0]",
}


@pytest.mark.parametrize("name", REFUSED)
def test_invalid_user_transform_raises_one_line_error(name: str) -> None:
    with pytest.raises(DataError) as caught:
        call(user(name))
    assert str(caught.value) == f"data.transforms=own_transforms:{name}: {REFUSED[name]}"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:f", "no module 'no_such_module'; install it, or add its folder to PYTHONPATH"),
        ("own_transforms:f", "the module 'own_transforms' has no function 'f'"),
        ("own_transforms:not_callable", "'not_callable' of the module 'own_transforms' is not a function: int"),
    ],
)
def test_missing_module_or_function_raises(name: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        train_transform(config(transforms=name))
    assert str(caught.value) == f"data.transforms={name}: {message}"


@pytest.mark.parametrize("name", ["flip", "own_transforms", "own_transforms:", "own transforms:flip", "a.b"])
def test_malformed_function_name_raises(name: str, configure: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match=r"data\.transforms"):
        fcos.train(configure(), f"data.transforms={name}")
