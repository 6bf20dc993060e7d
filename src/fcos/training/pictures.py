"""Pictures of validation images, predictions beside ground truth."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from ..data.images import read_image
from ..inference.draw import draw_pair
from ..structures import Instances

if TYPE_CHECKING:
    from ..data.dataset import Annotations

COUNT = 8
SHOWN = 0.3
"""Predictions with a lower score are left out."""
LONGEST = 1024
"""Larger images are shrunk to this side before drawing, pixels."""


def save_pictures(folder: Path, annotations: Annotations, detections: list[dict[str, Any]]) -> None:
    """Write up to eight pictures, of images spread evenly over a split.

    Args:
        folder: is made; earlier pictures of the same images are replaced.
        annotations: the split.
        detections: COCO results, as `evaluate` gives them.
    """
    folder.mkdir(exist_ok=True)
    by_image = defaultdict(list)
    for detection in detections:
        if detection["score"] >= SHOWN:
            by_image[detection["image_id"]].append(detection)
    for i in np.unique(np.linspace(0, len(annotations) - 1, COUNT).round().astype(int)).tolist():
        image = Image.fromarray(read_image(annotations.path(i)).permute(1, 2, 0).numpy())
        image.thumbnail((LONGEST, LONGEST))
        predictions = _predictions(by_image[int(annotations.image_ids[i])], annotations, i)
        picture = draw_pair(image, predictions, _ground_truth(annotations, i))
        picture.save(folder / f"{Path(annotations.file_name(i)).stem}.jpg", quality=90)


def _predictions(detections: list[dict[str, Any]], annotations: Annotations, i: int) -> Instances:
    boxes = torch.tensor([d["bbox"] for d in detections], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    labels = [annotations.category_ids.index(d["category_id"]) for d in detections]
    return _instances(boxes, torch.tensor(labels, dtype=torch.int64), [d["score"] for d in detections], annotations, i)


def _ground_truth(annotations: Annotations, i: int) -> Instances:
    own = slice(*annotations.offsets[i : i + 2].tolist())
    boxes, labels = torch.from_numpy(annotations.boxes[own]), torch.from_numpy(annotations.labels[own])
    return _instances(boxes, labels, [1.0] * len(boxes), annotations, i)


def _instances(boxes: torch.Tensor, labels: torch.Tensor, scores: list[float], annotations: Annotations, i: int):
    height, width = annotations.sizes[i].tolist()
    return Instances(boxes, labels, torch.tensor(scores), (height, width), annotations.class_names)
