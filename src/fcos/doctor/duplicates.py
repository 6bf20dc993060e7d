"""Detection of duplicate images: identical pixels, or nearly identical pictures, including mirrored ones.

A 64-bit difference hash (one bit per cell: is it brighter than its left neighbour?) finds candidates. Two checks decide
about each pair of candidates: a finer hash of 256 bits, of which only neighbouring cells that differ visibly count, and
the correlation of small grey pictures with normalised local contrast. The latter rejects different objects in front of
similar large shapes, such as cars at night. An image of a single colour has no visible cells, so only its exact copies
are duplicates.

Source: N. Krawetz, "Kind of like that", 2013 (difference hash); M. Norouzi et al., "Fast search in Hamming space with
multi-index hashing", CVPR 2012. The package ImageHash provides such hashes, but requires scipy and PyWavelets and has
no search.

Shape letters: I images, U images with distinct pixels in their split, S splits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

from .pieces import split_evenly

NEAR_BITS = 7
"""Maximum number of differing bits, of 64, between candidates."""
NEAR_SHARE = 0.2
"""Maximum share of the visible differences of the fine hash that may disagree between near duplicates."""
NEAR_CORRELATION = 0.85
"""Minimum correlation of the grey pictures of near duplicates. In BCCD and Raccoon, copies of an image have at least
0.93 (0.94 after strong JPEG compression), different images at most 0.64."""
_MIN_VISIBLE = 32  # visible differences, of 256, that a meaningful comparison needs
_VISIBLE = 3  # least difference in grey levels between neighbouring cells
_COARSE, _FINE = 8, 16  # cells per side
_BANDS = 4  # bands of 16 bits: if at most 7 of 64 bits differ, at least one band differs in at most one bit
_PROBES = np.concatenate([[0], 1 << np.arange(16)]).astype(np.uint64)
_MAX_AT_ONCE = 4_000_000  # candidates, to limit memory use
_MAX_CORRELATED = 8  # candidates per image and split, of those found at once, whose pictures are compared
_PICTURE = 19  # first word of the picture
WORDS = _PICTURE + _FINE * _FINE // 8
"""Number of 64-bit words of a fingerprint."""


class NearPair(NamedTuple):
    """Image and an earlier one that looks the same.

    Attributes:
        earlier: position of the earlier image.
        later: position of the later image.
        correlation: correlation of their grey pictures, `NEAR_CORRELATION` to 1.
    """

    earlier: int
    later: int
    correlation: float


class Duplicates(NamedTuple):
    """Duplicates among images, which are given by their positions.

    Attributes:
        exact: groups of images with identical pixels, in ascending order; the largest group comes first.
        near: for every image and split, the most similar earlier image of the split, if it looks the same; the most
            similar pair comes first. Every pair is verified: similarity is not passed on from image to image.
    """

    exact: list[list[int]]
    near: list[NearPair]


def fingerprint(image: Image.Image) -> np.ndarray:
    """Compute the fingerprint of an RGB image for comparisons, uint64 [WORDS].

    It consists of a digest of the pixels (one word); for the image and then for its mirror image, the hash (one word),
    the signs of the fine hash (four words), and a mask of its visible differences (four words); and a grey picture with
    normalised local contrast (int8, 32 words).
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
    return np.concatenate([*words, _normalized_picture(grey)])


def _normalized_picture(grey: Image.Image) -> np.ndarray:
    """Return a picture of `_FINE` x `_FINE` cells minus its local mean, scaled to its deviation: int8, as words."""
    cells = np.asarray(grey.resize((_FINE, _FINE), Image.Resampling.BOX), dtype=np.float32)
    padded = np.pad(cells, 2, mode="edge")
    local_mean = np.lib.stride_tricks.sliding_window_view(padded, (5, 5)).mean(axis=(2, 3))
    detail = cells - local_mean
    deviation = max(float(detail.std()), 1e-6)
    return np.clip(np.rint(detail / deviation * 25), -127, 127).astype(np.int8).ravel().view(np.uint64)


def _pack(bits: np.ndarray) -> np.ndarray:
    return np.packbits(bits.ravel()).view(np.uint64)


def find_duplicates(fingerprints: np.ndarray, splits: np.ndarray | None = None) -> Duplicates:
    """Find duplicate images.

    Args:
        fingerprints: uint64 [I, WORDS], fingerprints of the images, see `fingerprint`.
        splits: int64 [I], number of the split of every image, 0..S-1; None: one split.
    """
    if not len(fingerprints):
        return Duplicates([], [])
    splits = np.zeros(len(fingerprints), dtype=np.int64) if splits is None else splits
    exact = [group for group in _groups(fingerprints[:, 0]) if len(group) > 1]
    _, first = np.unique(np.stack([fingerprints[:, 0], splits.astype(np.uint64)]), axis=1, return_index=True)
    unique = np.sort(first)  # [U]
    partner, correlation = _best_partners(fingerprints[unique], splits[unique])
    for group in exact:  # an image with an exact copy in another split needs no other partner there
        for row in np.searchsorted(unique, np.intersect1d(group, unique)):
            correlation[row, np.setdiff1d(splits[group], splits[unique[row]])] = 0
    rows, columns = np.nonzero(correlation)
    near = [
        NearPair(int(unique[partner[row, column]]), int(unique[row]), float(correlation[row, column]))
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True)
    ]
    return Duplicates(
        sorted(exact, key=lambda group: (-len(group), group)), sorted(near, key=lambda pair: (-pair.correlation, pair))
    )


