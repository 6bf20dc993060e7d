"""Text for people: counted nouns, the first few of many, figures, names that may hold any character."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

DASH = "\N{EN DASH}"
"""Stands on a page where a figure is not defined."""
HYPHEN = "-"
"""Stands there on a terminal, which may not be able to write the dash, and for scripts."""
SHOWN = 5
"""How many of many are named."""
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def plural(count: int, noun: str) -> str:
    """`1 box`, `2 boxes`, `3 images`."""
    return f"{count} {noun}{'' if count == 1 else 'es' if noun.endswith(('s', 'x')) else 's'}"


def some(texts: Sequence[str], separator: str = ", ") -> str:
    """The first few: `a, b, c, d, e and 4 more`."""
    more = f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
    return separator.join(texts[:SHOWN]) + more


def figure(value: float | None, undefined: str = DASH) -> str:
    """With three decimals; a dash, or what is given, where it is not defined (None, NaN)."""
    return undefined if value is None or math.isnan(value) else f"{value:.3f}"


def percent(part: float, whole: float = 1.0, undefined: str = DASH) -> str:
    """A share in per cent; a dash, or what is given, where it is not defined (NaN, a part of nothing)."""
    return f"{part / whole:.1%}" if whole and not math.isnan(part) else undefined


def printable(text: str) -> str:
    """Escape what would break a line, colour a terminal, reverse the text after it, or cannot be written as UTF-8."""
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)
