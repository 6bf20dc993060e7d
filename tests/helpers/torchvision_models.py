"""torchvision's detectors, for comparison with ours on the same network input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from fcos.structures import Instances

_STD = {
    "head.classification_head.cls_logits": 2.0,
    "head.regression_head.bbox_reg": 0.3,
    "rpn.head.cls_logits": 2.0,
    "rpn.head.bbox_pred": 0.3,
    "roi_heads.box_predictor.cls_score": 2.0,
    "roi_heads.box_predictor.bbox_pred": 1.0,
    "roi_heads.mask_predictor.mask_fcn_logits": 2.0,
    "roi_heads.keypoint_predictor.kps_score_lowres": 2.0,
}
"""Standard deviation of the outputs of layers in `random_model`."""
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


def random_model(name: str, num_labels: int = 6, *, seed: int = 1, **options: Any) -> nn.Module:
    """Build one of torchvision's detectors with weights that give many detections, of every class and size.

    Args:
        name: name of torchvision's function.
        num_labels: number of classes including background.
        seed: seed of the weights.
        **options: options of the function.
    """
    torch.manual_seed(seed)
    limits = LIMITS["retinanet" if name.startswith("retinanet") else "rcnn"]
    options = {"min_size": 96, "max_size": 192, **limits, **options}
    model = getattr(detection, name)(weights=None, weights_backbone=None, num_classes=num_labels, **options).eval()
    for key, tensor in model.state_dict().items():
        if key.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif key.endswith(("running_mean", "bias")):
            tensor.normal_(std=0.1)
    for path, std in _STD.items():
        if any(key == path for key, _ in model.named_modules()):
            _scale_outputs(model, model.get_submodule(path), std)
    return model


@torch.inference_mode()
def _scale_outputs(model: nn.Module, layer: Any, std: float) -> None:
    """Scale the outputs of a layer for a random image to this standard deviation; the mean of every channel is 0."""
    outputs: list[Tensor] = []
    hook = layer.register_forward_hook(lambda *call: outputs.append(call[-1].transpose(0, 1).flatten(1)))
    model([torch.rand(3, 96, 128)])
    hook.remove()
    channels = torch.cat(outputs, dim=1)
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
