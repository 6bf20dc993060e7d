"""Choice of held-out images for validation: the same in every run, stratified by class, sequences kept together.

Groups of images that must not be separated are taken one by one, those with the rarest classes first, and in the order
of a hash of their names. Each one is held out if this brings the shares of all classes and of the images held out so
far closer to the fraction. Several groupings are tried, from whole sequences to short blocks of them.

Source: the order follows K. Sechidis et al., "On the stratification of multi-label data", ECML PKDD 2011 (iterative
stratification).

Shape letters: I images, B boxes, K classes.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np

from ..errors import DataError
from ..formatting import join_some, plural, printable

_MAX_WHOLE = 2  # a sequence stays whole up to this multiple of the images to hold out
_SHORT = 50  # images; a sequence up to this length stays whole, too, if at most half of all images are then held out
_BLOCK, _MIN_BLOCK = 5, 2  # images; usual and least length of the blocks of a sequence that is cut
_TOLERANCE, _MIN_TOLERANCE = 0.1, 2  # deviation from the images to hold out at which blocks are not made smaller
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
    if possible. A sequence of more than 50 images that is more than twice as long as the part to hold out is cut into
    blocks of consecutive images. So is a shorter one, if keeping it whole would hold out more than half of all images
    or leave a class out of one part. If there is only one sequence, of up to 50 images, its end is held out. Augmented
    copies of an image that Roboflow wrote always stay together.

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
    counts = _count(len(names), image_of, labels, class_names)
    linked = [list(positions) for positions in linked]
    trials = []
    for grouping in _group(_sequences(names), target):
        groups = _join(grouping.groups, linked)
        if len(groups) < 2:
            continue
        if grouping.is_end:
            mask = np.isin(np.arange(len(names)), groups[-1])
        else:
            mask = _stratify(groups, names, counts, fraction)
        num_missing = _num_missing_classes(mask, counts, fraction)
        if grouping.least <= mask.sum() <= grouping.most and not num_missing:
            return mask
        trials.append((num_missing, abs(int(mask.sum()) - target), len(trials), mask))
    if not trials:
        raise DataError(
            f"cannot hold out {fraction:g} of the images: all {len(names)} belong together (copies of a photograph, or"
            " images that look the same); add other images, or name those of val with data.val.image_list"
        )
    return min(trials)[-1]


def _count(num_images: int, image_of: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> np.ndarray:
    """Return the number of boxes per image and class, in the order of the names, and a 1 for the image, [I, K + 1]."""
    rank = np.argsort(np.argsort(np.array(class_names, dtype=object), kind="stable")) if len(class_names) else labels
    counts = np.zeros((num_images, len(class_names) + 1))
    np.add.at(counts, (image_of, rank[labels] if len(labels) else labels), 1)
    counts[:, -1] = 1
    return counts


def describe_cuts(names: Sequence[str], mask: np.ndarray) -> str:
    """Return a note on sequences that are partly held out, empty if there are none.

    Args:
        names: file names of I images.
        mask: mask of the images that are held out, bool [I].
    """
    sequences = [list(chain(*frames)) for frames in _sequences(names)]
    cut = [positions for positions in sequences if 0 < mask[positions].sum() < len(positions)]
    if not cut:
        return ""
    examples = join_some([printable(f"{names[positions[0]]} to {names[positions[-1]]}") for positions in cut])
    return (
        f"train contains other images of {plural(len(cut), 'sequence')} ({examples}); if these are frames of a video,"
        " those next to each other look alike, and the metrics are too high: a val split of other videos is better"
    )


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


_Frames = list[list[int]]
"""Images of a sequence, given by their positions: one list per number, which contains all copies of a photograph."""


def _sequences(names: Sequence[str]) -> list[_Frames]:
    series: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for i, name in enumerate(names):
        key = _split_name(name)
        series[key.series][key.number].append(i)
    return [[numbers[number] for number in sorted(numbers)] for numbers in series.values()]


class _Grouping(NamedTuple):
    """Groups of images that are not separated.

    Attributes:
        groups: positions of the images of each group.
        least: least number of held-out images for which the grouping is suitable.
        most: largest number of held-out images for which it is.
        is_end: True if the last group is to be held out; False: the groups are stratified.
    """

    groups: list[list[int]]
    least: float
    most: float
    is_end: bool = False


def _group(sequences: list[_Frames], target: int) -> Iterator[_Grouping]:
    """Yield groupings of all images, from whole sequences to short blocks of them; `target` images are to be held out.

    Sequences are cut if there is only one, or they are longer than `_MAX_WHOLE` times the target.
    """
    whole = [list(chain(*frames)) for frames in sequences]
    num_images, longest = sum(map(len, whole)), max(map(len, whole))
    max_whole = _MAX_WHOLE * target if len(sequences) > 1 else 0
    if longest <= max_whole:
        yield _Grouping(whole, 0, num_images)
        return
    if longest <= _SHORT and len(sequences) == 1:
        yield _Grouping(_cut_once(sequences[0], target), 0, num_images, is_end=True)
    elif longest <= _SHORT:
        yield _Grouping(whole, target / _MAX_WHOLE, num_images / 2)
    block = max(math.ceil(target / 4), min(target, _BLOCK))
    tolerance = max(_TOLERANCE * target, _MIN_TOLERANCE)
    while True:
        groups = []
        for frames, images in zip(sequences, whole, strict=True):
            groups += [images] if len(images) <= max_whole else _cut(frames, block)
        yield _Grouping(groups, target - tolerance, target + tolerance)
        block //= 2
        if block < _MIN_BLOCK:
            return


def _cut_once(frames: _Frames, target: int) -> list[list[int]]:
    """Cut a sequence before its last images, about `target`, at least one number; one group if it has one number."""
    end = max(1, round(target * len(frames) / sum(map(len, frames))))
    start = max(1, len(frames) - end)
    return [list(chain(*part)) for part in (frames[:start], frames[start:]) if part]


def _cut(frames: _Frames, block: int) -> list[list[int]]:
    """Cut a sequence into blocks of at least `block` images, except for the last one."""
    groups: list[list[int]] = [[]]
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


def _num_missing_classes(mask: np.ndarray, counts: np.ndarray, fraction: float) -> int:
    """Count the classes that have no box in one part, of those that are frequent enough and occur in several images."""
    boxes = counts[:, :-1]
    is_frequent = (boxes.sum(axis=0) * min(fraction, 1 - fraction) >= 1) & ((boxes > 0).sum(axis=0) > 1)
    is_in_both = (boxes[mask].sum(axis=0) > 0) & (boxes[~mask].sum(axis=0) > 0)
    return int((is_frequent & ~is_in_both).sum())
