"""Images and annotations: COCO, Pascal VOC and YOLO folders to batches.

`load_annotations` -> `Annotations` -> `build_train_loader` or `build_test_loader` -> `Batch`.
"""

from .dataset import Annotations, DetectionDataset, Sample
from .images import open_rgb, read_image, to_rgb
from .loader import Loader, build_test_loader, build_train_loader
from .splits import FORMATS, load_annotations
from .transforms import Transform, resize_size, test_transform, train_transform

__all__ = [
    "FORMATS",
    "Annotations",
    "DetectionDataset",
    "Loader",
    "Sample",
    "Transform",
    "build_test_loader",
    "build_train_loader",
    "load_annotations",
    "open_rgb",
    "read_image",
    "resize_size",
    "test_transform",
    "to_rgb",
    "train_transform",
]
