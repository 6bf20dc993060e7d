"""Conversion of weights of detectron2's own FCOS (`fcos_R_50_FPN_1x`), with its exact conventions.

On the same network input the detections are the same. Resized images may differ by one pixel, because detectron2 rounds
the size where this project, like the original FCOS, truncates. Names and settings are facts about that project; none of
its code is used.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from .architecture import Converted, Rule, infer_model_section, map_names, shift_number

BACKBONE_RULES: list[Rule] = [
    (r"^backbone\.bottom_up\.(stem\.)?", "backbone."),
    (r"^backbone\.res(\d)", shift_number("backbone.layer", -1)),
    (r"^backbone\.fpn_lateral(\d)", shift_number("fpn.lateral.", -3)),
    (r"^backbone\.fpn_output(\d)", shift_number("fpn.output.", -3)),
    (r"^backbone\.top_block\.p(\d)", shift_number("fpn.extra.", -6)),
    (r"^(backbone\..*)shortcut\.norm\.", r"\1downsample.1."),
    (r"^(backbone\..*)shortcut\.", r"\1downsample.0."),
    (r"^(backbone\..*)conv(\d)\.norm\.", r"\1bn\2."),
    (r"^(backbone\..*)conv2_offset\.", r"\1conv2.offset."),
]
"""Renaming rules for a ResNet and its pyramid in detectron2 and in projects built on it."""
_HEAD_RULES: list[Rule] = [
    (r"^head\.cls_subnet\.", "head.cls_tower."),
    (r"^head\.bbox_subnet\.", "head.box_tower."),
    (r"^head\.cls_score\.", "head.logits."),
    (r"^head\.bbox_pred\.", "head.ltrb."),
    (r"^head\.ctrness\.", "head.centerness."),
]
CONVENTIONS = {
    "center_sampling_radius": 1.5,
    "box_loss": "giou",
    "detect_in_padding": True,
    "clip_after_nms": True,
    "channel_order": "bgr",
    "pixel_mean": (103.53, 116.28, 123.675),
    "pixel_std": (1.0, 1.0, 1.0),
}
"""Options of `model` that weights do not show, for detectron2 and projects built on it."""
HEAD_CONVENTIONS = {"centerness_on": "box", "regression": "relu_stride"}


def recognizes(state: Mapping[str, Tensor]) -> bool:
    """Return whether a state dict has the tensor names of detectron2's FCOS."""
    return {"head.cls_score.bias", "head.ctrness.bias"} <= state.keys()


def convert(state: Mapping[str, Tensor], *, where: str) -> Converted:
    """Return the weights under our names, their original names, and the config that reproduces detectron2's results.

    Args:
        state: state dict with detectron2's tensor names.
        where: source of the weights, for messages.

    Raises:
        WeightsError: the backbone or neck is not supported.
    """
    names = map_names(state, [*BACKBONE_RULES, *_HEAD_RULES])
    weights = {name: state[old] for name, old in names.items()}
    section = infer_model_section(weights, where=where)
    section["backbone"]["stride_in_1x1"] = True
    section["head"] |= HEAD_CONVENTIONS
    section |= {**CONVENTIONS, "score_threshold": 0.2, "threshold_on": "score"}
    return Converted(weights, names, {"model": section, "data": {"short_side": [800], "max_side": 1333}})
