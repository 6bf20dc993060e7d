"""Which images make up which batch: pure functions of the seed and the iteration."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from typing import NamedTuple, TypeVar

import numpy as np
import torch

T = TypeVar("T")


class Draw(NamedTuple):
    """An image of a training batch, and the seed of its augmentation."""

    index: int
    seed: int


def shuffled(length: int, seed: int) -> list[int]:
    """A permutation of 0..length-1, torch.randperm's for the seed."""
    return torch.randperm(length, generator=torch.Generator().manual_seed(seed)).tolist()


def aspect_groups(sizes: np.ndarray) -> list[int]:
    """0 for landscape, 1 for square and portrait images; sizes [I, 2] (height, width)."""
    return (sizes[:, 0] >= sizes[:, 1]).astype(int).tolist()


def grouped_batches(
    order: Sequence[int], group_ids: Sequence[int], batch_size: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Cut a sequence of images into batches whose images are all of one group.

    Args:
        order: image indices.
        group_ids: the group of every image.
        batch_size: images a batch.

    Returns:
        The full batches, and the smaller ones that remain (one a group at most); both in the order of their first
        images.
    """
    growing: dict[int, tuple[int, list[int]]] = {}
    full: list[tuple[int, list[int]]] = []
    for position, index in enumerate(order):
        start, batch = growing.setdefault(group_ids[index], (position, []))
        batch.append(index)
        if len(batch) == batch_size:
            full.append((start, batch))
            del growing[group_ids[index]]
    return [batch for _, batch in sorted(full)], [batch for _, batch in growing.values()]


def endless_batches(orders: Iterable[Sequence[int]], group_ids: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Batches over many passes; `orders` gives the images of each.

    Every batch is full: what is left over in one pass begins the next (in the original it makes smaller batches, and
    few images of a rare group would change the statistics of a step).
    """
    left: list[int] = []
    for order in orders:
        batches, partial = grouped_batches([*left, *order], group_ids, batch_size)
        left = [index for batch in partial for index in batch]
        yield from batches


def training_draws(
    length: int, group_ids: Sequence[int], batch_size: int, *, seed: int, start_iteration: int = 0
) -> Iterator[list[Draw]]:
    """The batches from `start_iteration` on, without end, with the seed of every image's augmentation.

    Every pass permutes the `length` images anew. Batch k depends on the other arguments and k only, an augmentation on
    (seed, k, position in the batch).
    """
    assert length > 0
    orders = (shuffled(length, _mixed(seed, epoch)) for epoch in count())
    for iteration, batch in enumerate(endless_batches(orders, group_ids, batch_size)):
        if iteration >= start_iteration:
            yield [Draw(index, _mixed(seed, iteration, position)) for position, index in enumerate(batch)]


def rank_part(items: Sequence[T], rank: int, world_size: int) -> Sequence[T]:
    """A process's contiguous share; the shares differ by one item at most."""
    return items[rank * len(items) // world_size : (rank + 1) * len(items) // world_size]


def _mixed(*numbers: int) -> int:
    """A 64-bit number that changes completely with any of the numbers."""
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest())
