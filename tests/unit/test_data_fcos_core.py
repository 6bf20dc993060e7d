"""The original's rules for reading annotations."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from tiny_data import CLASSES, coco_tree, config, voc_xml, write_coco, write_images, write_voc

from fcos.data import Annotations, load_annotations
from fcos.data.fcos_core import VOC_CLASSES
from fcos.data.source import Split
from fcos.errors import DataError
from fcos.recipes import load_config

GOLDENS = Path(__file__).parents[1] / "parity" / "goldens"


def load(root: Path, split: Split = "train", **options: Any) -> Annotations:
    annotations = load_annotations(config(root, convention="fcos_core", **options), split)
    assert annotations is not None
    return annotations


def write_objects(root: Path, *objects: tuple[str, tuple[int, int, int, int]], difficult: bool = False) -> Path:
    """Write VOC annotations of one image, a.png of 40x30 pixels, as its train and val split."""
    write_voc(root)
    (root / "Annotations/a.xml").write_text(voc_xml("a.png", objects, difficult=difficult))
    for name in ("b", "c"):
        (root / f"Annotations/{name}.xml").unlink()
    for split in ("train", "val"):
        (root / f"ImageSets/Main/{split}.txt").write_text("a\n")
    return root


def test_voc_boxes_start_at_one_and_include_their_last_pixel(tmp_path: Path) -> None:
    annotations = load(write_objects(tmp_path, ("cat", (1, 1, 40, 30)), ("dog", (3, 5, 12, 20))))
    assert annotations.boxes.tolist() == [[0, 0, 40, 30], [2, 4, 12, 20]]
    assert annotations.inclusive().boxes.tolist() == [[0, 0, 39, 29], [2, 4, 11, 19]]  # the numbers in the file minus 1


def test_voc_boxes_of_our_convention_are_the_numbers_in_the_file(tmp_path: Path) -> None:
    root = write_objects(tmp_path, ("dog", (3, 5, 12, 20)))
    annotations = load_annotations(config(root), "train")
    assert annotations is not None
    assert annotations.boxes.tolist() == [[3, 5, 12, 20]]
    assert annotations.class_names == ("dog",)


def test_the_classes_of_voc_are_the_recorded_ones() -> None:
    recorded = json.loads((GOLDENS / "facts/catalog.json").read_text())["voc_class_names_with_background_first"]
    assert list(VOC_CLASSES) == recorded[1:]


def test_voc_names_are_matched_in_lower_case(tmp_path: Path) -> None:
    annotations = load(write_objects(tmp_path, ("TVmonitor", (1, 1, 20, 20)), ("Aeroplane ", (3, 5, 12, 20))))
    assert annotations.class_names == VOC_CLASSES
    assert annotations.labels.tolist() == [19, 0]
    assert annotations.category_ids == tuple(range(1, 21))


def test_other_classes_in_voc_format_are_those_of_the_data(tmp_path: Path) -> None:
    annotations = load(write_objects(tmp_path, ("WBC", (1, 1, 20, 20)), ("rbc", (3, 5, 12, 20)), ("RBC", (5, 5, 9, 9))))
    assert annotations.class_names == ("rbc", "wbc")
    assert annotations.labels.tolist() == [1, 0, 0]


def test_given_classes_are_matched_in_lower_case_and_keep_their_spelling(tmp_path: Path) -> None:
    root = write_objects(tmp_path, ("dog", (1, 1, 20, 20)), ("CAT", (3, 5, 12, 20)))
    annotations = load(root, classes=["Cat", "Dog"])
    assert annotations.class_names == ("Cat", "Dog")
    assert annotations.labels.tolist() == [1, 0]


def test_a_class_that_is_not_among_the_given_ones_is_an_error(tmp_path: Path) -> None:
    root = write_objects(tmp_path, ("dog", (1, 1, 20, 20)), ("CAT", (3, 5, 12, 20)))
    with pytest.raises(DataError, match="1 box of class 'cat'; expected one of Dog"):
        load(root, classes=["Dog"])


@pytest.mark.parametrize(("split", "crowd"), [("train", []), ("val", [True])])
def test_difficult_objects_are_background_in_training_only(split: Split, crowd: list[bool], tmp_path: Path) -> None:
    annotations = load(write_objects(tmp_path, ("dog", (3, 5, 12, 20)), difficult=True), split)
    assert annotations.crowd.tolist() == crowd
    assert len(annotations) == 1  # VOC images without boxes stay


def test_coco_images_without_boxes_are_dropped_from_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_coco(tmp_path)
    write_coco(tmp_path, split="val")
    with caplog.at_level(logging.INFO, logger="fcos"):
        annotations = load(root)
    assert [annotations.file_name(i) for i in range(len(annotations))] == ["a.png", "b.png"]
    assert annotations.image_of.tolist() == [0, 0, 1]
    assert f"{root}/train.json: 1 of 3 images have no boxes; the original does not train on them" in caplog.text
    assert len(load(root, "val")) == 3


def test_coco_images_with_one_pixel_boxes_only_are_dropped_and_those_with_crowds_stay(tmp_path: Path) -> None:
    tree = coco_tree()
    tree["annotations"] = [
        {"id": 1, "image_id": 10, "category_id": 7, "bbox": [2.3, 3.1, 1.0, 20]},
        {"id": 2, "image_id": 20, "category_id": 6, "bbox": [2, 3, 12, 20], "iscrowd": 1},
    ]
    annotations = load(write_coco(tmp_path, tree))
    assert [annotations.file_name(i) for i in range(len(annotations))] == ["b.png"]
    assert annotations.crowd.tolist() == [True]


def test_a_training_file_without_any_box_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="contains no usable image for train"):
        load(write_coco(tmp_path, {**coco_tree(), "annotations": []}))


@pytest.mark.parametrize("unused", ["animals", "cat"])
def test_a_category_without_annotations_is_a_class(unused: str, tmp_path: Path) -> None:
    tree = coco_tree()
    categories = [{**c, "supercategory": unused} for c in tree["categories"]]
    tree["categories"] = [{"id": 0, "name": unused, "supercategory": "none"}, *categories]
    root = write_coco(tmp_path, tree)
    annotations = load(root)
    assert annotations.category_ids == (0, 7, 6)
    assert annotations.class_names == ("animals" if unused == "animals" else "cat (0)", *CLASSES)
    assert sorted(annotations.labels.tolist()) == [1, 2, 2]


def test_configs_of_the_original_use_its_convention(tmp_path: Path) -> None:
    config_file = Path(__file__).parents[2] / "configs/fcos/fcos_R_50_FPN_1x.yaml"
    assert load_config(config_file).data.convention == "fcos_core"
    assert load_config("fcos_r50_fpn_1x").data.convention == "fcos"


def test_yolo_labels_have_no_convention_of_the_original(tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/a.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "data.yaml").write_text("train: images\nnames: [cat]\n")
    assert load(tmp_path).boxes.tolist() == [[10, 7.5, 30, 22.5]]
