"""Same detections as torchvision's FCOS in the same process; names and classes converted in both directions."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from detectors import build_fcos
from model_options import changed_sections
from torch import Tensor
from torchvision.models.detection import FCOS_ResNet50_FPN_Weights, fcos_resnet50_fpn
from torchvision.models.detection.fcos import FCOS as TorchvisionFCOS
from torchvision_models import assert_same, network_input, resizing

import fcos
from fcos import Detector
from fcos.checkpoint import Checkpoint, load_weights
from fcos.config import FCOSConfig
from fcos.config.options import free_options, in_effect, options_of
from fcos.config.overrides import validate
from fcos.config.text import flatten
from fcos.errors import WeightsError
from fcos.interop.torchvision import COCO_CLASSES, from_torchvision, to_our_names, to_torchvision, torchvision_name
from fcos.models.fcos import FCOS
from fcos.structures import Instances

CLASSES = 5


def model_with_many_detections(num_classes: int = CLASSES + 1, **options: Any) -> TorchvisionFCOS:
    """Build torchvision's model with weights that give many detections, of every class and size."""
    torch.manual_seed(1)
    model = fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=num_classes, **options).eval()
    state = model.state_dict()
    for name, tensor in state.items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif name.endswith(("running_mean", "bias")):
            tensor.normal_(std=0.1)
    state["head.classification_head.cls_logits.weight"].normal_(std=0.05)
    state["head.classification_head.cls_logits.bias"].fill_(-1.0)
    state["head.regression_head.bbox_reg.weight"].normal_(std=0.02)
    state["head.regression_head.bbox_reg.bias"].fill_(2.0)
    state["head.regression_head.bbox_ctrness.weight"].normal_(std=0.05)
    return model


@pytest.fixture(scope="module")
def theirs() -> TorchvisionFCOS:
    return model_with_many_detections()


def detector(checkpoint: Checkpoint) -> FCOS:
    config = validate(checkpoint.config, where="torchvision")
    model = build_fcos(config.model, num_classes=len(checkpoint.category_ids), pretrained=False)
    load_weights(model, checkpoint.model, where="torchvision")
    return model.eval()


@pytest.fixture(scope="module")
def ours_with_background(theirs: TorchvisionFCOS) -> FCOS:
    """Build our detector with background as a class, so that its labels match torchvision's."""
    state = to_our_names(theirs.state_dict())
    config = validate(from_torchvision(theirs.state_dict()).config, where="torchvision")
    model = build_fcos(config.model, num_classes=CLASSES + 1, pretrained=False)
    load_weights(model, state, where="torchvision")
    return model.eval()


@pytest.mark.parametrize(
    ("sizes", "min_size"),
    [
        ([(96, 128)], 96),  # not resized
        ([(75, 101)], 96),  # enlarged; sides are not multiples of 32
        ([(160, 90), (96, 70)], 64),  # a batch of two sizes, with padding
        ([(64, 64), (130, 64), (64, 200)], 64),  # much padding; strides of P6 and P7 do not divide the sides
    ],
)
@torch.inference_mode()
def test_detections_match_torchvision(
    theirs: TorchvisionFCOS, ours_with_background: FCOS, sizes: list[tuple[int, int]], min_size: int
) -> None:
    theirs.transform = resizing(min_size)
    images = [torch.rand(3, *size) for size in sizes]
    expected = theirs(images)
    pixels, network_sizes = network_input(theirs.transform, images)
    found = ours_with_background.detect(pixels, network_sizes)
    for size, ours, their in zip(sizes, found, expected, strict=True):
        assert len(ours) > 20
        assert ours.scores[0] > 0.5
        assert len(ours.labels.unique()) > 2
        assert_same(ours.resize_to(size), their)


