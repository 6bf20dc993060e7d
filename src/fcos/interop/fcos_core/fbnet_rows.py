"""Config keys of the original's FBNet and our options."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ...config.fbnet import ARCHITECTURES, find_architecture
from .rows import Row, mask_side, written

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


def _mask_resolution(resolution: int, upsample: bool, layers: str, *options: Any) -> int:
    """Return the side of the masks of a head on pooled features.

    Args:
        resolution: side of the pooled features.
        upsample: whether a transposed convolution follows the layers.
        layers: option `model.mask.layers`.
        *options: architecture, then numbers of the blocks and stride of the first one, for the box and the mask head.
    """
    side = resolution
    if layers != "own":
        architecture, *selections = options
        kind, (numbers, stride) = ("box", selections[:2]) if layers == "box" else ("mask", selections[2:])
        blocks = find_architecture(architecture).head_blocks(kind)
        strides = [block.stride for block in blocks if not numbers or block.number in numbers]
        for step in [stride or strides[0], *strides[1:]]:
            side = side * -step if step < 0 else math.ceil(side / step)
    return mask_side(side, upsample)


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
    written(
        "MODEL.ROI_MASK_HEAD.RESOLUTION",
        (
            *("model.mask.resolution", "model.mask.upsample", "model.mask.layers", "model.backbone.architecture"),
            *(
                f"model.backbone.{head}.{option}"
                for head in ("box_head", "mask_head")
                for option in ("blocks", "stride")
            ),
        ),
        _mask_resolution,
        "fbnet",
    ),
]
"""Equivalent settings of FBNet."""
