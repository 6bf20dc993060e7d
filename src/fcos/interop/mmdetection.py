"""Conversion of weights of mmdetection's FCOS, RetinaNet, Faster and Mask R-CNN (versions 2 and 3), with its exact
conventions.

On the same network input the detections are the same. The input itself differs slightly: mmdetection resizes with
OpenCV, which does not antialias when it downscales. A second difference needs extreme predictions: mmdetection also
limits how much smaller than its anchor or proposal a box can be, to 16/1000. Names and settings are facts about that
project; none of its code is used.

The config in the file tells the style of the backbone and the pixel normalisation, see `stored_options`. Files without
one, and anchors and thresholds of all files, are assumed to be as in its published configs: ResNets of style caffe for
FCOS and on C4, of style pytorch elsewhere, and ResNeXts of style pytorch. The bias of the tower convolutions
distinguishes the two families of configs of FCOS: the first has no bias. The improved one (center sampling, distances
in strides, centerness on the box branch, GIoU) has one.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeGuard

from torch import Tensor

from ..errors import WeightsError
from .anchor_detectors import (
    infer_rcnn_section,
    infer_retinanet_section,
    is_c4,
    shared_layers,
    with_background,
)
from .architecture import Converted, Rule, infer_model_section, map_names, stacked

_RESNET_RULES: list[Rule] = [
    (r"\.conv_offset\.", ".offset."),
    (r"^roi_head\.shared_head\.layer4\.", "box.body.0.layer4."),
]
_FCOS_RULES: list[Rule] = [
    (r"^bbox_head\.(?:conv|fcos)_cls\.", "head.logits."),
    (r"^bbox_head\.(?:conv|fcos)_reg\.", "head.ltrb."),
    (r"^bbox_head\.(?:conv|fcos)_centerness\.", "head.centerness."),
    (r"^bbox_head\.scales\.(\d+)\.scale$", r"head.scales.\1"),
]
_RETINANET_RULES: list[Rule] = [
    (r"^bbox_head\.retina_cls\.", "head.logits."),
    (r"^bbox_head\.retina_reg\.", "head.offsets."),
]
_RCNN_RULES: list[Rule] = [
    (r"^rpn_head\.rpn_conv\.(weight|bias)$", r"proposals.head.tower.0.\1"),
    (r"^rpn_head\.rpn_conv\.(\d+)\.conv\.", stacked("proposals.head.tower.", step=2)),
    (r"^rpn_head\.rpn_cls\.", "proposals.head.logits."),
    (r"^rpn_head\.rpn_reg\.", "proposals.head.offsets."),
    (r"^roi_head\.bbox_head\.shared_fcs\.(\d+)\.", stacked("box.body.linears.", step=2, layer=1)),
    (r"^roi_head\.bbox_head\.fc_cls\.", "box.logits."),
    (r"^roi_head\.bbox_head\.fc_reg\.", "box.offsets."),
    (r"^roi_head\.mask_head\.upsample\.", "heads.mask.upsample.0."),
    (r"^roi_head\.mask_head\.conv_logits\.", "heads.mask.logits."),
]
_STACKS = {
    "bbox_head.cls_convs.": "head.cls_tower.",
    "bbox_head.reg_convs.": "head.box_tower.",
    "roi_head.bbox_head.shared_convs.": "box.body.convs.",
    "roi_head.mask_head.convs.": "heads.mask.body.",
}
"""Convolutions of the heads."""
_RCNN = "roi_head.bbox_head.fc_cls.bias"
_RETINANET = "bbox_head.retina_cls.bias"
_FCOS = ("bbox_head.conv_cls.bias", "bbox_head.fcos_cls.bias")
_PIXELS = {
    "caffe": ("bgr", (102.9801, 115.9465, 122.7717), (1.0, 1.0, 1.0)),
    "improved": ("bgr", (103.53, 116.28, 123.675), (1.0, 1.0, 1.0)),
    "pytorch": ("rgb", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
}
"""Channel order, mean and standard deviation of the pixels."""
_RCNN_CONVENTIONS = {
    "level_epsilon": 2.5e-7,  # it adds 1e-6 to (size of the box) / 56
    "empty_boxes": "keep",
}
_VARIANTS = {
    "roi_head.bbox_head.0.": "Cascade R-CNN or another detector with several box heads",
    "roi_head.bbox_head.cls_convs.": "a box head with separate branches",
    "roi_head.bbox_head.cls_fcs.": "a box head with separate branches",
    "roi_head.mask_head.0.": "a detector with several mask heads",
    "roi_head.mask_iou_head.": "Mask Scoring R-CNN",
    "roi_head.grid_head.": "Grid R-CNN",
    "roi_head.point_head.": "PointRend",
    "roi_head.semantic_head.": "a semantic segmentation head",
    "semantic_head.": "Panoptic FPN",
    "bbox_head.fc_cls.": "a detector of mmdetection 1",
}
"""Detectors of mmdetection that are not supported, by a prefix of tensor names."""
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
    """Return whether a state dict has the tensor names of a detector of mmdetection."""
    names = [{f"bbox_head.{prefix}_{layer}.bias" for layer in ("cls", "centerness")} for prefix in ("conv", "fcos")]
    names += [{_RETINANET, "bbox_head.retina_reg.bias"}, {"rpn_head.rpn_cls.bias"}]
    return any(group <= state.keys() for group in names)


def class_names(content: Any, state: Mapping[str, Tensor]) -> tuple[str, ...] | None:
    """Return the class names in a file; None unless they are distinct and as many as the rows of the class head.

    Args:
        content: content of the file.
        state: its tensors by name. For the tensors of other projects the result is None.
    """
    num_classes = _count_classes(state)
    meta = _meta(content)
    dataset_meta = meta.get("dataset_meta")
    for mapping in (meta, dataset_meta if isinstance(dataset_meta, Mapping) else {}):
        for key in ("CLASSES", "classes"):
            names = mapping.get(key)
            if isinstance(names, list | tuple) and num_classes == len(names) == len(set(map(str, names))) > 0:
                return tuple(map(str, names))
    return None


def _meta(content: Any) -> Mapping[str, Any]:
    meta = content.get("meta") if isinstance(content, Mapping) else None
    return meta if isinstance(meta, Mapping) else {}


def stored_options(content: Any) -> dict[str, Any]:
    """Return our options of section `model` that follow from the config in a file, by dotted key.

    These are the order, mean and standard deviation of the pixels, and the style of the backbone. The text of the
    config is parsed, never run; options that it does not state as literals are left out.

    Args:
        content: content of the file, which has the config in `meta`, under `cfg` (version 3) or `config` (version 2).
    """
    meta = _meta(content)
    text = next((meta[key] for key in ("cfg", "config") if isinstance(meta.get(key), str)), "")
    values = _read_assignments(text, ("model", "data_preprocessor", "img_norm_cfg"))
    model = _as_dict(values.get("model"))
    options: dict[str, Any] = {}
    style = _as_dict(model.get("backbone")).get("style")
    if style in ("caffe", "pytorch"):
        options["backbone.stride_in_1x1"] = style == "caffe"
    sources = (model.get("data_preprocessor"), values.get("data_preprocessor"), values.get("img_norm_cfg"))
    pixels = next((found for source in sources if "mean" in (found := _as_dict(source))), {})
    is_rgb, mean, std = pixels.get("bgr_to_rgb", pixels.get("to_rgb")), pixels.get("mean"), pixels.get("std")
    if isinstance(is_rgb, bool) and _are_numbers(mean) and _are_numbers(std) and min(std) > 0:
        options |= {"channel_order": "rgb" if is_rgb else "bgr", "pixel_mean": tuple(mean), "pixel_std": tuple(std)}
    return options


def _as_dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _are_numbers(values: Any) -> TypeGuard[Sequence[float]]:
    return (
        isinstance(values, list | tuple) and len(values) == 3 and all(type(value) in (int, float) for value in values)
    )


def _read_assignments(text: str, names: Collection[str]) -> dict[str, Any]:
    """Return the values that a Python text assigns to some names at top level, without running it."""
    try:
        with warnings.catch_warnings():  # the compiler warns about text such as "1if"
            warnings.simplefilter("ignore")
            statements = ast.parse(text).body
        return {
            target.id: _literal(statement.value)
            for statement in statements
            if isinstance(statement, ast.Assign)
            for target in statement.targets
            if isinstance(target, ast.Name) and target.id in names
        }
    except (SyntaxError, ValueError, MemoryError, RecursionError):  # all that ast documents
        return {}


def _literal(node: ast.expr) -> Any:
    """Return the value of a literal, in which dict(key=value) counts as one; None for anything else."""
    if isinstance(node, ast.Call):
        is_dict = isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args
        return {item.arg: _literal(item.value) for item in node.keywords if item.arg} if is_dict else None
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        return {str(_literal(key)): _literal(value) for key, value in pairs if key is not None}
    if isinstance(node, ast.List | ast.Tuple):
        return [_literal(item) for item in node.elts]
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def _count_classes(state: Mapping[str, Tensor]) -> int:
    """Return the number of classes of the class head; 0 if there is none."""
    if _RCNN in state:
        return state[_RCNN].numel() - 1
    if _RETINANET in state:
        num_anchors = state["bbox_head.retina_reg.bias"].numel() // 4 if "bbox_head.retina_reg.bias" in state else 0
        return state[_RETINANET].numel() // max(num_anchors, 1)
    return next((state[name].numel() for name in _FCOS if name in state), 0)


def convert(state: Mapping[str, Tensor], *, where: str) -> Converted:
    """Return the weights under our names, their original names, and the config that reproduces mmdetection's results.

    Args:
        state: state dict with mmdetection's tensor names.
        where: source of the weights, for messages.

    Raises:
        WeightsError: the detector, its backbone or its neck is not supported, or a head is damaged.
    """
    _require_supported(state, where=where)
    if _RCNN in state:
        converted = _convert_rcnn(state, where=where)
    elif _RETINANET in state:
        converted = _convert_retinanet(state, where=where)
    else:
        converted = _convert_fcos(state, where=where)
    data: dict[str, Any] = {"short_side": [800], "max_side": 1333}
    if "mask" in converted.config["model"]:
        data["masks"] = True
    return converted._replace(config={**converted.config, "data": data})


def _require_supported(state: Mapping[str, Tensor], *, where: str) -> None:
    """Raise an error that names the detector if it is one of mmdetection that this project does not have."""
    found = next((title for prefix, title in _VARIANTS.items() if any(n.startswith(prefix) for n in state)), "")
    if not found and "rpn_head.rpn_cls.bias" in state and _RCNN not in state:
        found = "a region proposal network without the box head of Faster R-CNN"
    if not found and _RCNN in state and not any(name.startswith("neck.") for name in state):
        has_stage = any(name.startswith("roi_head.shared_head.layer4.") for name in state)
        found = "" if has_stage else "an R-CNN on a dilated C5 (DC5)"
    if not found and _RETINANET in state and state[_RETINANET].numel() == _count_classes(state):
        found = "a detector with one anchor per location, such as FSAF"
    if found:
        raise WeightsError(
            f"{where}: expected mmdetection's FCOS, RetinaNet, Faster or Mask R-CNN (version 2 or 3) with a feature"
            f" pyramid or on C4, found {found}, which is not supported"
        )


def _rename(state: Mapping[str, Tensor], rules: list[Rule]) -> dict[str, str]:
    """Return mmdetection's tensor names by our names, with `rules` for the predictions of a detector."""
    num_maps = sum(bool(re.fullmatch(r"neck\.lateral_convs\.\d\.conv\.weight", name)) for name in state)
    norms = {prefix: next((m for m in ("bn", "gn") if _has_layer(state, prefix, m)), "") for prefix in _STACKS}
    rules = [*_RESNET_RULES, *_pyramid_rules(state, num_maps), *rules]
    for prefix, norm in norms.items():
        numbered, ours = rf"^{re.escape(prefix)}(\d+)\.", _STACKS[prefix]
        step = 3 if norm else 2
        rules.append((numbered + r"conv\.", stacked(ours, step=step)))
        rules.append((numbered + r"[bg]n\.", stacked(ours, step=step, layer=1)))
    return map_names(state, rules)


