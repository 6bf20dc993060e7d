"""Detection on padded images, perhaps in several views (test-time augmentation): the path of evaluation and prediction.

Shape letters: V views, N images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ..data.geometry import flip_boxes
from ..structures import Instances, View

if TYPE_CHECKING:
    from ..models import DetectionModel


def detect_on_originals(
    model: DetectionModel, views: Sequence[View], sizes: Sequence[tuple[int, int]], *, clip: bool = True
) -> list[Instances]:
    """Detections in pixels of the images before they were resized, best first: continuous boxes, on the CPU.

    Args:
        model: the detector.
        views: see `detect_in_views`.
        sizes: N (height, width) before resizing.
        clip: move boxes into the image. Rounding puts them outside by a part of a pixel, and so do inclusive boxes when
            they are enlarged, which the original does not correct in an evaluation.
    """
    found = zip(detect_in_views(model, views), sizes, strict=True)
    resized = [image.to("cpu").resize_to(size).to_continuous(model.box_convention) for image, size in found]
    return [image.clip() for image in resized] if clip else resized


def detect_in_views(model: DetectionModel, views: Sequence[View]) -> list[Instances]:
    """Detections of every image, best first: the candidates of all its views, and then one suppression and one limit.

    Args:
        model: the detector.
        views: V views of the same N images in the same order, on the model's device.

    Returns:
        N detections in pixels of the first view and the model's box convention.

    Source: as in the original, agreeing with its recorded numbers (units/bbox_aug).
    """
    if len(views) == 1:
        return model.detect(views[0].images, views[0].sizes)
    found = [candidates_of(model, view) for view in views]
    return [model.suppress(_joined(candidates)) for candidates in zip(*found, strict=True)]


def candidates_of(model: DetectionModel, view: View) -> list[Instances]:
    """The candidates of every image in one view, mirrored back.

    Args:
        model: the detector.
        view: N images, on the model's device.

    Returns:
        N candidates in pixels of the view and the model's box convention.
    """
    found = model.candidates(view.images, view.sizes)
    if not view.flipped:
        return found
    return [replace(each, boxes=flip_boxes(each.boxes, each.size[1], model.box_convention)) for each in found]


def _joined(candidates: Sequence[Instances]) -> Instances:
    """All candidates of an image, in the frame of the first view."""
    first = candidates[0]
    return Instances.concatenate([each.resize_to(first.size) for each in candidates])
