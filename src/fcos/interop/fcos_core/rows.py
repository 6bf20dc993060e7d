"""Equivalent settings of the original and of this project."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class Row(NamedTuple):
    """Keys of the original and the equivalent options of ours.

    Attributes:
        keys: keys of the original.
        options: dotted keys of our options.
        ours: function from the values of `keys` to the values of `options`.
        theirs: function from the values of `options` to the values of `keys`, or of only the first keys. None: the
            row is not used in this direction.
        only: `fcos` or `retinanet`, or a kind of backbone (see `Body`), if the row applies to this detector or backbone
            only; otherwise empty.
    """

    keys: tuple[str, ...]
    options: tuple[str, ...]
    ours: Callable[..., tuple[Any, ...]]
    theirs: Callable[..., tuple[Any, ...]] | None = None
    only: str = ""
