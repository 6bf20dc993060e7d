"""Data set of three small images in all annotation formats."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fcos.config import DataConfig
from fcos.data import load_annotations
from fcos.data.dataset import Annotations
from fcos.data.layouts import SPLITS

CLASSES = ("cat", "dog")
SIZES = {"a.png": (40, 30), "b.png": (30, 40), "c.png": (40, 30)}  # width, height; c.png has no boxes
BOXES = [("a.png", "cat", (2, 3, 12, 23)), ("a.png", "dog", (10, 10, 40, 30)), ("b.png", "dog", (0, 8, 15, 24))]
KEYPOINT_NAMES = ["nose", "left_eye", "right_eye"]
POLYGONS = [[2, 3, 12, 3, 12, 23, 2, 23.1]], [[10.1, 10.3, 39.5, 10, 25, 30], [10, 30, 15, 30, 12, 20]]
KEYPOINTS = [5, 6, 2, 9, 10, 1, 0, 0, 0]


def write_images(folder: Path, sizes: dict[str, tuple[int, int]] | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for name, (width, height) in (sizes or SIZES).items():
        Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / name)


def coco_tree() -> dict[str, Any]:
    """Return COCO annotations whose ids are neither consecutive nor sorted."""
    ids = {name: 10 * (i + 1) for i, name in enumerate(SIZES)}
    return {
        "images": [{"id": ids[n], "file_name": n, "width": w, "height": h} for n, (w, h) in SIZES.items()],
        "annotations": [
            {
                "id": 100 - i,
                "image_id": ids[name],
                "category_id": 7 - CLASSES.index(label),
                "bbox": [x1, y1, x2 - x1, y2 - y1],
            }
            for i, (name, label, (x1, y1, x2, y2)) in enumerate(BOXES)
        ],
        "categories": [{"id": 7 - i, "name": name} for i, name in enumerate(CLASSES)],
    }


def tree_with_shapes() -> dict[str, Any]:
    """Return annotations with polygons, an uncompressed RLE for the box of b.png, and keypoints of the first box."""
    tree = coco_tree()
    width, height = SIZES["b.png"]
    bitmap = np.zeros((height, width), dtype=np.uint8)
    bitmap[8:24, 0:15] = 1
    bitmap[10:12, 3:5] = 0
    changes = np.flatnonzero(np.diff(bitmap.T.reshape(-1), prepend=0))
    runs = np.diff(np.array([0, *changes, bitmap.size])).tolist()
    rle = {"size": [height, width], "counts": runs}
    for annotation, segmentation in zip(tree["annotations"], [*POLYGONS, rle], strict=True):
        annotation["segmentation"] = segmentation
    tree["annotations"][0]["keypoints"] = KEYPOINTS
    for category in tree["categories"]:
        category.update(keypoints=KEYPOINT_NAMES, skeleton=[[1, 2], [1, 3]])
    return tree


def write_json(path: Path, tree: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tree))
    return path


def write_coco(root: Path, tree: dict[str, Any] | None = None, *, split: str = "train") -> Path:
    write_images(root / "images")
    write_json(root / f"{split}.json", coco_tree() if tree is None else tree)
    return root


def write_annotated(root: Path, names: Sequence[str], existing: Sequence[str]) -> Path:
    """Write a COCO file with a box in each image, and the existing images."""
    for name in existing:
        write_images((root / name).parent, {Path(name).name: (16, 16)})
    images = [{"id": i, "file_name": name} for i, name in enumerate(names)]
    boxes = [{"id": i, "image_id": i, "category_id": 0, "bbox": [1, 1, 8, 8]} for i in range(len(names))]
    tree = {"images": images, "annotations": boxes, "categories": [{"id": 0, "name": "cat"}]}
    return write_json(root / "train.json", tree).parent


def voc_xml(name: str, objects: Sequence[tuple[str, Sequence[float]]], *, difficult: bool = False) -> str:
    width, height = SIZES[name]
    parts = [
        f"<object><name>{label}</name><difficult>{int(difficult)}</difficult><bndbox>"
        + "".join(f"<{key}>{value}</{key}>" for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
        + "</bndbox></object>"
        for label, box in objects
    ]
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation><filename>{name}</filename>{size}{''.join(parts)}</annotation>"


def write_voc(root: Path, *, split: str = "train") -> Path:
    write_images(root / "JPEGImages")
    (root / "Annotations").mkdir(parents=True)
    (root / "ImageSets/Main").mkdir(parents=True)
    for name in SIZES:
        objects = [(label, box) for image, label, box in BOXES if image == name]
        (root / "Annotations" / f"{Path(name).stem}.xml").write_text(voc_xml(name, objects))
    (root / f"ImageSets/Main/{split}.txt").write_text("".join(f"{Path(name).stem}\n" for name in SIZES))
    return root


def yolo_line(name: str, label: str, box: Sequence[float]) -> str:
    (x1, y1, x2, y2), (width, height) = box, SIZES[name]
    values = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
    return " ".join([str(CLASSES.index(label)), *(f"{v:.8f}" for v in values)]) + "\n"


def write_yolo(root: Path, *, split: str = "train") -> Path:
    write_images(root / "images" / split)
    (root / "labels" / split).mkdir(parents=True)
    for name in ("a.png", "b.png"):
        lines = [yolo_line(*box) for box in BOXES if box[0] == name]
        (root / "labels" / split / f"{Path(name).stem}.txt").write_text("".join(lines))
    (root / "data.yaml").write_text(f"{split}: images/{split}\nnames: [cat, dog]\n")
    return root


WRITERS = {"coco": write_coco, "voc": write_voc, "yolo": write_yolo}


def config(root: Path | None = None, **options: Any) -> DataConfig:
    return DataConfig.model_validate({"root": root, "workers": 0, "short_side": [32], "max_side": 64, **options})


def contents(annotations: Annotations) -> set[tuple[str, str, tuple[float, ...]]]:
    """Return (file name, class name, box) of every box."""
    return {
        (annotations.path(i).name, annotations.class_names[label], tuple(np.round(box, 3).tolist()))
        for i in range(len(annotations))
        for label, box in zip(
            annotations.labels[annotations.span(i)], annotations.boxes[annotations.span(i)], strict=True
        )
    }


def write_two_splits(root: Path, write: Callable[..., Path]) -> Path:
    """Write the splits train and val with one of the functions above."""
    write(root, split="train")
    write(root, split="val")
    return root


def digests(root: Path, **options: Any) -> dict[str, str]:
    """Return the digest of each split, with the classes of the first one."""
    found: dict[str, str] = {}
    names, ids = None, None
    for split in SPLITS:
        annotations = load_annotations(config(root, **options), split, class_names=names, category_ids=ids)
        if annotations is not None:
            found[split], names, ids = annotations.digest(), annotations.class_names, annotations.category_ids
    return found
