"""Detection in tensors whose sizes do not depend on their values: for GPUs, `torch.compile` and export.

Boxes of an image that do not exist are padding, marked by `Padded.valid`. The results are those of `candidates` and
`postprocess`, which are faster on a CPU, since they skip the predictions below the threshold.

Shape letters: N images, C candidates of an image, D detections of an image.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..boxes import class_wise_nms
from ..choices import BoxConvention
from ..structures import Instances
from .postprocess import Postprocess


class Padded(NamedTuple):
    """Candidates or detections of N images, padded to the same number C.

    Attributes:
        boxes: [N, C, 4] in pixels of the padded images.
        scores: [N, C] in 0..1.
        labels: [N, C] int64.
        valid: [N, C] bool; the values of the other boxes are arbitrary.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    valid: Tensor

    def gather(self, index: Tensor) -> Padded:
        """Return the boxes with the indices [N, D] of every image."""
        boxes = self.boxes.gather(1, index[..., None].expand(-1, -1, 4))
        return Padded(boxes, *(column.gather(1, index) for column in self[1:]))

    def without_padding(self) -> Padded:
        """Set the boxes and scores that are not valid to 0, and their labels to -1."""
        boxes, scores, labels, valid = self
        return Padded(boxes.where(valid[..., None], 0.0), scores.where(valid, 0.0), labels.where(valid, -1), valid)

    def compact(self, keep: Tensor) -> Padded:
        """Move the boxes selected by a mask [N, C] to the front, in their order; only these are valid."""
        count = keep.shape[1]
        # Not argsort(stable=True), which has no counterpart in ONNX.
        ranks = torch.arange(count, 0, -1, dtype=torch.float32, device=keep.device).where(keep, 0.0)
        return self._replace(valid=keep).gather(ranks.topk(count, dim=1).indices)

    def to_instances(self, sizes: Tensor) -> list[Instances]:
        """Return the valid boxes of every image; `sizes` [N, 2] are the (height, width) without the padding."""
        pairs = [(int(height), int(width)) for height, width in sizes.tolist()]
        counts = self.valid.sum(dim=1).tolist()
        image, candidate = torch.nonzero(self.valid, as_tuple=True)
        columns = (tensor[image, candidate].split(counts) for tensor in (self.boxes, self.labels, self.scores))
        return [Instances(*rows) for rows in zip(*columns, pairs, strict=True)]


def limits_of(sizes: Tensor, like: Tensor) -> Tensor:
    """Return the (width, height) [N, 1, 2] of images with (height, width) `sizes` [N, 2], in the dtype of a tensor."""
    return sizes.flip(1)[:, None].to(like)


def clip_boxes(boxes: Tensor, sizes: Tensor, convention: BoxConvention) -> Tensor:
    """Clip boxes [N, C, 4] to images with (height, width) `sizes` [N, 2]; see `boxes.clip`."""
    limits = limits_of(sizes, boxes) - (1.0 if convention == "inclusive" else 0.0)
    return boxes.clamp(min=0).minimum(limits.repeat(1, 1, 2))


def has_area(boxes: Tensor) -> Tensor:
    """Return a mask [...] of the boxes [..., 4] whose width and height are positive."""
    return (boxes[..., 2:] > boxes[..., :2]).all(dim=-1)


def clip_padded(candidates: Padded, sizes: Tensor, options: Postprocess) -> Padded:
    """Clip boxes to their images; those without area become invalid unless the options keep them."""
    boxes, valid = clip_boxes(candidates.boxes, sizes, options.box_convention), candidates.valid
    if not (options.keep_empty_boxes or options.box_convention == "inclusive"):
        valid = valid & has_area(boxes)
    return candidates._replace(boxes=boxes, valid=valid)


def suppress_padded(candidates: Padded, sizes: Tensor, options: Postprocess, *, num_classes: int) -> Padded:
    """Select the detections among the candidates of every image; see `postprocess.suppress`.

    Args:
        candidates: C candidates of every image.
        sizes: [N, 2] int64 (height, width) of the images without the padding.
        options: options of suppression, limit and clipping.
        num_classes: K; labels are smaller.

    Returns:
        At most C detections of every image, the valid ones first and best score first.
    """
    kept = nms_padded(candidates, options.nms_threshold, options.box_convention, num_classes=num_classes)
    limit = options.max_detections
    if 0 < limit < kept.valid.shape[1]:
        if options.box_convention == "inclusive":  # detections that tie with the last one are kept
            scores = kept.scores.where(kept.valid, -1.0)
            kept = kept._replace(valid=kept.valid & (scores >= scores[:, limit - 1 : limit]))
        else:
            kept = Padded(*(column[:, :limit] for column in kept))
    if not options.clip_after_nms:
        return kept
    clipped = clip_padded(kept, sizes, options)
    return clipped.compact(clipped.valid)


def nms_padded(candidates: Padded, threshold: float, convention: BoxConvention, *, num_classes: int) -> Padded:
    """Perform non-maximum suppression per class and image; see `boxes.class_wise_nms`.

    Args:
        candidates: C candidates of every image.
        threshold: IoU in (0, 1]; 0 or less disables suppression.
        convention: box convention, which defines widths.
        num_classes: K; labels are smaller.

    Returns:
        C boxes of every image, the kept ones first and best score first; the others are invalid.
    """
    boxes = candidates.boxes
    if convention == "inclusive":
        boxes = boxes + boxes.new_tensor([0.0, 0.0, 1.0, 1.0])
    order, counts = nms_operator(
        boxes, candidates.scores, candidates.labels, candidates.valid, num_classes, float(threshold)
    )
    kept = candidates.gather(order)
    return kept._replace(valid=torch.arange(order.shape[1], device=order.device) < counts[:, None])


# One operator, because its steps depend on values: compilers keep it as a call, exporters replace it by the
# non-maximum suppression of their runtime.
@torch.library.custom_op("fcos::class_wise_nms", mutates_args=())
def nms_operator(  # noqa: PLR0917 (operators have no keyword arguments in a graph)
    boxes: Tensor, scores: Tensor, labels: Tensor, valid: Tensor, num_classes: int, threshold: float
) -> tuple[Tensor, Tensor]:
    """Perform non-maximum suppression per class and image.

    Args:
        boxes: [N, C, 4] in the continuous convention.
        scores: [N, C].
        labels: [N, C] int64 in 0..`num_classes`-1.
        valid: [N, C] bool; other boxes are ignored.
        num_classes: K; unused here, needed by exporters.
        threshold: IoU in (0, 1]; 0 or less disables suppression.

    Returns:
        [N, C] int64 indices, first those of the kept boxes by descending score (equal scores in their input order); and
        [N] int64 numbers of kept boxes.
    """
    order, counts = torch.zeros_like(labels), labels.new_zeros(len(labels))
    for image, is_valid in enumerate(valid):
        members = torch.nonzero(is_valid).squeeze(1)
        columns = [x[image, members] for x in (boxes, scores, labels)]
        kept = members[class_wise_nms(*columns, threshold=threshold)]
        order[image, : len(kept)] = kept
        counts[image] = len(kept)
    return order, counts


@nms_operator.register_fake
def _nms_shapes(  # noqa: PLR0917 (as above)
    boxes: Tensor, scores: Tensor, labels: Tensor, valid: Tensor, num_classes: int, threshold: float
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(labels), labels.new_empty(labels.shape[0])
