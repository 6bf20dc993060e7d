from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image
from tiny_data import (
    BOXES,
    CLASSES,
    SIZES,
    WRITERS,
    coco_tree,
    config,
    contents,
    voc_xml,
    write_coco,
    write_images,
    write_json,
    write_voc,
    write_yolo,
    yolo_line,
)

from fcos.config import DataConfig
from fcos.data import load_annotations
from fcos.data.dataset import Annotations
from fcos.data.layouts import FORMATS, locate
from fcos.data.source import Split
from fcos.errors import DataError


def _load(data: DataConfig, split: Split = "train") -> Annotations:
    annotations = load_annotations(data, split)
    assert annotations is not None
    return annotations


@pytest.mark.parametrize("form", WRITERS)
def test_every_format_gives_the_same_boxes(form: str, tmp_path: Path) -> None:
    annotations = _load(config(WRITERS[form](tmp_path)))
    assert contents(annotations) == set(BOXES)
    assert {annotations.path(i).name for i in range(len(annotations))} == set(SIZES)
    assert annotations.class_names == CLASSES


@pytest.mark.parametrize("form", WRITERS)
def test_format_is_detected_automatically(form: str, tmp_path: Path) -> None:
    located = locate(config(WRITERS[form](tmp_path)), "train")
    assert located is not None
    assert located[0][0] == form


def test_coco_is_preferred_unless_a_format_is_given(tmp_path: Path) -> None:
    for write in WRITERS.values():
        write(tmp_path)
    for name in WRITERS:
        located = locate(config(tmp_path, format=name), "train")
        assert located is not None
        assert located[0][0] == name
    located = locate(config(tmp_path), "train")
    assert located is not None
    assert located[0][0] == next(iter(FORMATS)) == "coco"


def _write_folder_with_all_formats(root: Path) -> None:
    """Write a data set like published ones that were converted between formats.

    It has one copy of the images, in VOC's folder, one of them grey; a box without area that only VOC has; classes in
    another order than VOC's; tags and keys without meaning.
    """
    write_voc(root)
    Image.open(root / "JPEGImages/c.png").convert("L").save(root / "JPEGImages/c.png")
    xml = voc_xml("b.png", [("cat", (9, 5, 9, 7)), BOXES[2][1:]])
    (root / "Annotations/b.xml").write_text(xml.replace("<object>", "<path>/pi/b.png</path><object><pose>Left</pose>"))
    tree = coco_tree()
    tree["images"] = [
        {**image, "file_name": f"JPEGImages/{image['file_name']}", "license": 1} for image in tree["images"]
    ]
    tree["categories"].reverse()
    write_json(root / "train.json", {"info": {"year": 2019}, "licenses": [{"id": 1}], **tree})
    (root / "labels").mkdir()
    for name in SIZES:
        lines = [yolo_line(*box) for box in BOXES if box[0] == name]
        (root / "labels" / f"{Path(name).stem}.txt").write_text("".join(lines))
    (root / "train.txt").write_text("".join(f"./JPEGImages/{name}\n" for name in SIZES))
    (root / "data.yaml").write_text("path: .\ntrain: train.txt\nnc: 2\nnames:\n  0: cat\n  1: dog\n")


@pytest.mark.parametrize("form", WRITERS)
def test_folder_with_all_formats_gives_the_same_boxes_in_each(form: str, tmp_path: Path) -> None:
    _write_folder_with_all_formats(tmp_path)
    data = config(tmp_path, format=form, on_error="skip")
    annotations = _load(data)
    assert contents(annotations) == set(BOXES)
    assert [annotations.path(i) for i in range(3)] == [tmp_path / "JPEGImages" / name for name in SIZES]
    assert load_annotations(data, "val") is None


@pytest.mark.parametrize(
    ("json_file", "images"),
    [
        ("train.json", "."),
        ("train.json", "images"),
        ("train.json", "train"),
        ("annotations/instances_train2017.json", "train2017"),
        ("annotations/instances_train2017.json", "images/train2017"),
        ("annotations/train.json", "images"),
        ("annotations/train.json", "train"),
        ("instances_train.json", "images/train"),
        ("train/_annotations.coco.json", "train"),
    ],
)
def test_common_coco_layouts_load(json_file: str, images: str, tmp_path: Path) -> None:
    write_json(tmp_path / json_file, coco_tree())
    write_images(tmp_path / images)
    annotations = _load(config(tmp_path))
    assert annotations.root.resolve() == (tmp_path / images).resolve()
    assert contents(annotations) == set(BOXES)


