"""Names, numbers and flags of annotation files. Tools write numbers and flags as numbers, booleans or text."""

from __future__ import annotations

import math

CROWD_FLAGS = ("iscrowd", "is_crowd", "ignore", "difficult", "isgroupof")
"""Flags of ignore regions, with the names that tools use for them, in lower case."""
_FLAGS = {
    **dict.fromkeys(("1", "1.0", "true"), True),
    **dict.fromkeys(("", "0", "0.0", "false", "unspecified"), False),
}


def encodable(name: str) -> str:
    """Escape lone surrogates, which JSON (\\udce9) and file names may hold, but which cannot be encoded."""
    return name.encode("utf-8", "backslashreplace").decode()


def parse_number(value: object) -> float:
    """Read a number, which may be given as text; integers too large for a float become infinite.

    Raises:
        ValueError: the value is not a number. Booleans are not numbers.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("expected a number")
    try:
        return float(value)
    except OverflowError:
        return math.inf


def parse_integer(value: object) -> int:
    """Read an integer, which may be given as text ("000012") or as a whole decimal number (12.0).

    Raises:
        ValueError: the value is not an integer. Booleans are not integers.
    """
    if type(value) is int:
        return value
    if isinstance(value, str) and value.strip().isdecimal():
        return int(value)  # exact, unlike a float
    number = parse_number(value)
    if not number.is_integer():
        raise ValueError("expected an integer")
    return int(number)


def parse_flag(value: object) -> bool:
    """Read a flag (0, 1, true or false); None and empty text are False.

    Raises:
        ValueError: the value is not a flag.
    """
    if value is None or value in (0, 1):  # also booleans and decimal numbers
        return bool(value)
    flag = _FLAGS.get(value.strip().lower()) if isinstance(value, str) else None
    if flag is None:
        raise ValueError("expected a flag")
    return flag


def parse_size(height: object, width: object) -> tuple[int, int]:
    """Return (height, width) as annotated, or zeros if absent or invalid; the image file then gives the size."""
    try:
        size = parse_integer(height), parse_integer(width)
    except ValueError:
        return 0, 0
    return size if all(0 < side < 2**31 for side in size) else (0, 0)
