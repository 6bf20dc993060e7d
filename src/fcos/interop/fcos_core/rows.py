"""Equivalent settings of the original and of this project."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class Row(NamedTuple):
    """Keys of the original and the equivalent options of ours.

    Attributes:
        keys: keys of the original.
        options: dotted keys of our options. `theirs` is used if the first one has an effect, see `in_effect`.
        ours: function from the values of `keys` to the values of `options`, or of only the first options. None: the
            row is not used in this direction.
        theirs: function from the values of `options` to the values of `keys`, or of only the first keys. None: the
            row is not used in this direction.
        only: kind of detector or backbone that the row applies to, see `kinds_of`; empty: all.
    """

    keys: tuple[str, ...]
    options: tuple[str, ...]
    ours: Callable[..., tuple[Any, ...]] | None
    theirs: Callable[..., tuple[Any, ...]] | None = None
    only: str = ""


def same(key: str, option: str, only: str = "") -> Row:
    """Map a key to an option with the same values."""
    return Row((key,), (option,), lambda value: (value,), lambda value: (value,), only)


def written(key: str, options: tuple[str, ...], theirs: Callable[..., Any], only: str = "") -> Row:
    """Map options to a key that only the original needs."""
    return Row((key,), options, None, lambda *values: (theirs(*values),), only)


def kinds_of(detector: str, backbone: str) -> tuple[str, ...]:
    """Return the values of `Row.only` for a detector (`model.name`) with a backbone of a kind, see `Body`."""
    stages = "two_stage" if detector in ("rpn", "rcnn") else "one_stage"
    return "", detector, stages, backbone


def mask_side(side: int, upsample: bool) -> int:
    """Return the side of the masks that a mask head predicts from features of a side, after its layers."""
    return side * 2 if upsample else side
