"""Findings about images: duplicates, crowded and very long images, and 16-bit images with few grey levels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ..config import Config, FCOSConfig
from ..data.dataset import Annotations
from ..data.images import largest_value
from ..evaluation.evaluate import detection_limit
from ..formatting import plural
from .duplicates import Duplicates, find_duplicates, fingerprint
from .findings import Case, Finding, Place
from .setting import Setting

_DARK = 127  # a 16-bit image in which a bit is unused has no larger value after the conversion to 8 bits


class Look(NamedTuple):
    """Properties of a decoded image.

    Attributes:
        fingerprint: uint64 [WORDS], see `duplicates.fingerprint`.
        brightest: largest value of the RGB image, 0..255.
    """

    fingerprint: np.ndarray
    brightest: int

    @staticmethod
    def of(image: Image.Image) -> Look:
        """Compute the properties of an RGB image."""
        return Look(fingerprint(image), int(np.max(image.getextrema())))


def image_findings(splits: Mapping[str, Annotations], looks: Mapping[Path, Look], config: Config) -> list[Finding]:
    """Find duplicate images, and images that the detector cannot process well.

    Args:
        splits: annotations by split.
        looks: properties of all images by path.
        config: config with the detector, the image sizes and the bit depth.
    """
    places = [Place(split, i) for split, annotations in splits.items() for i in range(len(annotations))]
    if not places:
        return []
    prints = np.stack([looks[splits[place.split].path(place.image)].fingerprint for place in places])
    numbers = {split: number for number, split in enumerate(splits)}
    duplicates = find_duplicates(prints, np.array([numbers[place.split] for place in places]))
    return [
        *_find_leaks(places, duplicates, first=next(iter(splits))),
        *_find_copies(places, duplicates),
        *_find_long(splits, config),
        *_find_crowded(splits, config),
        *_find_few_grey_levels(splits, looks, config.data.bit_depth),
    ]


def _find_long(splits: Mapping[str, Annotations], config: Config) -> Iterator[Finding]:
    """Find images whose shorter side is at most a cell of the first level after resizing."""
    if not isinstance(config.model, FCOSConfig):
        return
    setting, cases = Setting.of(config.model, config.data), []
    stride = setting.strides[0]
    for split, rows in splits.items():
        for i, (height, width) in enumerate(rows.sizes.tolist()):
            resized = setting.resized(height, width)
            if min(resized) <= stride:
                note = f"{width} x {height} pixels, {resized[1]} x {resized[0]} after resizing"
                cases.append((min(resized), (Place(split, i, (), note),)))
    if cases:
        yield Finding(
            "very long image",
            "warning",
            f"{plural(len(cases), 'image')} whose shorter side is at most {stride} pixels, the first stride, after"
            f" resizing to data.max_side={setting.max_side}: at most one row of locations, and no details",
            "Cut these images into shorter ones, or increase data.max_side and data.test_max_side.",
            [case for _, case in sorted(cases, key=lambda item: item[0])],
        )


def _find_crowded(splits: Mapping[str, Annotations], config: Config) -> Iterator[Finding]:
    """Find images with more objects than the detector has detections."""
    limit, option = detection_limit(config), f"model.{config.model.limit_option}"
    cases = [
        (int(count), (Place(split, i, (), plural(int(count), "object")),))
        for split, rows in splits.items()
        for i, count in enumerate(rows.boxes_per_image().tolist())
        if 0 < limit < count
    ]
    if cases:
        most = max(count for count, _ in cases)
        yield Finding(
            "more objects than detections",
            "warning",
            f"{plural(len(cases), 'image')} with more objects than {option}={limit}, up to {most}: AP cannot reach 1",
            f"Set {option}={most}. It also raises the limit of the evaluation, which is 100 detections per"
            " image and class in COCO.",
            [case for _, case in sorted(cases, key=lambda item: -item[0])],
        )


def _find_few_grey_levels(
    splits: Mapping[str, Annotations], looks: Mapping[Path, Look], bit_depth: int
) -> Iterator[Finding]:
    """Find 16-bit images if none of their values needs `bit_depth` bits."""
    paths = {Place(split, i): rows.path(i) for split, rows in splits.items() for i in range(len(rows))}
    dark = [path for path in paths.values() if looks[path].brightest <= _DARK]
    if all(largest_value(path) is None for path in dark):
        return
    values = {place: value for place, path in paths.items() if (value := largest_value(path)) is not None}
    largest = max(values.values())
    bits = max(largest.bit_length(), 8)
    if bits < bit_depth:
        levels = (largest >> (bit_depth - 8)) + 1
        yield Finding(
            "16-bit images with few grey levels",
            "warning",
            f"{plural(len(values), '16-bit image')} with values up to {largest} of {2**bit_depth - 1}: {levels} of 256"
            " grey levels remain in 8 bits",
            f"Set data.bit_depth={bits}, unless other images, also those for detection, have larger values.",
            [
                (place._replace(note=f"largest value {value}"),)
                for place, value in sorted(values.items(), key=lambda item: -item[1])
            ],
        )


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
