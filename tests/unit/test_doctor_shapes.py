"""Findings about masks and keypoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flat_annotations import annotations_of
from PIL import Image

from fcos.data.dataset import Annotations
from fcos.data.source import Keypoints
from fcos.doctor.findings import Place
from fcos.doctor.page import _draw_place
from fcos.doctor.shapes import crosses_itself, shape_findings
from fcos.inference.draw import class_color
from fcos.keypoints import KeypointLayout
from fcos.masks import Masks

BOX = (10, 10, 30, 30, 0)
SQUARE = [10, 10, 30, 10, 30, 30, 10, 30]


def with_masks(polygons: Sequence[Sequence[float]], *, crowd: bool = False) -> Annotations:
    boxes = [(*BOX, 1) if crowd else BOX for _ in polygons]
    return replace(annotations_of([boxes], [(40, 50)]), masks=Masks.from_polygons([[p] for p in polygons]))


def kinds(annotations: Annotations) -> dict[str, list[int]]:
    """Return the boxes of every kind of finding."""
    return {f.kind: [case[0].boxes[0] for case in f.cases] for f in shape_findings({"train": annotations})}


def test_correct_masks_are_not_reported() -> None:
    assert kinds(with_masks([SQUARE, [11, 11, 28, 12, 20, 31]])) == {}
    assert shape_findings({"train": annotations_of([[BOX]], [(40, 50)])}) == []


def test_mask_beyond_its_box_is_reported_worst_first() -> None:
    shifted = [[v + 3 for v in SQUARE], SQUARE, [v + 5 for v in SQUARE]]
    assert kinds(with_masks(shifted)) == {"mask outside its box": [2, 0]}
    assert kinds(with_masks(shifted, crowd=True)) == {}


@pytest.mark.parametrize("polygon", [[12, 12, 12, 12, 12, 12], [12, 12, 20, 12, 28, 12]])
def test_polygon_without_area_is_reported(polygon: list[float]) -> None:
    assert kinds(with_masks([SQUARE, polygon])) == {"empty mask": [1]}


def test_mask_outside_the_image_is_reported() -> None:
    annotations = with_masks([[v + 100 for v in SQUARE], [12, 12, 20, 12, 28, 12]])
    assert kinds(annotations) == {"empty mask": [0, 1]}
    (finding,) = shape_findings({"train": annotations})
    assert [case[0].note for case in finding.cases] == ["outside the image, at 110, 110", "no area"]


class TestPictures:
    """Pictures of 50 x 40 pixels, of which the page shows sections enlarged to a longer side of 480 pixels."""

    @staticmethod
    def picture(tmp_path: Path, *, polygon: Sequence[float], keypoints: np.ndarray | None = None) -> np.ndarray:
        Image.new("RGB", (50, 40)).save(tmp_path / "0.png")
        named = {"root": tmp_path, "names": b"0.png", "name_offsets": np.array([0, 5])}
        annotations = replace(with_masks([polygon]), **named)
        if keypoints is not None:
            annotations = replace(annotations, keypoints=Keypoints(keypoints, KeypointLayout(("nose",))))
        place = Place("train", 0, (0,), "")
        return np.asarray(_draw_place(place, annotations, alone=True)).astype(int)

    def test_part_of_a_mask_outside_its_box_is_shown(self, tmp_path: Path) -> None:
        picture = self.picture(tmp_path, polygon=[v + 15 for v in SQUARE])  # 25..45, the box ends at 30
        scale = 480 / 50  # the whole image, and the part of the mask below it
        y, x = round(39 * scale), round(40 * scale)
        np.testing.assert_allclose(picture[y, x], 0.4 * np.array(class_color(0)), atol=2)

    def test_parts_outside_the_image_are_shown_on_gray(self, tmp_path: Path) -> None:
        nose = np.array([[[-10, 20, 2]]], dtype=np.float32)
        picture = self.picture(tmp_path, polygon=SQUARE, keypoints=nose)
        assert picture[5, 5].tolist() == [127] * 3
        assert (np.abs(picture[:, : picture.shape[1] // 8] - class_color(0)).max(axis=2) < 3).any()  # the dot

    def test_edges_of_a_polygon_without_area_are_shown(self, tmp_path: Path) -> None:
        picture = self.picture(tmp_path, polygon=[12, 12, 20, 12, 28, 12])
        assert (picture == 255).all(axis=2).any()

    def test_far_points_do_not_shrink_the_picture(self, tmp_path: Path) -> None:
        nose = np.array([[[1e6, -1e6, 2]]], dtype=np.float32)
        picture = self.picture(tmp_path, polygon=SQUARE, keypoints=nose)
        assert picture.shape[:2] == (round(480 * 60 / 75), 480)  # half an image beyond the image


def test_self_crossing_polygon_is_reported() -> None:
    bow_tie = [10, 10, 30, 30, 30, 10, 10, 30]
    assert kinds(with_masks([SQUARE, bow_tie])) == {"self-crossing polygon": [1]}


def test_outlines_of_bitmaps_with_holes_and_parts_do_not_cross() -> None:
    bitmaps = np.random.default_rng(0).random((20, 15, 15)) < 0.5
    for rings in Masks.from_bitmaps(bitmaps).polygons():
        assert not any(map(crosses_itself, rings))


def test_touching_and_repeated_points_do_not_cross() -> None:
    assert not crosses_itself(np.array([[0, 0], [4, 0], [4, 4], [4, 4], [0, 4]], dtype=float))
    assert not crosses_itself(np.array([[0, 0], [4, 0], [2, 0], [2, 4]], dtype=float))
    assert crosses_itself(np.array([[0, 0], [4, 4], [4, 0], [0, 4.0]]))


def test_keypoints_outside_are_reported() -> None:
    values = np.array(
        [
            [[12, 12, 2], [30, 30, 1]],
            [[-1, 12, 2], [0, 0, 0]],
            [[12, 12, 2], [35, 12, 2]],
        ],
        dtype=np.float32,
    )
    annotations = replace(
        annotations_of([[BOX] * 3], [(40, 50)]), keypoints=Keypoints(values, KeypointLayout(("nose", "tail")))
    )
    assert kinds(annotations) == {"keypoint outside the image": [1], "keypoint outside its box": [2]}
    (finding, _) = shape_findings({"train": annotations})
    assert finding.cases[0][0].note == "nose at -1, 12"
