"""Names of the blobs of Detectron's detectors (Caffe2), which the original loads through MODEL.WEIGHT.

The blobs get the original's tensor names. Most of their values are used as they are; two conventions of RetinaNet
differ, see `_convert_retinanet`. Names and conventions are facts about Detectron (Apache-2.0); the mapping is that of
maskrcnn-benchmark (MIT) and, for the blobs that it leaves out (group norm, RetinaNet), of detectron2 (Apache-2.0) and
of Detectron itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from ...errors import WeightsError
from ...formatting import join_some
from ...models.backbones.caffe2 import rename as rename_backbone
from ..anchor_detectors import by_ratio_first

_PARAMETERS = {"w": "weight", "b": "bias", "gn_s": "1.weight", "gn_b": "1.bias"}
_HEAD = "roi_heads."
_LAYERS: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"fpn_inner_res(\d)_\d+_sum(?:_lateral)?", lambda match: f"backbone.fpn.fpn_inner{int(match[1]) - 1}"),
    (r"fpn_res(\d)_\d+_sum", lambda match: f"backbone.fpn.fpn_layer{int(match[1]) - 1}"),
    (r"fpn_([67])", r"backbone.fpn.top_blocks.p\1"),
    (r"conv_rpn(?:_fpn2)?", "rpn.head.conv"),
    (r"rpn_(cls_logits|bbox_pred)(?:_fpn2)?", r"rpn.head.\1"),
    (r"retnet_(cls|bbox)_conv_n(\d+)_fpn3", lambda match: f"rpn.head.{match[1]}_tower.{2 * int(match[2])}"),
    (r"retnet_cls_pred_fpn3", "rpn.head.cls_logits"),
    (r"retnet_bbox_pred_fpn3", "rpn.head.bbox_pred"),
    (r"head_conv(\d+)", lambda match: f"{_HEAD}box.feature_extractor.xconvs.{int(match[1]) - 1}"),
    (r"(fc[67])", rf"{_HEAD}box.feature_extractor.\1"),
    (r"(cls_score|bbox_pred)", rf"{_HEAD}box.predictor.\1"),
    (r"_\[mask\]_fcn(\d+)", rf"{_HEAD}mask.feature_extractor.mask_fcn\1"),
    (r"(conv5_mask|mask_fcn_logits)", rf"{_HEAD}mask.predictor.\1"),
    (r"(conv_fcn\d+)", rf"{_HEAD}keypoint.feature_extractor.\1"),
    (r"(kps_score_lowres)", rf"{_HEAD}keypoint.predictor.\1"),
]
"""Patterns of the names of layers, and the original's names."""
_BLOB = re.compile(r"(.+?)_(gn_[sb]|[wb])")
_UNUSED = re.compile(
    r".*_momentum|(?:fc1000|pred)_[wb]|(?:res_)?conv1_b|res[2-5]_\d+_branch\w+_b|kps_score_[wb]|lr|weight_order"
)
"""Momentum, the classifier, biases before a norm, and the weights of a bilinear interpolation."""
_DETECTOR = re.compile(r"conv_rpn\w*_w|retnet_cls_pred_fpn3_w|cls_score_w")
_MASK_COPY = "_[mask]_"
_NUM_SCALES, _NUM_RATIOS = 3, 3
_OFFSET_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
"""Factors of the box offsets of the original's RetinaNet; Detectron's has none."""


def is_detector(blobs: Iterable[str]) -> bool:
    """Return whether blobs are of a detector, not only of a backbone."""
    return any(_DETECTOR.fullmatch(blob) for blob in blobs)


def is_retinanet(blobs: Iterable[str]) -> bool:
    """Return whether blobs are of a RetinaNet."""
    return any(blob.startswith("retnet_") for blob in blobs)


