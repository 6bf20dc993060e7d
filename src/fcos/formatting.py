"""Formatting of text for users: plurals, shortened lists, metrics, and names with arbitrary characters."""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Sequence
from typing import Any

DASH = "\N{EN DASH}"
"""Replacement for an undefined number on an HTML page."""
HYPHEN = "-"
"""Replacement for an undefined number on a terminal, which may lack the en dash, and in output for scripts."""
SHOWN = 5
"""Maximum number of items in a shortened list."""
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that break a line, control a terminal, change the text direction or are invalid in UTF-8."""


class _Repr(reprlib.Repr):
    """Short `repr` of values of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxlist = self.maxtuple = 8
        self.maxstring = self.maxother = 80

    def repr_int(self, x: int, level: int) -> str:
        """Return the digits, or only their number for integers that Python refuses to format."""
        return super().repr_int(x, level) if x.bit_length() < 10_000 else f"an integer of {x.bit_length()} bits"


_REPR = _Repr()


def quote(value: Any) -> str:
    """Return the `repr` of a value for messages, shortened to at most 200 characters."""
    text = _REPR.repr(value)
    return text if len(text) <= 200 else f"{text[:197]}..."


def plural(count: int, noun: str) -> str:
    """Format a count with its noun: `1 box`, `2 boxes`, `3 images`."""
    return f"{count} {noun}{'' if count == 1 else 'es' if noun.endswith(('s', 'x')) else 's'}"


def join_some(texts: Sequence[str], separator: str = ", ") -> str:
    """Join the first `SHOWN` texts and count the others: `a, b, c, d, e and 4 more`."""
    more = f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
    return separator.join(texts[:SHOWN]) + more


def format_metric(value: float | None, undefined: str = DASH) -> str:
    """Format a number with three decimals, or return `undefined` if it is None or NaN."""
    return undefined if value is None or math.isnan(value) else f"{value:.3f}"


def percent(part: float, whole: float = 1.0, undefined: str = DASH) -> str:
    """Format `part / whole` in per cent, or return `undefined` if `part` is NaN or `whole` is 0."""
    return f"{part / whole:.1%}" if whole and not math.isnan(part) else undefined


def printable(text: str) -> str:
    """Escape `UNPRINTABLE` characters."""
    return UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def printable_lines(text: str) -> str:
    """Escape the characters that `printable` escapes, except newlines."""
    return "\n".join(map(printable, text.split("\n")))