def test_valid_folder_is_the_val_split(tmp_path: Path) -> None:
    write_json(tmp_path / "valid/_annotations.coco.json", coco_tree())
    write_images(tmp_path / "valid")
    assert contents(_load(config(tmp_path), "val")) == set(BOXES)
    assert load_annotations(config(tmp_path), "train") is None


def test_several_annotation_files_for_a_split_are_rejected(tmp_path: Path) -> None:
    for year in (2014, 2017):
        write_json(tmp_path / f"annotations/instances_train{year}.json", coco_tree())
    with pytest.raises(DataError, match=r"several files for train: .*train2014.*train2017.*data\.train\.annotations="):
        load_annotations(config(tmp_path), "train")


def test_ids_of_the_coco_file_are_kept(tmp_path: Path) -> None:
    annotations = _load(config(write_coco(tmp_path)))
    assert annotations.image_ids.tolist() == [10, 20, 30]
    assert annotations.annotation_ids.tolist() == [100, 99, 98]
    assert dict(zip(annotations.class_names, annotations.category_ids, strict=True)) == {"cat": 7, "dog": 6}


def test_unused_supercategory_is_not_a_class(tmp_path: Path) -> None:
    tree = coco_tree()
    tree["categories"].insert(0, {"id": 0, "name": "animals", "supercategory": "none"})
    for category in tree["categories"][1:]:
        category["supercategory"] = "animals"
    assert _load(config(write_coco(tmp_path, tree))).class_names == CLASSES


def test_annotations_without_ids_are_numbered(tmp_path: Path) -> None:
    tree = coco_tree()
    del tree["annotations"][0]["id"]
    assert _load(config(write_coco(tmp_path, tree))).annotation_ids.tolist() == [100, 99, 98]


def test_missing_image_sizes_are_read_from_the_images(tmp_path: Path) -> None:
    tree = coco_tree()
    for image in tree["images"]:
        del image["width"], image["height"]
    annotations = _load(config(write_coco(tmp_path, tree)))
    assert annotations.sizes.tolist() == [[h, w] for w, h in SIZES.values()]


@pytest.mark.parametrize("folder", ["VOC2012", "VOCdevkit/VOC2007"])
def test_voc_in_a_year_folder_loads(folder: str, tmp_path: Path) -> None:
    write_voc(tmp_path / folder)
    assert contents(_load(config(tmp_path))) == set(BOXES)


def test_several_voc_years_are_rejected(tmp_path: Path) -> None:
    write_voc(tmp_path / "VOC2007")
    write_voc(tmp_path / "VOC2012")
    with pytest.raises(DataError, match=r"several data sets: .*VOC2007.*VOC2012.*data=FOLDER"):
        load_annotations(config(tmp_path), "train")


def test_voc_splits_share_their_classes(tmp_path: Path) -> None:
    write_voc(tmp_path)
    (tmp_path / "ImageSets/Main/val.txt").write_text("b\n")
    (tmp_path / "ImageSets/Main/test.txt").write_text("c  1\n")
    assert _load(config(tmp_path), "val").class_names == CLASSES
    assert _load(config(tmp_path), "test").class_names == CLASSES


def test_voc_difficult_objects_are_crowd(tmp_path: Path) -> None:
    write_voc(tmp_path)
    xml = tmp_path / "Annotations/b.xml"
    xml.write_text(xml.read_text().replace("<difficult>0", "<difficult>1"))
    assert _load(config(tmp_path)).crowd.tolist() == [False, False, True]


def test_yolo_image_list_and_labels_next_to_data_yaml_load(tmp_path: Path) -> None:
    write_yolo(tmp_path)
    shutil.move(tmp_path / "images/train", tmp_path / "pictures")
    for label in (tmp_path / "labels/train").iterdir():
        shutil.move(label, tmp_path / "labels")
    (tmp_path / "train.txt").write_text("".join(f"./pictures/{name}\n" for name in SIZES))
    (tmp_path / "data.yaml").write_text("path: .\ntrain: train.txt\nnames: {0: cat, 1: dog}\n")
    annotations = _load(config(tmp_path))
    assert contents(annotations) == set(BOXES)
    assert annotations.file_name(0) == "pictures/a.png"


