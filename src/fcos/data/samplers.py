"""Which images make up which batch: pure functions of the seed and the iteration."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from typing import NamedTuple, TypeVar

import numpy as np
import torch

T = TypeVar("T")


class SeededIndex(NamedTuple):
    """An image of a batch, and the seed of its augmentation."""

    index: int
    seed: int


def shuffled(length: int, seed: int) -> np.ndarray:
    """A permutation of 0..length-1, torch.randperm's for the seed: int64 [length]."""
    return torch.randperm(length, generator=torch.Generator().manual_seed(seed)).numpy()


def aspect_groups(sizes: np.ndarray) -> np.ndarray:
    """0 for landscape, 1 for square and portrait images: int64 [I]; sizes [I, 2] (height, width)."""
    return (sizes[:, 0] >= sizes[:, 1]).astype(np.int64)


def grouped_batches(order: np.ndarray, group_ids: np.ndarray, batch_size: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Cut a sequence of images into batches whose images are all of one group.

    Args:
        order: image indices, int64, at least one.
        group_ids: the group of every image.
        batch_size: images a batch.

    Returns:
        The full batches, int64 [F, batch_size], and the smaller ones that remain (one a group at most); both in the
        order of their first images.
    """
    groups = group_ids[order]
    full, partial = [], []  # positions in `order`
    for group in np.unique(groups):
        places = np.flatnonzero(groups == group)
        end = len(places) // batch_size * batch_size
        full.append(places[:end].reshape(-1, batch_size))
        if end < len(places):
            partial.append(places[end:])
    batches = np.concatenate(full)
    batches = batches[np.argsort(batches[:, 0])]
    return order[batches], [order[places] for places in sorted(partial, key=lambda places: places[0])]


def endless_batches(
    orders: Iterable[np.ndarray], group_ids: np.ndarray, batch_size: int, *, start: int = 0
) -> Iterator[list[int]]:
    """Full batches over many passes, each of images of one group.

    What is left over in one pass begins the next (in the original it makes smaller batches, and few images of a rare
    group would change the statistics of a step).

    Args:
        orders: the image indices of each pass, int64.
        group_ids: the group of every image.
        batch_size: images a batch.
        start: the number, from 0, of the first batch to give.

    Yields:
        The image indices of a batch.
    """
    left = np.empty(0, dtype=np.int64)
    for order in orders:
        batches, partial = grouped_batches(np.concatenate([left, order]), group_ids, batch_size)
        left = np.concatenate([left[:0], *partial])
        for batch in batches[start:]:
            yield batch.tolist()
        start = max(0, start - len(batches))


def seeded_batches(
    length: int, group_ids: np.ndarray, batch_size: int, *, seed: int, start_iteration: int = 0
) -> Iterator[list[SeededIndex]]:
    """Training batches without end; every pass permutes the images anew.

    Batch k depends on k and the arguments besides `start_iteration` only, an augmentation on (seed, k, position in the
    batch).

    Args:
        length: number of images, at least one.
        group_ids: the group of every image, see `endless_batches`.
        batch_size: images a batch.
        seed: of the permutations and augmentations.
        start_iteration: the number, from 0, of the first batch to give.

    Yields:
        The images of a batch.
    """
    assert length > 0
    orders = (shuffled(length, _mixed(seed, epoch)) for epoch in count())
    batches = endless_batches(orders, group_ids, batch_size, start=start_iteration)
    for iteration, batch in enumerate(batches, start=start_iteration):
        yield [SeededIndex(index, _mixed(seed, iteration, position)) for position, index in enumerate(batch)]


def shard(items: Sequence[T], index: int, count: int) -> Sequence[T]:
    """The contiguous shard number `index`, from 0, of `count`; their lengths differ by one item at most."""
    return items[index * len(items) // count : (index + 1) * len(items) // count]


def _mixed(*numbers: int) -> int:
    """A 64-bit number that changes completely with any of the numbers."""
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest())
