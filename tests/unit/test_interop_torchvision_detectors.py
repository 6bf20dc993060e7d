"""Same detections as torchvision's RetinaNet and R-CNN in the same process; names and classes converted both ways."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from model_options import changed_sections
from torch import Tensor, nn
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_fpn
from torchvision.models.detection._utils import overwrite_eps
from torchvision_models import OUR_LIMITS, assert_same, network_input, random_model, resizing

import fcos
from fcos.checkpoint import Checkpoint, load_weights
from fcos.config.detectors import DETECTORS
from fcos.config.options import free_options, in_effect, options_of
from fcos.config.overrides import validate
from fcos.config.text import flatten
from fcos.errors import WeightsError
from fcos.interop.checkpoints import from_content, load_checkpoint
from fcos.interop.torchvision import COCO_CLASSES, from_torchvision, to_torchvision
from fcos.interop.torchvision.architectures import ARCHITECTURES
from fcos.masks import paste
from fcos.models import DetectionModel, build_model
from fcos.structures import Instances

RETINANETS = ("retinanet_resnet50_fpn", "retinanet_resnet50_fpn_v2")
RCNNS = (
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "maskrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn_v2",
    "keypointrcnn_resnet50_fpn",
)
OLD = ("retinanet_resnet50_fpn", "maskrcnn_resnet50_fpn", "keypointrcnn_resnet50_fpn")
NUM_LABELS = 6


def suppress_background(name: str, model: nn.Module) -> nn.Module:
    """Remove the detections of RetinaNet's class "background", which we do not have."""
    if name in RETINANETS:
        model.get_parameter("head.classification_head.cls_logits.bias").data.view(9, -1)[:, 0] = -100.0
        model.get_parameter("head.classification_head.cls_logits.weight").data.unflatten(0, (9, -1))[:, 0] = 0.0
    return model


def detector(checkpoint: Checkpoint) -> DetectionModel:
    section = checkpoint.config["model"]
    limits = OUR_LIMITS[section["name"]]
    proposals = {**section.get("proposals", {}), **limits.get("proposals", {})}
    section = {**section, **limits, **({"proposals": proposals} if proposals else {})}
    config = validate({**checkpoint.config, "model": section}, where="torchvision")
    model = build_model(config.model, num_classes=len(checkpoint.category_ids), pretrained=False)
    load_weights(model, checkpoint.model, where="torchvision")
    return model.eval()


class Pair(NamedTuple):
    """torchvision's model, and ours with the same weights."""

    name: str
    theirs: nn.Module
    ours: DetectionModel

    @torch.inference_mode()
    def detect(self, images: Sequence[Tensor]) -> tuple[list[Instances], list[dict[str, Tensor]]]:
        transform: Any = self.theirs.transform
        found = self.ours.detect(*network_input(transform, images))
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        return [image.resize_to(size) for image, size in zip(found, sizes, strict=True)], self.theirs(images)


def make_pair(name: str, seed: int) -> Pair:
    num_labels = 2 if name.startswith("keypoint") else NUM_LABELS
    theirs = suppress_background(name, random_model(name, num_labels, seed=seed))
    return Pair(name, theirs, detector(from_torchvision(theirs.state_dict())))


@pytest.fixture(scope="module", params=[*RETINANETS, *RCNNS])
def pair(request: pytest.FixtureRequest) -> Pair:
    return make_pair(request.param, 1)


def assert_same_details(found: Instances, expected: dict[str, Tensor]) -> None:
    """Compare boxes with torchvision's in pixels (0.01), and scores (1e-5), masks (1e-4) and keypoints (0.01 pixels)."""
    assert_same(found, expected, found.labels + 1)
    torch.testing.assert_close(found.scores, expected["scores"], rtol=0, atol=1e-5)
    if "masks" in expected:
        # The corners of boxes are truncated to pixels, where the last digit of a float32 can make a difference of one
        # pixel. So torchvision's boxes are used here.
        order = match_boxes(found, expected)
        assert found.mask_grids is not None
        extra = 1 - found.mask_margin
        inclusive = expected["boxes"] - torch.tensor([0.0, 0.0, extra, extra])
        for ours, theirs in zip(paste(found.mask_grids[order], inclusive, found.size), expected["masks"], strict=True):
            torch.testing.assert_close(ours, theirs[0], rtol=0, atol=1e-4)
    if "keypoints" in expected:
        order = match_boxes(found, expected)
        assert found.keypoints is not None
        keypoints = found.keypoints[order]
        torch.testing.assert_close(keypoints[..., :2], expected["keypoints"][..., :2], rtol=0, atol=0.01)
        torch.testing.assert_close(keypoints[..., 2], expected["keypoints_scores"], rtol=0, atol=1e-4)


def match_boxes(found: Instances, expected: dict[str, Tensor]) -> Tensor:
    """Return the index of our detection for each of torchvision's, since nearly equal scores may swap places."""
    distance = (found.boxes[:, None] - expected["boxes"]).abs().amax(dim=2)
    return (distance + 1000.0 * (found.labels[:, None] + 1 != expected["labels"])).argmin(dim=0)


