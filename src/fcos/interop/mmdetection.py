"""Conversion of mmdetection's FCOS weights, with its exact conventions.

On the same network input the detections are the same. The input itself differs slightly: mmdetection resizes with
OpenCV, which does not antialias when it downscales. Names and settings are facts about that project; none of its code
is used.

Backbones are assumed to be as in its published configs: ResNets of style caffe, ResNeXts of style pytorch. The bias of
the tower convolutions distinguishes its two families of configs: the first has no bias. The improved one (center
sampling, distances in strides, centerness on the box branch, GIoU) has one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .architecture import Converted, Rule, infer_model_section, map_names, shift_number

_TOWERS = {"cls_convs": "cls_tower", "reg_convs": "box_tower"}
_RULES: list[Rule] = [
    (r"\.conv_offset\.", ".offset."),
    (r"^neck\.lateral_convs\.(\d)\.conv", shift_number("fpn.lateral.", 0)),
    (r"^neck\.fpn_convs\.([012])\.conv", shift_number("fpn.output.", 0)),
    (r"^neck\.fpn_convs\.(\d)\.conv", shift_number("fpn.extra.", -3)),
    (r"^bbox_head\.(cls_convs|reg_convs)\.(\d)\.conv", lambda m: f"head.{_TOWERS[m[1]]}.{3 * int(m[2])}"),
    (r"^bbox_head\.(cls_convs|reg_convs)\.(\d)\.gn", lambda m: f"head.{_TOWERS[m[1]]}.{3 * int(m[2]) + 1}"),
    (r"^bbox_head\.(?:conv|fcos)_cls\.", "head.logits."),
    (r"^bbox_head\.(?:conv|fcos)_reg\.", "head.ltrb."),
    (r"^bbox_head\.(?:conv|fcos)_centerness\.", "head.centerness."),
    (r"^bbox_head\.scales\.(\d+)\.scale$", r"head.scales.\1"),
]
_CLASS_BIASES = ("bbox_head.conv_cls.bias", "bbox_head.fcos_cls.bias")
_PIXELS = {
    "caffe": ("bgr", (102.9801, 115.9465, 122.7717), (1.0, 1.0, 1.0)),
    "improved": ("bgr", (103.53, 116.28, 123.675), (1.0, 1.0, 1.0)),
    "pytorch": ("rgb", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
}
"""Channel order, mean and standard deviation of the pixels."""
_IMPROVED = {"center_sampling_radius": 1.5, "box_loss": "giou", "nms_threshold": 0.6}


class _Discarded:
    """Placeholder for an unpickled object; accepts and discards all its data."""

    def __init__(self, *_: object):
        pass

    def __setstate__(self, _: object) -> None:
        pass


_TRAINING_LOG_GLOBALS = (
    "mmengine.logging.history_buffer.HistoryBuffer",
    *(f"{module}.getattr" for module in ("builtins", "__builtin__")),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    "numpy.ndarray",
    "numpy.dtype",
)
DISCARDED_GLOBALS = [(_Discarded, name) for name in _TRAINING_LOG_GLOBALS]
"""Entries for `torch.serialization.safe_globals` that discard the training log, which mmengine saves with weights."""


def recognizes(state: Mapping[str, Tensor]) -> bool:
    """Return whether a state dict has the tensor names of mmdetection's FCOS."""
    names = [{f"bbox_head.{prefix}_{layer}.bias" for layer in ("cls", "centerness")} for prefix in ("conv", "fcos")]
    return any(pair <= state.keys() for pair in names)


def class_names(content: Any, state: Mapping[str, Tensor]) -> tuple[str, ...] | None:
    """Return the class names in a file; None unless they are distinct and as many as the rows of the class head.

    Args:
        content: content of the file.
        state: its tensors by name. For the tensors of other projects the result is None.
    """
    rows = [tensor.shape for name, tensor in state.items() if name in _CLASS_BIASES]
    meta = content.get("meta") if isinstance(content, Mapping) else None
    meta = meta if isinstance(meta, Mapping) else {}
    dataset_meta = meta.get("dataset_meta")
    for mapping in (meta, dataset_meta if isinstance(dataset_meta, Mapping) else {}):
        for key in ("CLASSES", "classes"):
            names = mapping.get(key)
            if isinstance(names, list | tuple) and rows == [(len(set(map(str, names))),)] == [(len(names),)]:
                return tuple(map(str, names))
    return None


def convert(state: Mapping[str, Tensor], *, where: str) -> Converted:
    """Return the weights under our names, their original names, and the config that reproduces mmdetection's results.

    Args:
        state: state dict with mmdetection's tensor names.
        where: source of the weights, for messages.

    Raises:
        WeightsError: the backbone or neck is not supported.
    """
    names = map_names(state, _RULES)
    weights = {name: state[old] for name, old in names.items()}
    scales = {name: tensor for name, tensor in weights.items() if name.startswith("head.scales.")}
    weights |= {name: tensor.reshape(1) for name, tensor in scales.items() if tensor.numel() == 1}  # 0-dim in the file
    section = infer_model_section(weights, where=where)
    is_improved = section["head"]["conv_bias"]
    is_pytorch_style = section["backbone"]["name"].startswith("resnext")
    # mmdetection freezes batch norm.
    section["backbone"] |= {"stride_in_1x1": not is_pytorch_style, "norm": "frozen_bn"}
    if is_improved:
        section["head"] |= {"centerness_on": "box", "regression": "relu_stride"}
    section |= _IMPROVED if is_improved else {"nms_threshold": 0.5}
    pixels = _PIXELS["pytorch" if is_pytorch_style else "improved" if is_improved else "caffe"]
    section |= zip(("channel_order", "pixel_mean", "pixel_std"), pixels, strict=True)
    section |= {"score": "product", "top_k_on": "class", "detect_in_padding": True}
    return Converted(weights, names, {"model": section, "data": {"short_side": [800], "max_side": 1333}})
