"""Selection of the images of each batch, by pure functions of the seed and the iteration."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from typing import NamedTuple, TypeVar

import numpy as np
import torch

T = TypeVar("T")


class SeededIndex(NamedTuple):
    """Index of an image in the data set, and the seed and strength (0..1) of its augmentation."""

    index: int
    seed: int
    strength: float = 1.0


def permutation(length: int, seed: int) -> np.ndarray:
    """Return the permutation of 0..length-1 that torch.randperm gives for a seed, int64 [length]."""
    return torch.randperm(length, generator=torch.Generator().manual_seed(seed)).numpy()


def aspect_groups(sizes: np.ndarray) -> np.ndarray:
    """Return 0 for landscape, 1 for square and portrait images, int64 [I], from sizes [I, 2] (height, width)."""
    return (sizes[:, 0] >= sizes[:, 1]).astype(np.int64)


def grouped_batches(order: np.ndarray, group_ids: np.ndarray, batch_size: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Split a sequence of images into batches, each with images of one group.

    Args:
        order: image indices, int64, at least one.
        group_ids: group of every image, int64 [I].
        batch_size: number of images per batch.

    Returns:
        The full batches, int64 [F, batch_size], and the remaining smaller ones (at most one per group). Both are sorted
        by the position of their first image in `order`.
    """
    groups = group_ids[order]
    full, partial = [], []  # positions in `order`
    for group in np.unique(groups):
        positions = np.flatnonzero(groups == group)
        end = len(positions) // batch_size * batch_size
        full.append(positions[:end].reshape(-1, batch_size))
        if end < len(positions):
            partial.append(positions[end:])
    batches = np.concatenate(full)
    batches = batches[np.argsort(batches[:, 0])]
    return order[batches], [order[positions] for positions in sorted(partial, key=lambda positions: positions[0])]


def endless_batches(
    orders: Iterable[np.ndarray], group_ids: np.ndarray, batch_size: int, *, start: int = 0
) -> Iterator[list[int]]:
    """Yield full batches over many passes, each with images of one group.

    Images that do not fill a batch are put at the start of the next pass. The original makes smaller batches of them
    instead; a few images of a rare group would then change the statistics of a step.

    Args:
        orders: image indices of each pass, int64.
        group_ids: group of every image, int64 [I].
        batch_size: number of images per batch.
        start: 0-based number of the first batch to yield.

    Yields:
        The image indices of a batch.
    """
    pending: list[np.ndarray] = []  # images that do not fill a batch yet
    counts = np.zeros(int(group_ids.max()) + 1, dtype=np.int64)
    for order in orders:
        pending.append(order)
        counts += np.bincount(group_ids[order], minlength=len(counts))
        if counts.max() < batch_size:  # grouping them in each pass would take quadratic time
            continue
        batches, partial = grouped_batches(np.concatenate(pending), group_ids, batch_size)
        pending, counts = partial, counts % batch_size
        for batch in batches[start:]:
            yield batch.tolist()
        start = max(0, start - len(batches))


def seeded_batches(
    length: int,
    group_ids: np.ndarray,
    batch_size: int,
    *,
    seed: int,
    strength: Callable[[int], float] = lambda k: 1.0,
    start_iteration: int = 0,
) -> Iterator[list[SeededIndex]]:
    """Yield training batches without end; every pass uses a new permutation of the images.

    Batch k depends only on k and on the arguments other than `start_iteration`. The seed of an augmentation depends
    only on (`seed`, k, position in the batch).

    Args:
        length: number of images, at least one.
        group_ids: group of every image, int64 [length]; a batch holds images of one group.
        batch_size: number of images per batch.
        seed: seed of the permutations and augmentations.
        strength: function that returns the strength of the augmentations, 0..1, in batch k.
        start_iteration: 0-based number of the first batch to yield.

    Yields:
        The indices of the images of a batch, with the seeds and the strength of their augmentations.
    """
    assert length > 0
    orders = (permutation(length, hash_seed(seed, epoch)) for epoch in count())
    batches = endless_batches(orders, group_ids, batch_size, start=start_iteration)
    for k, batch in enumerate(batches, start=start_iteration):
        current = strength(k)
        yield [SeededIndex(index, hash_seed(seed, k, position), current) for position, index in enumerate(batch)]


def shard(items: Sequence[T], index: int, count: int) -> Sequence[T]:
    """Return shard `index` (0-based) of `count` contiguous shards, whose lengths differ by at most one item."""
    return items[index * len(items) // count : (index + 1) * len(items) // count]


def hash_seed(*numbers: int) -> int:
    """Return a hash of the numbers, 0..2^64-1."""
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest())
