"""AdelaiDet's FCOS: its weights into our detector, also the real-time models and those with IoU for centerness.

On the same network input the detections are the same, except that AdelaiDet keeps all that score the same as the last
of 100; a resized side may differ by a pixel, see `detectron2`. The IoU models detect like the others: only what the
branch has learned differs. Their files do not show it: whoever goes on training from one gives `model.quality=iou`.
Names and settings are facts about that project; none of its code is used.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from .architecture import Converted, Rule, model_section, new_names
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
_UNUSED = ("backbone.level3.project.", "backbone.level4.project.")
"""Tensors of DLA-34 that influence nothing."""
_REAL_TIME_LEVELS = 3


def recognizes(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has the names of AdelaiDet's FCOS."""
    head = "proposal_generator.fcos_head."
    return {f"{head}cls_logits.bias", f"{head}ctrness.bias"} <= state.keys()


def convert(state: Mapping[str, Tensor], *, where: str) -> Converted:
    """The weights in our names, with those they had, and the config that computes what AdelaiDet does.

    Args:
        state: tensors in the project's names.
        where: for messages.

    Raises:
        WeightsError: a backbone or neck that is not known here.
    """
    names = new_names(state, [*BACKBONE_RULES, *_HEAD_RULES])
    weights = {name: state[old] for name, old in names.items()}
    weights = {name: tensor for name, tensor in weights.items() if not name.startswith(_UNUSED)}
    section = {**model_section(weights, where=where), **CONVENTIONS}
    name = section["backbone"]["name"]
    if name.startswith("res"):
        section["backbone"]["stride_in_1x1"] = not name.startswith("resnext")
    section["head"] |= HEAD_CONVENTIONS
    if name == "resnext101_32x8d":
        section["pixel_std"] = (57.375, 57.12, 58.395)
    real_time = len(section["strides"]) == _REAL_TIME_LEVELS
    sides = {"short_side": [512], "max_side": 736} if real_time else {"short_side": [800], "max_side": 1333}
    return Converted(weights, names, {"model": section, "data": sides})