def _has_layer(state: Mapping[str, Tensor], prefix: str, layer: str) -> bool:
    return any(re.match(rf"{re.escape(prefix)}\d+\.{layer}\.", name) for name in state)


def _pyramid_rules(state: Mapping[str, Tensor], num_maps: int) -> list[Rule]:
    """Return the renaming rules for a pyramid on this number of maps, possibly with a norm after each convolution."""
    has_norm = any(_has_layer(state, "neck.lateral_convs.", norm) for norm in ("bn", "gn"))
    suffix = ".0." if has_norm else "."

    def output(match: re.Match[str]) -> str:
        level = int(match[1])
        return f"fpn.output.{level}{suffix}" if level < num_maps else f"fpn.extra.{level - num_maps}."

    return [
        (r"^neck\.lateral_convs\.(\d)\.conv\.", lambda m: f"fpn.lateral.{m[1]}{suffix}"),
        (r"^neck\.lateral_convs\.(\d)\.[bg]n\.", r"fpn.lateral.\1.1."),
        (r"^neck\.fpn_convs\.(\d)\.[bg]n\.", r"fpn.output.\1.1."),
        (r"^neck\.fpn_convs\.(\d)\.conv\.", output),
    ]


def _backbone_and_pixels(section: dict[str, Any], *, style: str) -> dict[str, Any]:
    """Set the options of the backbone that its style determines, and return those of the pixels.

    Args:
        section: section `model`.
        style: row of `_PIXELS` for a ResNet; ResNeXts always have the style pytorch.
    """
    style = "pytorch" if section["backbone"]["name"].startswith("resnext") else style
    # mmdetection freezes batch norm.
    norm = "frozen_bn" if section["backbone"]["norm"] == "bn" else section["backbone"]["norm"]
    section["backbone"] |= {"stride_in_1x1": style != "pytorch", "norm": norm}
    return dict(zip(("channel_order", "pixel_mean", "pixel_std"), _PIXELS[style], strict=True))