def test_yolo_labels_next_to_the_images_load(tmp_path: Path) -> None:
    write_yolo(tmp_path)
    shutil.move(tmp_path / "images/train", tmp_path / "all")
    for label in (tmp_path / "labels/train").iterdir():
        shutil.move(label, tmp_path / "all")
    shutil.rmtree(tmp_path / "labels")
    (tmp_path / "data.yaml").write_text("train: [all]\nnames: [cat, dog]\n")
    assert contents(_load(config(tmp_path))) == set(BOXES)


def test_roboflow_yolo_paths_with_leading_dotdot_load(tmp_path: Path) -> None:
    write_yolo(tmp_path)
    (tmp_path / "data.yaml").write_text("train: ../images/train\nnames: [cat, dog]\n")
    assert contents(_load(config(tmp_path))) == set(BOXES)


def test_data_yaml_is_accepted_as_data_root(tmp_path: Path) -> None:
    write_yolo(tmp_path)
    assert contents(_load(config(tmp_path / "data.yaml"))) == set(BOXES)


def test_yolo_polygon_becomes_its_bounding_box(tmp_path: Path) -> None:
    write_yolo(tmp_path)
    (tmp_path / "labels/train/a.txt").write_text("1 0.5 0.1 0.75 0.5 0.25 0.9\n")
    annotations = _load(config(tmp_path))
    assert annotations.boxes[0].tolist() == pytest.approx([10, 3, 30, 27])


@pytest.mark.parametrize("form", WRITERS)
def test_split_paths_can_be_given_individually(form: str, tmp_path: Path) -> None:
    root = WRITERS[form](tmp_path)
    pieces = {
        "coco": {"annotations": root / "train.json", "images": root / "images"},
        "voc": {
            "annotations": root / "Annotations",
            "images": root / "JPEGImages",
            "image_list": root / "ImageSets/Main/train.txt",
        },
        "yolo": {"annotations": root / "labels/train", "images": root / "images/train"},
    }
    data = config(train=pieces[form], classes=list(CLASSES) if form == "yolo" else None)
    assert contents(_load(data)) == set(BOXES)
    assert load_annotations(data, "val") is None


def test_image_list_restricts_a_detected_split(tmp_path: Path) -> None:
    write_yolo(tmp_path)
    (tmp_path / "fold.txt").write_text("images/train/b.png\n")
    data = config(tmp_path, train={"image_list": tmp_path / "fold.txt"})
    assert contents(_load(data)) == {BOXES[2]}


def test_labels_follow_given_class_names(tmp_path: Path) -> None:
    annotations = load_annotations(config(write_coco(tmp_path)), "train", class_names=("bird", "dog", "cat"))
    assert annotations is not None
    assert annotations.class_names == ("bird", "dog", "cat")
    assert annotations.labels.tolist() == [2, 1, 1]
    assert annotations.category_ids == (8, 6, 7)  # bird is not in the file and gets a free id


@pytest.mark.parametrize(("wanted", "found"), [((40, 50, 60), (40, 6, 7)), ((7, 50, 60), (8, 6, 7))])
def test_class_missing_from_the_split_gets_the_given_id_if_free(
    wanted: tuple[int, ...], found: tuple[int, ...], tmp_path: Path
) -> None:
    """If another class of the split has that id, the missing class gets a free one."""
    data, names = config(write_coco(tmp_path)), ("bird", "dog", "cat")
    annotations = load_annotations(data, "train", class_names=names, category_ids=wanted)
    assert annotations is not None
    assert annotations.category_ids == found


def test_unrecognised_folder_error_lists_the_expected_layouts(tmp_path: Path) -> None:
    (tmp_path / "stuff.txt").touch()
    with pytest.raises(DataError, match=r"(?s)train\.json.*data\.yaml.*VOC.*Found:.*stuff\.txt"):
        load_annotations(config(tmp_path), "train")


def test_missing_folder_is_named_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such data folder"):
        load_annotations(config(tmp_path / "nowhere"), "train")


def test_error_without_data_names_the_option() -> None:
    with pytest.raises(DataError, match=r"set data=DIR"):
        load_annotations(config(), "train")
