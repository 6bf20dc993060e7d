"""Detection of duplicate images: identical pixels, or nearly identical pictures, including mirrored ones.

A 64-bit difference hash (one bit per cell: is it brighter than its left neighbour?) finds candidates. A finer hash of
256 bits decides; it counts only neighbouring cells that differ visibly. An image of a single colour has no such cells,
so only its exact copies are duplicates.

Source: N. Krawetz, "Kind of like that", 2013 (difference hash); M. Norouzi et al., "Fast search in Hamming space with
multi-index hashing", CVPR 2012. The package ImageHash provides such hashes, but requires scipy and PyWavelets and has
no search.

Shape letters: I images, U images with distinct pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from PIL import Image

NEAR_BITS = 7
"""Maximum number of differing bits, of 64, between candidates."""
NEAR_SHARE = 0.2
"""Maximum share of the visible differences of the fine hash that may disagree between near duplicates."""
_MIN_VISIBLE = 32  # visible differences, of 256, that a meaningful comparison needs
_VISIBLE = 3  # least difference in grey levels between neighbouring cells
_COARSE, _FINE = 8, 16  # cells per side
_BANDS = 4  # bands of 16 bits: if at most 7 of 64 bits differ, at least one band differs in at most one bit
_PROBES = np.concatenate([[0], 1 << np.arange(16)]).astype(np.uint64)
_MAX_AT_ONCE = 4_000_000  # candidates, to limit memory use
WORDS = 19
"""Number of 64-bit words of a fingerprint."""


class DuplicateGroups(NamedTuple):
    """Groups of duplicate images, given by their positions in ascending order; the largest group comes first.

    Attributes:
        exact: groups with identical pixels.
        near: groups of images that look the same, directly or through other images of the group. Groups that are also
            in `exact` are left out.
    """

    exact: list[list[int]]
    near: list[list[int]]


def fingerprint(image: Image.Image) -> np.ndarray:
    """Compute the fingerprint of an RGB image for comparisons, uint64 [WORDS].

    It consists of a digest of the pixels (one word) and, for the image and then for its mirror image, the hash (one
    word), the signs of the fine hash (four words), and a mask of its visible differences (four words).
    """
    pixels = hashlib.blake2b(image.tobytes(), digest_size=8, key=f"{image.width}x{image.height}".encode())
    words = [np.frombuffer(pixels.digest(), dtype=np.uint64)]
    grey = image.convert("L")
    coarse, fine = (
        np.asarray(grey.resize((side + 1, side), Image.Resampling.BOX), dtype=np.int16) for side in (_COARSE, _FINE)
    )
    for mirror in (slice(None), slice(None, None, -1)):
        coarse_differences, fine_differences = np.diff(coarse[:, mirror]), np.diff(fine[:, mirror])
        # Every band has bits from all over the image: a band of sky only would be the same in many images.
        words.append(_pack((coarse_differences > 0).reshape(-1, _BANDS).T))
        words.append(_pack(fine_differences > 0))
        words.append(_pack(np.abs(fine_differences) >= _VISIBLE))
    return np.concatenate(words)


def _pack(bits: np.ndarray) -> np.ndarray:
    return np.packbits(bits.ravel()).view(np.uint64)


def find_duplicates(fingerprints: np.ndarray) -> DuplicateGroups:
    """Find groups of duplicate images.

    Args:
        fingerprints: uint64 [I, WORDS], fingerprints of the images, see `fingerprint`.
    """
    if not len(fingerprints):
        return DuplicateGroups([], [])
    _, first, member = np.unique(fingerprints[:, 0], return_index=True, return_inverse=True)
    digest_groups = _groups(member)
    unique = fingerprints[first]  # [U, WORDS]
    near = _connect(len(unique), list(_near_pairs(unique)))
    exact = [group for group in digest_groups if len(group) > 1]
    exact_groups = set(map(tuple, exact))
    near_groups = [group for group in _groups(near[member]) if len(group) > 1 and tuple(group) not in exact_groups]
    return DuplicateGroups(*(sorted(groups, key=lambda g: (-len(g), g)) for groups in (exact, near_groups)))


def _groups(keys: np.ndarray) -> list[list[int]]:
    """Group the positions that have the same key."""
    order = np.argsort(keys, kind="stable")
    cuts = np.flatnonzero(np.diff(keys[order])) + 1
    return [group.tolist() for group in np.split(order, cuts)]


def _near_pairs(prints: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield pairs of nearly identical images as two arrays of positions; one image of a pair may be mirrored.

    Among images with the same hash, only the first is compared with the others, and with images of other hashes.
    Otherwise the cost would grow with the square of their number.

    Args:
        prints: uint64 [U, WORDS].
    """
    plain, mirrored = prints[:, 1:10], prints[:, 10:19]
    visible = np.bitwise_count(plain[:, 5:]).sum(axis=1) >= _MIN_VISIBLE
    positions = np.flatnonzero(visible)
    hashes, first, member = np.unique(plain[positions, 0], return_index=True, return_inverse=True)
    a, b = positions[first][member], positions
    yield _select_agreeing(plain, plain, a[a != b], b[a != b])
    positions = positions[first]
    for queries, details in ((hashes, plain), (mirrored[positions, 0], mirrored)):
        for query, match in _candidates(queries, hashes):
            a, b = positions[query], positions[match]
            yield _select_agreeing(details, plain, a[a != b], b[a != b])