def _convert_retinanet(state: Mapping[str, Tensor], *, where: str) -> Converted:
    names = _rename(state, _RETINANET_RULES)
    weights = {name: state[old] for name, old in names.items()}
    section = infer_retinanet_section(weights, where=where)
    section["fpn"]["extra_level_relu"] = False
    section |= _backbone_and_pixels(section, style="pytorch")
    return Converted(weights, names, {"model": section})


def _convert_rcnn(state: Mapping[str, Tensor], *, where: str) -> Converted:
    names = _rename(state, _RCNN_RULES)
    names |= shared_layers(names)
    weights = with_background({name: state[old] for name, old in names.items()}, where=where)
    section = {**infer_rcnn_section(weights, where=where), **_RCNN_CONVENTIONS}
    section |= _backbone_and_pixels(section, style="improved" if is_c4(weights) else "pytorch")
    return Converted(weights, names, {"model": section})


def _convert_fcos(state: Mapping[str, Tensor], *, where: str) -> Converted:
    names = _rename(state, _FCOS_RULES)
    weights = {name: state[old] for name, old in names.items()}
    scales = {name: tensor for name, tensor in weights.items() if name.startswith("head.scales.")}
    weights |= {name: tensor.reshape(1) for name, tensor in scales.items() if tensor.numel() == 1}  # 0-dim in the file
    section = infer_model_section(weights, where=where)
    is_improved = section["head"]["conv_bias"]
    if is_improved:
        section["head"] |= {"centerness_on": "box", "regression": "relu_stride"}
    section |= _IMPROVED if is_improved else {"nms_threshold": 0.5}
    section |= _backbone_and_pixels(section, style="improved" if is_improved else "caffe")
    section |= {"score": "product", "top_k_on": "class", "detect_in_padding": True}
    return Converted(weights, names, {"model": section})
