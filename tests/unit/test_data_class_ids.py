"""Columns of CSV files and lists of metadata.jsonl: names and ids of classes, and columns with the same meaning."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_data import SIZES, config, contents, write_images

from fcos.data import Annotations, load_annotations
from fcos.errors import DataError

CORNERS = "xmin,ymin,xmax,ymax"
BOX = "2,3,12,23"


def load(root: Path, text: str, name: str = "boxes.csv") -> Annotations:
    write_images(root, {"a.png": SIZES["a.png"]})
    (root / name).write_text(text)
    annotations = load_annotations(config(root), "train")
    assert annotations is not None
    return annotations


@pytest.mark.parametrize(
    "header",
    ["class,class_id", "label,category_id", "Category Name,Label ID", "class_name,class", "label_name,label"],
)
@pytest.mark.parametrize("is_reversed", [False, True])
def test_csv_classes_are_names_and_keep_their_ids(header: str, is_reversed: bool, tmp_path: Path) -> None:
    def row(*values: str) -> str:
        return ",".join(values[::-1] if is_reversed else values)

    lines = [f"filename,{row(*header.split(','))},{CORNERS}"]
    lines += [f"a.png,{row(name, number)},{BOX}" for name, number in (("dog", "3"), ("cat", "7"), ("dog", "3"))]
    annotations = load(tmp_path, "\n".join(lines))
    assert (annotations.class_names, annotations.category_ids) == (("cat", "dog"), (7, 3))
    assert annotations.labels.tolist() == [1, 0, 1]


def test_csv_class_without_id_gets_an_unused_one(tmp_path: Path) -> None:
    annotations = load(tmp_path, f"filename,class,class_id,{CORNERS}\na.png,cat,,{BOX}\na.png,dog,1,{BOX}\n")
    assert (annotations.class_names, annotations.category_ids) == (("cat", "dog"), (2, 1))


@pytest.mark.parametrize("column", ["class_id", "category_id", "label_id"])
def test_csv_ids_are_the_classes_if_there_are_no_names(column: str, tmp_path: Path) -> None:
    annotations = load(tmp_path, f"filename,{column},{CORNERS}\na.png,10,{BOX}\na.png,9,{BOX}\n")
    assert annotations.class_names == ("9", "10")


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ("dog,7", "the classes 'cat' and 'dog' have the same id 7"),
        ("cat,8", "class 'cat' has the ids 7 and 8; expected one id per class"),
        ("dog,x8", "expected an integer from 0 on as id of class 'dog', found 'x8'"),
        ("dog,-1", "expected an integer from 0 on as id of class 'dog', found '-1'"),
        ("dog,1e300", "expected an integer from 0 on as id of class 'dog', found '1e300'"),
    ],
)
def test_csv_ids_that_are_not_one_to_one_are_reported(second: str, message: str, tmp_path: Path) -> None:
    text = f"filename,class,class_id,{CORNERS}\na.png,cat,7,{BOX}\na.png,{second},{BOX}\n"
    with pytest.raises(DataError, match=rf"boxes\.csv, line 3: {message}"):
        load(tmp_path, text)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("filename,file_name,class", "one column for the image, found 'filename' and 'file_name'"),
        ("image,path,class", "one column for the image, found 'image' and 'path'"),
        ("filename,class,label", "one column for the class, found 'class' and 'label'"),
        ("filename,class,class_id,category_id", "one column for the class id, found 'class_id' and 'category_id'"),
        ("filename,class,class", "one column for the class, found 'class' and 'class'"),
        ("filename,class,left", "one column for the x1, found 'left' and 'xmin'"),
        ("filename,class,split,subset", "one column for the split, found 'split' and 'subset'"),
        ("filename,class,iscrowd,is_crowd", "one column for the iscrowd, found 'iscrowd' and 'is_crowd'"),
    ],
)
def test_csv_columns_with_the_same_meaning_must_agree(columns: str, message: str, tmp_path: Path) -> None:
    values = ",".join(
        "a.png" if title in ("filename", "image") else f"x{i}" for i, title in enumerate(columns.split(","))
    )
    with pytest.raises(DataError, match=rf"boxes\.csv: expected {message} with different values; remove or rename"):
        load(tmp_path, f"{columns},{CORNERS}\n{values},{BOX}\n")


@pytest.mark.parametrize("path", ["a.png", "deep/a.png", "/elsewhere/deep/a.png", r"D:\elsewhere\deep\a.png"])
@pytest.mark.parametrize("header", ["filename,path,class,label", "path,filename,label,class"])
def test_csv_columns_that_agree_are_used(header: str, path: str, tmp_path: Path) -> None:
    folder = tmp_path / "deep" if path.startswith("deep") else tmp_path
    write_images(folder, {"a.png": SIZES["a.png"]})
    names = f"a.png,{path}" if header.startswith("filename") else f"{path},a.png"
    annotations = load(tmp_path, f"{header},{CORNERS}\n{names},cat,cat,{BOX}\n")
    assert annotations.path(0).resolve() == folder / "a.png"
    assert annotations.class_names == ("cat",)


def test_csv_file_name_is_preferred_to_the_image_id(tmp_path: Path) -> None:
    annotations = load(tmp_path, f"filename,image_id,class,{CORNERS}\na.png,5,cat,{BOX}\n")
    assert contents(annotations) == {("a.png", "cat", (2, 3, 12, 23))}


def test_csv_sizes_of_box_and_image_are_told_apart(tmp_path: Path) -> None:
    extent = load(tmp_path / "a", "filename,class,x,y,width,height,image_width,image_height\na.png,cat,2,3,5,6,40,30\n")
    assert extent.boxes.tolist() == [[2, 3, 7, 9]]
    header = f"filename,class,{CORNERS},width,height,image_width,image_height"
    assert load(tmp_path / "b", f"{header}\na.png,cat,{BOX},10,20,40,30\n").boxes.tolist() == [[2, 3, 12, 23]]


@pytest.mark.parametrize(("flags", "expected"), [("1,0", True), ("0,1", True), ("0,", False)])
def test_one_csv_flag_of_several_suffices(flags: str, expected: bool, tmp_path: Path) -> None:
    annotations = load(tmp_path, f"filename,class,iscrowd,difficult,{CORNERS}\na.png,cat,{flags},{BOX}\n")
    assert annotations.crowd.tolist() == [expected]


@pytest.mark.parametrize("name", ["boxes.csv", "train.csv"])
@pytest.mark.parametrize("as_file", [False, True])
def test_columns_of_an_unsupported_csv_are_listed(name: str, as_file: bool, tmp_path: Path) -> None:
    (tmp_path / name).write_text("filename,class,cx,cy\na.png,cat,1,2\n")
    expected = "expected the columns filename, class, xmin, ymin, xmax, ymax, or x, y, w, h for the box"
    with pytest.raises(DataError, match=rf"{expected}; found filename, class, cx, cy"):
        load_annotations(config(tmp_path / name if as_file else tmp_path), "train")


def hugging_face(root: Path, **lists: object) -> Annotations:
    objects = {"bbox": [[2, 3, 10, 20]] * 2, **lists}
    return load(root, json.dumps({"file_name": "a.png", "objects": objects}), "metadata.jsonl")


@pytest.mark.parametrize(
    "lists",
    [
        {"categories": ["dog", "cat"], "category_id": [3, 7]},
        {"category_id": [3, 7], "categories": ["dog", "cat"]},
        {"categories": [3, 7], "labels": ["dog", "cat"]},
        {"category": [3, 7], "category_name": ["dog", "cat"]},
        {"label": ["dog", "cat"], "category": ["dog", "cat"], "class_id": [3, 7], "label_id": [3, 7]},
    ],
)
def test_hugging_face_classes_are_names_and_keep_their_ids(lists: dict[str, object], tmp_path: Path) -> None:
    annotations = hugging_face(tmp_path, **lists)
    assert (annotations.class_names, annotations.category_ids) == (("cat", "dog"), (7, 3))
    assert annotations.labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        (
            {"label": ["dog", "cat"], "class": ["cat", "cat"]},
            "expected one of the lists label, class, found several that differ",
        ),
        ({"label": [1, 0], "class": [0, 0]}, "expected one of the lists label, class, found several that differ"),
        ({"label": ["dog", "cat"], "boxes": [[1, 2, 3, 4]] * 2}, "expected one of the lists bbox, bboxes, boxes"),
        ({"label": ["dog", "cat"], "label_id": [3, 3]}, "the classes 'dog' and 'cat' have the same id 3"),
        ({"label": ["dog", "dog"], "label_id": [3, 4]}, "class 'dog' has the ids 3 and 4"),
        ({"label": ["dog", "cat"], "label_id": [3]}, r"found 2 classes \(label\) and 1 ids \(label_id\)"),
    ],
)
def test_contradictory_hugging_face_lists_are_reported(lists: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"metadata\.jsonl, line 1: {message}"):
        hugging_face(tmp_path, **lists)
