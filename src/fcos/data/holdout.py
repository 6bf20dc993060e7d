"""Choice of held-out images for validation: the same in every run, stratified by class, sequences kept together.

Groups of images that must not be separated are taken one by one, those with the rarest classes first, and in the order
of a hash of their names. Each one is held out if this brings the shares of all classes and of the images held out so
far closer to the fraction.

Source: the order follows K. Sechidis et al., "On the stratification of multi-label data", ECML PKDD 2011 (iterative
stratification).

Shape letters: I images, B boxes, K classes.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np

from ..errors import DataError

_MAX_WHOLE = 2.0  # a sequence stays whole up to this multiple of the images to hold out
_TOLERANCE = 0.1  # deviation from the number of images to hold out for which smaller blocks are tried
_ROBOFLOW = re.compile(r"(_(jpe?g|png|bmp|webp|tiff?))?\.rf\.[0-9a-zA-Z]+$")  # each copy of an image has such a suffix


def hold_out(
    names: Sequence[str],
    image_of: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    *,
    fraction: float,
    linked: Iterable[Sequence[int]] = (),
) -> np.ndarray:
    """Choose images to hold out.

    Images whose names differ only in their last number (frame_001.jpg, frame_002.jpg) are a sequence, and stay together
    unless the sequence is more than twice as large as the images to hold out. Longer sequences are cut into blocks of
    consecutive numbers. Augmented copies of an image that Roboflow wrote always stay together.

    Args:
        names: file names of I images.
        image_of: int64 [B], position of each box's image.
        labels: int64 [B], positions in `class_names`.
        class_names: K class names.
        fraction: fraction of the images and of the boxes of each class to hold out, in 0 to 1.
        linked: positions of images that must not be separated, for example duplicates.

    Returns:
        Mask of the images to hold out, bool [I].

    Raises:
        DataError: there are fewer than two images that may be separated.
    """
    target = max(1, round(fraction * len(names)))
    rank = np.argsort(np.argsort(np.array(class_names, dtype=object), kind="stable")) if len(class_names) else labels
    counts = np.zeros((len(names), len(class_names) + 1))  # boxes per class, and a 1 for the image itself
    np.add.at(counts, (image_of, rank[labels] if len(labels) else labels), 1)
    counts[:, -1] = 1
    linked = [list(positions) for positions in linked]
    block, mask = math.ceil(target / 4), np.zeros(len(names), dtype=bool)
    while block:
        groups = _join(_sequences(names, max_whole=_MAX_WHOLE * target, block=block), linked)
        if len(groups) > 1:
            mask = _stratify(groups, names, counts, fraction)
            if abs(int(mask.sum()) - target) <= _TOLERANCE * target and _represents_classes(mask, counts, fraction):
                return mask
        block //= 2
    if not mask.any():
        raise DataError(f"cannot hold out {fraction:g} of the images: the {len(names)} images may not be separated")
    return mask


class _Name(NamedTuple):
    """File name without its last number, and that number."""

    series: str
    number: int


def _split_name(name: str) -> _Name:
    path = PurePosixPath(name.replace("\\", "/"))
    stem = _ROBOFLOW.sub("", path.stem)
    match = re.fullmatch(r"(.*?)(\d+)(\D*)", stem, re.DOTALL)
    if match is None:
        return _Name(f"{path.parent}/{stem}", 0)
    return _Name(f"{path.parent}/{match[1]}#{match[3]}", int(match[2][-18:]))


def _sequences(names: Sequence[str], *, max_whole: float, block: int) -> list[list[int]]:
    """Group images into sequences; longer ones than `max_whole` are cut into blocks of at least `block` images."""
    series: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for i, name in enumerate(names):
        key = _split_name(name)
        series[key.series][key.number].append(i)
    groups = []
    for numbers in series.values():
        frames = [numbers[number] for number in sorted(numbers)]
        size = sum(map(len, frames))
        if size <= max_whole and len(series) > 1:
            groups.append([i for frame in frames for i in frame])
            continue
        groups.append([])
        for frame in frames:
            if len(groups[-1]) >= block:
                groups.append([])
            groups[-1] += frame
    return groups


def _join(groups: list[list[int]], linked: Sequence[Sequence[int]]) -> list[list[int]]:
    """Merge the groups that contain linked images."""
    group_of = {i: g for g, group in enumerate(groups) for i in group}
    root = list(range(len(groups)))

    def find(g: int) -> int:
        while root[g] != g:
            root[g] = root[root[g]]
            g = root[g]
        return g

    for positions in linked:
        for i in positions[1:]:
            low, high = sorted((find(group_of[positions[0]]), find(group_of[i])))
            root[high] = low
    merged: dict[int, list[int]] = defaultdict(list)
    for g, group in enumerate(groups):
        merged[find(g)] += group
    return list(merged.values())


def _stratify(groups: Sequence[Sequence[int]], names: Sequence[str], counts: np.ndarray, fraction: float) -> np.ndarray:
    """Return a mask of the images in the groups that are held out, bool [I].

    Args:
        groups: positions of the images of each group.
        names: file names, for a fixed order.
        counts: [I, K + 1], boxes per class, and 1 for the image.
        fraction: fraction to hold out.
    """
    totals = np.stack([counts[group].sum(axis=0) for group in groups])  # [groups, K + 1]
    frequencies = np.maximum(totals.sum(axis=0), 1)
    rarest = np.where(totals > 0, frequencies, np.inf).min(axis=1)
    hashes = [_hash(min(names[i] for i in group)) for group in groups]
    shares = totals / frequencies
    excess = np.zeros(shares.shape[1])  # held-out share of each class so far, minus the share that is due
    is_held_out = np.zeros(len(groups), dtype=bool)
    for g in sorted(range(len(groups)), key=lambda g: (rarest[g], hashes[g])):
        held, kept = excess + (1 - fraction) * shares[g], excess - fraction * shares[g]
        is_held_out[g] = held @ held < kept @ kept
        excess = held if is_held_out[g] else kept
    if is_held_out.all() or not is_held_out.any():  # a few large groups: move the smallest
        smallest = int(np.argmin(totals[:, -1]))
        is_held_out[smallest] = not is_held_out[smallest]
    mask = np.zeros(len(names), dtype=bool)
    for g in np.flatnonzero(is_held_out).tolist():
        mask[groups[g]] = True
    return mask


def _hash(name: str) -> bytes:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()


def _represents_classes(mask: np.ndarray, counts: np.ndarray, fraction: float) -> bool:
    """Return whether both parts have a box of every class that is frequent enough and occurs in several images."""
    boxes = counts[:, :-1]
    frequent = (boxes.sum(axis=0) * min(fraction, 1 - fraction) >= 1) & ((boxes > 0).sum(axis=0) > 1)
    return bool((boxes[mask].sum(axis=0) > 0)[frequent].all() and (boxes[~mask].sum(axis=0) > 0)[frequent].all())
