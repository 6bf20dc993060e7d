"""Masks: outlines of bitmaps, selection, geometry, rasterisation equal to pycocotools, masks of detections."""

from __future__ import annotations

from typing import Any

import numpy as np
import pycocotools.mask
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fcos.masks import Masks, encode, outline, paste

BITMAPS = st.tuples(st.integers(0, 3), st.integers(1, 12), st.integers(1, 12)).flatmap(
    lambda shape: arrays.arrays(bool, shape)
)
SQUARE, TRIANGLE = [1.0, 1.0, 5.0, 1.0, 5.0, 4.0, 1.0, 4.0], [6.0, 0.0, 9.0, 0.0, 6.0, 3.0]
reference: Any = pycocotools.mask
MASKS = Masks.from_polygons([[SQUARE], [], [SQUARE, TRIANGLE]])


@given(BITMAPS)
def test_outlines_rasterise_to_the_same_bitmaps(bitmaps: np.ndarray) -> None:
    masks = Masks.from_bitmaps(bitmaps)
    size = bitmaps.shape[1:]
    np.testing.assert_array_equal(masks.to_bitmaps(size), bitmaps)
    np.testing.assert_array_equal(masks.flip(size[1]).to_bitmaps(size), bitmaps[:, :, ::-1])
    enlarged = bitmaps.repeat(2, axis=1).repeat(3, axis=2)
    np.testing.assert_array_equal(masks.scale(3, 2).to_bitmaps((2 * size[0], 3 * size[1])), enlarged)


@given(BITMAPS, st.integers(-4, 4), st.integers(-4, 4))
def test_moved_outlines_rasterise_to_the_moved_bitmaps(bitmaps: np.ndarray, x: int, y: int) -> None:
    height, width = bitmaps.shape[1:]
    padded = np.pad(bitmaps, ((0, 0), (4, 4), (4, 4)))
    expected = padded[:, 4 - y : 4 - y + height, 4 - x : 4 - x + width]
    np.testing.assert_array_equal(Masks.from_bitmaps(bitmaps).translate(x, y).to_bitmaps((height, width)), expected)


def test_outline_of_a_ring_of_pixels_has_eight_corners_and_the_way_to_the_hole() -> None:
    bitmap = np.ones((3, 3), dtype=bool)
    bitmap[1, 1] = False
    ring = outline(bitmap)
    assert sorted({tuple(point) for point in ring.tolist()}) == [
        (0, 0), (0, 3), (1, 1), (1, 2), (2, 1), (2, 2), (3, 0), (3, 3)
    ]  # fmt: skip
    assert outline(np.zeros((3, 3), dtype=bool)).shape == (0, 2)


@given(
    st.lists(st.lists(st.lists(st.floats(-5, 25), min_size=6, max_size=12).filter(lambda r: len(r) % 2 == 0),
                      min_size=1, max_size=3), min_size=1, max_size=3)
)  # fmt: skip
def test_rasterisation_equals_pycocotools(objects: list[list[list[float]]]) -> None:
    ours = Masks.from_polygons(objects).to_rles((17, 20))
    for code, rings in zip(ours, objects, strict=True):
        assert code == reference.merge(reference.frPyObjects(rings, 17, 20))


@pytest.mark.parametrize(
    ("index", "positions"),
    [
        (0, [0]),
        (-1, [2]),
        (slice(1, None), [1, 2]),
        ([2, 0], [2, 0]),
        ([], []),
        (np.array([True, False, True]), [0, 2]),
        (torch.tensor([2, 2, 1]), [2, 2, 1]),
        (torch.tensor([False, True, False]), [1]),
    ],
)
def test_index_selects_objects(index: int, positions: list[int]) -> None:
    selected, every = MASKS[index], MASKS.polygons()
    assert len(selected) == len(positions)
    for rings, position in zip(selected.polygons(), positions, strict=True):
        assert [ring.tolist() for ring in rings] == [ring.tolist() for ring in every[position]]


def test_split_is_the_inverse_of_concatenate() -> None:
    parts = [MASKS[:1], MASKS[:0], MASKS[1:]]
    joined = Masks.concatenate(parts)
    assert torch.equal(joined.to_bitmaps((8, 10)), MASKS.to_bitmaps((8, 10)))
    assert [len(part) for part in joined.split([1, 0, 2])] == [1, 0, 2]
    assert torch.equal(joined.split([1, 0, 2])[2].to_bitmaps((8, 10)), MASKS[1:].to_bitmaps((8, 10)))
    assert len(Masks.concatenate([Masks.empty(), Masks.empty(2)])) == 2


def test_boxes_enclose_the_points_of_every_object() -> None:
    assert MASKS.boxes().tolist() == [[1, 1, 5, 4], [0, 0, 0, 0], [1, 0, 9, 4]]
    assert Masks.empty().boxes().shape == (0, 4)


def test_object_without_rings_has_an_empty_bitmap() -> None:
    assert MASKS.to_bitmaps((8, 10)).sum(dim=(1, 2)).tolist()[:2] == [12, 0]
    assert Masks.empty().to_bitmaps((8, 10)).shape == (0, 8, 10)
    assert MASKS.crop(torch.tensor([[1.0, 1.0, 5.0, 4.0]] * 3), 4)[1].sum() == 0


def test_crop_scales_the_box_to_the_square() -> None:
    target = Masks.from_polygons([[SQUARE]]).crop(torch.tensor([[1.0, 1.0, 9.0, 4.0]]), 4)
    assert target.tolist() == [[[1, 1, 0, 0]] * 4]


@pytest.mark.parametrize("ring", [[0.0, 0.0, 1.0, 1.0], [0.0] * 7])
def test_ring_without_three_points_is_an_error(ring: list[float]) -> None:
    with pytest.raises(ValueError, match=f"three points or more.*found {len(ring)} numbers"):
        Masks.from_polygons([[ring]])


def test_pasted_grid_fills_its_box_and_nothing_else() -> None:
    (frame,) = paste(torch.ones(1, 28, 28), torch.tensor([[2.0, 3.0, 30.0, 21.0]]), (24, 32))
    mask = frame > 0.5  # the original truncates corners, which moves the border by a pixel at most
    assert mask[4:21, 3:30].all()
    assert mask.sum() == mask[2:23, 1:32].sum()
    assert list(paste(torch.zeros(0, 28, 28), torch.zeros(0, 4), (4, 4))) == []
    (outside,) = paste(torch.ones(1, 4, 4), torch.tensor([[50.0, 50.0, 60.0, 60.0]]), (24, 32))
    assert not outside.any()


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # of pycocotools with NumPy 2
def test_encoded_mask_is_decoded_by_pycocotools() -> None:
    bitmap = torch.rand(7, 5, generator=torch.Generator().manual_seed(0)) > 0.5
    code = encode(bitmap)
    assert code["size"] == [7, 5]
    np.testing.assert_array_equal(reference.decode(code), bitmap)
