"""Masks and keypoints move with their image: flip, resize, zoom and crop, the user's transforms, loader workers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from tiny_data import coco_tree, write_coco
from torch import Tensor
from torchvision.transforms import v2

from fcos.boxes import clip
from fcos.choices import BoxConvention
from fcos.config import Config
from fcos.data import build_train_loader, load_annotations
from fcos.data.augmentations import Flip, Zoom
from fcos.data.loader import try_user_transform
from fcos.data.transforms import Transform, Transformed
from fcos.data.user_transforms import UserTransform
from fcos.errors import DataError
from fcos.masks import Masks
from fcos.structures import Objects

SIDE = st.integers(4, 60)
FLIP_AND_ZOOM = (Flip(0.5, (1, 0)), Zoom((0.5, 2.0)))


def rectangles(boxes: Tensor) -> Masks:
    return Masks.from_polygons([[[x1, y1, x2, y1, x2, y2, x1, y2]] for x1, y1, x2, y2 in boxes.tolist()])


@given(st.data(), SIDE, SIDE, st.integers(0, 50), st.sampled_from(["continuous", "inclusive"]))
def test_masks_and_keypoints_agree_with_boxes(
    data: st.DataObject, height: int, width: int, seed: int, convention: BoxConvention
) -> None:
    x1, y1 = data.draw(st.integers(0, width - 2)), data.draw(st.integers(0, height - 2))
    x2, y2 = data.draw(st.integers(x1 + 1, width - 1)), data.draw(st.integers(y1 + 1, height - 1))
    boxes = torch.tensor([[x1, y1, x2, y2]], dtype=torch.float32)
    keypoints = torch.tensor([[[x1, y1, 2.0], [x2, y2, 2.0]]])
    objects = Objects(boxes, torch.tensor([0]), masks=rectangles(boxes), keypoints=keypoints)
    transform = Transform((24,), 60, FLIP_AND_ZOOM, box_convention=convention)
    image, moved = transform(Image.new("RGB", (width, height)), objects, seed=seed)
    size = (image.shape[1], image.shape[2])
    if not len(moved):
        return
    assert moved.masks is not None
    assert moved.keypoints is not None
    clipped = [clip(boxes, size, convention=convention) for boxes in (moved.masks.boxes(), moved.boxes)]
    torch.testing.assert_close(*clipped, rtol=0, atol=1e-3)  # coordinates up to 120 in float32
    for x, y, visibility in moved.keypoints[0].tolist():
        if visibility == 0:
            assert (x, y) == (0, 0)
        else:
            corner = moved.boxes[0].tolist()
            assert min(abs(x - corner[0]), abs(x - corner[2])) < 1e-3 or not 0 < x < size[1] - 1
            assert min(abs(y - corner[1]), abs(y - corner[3])) < 1e-3 or not 0 < y < size[0] - 1


@pytest.mark.parametrize("seed", range(12))
def test_masks_cover_the_same_pixels_as_their_object(seed: int) -> None:
    corners = [(20.0, 10.0), (90.0, 30.0), (60.0, 70.0), (25.0, 60.0)]
    image = Image.new("RGB", (120, 80))
    ImageDraw.Draw(image).polygon(corners, fill="white")
    masks = Masks.from_polygons([[[value for corner in corners for value in corner]]])
    objects = Objects(masks.boxes(), torch.tensor([0]), masks=masks)
    pixels, moved = Transform((64,), 200, FLIP_AND_ZOOM)(image, objects, seed=seed)
    assert moved.masks is not None
    drawn, mask = pixels[0] > 127, moved.masks.to_bitmaps((pixels.shape[1], pixels.shape[2]))[0]
    # Pillow also fills the pixels that the border only touches.
    assert (drawn & mask).sum() > 0.93 * (drawn | mask).sum()


def flipped(objects: Objects, convention: BoxConvention) -> Transformed:
    return Transform((10,), 100, (Flip(1.0, (1, 0)),), box_convention=convention)(Image.new("RGB", (20, 10)), objects)


@pytest.mark.parametrize(("convention", "x"), [("continuous", 15), ("inclusive", 14)])
def test_flip_exchanges_left_and_right_keypoints(convention: BoxConvention, x: int) -> None:
    keypoints = torch.tensor([[[5.0, 2.0, 2.0], [0.0, 0.0, 0.0]]])
    objects = Objects(torch.tensor([[1.0, 1.0, 9.0, 9.0]]), torch.tensor([0]), keypoints=keypoints)
    moved = flipped(objects, convention).objects.keypoints
    assert moved is not None
    assert moved.tolist() == [[[0, 0, 0], [x, 2, 2]]]
    assert keypoints[0, 0].tolist() == [5, 2, 2]  # the annotations stay


def test_keypoints_outside_the_crop_are_not_annotated() -> None:
    transform = Transform((40,), 100, (Zoom((2.0, 2.0)),))
    keypoints = torch.tensor([[[float(x), float(y), 2.0] for x in range(0, 41, 4) for y in range(0, 41, 4)]])
    objects = Objects(torch.tensor([[0.0, 0.0, 40.0, 40.0]]), torch.tensor([0]), keypoints=keypoints)
    moved = transform(Image.new("RGB", (40, 40)), objects, seed=1).objects.keypoints
    assert moved is not None
    is_visible = moved[0, :, 2] > 0
    assert 25 <= is_visible.sum() <= 36  # a quarter of 121
    assert ((moved[0, :, :2] >= 0) & (moved[0, :, :2] <= 40)).all()
    assert not moved[0, ~is_visible].any()


# -------------------------------------------------------------------------------------------------- user's transforms

IMAGE = torch.zeros(3, 20, 40, dtype=torch.uint8)
BOXES = torch.tensor([[2.0, 3.0, 12.0, 13.0], [30.0, 0.0, 40.0, 20.0]])
OBJECTS = Objects(BOXES, torch.tensor([0, 1]), masks=rectangles(BOXES))


def test_user_transform_moves_masks() -> None:
    user = UserTransform(v2.Compose([v2.RandomHorizontalFlip(1.0), v2.SanitizeBoundingBoxes()]), "test")
    _, moved = user(IMAGE, OBJECTS, seed=0, convention="continuous")
    assert moved.masks is not None
    assert torch.equal(moved.masks.boxes(), moved.boxes)
    assert moved.boxes.tolist() == [[28, 3, 38, 13], [0, 0, 10, 20]]


def test_user_transform_removes_masks_with_their_boxes() -> None:
    user = UserTransform(lambda image, target: (image[:, :, :20], {**{k: v[:1] for k, v in target.items()},
                         "masks": target["masks"][:1, :, :20]}), "test")  # fmt: skip
    _, moved = user(IMAGE, OBJECTS, seed=0, convention="continuous")
    assert moved.masks is not None
    assert moved.masks.boxes().tolist() == [[2, 3, 12, 13]]


def test_user_transform_that_drops_only_boxes_is_an_error() -> None:
    user = UserTransform(
        lambda image, target: (image, {**target, "boxes": target["boxes"][:1], "labels": target["labels"][:1]}), "test"
    )
    with pytest.raises(DataError, match=r"test: expected `masks` of \[1, 20, 40\], .*found torch.bool \[2, 20, 40\]"):
        user(IMAGE, OBJECTS, seed=0, convention="continuous")


# -------------------------------------------------------------------------------------------------------------- loader


def settings(root: Path, **options: object) -> Config:
    data = {"root": str(root), "short_side": [32], "max_side": 64, "masks": True, "keypoints": True, **options}
    return Config.model_validate({"data": data, "train": {"batch_size": 2}})


def write_shapes(root: Path, names: Sequence[str] = ("left", "right")) -> Path:
    tree = coco_tree()
    for annotation in tree["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        annotation["keypoints"] = [x, y, 2, x + w, y + h, 1]
    for category in tree["categories"]:
        category["keypoints"] = list(names)
    return write_coco(root, tree)


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_contain_masks_and_keypoints(workers: int, tmp_path: Path) -> None:
    config = settings(write_shapes(tmp_path), workers=workers)
    annotations = load_annotations(config.data, "train")
    assert annotations is not None
    loader = iter(build_train_loader(config, annotations))
    orders = set()
    for _ in range(6):
        for objects in next(loader).targets or ():
            assert objects.masks is not None
            torch.testing.assert_close(objects.masks.boxes(), objects.boxes, rtol=0, atol=1e-4)
            assert objects.keypoints is not None
            for (left, right), (x1, y1, x2, y2) in zip(objects.keypoints, objects.boxes.tolist(), strict=True):
                # The file's left keypoint is at the top; a flip makes it the right one.
                visible_first = left[2] == 2
                orders.add(bool(visible_first))
                expected = [[x1, y1, 2], [x2, y2, 1]] if visible_first else [[x1, y2, 1], [x2, y1, 2]]
                torch.testing.assert_close(torch.stack([left, right]), torch.tensor(expected), rtol=0, atol=1e-4)
    assert orders == {False, True}


@pytest.mark.parametrize(("names", "options", "warns"), [
    (["left", "right"], {}, False),
    (["head", "tail"], {}, True),
    (["head", "tail"], {"flip": 0.0}, False),
    (["head", "tail"], {"keypoint_pairs": []}, False),
    (["head", "tail"], {"keypoint_pairs": [[0, 1]]}, False),
])  # fmt: skip
def test_flips_of_keypoints_without_sides_cause_a_warning(
    names: list[str], options: dict[str, Any], warns: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = settings(write_shapes(tmp_path, names), workers=0, **options)
    annotations = load_annotations(config.data, "train")
    assert annotations is not None
    build_train_loader(config, annotations)
    message = "exchanges no keypoints, because their names (head, tail) do not say which are left and right"
    assert (message in caplog.text) == warns


def test_user_transform_with_keypoints_stops_before_the_first_step(tmp_path: Path) -> None:
    config = settings(write_shapes(tmp_path), transforms="own_transforms:identity")
    annotations = load_annotations(config.data, "train")
    assert annotations is not None
    with pytest.raises(DataError, match=r"data\.transforms=own_transforms:identity: .* do not support keypoints"):
        try_user_transform(config, annotations)
