"""Names of keypoints, the lines between them, and the pairs that a horizontal flip exchanges."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from .errors import ConfigError


class KeypointLayout(NamedTuple):
    """Meaning of the keypoints of an object. Positions are counted from 0.

    Attributes:
        names: P names; empty if unknown.
        skeleton: pairs of keypoints that a line connects.
        pairs: pairs of keypoints that a horizontal flip exchanges; None: those whose names differ only in left and
            right, see `flip_order`.
    """

    names: tuple[str, ...] = ()
    skeleton: tuple[tuple[int, int], ...] = ()
    pairs: tuple[tuple[int, int], ...] | None = None


UNNAMED = KeypointLayout()
"""Layout of unknown keypoints, or of none."""
COCO_PERSON = KeypointLayout(
    (
        *("nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder"),
        *("left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip"),
        *("left_knee", "right_knee", "left_ankle", "right_ankle"),
    ),
    (
        *((15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8)),
        *((7, 9), (8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6)),
    ),
)
"""COCO's 17 keypoints of persons."""

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
        pairs: pairs of positions to exchange instead (data.keypoint_pairs); None: by name.

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
