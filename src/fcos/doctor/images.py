"""Findings about images: duplicates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from ..data.dataset import Annotations
from ..formatting import plural
from .duplicates import Duplicates, find_duplicates
from .findings import Case, Finding, Place


def image_findings(splits: Mapping[str, Annotations], fingerprints: Mapping[Path, np.ndarray]) -> list[Finding]:
    """Find duplicate images.

    Args:
        splits: annotations by split.
        fingerprints: fingerprints by path of the image, see `duplicates.fingerprint`.
    """
    places = [Place(split, i) for split, annotations in splits.items() for i in range(len(annotations))]
    if not places:
        return []
    prints = np.stack([fingerprints[splits[place.split].path(place.image)] for place in places])
    numbers = {split: number for number, split in enumerate(splits)}
    duplicates = find_duplicates(prints, np.array([numbers[place.split] for place in places]))
    return [*_find_leaks(places, duplicates, first=next(iter(splits))), *_find_copies(places, duplicates)]


def _find_leaks(places: list[Place], duplicates: Duplicates, *, first: str) -> Iterator[Finding]:
    """Find images that are in several splits; `first` is the first split."""
    exact = [tuple(places[i] for i in group) for group in duplicates.exact]
    near = _pairs(places, duplicates, in_one_split=False)
    cases = [_move_firsts_to_front(case) for case in (*exact, *near) if len(_group_by_split(case)) > 1]
    if cases:
        count = len({(place.split, place.image) for case in cases for place in case if place.split != first})
        yield Finding(
            "image in two splits",
            "warning",
            f"{plural(count, 'image')} with a duplicate in another split (identical, nearly identical, or mirrored)",
            f"Keep each image in one split only, and all frames of a video in the same split. Images of val and test"
            f" that are also in {first} make the metrics too high.",
            cases,
        )


def _find_copies(places: list[Place], duplicates: Duplicates) -> Iterator[Finding]:
    """Find duplicates within a split."""
    groups = [group for case in duplicates.exact for group in _group_by_split(tuple(places[i] for i in case))]
    exact = sorted((group for group in groups if len(group) > 1), key=len, reverse=True)
    if exact:
        count = sum(map(len, exact)) - len(exact)
        yield Finding(
            "duplicate image",
            "note",
            f"{plural(count, 'image')} with the same pixels as another image of the same split",
            "Keep one image of each group, unless it is repeated on purpose, to give it more weight. If the boxes of"
            " the copies differ, at least one annotation is wrong.",
            exact,
        )
    near = _pairs(places, duplicates, in_one_split=True)
    if near:
        yield Finding(
            "near-duplicate image",
            "note",
            f"{plural(len(near), 'image')} nearly identical to another image of the same split, possibly mirrored",
            "If one image is a resized, recompressed or mirrored copy of the other, keep one. Frames of a video and"
            " photographs of the same scene need no change: their objects and boxes may differ. They add less than"
            " images of new scenes.",
            near,
        )


def _pairs(places: list[Place], duplicates: Duplicates, *, in_one_split: bool) -> list[Case]:
    """Return the pairs of nearly identical images in one split or in two splits, the most similar pair first."""
    return [
        (places[pair.earlier], places[pair.later]._replace(note=f"correlation {pair.correlation:.2f}"))
        for pair in duplicates.near
        if (places[pair.earlier].split == places[pair.later].split) == in_one_split
    ]


def _group_by_split(case: Case) -> list[Case]:
    """Group the places of a case by split."""
    return [tuple(place for place in case if place.split == split) for split in dict.fromkeys(p.split for p in case)]


def _move_firsts_to_front(case: Case) -> Case:
    """Move the first place of every split to the front, so that a long case shows every split where it is cut."""
    firsts = {group[0] for group in _group_by_split(case)}
    return tuple(sorted(case, key=lambda place: place not in firsts))
