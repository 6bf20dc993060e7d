"""Proof that an exported file detects what PyTorch detects.

Shape letters: N images, D detections of an image.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..boxes import iou
from ..data.loader import pad
from ..errors import ConfigError, ExportError
from ..models import DetectionModel
from ..structures import Instances
from .metadata import FixedSizes
from .runtimes import Runtime

BOX_TOLERANCE = 1e-2
"""Largest difference of a coordinate in pixels."""
SCORE_TOLERANCE = 1e-4
MIN_DETECTIONS = 20
"""Smallest number of detections in a proof image, so that the comparison means something."""
_SIDES = ((203, 317), (257, 161), (96, 224), (320, 320))
"""(height, width) of the generated images, smaller if the file has a fixed size."""
_LOWEST_THRESHOLD = 1e-6


@dataclass(frozen=True)
class Proof:
    """Result of a comparison.

    Attributes:
        images: number of images compared, counting an image once for every batch it is in.
        detections: number of detections of PyTorch in them.
        without_detections: number of images in which both found nothing.
        score_threshold: threshold at which the other images were compared; None: the detector has none.
        largest_box_difference: largest difference of a coordinate of matched detections, in pixels.
        largest_score_difference: largest difference of the scores of matched detections.
        unmatched: number of detections of one side that the other side has not.
        box_tolerance: limit of `largest_box_difference`.
        score_tolerance: limit of `largest_score_difference`.
    """

    images: int = 0
    detections: int = 0
    without_detections: int = 0
    score_threshold: float | None = None
    largest_box_difference: float = 0.0
    largest_score_difference: float = 0.0
    unmatched: int = 0
    box_tolerance: float = BOX_TOLERANCE
    score_tolerance: float = SCORE_TOLERANCE

    @property
    def passed(self) -> bool:
        """True if the differences are within the tolerances."""
        return (
            self.unmatched == 0
            and self.largest_box_difference <= self.box_tolerance
            and self.largest_score_difference <= self.score_tolerance
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)

    def summary(self) -> str:
        """Return the figures as a line of text."""
        threshold = "" if self.score_threshold is None else f" at score threshold {self.score_threshold:.3g}"
        return (
            f"{self.images} images ({self.without_detections} without detections), {self.detections} detections"
            f"{threshold}: largest difference {self.largest_box_difference:.2g} px (limit {self.box_tolerance:g}) and"
            f" {self.largest_score_difference:.2g} in scores (limit {self.score_tolerance:g}),"
            f" {self.unmatched} unmatched"
        )


def proof_images(fixed: FixedSizes) -> list[Tensor]:
    """Return uint8 images [3, h, w] of several sizes, with smooth shapes and noise; the same in every call."""
    generator = torch.Generator().manual_seed(0)
    height, width = fixed.size or (10**6, 10**6)
    images = []
    for sides in _SIDES:
        h, w = min(sides[0], height), min(sides[1], width)
        coarse = torch.rand(1, 3, 2 + h // 24, 2 + w // 24, generator=generator)
        image = F.interpolate(coarse, size=(h, w), mode="bilinear")[0] * 255
        for _ in range(6):  # rectangles
            y, x = (int(torch.randint(0, side, (), generator=generator)) for side in (h, w))
            image[:, y : y + h // 3, x : x + w // 4] = torch.rand(3, 1, 1, generator=generator) * 255
        images.append((image + 10 * torch.randn(3, h, w, generator=generator)).clamp(0, 255).to(torch.uint8))
    return images


def prove(
    model: DetectionModel,
    runtime: Runtime,
    *,
    images: Sequence[Tensor],
    fixed: FixedSizes,
    divisor: int,
    nms: bool,
) -> Proof:
    """Compare a runtime with `DetectionModel.detect` on single images and on batches of 3.

    The score threshold is lowered until every image has at least `MIN_DETECTIONS` detections. In addition, an image
    without detections is compared, if the detector has a threshold or ignores the padding.

    Args:
        model: the detector.
        runtime: the exported file with an input for the score threshold, if the detector has one.
        images: uint8 images [3, h, w].
        fixed: sizes of the inputs that are fixed.
        divisor: number that divides the sides of padded images.
        nms: whether the file selects the detections; otherwise its candidates are compared.

    Raises:
        ConfigError: an image is larger than the fixed size.
        ExportError: an image has too few detections at any threshold.
    """
    single = [_pad([image], divisor, fixed.size) for image in images]
    batches = single if fixed.batch in (None, 1) else []
    if fixed.batch != 1:
        count = fixed.batch or 3
        groups = [[images[(start + i) % len(images)] for i in range(count)] for start in range(0, len(images), 3)]
        batches = [*batches, *(_pad(group, divisor, fixed.size) for group in groups)]
    threshold = _low_threshold(model, batches)
    limit = _limit(model) if nms else 0
    proof = Proof(score_threshold=threshold)
    for views in batches:
        proof = _compare(proof, _detect(model, views, threshold, nms), runtime(*views, threshold), limit=limit)
    # Images without detections: a threshold that no score exceeds, or an image without a location inside.
    views = batches[-1]
    if threshold is None:
        views = (views[0], torch.ones_like(views[1]))
    else:
        threshold = 1.0
    return _compare(proof, _detect(model, views, threshold, nms), runtime(*views, threshold), limit=0)


def _pad(images: Sequence[Tensor], divisor: int, size: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
    """Return a batch of padded images, and their sizes."""
    padded, sizes = pad(images, size_divisor=divisor)
    if size is not None:
        if padded.shape[2] > size[0] or padded.shape[3] > size[1]:
            raise ConfigError(
                f"export: an image for the proof has {padded.shape[3]}x{padded.shape[2]} pixels after resizing and"
                f" padding, more than --size {size[0]}x{size[1]}; set data.test_short_side and data.test_max_side"
            )
        padded = F.pad(padded, (0, size[1] - padded.shape[3], 0, size[0] - padded.shape[2]))
    return padded, sizes


def _limit(model: DetectionModel) -> int:
    """Return the largest number of detections of an image; 0: no limit."""
    return max(model.postprocess.max_detections, 0) if model.postprocess else 0


def _detect(
    model: DetectionModel, views: tuple[Tensor, Tensor], threshold: float | None, nms: bool = True
) -> list[Instances]:
    """Return the detections or candidates of PyTorch with another score threshold."""
    options = model.postprocess
    if threshold is not None and options is not None:
        model = copy.copy(model)
        model.postprocess = replace(options, score_threshold=threshold)
    return model.detect(*views) if nms else model.candidates(*views)


def _low_threshold(model: DetectionModel, batches: Sequence[tuple[Tensor, Tensor]]) -> float | None:
    """Return a threshold at which every image has enough detections."""
    options = model.postprocess
    threshold = None if options is None else options.score_threshold
    wanted = min(MIN_DETECTIONS, _limit(model) or MIN_DETECTIONS)
    remaining = list(batches)
    while remaining:
        counts = [len(instances) for instances in _detect(model, remaining[0], threshold)]
        if min(counts) >= wanted:
            remaining.pop(0)
        elif threshold is None or threshold <= _LOWEST_THRESHOLD:
            raise ExportError(
                f"export: the proof is not possible: PyTorch finds {min(counts)} objects in an image, and at least"
                f" {wanted} are needed; give images with --data DIR"
            )
        else:
            threshold = max(threshold / 3, _LOWEST_THRESHOLD)
    return threshold


def _compare(proof: Proof, expected: Sequence[Instances], outputs: Sequence[Tensor], *, limit: int) -> Proof:
    """Add the comparison of a batch to a proof."""
    boxes, scores, labels, last = outputs
    valid = last if last.dtype == torch.bool else torch.arange(scores.shape[1]) < last[:, None]
    for i, instances in enumerate(expected):
        keep = valid[i]
        found = Instances(boxes[i, keep].float(), labels[i, keep], scores[i, keep].float(), instances.size)
        box_difference, score_difference, unmatched = compare(instances.to("cpu"), found, limit=limit)
        proof = replace(
            proof,
            images=proof.images + 1,
            detections=proof.detections + len(instances),
            without_detections=proof.without_detections + (len(instances) == 0 and len(found) == 0),
            largest_box_difference=max(proof.largest_box_difference, box_difference),
            largest_score_difference=max(proof.largest_score_difference, score_difference),
            unmatched=proof.unmatched + unmatched,
        )
    return proof


def compare(expected: Instances, found: Instances, *, limit: int) -> tuple[float, float, int]:
    """Match the detections of an image by overlap and label.

    Args:
        expected: detections, best score first.
        found: detections of the other side.
        limit: largest number of detections; 0: no limit. If it is reached, detections whose score differs from the last
            one's by less than the tolerance need no match, because rounding decides which of them are the last.

    Returns:
        The largest differences of a coordinate in pixels and of a score, and the number of unmatched detections.
    """
    similarity = iou(expected.boxes, found.boxes)
    similarity = torch.where((expected.boxes[:, None] == found.boxes).all(dim=2), 1.0, similarity)  # empty boxes
    similarity = similarity - (expected.scores[:, None] - found.scores).abs()  # identical boxes
    similarity = torch.where(expected.labels[:, None] == found.labels, similarity, -1.0)
    pairs, is_free = [], torch.ones(len(found), dtype=torch.bool)
    for i, row in enumerate(similarity):
        best = row.where(is_free, -1.0)
        j = int(best.argmax()) if len(found) else 0
        if len(found) and best[j] > 0.5:
            is_free[j] = False
            pairs.append((i, j))
    index = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
    a, b = expected[index[:, 0]], found[index[:, 1]]
    is_lonely = torch.ones(len(expected), dtype=torch.bool).index_fill(0, index[:, 0], False)
    unmatched = 0
    for side, is_unmatched in ((expected, is_lonely), (found, is_free)):
        at_limit = 0 < limit <= len(side)
        last = float(side.scores[-1]) + SCORE_TOLERANCE if at_limit else -1.0
        unmatched += int((side.scores[is_unmatched] > last).sum())
    if not pairs:
        return 0.0, 0.0, unmatched
    return float((a.boxes - b.boxes).abs().max()), float((a.scores - b.scores).abs().max()), unmatched
