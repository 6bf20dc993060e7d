"""RetinaNet and R-CNN of projects that follow Detectron: structure from tensors, rows of anchors and of the background.

detectron2 and mmdetection differ from this project in the order of rows: the background is the last class of an R-CNN,
without box offsets and mask; detectron2 orders the anchors of a location by size, then by ratio. Conversion moves the
rows, so that the detectors do not depend on the origin of their weights.

Shape letters: K classes, A anchors per location, S sizes, R ratios.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import isqrt
from typing import Any

import torch
from torch import Tensor

from ..errors import WeightsError
from ..formatting import plural
from .architecture import count_region_classes, infer_backbone, infer_norm

Weights = dict[str, Tensor]

NUM_SIZES = 3
"""Number of anchor sizes per level of a RetinaNet."""
NUM_C4_SIZES = 5
"""Number of anchor sizes of an R-CNN on C4."""
_C4_HEAD = "box.body.0."
"""Prefix of the box head of an R-CNN on C4, the last stage of its ResNet."""
_SIZES = (32, 64, 128, 256, 512)
_RCNN: dict[str, Any] = {
    "name": "rcnn",
    "location": "multiple",
    "pooling_aligned": True,
    "pre_nms_top_k": 20_000,  # not a limit: fewer than 20 classes of each of 1,000 proposals can have scores above 0.05
}
_RETINANET: dict[str, Any] = {
    "name": "retinanet",
    "location": "multiple",
    "offset_weights": (1.0, 1.0, 1.0, 1.0),
    "smooth_l1_beta": 0.0,
    "box_loss_divisor": 1.0,
    "nms_threshold": 0.5,
    "detect_in_padding": True,
}


def is_c4(weights: Mapping[str, Tensor]) -> bool:
    """Return whether weights under our names are those of an R-CNN on C4, without a pyramid."""
    return f"{_C4_HEAD}layer4.0.conv1.weight" in weights


def shared_layers(names: Mapping[str, str]) -> dict[str, str]:
    """Return the original names, by our names, of the layers of an R-CNN on C4 that its mask head shares.

    Args:
        names: original names of all tensors, by our names.
    """
    if "heads.mask.logits.weight" not in names:
        return {}
    shared = {name.removeprefix(_C4_HEAD): old for name, old in names.items() if name.startswith(_C4_HEAD)}
    return {f"heads.mask.body.{name}": old for name, old in shared.items()}


def infer_retinanet_section(weights: Mapping[str, Tensor], *, where: str) -> dict[str, Any]:
    """Infer the section `model` of a RetinaNet, with the conventions that detectron2 and mmdetection share.

    Args:
        weights: tensors by our names.
        where: source of the weights, for messages.

    Raises:
        WeightsError: the backbone or neck is not supported.
    """
    fpn = _infer_fpn(weights, where=where)
    tower = "head.cls_tower."
    convs = _convs(weights, tower)
    num_levels = len(_layers(weights, "fpn.lateral.")) + len(_layers(weights, "fpn.extra."))
    return {
        **_RETINANET,
        "backbone": infer_backbone(weights, where=where),
        "fpn": fpn,
        "head": {
            "num_convs": len(convs),
            "norm": infer_norm(weights, tower),
            "conv_bias": all(name.removesuffix("weight") + "bias" in weights for name in convs),
        },
        "strides": [8 * 2**level for level in range(num_levels)],
        "anchor_sizes": [[32 * 2**level] for level in range(num_levels)],
    }


def infer_rcnn_section(weights: Mapping[str, Tensor], *, where: str) -> dict[str, Any]:
    """Infer the section `model` of an R-CNN, with the conventions that detectron2 and mmdetection share.

    Args:
        weights: tensors by our names, with the rows of `with_background`.
        where: source of the weights, for messages.

    Raises:
        WeightsError: the backbone or neck is not supported, or the box head is damaged.
    """
    section = {**_RCNN, "backbone": infer_backbone(weights, where=where)}
    proposals = {
        "num_convs": len(_convs(weights, "proposals.head.tower.")),
        "smooth_l1_beta": 0.0,
        "in_padding": True,
        "train_max_proposals": 1000,
    }
    box: dict[str, Any] = {"sampling_ratio": 0, "smooth_l1_beta": 0.0}
    if is_c4(weights):
        section |= {"fpn": {"enabled": False}, "strides": [16], "anchor_sizes": [list(_SIZES)]}
        proposals |= {"train_pre_nms_top_k": 12_000, "train_max_proposals": 2000, "pre_nms_top_k": 6000}
        box |= {"layers": "backbone", "resolution": 14}
    else:
        section["fpn"] = fpn = _infer_fpn(weights, where=where)
        num_maps = len(_layers(weights, "fpn.lateral."))
        num_levels = num_maps + (len(_layers(weights, "fpn.extra.")) or 1)
        section["strides"] = [4 * 2**level for level in range(num_levels)]
        section["anchor_sizes"] = [[32 * 2**level] for level in range(num_levels)]
        box |= _infer_box_layers(weights, fpn["channels"], where=where)
    num_classes = len(weights["box.logits.bias"]) - 1
    box["class_agnostic"] = num_classes > 1 and len(weights["box.offsets.bias"]) == 8
    section |= {"proposals": proposals, "box": box}
    if "heads.mask.logits.weight" in weights:
        section["mask"] = _infer_mask_head(weights) | {"layers": "box" if is_c4(weights) else "own"}
    keypoints = weights.get("heads.keypoints.logits.weight")
    if keypoints is not None:
        section["keypoints"] = {
            "enabled": True,
            "num_keypoints": keypoints.shape[1],
            "conv_channels": [len(weights[name]) for name in _convs(weights, "heads.keypoints.body.")],
            "sampling_ratio": 0,
        }
    return section


def _infer_fpn(weights: Mapping[str, Tensor], *, where: str) -> dict[str, Any]:
    """Return the options of the pyramid."""
    lateral = weights.get("fpn.lateral.0.weight", weights.get("fpn.lateral.0.0.weight"))
    if lateral is None:
        raise WeightsError(f"{where}: expected a detector with a feature pyramid (FPN) or on C4, found another neck")
    extra = weights.get("fpn.extra.0.weight")
    source = "max_pool" if extra is None else "p5" if extra.shape[1] == len(lateral) else "c5"
    return {"channels": len(lateral), "norm": infer_norm(weights, "fpn."), "extra_level_source": source}


def _infer_box_layers(weights: Mapping[str, Tensor], channels: int, *, where: str) -> dict[str, Any]:
    """Return the options of the layers of the box head on a pyramid with this number of channels."""
    convs = _convs(weights, "box.body.convs.")
    linears = [name for name in _layers(weights, "box.body.linears.") if weights[name].dim() == 2]
    if not linears:
        raise WeightsError(f"{where}: expected a box head with linear layers, found another one")
    conv_channels = len(weights[convs[-1]]) if convs else channels
    return {
        "num_convs": len(convs),
        "conv_channels": conv_channels,
        "conv_norm": infer_norm(weights, "box.body.convs."),
        "num_linears": len(linears),
        "linear_channels": len(weights[linears[0]]),
        "resolution": isqrt(weights[linears[0]].shape[1] // conv_channels),
    }


def _infer_mask_head(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    convs = [] if is_c4(weights) else [len(weights[name]) for name in _convs(weights, "heads.mask.body.")]
    upsample = weights.get("heads.mask.upsample.0.weight")
    return {
        "enabled": True,
        "conv_channels": convs or [upsample.shape[1] if upsample is not None else 256],
        "upsample": upsample is not None,
        "norm": "none" if is_c4(weights) else infer_norm(weights, "heads.mask.body."),
        "sampling_ratio": 0,
        "pasting": "exact",
    }


def _layers(weights: Mapping[str, Tensor], prefix: str) -> list[str]:
    """Return the names of the weights of convolutions and linear layers under a prefix, in their order."""
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.(?:0\.)?weight")
    numbers = {n: int(m[1]) for n, tensor in weights.items() if (m := pattern.fullmatch(n)) and tensor.dim() > 1}
    return sorted(numbers, key=numbers.__getitem__)


def _convs(weights: Mapping[str, Tensor], prefix: str) -> list[str]:
    return [name for name in _layers(weights, prefix) if weights[name].dim() == 4]


def with_background(weights: Mapping[str, Tensor], *, where: str) -> Weights:
    """Return the weights of an R-CNN with the rows of the background first, in all layers with class rows.

    Args:
        weights: tensors by our names. The background is the last row of the class logits, and the other layers have
            none. A class-agnostic mask head has a single row, which is repeated for every class.
        where: source of the weights, for messages.

    Raises:
        WeightsError: a layer is missing, or has another number of rows.
    """
    num_classes = count_region_classes(weights, where=where)
    moved = {**weights, **{name: weights[name].roll(1, dims=0) for name in ("box.logits.weight", "box.logits.bias")}}
    counts = {"box.offsets.": [4 * num_classes, 4]}
    if any(name.startswith("heads.mask.logits.") for name in weights):
        counts["heads.mask.logits."] = [num_classes, 1]
    for layer, allowed in counts.items():
        for name in (f"{layer}weight", f"{layer}bias"):
            shape = list(weights[name].shape) if name in weights else "none"
            if shape == "none" or not shape or shape[0] not in allowed:
                raise WeightsError(
                    f"{where}: damaged weights: expected {' or '.join(map(str, allowed))} rows of {name} for"
                    f" {plural(num_classes, 'class')}, found the shape {shape}"
                )
            is_mask = layer == "heads.mask.logits."
            rows = weights[name].expand(num_classes, *shape[1:]) if is_mask else weights[name]
            moved[name] = torch.cat([torch.zeros_like(rows[: 1 if is_mask else 4]), rows])
    return moved


def by_ratio_first(weights: Mapping[str, Tensor], layers: Sequence[str], *, offsets: str, num_sizes: int) -> Weights:
    """Return the weights with the anchors of a location ordered by ratio, then by size, as in `AnchorGrid`.

    Args:
        weights: tensors by name, with the anchors ordered by size, then by ratio.
        layers: prefixes of the tensors whose rows form A blocks.
        offsets: name of the bias of the box offsets, which has 4 A rows.
        num_sizes: S.
    """
    num_anchors = weights[offsets].numel() // 4 if offsets in weights else 0
    if num_sizes == 1 or not num_anchors or num_anchors % num_sizes:  # if they do not fit, loading says so
        return dict(weights)
    num_ratios = num_anchors // num_sizes
    ordered = dict(weights)
    for name, tensor in weights.items():
        if name.startswith(tuple(layers)) and tensor.dim() and not len(tensor) % num_anchors:
            ordered[name] = tensor.unflatten(0, (num_sizes, num_ratios, -1)).transpose(0, 1).flatten(0, 2)
    return ordered
