"""Data loading: from COCO, Pascal VOC and YOLO folders to batches.

`load_annotations` -> `Annotations` -> `build_train_loader` or `build_test_loader` -> `Batch`.
"""

from .dataset import Annotations, DetectionDataset
from .geometry import resize_size
from .loader import build_test_loader, build_train_loader
from .splits import load_annotations
from .transforms import Transform, train_transform

__all__ = [
    "Annotations",
    "DetectionDataset",
    "Transform",
    "build_test_loader",
    "build_train_loader",
    "load_annotations",
    "resize_size",
    "train_transform",
]
