"""Splits that an annotation file names itself: in a CSV column, as subsets of CVAT, or as folders of file names."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable
from pathlib import Path

from ..formatting import join_some, printable
from .folders import split_of
from .source import SPLIT_NAMES, Problem, Split

_UNASSIGNED = ("default", "none", "null", "unassigned")  # CVAT's name, those of missing values, and Google's


def check_subsets(file: Path, subset: Split | None, named: Iterable[tuple[str, str]]) -> list[Problem]:
    """Report the rows or images of a file that belong to no split, and splits that are not used.

    A name that is empty, or `unassigned`, `default`, `none` or `null`, leaves out a row with a warning, and so does a
    single other word beside names of splits (`train`, `val`, `holdout`). Any other name that is not one of a split is
    an error, for example a misspelled one.

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
    other_word = _find_other_word(places)
    for name, where in places.items():
        if split_of(name) is not None:
            continue
        if name == other_word:
            message = f"{name!r:.60} is not a split; left out"
            problems.append(Problem("unknown split", str(file), join_some(where), message, "warning"))
        elif _is_empty(name):
            problems.append(Problem("no split", str(file), join_some(where), "without a split; left out", "warning"))
        else:
            expected = ", ".join(f"{split} ({', '.join(names[1:])})" for split, names in SPLIT_NAMES.items())
            message = f"unknown split {name!r:.60}; expected {expected}, or an empty value, which leaves it out"
            problems.append(Problem("unknown split", str(file), join_some(where), message))
    return problems


def _is_empty(name: str) -> bool:
    return name.casefold() in _UNASSIGNED or not re.search(r"[^\W_]", name)


def _find_other_word(names: Collection[str]) -> str | None:
    """Return the only name that is not of a split, if it is a word that resembles none, beside names of splits."""
    others = [name for name in names if split_of(name) is None and not _is_empty(name)]
    if len(others) != 1 or not any(split_of(name) for name in names) or not others[0].isalpha():
        return None
    known = [word for words in SPLIT_NAMES.values() for word in words]
    return None if difflib.get_close_matches(others[0].casefold(), known, n=1, cutoff=0.7) else others[0]
