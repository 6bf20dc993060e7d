"""torchvision's detectors, for comparison with ours on the same network input."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from fcos.checkpoint import Checkpoint, load_weights
from fcos.config.overrides import validate
from fcos.interop.torchvision import from_torchvision
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
NUM_LABELS = 6
KEYPOINT_CHANNELS = (64,) * 8
"""Channels of the keypoint head, which has 512 in torchvision's function, so that a detection costs little."""
_STD: tuple[dict[str, float], ...] = (
    {"head.classification_head.cls_logits": 2.0, "head.regression_head.bbox_reg": 0.3},
    {"rpn.head.cls_logits": 2.0, "rpn.head.bbox_pred": 0.3},
    {"roi_heads.box_predictor.cls_score": 2.0, "roi_heads.box_predictor.bbox_pred": 1.0},
    {"roi_heads.mask_predictor.mask_fcn_logits": 2.0},
    {"roi_heads.keypoint_predictor.kps_score_lowres": 2.0},
)
"""Standard deviation of the outputs of layers in `random_model`, from the first stage to the last."""
LIMITS: dict[str, dict[str, Any]] = {
    "retinanet": {"detections_per_img": 50},
    "rcnn": {"rpn_post_nms_top_n_test": 100, "box_detections_per_img": 20},
}
"""Limits of torchvision's functions for fast tests."""
OUR_LIMITS: dict[str, dict[str, Any]] = {
    "retinanet": {"max_detections": 50},
    "rcnn": {"proposals": {"max_proposals": 100}, "max_detections": 20},
}
"""The same limits as options of `model`."""


def initial_model(name: str, num_labels: int = NUM_LABELS, **options: Any) -> nn.Module:
    """Build one of torchvision's detectors for small images, in evaluation mode.

    Args:
        name: name of torchvision's function.
        num_labels: number of classes including background.
        **options: options of the function.
    """
    limits = LIMITS["retinanet" if name.startswith("retinanet") else "rcnn"]
    options = {"min_size": 96, "max_size": 192, **limits, **options}
    model = getattr(detection, name)(weights=None, weights_backbone=None, num_classes=num_labels, **options).eval()
    if name.startswith("keypoint"):
        model.roi_heads.keypoint_head = KeypointRCNNHeads(256, KEYPOINT_CHANNELS)
        model.roi_heads.keypoint_predictor = KeypointRCNNPredictor(KEYPOINT_CHANNELS[-1], 17)
    return model


def random_model(name: str, num_labels: int = NUM_LABELS, *, seed: int = 1, **options: Any) -> nn.Module:
    """Build an `initial_model` with weights that give many detections, of every class and size."""
    torch.manual_seed(seed)
    model = initial_model(name, num_labels, **options)
    for key, tensor in model.state_dict().items():
        if key.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif key.endswith(("running_mean", "bias")):
            tensor.normal_(std=0.1)
    modules = dict(model.named_modules())
    for stage in _STD:
        if stage.keys() <= modules.keys():
            _scale_outputs(model, [(modules[path], std) for path, std in stage.items()])
    return model


@torch.inference_mode()
def _scale_outputs(model: nn.Module, stage: Sequence[tuple[Any, float]]) -> None:
    """Scale the outputs of layers for a random image to a standard deviation; the mean of every channel is 0."""
    outputs: list[list[Tensor]] = [[] for _ in stage]
    hooks = [
        layer.register_forward_hook(lambda *call, found=found: found.append(call[-1].transpose(0, 1).flatten(1)))
        for (layer, _), found in zip(stage, outputs, strict=True)
    ]
    model([torch.rand(3, 96, 128)])
    for (layer, std), found, hook in zip(stage, outputs, hooks, strict=True):
        hook.remove()
        channels = torch.cat(found, dim=1)
        mean = channels.mean(dim=1)
        factor = std / (channels - mean[:, None]).std()
        layer.weight.mul_(factor)
        layer.bias.copy_((layer.bias - mean) * factor)


