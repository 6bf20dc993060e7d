"""Detection tile by tile: no object is lost or found twice at a border."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from detectors import tiny_detector
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from fcos import ConfigError, Detector, Instances
from fcos.boxes import iou
from fcos.inference.tiling import Region, Tiling, detect_in_tiles

WIDTH, HEIGHT = 330, 250
TILING = Tiling(100, 0.3)  # a margin of 2 pixels: objects up to 26 pixels are whole in a tile
Box = tuple[int, int, int, int]


def visible_parts(boxes: Sequence[Box], labels: Sequence[int], *, blind_to_all: bool = False):
    """Return a detector that sees the visible part of every object, or nothing in the whole picture."""

    def detect(regions: Sequence[Region]) -> list[Instances]:
        found: list[Instances] = []
        for x1, y1, x2, y2 in regions:
            origin, limit = torch.tensor([x1, y1] * 2), torch.tensor([x2 - x1, y2 - y1] * 2)
            shown = torch.minimum((torch.tensor(boxes).reshape(-1, 4) - origin).clamp(min=0), limit).float()
            is_visible = (shown[:, 2:] > shown[:, :2]).all(dim=1)
            if blind_to_all and (x2 - x1, y2 - y1) == (WIDTH, HEIGHT):
                is_visible[:] = False
            part = (shown[:, 2:] - shown[:, :2]).prod(dim=1)
            scores = 0.5 + part / 2e5  # the larger the part, the surer
            instances = Instances(shown, torch.tensor(labels, dtype=torch.int64), scores, (y2 - y1, x2 - x1))
            found.append(instances[is_visible])
        return found

    return detect


def run(boxes: Sequence[Box], labels: Sequence[int], **options: bool) -> Instances:
    detect = visible_parts(boxes, labels, **options)
    return detect_in_tiles(detect, (HEIGHT, WIDTH), TILING, nms_threshold=0.6, batch_size=4)


@st.composite
def objects(draw: st.DrawFn, longest: int = 150) -> tuple[list[Box], list[int]]:
    """Draw objects of up to one and a half tiles; those of the same class overlap little."""
    boxes: list[Box] = []
    for _ in range(draw(st.integers(0, 6))):
        width, height = draw(st.integers(3, longest)), draw(st.integers(3, longest))
        x, y = draw(st.integers(0, WIDTH - width)), draw(st.integers(0, HEIGHT - height))
        boxes.append((x, y, x + width, y + height))
    labels = [draw(st.integers(0, 1)) for _ in boxes]
    overlaps = iou(torch.tensor(boxes).reshape(-1, 4).float(), torch.tensor(boxes).reshape(-1, 4).float())
    is_same = torch.tensor(labels)[:, None] == torch.tensor(labels)[None]
    assume(not bool(((overlaps > 0.5) & is_same).triu(1).any()))
    return boxes, labels


@settings(max_examples=150, deadline=None, derandomize=True)
@given(objects())
def test_every_object_is_found_once(drawn: tuple[list[Box], list[int]]) -> None:
    boxes, labels = drawn
    found = run(boxes, labels)
    assert sorted(zip(found.labels.tolist(), found.boxes.tolist(), strict=True)) == sorted(
        zip(labels, [list(map(float, box)) for box in boxes], strict=True)
    )
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    assert found.size == (HEIGHT, WIDTH)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(objects(longest=26))
def test_objects_that_fit_into_the_overlap_need_no_whole_picture(drawn: tuple[list[Box], list[int]]) -> None:
    boxes, labels = drawn
    found = run(boxes, labels, blind_to_all=True)
    assert sorted(zip(found.labels.tolist(), found.boxes.tolist(), strict=True)) == sorted(
        zip(labels, [list(map(float, box)) for box in boxes], strict=True)
    )


def test_object_of_one_and_a_half_tiles_comes_from_the_whole_picture() -> None:
    large = (40, 60, 190, 210)
    found = run([large], [1])
    assert found.boxes.tolist() == [list(map(float, large))]
    parts = run([large], [1], blind_to_all=True)
    assert len(parts) > 0  # its parts are not lost
    assert bool((parts.boxes[:, 2:] <= torch.tensor([190.0, 210.0])).all())


def test_a_small_object_on_a_large_one_of_the_same_class_is_kept() -> None:
    boxes = [(40, 60, 190, 210), (95, 95, 110, 110)]
    assert len(run(boxes, [1, 1])) == 2


@pytest.mark.parametrize(
    ("length", "starts"),
    [(100, [0]), (60, [0]), (101, [0, 1]), (170, [0, 70]), (171, [0, 70, 71]), (240, [0, 70, 140])],
)
def test_tiles_cover_the_picture_and_stay_inside(length: int, starts: list[int]) -> None:
    regions = TILING.regions((50, length))
    assert [x1 for x1, *_ in regions] == starts
    assert {x2 - x1 for x1, _, x2, _ in regions} == {min(100, length)}
    assert regions[-1][2] == length


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile": 0}, "tile: expected an integer of at least 32, found 0"),
        ({"tile": 64.5}, "tile: expected an integer of at least 32"),
        ({"tile": 64, "overlap": 1.0}, "overlap: expected a number from 0 to 0.9, found 1.0"),
    ],
)
def test_wrong_tiles_are_explained(detector: Detector, options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        detector.predict(Image.new("RGB", (64, 48)), **options)  # pyright: ignore[reportCallIssue, reportArgumentType]


def test_pictures_that_fit_into_a_tile_are_detected_as_usual(detector: Detector) -> None:
    picture = Image.radial_gradient("L").convert("RGB").resize((120, 80))
    tiled, usual = detector.predict(picture, tile=120), detector.predict(picture)
    assert tiled.boxes.tolist() == usual.boxes.tolist()


def test_detections_of_a_large_picture_are_in_its_pixels(detector: Detector) -> None:
    picture = Image.radial_gradient("L").convert("RGB").resize((300, 200))
    limited = detector.predict(picture, tile=120, overlap=0.25, max_detections=5, threshold=0)
    found = detector.predict(picture, tile=120, overlap=0.25, threshold=0)
    streamed = next(iter(detector.predict([picture], tile=120, overlap=0.25, threshold=0, stream=True)))
    assert found.size == (200, 300)
    assert bool((found.boxes[:, 2:] <= torch.tensor([300.0, 200.0])).all())
    assert found.boxes[:, 2].max() > 240  # also in the last tile
    assert len(found) > 20  # the limit of a detector applies to each tile
    assert len(limited) == 5
    torch.testing.assert_close(streamed.boxes, found.boxes)


def test_a_tile_is_detected_like_a_picture() -> None:
    detector = tiny_detector()
    picture = Image.radial_gradient("L").convert("RGB").resize((200, 100))
    first = detector.predict(picture.crop((0, 0, 100, 100)), threshold=0.3)
    found = detector.predict(picture, tile=100, overlap=0.0, threshold=0.3)
    inner = first[first.boxes[:, 2] < 97]
    assert len(inner)
    overlaps = iou(inner.boxes, found.boxes)
    assert bool((overlaps.amax(dim=1) > 0.59).all())  # itself, or a better box of the whole picture