@pytest.mark.parametrize("threshold", [0.6, 0.7])
@torch.inference_mode()
def test_threshold_applies_to_the_score(
    theirs: TorchvisionFCOS, ours_with_background: FCOS, threshold: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(ours_with_background.postprocess, score_threshold=threshold)
    monkeypatch.setattr(theirs, "score_thresh", threshold)
    monkeypatch.setattr(ours_with_background, "postprocess", options)
    theirs.transform = resizing(96)
    images = [torch.rand(3, 96, 128)]
    (found,) = ours_with_background.detect(*network_input(theirs.transform, images))
    assert 3 < len(found) < options.max_detections
    assert_same(found, theirs(images)[0])


@torch.inference_mode()
def test_category_ids_match_torchvision_labels(theirs: TorchvisionFCOS) -> None:
    state = theirs.state_dict()
    state["head.classification_head.cls_logits.bias"] = torch.tensor([-20.0, -1, -1, -1, -1, -1])  # never background
    theirs = model_with_many_detections()
    theirs.load_state_dict(state)
    theirs.transform = resizing(96)
    checkpoint = from_torchvision(state)
    images = [torch.rand(3, 96, 128)]
    (found,) = detector(checkpoint).detect(*network_input(theirs.transform, images))
    assert len(found) > 20
    assert_same(found, theirs(images)[0], torch.tensor(checkpoint.category_ids)[found.labels])


class SideBySide(NamedTuple):
    """torchvision's model as its users build it, and our detector loaded from its weights file."""

    theirs: TorchvisionFCOS
    ours: Detector

    def assert_same(self, found: Instances, expected: dict[str, Tensor]) -> None:
        assert len(found) > 50
        assert len(found.labels.unique()) > 5
        labels = torch.tensor(self.ours.category_ids)[found.labels]
        assert_same(found, expected, labels)
        names = FCOS_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
        assert [found.class_names[i] for i in found.labels] == [names[i] for i in labels]


@pytest.fixture(scope="module")
def side_by_side(tmp_path_factory: pytest.TempPathFactory) -> SideBySide:
    model = model_with_many_detections(91, min_size=96, max_size=192)
    no_class = [row for row in range(91) if row not in COCO_CLASSES]
    model.state_dict()["head.classification_head.cls_logits.bias"][no_class] = -20.0
    path = tmp_path_factory.mktemp("torchvision") / "coco.pth"
    torch.save(model.state_dict(), path)
    ours = fcos.load(path, "data.test_short_side=96", "data.test_max_side=192", device="cpu")
    path.unlink()
    return SideBySide(model, ours)


def picture(*size: int) -> Tensor:
    """Return a uint8 image [3, H, W] of multiples of 16, which both projects resize to double size without rounding."""
    return torch.randint(0, 16, (3, *size), dtype=torch.uint8) * 16


@pytest.mark.parametrize("size", [(96, 128), (96, 131), (157, 96), (48, 64), (48, 53), (71, 48), (48, 96)])
@torch.inference_mode()
def test_prediction_of_one_image_matches_torchvision(side_by_side: SideBySide, size: tuple[int, int]) -> None:
    image = picture(*size)
    (expected,) = side_by_side.theirs([image / 255])
    side_by_side.assert_same(side_by_side.ours.predict(image, threshold=0), expected)


@torch.inference_mode()
def test_prediction_of_a_batch_matches_torchvision(side_by_side: SideBySide) -> None:
    """The images share one padded size in torchvision's batch: it would detect in padding added by a larger image."""
    images = [picture(96, 97), picture(48, 55), picture(96, 128), picture(48, 61)]
    found = side_by_side.ours.predict(images, threshold=0)
    for ours, their in zip(found, side_by_side.theirs([image / 255 for image in images]), strict=True):
        side_by_side.assert_same(ours, their)


@torch.inference_mode()
def test_prediction_of_mixed_sizes_matches_torchvision_per_image(side_by_side: SideBySide) -> None:
    images = [picture(96, 97), picture(53, 48), picture(160, 96), picture(48, 48), picture(96, 110)]
    for image, found in zip(images, side_by_side.ours.predict(images, threshold=0, batch_size=3), strict=True):
        side_by_side.assert_same(found, side_by_side.theirs([image / 255])[0])


def test_tensor_names_survive_a_round_trip(theirs: TorchvisionFCOS) -> None:
    state = theirs.state_dict()
    section = FCOSConfig().model_dump()
    assert_equal({torchvision_name(name, section): tensor for name, tensor in to_our_names(state).items()}, state)


def test_tensor_names_before_torchvision_0_13_are_supported(theirs: TorchvisionFCOS) -> None:
    state = theirs.state_dict()
    old = {name.replace("_blocks.0.0.", "_blocks.0."): tensor for name, tensor in state.items()}
    assert "backbone.fpn.layer_blocks.0.weight" in old
    assert_equal(to_our_names(old), to_our_names(state))


def test_checkpoint_survives_a_round_trip(theirs: TorchvisionFCOS) -> None:
    checkpoint = from_torchvision(theirs.state_dict())
    back = to_torchvision(checkpoint)
    assert {name: tensor.shape for name, tensor in back.items()} == {
        name: tensor.shape for name, tensor in theirs.state_dict().items()
    }
    again = from_torchvision(back)
    assert_equal(again.model, checkpoint.model)
    assert replace(again, model={}) == replace(checkpoint, model={})


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def class_head(rows: int) -> dict[str, Tensor]:
    """Return the class head of a state dict, with each row filled with its index."""
    numbers = torch.arange(float(rows))
    return {
        "head.classification_head.cls_logits.weight": numbers[:, None, None, None].expand(rows, 2, 3, 3).clone(),
        "head.classification_head.cls_logits.bias": numbers,
    }


def test_class_head_with_91_rows_has_the_coco_classes() -> None:
    checkpoint = from_torchvision(class_head(91))
    assert checkpoint.category_ids[:12] == (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13)
    assert checkpoint.class_names[11] == "stop sign"
    assert len(checkpoint.class_names) == len(set(checkpoint.class_names)) == 80
    assert checkpoint.class_names[-1] == COCO_CLASSES[90] == "toothbrush"
    rows = [float(i) for i in checkpoint.category_ids]
    assert checkpoint.model["head.logits.bias"].tolist() == rows
    assert checkpoint.model["head.logits.weight"][:, 0, 0, 0].tolist() == rows


def test_other_classes_have_names_only_if_given() -> None:
    checkpoint = from_torchvision(class_head(3))
    assert (checkpoint.category_ids, checkpoint.class_names) == ((1, 2), ())
    named = from_torchvision(class_head(3), class_names=["cat", "dog"])
    assert (named.category_ids, named.class_names) == ((1, 2), ("cat", "dog"))
    with pytest.raises(WeightsError, match=r"x\.pth: the weights have 2 classes .* data\.classes has 3 names"):
        from_torchvision(class_head(3), class_names=["cat", "dog", "owl"], where="x.pth")


@pytest.mark.parametrize(
    ("ids", "labels"), [((2, 7, 90), [2, 7, 90]), ((0, 1, 2), [1, 2, 3]), ((1, 2, 1000), [1, 2, 3])]
)
def test_category_ids_become_labels_if_possible(ids: tuple[int, ...], labels: list[int]) -> None:
    checkpoint = replace(from_torchvision(class_head(4)), category_ids=ids)
    bias = to_torchvision(checkpoint)["head.classification_head.cls_logits.bias"]
    assert len(bias) == max(labels) + 1
    assert bias[labels].tolist() == [1, 2, 3]
    assert sorted(bias.tolist())[: -len(ids)] == [-10.0] * (len(bias) - len(ids))


@pytest.mark.parametrize("ids", [(5, 17), (5, 90), tuple(COCO_CLASSES)])
def test_category_ids_survive_a_round_trip(ids: tuple[int, ...]) -> None:
    before = replace(from_torchvision(class_head(len(ids) + 1)), category_ids=ids, class_names=())
    state = to_torchvision(before)
    after = from_torchvision(state)
    assert after.category_ids == ids
    assert after.class_names == (tuple(COCO_CLASSES.values()) if len(ids) == 80 else ())
    assert_equal(after.model, before.model)
    assert from_torchvision(state, class_names=["x"] * len(ids)).category_ids == ids


@pytest.mark.parametrize(
    ("options", "expected_text"),
    [
        ({"location": "center"}, "model.location=center (expected corner)"),
        ({"head": {"level_scales": True}}, "model.head.level_scales=true"),
        ({"score": "product"}, "model.score=product (expected sqrt)"),
        ({"threshold_on": "class"}, "model.threshold_on=class (expected score)"),
        ({"top_k_on": "class"}, "model.top_k_on=class (expected score)"),
        ({"pixel_mean": [0.0, 0.0, 0.0]}, "model.pixel_mean=[0,0,0]"),
        ({"backbone": {"name": "mobilenet_v2"}}, "model.backbone.name=mobilenet_v2"),
        ({"backbone": {"norm": "gn"}}, "model.backbone.norm=gn"),
    ],
)
def test_options_unsupported_by_torchvision_raise(options: dict[str, Any], expected_text: str) -> None:
    checkpoint = from_torchvision(class_head(3))
    model = checkpoint.config["model"]
    head = {**model["head"], **options.get("head", {})}
    checkpoint = replace(checkpoint, config={"model": {**model, **options, "head": head}})
    with pytest.raises(WeightsError) as caught:
        to_torchvision(checkpoint, where="run/weights/best.pt")
    assert str(caught.value).startswith("run/weights/best.pt: ")
    assert expected_text in str(caught.value)


def test_effective_model_options_raise_unless_exempt() -> None:
    checkpoint = from_torchvision(class_head(3))
    options = options_of(FCOSConfig)
    free = set(free_options(options, "torchvision"))
    changed = changed_sections(checkpoint.config["model"])
    assert free <= changed.keys()
    for key, section in changed.items():
        other = replace(checkpoint, config={"model": section})
        if key in free or key not in in_effect(flatten(section), options):
            assert to_torchvision(other)
        else:
            with pytest.raises(WeightsError, match=rf"model\.{re.escape(key)}="):
                to_torchvision(other)


@pytest.mark.parametrize(("statistics", "norm"), [(True, "bn"), (False, "frozen_bn")])
def test_norm_is_inferred_from_the_tensor_names(statistics: bool, norm: str) -> None:
    state = class_head(3) | ({"backbone.body.bn1.num_batches_tracked": torch.tensor(0)} if statistics else {})
    assert from_torchvision(state).config["model"]["backbone"]["norm"] == norm
