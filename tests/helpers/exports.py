"""Detectors with a cheap backbone that are exported within seconds, and images for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectors import CATEGORY_IDS, NAMES
from PIL import Image
from torch import Tensor

from fcos import Detector
from fcos.checkpoint import save_checkpoint
from fcos.config.overrides import validate
from fcos.models import build_model

OWN_CODE = "model.backbone.name=tiny_backbone:Tiny"
SMALL: dict[str, dict[str, Any]] = {
    "fcos": {
        "head": {"num_convs": 1},
        "strides": [8, 16],
        "size_ranges": [[-1, 32], [32, None]],
        "fpn": {"channels": 32},
        "pre_nms_top_k": 200,
        "max_detections": 30,
    },
    "retinanet": {
        "head": {"num_convs": 1},
        "strides": [8, 16],
        "anchor_sizes": [[16.0], [32.0]],
        "fpn": {"channels": 32},
        "pre_nms_top_k": 200,
        "max_detections": 30,
    },
    "rpn": {
        "strides": [8, 16],
        "anchor_sizes": [16, 32],
        "fpn": {"channels": 32},
        "proposals": {"pre_nms_top_k": 200, "post_nms_top_k": 40, "max_proposals": 50},
    },
    "rcnn": {
        "strides": [8, 16],
        "anchor_sizes": [16, 32],
        "fpn": {"channels": 32},
        "proposals": {"pre_nms_top_k": 200, "post_nms_top_k": 40, "max_proposals": 50},
        "box": {"linear_channels": 32},
        "max_detections": 30,
    },
}
"""Options of `model` by `model.name`."""
MASKS: dict[str, Any] = {"mask": {"enabled": True, "conv_channels": [16], "resolution": 7}}
KEYPOINTS: dict[str, Any] = {"keypoints": {"enabled": True, "conv_channels": [16], "num_keypoints": 5, "resolution": 7}}
"""Options of `model` for heads of R-CNN."""
ONE_SIZE: dict[str, Any] = {"size": (64, 64), "batch": 1}
"""Options of an export that takes a third of the time, because all shapes are known."""
C4: dict[str, Any] = {
    "backbone": {"name": "resnet50", "weights": None},
    "fpn": {"enabled": False},
    "strides": [16],
    "anchor_sizes": [32],
    "proposals": {"pre_nms_top_k": 40, "post_nms_top_k": 12, "max_proposals": 12},
    "box": {"layers": "backbone"},
    "mask": {"enabled": True, "layers": "box"},
}
"""Options of `model` for an R-CNN on C4, whose heads are the last stage of the backbone."""


def small_detector(
    name: str = "fcos", *, classes: Sequence[str] = NAMES, data: Mapping[str, Any] | None = None, **model: Any
) -> Detector:
    """Build a detector that detects objects of every class in every image; the same in every call."""
    torch.manual_seed(0)
    section = {"name": name, "backbone": {"name": "tiny_backbone:Tiny"}, **SMALL[name], **model}
    options = {"short_side": 96, "max_side": 160, "workers": 0, "size_divisor": 16, **(data or {})}
    options |= {"masks": "mask" in model, "keypoints": "keypoints" in model}
    config = validate({"model": section, "data": options, "device": "cpu"}, where="test")
    network = build_model(config.model, num_classes=len(classes), pretrained=False)
    with torch.no_grad():
        for parameter_name, parameter in network.named_parameters():
            if parameter_name.endswith(("logits.weight", "offsets.weight", "ltrb.weight", "centerness.weight")):
                parameter.normal_(std=0.1 if "logits" in parameter_name else 0.02)
            elif parameter_name.endswith("ltrb.bias"):
                parameter.fill_(3.0)  # boxes of about 40 pixels
            elif parameter_name.endswith("logits.bias"):
                parameter.zero_()
        for module in network.modules():  # as after training
            if isinstance(module, torch.nn.BatchNorm2d):
                module.get_buffer("running_mean").normal_(std=0.1)
                module.get_buffer("running_var").uniform_(0.5, 2.0)
    ids = CATEGORY_IDS[: len(classes)]
    return Detector(network, config, class_names=classes, category_ids=ids, thresholds={"dog": 0.2})


def save_small_detector(path: Path) -> Path:
    """Write weights of a detector of the classes of `tiny_data`; `OWN_CODE` must be given with them."""
    detector = small_detector(classes=("cat", "dog"), data={"short_side": 40, "max_side": 60})
    save_checkpoint(
        path,
        model=detector.model,
        config=detector.config,
        class_names=detector.class_names,
        category_ids=[7, 6],
        thresholds={"cat": 0.2, "dog": 0.3},
        licence="CC-BY-4.0",
    )
    return path


def batch_of(*sizes: tuple[int, int], divisor: int = 16) -> tuple[Tensor, Tensor]:
    """Return uint8 images of noise, padded to common sides, and their (height, width)."""
    generator = torch.Generator().manual_seed(len(sizes))
    height, width = (-(-max(sides) // divisor) * divisor for sides in zip(*sizes, strict=True))
    shape = (len(sizes), 3, height, width)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator), torch.tensor(sizes)


def picture(width: int = 130, height: int = 100, seed: int = 0) -> Image.Image:
    """Return a picture of noise."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=generator)
    return Image.fromarray(pixels.numpy())
