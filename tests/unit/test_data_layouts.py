"""Layouts that annotation tools export are recognised from the folder or file alone."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from tiny_data import (
    BOXES,
    CLASSES,
    SIZES,
    coco_tree,
    config,
    contents,
    voc_xml,
    write_images,
    write_json,
    write_yolo,
)
from tool_exports import (
    DIVIDED,
    SINGLE,
    cvat_image,
    cvat_xml,
    hugging_face,
    hugging_face_lines,
    labelme,
    labelme_tree,
    roboflow_csv,
)

from fcos.config import DataConfig
from fcos.data import load_annotations
from fcos.data.dataset import Annotations
from fcos.data.layouts import locate
from fcos.data.source import Split
from fcos.errors import DataError


def _load(data: DataConfig, split: Split = "train") -> Annotations:
    annotations = load_annotations(data, split)
    assert annotations is not None
    return annotations


def _image_names(annotations: Annotations) -> set[str]:
    return {annotations.path(i).name for i in range(len(annotations))}


@pytest.mark.parametrize("name", SINGLE)
def test_export_without_splits_is_the_training_split(name: str, tmp_path: Path) -> None:
    form, write = SINGLE[name]
    write(tmp_path)
    located = locate(config(tmp_path), "train")
    assert located is not None
    assert located[0][0] == form
    annotations = _load(config(tmp_path))
    assert contents(annotations) == set(BOXES)
    assert annotations.class_names == CLASSES
    assert _image_names(annotations) == set(SIZES)
    assert load_annotations(config(tmp_path), "val") is None
    assert load_annotations(config(tmp_path), "test") is None


@pytest.mark.parametrize("name", DIVIDED)
def test_export_with_splits_keeps_them(name: str, tmp_path: Path) -> None:
    form, write, other = DIVIDED[name]
    write(tmp_path)
    located = locate(config(tmp_path), "train")
    assert located is not None
    assert located[0][0] == form
    train = _load(config(tmp_path))
    assert contents(train) == set(BOXES)
    assert _image_names(train) == {"a.png", "b.png"}
    for split in ("val", "test"):
        loaded = load_annotations(config(tmp_path), split, class_names=train.class_names)
        assert (loaded is not None) == (split == other)
        assert loaded is None or _image_names(loaded) == {"c.png"}


def test_roboflow_csv_is_found_in_folders_of_splits(tmp_path: Path) -> None:
    roboflow_csv(tmp_path)
    assert contents(_load(config(tmp_path))) == set(BOXES)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("Label Studio COCO", "result.json"),
        ("CVAT COCO", "annotations/instances_default.json"),
        ("CVAT YOLO 1.1", "obj.data"),
        ("CVAT for images", "annotations.xml"),
        ("CSV of a split", "train_labels.csv"),
        ("CSV of keras-retinanet", "annotations.csv"),
        ("Hugging Face", "metadata.jsonl"),
    ],
)
def test_file_is_accepted_as_data_root(name: str, file: str, tmp_path: Path) -> None:
    SINGLE[name][1](tmp_path)
    assert contents(_load(config(tmp_path / file))) == set(BOXES)
    assert load_annotations(config(tmp_path / file), "val") is None


@pytest.mark.parametrize(
    ("name", "annotations"),
    [
        ("Label Studio COCO", "result.json"),
        ("LabelMe in another folder", "labels"),
        ("CVAT for images", "annotations.xml"),
        ("VOC in lower case", "annotations"),
        ("CSV of OpenImages", "boxes.csv"),
    ],
)
def test_format_of_given_annotations_is_recognised(name: str, annotations: str, tmp_path: Path) -> None:
    SINGLE[name][1](tmp_path)
    paths = {"annotations": tmp_path / annotations, "images": tmp_path / "images"}
    assert contents(_load(config(val=paths), "val")) == set(BOXES)


def test_given_annotations_of_unknown_format_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "boxes.docx").touch()
    write_images(tmp_path / "images")
    data = config(train={"annotations": tmp_path / "boxes.docx", "images": tmp_path / "images"})
    with pytest.raises(DataError, match=r"boxes\.docx: expected a COCO JSON file or .*, found a \.docx file"):
        load_annotations(data, "train")


# ---------------------------------------------------------------------------------------------- nothing is recognised


def test_unrecognised_folder_error_lists_contents_and_fills_in_the_options(tmp_path: Path) -> None:
    write_images(tmp_path / "pics")
    for name in SIZES:
        write_json(tmp_path / "marks" / f"{Path(name).stem}.json", {"regions": []})
    (tmp_path / "readme.md").touch()
    with pytest.raises(DataError) as raised:
        load_annotations(config(tmp_path), "train")
    text = str(raised.value)
    assert "no data set recognised" in text
    assert "- readme.md" in text
    assert "- marks: 3 .json files" in text
    assert "- pics: 3 .png files" in text
    assert f"data.train.annotations={tmp_path / 'marks'} data.train.images={tmp_path / 'pics'}" in text


def test_annotations_without_images_in_a_subfolder_are_not_suggested(tmp_path: Path) -> None:
    (tmp_path / "pets").mkdir()
    (tmp_path / "pets/a.xml").write_text(voc_xml("a.png", []))
    with pytest.raises(DataError) as raised:
        load_annotations(config(tmp_path), "train")
    assert "A subfolder is a data set" not in str(raised.value)
    assert "- pets: a.xml" in str(raised.value)


def test_missing_files_and_folders_suggest_the_name_beside_them(tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    for split in ("train", "val"):
        write_json(tmp_path / f"my_{split}_v2.json", coco_tree())
    for split in ("train", "val"):
        section = {"annotations": tmp_path / f"my_{split}_v3.json", "images": tmp_path / "images"}
        data = config(None, **{split: section})
        with pytest.raises(DataError, match=rf"does not exist, did you mean {tmp_path}/my_{split}_v2\.json\?$"):
            load_annotations(data, split)
    with pytest.raises(DataError, match=rf"no such data folder, did you mean {tmp_path}/images\?$"):
        load_annotations(config(tmp_path / "imgaes"), "train")
    with pytest.raises(DataError, match=r"no such data folder$"):
        load_annotations(config(tmp_path / "none/other"), "train")


def test_data_set_in_a_subfolder_is_suggested(tmp_path: Path) -> None:
    hugging_face(tmp_path / "pets")
    with pytest.raises(DataError, match=rf"A subfolder is a data set: data={tmp_path / 'pets'}"):
        load_annotations(config(tmp_path), "train")


def test_unrecognised_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "boxes.docx").touch()
    with pytest.raises(DataError, match=r"no data set recognised.*found a \.docx file"):
        load_annotations(config(tmp_path / "boxes.docx"), "train")


# ---------------------------------------------------------------------------------------------------------- LabelMe


def test_labelme_shapes_become_their_bounding_boxes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_images(tmp_path, {"a.png": SIZES["a.png"]})
    shapes = [
        {"shape_type": "polygon", "label": "cat", "points": [[2, 3], [9, 20], [5, 25]]},
        {"shape_type": "circle", "label": "dog", "points": [[20, 15], [23, 19]], "flags": {"difficult": True}},
        {"shape_type": "point", "label": "cat", "points": [[4, 4]]},
    ]
    write_json(tmp_path / "a.json", {**labelme_tree("a.png", "a.png"), "shapes": shapes})
    with caplog.at_level(logging.INFO, logger="fcos"):
        annotations = _load(config(tmp_path))
    assert contents(annotations) == {("a.png", "cat", (2, 3, 9, 25)), ("a.png", "dog", (15, 10, 25, 20))}
    assert annotations.crowd.tolist() == [False, True]
    assert "shape 3: point has no area; left out" in caplog.text


def test_labelme_image_with_the_name_of_the_json_file_is_used(tmp_path: Path) -> None:
    write_images(tmp_path, {"a.png": SIZES["a.png"]})
    write_json(tmp_path / "a.json", labelme_tree("a.png", "C:\\photos\\renamed.jpg"))
    assert contents(_load(config(tmp_path))) == set(BOXES[:2])


def test_labelme_label_that_is_no_valid_unicode_is_escaped(tmp_path: Path) -> None:
    labelme(tmp_path)
    text = (tmp_path / "a.json").read_text()
    (tmp_path / "a.json").write_text(text.replace('"cat"', '"c\\udce9t"'))
    assert "c\\udce9t" in _load(config(tmp_path)).class_names


def test_broken_labelme_shape_is_named(tmp_path: Path) -> None:
    labelme(tmp_path)
    tree = labelme_tree("a.png", "a.png")
    tree["shapes"][1]["points"] = [[1, 2], ["x", 3]]
    write_json(tmp_path / "a.json", tree)
    with pytest.raises(DataError, match=r"a\.json, shape 2: rectangle: expected points"):
        load_annotations(config(tmp_path), "train")


# ------------------------------------------------------------------------------------------------------------- CVAT


def test_cvat_shapes_become_their_bounding_boxes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_images(tmp_path / "images", {"a.png": SIZES["a.png"]})
    shapes = [
        '<box label="cat" xtl="10" ytl="10" xbr="20" ybr="14" rotation="90.00"></box>',
        '<polygon label="dog" points="2.00,3.00;9.00,20.00;5.00,25.00"></polygon>',
        '<ellipse label="dog" cx="20" cy="15" rx="4" ry="2"></ellipse>',
        '<mask label="cat" rle="1, 2" left="3" top="4" width="5" height="6"></mask>',
        '<box label="cat" xtl="0" ytl="0" xbr="9" ybr="9"><attribute name="difficult">true</attribute></box>',
        '<points label="cat" points="1,1"></points><tag label="dog"></tag>',
    ]
    (tmp_path / "annotations.xml").write_text(cvat_xml([cvat_image("a.png", 0, shapes)]))
    with caplog.at_level(logging.INFO, logger="fcos"):
        annotations = _load(config(tmp_path))
    expected = [(13, 7, 17, 17), (2, 3, 9, 25), (16, 13, 24, 17), (3, 4, 8, 10), (0, 0, 9, 9)]
    assert annotations.boxes.round(3).tolist() == [list(box) for box in expected]
    assert annotations.crowd.tolist() == [False] * 4 + [True]
    assert "1 shape without area left out" in caplog.text


def test_cvat_video_is_rejected_with_the_format_to_choose(tmp_path: Path) -> None:
    track = '<track id="0" label="cat"><box frame="0" xtl="1" ytl="1" xbr="5" ybr="5" outside="0"></box></track>'
    (tmp_path / "annotations.xml").write_text(cvat_xml([track]))
    with pytest.raises(DataError, match=r'tracks of a video.*"CVAT for images 1\.1"'):
        load_annotations(config(tmp_path), "train")


def test_broken_cvat_shape_is_named(tmp_path: Path) -> None:
    write_images(tmp_path / "images", {"a.png": SIZES["a.png"]})
    shape = '<box label="cat" xtl="one" ytl="1" xbr="5" ybr="5"></box>'
    (tmp_path / "annotations.xml").write_text(cvat_xml([cvat_image("a.png", 0, [shape])]))
    with pytest.raises(DataError, match=r"annotations\.xml, image a\.png, shape 1: invalid coordinates of a box"):
        load_annotations(config(tmp_path), "train")


# -------------------------------------------------------------------------------------------------------------- CSV


def test_csv_flag_marks_crowd(tmp_path: Path) -> None:
    write_images(tmp_path)
    rows = "a.png,cat,2,3,12,23,1\na.png,dog,10,10,40,30,0\n"
    (tmp_path / "boxes.csv").write_text(f"filename,class,xmin,ymin,xmax,ymax,difficult\n{rows}")
    assert _load(config(tmp_path)).crowd.tolist() == [True, False]


def test_broken_csv_row_is_named(tmp_path: Path) -> None:
    write_images(tmp_path)
    (tmp_path / "boxes.csv").write_text("filename,class,xmin,ymin,xmax,ymax\na.png,cat,2,3,12,high\n")
    with pytest.raises(DataError, match=r"boxes\.csv, line 2: expected four numbers as box, found 2, 3, 12, high"):
        load_annotations(config(tmp_path), "train")


def test_csv_with_an_endless_field_is_rejected(tmp_path: Path) -> None:
    write_images(tmp_path)
    quote = '"' + "x" * 200_000
    (tmp_path / "boxes.csv").write_text(f"filename,class,xmin,ymin,xmax,ymax\na.png,{quote},2,3,12,23\n")
    with pytest.raises(DataError, match=r"boxes\.csv: not valid CSV: field larger than field limit"):
        load_annotations(config(tmp_path), "train")


def test_csv_without_box_columns_is_rejected(tmp_path: Path) -> None:
    write_images(tmp_path)
    (tmp_path / "boxes.csv").write_text("filename,class\na.png,cat\n")
    data = config(train={"annotations": tmp_path / "boxes.csv", "images": tmp_path})
    with pytest.raises(DataError, match=r"expected the columns filename, class, xmin.*found 'filename,class'"):
        load_annotations(data, "train")


# ----------------------------------------------------------------------------------------------------- Hugging Face


def test_hugging_face_numbers_are_positions_in_the_given_classes(tmp_path: Path) -> None:
    write_images(tmp_path)
    (tmp_path / "metadata.jsonl").write_text(hugging_face_lines(list(SIZES), numbers=True))
    assert contents(_load(config(tmp_path, classes=list(CLASSES)))) == set(BOXES)
    assert _load(config(tmp_path)).class_names == ("0", "1")


def test_hugging_face_list_of_objects_is_read(tmp_path: Path) -> None:
    write_images(tmp_path, {"a.png": SIZES["a.png"]})
    objects = [{"bbox": [2, 3, 10, 20], "category": "cat"}, {"bbox": [10, 10, 30, 20], "category": "dog"}]
    write_json(tmp_path / "metadata.jsonl", {"file_name": "a.png", "width": 40, "height": 30, "objects": objects})
    assert contents(_load(config(tmp_path))) == set(BOXES[:2])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"file_name": "a.png", "objects": {"bbox": [[1, 2, 3, 4]], "categories": []}}', "found 1 boxes .* 0 classes"),
        ('{"file_name": "a.png", "objects": {"bbox": [[1, 2, 3]], "categories": ["cat"]}}', "expected bbox"),
        ('{"file_name": "a.png", "objects": "none"}', "expected objects with the lists"),
        ('{"objects": {"bbox": [], "categories": []}}', "expected an object with file_name"),
        ('{"file_name": ', "not valid JSON"),
    ],
)
def test_broken_hugging_face_line_is_named(line: str, message: str, tmp_path: Path) -> None:
    write_images(tmp_path)
    (tmp_path / "metadata.jsonl").write_text(f"{hugging_face_lines(list(SIZES))}{line}\n")
    with pytest.raises(DataError, match=rf"metadata\.jsonl, line 4: {message}"):
        load_annotations(config(tmp_path), "train")


@pytest.mark.parametrize("name", [".", "./", "/", "..", "//x"])
def test_hugging_face_name_of_no_image_belongs_to_no_split(name: str, tmp_path: Path) -> None:
    write_images(tmp_path / "train")
    lines = hugging_face_lines(list(SIZES), prefix="train/")
    stray = f'{{"file_name": "{name}", "objects": {{"bbox": [], "categories": []}}}}'
    (tmp_path / "metadata.jsonl").write_text(f"{lines}{stray}\n")
    assert len(_load(config(tmp_path))) == 3


# ----------------------------------------------------------------------------------------- entries of data.yaml


@pytest.mark.parametrize("content", [None, "folder", "list"])
def test_test_entry_without_images_is_no_split(content: str | None, tmp_path: Path) -> None:
    """Roboflow names a test folder in data.yaml even if the split is empty."""
    write_yolo(tmp_path)
    if content == "folder":
        (tmp_path / "test/images").mkdir(parents=True)
    if content == "list":
        (tmp_path / "test.txt").touch()
    entry = "test.txt" if content == "list" else "../test/images"
    (tmp_path / "data.yaml").write_text(f"train: ../images/train\ntest: {entry}\nnames: [cat, dog]\n")
    assert load_annotations(config(tmp_path), "test") is None
    assert contents(_load(config(tmp_path))) == set(BOXES)


@pytest.mark.parametrize("entry", ["images\\train", ".\\images\\train", "..\\images\\train", "../images/train"])
def test_entry_with_backslashes_is_found(entry: str, tmp_path: Path) -> None:
    write_yolo(tmp_path)
    (tmp_path / "data.yaml").write_text(f"train: {entry}\nnames: [cat, dog]\n")
    assert contents(_load(config(tmp_path))) == set(BOXES)


def test_val_entry_without_images_is_reported(tmp_path: Path) -> None:
    write_yolo(tmp_path)
    (tmp_path / "data.yaml").write_text("train: images/train\nval: ../valid/images\nnames: [cat, dog]\n")
    with pytest.raises(DataError, match=r"data\.yaml: '\.\./valid/images' does not exist"):
        load_annotations(config(tmp_path), "val")


# -------------------------------------------------------------------------------------------------- numbers as classes


@pytest.mark.parametrize(
    ("names", "written", "expected"),
    [
        (("1", "2", "3"), "3", "3"),
        (("1", "2", "3"), "1", "1"),
        (("1", "2", "3"), "0", None),
        (("0", "1", "3"), "2", None),
        (("7", "cat"), "1", None),
        (("cat", "dog"), "1", "dog"),
        (("cat", "dog"), "2", None),
    ],
)
def test_a_number_is_a_position_only_among_names_that_are_not_numbers(
    names: tuple[str, ...], written: str, expected: str | None, tmp_path: Path
) -> None:
    write_images(tmp_path)
    (tmp_path / "val.csv").write_text(f"filename,class,xmin,ymin,xmax,ymax\na.png,{written},2,3,12,23\n")
    if expected is None:
        with pytest.raises(DataError, match=f"1 box of class '{written}'; expected one of {', '.join(names)}"):
            load_annotations(config(tmp_path), "val", class_names=names)
    else:
        annotations = load_annotations(config(tmp_path), "val", class_names=names)
        assert annotations is not None
        assert contents(annotations) == {("a.png", expected, (2, 3, 12, 23))}
