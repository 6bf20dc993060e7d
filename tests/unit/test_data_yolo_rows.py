"""Rows of YOLO label files: boxes, polygons, poses, and boxes with a confidence or track id."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from tiny_data import config, write_yolo

from fcos.data import load_annotations
from fcos.errors import DataError

BOX = [0.4, 0.4, 0.6, 0.6]
"""Box `.5 .5 .2 .2` as XYXY in fractions of the image."""
KEYPOINTS = ".45 .45 .55 .45 .55 .55"
LONG = "0 .1 .2 .3 .2 .3 .4 .1 .4"
LONG_BOX = [0.1, 0.2, 0.3, 0.4]


def boxes(root: Path, lines: Sequence[str], *, yaml: str = "", **options: str) -> list[list[float]]:
    """Return the boxes, as fractions, of a data set with the given label rows, one per line of one label file."""
    write_yolo(root)
    (root / "labels/train/a.txt").write_text("\n".join(lines))
    (root / "labels/train/b.txt").unlink()
    with (root / "data.yaml").open("a") as file:
        file.write(yaml)
    annotations = load_annotations(config(root, **options), "train")
    assert annotations is not None
    return (annotations.boxes / [40, 30, 40, 30]).round(4).tolist()


@pytest.mark.parametrize(
    ("shape", "keypoints"),
    [
        ("[3, 2]", KEYPOINTS),
        ("[2, 3]", ".45 .45 2 .55 .55 1"),
        ("[2, 3]", ".45 .45 2 0 0 0"),
        ("[1, 2]", ".45 .45"),
        ("[1, 3]", ".9 .9 2"),
    ],
)
def test_yolo_pose_rows_are_read_as_boxes(shape: str, keypoints: str, tmp_path: Path) -> None:
    assert boxes(tmp_path, [f"0 .5 .5 .2 .2 {keypoints}"], yaml=f"kpt_shape: {shape}\n") == [BOX]


@pytest.mark.parametrize("ending", [".9", "17", ".9 17", ".9 1", ".9 0", "1 3", ".9 -1", "0.9 17.0", "17 .9", "1.0 1"])
@pytest.mark.parametrize("other", [[], ["1 .5 .5 .2 .2"], ["1 .5 .5 .2 .2 .75"]])
def test_a_confidence_and_a_track_id_are_ignored(ending: str, other: list[str], tmp_path: Path) -> None:
    assert boxes(tmp_path, [f"0 .5 .5 .2 .2 {ending}", *other]) == [BOX] * (1 + len(other))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("0 .1 .1 .9 .1 .9 .8", [0.1, 0.1, 0.9, 0.8]),
        ("0 0 0 1 0 1 1", [0, 0, 1, 1]),
        ("0 .1 .1 .9 .1 .9 1", [0.1, 0.1, 0.9, 1]),
        ("0 .1 .2 .3 .2 .3 .4 .1 .4", [0.1, 0.2, 0.3, 0.4]),
        ("0 .5 .1 .9 .5 .5 .9 .1 .5 .2 .2", [0.1, 0.1, 0.9, 0.9]),
        ("0 -0.004 .2 1.004 .2 .3 .4", [0, 0.2, 1, 0.4]),
    ],
)
def test_polygons_are_read_as_their_bounding_boxes(row: str, expected: list[float], tmp_path: Path) -> None:
    assert boxes(tmp_path, [row]) == [expected]


def test_boxes_and_polygons_of_any_length_may_be_mixed(tmp_path: Path) -> None:
    lines = ["0 .5 .5 .2 .2", "0 .1 .1 .9 .1 .9 .8", "0 .1 .2 .3 .2 .3 .4 .1 .4", f"0 .5 .5 .2 .2 {KEYPOINTS}"]
    assert boxes(tmp_path, lines) == [BOX, [0.1, 0.1, 0.9, 0.8], [0.1, 0.2, 0.3, 0.4], [0.2, 0.2, 0.55, 0.55]]


def test_one_row_does_not_decide_for_all(tmp_path: Path) -> None:
    triangles = ["0 .1 .1 .9 .1 .9 .8", "0 .2 .1 .9 .1 .9 .8"]
    assert boxes(tmp_path, [*triangles, "0 .1 .1 .9 .1 1.2 3"], on_error="skip") == [
        [0.1, 0.1, 0.9, 0.8],
        [0.2, 0.1, 0.9, 0.8],
    ]


OUTLIER = "0 .5 .5 .2 .2 .45 .45 .9 .45 .55 .55"
POSE = f"0 .5 .5 .2 .2 {KEYPOINTS}"


@pytest.mark.parametrize(
    "lines",
    [
        [POSE, OUTLIER],
        [POSE, POSE, "0 .5 .5 .2 .2 .9 .9 .95 .9 .9 .95"],
        [POSE, "0 .5 .5 .2 .2", "0 .5 .5 .2 .2 .9"],
        [POSE, POSE, "0 .5 .5 .2 .2 .5 .5 1.2 .5 .5 .5"],
        [POSE, POSE, LONG],
        ["0 .5 .5 .2 .2 .5 .5"] * 2 + ["0 .5 .5 .2 .2 .7 .5"],
        ["0 .5 .5 .2 .2 .45 .45 1 .55 .55 0", "0 .5 .5 .2 .2 .45 .45 1 .9 .55 1"],
        ["0 .5 .5 .2 .2 0 0 0 0 0 0"],
    ],
)
def test_poses_with_outliers_or_beside_plain_boxes_need_the_option(lines: list[str], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"may be polygons .* or boxes followed by keypoints"):
        boxes(tmp_path / "auto", lines)
    assert boxes(tmp_path / "boxes", lines, yolo_rows="boxes")[0] == BOX


@pytest.mark.parametrize("corners", [".4 .4 .6 .4 .6 .6 .4 .6", ".5 .4 .6 .5 .5 .6 .4 .5", ".6 .6 .4 .6 .4 .4 .6 .4"])
def test_oriented_boxes_are_polygons_wherever_they_are(corners: str, tmp_path: Path) -> None:
    assert boxes(tmp_path, [f"0 {corners}"] * 3) == [BOX] * 3


@pytest.mark.parametrize("keypoints", [KEYPOINTS, ".45 .45 1 .55 .55 1", ".45 .45 2 .55 .55 1", ".5 .5 1", "0 0 .5 .5"])
def test_rows_that_are_poses_or_polygons_need_the_option(keypoints: str, tmp_path: Path) -> None:
    count = 4 + len(keypoints.split())
    message = rf"labels: 2 rows with {count} numbers .* polygons.* boxes.*yolo_rows=polygons or data\.yolo_rows=boxes"
    with pytest.raises(DataError, match=f"{message}.*kpt_shape"):
        boxes(tmp_path, [f"0 .5 .5 .2 .2 {keypoints}"] * 2)


def test_the_option_decides_how_rows_are_read(tmp_path: Path) -> None:
    row = f"0 .5 .5 .2 .2 {KEYPOINTS}"
    assert boxes(tmp_path / "a", [row], yolo_rows="boxes") == [BOX]
    assert boxes(tmp_path / "b", [row], yolo_rows="polygons") == [[0.2, 0.2, 0.55, 0.55]]
    assert boxes(tmp_path / "c", ["0 .5 .5 .2 .2 .9 1"], yolo_rows="polygons") == [[0.2, 0.2, 0.9, 1]]
    yaml = "kpt_shape: [3, 2]\n"
    assert boxes(tmp_path / "d", [row], yaml=yaml, yolo_rows="polygons") == [[0.2, 0.2, 0.55, 0.55]]


def test_rows_are_polygons_if_the_points_of_many_are_outside_their_boxes(tmp_path: Path) -> None:
    found = boxes(tmp_path, [f"0 .5 .5 .2 .2 {KEYPOINTS}", "0 .1 .1 .2 .1 .3 .2 .2 .3 .1 .2"])
    assert found == [[0.2, 0.2, 0.55, 0.55], [0.1, 0.1, 0.3, 0.3]]


@pytest.mark.parametrize("row", ["50 60 20 30", "0 0 40 30", "50 60 70 60 70 90 50 90", "50 60 20 30 .9 17"])
def test_labels_in_pixels_are_reported_as_such(row: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"a\.txt, line 1: expected fractions of the image .*'0 {row}'.* pixels\?"):
        boxes(tmp_path, [f"0 {row}"])


@pytest.mark.parametrize("row", [".5 .5 .2 .2 .4 .4 1.2 .5", ".5 .5 .2 .2 .9 .9 2", ".5 .5 .2 .2 nan .4 .5 .5"])
def test_rows_without_a_reading_are_reported(row: str, tmp_path: Path) -> None:
    message = rf"a\.txt, line 2: expected a box .*polygon.* found '0 {row}'.*data\.yolo_rows=boxes"
    with pytest.raises(DataError, match=message):
        boxes(tmp_path, ["0 .5 .5 .2 .2", f"0 {row}"])


def test_a_class_may_be_written_as_a_decimal_number(tmp_path: Path) -> None:
    assert boxes(tmp_path, ["1.0 .5 .5 .2 .2"]) == [BOX]


@pytest.mark.parametrize("others", [[], ["0 .5 .5 .2 .2"], ["0 .5 .5 .2 .2 .9"] * 2])
def test_triangles_beside_longer_polygons_are_not_boxes_with_a_confidence(others: list[str], tmp_path: Path) -> None:
    found = boxes(tmp_path, ["0 .5 .5 .3 .3 1 .4", LONG, *others])
    assert found == [[0.3, 0.3, 1, 0.5], LONG_BOX, *[BOX] * len(others)]


def test_a_confidence_and_a_track_id_beside_polygons_are_ignored(tmp_path: Path) -> None:
    assert boxes(tmp_path, ["0 .5 .5 .2 .2 .9 17", "0 .5 .5 .2 .2 .8 1", "0 .5 .5 .2 .2 .9 3", LONG]) == [
        *[BOX] * 3,
        LONG_BOX,
    ]


def test_a_broken_long_row_does_not_turn_confidences_into_polygons(tmp_path: Path) -> None:
    assert boxes(tmp_path, ["0 .5 .5 .2 .2 .9 1"] * 2 + ["0 .5 .5 .2 .2 .9 17 3"], on_error="skip") == [BOX] * 2
