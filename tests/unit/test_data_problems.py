"""Mistakes in the data raise an error with file and id at the start, or are skipped with a warning."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console
from tiny_data import SIZES, WRITERS, coco_tree, config, voc_xml, write_coco, write_voc, write_yolo

from fcos.config import Config, DataConfig
from fcos.data import load_annotations
from fcos.doctor.check import check as check_up
from fcos.doctor.findings import Report
from fcos.doctor.terminal import render
from fcos.errors import DataError

Tree = dict[str, Any]
NAN, INF = float("nan"), float("inf")


def _set(section: str, position: int, key: str, value: Any) -> Callable[[Tree], None]:
    def change(tree: Tree) -> None:
        tree[section][position][key] = value

    return change


def _add(section: str, entry: Any) -> Callable[[Tree], None]:
    def change(tree: Tree) -> None:
        tree[section].append(entry)

    return change


COCO_MISTAKES = {
    "nan in box": (_set("annotations", 0, "bbox", [1, NAN, 3, 4]), "annotation 100.*four finite numbers", 2),
    "infinite box": (
        _set("annotations", 0, "bbox", [1, -INF, 3, INF]),
        "annotation 100.*four finite numbers",
        2,
    ),
    "huge number in box": (
        _set("annotations", 0, "bbox", [1, 2, 10**400, 4]),
        "annotation 100.*four finite numbers",
        2,
    ),
    "box of three numbers": (_set("annotations", 0, "bbox", [1, 2, 3]), "annotation 100.*four finite numbers", 2),
    "missing box": (_set("annotations", 0, "bbox", None), r"annotation 100: expected bbox \(a list", 2),
    "empty box": (_set("annotations", 0, "bbox", [5, 5, 0, 7]), r"annotation 100: .*5 5 5 12.*has no area", 2),
    "inverted box": (_set("annotations", 0, "bbox", [5, 5, -3, 7]), "annotation 100: .*has x2 < x1 or y2 < y1", 2),
    "box outside the image": (_set("annotations", 0, "bbox", [41, 5, 3, 7]), "annotation 100: .*outside the image", 2),
    "duplicate annotation id": (
        _set("annotations", 0, "id", 99),
        "annotation 99: another annotation has the same id",
        2,
    ),
    "unknown category id": (
        _set("annotations", 0, "category_id", 5),
        "annotation 100: its category_id 5 is not the id of any category in the file",
        2,
    ),
    "unknown image id": (
        _set("annotations", 0, "image_id", 5),
        "annotation 100: its image_id 5 is not the id of any image in the file",
        2,
    ),
    "image id as text": (
        _set("annotations", 0, "image_id", "ten"),
        r"annotation 100: .*image_id \(an integer .*, found 'ten'",
        2,
    ),
    "huge annotation id": (_set("annotations", 0, "id", 2**70), r"expected id \(an integer >= 0\)", 2),
    "negative annotation id": (_set("annotations", 0, "id", -1), r"annotation -1: expected id \(an integer >= 0\)", 2),
    "annotation not an object": (_add("annotations", 7), "annotation at position 3: expected an object, found 7", 3),
    "duplicate image id": (_add("images", {"id": 10, "file_name": "b.png"}), "image 10: another image", 3),
    "image without file name": (
        _add("images", {"id": 40}),
        r"image 40: expected file_name \(a string\), found none",
        3,
    ),
    "missing image file": (_add("images", {"id": 40, "file_name": "d.png"}), r"d\.png, image 40: no such file", 3),
    "wrong image size": (_set("images", 0, "width", 80), r"a\.png, image 10: .*says 80x30 but the image is 40x30", 1),
}


@pytest.mark.parametrize("mistake", COCO_MISTAKES)
def test_invalid_coco_entry_raises_or_is_skipped(
    mistake: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change, message, boxes = COCO_MISTAKES[mistake]
    tree = coco_tree()
    change(tree)
    write_coco(tmp_path, tree)
    with pytest.raises(DataError, match=rf"(?s){message}.*data\.on_error=skip"):
        load_annotations(config(tmp_path), "train")
    annotations = load_annotations(config(tmp_path, on_error="skip"), "train")
    assert annotations is not None
    assert len(annotations.boxes) == boxes
    assert re.search(r"skipped in the train split: [a-z ]+\n", caplog.text)  # one problem


def test_area_too_large_for_float_is_replaced_by_box_area(tmp_path: Path) -> None:
    tree = coco_tree()
    tree["annotations"][0]["area"] = 10**400
    annotations = load_annotations(config(write_coco(tmp_path, tree)), "train")
    assert annotations is not None
    assert annotations.areas[0] == 10 * 20  # area of the box


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "expected a COCO file, .*found list"),
        ('{"images": []}', "expected a COCO file, .*found images"),
        (json.dumps({**coco_tree(), "categories": []}), "expected annotations with at least one class, found none"),
        (json.dumps({**coco_tree(), "categories": [{"id": 1}]}), "every category needs"),
        (json.dumps({**coco_tree(), "categories": [{"id": i, "name": "x"} for i in (6, 7)]}), "the same name: 'x'"),
        (json.dumps({**coco_tree(), "images": [], "annotations": []}), "no usable image"),
    ],
)
@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_unusable_coco_file_raises_even_with_on_error_skip(
    text: str, message: str, on_error: str, tmp_path: Path
) -> None:
    write_coco(tmp_path)
    (tmp_path / "train.json").write_text(text)
    with pytest.raises(DataError, match=rf"train\.json.*{message}"):
        load_annotations(config(tmp_path, on_error=on_error), "train")


@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_error_does_not_suggest_skipping_if_no_image_would_remain(on_error: str, tmp_path: Path) -> None:
    write_coco(tmp_path, {**coco_tree(), "images": [], "annotations": []})
    with pytest.raises(DataError, match=r"no usable image for train\nFix it\.$"):
        load_annotations(config(tmp_path, on_error=on_error), "train")


VOC_MISTAKES = {
    "invalid xml": ("<annotation", r"a\.xml: not valid XML", 1),
    "missing class name": (voc_xml("a.png", [(" ", (1, 1, 5, 5))]), r"a\.xml, object 1: has no name", 1),
    "missing box": (
        "<annotation><object><name>cat</name></object></annotation>",
        "object 1: .*xmin, ymin, xmax, ymax",
        1,
    ),
    "text instead of number": (
        voc_xml("a.png", [("cat", (1, 1, 5, 5))]).replace("<xmax>5", "<xmax>?"),
        "object 1: bndbox",
        1,
    ),
    "empty box": (voc_xml("a.png", [("cat", (1, 1, 9, 9)), ("cat", (5, 5, 5, 5))]), "object 2: .*has no area", 2),
    "inverted box": (voc_xml("a.png", [("cat", (5, 5, 3, 9))]), "object 1: .*has x2 < x1 or y2 < y1", 1),
}


@pytest.mark.parametrize("mistake", VOC_MISTAKES)
def test_invalid_voc_annotation_raises_or_is_skipped(mistake: str, tmp_path: Path) -> None:
    xml, message, boxes = VOC_MISTAKES[mistake]
    (write_voc(tmp_path) / "Annotations/a.xml").write_text(xml)
    with pytest.raises(DataError, match=message):
        load_annotations(config(tmp_path), "train")
    annotations = load_annotations(config(tmp_path, on_error="skip"), "train")
    assert annotations is not None
    assert len(annotations.boxes) == boxes


@pytest.mark.parametrize("width", ["99999999999", pytest.param("9" * 5000, id="5000 digits"), "-40", "", "wide"])
def test_invalid_voc_image_size_is_replaced_by_the_actual_size(width: str, tmp_path: Path) -> None:
    xml = voc_xml("a.png", [("cat", (1, 1, 9, 9))]).replace("<width>40", f"<width>{width}")
    (write_voc(tmp_path) / "Annotations/a.xml").write_text(xml)
    annotations = load_annotations(config(tmp_path), "train")
    assert annotations is not None
    assert annotations.sizes[0].tolist() == [30, 40]


def test_voc_error_names_missing_xml_and_missing_image(tmp_path: Path) -> None:
    write_voc(tmp_path)
    (tmp_path / "Annotations/a.xml").unlink()
    (tmp_path / "JPEGImages/b.png").unlink()
    with pytest.raises(DataError, match=r"(?s)a\.xml: no such file.*b\.png, image 1: no such file"):
        load_annotations(config(tmp_path), "train")


def test_voc_error_names_image_listed_twice(tmp_path: Path) -> None:
    write_voc(tmp_path)
    (tmp_path / "ImageSets/Main/train.txt").write_text("a\nb\na\n")
    with pytest.raises(DataError, match=r"train\.txt, a: is listed twice"):
        load_annotations(config(tmp_path), "train")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 nan 0.1", "line 1: .*four finite numbers"),
        ("0 0.5 0.5 1e308 0.1", "line 1: .*four finite numbers"),
        ("0 0.5 0.5 0 0.1", "line 1: .*has no area"),
        ("0 0.5 0.5 -0.1 0.1", "line 1: .*has x2 < x1 or y2 < y1"),
        ("0 1.5 0.5 0.1 0.1", "line 1: .*outside the image"),
        pytest.param(f"{'9' * 5000} .5 .5 .1 .1", "line 1: expected `class cx cy width height`", id="huge class"),
        pytest.param(f"0 0.5 0.5 {'9' * 400} 0.1", "line 1: .*four finite numbers", id="huge number"),
        ("2 0.5 0.5 0.1 0.1", r"line 1: class 2 is unknown; expected 0 to 1"),
        ("0 0.5 0.5 0.1", "line 1: expected `class cx cy width height`"),
        ("cat 0.5 0.5 0.1 0.1", "line 1: expected `class cx cy width height`"),
    ],
)
def test_invalid_yolo_label_raises_or_is_skipped(line: str, message: str, tmp_path: Path) -> None:
    (write_yolo(tmp_path) / "labels/train/a.txt").write_text(line)
    with pytest.raises(DataError, match=rf"a\.txt, {message}"):
        load_annotations(config(tmp_path), "train")
    annotations = load_annotations(config(tmp_path, on_error="skip"), "train")
    assert annotations is not None
    assert len(annotations.boxes) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: [", "not valid YAML"),
        ("train: nowhere\nnames: [a]", "'nowhere' does not exist"),
        ("train: images/train\nnames: [a, a]", "unique class names"),
        ("train: images/train\nnames: {1: a}", "map 0, 1"),
        ("train: images/train", r"data\.classes="),
        ("- a", "expected a mapping"),
    ],
)
def test_invalid_data_yaml_raises(text: str, message: str, tmp_path: Path) -> None:
    (write_yolo(tmp_path) / "data.yaml").write_text(text)
    with pytest.raises(DataError, match=message):
        load_annotations(config(tmp_path), "train")


def test_yolo_split_without_label_files_raises(tmp_path: Path) -> None:
    write_yolo(tmp_path)
    for path in (tmp_path / "labels/train").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"none of the 3 images has a label file; expected .*labels/train/a\.txt"):
        load_annotations(config(tmp_path), "train")


@pytest.mark.parametrize("form", WRITERS)
def test_truncated_image_raises_or_is_skipped(form: str, tmp_path: Path) -> None:
    WRITERS[form](tmp_path)
    image = next(tmp_path.rglob("a.png"))
    image.write_bytes(image.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"a\.png, image \d+: cannot be read"):
        load_annotations(config(tmp_path), "train")
    annotations = load_annotations(config(tmp_path, on_error="skip"), "train")
    assert annotations is not None
    assert {annotations.path(i).name for i in range(len(annotations))} == {"b.png", "c.png"}
    assert len(annotations.boxes) == 1


def test_boxes_of_a_class_unknown_to_the_model_are_reported_together(tmp_path: Path) -> None:
    write_coco(tmp_path)
    with pytest.raises(DataError, match=r"2 boxes of class 'dog'; expected one of cat, bird"):
        load_annotations(config(tmp_path), "train", class_names=("cat", "bird"))


def test_duplicate_class_names_raise(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="class names must be unique, found cat, cat"):
        load_annotations(config(write_coco(tmp_path)), "train", class_names=["cat", "cat"])


def test_images_without_boxes_are_logged_as_background(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        load_annotations(config(write_coco(tmp_path)), "train")
    assert "1 of 3 images have no boxes; they are used as background" in caplog.text


def test_unknown_split_raises(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="unknown split 'dev'; expected train, val, test"):
        load_annotations(config(write_coco(tmp_path)), "dev")  # pyright: ignore[reportArgumentType]


def test_long_list_of_problems_is_truncated(tmp_path: Path) -> None:
    tree = coco_tree()
    bad = {"image_id": 10, "category_id": 7, "bbox": [1, 1, 0, 0]}
    tree["annotations"] += [{**bad, "id": 1000 + i} for i in range(50)]
    with pytest.raises(DataError, match=r"empty box \(50\)(?s:.*)and 30 more; `fcos doctor --out DIR` lists all"):
        load_annotations(config(write_coco(tmp_path, tree)), "train")


def test_box_partly_outside_the_image_is_clipped_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tree = coco_tree()
    tree["annotations"][0]["bbox"] = [-3, 5, 10, 40]
    with caplog.at_level(logging.INFO):
        annotations = load_annotations(config(write_coco(tmp_path, tree)), "train")
    assert annotations is not None
    assert annotations.boxes[0].tolist() == [0, 5, 7, 30]
    assert "train.json, annotation 100: box x1 y1 x2 y2 = -3 5 7 45" in caplog.text


@pytest.mark.parametrize("declared", [(40, 20), (20, 40)])
def test_sizes_before_and_after_the_exif_rotation_are_both_accepted(declared: tuple[int, int], tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "images").mkdir()
    Image.new("RGB", (40, 20)).save(tmp_path / "images/a.jpg", exif=exif)
    tree = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": declared[0], "height": declared[1]}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 20, 40]}],
        "categories": [{"id": 1, "name": "x"}],
    }
    (tmp_path / "train.json").write_text(json.dumps(tree))
    annotations = load_annotations(config(tmp_path), "train")
    assert annotations is not None
    assert annotations.sizes.tolist() == [[40, 20]]
    assert annotations.boxes.tolist() == [[0, 0, 20, 40]]


def check(data: DataConfig) -> Report:
    return check_up(Config(data=data))


def _text(root: Path) -> str:
    console = Console(width=300, file=io.StringIO(), record=True)
    console.print(render(check(config(root))))
    return console.export_text()


def test_doctor_finds_no_errors_in_a_valid_dataset(tmp_path: Path) -> None:
    write_coco(tmp_path)
    write_coco(tmp_path, split="val")
    report = check(config(tmp_path))
    assert not report.failed
    assert list(report.counts) == ["train", "val"]
    counts = report.counts["train"]
    assert (counts.images, counts.images_without_boxes, counts.boxes, counts.crowd) == (3, 1, 3, 0)
    assert counts.per_class == {"cat": 1, "dog": 2}


def test_doctor_lists_problems_of_every_split(tmp_path: Path) -> None:
    tree = coco_tree()
    tree["annotations"][0]["bbox"] = [5, 5, 0, 0]
    tree["annotations"][1]["iscrowd"] = 1
    write_coco(tmp_path, tree)
    write_coco(tmp_path, split="val")
    (tmp_path / "test.json").write_text("{")
    image = tmp_path / "images/b.png"
    content = bytearray(image.read_bytes())
    content[len(content) // 2] ^= 255  # damage that does not truncate
    image.write_bytes(content)
    report = check(config(tmp_path))
    assert report.failed
    assert report.counts["train"].crowd == 1
    text = _text(tmp_path)
    assert "train, errors: unreadable image, empty box" in text
    assert "train.json, annotation 100: box" in text
    assert "val, errors: unreadable image" in text
    assert "test.json: not valid JSON" in text


def test_doctor_reports_val_classes_missing_from_train(tmp_path: Path) -> None:
    tree = coco_tree()
    tree["categories"] = tree["categories"][:1]
    tree["annotations"] = tree["annotations"][:1]
    write_coco(tmp_path, tree)
    write_coco(tmp_path, split="val")
    assert any("'dog'" in p.message for p in check(config(tmp_path)).problems["val"])


def test_doctor_reports_missing_train_split(tmp_path: Path) -> None:
    write_coco(tmp_path, split="val")
    report = check(config(tmp_path))
    assert report.failed
    assert "no train split found" in _text(tmp_path)


def test_doctor_does_not_interpret_markup_in_class_names(tmp_path: Path) -> None:
    tree = coco_tree()
    tree["categories"][0]["name"] = "[red]"
    write_coco(tmp_path, tree)
    assert "[red]" in _text(tmp_path)


def test_all_images_missing_raises_even_with_on_error_skip(tmp_path: Path) -> None:
    write_coco(tmp_path)
    for name in SIZES:
        (tmp_path / "images" / name).unlink()
    with pytest.raises(DataError, match=r"missing image \(3\)"):
        load_annotations(config(tmp_path, on_error="skip"), "train")