@pytest.mark.parametrize(
    ("sizes", "min_size"),
    [
        ([(96, 128)], 96),  # not resized
        ([(75, 101)], 96),  # enlarged; sides are not multiples of 32
        ([(160, 90), (96, 70)], 64),  # a batch of two sizes, with padding
    ],
)
def test_detections_match_torchvision(pair: Pair, sizes: list[tuple[int, int]], min_size: int) -> None:
    pair.theirs.transform = resizing(min_size)
    for found, expected in zip(*pair.detect([torch.rand(3, *size) for size in sizes]), strict=True):
        assert len(found) > 10
        assert pair.name.startswith("keypoint") or len(found.labels.unique()) > 2
        assert ("masks" in expected, "keypoints" in expected) == (
            found.mask_grids is not None,
            found.keypoints is not None,
        )
        assert_same_details(found, expected)


@pytest.mark.parametrize("name", ["retinanet_resnet50_fpn", "maskrcnn_resnet50_fpn_v2", "keypointrcnn_resnet50_fpn"])
def test_detections_of_other_weights_match_torchvision(name: str) -> None:
    pair = make_pair(name, seed=2)
    for found, expected in zip(*pair.detect([torch.rand(3, 130, 64)]), strict=True):
        assert len(found) > 10
        assert_same_details(found, expected)


def test_images_without_detections_match_torchvision(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of two images has no detections, then none of them."""
    pair.theirs.transform = resizing(64)
    images = [torch.rand(3, 64, 64), torch.rand(3, 64, 90) * 0.1]
    low, high = sorted(float(image["scores"][0]) for image in pair.detect(images)[1])
    settings: Any = pair.theirs if pair.name in RETINANETS else pair.theirs.roi_heads
    for threshold in ((low + high) / 2, high):
        monkeypatch.setattr(settings, "score_thresh", threshold)
        assert pair.ours.postprocess is not None
        monkeypatch.setattr(pair.ours, "postprocess", replace(pair.ours.postprocess, score_threshold=threshold))
        results = pair.detect(images)
        assert min(len(image) for image in results[0]) == 0
        for found, expected in zip(*results, strict=True):
            assert_same_details(found, expected)


def test_weights_survive_a_round_trip(pair: Pair) -> None:
    """Only RetinaNet's rows of the background, which are not used, change."""
    state = pair.theirs.state_dict()
    checkpoint = from_torchvision(state)
    back = to_torchvision(checkpoint)
    pair.theirs.load_state_dict(back)
    again = from_torchvision(back)
    pair.theirs.load_state_dict(state)
    assert_equal(again.model, checkpoint.model)
    assert replace(again, model={}) == replace(checkpoint, model={})
    is_head = [name.startswith("head.classification_head.cls_logits.") for name in state]
    same = [name for name, skipped in zip(state, is_head, strict=True) if not skipped]
    assert_equal({name: back[name] for name in same}, {name: state[name] for name in same})


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def old_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename tensors as in torchvision before 0.13, with frozen batch norm."""
    old = {}
    for name, tensor in state.items():
        new = re.sub(r"(inner|layer)_blocks\.(\d)\.0\.", r"\1_blocks.\2.", name)
        new = re.sub(r"(head\.\w+_head\.conv)\.(\d)\.0\.", lambda m: f"{m[1]}.{2 * int(m[2])}.", new)
        new = new.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
        new = re.sub(r"mask_head\.(\d)\.0\.", lambda m: f"mask_head.mask_fcn{int(m[1]) + 1}.", new)
        if not name.endswith("num_batches_tracked"):
            old[new] = tensor
    return old


@pytest.mark.parametrize("name", OLD)
def test_names_before_torchvision_0_13_are_supported(name: str) -> None:
    state = random_model(name, 2).state_dict()
    old = old_names(state)
    assert not (state.keys() - old.keys()).isdisjoint({"backbone.fpn.layer_blocks.0.0.weight"})
    expected = from_torchvision(state).model
    found = from_torchvision(old).model
    assert_equal(found, {k: v for k, v in expected.items() if not k.endswith("num_batches_tracked")})


def test_old_weights_have_no_epsilon_in_batch_norm() -> None:
    """torchvision sets the epsilon to 0 when it loads its first COCO weights; later models have 1e-5."""
    name = "fasterrcnn_resnet50_fpn"
    theirs = random_model(name)
    for key, tensor in theirs.state_dict().items():
        if key.endswith("running_var"):
            tensor.mul_(1e-4)  # so that the epsilon matters
    state = old_names(theirs.state_dict())
    checkpoint = from_torchvision(state)
    assert checkpoint.config["model"]["backbone"]["norm_eps"] == 0
    images = [torch.rand(3, 96, 128)]
    back = to_torchvision(checkpoint)
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.0
    found, expected = Pair(name, theirs, detector(checkpoint)).detect(images)
    assert_same_details(found[0], expected[0])
    plain = random_model(name)
    plain.load_state_dict(back, strict=False)
    with torch.inference_mode():
        (again,) = plain(images)
    assert_same_details(found[0], again)