def convert(blobs: Mapping[str, Tensor], *, where: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Convert the blobs of a detector to the original's tensors.

    Batch norm of Detectron has only scale and offset, so its statistics are set to mean 0 and variance 1.

    Args:
        blobs: arrays of the file by name.
        where: source of the weights, for messages.

    Returns:
        The original's state dict, and the names of the blobs by the original's names.

    Raises:
        WeightsError: a blob is of a part that no supported detector has, or its shape is not supported.
    """
    used = {blob: names for blob in blobs if (names := _rename(blob, blobs)) is not None}
    unknown = [blob for blob in blobs if blob not in used and not _UNUSED.fullmatch(blob)]
    if unknown:
        raise WeightsError(
            f"{where}: unsupported blobs: {join_some(unknown)}; expected those of Detectron's RPN, RetinaNet, Faster,"
            " Mask or Keypoint R-CNN with a ResNet; to use only the backbone of this file, set"
            f" model.backbone.weights={where} instead"
        )
    names = {name: blob for blob, original in used.items() for name in original}
    state = {name: blobs[blob] for name, blob in names.items()}
    for name in [name for name, blob in names.items() if blob.endswith("_bn_s")]:
        norm = name.removesuffix("weight")
        state |= {
            f"{norm}running_mean": torch.zeros_like(state[name]),
            f"{norm}running_var": torch.ones_like(state[name]),
        }
    if is_retinanet(blobs):
        state = _convert_retinanet(state, where=where)
    return state, names


def _rename(blob: str, blobs: Mapping[str, Tensor]) -> list[str] | None:
    """Return the original's names for a blob: several if heads share it, none if it is not used; None: unknown."""
    name = rename_backbone(blob.removeprefix(_MASK_COPY))
    if name is not None:
        return _rename_backbone(name, is_mask_copy=blob.startswith(_MASK_COPY), blobs=blobs)
    match = _BLOB.fullmatch(blob)
    if match is None:
        return None
    layer, parameter = match[1], match[2]
    for pattern, replacement in _LAYERS:
        if found := re.fullmatch(pattern, layer):
            original = found.expand(replacement) if isinstance(replacement, str) else replacement(found)
            return [_name_parameter(original, parameter, has_norm=f"{layer}_gn_s" in blobs)]
    return None


def _name_parameter(layer: str, parameter: str, *, has_norm: bool) -> str:
    """Return the name of a parameter; a layer and its group norm form a sequence, after a ReLU in the box head."""
    stack, dot, number = layer.rpartition(".")
    if stack.endswith(".xconvs"):
        step = 3 if has_norm else 2
        index = step * int(number) + parameter.startswith("gn")
        return f"{stack}{dot}{index}.{_PARAMETERS[parameter].removeprefix('1.')}"
    return f"{layer}.{'0.' if has_norm and not parameter.startswith('gn') else ''}{_PARAMETERS[parameter]}"


def _rename_backbone(name: str, *, is_mask_copy: bool, blobs: Mapping[str, Tensor]) -> list[str] | None:
    """Return the original's names for a tensor of the ResNet, by torchvision's name.

    Without a pyramid and without linear layers, stage C5 is the head of boxes, and also of masks unless they have a
    copy of their own.
    """
    head = f"{_HEAD}{{}}.feature_extractor.head.{name}"
    if is_mask_copy:
        return [head.format("mask")] if name.startswith("layer4.") else None
    if name.startswith("layer4.") and not any(blob.startswith(("fpn_", "fc6_")) for blob in blobs):
        if "cls_score_w" not in blobs:
            return []
        has_own = any(blob.startswith((f"{_MASK_COPY}res5", f"{_MASK_COPY}fcn")) for blob in blobs)
        kinds = ["box", "mask"] if "conv5_mask_w" in blobs and not has_own else ["box"]
        return [head.format(kind) for kind in kinds]
    stem = "stem." if name.startswith(("conv1.", "bn1.")) else ""
    return [f"backbone.body.{stem}{name}"]


def _convert_retinanet(state: Mapping[str, Tensor], *, where: str) -> dict[str, Tensor]:
    """Return the tensors of a RetinaNet with the predictions in the original's conventions.

    Detectron orders the anchors of a location by scale first, the original by ratio first. The original divides box
    offsets by (10, 10, 5, 5), Detectron does not.
    """
    count = _NUM_SCALES * _NUM_RATIOS
    for layer in ("cls_logits", "bbox_pred"):
        for parameter in ("weight", "bias"):
            name = f"rpn.head.{layer}.{parameter}"
            tensor = state.get(name)
            rows = 0 if tensor is None or not tensor.dim() else len(tensor)
            if tensor is None or not rows or (rows != 4 * count if layer == "bbox_pred" else rows % count):
                found = "none" if tensor is None else list(tensor.shape)
                raise WeightsError(
                    f"{where}: expected predictions for {count} anchors per location ({_NUM_SCALES} scales of"
                    f" {_NUM_RATIOS} ratios), found {name} of shape {found}"
                )
    layers = ("rpn.head.cls_logits.", "rpn.head.bbox_pred.")
    converted = by_ratio_first(state, layers, offsets="rpn.head.bbox_pred.bias", num_sizes=_NUM_SCALES)
    for name in ("rpn.head.bbox_pred.weight", "rpn.head.bbox_pred.bias"):
        factors = converted[name].new_tensor(_OFFSET_WEIGHTS).repeat(count)
        converted[name] = converted[name] * factors.reshape(-1, *[1] * (converted[name].dim() - 1))
    return converted
