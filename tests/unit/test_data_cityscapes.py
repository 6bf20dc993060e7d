"""Cityscapes: instances from instance ids and from polygons, groups, uncounted classes, mistakes."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_data import config, write_images, write_json

from fcos.data import load_annotations
from fcos.data.conversion import convert
from fcos.data.dataset import Annotations
from fcos.data.splits import has_split
from fcos.doctor.check import check
from fcos.errors import DataError
from fcos.recipes import load_config

WIDTH, HEIGHT = 40, 30
NAMES = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")


def square(x1: int, y1: int, x2: int, y2: int) -> list[list[int]]:
    """Return a polygon whose pixels are x1..x2 and y1..y2, ends included."""
    return [[x1, y1], [x2, y1], [x2, y2], [x1, y2]]


OBJECTS: list[dict[str, Any]] = [
    {"label": "road", "polygon": square(0, 20, 39, 29)},
    {"label": "car", "polygon": square(2, 10, 11, 19)},
    {"label": "car", "polygon": square(8, 10, 17, 19)},  # covers the first car partly
    {"label": "license plate", "polygon": square(9, 18, 10, 19)},  # part of the car
    {"label": "pole", "polygon": square(12, 0, 13, 29)},  # covers the second car
    {"label": "persongroup", "polygon": square(20, 2, 24, 9)},
    {"label": "persongroup", "polygon": square(30, 2, 34, 9)},
    {"label": "caravan", "polygon": square(25, 20, 29, 25)},
    {"label": "bicycle", "polygon": square(1, 1, 3, 3), "deleted": 1},
    {"label": "bicycle", "polygon": square(35, 20, 38, 25)},
]


def ids_of_objects() -> np.ndarray:
    """Return the official ids of `OBJECTS`, int32 [H, W]."""
    ids = np.zeros((HEIGHT, WIDTH), dtype=np.int32)
    ids[10:20, 2:12] = 26000
    ids[10:20, 8:18] = 26001
    ids[:, 12:14] = 17
    ids[2:10, 20:25] = ids[2:10, 30:35] = 24
    ids[20:26, 25:30] = 29000
    ids[20:26, 35:39] = 33000
    return ids


def write_cityscapes(
    root: Path, objects: Any = OBJECTS, ids: np.ndarray | None = None, *, split: str = "train"
) -> Path:
    write_images(root / "leftImg8bit" / split / "ulm", {"ulm_000000_000019_leftImg8bit.png": (WIDTH, HEIGHT)})
    stem = root / "gtFine" / split / "ulm/ulm_000000_000019_gtFine"
    tree = {"imgHeight": HEIGHT, "imgWidth": WIDTH, "objects": objects}
    write_json(Path(f"{stem}_polygons.json"), tree)
    if ids is not None:
        Image.fromarray(ids.astype(np.uint16)).save(f"{stem}_instanceIds.png")
    return root


def load(root: Path, split: Any = "train", **options: Any) -> Annotations:
    annotations = load_annotations(config(root, **options), split)
    assert annotations is not None
    return annotations


def bitmaps_of(annotations: Annotations) -> np.ndarray:
    assert annotations.masks is not None
    return annotations.masks.to_bitmaps((HEIGHT, WIDTH)).numpy()


@pytest.mark.parametrize("ids", [None, ids_of_objects()], ids=["polygons", "instance ids"])
def test_instances_are_the_visible_pixels(ids: np.ndarray | None, tmp_path: Path) -> None:
    annotations = load(write_cityscapes(tmp_path, ids=ids), masks=True)
    assert annotations.class_names == NAMES
    assert annotations.category_ids == (24, 25, 26, 27, 28, 31, 32, 33)
    assert annotations.file_name(0) == "ulm/ulm_000000_000019_leftImg8bit.png"
    assert [NAMES[label] for label in annotations.labels] == ["person", "car", "car", "bicycle"]
    assert annotations.crowd.tolist() == [True, False, False, False]
    expected = ids_of_objects()
    for bitmap, number in zip(bitmaps_of(annotations), (24, 26000, 26001, 33000), strict=True):
        np.testing.assert_array_equal(bitmap, expected == number)
    assert annotations.boxes.tolist() == [[20, 2, 35, 10], [2, 10, 8, 20], [8, 10, 18, 20], [35, 20, 39, 26]]


def test_instance_ids_take_precedence_over_polygons(tmp_path: Path) -> None:
    ids = np.zeros((HEIGHT, WIDTH), dtype=np.int32)
    ids[5:7, 3:9], ids[0, 0] = 31004, 31
    annotations = load(write_cityscapes(tmp_path, ids=ids))
    assert annotations.boxes.tolist() == [[0, 0, 1, 1], [3, 5, 9, 7]]
    assert annotations.crowd.tolist() == [True, False]
    assert {NAMES[label] for label in annotations.labels} == {"train"}


def test_hidden_instances_are_no_objects(tmp_path: Path) -> None:
    objects = [{"label": "car", "polygon": square(3, 3, 8, 8)}, {"label": "bus", "polygon": square(2, 2, 9, 9)}]
    assert [NAMES[label] for label in load(write_cityscapes(tmp_path, objects)).labels] == ["bus"]


def test_uncounted_classes_are_left_out_with_a_message(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="fcos"):
        load(write_cityscapes(tmp_path))
    assert "classes that the official evaluation does not count are left out: 1 caravan" in caplog.text


def test_all_splits_are_found(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_cityscapes(tmp_path, split=split)
    assert [has_split(config(tmp_path), split) for split in ("train", "val", "test")] == [True, True, False]
    assert len(load(tmp_path, "val")) == 1


def test_folders_may_be_given_separately(tmp_path: Path) -> None:
    root = write_cityscapes(tmp_path)
    paths = {"annotations": str(root / "gtFine/train"), "images": str(root / "leftImg8bit/train")}
    assert len(load_annotations(config(None, train=paths), "train") or ()) == 1
    assert len(load(root / "gtFine/train").boxes) == 4


def test_conversion_gives_the_same_annotations(tmp_path: Path) -> None:
    root = write_cityscapes(tmp_path / "source", ids=ids_of_objects())
    write_cityscapes(root, split="val")
    convert(config(root), tmp_path / "out")
    for split in ("train", "val"):
        assert load(tmp_path / "out", split, masks=True).digest() == load(root, split, masks=True).digest()


def test_doctor_checks_the_instances(tmp_path: Path) -> None:
    root = write_cityscapes(tmp_path)
    write_cityscapes(root, split="val")
    report = check(load_config("fcos_mnv2_small", [f"data={root}", "data.masks=true"]), recipe="fcos_mnv2_small")
    assert {split: len(part.boxes) for split, part in report.splits.items()} == {"train": 4, "val": 4}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"label": "car"}, r"object 2: car: expected a polygon \[\[x, y\], ...\] of three points or more, found None"),
        ({"label": "car", "polygon": [[1, 2], [3, 4]]}, "object 2: car: expected a polygon"),
        ({"label": "car", "polygon": [[1, 2], [3, 4], [5]]}, "object 2: car: expected a polygon"),
        ({"label": "car", "polygon": [[1, 2], [3, 4], [5, float("nan")]]}, "object 2: car: expected a polygon"),
        ({"polygon": square(1, 1, 5, 5)}, r"object 2: expected label \(text\) and polygon"),
        ("car", r"object 2: expected label \(text\) and polygon"),
    ],
)
def test_broken_object_is_reported_and_the_others_are_read(entry: Any, message: str, tmp_path: Path) -> None:
    objects = [{"label": "bus", "polygon": square(2, 2, 9, 9)}, entry]
    root = write_cityscapes(tmp_path, objects)
    with pytest.raises(DataError, match=f"_polygons.json, {message}"):
        load(root)
    assert len(load(root, on_error="skip").boxes) == 1


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ([], "expected imgHeight, imgWidth and the list objects, found"),
        ({"imgHeight": 30, "objects": []}, "expected imgHeight, imgWidth and the list objects, found"),
        ({"imgHeight": 10**6, "imgWidth": 10**6, "objects": []}, "expected imgHeight"),
        ({"imgHeight": 30, "imgWidth": 40, "objects": None}, "expected imgHeight"),
    ],
)
def test_broken_file_is_reported(tree: Any, message: str, tmp_path: Path) -> None:
    file = next(write_cityscapes(tmp_path).rglob("*_polygons.json"))
    write_json(file, tree)
    with pytest.raises(DataError, match=f"_polygons.json: {message}"):
        load(tmp_path)


@pytest.mark.parametrize("content", ["text", "size", "colour", "damaged"])
def test_broken_instance_ids_are_reported(content: str, tmp_path: Path) -> None:
    write_cityscapes(tmp_path, ids=ids_of_objects())
    file = next(tmp_path.rglob("*_instanceIds.png"))
    if content == "text":
        file.write_text("text")
    elif content == "damaged":
        file.write_bytes(file.read_bytes()[:-40])
    else:
        size = (30, 40) if content == "size" else (40, 30)
        Image.new("RGB" if content == "colour" else "I;16", size).save(file)
    message = {
        "size": "expected ids of 40x30 pixels, as in ulm_.*json, found uint16 of 30x40 pixels",
        "colour": "expected ids of 40x30 pixels, as in ulm_.*json, found a colour image of 40x30 pixels",
    }.get(content, "cannot be read: .*[a-zA-Z]{5}")
    with pytest.raises(DataError, match=f"_instanceIds.png: {message}"):
        load(tmp_path)


def test_missing_image_is_reported(tmp_path: Path) -> None:
    next(write_cityscapes(tmp_path).rglob("*_leftImg8bit.png")).unlink()
    with pytest.raises(DataError, match=r"ulm_000000_000019_leftImg8bit.png, image 1: no such file"):
        load(tmp_path)
