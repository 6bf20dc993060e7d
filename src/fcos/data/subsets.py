"""Splits that an annotation file names itself: in a CSV column, as subsets of CVAT, or as folders of file names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from ..formatting import join_some, printable
from .folders import split_of
from .source import SPLIT_NAMES, Problem, Split

_UNASSIGNED = ("default", "none", "null", "unassigned")  # CVAT's name, those of missing values, and Google's


def check_subsets(file: Path, subset: Split | None, named: Iterable[tuple[str, str]]) -> list[Problem]:
    """Report the rows or images of a file that belong to no split, and splits that are not used.

    A name that is empty, or `unassigned`, `default`, `none` or `null`, leaves out a row with a warning. Any other name
    that is not one of a split is an error.

    Args:
        file: annotation file.
        subset: split that is read; None: the whole file.
        named: place in the file ("line 3") and name of the split, of all rows or images.
    """
    places: dict[str, list[str]] = {}
    for place, name in named:
        places.setdefault(name.strip(), []).append(place)
    if subset is None:
        if len({split_of(name) or name for name in places}) < 2:
            return []
        names = join_some([repr(printable(name)) for name in places])
        message = f"the splits that the file names ({names}) are not used: all its images belong to one split"
        return [Problem("splits not used", str(file), "", message, "warning")]
    problems = []
    for name, where in places.items():
        if split_of(name) is not None:
            continue
        if name.casefold() in _UNASSIGNED or not re.search(r"[^\W_]", name):
            problems.append(Problem("no split", str(file), join_some(where), "without a split; left out", "warning"))
        else:
            expected = ", ".join(f"{split} ({', '.join(names[1:])})" for split, names in SPLIT_NAMES.items())
            message = f"unknown split {name!r:.60}; expected {expected}, or an empty value, which leaves it out"
            problems.append(Problem("unknown split", str(file), join_some(where), message))
    return problems
