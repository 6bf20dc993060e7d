"""Duplicate images are found in any file format or quality, and nothing else is reported."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from fcos.doctor import duplicates
from fcos.doctor.duplicates import NEAR_BITS, NEAR_CORRELATION, WORDS, find_duplicates, fingerprint


def scene(seed: int, size: tuple[int, int] = (120, 90)) -> Image.Image:
    """Return an image of smooth blobs that resembles a photograph."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


Found = tuple[list[list[int]], list[tuple[int, int]]]


def duplicates_among(*images: Image.Image, splits: Sequence[int] | None = None) -> Found:
    """Return the groups of identical images, and the sorted pairs of nearly identical images."""
    return without_figures(np.stack([fingerprint(image) for image in images]), splits)


def without_figures(fingerprints: np.ndarray, splits: Sequence[int] | None = None) -> Found:
    found = find_duplicates(fingerprints, None if splits is None else np.array(splits))
    assert all(pair.correlation >= NEAR_CORRELATION for pair in found.near)
    return found.exact, sorted((pair.earlier, pair.later) for pair in found.near)


def as_jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def test_different_images_are_not_duplicates() -> None:
    assert duplicates_among(*(scene(seed) for seed in range(40))) == ([], [])


def test_identical_pixels_are_exact_duplicates_only() -> None:
    assert duplicates_among(scene(0), scene(1), scene(0), scene(2), scene(1), scene(0)) == (
        [[0, 2, 5], [1, 4]],
        [],
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda image: as_jpeg(image, 40),
        lambda image: image.resize((240, 180)),
        lambda image: image.resize((60, 45)),
        lambda image: ImageEnhance.Brightness(image).enhance(0.8),
        lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        lambda image: as_jpeg(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).resize((100, 75)), 70),
    ],
    ids=["compressed", "enlarged", "shrunk", "darker", "mirrored", "mirrored, shrunk, compressed"],
)
def test_modified_image_is_a_near_duplicate(change) -> None:
    assert duplicates_among(scene(0), scene(1), change(scene(1)), scene(2)) == ([], [(1, 2)])


def test_single_color_images_match_exact_copies_only() -> None:
    plain = [Image.new("RGB", (120, 90), color) for color in ("red", "red", "#fe0000")]
    assert duplicates_among(*plain) == ([[0, 1]], [])


def test_crop_is_not_a_duplicate() -> None:
    assert duplicates_among(scene(0), scene(0).crop((30, 20, 120, 90))) == ([], [])


def test_upside_down_image_is_not_a_duplicate() -> None:
    assert duplicates_among(scene(0), scene(0).transpose(Image.Transpose.FLIP_TOP_BOTTOM)) == ([], [])


def test_near_duplicate_joins_the_group_of_exact_duplicates() -> None:
    assert duplicates_among(scene(3), scene(4), scene(3), as_jpeg(scene(3), 60)) == (
        [[0, 2]],
        [(0, 3)],
    )


def test_flat_and_grainy_images_match_exact_copies_only() -> None:
    noise = np.random.default_rng(0).integers(0, 2, (4, 90, 120, 3), dtype=np.uint8)
    flat = [Image.new("RGB", (120, 90), color) for color in ("white", "black", "grey", "white")]
    grainy = [Image.fromarray(200 + pixels) for pixels in noise]
    assert duplicates_among(*flat, *grainy) == ([[0, 3]], [])


def test_small_marks_on_white_pages_are_not_near_duplicates() -> None:
    pages = []
    for x in (10, 40, 70):
        page = Image.new("RGB", (120, 90), "white")
        page.paste(scene(7).resize((15, 40)), (x, 30))
        pages.append(page)
    assert duplicates_among(*pages) == ([], [])


def test_fingerprint_supports_one_pixel_rows_and_columns() -> None:
    prints = [fingerprint(Image.new("RGB", size, "red")) for size in ((1, 1), (50, 1), (1, 50))]
    assert [(p.shape, p.dtype) for p in prints] == [((WORDS,), np.uint64)] * 3
    assert without_figures(np.stack(prints)) == ([], [])


def test_no_images_have_no_duplicates() -> None:
    assert without_figures(np.zeros((0, WORDS), dtype=np.uint64)) == ([], [])


