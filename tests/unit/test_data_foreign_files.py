"""Files that are not what a reader expects: other formats, other XML, odd values in data.yaml, pipes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from tiny_data import BOXES, SIZES, WRITERS, coco_tree, config, voc_xml, write_coco, write_json, write_voc, write_yolo

from fcos.data import load_annotations
from fcos.data.layouts import locate
from fcos.errors import DataError

CVAT = '<annotations><image id="0" name="a.png" width="40" height="30"/></annotations>'
OTHER_FILES = {
    "a.txt": "0 .5 .5 .1 .1\n",
    "annotations": json.dumps(coco_tree()),
}


@pytest.mark.parametrize("name", OTHER_FILES)
@pytest.mark.parametrize("classes", [None, ["cat", "dog"]])
def test_annotations_in_another_format_are_reported(name: str, classes: list[str] | None, tmp_path: Path) -> None:
    root = write_yolo(tmp_path)
    (root / name).write_text(OTHER_FILES[name])
    found = f"a {Path(name).suffix} file".replace("  ", " ")
    message = rf"data\.train\.annotations=.*{name}: expected a COCO JSON file or .*YOLO.* or .*VOC.*, found {found}$"
    with pytest.raises(DataError, match=message):
        load_annotations(config(train={"annotations": root / name, "images": root / "images/train"}), "train")


@pytest.mark.parametrize(
    ("files", "found"), [([], "an empty folder"), (["a.json", "b.json"], "a.json, b.json"), (["a.png"], "a.png")]
)
def test_a_folder_without_annotations_is_reported(files: list[str], found: str, tmp_path: Path) -> None:
    root = write_yolo(tmp_path)
    (root / "other").mkdir()
    for name in files:
        (root / "other" / name).write_text("{}")
    with pytest.raises(DataError, match=rf"expected a COCO JSON file .*, found {found}$"):
        load_annotations(config(train={"annotations": root / "other", "images": root / "images/train"}), "train")


@pytest.mark.parametrize("root", ["yolo", None])
def test_yolo_needs_a_folder_of_label_files(root: str | None, tmp_path: Path) -> None:
    write_yolo(tmp_path / "yolo")
    file = write_json(tmp_path / "train.json", coco_tree())
    data = config(
        tmp_path / root if root else None,
        format="yolo",
        classes=["cat", "dog"],
        train={"annotations": file, "images": tmp_path / "yolo/images/train"},
    )
    with pytest.raises(DataError, match=r"train\.json: expected a folder of YOLO label files"):
        load_annotations(data, "train")


@pytest.mark.parametrize("name", ["labels.csv", "cvat.xml", "train.json", "a.png", "data"])
def test_a_file_that_is_no_data_set_is_reported(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(DataError, match=rf"{name}: no data set recognised\. .*found a {Path(name).suffix} ?file"):
        load_annotations(config(tmp_path / name), "train")


def test_suffixes_of_annotations_may_be_upper_case(tmp_path: Path) -> None:
    coco, voc, yolo = (WRITERS[name](tmp_path / name) for name in ("coco", "voc", "yolo"))
    for path in [coco / "train.json", *(voc / "Annotations").iterdir(), *(yolo / "labels/train").iterdir()]:
        path.rename(path.with_suffix(path.suffix.upper()))
    for form, labels, images in (
        ("coco", coco / "train.JSON", coco / "images"),
        ("voc", voc / "Annotations", voc / "JPEGImages"),
        ("yolo", yolo / "labels/train", yolo / "images/train"),
    ):
        data = config(train={"annotations": labels, "images": images}, classes=["cat", "dog"])
        located = locate(data, "train")
        assert located is not None
        assert [name for name, _ in located] == [form]
        loaded = load_annotations(data, "train")
        assert loaded is not None
        assert len(loaded.boxes) == len(BOXES)


OTHER_XML = {
    "page": ("<html>404</html>", r"expected the root element <annotation>, found <html>"),
    "cvat": (CVAT, r"expected the root element <annotation>, found <annotations>"),
    "namespace": ('<annotation xmlns="http://x"><object/></annotation>', r"expected the root element <annotation>"),
    "prefix": ('<annotation xmlns:v="x"><v:object/></annotation>', r"expected elements without XML namespaces"),
    "unknown encoding": ('<?xml version="1.0" encoding="klingon"?><annotation/>', r"not valid XML: unknown encoding"),
    "other encoding": ('<?xml version="1.0" encoding="gbk"?><annotation>€</annotation>', r"not valid XML: 'gbk' codec"),
    "empty": ("", r"not valid XML"),
    "two roots": ("<annotation/><annotation/>", r"not valid XML"),
    "entity": ("<annotation>&unknown;</annotation>", r"not valid XML"),
    "null": ("<annotation>\0</annotation>", r"not valid XML"),
}


@pytest.mark.parametrize("name", OTHER_XML)
@pytest.mark.parametrize("classes", [None, ["cat", "dog"]])
def test_xml_that_is_no_annotation_is_reported(name: str, classes: list[str] | None, tmp_path: Path) -> None:
    content, message = OTHER_XML[name]
    (write_voc(tmp_path) / "Annotations/c.xml").write_text(content)
    with pytest.raises(DataError, match=rf"c\.xml: {message}"):
        load_annotations(config(tmp_path, classes=classes), "train")
    annotations = load_annotations(config(tmp_path, classes=classes, on_error="skip"), "train")
    assert annotations is not None
    assert (len(annotations), len(annotations.boxes)) == (len(SIZES) - 1, len(BOXES))


@pytest.mark.parametrize(
    ("encoding", "name"),
    [
        *((encoding, "Bär") for encoding in ("utf-8", "utf-8-sig", "utf-16", "iso-8859-1", "windows-1252")),
        *((encoding, "熊") for encoding in ("utf-8", "GBK", "gb2312", "gb18030", "big5", "shift_jis", "euc-jp")),
    ],
)
def test_usual_encodings_of_xml_are_read(encoding: str, name: str, tmp_path: Path) -> None:
    declared = {"utf-8-sig": "utf-8"}.get(encoding, encoding)
    xml = voc_xml("c.png", [(name, (1, 1, 9, 9))])
    text = f'<?xml version="1.0" encoding="{declared}"?>{xml}'
    (write_voc(tmp_path) / "Annotations/c.xml").write_text(text, encoding=encoding)
    annotations = load_annotations(config(tmp_path), "train")
    assert annotations is not None
    assert set(annotations.class_names) == {name, "cat", "dog"}


@pytest.mark.parametrize(
    "content", [b"", b"<html/>", '<?xml version="1.0" encoding="utf-16"?><annotation/>'.encode("utf-16")]
)
def test_a_damaged_first_file_does_not_hide_the_format(content: bytes, tmp_path: Path) -> None:
    (write_voc(tmp_path) / "Annotations/0.xml").write_bytes(content)
    annotations = load_annotations(config(tmp_path, on_error="skip"), "train")
    assert annotations is not None
    assert len(annotations.boxes) == len(BOXES)


@pytest.mark.parametrize("names", ["{0: cat, 1: dog}", "{'0': cat, '1': dog}", "{1: dog, 0: cat}", "[cat, dog]"])
def test_class_names_are_read_in_label_order(names: str, tmp_path: Path) -> None:
    (write_yolo(tmp_path) / "data.yaml").write_text(f"train: images/train\nnames: {names}\n")
    annotations = load_annotations(config(tmp_path), "train")
    assert annotations is not None
    assert annotations.class_names == ("cat", "dog")


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{previous}'] * 9)}]\n"
    for previous, name in zip("abcdefgh", "bcdefghi", strict=True)
)
"""Aliases that expand to 9^9 words."""


@pytest.mark.parametrize(
    "names",
    [
        *("{0: cat, x: dog}", "{0: cat, null: dog}", "{0: cat, 1.5: dog}", "{0: cat, true: dog}", "{1: cat, 2: dog}"),
        *("{0: cat, 2020-01-01: dog}", "[cat, [dog]]", "[cat, {dog: 1}]", "[cat, cat]", "cat", "7"),
    ],
)
def test_odd_class_names_are_reported_in_one_line(names: str, tmp_path: Path) -> None:
    (write_yolo(tmp_path) / "data.yaml").write_text(f"train: images/train\nnames: {names}\n")
    with pytest.raises(DataError, match=r"data\.yaml: names must list unique class names, or map 0, 1") as caught:
        load_annotations(config(tmp_path), "train")
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train: {a: b}", r"train: expected a path, found {'a': 'b'}"),
        ("train: [[images/train]]", r"train: expected a path, found \['images/train'\]"),
        ("train: images/train\npath: [a]", r"path: expected a path, found \['a'\]"),
        (f"{BOMB}train: *i", r"not valid YAML: its aliases expand to more than 100000 values"),
        ("names: &n [*n]\ntrain: x", r"not valid YAML"),
        (f"train: {'n' * 300}", r"'n+ does not exist"),
        ('train: "a\\0b"', r"does not exist"),
    ],
)
def test_odd_paths_in_data_yaml_are_reported(line: str, message: str, tmp_path: Path) -> None:
    (write_yolo(tmp_path) / "data.yaml").write_text(f"{line}\nnames: [cat, dog]\n")
    with pytest.raises(DataError, match=message):
        load_annotations(config(tmp_path), "train")


@pytest.mark.parametrize("length", [300, 5000])
def test_a_listed_name_that_is_too_long_is_reported(length: int, tmp_path: Path) -> None:
    yolo, voc = write_yolo(tmp_path / "yolo"), write_voc(tmp_path / "voc")
    (yolo / "train.txt").write_text(f"images/train/a.png\nimages/train/{'n' * length}.png\n")
    (yolo / "data.yaml").write_text("train: train.txt\nnames: [cat, dog]\n")
    (voc / "ImageSets/Main/train.txt").write_text(f"a\n{'n' * length}\n")
    for root in (yolo, voc):
        with pytest.raises(DataError, match=r"n: .*[Ff]ile name too long|n\.(png|xml).*: .*[Ff]ile name too long"):
            load_annotations(config(root), "train")
        annotations = load_annotations(config(root, on_error="skip"), "train")
        assert annotations is not None
        assert len(annotations) == 1


@pytest.mark.parametrize("name", ["images/a.png", "train.json"])
def test_pipes_are_reported(name: str, tmp_path: Path) -> None:
    write_coco(tmp_path)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match=rf"{name}.*: cannot be read: not a regular file"):
        load_annotations(config(train={"annotations": tmp_path / "train.json", "images": tmp_path / "images"}), "train")


@pytest.mark.parametrize("name", ["JPEGImages/a.png", "Annotations/a.xml"])
def test_pipes_in_a_voc_folder_are_reported(name: str, tmp_path: Path) -> None:
    write_voc(tmp_path)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError):
        load_annotations(config(tmp_path), "train")


@pytest.mark.parametrize("row", ["cat .5 .5 .2 .2", "0,.5,.5,.2,.2", "0 .5 .5 .2", "\n\ncat 1 2 3 4", "0 .5 x .2 .2"])
@pytest.mark.parametrize("folder", ["images/train", "labels/train", "labels"])
def test_rows_that_are_no_yolo_labels_are_named(row: str, folder: str, tmp_path: Path) -> None:
    root = write_yolo(tmp_path)
    (root / "data.yaml").unlink()
    for name in ("a.txt", "b.txt"):
        (root / "labels/train" / name).unlink()
    (root / folder / "a.txt").write_text(row)
    number = 1 + row.count("\n")
    with pytest.raises(DataError, match=rf"no data set recognised.*{folder}/a\.txt, line {number}: expected .*found '"):
        load_annotations(config(root), "train")


def test_only_broken_rows_are_reported_if_others_are_labels(tmp_path: Path) -> None:
    root = write_yolo(tmp_path)
    (root / "data.yaml").unlink()
    for file in (root / "labels/train").iterdir():
        file.write_text(f"class cx cy width height\n{file.read_text()}")
    with pytest.raises(DataError, match=r"a\.txt, line 1: expected `class cx cy width height` in numbers"):
        load_annotations(config(root, classes=["cat", "dog"]), "train")
    annotations = load_annotations(config(root, classes=["cat", "dog"], on_error="skip"), "train")
    assert annotations is not None
    assert len(annotations.boxes) == len(BOXES)


NO_ANNOTATIONS = (
    r"no annotations next to the images; set data\.train\.annotations=FILE .* data\.train\.annotations=FOLDER"
)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": {"images": "images"}}, rf"data\.train\.images=.*images: {NO_ANNOTATIONS}"),
        ({"train": {"image_list": "list.txt"}}, r"data\.train: no data; set data\.train\.annotations=FILE"),
        ({"train": {"images": "images"}, "format": "coco"}, r"no annotations are given; set .*to a COCO JSON file"),
        ({"train": {"images": "list.txt", "annotations": "train.json"}}, r"list\.txt: expected the folder .* a file"),
        ({"train": {"images": "images"}, "format": "yolo"}, r"images: label files contain no class names; set data\."),
    ],
)
def test_images_without_annotations_are_reported(
    options: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(write_coco(tmp_path))
    Path("list.txt").write_text("a.png\n")
    with pytest.raises(DataError, match=message):
        load_annotations(config(None, **options), "train")


@pytest.mark.parametrize("form", ["yolo", "voc"])
def test_annotations_next_to_the_given_images_are_read(form: str, tmp_path: Path) -> None:
    root = WRITERS[form](tmp_path)
    folder, suffix = ("images/train", "txt") if form == "yolo" else ("JPEGImages", "xml")
    for file in root.rglob(f"[ab].{suffix}"):
        file.rename(root / folder / file.name)
    annotations = load_annotations(config(train={"images": root / folder}, classes=["cat", "dog"]), "train")
    assert annotations is not None
    assert len(annotations.boxes) == len(BOXES)
