"""Pictures of validation images with predictions and ground truth side by side."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..data.dataset import Annotations
from ..errors import DataError
from ..evaluation.coco_metrics import to_instances
from ..inference.draw import draw_pair

logger = logging.getLogger(__name__)

NUM_PICTURES = 8
_MAX_NAME_LENGTH = 200
MAX_SIDE = 1024
"""Maximum side in pixels; larger images are downscaled before drawing."""


def save_pictures(
    folder: Path,
    annotations: Annotations,
    detections: list[dict[str, Any]],
    thresholds: Mapping[str, float],
    *,
    default_threshold: float,
) -> None:
    """Write pictures of up to eight images, spread evenly over a split, with the boxes that `fcos predict` would show.

    Args:
        folder: output folder, created if needed; existing pictures of the same images are overwritten.
        annotations: annotations of the split.
        detections: detections in COCO's result format, see `Evaluation.detections`.
        thresholds: score thresholds by class name, see `Evaluation.thresholds`.
        default_threshold: score threshold of the other classes.
    """
    folder.mkdir(exist_ok=True)
    names = dict(zip(annotations.category_ids, annotations.class_names, strict=True))
    by_image = defaultdict(list)
    for detection in detections:
        if detection["score"] >= thresholds.get(names[detection["category_id"]], default_threshold):
            by_image[detection["image_id"]].append(detection)
    for i in np.unique(np.linspace(0, len(annotations) - 1, NUM_PICTURES).round().astype(int)).tolist():
        try:
            image = annotations.open(i)
        except DataError:
            continue  # already reported by the evaluation
        image.thumbnail((MAX_SIDE, MAX_SIDE))
        predictions = to_instances(by_image[int(annotations.image_ids[i])], annotations, i)
        picture = draw_pair(image, predictions, annotations.instances(i))
        name = Path(annotations.file_name(i)).with_suffix(".jpg")
        components = name.relative_to(name.anchor).parts
        try:
            picture.save(folder / "_".join(components)[-_MAX_NAME_LENGTH:], quality=90)
        except (OSError, ValueError) as error:  # a full disk, or sides that JPEG does not support
            logger.warning("no picture of %s: %s", annotations.path(i), error)
