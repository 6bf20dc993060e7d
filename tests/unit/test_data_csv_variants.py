"""CSV files as spreadsheets and notebooks write them: row numbers, lists as boxes, decimal commas, UTF-16."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from tiny_data import config, contents, write_images

from fcos.data import load_annotations
from fcos.data.dataset import Annotations
from fcos.errors import DataError

BOXES = {
    ("a.png", "cat", (2.0, 3.0, 12.0, 23.0)),
    ("a.png", "dog", (10.0, 10.0, 40.0, 30.0)),
    ("b.png", "dog", (0.0, 8.0, 15.0, 24.0)),
}
CORNERS = ("2,3,12,23", "10,10,40,30", "0,8,15,24")
EXTENTS = ("2, 3, 10, 20", "10, 10, 30, 20", "0, 8, 15, 16")
NAMES = (("a.png", "cat", 40, 30), ("a.png", "dog", 40, 30), ("b.png", "dog", 30, 40))


def load(folder: Path, text: str | bytes, **options: Any) -> Annotations:
    write_images(folder / "images")
    (folder / "boxes.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    annotations = load_annotations(config(folder, **options), "train")
    assert annotations is not None
    return annotations


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("column", ["class_id", "label", "image", "image_path"])
def test_columns_that_number_the_rows_are_not_used(
    column: str, first: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [f"{first + i},{name},{label},{CORNERS[i]}" for i, (name, label, _, _) in enumerate(NAMES)]
    with caplog.at_level(logging.INFO, logger="fcos"):
        annotations = load(tmp_path, "\n".join([f"{column},filename,class,xmin,ymin,xmax,ymax", *rows]))
    assert contents(annotations) == BOXES
    assert annotations.category_ids == (1, 2)
    assert f"boxes.csv: {column!r}: not used, because the values number the rows" in caplog.text


def test_other_ids_of_one_class_stay_an_error(tmp_path: Path) -> None:
    text = (
        "class_id,filename,class,xmin,ymin,xmax,ymax\n1,a.png,cat,2,3,12,23\n3,a.png,dog,1,1,9,9\n2,a.png,dog,2,2,9,9"
    )
    with pytest.raises(DataError, match=r"line 4: class 'dog' has the ids 3 and 2"):
        load(tmp_path, text)


@pytest.mark.parametrize(
    ("title", "boxes"),
    [("bbox_xyxy", CORNERS), ("bbox_xywh", EXTENTS), ("BBox XYWH", EXTENTS), ("box_xyxy", CORNERS)],
)
@pytest.mark.parametrize("form", ['"[{}]"', '"({})"', '"{}"'])
def test_boxes_may_be_lists_whose_title_tells_the_format(
    title: str, boxes: tuple[str, ...], form: str, tmp_path: Path
) -> None:
    rows = [f"{name},{label},{form.format(box)}" for (name, label, _, _), box in zip(NAMES, boxes, strict=True)]
    assert contents(load(tmp_path, "\n".join([f"filename,class,{title}", *rows]))) == BOXES


@pytest.mark.parametrize("boxes", [CORNERS, EXTENTS])
def test_format_of_lists_follows_from_boxes_that_only_one_format_allows(boxes: tuple[str, ...], tmp_path: Path) -> None:
    """The box `10, 10, 40, 30`, read as x, y, width, height, extends beyond its 40x30 image, so it must be corners."""
    boxes = (*boxes[:2], "20, 8, 6, 30") if boxes is EXTENTS else boxes
    expected = BOXES
    if boxes is not CORNERS:
        expected = {box for box in BOXES if box[0] == "a.png"} | {("b.png", "dog", (20.0, 8.0, 26.0, 38.0))}
    rows = [f'{name},{w},{h},{label},"[{box}]"' for (name, label, w, h), box in zip(NAMES, boxes, strict=True)]
    assert contents(load(tmp_path, "\n".join(["image_id,width,height,class,bbox", *rows]))) == expected


@pytest.mark.parametrize("title", ["bbox", "bbox_xywh"])
def test_list_without_numbers_is_one_broken_box(title: str, tmp_path: Path) -> None:
    boxes = ("2, 3, nan, 20", "10, 10, 30, 20", "0, 8, 15, 16", "20, 8, 6, 30", "5, 5, 0, 0")
    names = (*NAMES, ("b.png", "dog", 30, 40), ("a.png", "cat", 40, 30))
    rows = [f'{name},{w},{h},{label},"[{box}]"' for (name, label, w, h), box in zip(names, boxes, strict=True)]
    text = "\n".join([f"filename,width,height,class,{title}", *rows])
    with pytest.raises(DataError) as caught:
        load(tmp_path / "stop", text)
    assert "box without numbers, empty box\n" in str(caught.value)
    assert "boxes.csv, CSV line 2: its box does not consist of four finite numbers" in str(caught.value)
    annotations = load(tmp_path / "skip", text, on_error="skip")
    assert contents(annotations) == {*BOXES, ("b.png", "dog", (20.0, 8.0, 26.0, 38.0))} - {
        ("a.png", "cat", (2.0, 3.0, 12.0, 23.0))
    }


@pytest.mark.parametrize(("title", "boxes"), [("bbox", CORNERS), ("bbox", EXTENTS), ("bbox_xywh", EXTENTS)])
def test_list_beside_the_columns_of_the_same_box_is_allowed(title: str, boxes: tuple[str, ...], tmp_path: Path) -> None:
    rows = [f'{n},{label},{CORNERS[i]},"[{boxes[i]}]"' for i, (n, label, _, _) in enumerate(NAMES)]
    assert contents(load(tmp_path, "\n".join([f"filename,class,xmin,ymin,xmax,ymax,{title}", *rows]))) == BOXES


@pytest.mark.parametrize(("title", "boxes"), [("bbox_xywh", CORNERS), ("bbox_xyxy", EXTENTS)])
def test_list_beside_the_columns_of_another_box_is_an_error(title: str, boxes: tuple[str, ...], tmp_path: Path) -> None:
    rows = [f'{n},{label},{CORNERS[i]},"[{boxes[i]}]"' for i, (n, label, _, _) in enumerate(NAMES)]
    message = rf"found two different ones in line 2: x1, y1, x2, y2 = 2 3 12 23, and '{title}' = 2 3 1. 2.; remove"
    with pytest.raises(DataError, match=message):
        load(tmp_path, "\n".join([f"filename,class,xmin,ymin,xmax,ymax,{title}", *rows]))


@pytest.mark.parametrize(
    ("boxes", "reason"),
    [
        (("1,2,8,9", "3,3,9,9"), "both are possible"),
        (("10,10,40,30", "20,8,6,20"), "some boxes are only possible as one"),
    ],
)
def test_lists_in_an_unclear_format_are_an_error_with_the_titles_to_use(
    boxes: tuple[str, str], reason: str, tmp_path: Path
) -> None:
    rows = "".join(f'a.png,40,30,cat,"[{box}]"\n' for box in boxes)
    message = rf"boxes\.csv: the lists in column 'bbox' may be .*; {reason}.*\. Rename the column to bbox_xyxy or to"
    with pytest.raises(DataError, match=message):
        load(tmp_path, f"filename,width,height,class,bbox\n{rows}")


def test_a_value_that_is_not_a_list_is_reported_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"boxes\.csv, line 3: expected four numbers as box, found \[1, 2, x, 4\]"):
        load(tmp_path, 'filename,class,bbox_xyxy\na.png,cat,"[1, 2, 3, 4]"\na.png,cat,"[1, 2, x, 4]"\n')


def test_a_row_with_an_empty_list_has_no_object(tmp_path: Path) -> None:
    annotations = load(tmp_path, 'filename,class,bbox_xyxy\na.png,cat,"[1, 2, 3, 4]"\nb.png,,[]\nc.png,,\n')
    assert len(annotations) == 3
    assert len(annotations.boxes) == 1


def test_decimal_commas_between_semicolons_are_read(tmp_path: Path) -> None:
    text = 'filename;class;xmin;ymin;xmax;ymax\na.png;"cat, small";2,5;3,25;12;23,0\n'
    assert contents(load(tmp_path, text)) == {("a.png", "cat, small", (2.5, 3.25, 12.0, 23.0))}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-8-sig"])
def test_encoding_follows_the_byte_order_mark(encoding: str, tmp_path: Path) -> None:
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    text = f"{mark}filename,class,xmin,ymin,xmax,ymax\na.png,Bär,2,3,12,23\n"
    assert contents(load(tmp_path, text.encode(encoding))) == {("a.png", "Bär", (2.0, 3.0, 12.0, 23.0))}


def test_names_with_commas_between_semicolons_are_kept(tmp_path: Path) -> None:
    text = "filename;class;xmin;ymin;xmax;ymax\na.png;3,4;2,5;3,25;12;23,0\n"
    assert contents(load(tmp_path, text)) == {("a.png", "3,4", (2.5, 3.25, 12.0, 23.0))}


def test_utf_16_without_byte_order_mark_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"boxes\.csv: not UTF-8 text \(it contains NUL characters\); save the file as"):
        load(tmp_path, "filename,class,xmin,ymin,xmax,ymax\na.png,cat,2,3,12,23\n".encode("utf-16-le"))


def test_another_encoding_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"boxes\.csv: not UTF-8 text \(at byte 42\); save the file as UTF-8"):
        load(tmp_path, "filename,class,xmin,ymin,xmax,ymax\na.png,Bär,2,3,12,23\n".encode("latin-1"))
