"""Config keys of the original's FBNet and our options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...config.fbnet import ARCHITECTURES
from .rows import Row

_NORMS = {"bn": "bn", "af": "frozen_bn", "gn": "gn"}
_NORMS_BACK = {ours: theirs for theirs, ours in _NORMS.items()} | {"sync_bn": "bn"}
FBNET_NORMS = {"BN_TYPE": [*_NORMS], "RPN_BN_TYPE": ["", *_NORMS]}
"""Values of the keys of the norms."""
_HEADS = {"DET": "box_head", "MASK": "mask_head", "KPTS": "keypoint_head"}
_HEAD_KEYS = {"LAST_SCALE": "last_scale", "BLOCKS": "blocks", "STRIDE": "stride"}


def _row(
    key: str,
    option: str,
    ours: Callable[[Any], Any] = lambda value: value,
    theirs: Callable[[Any], Any] = lambda value: value,
) -> Row:
    """Map a key to an option."""
    keys, options = (f"MODEL.FBNET.{key}",), (f"model.backbone.{option}",)
    return Row(keys, options, lambda value: (ours(value),), lambda value: (theirs(value),), "fbnet")


FBNET_ROWS = [
    Row((), ("model.backbone.frozen_stages",), lambda: (0,), only="fbnet"),  # the original freezes none of its stages
    Row(
        ("MODEL.FBNET.ARCH_DEF", "MODEL.FBNET.ARCH"),
        ("model.backbone.architecture",),
        lambda definition, name: (definition or name,),
        lambda text: ("", text) if text in ARCHITECTURES else (text, "custom"),
        "fbnet",
    ),
    Row(
        ("MODEL.FBNET.BN_TYPE", "MODEL.USE_SYNCBN"),
        ("model.backbone.norm",),
        lambda norm, is_synced: ("sync_bn" if norm == "bn" and is_synced else _NORMS[norm],),
        lambda norm: (_NORMS_BACK[norm], norm == "sync_bn"),
        "fbnet",
    ),
    _row("SCALE_FACTOR", "width"),
    _row("WIDTH_DIVISOR", "width_divisor", ours=lambda divisor: max(divisor, 1)),
    _row("DW_CONV_SKIP_BN", "depthwise_norm", lambda skips: not skips, lambda has_norm: not has_norm),
    _row("DW_CONV_SKIP_RELU", "depthwise_relu", lambda skips: not skips, lambda has_relu: not has_relu),
    _row("RPN_HEAD_BLOCKS", "rpn_blocks"),
    _row("RPN_BN_TYPE", "rpn_norm", _NORMS.get, lambda norm: _NORMS_BACK.get(norm, "")),
    *(
        _row(f"{head}_HEAD_{key}", f"{section}.{option}")
        for head, section in _HEADS.items()
        for key, option in _HEAD_KEYS.items()
    ),
]
"""Equivalent settings of FBNet."""
