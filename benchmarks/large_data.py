"""Measure reading, evaluation with many classes, and the coverage of `fcos doctor`, in seconds of CPU time.

    python benchmarks/large_data.py [--images 5000] [--rounds 3]

Reading: a COCO file with 7 boxes per image, whose image files fcos checks, too; pycocotools only reads the COCO file.
Evaluation: 100 generated detections per image, of 80 and of 1,200 classes, in turns; pycocotools evaluates the first
100 images. Coverage: 20 generated boxes per image; the assignment of training finds the same boxes image by image, on
the first 100 images.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import fcos_section, machine, markdown, write
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import fcos
from fcos.data import load_annotations
from fcos.data.dataset import Annotations
from fcos.data.geometry import resize_boxes
from fcos.data.loader import padded_size
from fcos.doctor.coverage import cover
from fcos.doctor.setting import Setting
from fcos.evaluation.coco_metrics import coco_metrics
from fcos.models.points import assign_targets
from fcos.structures import Objects

FEW = 100
"""Number of images for the slower side of a comparison."""
SIZE = 640
OBJECTS, DETECTIONS = 7, 100
"""Number of objects and of detections per image in the evaluation."""
LINKS = 10_000
"""Number of links to a file; file systems limit it."""
BOXES = 20
"""Number of boxes per image for the coverage."""
Task = tuple[dict[str, Any], list[dict[str, Any]]]


def random_boxes(generator: np.random.Generator, count: int) -> np.ndarray:
    """Return XYWH boxes inside an image of `SIZE` pixels, [count, 4], most of them 20 to 130 pixels long."""
    sides = np.exp(generator.normal(4, 0.9, (count, 2))).clip(3, SIZE - 1)
    return np.concatenate([generator.uniform(0, SIZE - sides), sides], axis=1)


def make_task(images: int, classes: int) -> Task:
    """Return COCO annotations and detections; 30 % of the detections are near an object of their class."""
    generator = np.random.default_rng(0)
    count, total = images * OBJECTS, images * DETECTIONS
    boxes, labels = random_boxes(generator, count), generator.integers(1, classes + 1, count).tolist()
    image_of = np.repeat(np.arange(1, images + 1), OBJECTS).tolist()
    rows = zip(image_of, labels, boxes.tolist(), boxes[:, 2:].prod(axis=1).tolist(), strict=True)
    columns = ("image_id", "category_id", "bbox", "area")
    truth = {
        "images": [{"id": i, "width": SIZE, "height": SIZE} for i in range(1, images + 1)],
        "categories": [{"id": k, "name": f"class {k}"} for k in range(1, classes + 1)],
        "annotations": [
            {"id": i, "iscrowd": 0, **dict(zip(columns, row, strict=True))} for i, row in enumerate(rows, 1)
        ],
    }
    objects = np.arange(total) % count
    is_near = generator.random(total) < 0.3
    wrong = generator.integers(1, classes + 1, total)
    found = zip(
        np.array(image_of)[objects].tolist(),
        np.where(is_near, np.array(labels)[objects], wrong).tolist(),
        (boxes[objects] + generator.normal(0, 3, (total, 4)) * is_near[:, None]).clip(1).tolist(),
        generator.random(total).tolist(),
        strict=True,
    )
    columns = ("image_id", "category_id", "bbox", "score")
    return truth, [dict(zip(columns, row, strict=True)) for row in found]


def pycocotools_metrics(task: Task) -> float:
    """Return the AP of pycocotools."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth: Any = COCO()
        truth.dataset = task[0]
        truth.createIndex()
        run = COCOeval(truth, truth.loadRes([dict(row) for row in task[1]]), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return float(run.stats[0])


def write_data(folder: Path, images: int) -> None:
    """Write `train.json` with `OBJECTS` boxes per image; the images are links to a few JPEG files."""
    truth, _ = make_task(images, 80)
    for image in truth["images"]:
        image["file_name"] = f"{image['id']:06}.jpg"
    (folder / "train.json").write_text(json.dumps(truth))
    (folder / "images").mkdir()
    pixels = np.random.default_rng(2).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    paths = [folder / "images" / image["file_name"] for image in truth["images"]]
    for i, path in enumerate(paths):
        if i % LINKS:
            os.link(paths[i - i % LINKS], path)
        else:
            Image.fromarray(pixels).save(path)


def read(folder: Path) -> float:
    """Read and check the annotations as training does; return the share of the boxes."""
    annotations = load_annotations(fcos.load_config("fcos_mnv2_nano", [f"data={folder}"]).data, "train")
    assert annotations is not None
    return len(annotations.boxes) / (OBJECTS * len(annotations))


def read_with_pycocotools(folder: Path) -> float:
    """Read the annotations without a check; return the share of the boxes."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(folder / "train.json")
    return len(truth.anns) / (OBJECTS * len(truth.imgs))


def make_annotations(images: int) -> Annotations:
    """Return annotations without image files."""
    generator = np.random.default_rng(1)
    boxes = random_boxes(generator, images * BOXES)
    boxes[:, 2:] += boxes[:, :2]
    return Annotations(
        root=Path("."),
        names=b"",
        name_offsets=np.zeros(images + 1, dtype=np.int64),
        image_ids=np.arange(images),
        sizes=np.full((images, 2), SIZE, dtype=np.int32),
        offsets=np.arange(images + 1) * BOXES,
        boxes=boxes.astype(np.float32),
        labels=generator.integers(0, 80, len(boxes)),
        crowd=np.zeros(len(boxes), dtype=bool),
        areas=np.zeros(len(boxes), dtype=np.float32),
        annotation_ids=np.arange(len(boxes)),
        class_names=tuple(f"class {k}" for k in range(80)),
        category_ids=tuple(range(80)),
    )


def recall_of_training(annotations: Annotations, setting: Setting) -> float:
    """Return the share of the boxes to which the assignment of training gives a location, image by image."""
    learned = 0
    for i, size in enumerate(annotations.sizes.tolist()):
        resized = setting.resized(*size)
        objects = annotations.objects(i)
        objects = Objects(resize_boxes(objects.boxes, tuple(size), resized), objects.labels, objects.is_crowd)
        points = setting.locations(padded_size(resized, setting.size_divisor))
        learned += len(objects) - int(assign_targets(points, [objects], setting.assigner).num_unassigned)
    return learned / len(annotations.boxes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3, help="rounds in which the sides take turns")
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = fcos.load_config("fcos_r50_fpn_1x")
    setting = Setting.of(fcos_section(config), config.data)
    data = tempfile.TemporaryDirectory()
    folder, name = Path(data.name), f"reading, {options.images} images, {options.images * OBJECTS} boxes"
    write_data(folder, options.images)
    jobs: dict[str, Callable[[], float]] = {
        f"{name}: fcos, with the image files": lambda: read(folder),
        f"{name}: pycocotools": lambda: read_with_pycocotools(folder),
    }
    for images in (options.images, FEW):
        for classes in (80, 1200):
            task = make_task(images, classes)
            name = f"evaluation, {images} images, {images * DETECTIONS} detections, {classes} classes"
            jobs[f"{name}: fcos"] = lambda task=task: coco_metrics(*task).overall["AP"]
            if images == FEW:
                jobs[f"{name}: pycocotools"] = lambda task=task: pycocotools_metrics(task)
    for images in (options.images, FEW):
        annotations, name = make_annotations(images), f"coverage, {images} images, {images * BOXES} boxes"
        jobs[f"{name}: fcos doctor"] = lambda annotations=annotations: cover(annotations, setting).recall
        if images == FEW:
            jobs[f"{name}: assignment of training"] = lambda data=annotations: recall_of_training(data, setting)
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    results = {}
    for _ in range(options.rounds):
        for name, job in jobs.items():
            start = time.process_time()
            results[name] = job()
            seconds[name].append(time.process_time() - start)
    data.cleanup()
    rows = [
        [name, f"{statistics.median(times):.2f}", f"{min(times):.2f}", f"{max(times):.2f}", f"{results[name]:.4f}"]
        for name, times in seconds.items()
    ]
    write(
        "large_data",
        "Reading, evaluation and coverage of large data (seconds of CPU time)",
        {**machine(), "images": options.images, "rounds": options.rounds},
        markdown(["what", "median", "fastest round", "slowest", "AP, recall or share of the boxes"], rows),
        {"seconds": seconds, "results": results},
    )


if __name__ == "__main__":
    main()
