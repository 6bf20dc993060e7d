"""`Annotations` without image files, and the `Setting` of a small pyramid."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fcos.data.dataset import Annotations
from fcos.doctor.setting import Setting


def annotations_of(boxes: Sequence[Sequence[Sequence[float]]], sizes: Sequence[tuple[int, int]]) -> Annotations:
    """Build annotations from the boxes of every image and the image sizes.

    Args:
        boxes: for each image its boxes (x1, y1, x2, y2, label in 0..2), with an additional 1 for crowd boxes.
        sizes: (height, width) of each image.
    """
    flat = [box for image in boxes for box in image]
    return Annotations(
        root=Path("."),
        names=b"",
        name_offsets=np.zeros(len(sizes) + 1, dtype=np.int64),
        image_ids=np.arange(len(sizes)),
        sizes=np.array(sizes, dtype=np.int32).reshape(-1, 2),
        offsets=np.cumsum([0, *map(len, boxes)]),
        boxes=np.array([box[:4] for box in flat], dtype=np.float32).reshape(-1, 4),
        labels=np.array([int(box[4]) for box in flat], dtype=np.int64),
        crowd=np.array([len(box) > 5 and bool(box[5]) for box in flat], dtype=bool),
        areas=np.zeros(len(flat), dtype=np.float32),
        annotation_ids=np.arange(len(flat)),
        class_names=("a", "b", "c"),
        category_ids=(1, 2, 3),
    )


def setting_of(short_side: int = 48, **options: Any) -> Setting:
    """Return a setting with three levels for images of 48 x 60 pixels; `options` replace its values."""
    return Setting(
        **{
            "strides": (4, 8, 16),
            "size_ranges": ((-1, 8), (8, 16), (16, None)),
            "center_sampling_radius": 0.0,
            "location": "center",
            "box_convention": "continuous",
            "short_sides": (short_side,),
            "max_side": 60,
            "test_short_side": None,
            "test_max_side": None,
            "size_divisor": 16,
            **options,
        }
    )
