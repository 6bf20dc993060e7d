"""Conversion of AdelaiDet's FCOS weights, including real-time models and those that predict IoU instead of centerness.

On the same network input the detections are the same, with one exception: AdelaiDet also keeps detections whose score
equals that of the 100th. Resized images may differ by one pixel, because AdelaiDet rounds like `detectron2`. IoU models
are used like the others; only the training target of the quality branch differs. Their files do not show this target:
to continue training from such a file, set `model.quality=iou`. Names and settings are facts about that project; none of
its code is used.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from .architecture import Converted, Rule, infer_model_section, map_names
from .detectron2 import BACKBONE_RULES, CONVENTIONS, HEAD_CONVENTIONS

_HEAD_RULES: list[Rule] = [
    (r"^proposal_generator\.fcos_head\.", "head."),
    (r"^head\.share_tower\.", "head.shared_tower."),
    (r"^head\.bbox_tower\.", "head.box_tower."),
    (r"^head\.cls_logits\.", "head.logits."),
    (r"^head\.bbox_pred\.", "head.ltrb."),
    (r"^head\.ctrness\.", "head.centerness."),
    (r"^head\.scales\.(\d+)\.scale$", r"head.scales.\1"),
]
_UNUSED_PREFIXES = ("backbone.level3.project.", "backbone.level4.project.")
"""Prefixes of tensors of DLA-34 that have no effect on its output."""
_NUM_REAL_TIME_LEVELS = 3


def recognizes(state: Mapping[str, Tensor]) -> bool:
    """Return whether a state dict has the tensor names of AdelaiDet's FCOS."""
    head = "proposal_generator.fcos_head."
    return {f"{head}cls_logits.bias", f"{head}ctrness.bias"} <= state.keys()


def convert(state: Mapping[str, Tensor], *, where: str) -> Converted:
    """Return the weights under our names, their original names, and the config that reproduces AdelaiDet's results.

    Args:
        state: state dict with AdelaiDet's tensor names.
        where: source of the weights, for messages.

    Raises:
        WeightsError: the backbone or neck is not supported.
    """
    names = map_names(state, [*BACKBONE_RULES, *_HEAD_RULES])
    weights = {name: state[old] for name, old in names.items()}
    weights = {name: tensor for name, tensor in weights.items() if not name.startswith(_UNUSED_PREFIXES)}
    section = {**infer_model_section(weights, where=where), **CONVENTIONS}
    name = section["backbone"]["name"]
    if name.startswith("res"):
        section["backbone"]["stride_in_1x1"] = not name.startswith("resnext")
    section["head"] |= HEAD_CONVENTIONS
    if name == "resnext101_32x8d":
        section["pixel_std"] = (57.375, 57.12, 58.395)
    is_real_time = len(section["strides"]) == _NUM_REAL_TIME_LEVELS
    image_sizes = {"short_side": [512], "max_side": 736} if is_real_time else {"short_side": [800], "max_side": 1333}
    return Converted(weights, names, {"model": section, "data": image_sizes})