def _candidates(queries: np.ndarray, hashes: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield positions in `queries` and in `hashes` of pairs that differ in at most `NEAR_BITS` bits."""
    for band in range(_BANDS):
        shift = np.uint64(16 * band)
        keys, query_keys = ((words >> shift) & np.uint64(0xFFFF) for words in (hashes, queries))
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        for probe in _PROBES:
            start, end = (np.searchsorted(keys, query_keys ^ probe, side) for side in ("left", "right"))
            counts = end - start
            for chunk in _chunks(counts):
                rows = np.repeat(np.arange(chunk.start, chunk.stop), counts[chunk])
                steps = np.arange(len(rows)) - np.repeat(np.cumsum(counts[chunk]) - counts[chunk], counts[chunk])
                matches = order[start[rows] + steps]
                near = np.bitwise_count(queries[rows] ^ hashes[matches]) <= NEAR_BITS
                yield rows[near], matches[near]


def _chunks(counts: np.ndarray) -> Iterator[slice]:
    """Yield consecutive slices of `counts`, each with a sum of about `_MAX_AT_ONCE`."""
    ends = np.cumsum(counts)
    cuts = np.searchsorted(ends, np.arange(_MAX_AT_ONCE, ends[-1] if len(ends) else 0, _MAX_AT_ONCE)) + 1
    edges = np.unique([0, *cuts.tolist(), len(counts)]).tolist()
    yield from (slice(a, b) for a, b in pairwise(edges))


def _select_agreeing(
    details: np.ndarray, other_details: np.ndarray, a: np.ndarray, b: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Select the pairs whose fine hashes agree, where at least one of the two images has a visible difference."""
    visible = details[a, 5:] | other_details[b, 5:]
    differ = np.bitwise_count((details[a, 1:5] ^ other_details[b, 1:5]) & visible).sum(axis=1)
    agree = differ <= NEAR_SHARE * np.bitwise_count(visible).sum(axis=1)
    return a[agree], b[agree]


def _connect(count: int, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Return, for every item, the smallest item that it is connected with, [count]."""
    parent = list(range(count))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for first, second in pairs:
        for a, b in zip(first.tolist(), second.tolist(), strict=True):
            low, high = sorted((root(a), root(b)))
            parent[high] = low
    return np.array([root(i) for i in range(count)], dtype=np.int64)
