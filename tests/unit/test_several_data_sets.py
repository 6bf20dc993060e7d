"""One split from several data sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_data import (
    BOXES,
    CLASSES,
    SIZES,
    coco_tree,
    config,
    voc_xml,
    write_coco,
    write_images,
    write_voc,
    write_yolo,
)

from fcos.config import DataConfig
from fcos.data import Annotations, load_annotations
from fcos.data.splits import read_split
from fcos.errors import ConfigError, DataError
from fcos.recipes import load_config


def other_tree() -> dict[str, Any]:
    """Return `coco_tree` with the same images and ids, its classes in another order with other ids, and a new class."""
    tree = coco_tree()
    tree["categories"] = [{"id": 3, "name": "owl"}, {"id": 7, "name": "dog"}, {"id": 9, "name": "cat"}]
    new_id = {7: 9, 6: 7}
    tree["annotations"] = [{**a, "category_id": new_id[a["category_id"]]} for a in tree["annotations"]]
    return tree


@pytest.fixture
def two(tmp_path: Path) -> DataConfig:
    write_coco(tmp_path / "one")
    write_coco(tmp_path / "two", other_tree())
    return config(train=data_sets(tmp_path, "one", "two"))


def data_sets(root: Path, *names: str) -> dict[str, list[Path]]:
    return {"annotations": [root / n / "train.json" for n in names], "images": [root / n / "images" for n in names]}


def load(data: DataConfig) -> Annotations:
    annotations = load_annotations(data, "train")
    assert annotations is not None
    return annotations


def contents(annotations: Annotations) -> list[tuple[str, str, tuple[float, ...]]]:
    return [
        (str(annotations.path(i).relative_to(annotations.root)), annotations.class_names[label], tuple(box))
        for i in range(len(annotations))
        for box, label in zip(
            annotations.boxes[annotations.span(i)].tolist(), annotations.labels[annotations.span(i)], strict=True
        )
    ]


def test_data_sets_are_concatenated_in_order(two: DataConfig) -> None:
    found = contents(load(two))
    assert found == [(f"{name}/images/{image}", label, box) for name in ("one", "two") for image, label, box in BOXES]
    assert all(load(two).path(i).is_file() for i in range(2 * len(SIZES)))


def test_classes_are_merged_by_name(two: DataConfig) -> None:
    annotations = load(two)
    assert annotations.class_names == (*CLASSES, "owl")
    assert annotations.category_ids == (7, 6, 3)


def test_duplicate_ids_are_replaced_with_a_warning(two: DataConfig) -> None:
    loaded = read_split(two, "train", class_names=None, decode=False)
    assert loaded is not None
    annotations, problems = loaded
    assert annotations.image_ids.tolist() == [10, 20, 30, 31, 32, 33]
    assert len(set(annotations.annotation_ids.tolist())) == 2 * len(BOXES)
    told = [p for p in problems if p.kind == "repeated image id"]
    assert [(p.severity, p.message.split(";")[0]) for p in told] == [
        ("warning", "3 images with an id that another file also uses")
    ]


def test_unique_ids_are_kept(tmp_path: Path) -> None:
    tree = coco_tree()
    tree["images"] = [{**image, "id": image["id"] + 5} for image in tree["images"]]
    tree["annotations"] = [{**a, "id": a["id"] + 500, "image_id": a["image_id"] + 5} for a in tree["annotations"]]
    write_coco(tmp_path / "one")
    write_coco(tmp_path / "two", tree)
    annotations = load(config(train=data_sets(tmp_path, "one", "two")))
    assert annotations.image_ids.tolist() == [10, 20, 30, 15, 25, 35]
    assert {500 + i for i in range(98, 101)} < set(annotations.annotation_ids.tolist())


def test_data_sets_can_share_one_image_folder(tmp_path: Path) -> None:
    root = write_coco(tmp_path)
    (root / "more.json").write_text(json.dumps(other_tree()))
    data = config(train={"annotations": [root / "train.json", root / "more.json"], "images": root / "images"})
    assert [image for image, _, _ in contents(load(data))] == [image for image, _, _ in BOXES] * 2


def test_invalid_box_error_names_file_and_annotation_id(two: DataConfig, tmp_path: Path) -> None:
    tree = other_tree()
    tree["annotations"][0]["bbox"] = [5, 5, -3, 4]
    path = tmp_path / "two/train.json"
    path.write_text(json.dumps(tree))
    with pytest.raises(DataError, match=rf"{path}, annotation {tree['annotations'][0]['id']}: box .* has x2 < x1"):
        load(two)


def test_voc_data_sets_can_be_combined(tmp_path: Path) -> None:
    roots = [write_voc(tmp_path / name) for name in ("VOC2007", "VOC2012")]
    data = config(
        train={
            "annotations": [root / "Annotations" for root in roots],
            "images": [root / "JPEGImages" for root in roots],
            "image_list": [root / "ImageSets/Main/train.txt" for root in roots],
        }
    )
    annotations = load(data)
    assert len(contents(annotations)) == 2 * len(BOXES)
    assert annotations.class_names == CLASSES
    assert annotations.image_ids.tolist() == [1, 2, 3, 4, 5, 6]


def test_coco_and_voc_data_sets_are_combined(tmp_path: Path) -> None:
    coco, voc = write_coco(tmp_path / "coco"), write_voc(tmp_path / "voc")
    (voc / "ImageSets/Main/train.txt").write_text("b\n")
    folders = {
        "annotations": [coco / "train.json", voc / "Annotations"],
        "images": [coco / "images", voc / "JPEGImages"],
        "image_list": [None, voc / "ImageSets/Main/train.txt"],
    }
    annotations = load(config(train=folders))
    assert [annotations.file_name(i) for i in range(4)] == [
        *(f"coco/images/{n}.png" for n in "abc"),
        "voc/JPEGImages/b.png",
    ]
    name, label, box = BOXES[-1]
    expected = [
        *((f"coco/images/{name}", label, box) for name, label, box in BOXES),
        (f"voc/JPEGImages/{name}", label, box),
    ]
    assert contents(annotations) == expected
    assert annotations.class_names == CLASSES
    assert len(set(annotations.annotation_ids.tolist())) == len(BOXES) + 1


def test_a_problem_in_combined_formats_names_the_file(tmp_path: Path) -> None:
    coco, voc = write_coco(tmp_path / "coco"), write_voc(tmp_path / "voc")
    xml = voc / "Annotations/b.xml"
    xml.write_text(voc_xml("b.png", [("dog", (9, 9, 5, 12))]))
    folders = {
        "annotations": [coco / "train.json", voc / "Annotations"],
        "images": [coco / "images", voc / "JPEGImages"],
    }
    with pytest.raises(DataError, match=f"{xml}, object 1: box .* has x2 < x1"):
        load(config(train=folders))


def test_yolo_labels_cannot_be_combined_with_another_format(tmp_path: Path) -> None:
    coco, yolo = write_coco(tmp_path / "coco"), write_yolo(tmp_path / "yolo")
    folders = {
        "annotations": [coco / "train.json", yolo / "labels/train"],
        "images": [coco / "images", yolo / "images/train"],
    }
    with pytest.raises(DataError, match="coco and yolo annotations cannot be combined"):
        load(config(train=folders))


def test_path_lists_of_unequal_length_are_rejected() -> None:
    with pytest.raises(ConfigError, match=r"data\.train: .* lists of the same length, found 3, 2 and 0 paths"):
        load_config(None, ["data.train.annotations=[a.json,b.json,c.json]", "data.train.images=[a,b]"])


def test_data_override_replaces_the_configured_data_sets() -> None:
    overrides = ["data.val.annotations=b.json", "data=cells"]
    for order in (overrides, overrides[::-1]):
        data = load_config(None, order).data
        assert (data.root, data.val.annotations) == (Path("cells"), [Path("b.json")])
    original = Path(__file__).parents[2] / "configs/fcos/fcos_R_50_FPN_1x.yaml"
    assert load_config(original, ["data=cells"]).data.train.data_sets == []
    assert len(load_config(original).data.train.data_sets) == 2


def csv_data_sets(root: Path, *texts: str) -> DataConfig:
    """Write CSV files with the given rows; all refer to one image of 40x30 pixels."""
    write_images(root, {"a.png": SIZES["a.png"]})
    files = [root / f"{number}.csv" for number in range(len(texts))]
    for file, text in zip(files, texts, strict=True):
        file.write_text(f"filename,class,xmin,ymin,xmax,ymax\n{text}\n")
    return config(train={"annotations": files, "images": root})


PIXELS, FRACTIONS, NO_BOX = "a.png,cat,10,3,20,15", "a.png,cat,.25,.1,.5,.5", "a.png,,,,,"


@pytest.mark.parametrize(("first", "second"), [(PIXELS, FRACTIONS), (FRACTIONS, PIXELS)])
def test_boxes_in_pixels_and_in_fractions_cannot_be_combined(first: str, second: str, tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.csv" for number in ((0, 1) if first == PIXELS else (1, 0))]
    message = f"boxes of {files[0]} are in pixels, but those of {files[1]} in fractions .*convert one of the files"
    with pytest.raises(DataError, match=message):
        load(csv_data_sets(tmp_path, first, second))


@pytest.mark.parametrize("rows", [(PIXELS, NO_BOX), (FRACTIONS, NO_BOX), (NO_BOX, FRACTIONS), (NO_BOX, PIXELS)])
def test_a_data_set_without_boxes_has_no_unit(rows: tuple[str, str], tmp_path: Path) -> None:
    assert load(csv_data_sets(tmp_path, *rows)).boxes.tolist() == [[10, 3, 20, 15]]


def test_data_sets_in_fractions_are_combined(tmp_path: Path) -> None:
    assert load(csv_data_sets(tmp_path, FRACTIONS, FRACTIONS)).boxes.tolist() == [[10, 3, 20, 15]] * 2
