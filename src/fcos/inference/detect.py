"""Detection on padded images, optionally in several views (test-time augmentation), for evaluation and prediction.

Shape letters: V views, N images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING

import torch

from ..data.geometry import flip_boxes
from ..structures import Instances, View

if TYPE_CHECKING:
    from ..models import DetectionModel

Select = Callable[[list[Instances]], list[Instances]]
"""Function from the detections of N images, on the CPU and without masks and keypoints, to those to return."""


def detect_on_originals(
    model: DetectionModel,
    views: Sequence[View],
    sizes: Sequence[tuple[int, int]],
    *,
    clip: bool = True,
    select: Select | None = None,
) -> list[Instances]:
    """Run a detector and return the detections in pixels of the original images, before they were resized.

    Args:
        model: the detector.
        views: V views of the same N images, see `detect_in_views`.
        sizes: N (height, width) of the images before resizing.
        clip: clip boxes to the image. Without clipping, rounding can put them outside by a fraction of a pixel, and so
            can scaling inclusive boxes back from an enlarged image. The original does not clip them in an evaluation.
        select: selection of the detections to return, see `detect_in_views`.

    Returns:
        N detections with continuous boxes, best first, on the CPU.
    """
    detections = zip(_to_cpu(detect_in_views(model, views, select)), sizes, strict=True)
    resized = [image.resize_to(size).to_continuous(model.box_convention) for image, size in detections]
    return [image.clip() for image in resized] if clip else resized


def _to_cpu(images: Sequence[Instances]) -> list[Instances]:
    """Copy the detections of all images to the CPU together, as each copy waits for a GPU."""
    if not images:
        return []
    together = Instances.concatenate(images).to("cpu")
    ends = list(accumulate(map(len, images)))
    spans = zip([0, *ends], ends, images, strict=False)
    return [replace(together[start:end], size=image.size) for start, end, image in spans]


@torch.inference_mode()
def detect_in_views(model: DetectionModel, views: Sequence[View], select: Select | None = None) -> list[Instances]:
    """Detect objects in one or several views of the same images, with one non-maximum suppression per image.

    Masks and keypoints are computed for the merged boxes, from the features of the first view.

    Args:
        model: the detector.
        views: V views of the same N images in the same order, on the model's device; the first one is not mirrored.
        select: selection of the detections to return. Masks and keypoints are computed for these only. None: all.

    Returns:
        N detections, best first, in pixels of the first view and in the model's box convention. The limit on their
        number applies to the merged detections.

    Source: the original; the results agree with numbers recorded from it (units/bbox_aug).
    """
    first, *others = views
    assert not first.flipped
    if not others and select is None:
        return model.detect(first.images, first.sizes)
    outputs, candidates = model.outputs_and_candidates(first.images, first.sizes)
    if others:
        per_view = [candidates, *(candidates_of(model, view) for view in others)]
        candidates = [_merge_views(of_image) for of_image in zip(*per_view, strict=True)]
    detections = model.suppress_images(candidates)
    if select is not None:
        detections = select(_to_cpu(detections))
    return model.add_details(outputs, detections)


def candidates_of(model: DetectionModel, view: View) -> list[Instances]:
    """Return the candidates of every image in one view, with the boxes of a mirrored view flipped back.

    Args:
        model: the detector.
        view: one view of N images, on the model's device.

    Returns:
        Candidates of N images in pixels of the view and in the model's box convention.
    """
    candidates = model.candidates(view.images, view.sizes)
    if not view.flipped:
        return candidates
    return [
        replace(instances, boxes=flip_boxes(instances.boxes, instances.size[1], model.box_convention))
        for instances in candidates
    ]


def _merge_views(candidates: Sequence[Instances]) -> Instances:
    """Concatenate the candidates of an image from all views, in pixels of the first view."""
    first = candidates[0]
    return Instances.concatenate([instances.resize_to(first.size) for instances in candidates])