def _random_hashes(count: int) -> np.ndarray:
    """Return clusters of hashes that differ in a few bits."""
    generator = np.random.default_rng(0)
    centers = generator.integers(0, 2**63, count // 8, dtype=np.uint64)
    hashes = np.repeat(centers, 8)
    for _ in range(4):
        hashes ^= np.uint64(1) << generator.integers(0, 64, count).astype(np.uint64)
    return np.unique(hashes)


@pytest.mark.parametrize("crowded", [False, True])
def test_search_finds_exactly_the_hashes_within_near_bits(crowded: bool) -> None:
    """Candidate pairs share a quarter of their hash; millions of them are compared in chunks."""
    hashes = _random_hashes(400)
    if crowded:
        hashes = np.unique(np.concatenate([hashes, _random_hashes(4000) & ~np.uint64(0xFFFF)]))
    queries = hashes[::3]
    found: set[tuple[int, int]] = set()
    for query, position in duplicates._candidates(queries, hashes):
        found |= set(zip(query.tolist(), position.tolist(), strict=True))
    distances = np.bitwise_count(queries[:, None] ^ hashes[None])
    expected = set(map(tuple, np.argwhere(distances <= NEAR_BITS).tolist()))
    assert found == expected
    assert len(expected) > 2 * len(queries)  # not only each hash with itself


def test_many_near_copies_form_one_group() -> None:
    prints = np.tile(fingerprint(scene(1)), (5000, 1))
    prints[:, 0] = np.arange(5000)  # each print has other pixels
    assert without_figures(prints) == ([], [(i - 1, i) for i in range(1, 5000)])


def test_groups_are_ordered_by_size() -> None:
    pictures: Sequence[int] = (5, 6, 5, 6, 6)
    assert duplicates_among(*(scene(seed) for seed in pictures))[0] == [[1, 3, 4], [0, 2]]


# ---------------------------------------------------------------------------------------------------- pairs, not groups


def night(lights: Sequence[tuple[int, int]]) -> Image.Image:
    """Return a dark scene with the given lights: the same large shapes, different small objects."""
    picture = np.asarray(scene(3), dtype=np.float32) * 0.15
    for x, y in lights:
        picture[y : y + 12, x : x + 16] = 190
    return Image.fromarray(picture.astype(np.uint8))


def test_different_cars_at_night_are_not_duplicates() -> None:
    cars = [night([(10, 60), (40, 62)]), night([(70, 50), (95, 55)]), night([(30, 40), (60, 70)]), night([(88, 70)])]
    assert duplicates_among(*cars) == ([], [])
    assert duplicates_among(*cars, as_jpeg(cars[1], 95)) == ([], [(1, 4)])


def test_similarity_is_not_passed_on_from_image_to_image() -> None:
    """Each frame resembles the previous one, but the first and the last frame show other things."""
    first, last = (np.asarray(scene(seed), dtype=np.float32) for seed in (1, 2))
    frames = [Image.fromarray((first + (last - first) * share).astype(np.uint8)) for share in np.linspace(0, 1, 30)]
    found = find_duplicates(np.stack([fingerprint(frame) for frame in frames]))
    assert found.exact == []
    assert [(pair.earlier, pair.later) for pair in found.near if pair.later - pair.earlier > 3] == []
    assert {pair.later for pair in found.near} == set(range(1, 30))


def test_the_most_similar_earlier_image_of_every_split_is_the_partner() -> None:
    plain, other = scene(1), Image.blend(scene(1), scene(2), 0.12)
    images = [plain, other, scene(5), as_jpeg(other, 90), as_jpeg(plain, 90)]
    assert duplicates_among(*images, splits=[0, 0, 0, 1, 1]) == ([], [(0, 1), (0, 4), (1, 3), (3, 4)])


def test_an_exact_copy_in_another_split_is_not_also_a_near_duplicate() -> None:
    images = [scene(1), as_jpeg(scene(1), 60), scene(1)]
    assert duplicates_among(*images, splits=[0, 0, 1]) == ([[0, 2]], [(0, 1)])
    assert duplicates_among(*images, splits=[0, 1, 1]) == ([[0, 2]], [(0, 1), (1, 2)])


def test_thousands_of_frames_alike_have_few_pairs() -> None:
    """All hashes differ in a few bits, so that every frame is a candidate of every other one."""
    count = 2000
    prints = np.tile(fingerprint(scene(1)), (count, 1))
    generator = np.random.default_rng(0)
    for _ in range(3):
        prints[:, 1] ^= np.uint64(1) << generator.integers(0, 64, count).astype(np.uint64)
    prints[:, 0] = np.arange(count)
    splits = np.repeat([0, 1], count // 2)
    found = find_duplicates(prints, splits)
    own = [pair for pair in found.near if splits[pair.earlier] == splits[pair.later]]
    assert len(own) <= count - 2
    assert len(found.near) <= count - 2 + count // 2
    assert {pair.later for pair in found.near} >= set(range(count // 2, count))
