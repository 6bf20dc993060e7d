"""Test-time augmentation: the same images in several views, at other sizes and mirrored, detected on together.

Shape letters: V views, N images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from ..data.transforms import flip_boxes
from ..structures import Instances, View

if TYPE_CHECKING:
    from ..models import FCOS


def detect_in_views(model: FCOS, views: Sequence[View]) -> list[Instances]:
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


def candidates_of(model: FCOS, view: View) -> list[Instances]:
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
    resized = [each.resize_to(first.size) for each in candidates]
    return replace(
        first,
        boxes=torch.cat([each.boxes for each in resized]),
        labels=torch.cat([each.labels for each in resized]),
        scores=torch.cat([each.scores for each in resized]),
    )
