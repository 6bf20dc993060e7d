"""Keypoints that a horizontal flip exchanges."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..errors import ConfigError

_SIDES = {"left": "right", "right": "left", "l": "r", "r": "l"}
_SIDE = re.compile(r"left|right|(?<![a-z])[lr](?![a-z])")


def unpaired_names(names: Sequence[str]) -> list[str]:
    """Return the names that contain a side, but are exchanged with no other keypoint, for example because of a typo."""
    return [
        name for i, (name, j) in enumerate(zip(names, flip_order(names), strict=True)) if i == j and _has_side(name)
    ]


def _has_side(name: str) -> bool:
    return _SIDE.search(name.lower()) is not None


def flip_order(names: Sequence[str], pairs: Sequence[tuple[int, int]] | None = None) -> tuple[int, ...]:
    """Return the order of the keypoints in a flipped image: position i holds the keypoint order[i].

    Args:
        names: names of the keypoints. Names that differ only in left and right (`left_eye`, `Right-Eye`; also a
            separate letter, as in `l_eye` and `eye.R`) are exchanged.
        pairs: pairs of positions to exchange instead; None: by name.

    Raises:
        ConfigError: a pair names a keypoint that does not exist, or a keypoint is in two pairs.
    """
    order = list(range(len(names)))
    if pairs is None:
        lower = [name.lower() for name in names]
        position_of = {name: i for i, name in enumerate(lower) if lower.count(name) == 1}
        for name, i in position_of.items():
            order[i] = position_of.get(_SIDE.sub(lambda side: _SIDES[side[0]], name), i)
        return tuple(order)
    members = [i for pair in pairs for i in pair]
    if len(set(members)) != len(members) or max(members, default=0) >= len(names):
        raise ConfigError(
            f"data.keypoint_pairs: expected pairs of different keypoints from 0 to {len(names) - 1}"
            f" ({', '.join(names):.200}), found {[list(pair) for pair in pairs]}"
        )
    for a, b in pairs:
        order[a], order[b] = b, a
    return tuple(order)
