"""Annotation files with boxes in the format of another tool are reported, and unusual boxes are not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_data import config, write_json

from fcos.data import load_annotations
from fcos.errors import DataError

WIDTH, HEIGHT = 160, 90
Row = tuple[float, float, float, float]


def corners(count: int = 30) -> list[Row]:
    """Return boxes x1, y1, x2, y2, spread over the image."""
    generator = np.random.default_rng(0)
    boxes = []
    for _ in range(count):
        w, h = generator.uniform(5, 60), generator.uniform(5, 40)
        x, y = generator.uniform(0, WIDTH - w), generator.uniform(0, HEIGHT - h)
        boxes.append((x, y, x + w, y + h))
    return boxes


def top_left(box: Row) -> Row:
    return box[0], box[1], box[2] - box[0], box[3] - box[1]


def center(box: Row) -> Row:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2, box[2] - box[0], box[3] - box[1]


def swapped(box: Row) -> Row:
    x, y, w, h = top_left(box)
    return y, x, h, w


def fractions(box: Row) -> Row:
    x, y, w, h = top_left(box)
    return x / WIDTH, y / HEIGHT, w / WIDTH, h / HEIGHT


def coco(rows: Sequence[Row]) -> dict[str, Any]:
    return {
        "images": [{"id": 1, "file_name": "a.png", "width": WIDTH, "height": HEIGHT}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": 1, "bbox": list(row)} for i, row in enumerate(rows, start=1)
        ],
        "categories": [{"id": 1, "name": "cat"}],
    }


def write(root: Path, form: str, rows: Sequence[Row]) -> Path:
    (root / "images").mkdir(parents=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(root / "images/a.png")
    if form == "coco":
        write_json(root / "train.json", coco(rows))
    elif form == "yolo":
        scaled = np.array(rows) / (WIDTH, HEIGHT, WIDTH, HEIGHT)
        lines = "".join(f"0 {' '.join(f'{v:.6f}' for v in row)}\n" for row in scaled.tolist())
        (root / "labels").mkdir()
        (root / "labels/a.txt").write_text(lines)
        (root / "data.yaml").write_text("train: images\nnames: [cat]\n")
    else:
        (root / "Annotations").mkdir()
        keys = ("xmin", "ymin", "xmax", "ymax")
        objects = "".join(
            "<object><name>cat</name><bndbox>"
            + "".join(f"<{key}>{value}</{key}>" for key, value in zip(keys, row, strict=True))
            + "</bndbox></object>"
            for row in rows
        )
        (root / "Annotations/a.xml").write_text(f"<annotation><filename>a.png</filename>{objects}</annotation>")
        (root / "ImageSets/Main").mkdir(parents=True)
        (root / "ImageSets/Main/train.txt").write_text("a\n")
        (root / "images").rename(root / "JPEGImages")
    return root


@pytest.mark.parametrize(
    ("form", "written", "message"),
    [
        ("coco", tuple, "as x1, y1, x2, y2, 30 of 30 boxes are inside. Convert the boxes to x, y, width, height"),
        ("coco", center, "as center x, center y, width, height, 30 of 30"),
        ("coco", swapped, "as y, x, height, width, 30 of 30"),
        ("coco", fractions, "expected pixels, found fractions of the image size"),
        ("yolo", tuple, "prescribes center x, center y, width, height. Read as x1, y1, x2, y2, 30 of 30"),
        ("yolo", top_left, "as x, y, width, height, 30 of 30"),
        ("voc", top_left, "prescribes x1, y1, x2, y2. Read as x, y, width, height, 30 of 30"),
    ],
    ids=["coco corners", "coco center", "coco swapped", "coco fractions", "yolo corners", "yolo top left", "voc xywh"],
)
def test_boxes_in_the_format_of_another_tool_stop(
    form: str, written: Callable[[Row], Row], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="wrong box format") as caught:
        load_annotations(config(write(tmp_path, form, [written(box) for box in corners()])), "train")
    assert message in str(caught.value)


@pytest.mark.parametrize(("form", "written"), [("coco", top_left), ("yolo", center), ("voc", tuple)])
def test_boxes_in_the_prescribed_format_are_read(form: str, written: Callable[[Row], Row], tmp_path: Path) -> None:
    annotations = load_annotations(config(write(tmp_path, form, [written(box) for box in corners()])), "train")
    assert annotations is not None
    assert annotations.boxes == pytest.approx(np.array(corners()), abs=1e-3)


def test_objects_annotated_beyond_the_edge_are_clipped(tmp_path: Path) -> None:
    """Like MOT, whose boxes include the invisible part of people who leave the picture."""
    shifted = [
        (x1 - 20 * (i % 3 == 0), y1, x2 + 100 * (i % 3 == 1), y2) for i, (x1, y1, x2, y2) in enumerate(corners())
    ]
    annotations = load_annotations(config(write(tmp_path, "coco", [top_left(box) for box in shifted])), "train")
    assert annotations is not None
    assert len(annotations.boxes) >= 28  # up to two boxes of the left edge are outside


def test_few_wrong_boxes_are_clipped_one_by_one(tmp_path: Path) -> None:
    rows = [top_left(box) for box in corners()]
    rows[:4] = corners()[:4]
    assert load_annotations(config(write(tmp_path, "coco", rows)), "train") is not None


def test_the_wrong_one_of_two_joined_files_is_named(tmp_path: Path) -> None:
    write(tmp_path, "coco", [top_left(box) for box in corners(60)])
    wrong = write_json(tmp_path / "wrong.json", coco(corners()))
    options = {"annotations": [str(tmp_path / "train.json"), str(wrong)], "images": [str(tmp_path / "images")] * 2}
    with pytest.raises(DataError, match="wrong box format") as caught:
        load_annotations(config(train=options), "train")
    assert str(wrong) in str(caught.value)
    assert "train.json" not in str(caught.value)


def test_on_error_skip_reads_the_boxes_as_prescribed(tmp_path: Path) -> None:
    annotations = load_annotations(config(write(tmp_path, "coco", corners()), on_error="skip"), "train")
    assert annotations is not None
    assert len(annotations.boxes) == 30