def resizing(min_size: int) -> GeneralizedRCNNTransform:
    """Build torchvision's input transform for small images."""
    return GeneralizedRCNNTransform(min_size, 192, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]).eval()


def network_input(transform: GeneralizedRCNNTransform, images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the input of torchvision's network as our images (RGB 0..255) and sizes."""
    batch, _ = transform(list(images))
    mean, std = (torch.tensor(values)[:, None, None] for values in (transform.image_mean, transform.image_std))
    return (batch.tensors * std + mean) * 255, torch.tensor(batch.image_sizes)


def assert_same(found: Instances, expected: dict[str, Tensor], labels: Tensor | None = None) -> None:
    """Compare with the project's tolerances: 0.01 pixels, 1e-4. Detections with nearly equal scores may swap places."""
    assert len(found) == len(expected["scores"])
    torch.testing.assert_close(found.scores, expected["scores"], rtol=0, atol=1e-4)
    same = (found.labels if labels is None else labels)[:, None] == expected["labels"]
    same &= (found.scores[:, None] - expected["scores"]).abs() <= 1e-4
    same &= (found.boxes[:, None] - expected["boxes"]).abs().amax(dim=2) <= 0.01
    assert same.any(dim=0).all()
    assert same.any(dim=1).all()


def suppress_background(name: str, model: nn.Module) -> nn.Module:
    """Remove the detections of RetinaNet's class "background", which we do not have."""
    if name in RETINANETS:
        model.get_parameter("head.classification_head.cls_logits.bias").data.view(9, -1)[:, 0] = -100.0
        model.get_parameter("head.classification_head.cls_logits.weight").data.unflatten(0, (9, -1))[:, 0] = 0.0
    return model


def our_detector(checkpoint: Checkpoint) -> DetectionModel:
    section = checkpoint.config["model"]
    limits = dict(OUR_LIMITS[section["name"]])
    if "keypoints" in section:
        limits["keypoints"] = {"conv_channels": KEYPOINT_CHANNELS}
    section = section | {
        key: {**section.get(key, {}), **value} if isinstance(value, dict) else value for key, value in limits.items()
    }
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
        images = [image.to(next(self.ours.parameters())) for image in images]
        found = self.ours.detect(*network_input(transform, images))
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        return [image.resize_to(size) for image, size in zip(found, sizes, strict=True)], self.theirs(images)


def make_pair(name: str, seed: int) -> Pair:
    num_labels = 2 if name.startswith("keypoint") else NUM_LABELS
    theirs = suppress_background(name, random_model(name, num_labels, seed=seed))
    ours = our_detector(from_torchvision(theirs.state_dict()))
    if name.startswith("keypoint"):  # in float32, rounding would decide between cells of a keypoint's map
        return Pair(name, theirs.double(), ours.double())
    return Pair(name, theirs, ours)


def assert_same_details(found: Instances, expected: dict[str, Tensor]) -> None:
    """Compare boxes and keypoints (0.01 pixels), scores (1e-5) and masks (1e-4) with torchvision's."""
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
        keypoints = found.keypoints[order].float()  # of torchvision, some are float32
        torch.testing.assert_close(keypoints[..., :2], expected["keypoints"][..., :2].float(), rtol=0, atol=0.01)
        torch.testing.assert_close(keypoints[..., 2], expected["keypoints_scores"].float(), rtol=0, atol=1e-4)


def match_boxes(found: Instances, expected: dict[str, Tensor]) -> Tensor:
    """Return the index of our detection for each of torchvision's, since nearly equal scores may swap places."""
    distance = (found.boxes[:, None] - expected["boxes"]).abs().amax(dim=2)
    return (
        (distance + 1000.0 * (found.labels[:, None] + 1 != expected["labels"])).argmin(dim=0)
        if len(found)
        else torch.zeros(0, dtype=torch.int64)
    )


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