def _best_partners(prints: np.ndarray, splits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the most similar earlier image of every image in every split.

    Args:
        prints: uint64 [U, WORDS].
        splits: int64 [U].

    Returns:
        Positions of the partners, int64 [U, S], and the correlations with them, float32 [U, S], 0 without a partner.
    """
    num_splits = int(splits.max()) + 1
    partner = np.zeros((len(prints), num_splits), dtype=np.int64)
    correlation = np.zeros((len(prints), num_splits), dtype=np.float32)
    for a, b, is_mirrored in _near_pairs(prints, splits):
        earlier, later = np.minimum(a, b), np.maximum(a, b)
        column = splits[earlier]
        values = _correlate(prints, earlier, later, is_mirrored=is_mirrored)
        order = np.argsort(values, kind="stable")  # the last assignment to an element stays
        order = order[values[order] > np.maximum(correlation[later, column][order], NEAR_CORRELATION)]
        partner[later[order], column[order]] = earlier[order]
        correlation[later[order], column[order]] = values[order]
    return partner, correlation


def _correlate(prints: np.ndarray, a: np.ndarray, b: np.ndarray, *, is_mirrored: bool) -> np.ndarray:
    """Return the correlations of the pictures of pairs, float32; one picture of each pair may be mirrored."""
    first, second = (
        np.ascontiguousarray(prints[rows, _PICTURE:]).view(np.int8).reshape(-1, _FINE, _FINE).astype(np.float32)
        for rows in (a, b)
    )
    if is_mirrored:
        first = first[:, :, ::-1]
    products = [np.einsum("ijk,ijk->i", x, y) for x, y in ((first, second), (first, first), (second, second))]
    return products[0] / np.sqrt(np.maximum(products[1] * products[2], 1))


def _groups(keys: np.ndarray) -> list[list[int]]:
    """Group the positions that have the same key."""
    order = np.argsort(keys, kind="stable")
    cuts = np.flatnonzero(np.diff(keys[order])) + 1
    return [group.tolist() for group in np.split(order, cuts)]


def _near_pairs(prints: np.ndarray, splits: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, bool]]:
    """Yield pairs of images whose hashes agree as two arrays of positions, and True if one image is mirrored.

    Images with the same hash in the same split are compared with the previous few of them. Only the first one is
    compared with the images of other hashes. Otherwise the cost would grow with the square of their number.

    Args:
        prints: uint64 [U, WORDS].
        splits: int64 [U].
    """
    plain, mirrored = prints[:, 1:10], prints[:, 10:19]
    visible = np.bitwise_count(plain[:, 5:]).sum(axis=1) >= _MIN_VISIBLE
    positions = np.flatnonzero(visible)
    keys = np.stack([plain[positions, 0], splits[positions].astype(np.uint64)])
    _, first, member = np.unique(keys, axis=1, return_index=True, return_inverse=True)
    order = np.argsort(member.ravel(), kind="stable")
    for distance in range(1, _MAX_CORRELATED + 1):
        a, b = order[:-distance], order[distance:]
        is_same = member.ravel()[a] == member.ravel()[b]
        yield *_select_agreeing(plain, plain, positions[a[is_same]], positions[b[is_same]]), False
    firsts = positions[first]
    for details, is_mirrored in ((plain, False), (mirrored, True)):
        for query, match in _candidates(details[positions, 0], plain[firsts, 0]):
            later, earlier = positions[query], firsts[match]
            is_pair = (later > earlier) & (prints[later, 0] != prints[earlier, 0])  # exact copies may be in two splits
            later, earlier = later[is_pair], earlier[is_pair]
            bits = np.bitwise_count(details[later, 0] ^ plain[earlier, 0])
            nearest = _select_nearest(later, earlier, splits[earlier], bits)
            yield *_select_agreeing(details, plain, later[nearest], earlier[nearest]), is_mirrored


def _select_nearest(later: np.ndarray, earlier: np.ndarray, split: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """Select, for every later image and split of the earlier one, the `_MAX_CORRELATED` pairs with the closest hashes.

    Frames of a video may all look the same. Then the number of pairs is the square of their number.
    """
    order = np.lexsort((later - earlier, bits, split, later))
    target = np.stack([later[order], split[order]])
    is_start = np.concatenate([[True], (np.diff(target) != 0).any(axis=0)])[: len(order)]
    start = np.maximum.accumulate(np.where(is_start, np.arange(len(order)), 0))
    return order[np.arange(len(order)) - start < _MAX_CORRELATED]


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
            for chunk in split_evenly(counts, _MAX_AT_ONCE):
                rows = np.repeat(np.arange(chunk.start, chunk.stop), counts[chunk])
                steps = np.arange(len(rows)) - np.repeat(np.cumsum(counts[chunk]) - counts[chunk], counts[chunk])
                matches = order[start[rows] + steps]
                near = np.bitwise_count(queries[rows] ^ hashes[matches]) <= NEAR_BITS
                yield rows[near], matches[near]


def _select_agreeing(
    details: np.ndarray, other_details: np.ndarray, a: np.ndarray, b: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Select the pairs whose fine hashes agree, where at least one of the two images has a visible difference."""
    visible = details[a, 5:] | other_details[b, 5:]
    differ = np.bitwise_count((details[a, 1:5] ^ other_details[b, 1:5]) & visible).sum(axis=1)
    agree = differ <= NEAR_SHARE * np.bitwise_count(visible).sum(axis=1)
    return a[agree], b[agree]
