"""Comparison of the detections of an exported file with those of PyTorch.

Rounding decides which of two boxes suppresses the other if their scores are almost equal, and whether a box is
suppressed if its overlap is almost the threshold. Such a detection needs no counterpart, but only if PyTorch itself
finds or misses it after its weights have changed in their last digits (a variation).

Shape letters: A expected and B found detections of an image, M matched pairs, J keypoints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..boxes import iou
from ..choices import Precision
from ..structures import Instances

_MIN_OVERLAP = 0.5
"""IoU of two detections that are compared although they differ by more than the tolerances."""


class Tolerances(NamedTuple):
    """Largest differences that the precision of an exported file explains.

    Attributes:
        boxes: difference of a coordinate of a box or keypoint, in pixels.
        scores: difference of a score.
        masks: difference of a probability of a mask.
        logits: difference of the logit of a keypoint.
        outputs: difference of a raw output, as a fraction of the largest one.
        variation: relative standard deviation of the changes of weights in variations.
        is_half: whether the additional rules of half precision apply, see `_is_usual` and `Prover._compare_raw`.
    """

    boxes: float = 1e-2
    scores: float = 1e-4
    masks: float = 1e-4
    logits: float = 1e-3
    outputs: float = 1e-4
    variation: float = 2.0**-20
    is_half: bool = False


TOLERANCES: dict[Precision, Tolerances] = {
    "float32": Tolerances(),
    "float16": Tolerances(
        boxes=1.0, scores=0.01, masks=0.02, logits=0.2, outputs=0.01, variation=2.0**-10, is_half=True
    ),
    # It has 8 times the rounding errors of float16.
    "bfloat16": Tolerances(
        boxes=8.0, scores=0.08, masks=0.16, logits=1.6, outputs=0.08, variation=2.0**-7, is_half=True
    ),
}


class Differences(NamedTuple):
    """Differences of the detections of one or several images.

    Attributes:
        boxes: largest difference of a coordinate of matched boxes, in pixels.
        scores: largest difference of the scores of matched detections.
        masks: largest difference of the probabilities of their masks.
        keypoints: largest difference of a coordinate of their keypoints, in pixels.
        logits: largest difference of the logits of their keypoints.
        unmatched: number of detections of one side that the other side has not.
        undecided: number of detections and keypoints of one side that the other side has not, because of rounding.
    """

    boxes: float = 0.0
    scores: float = 0.0
    masks: float = 0.0
    keypoints: float = 0.0
    logits: float = 0.0
    unmatched: int = 0
    undecided: int = 0

    def __or__(self, other: Differences) -> Differences:
        """Combine the differences of several images."""
        unmatched, undecided = self.unmatched + other.unmatched, self.undecided + other.undecided
        return Differences(*map(max, self[:5], other[:5]), unmatched=unmatched, undecided=undecided)

    def within(self, tolerances: Tolerances) -> bool:
        """Return whether every detection has a counterpart that differs by no more than the tolerances."""
        limits = (tolerances.boxes, tolerances.scores, tolerances.masks, tolerances.boxes, tolerances.logits)
        return self.unmatched == 0 and all(value <= limit for value, limit in zip(self[:5], limits, strict=True))


def compare(
    expected: Instances,
    found: Instances,
    tolerances: Tolerances,
    variations: Callable[[], Iterable[Instances]] = tuple,
) -> Differences:
    """Match the detections of an image by label and box, not by their order.

    Args:
        expected: detections of PyTorch, best score first.
        found: detections of the other side.
        tolerances: differences that are allowed.
        variations: returns the detections of PyTorch with changed weights, which are computed one by one if a detection
            has no counterpart.
    """
    partner = _match(expected, found, tolerances)
    rows = torch.nonzero(partner >= 0).squeeze(1)
    a, b = expected[rows], found[partner[rows]]
    is_close = _distances(a, b, tolerances).diagonal() <= 1  # [M]
    lonely = torch.ones(len(expected), dtype=torch.bool).index_fill(0, rows[is_close], False)
    additional = torch.ones(len(found), dtype=torch.bool).index_fill(0, partner[rows[is_close]], False)
    missed, repeated = torch.zeros_like(lonely), torch.zeros_like(additional)
    others: list[Instances] = []
    for other in variations() if lonely.any() or additional.any() else ():
        others.append(other)
        missed |= lonely & ~_contains(other, expected, tolerances)
        repeated |= additional & _contains(other, found, tolerances)
        if torch.equal(missed, lonely) and torch.equal(repeated, additional):
            break
    else:
        unexplained = torch.cat([expected.scores[lonely & ~missed], found.scores[additional & ~repeated]])
        if tolerances.is_half and _is_usual(unexplained, expected, others, tolerances):
            missed, repeated = lonely, additional
    is_compared = is_close | ~(missed[rows] & repeated[partner[rows]])
    has_no_partner = lonely.index_fill(0, rows, False) & ~missed
    is_no_partner = additional.index_fill(0, partner[rows], False) & ~repeated
    differences = Differences(
        boxes=largest_difference((a.boxes - b.boxes)[is_compared]),
        scores=largest_difference((a.scores - b.scores)[is_compared]),
        unmatched=int(has_no_partner.sum() + is_no_partner.sum()),
        undecided=int(missed.sum() + repeated.sum()),
    )
    if a.mask_grids is not None and b.mask_grids is not None:
        differences = differences._replace(masks=largest_difference((a.mask_grids - b.mask_grids)[is_close]))
    if a.keypoints is None or b.keypoints is None:
        return differences
    return differences | _compare_keypoints(a[is_close], b[is_close], tolerances, variations)


def _match(expected: Instances, found: Instances, tolerances: Tolerances) -> Tensor:
    """Return the index of the partner of every expected detection [A], or -1.

    Detections within the tolerances are matched first, so that others do not take their partners.
    """
    partner = torch.full((len(expected),), -1)
    _assign(partner, _distances(expected, found, tolerances), limit=1.0)
    _assign(partner, _separations(expected, found), limit=1 - _MIN_OVERLAP)
    return partner


def _assign(partner: Tensor, costs: Tensor, *, limit: float) -> None:
    """Give every row of `costs` [A, B] without a partner the cheapest free column within the limit."""
    costs = costs.index_fill(1, partner[partner >= 0], torch.inf)
    for i in torch.nonzero(partner < 0).squeeze(1).tolist() if costs.shape[1] else ():
        j = int(costs[i].argmin())
        if costs[i, j] <= limit:
            partner[i] = j
            costs[:, j] = torch.inf


def _distances(a: Instances, b: Instances, tolerances: Tolerances) -> Tensor:
    """Return the differences [A, B] of boxes and scores in units of their tolerances; infinite for other labels."""
    boxes = torch.cdist(a.boxes, b.boxes, p=torch.inf) / tolerances.boxes
    scores = (a.scores[:, None] - b.scores).abs() / tolerances.scores
    return boxes.maximum(scores).where(a.labels[:, None] == b.labels, torch.inf)


def _separations(a: Instances, b: Instances) -> Tensor:
    """Return 1 - IoU [A, B]; infinite for other labels."""
    return (1 - iou(a.boxes, b.boxes)).where(a.labels[:, None] == b.labels, torch.inf)


def _contains(other: Instances, detections: Instances, tolerances: Tolerances) -> Tensor:
    """Return a mask [A] of the detections that `other` has, too; of equal ones, only as many as `other` has."""
    partner = torch.full((len(detections),), -1)
    _assign(partner, _distances(detections, other, tolerances), limit=1.0)
    return partner >= 0


def _is_usual(unexplained: Tensor, expected: Instances, others: Sequence[Instances], tolerances: Tolerances) -> bool:
    """Return whether two variations differ at least as much as the file in what the others do not explain.

    In half precision, rounding can decide about so many of the detections with almost equal scores that none of a few
    variations has the same ones. Both their number and the sum of their scores count: rounding decides about many weak
    detections, a fault also about the best ones.

    Args:
        unexplained: scores of the detections of PyTorch or of the file alone that the variations do not explain.
        expected: detections of PyTorch.
        others: the variations.
        tolerances: differences that are allowed.
    """
    missed = [~_contains(other, expected, tolerances) for other in others]
    num_missed = sum(missed, torch.zeros(len(expected), dtype=torch.int64))  # [A]
    num_usual = 0
    for i, other in enumerate(others):
        additional = ~_contains(expected, other, tolerances)
        for another in (*others[:i], *others[i + 1 :]):
            additional &= ~_contains(another, other, tolerances)
        scores = torch.cat([expected.scores[missed[i] & (num_missed == 1)], other.scores[additional]])
        num_usual += len(scores) >= len(unexplained) and bool(scores.sum() >= unexplained.sum())
    return num_usual >= 2


def _compare_keypoints(
    a: Instances, b: Instances, tolerances: Tolerances, variations: Callable[[], Iterable[Instances]]
) -> Differences:
    """Compare the keypoints of matched detections. Rounding also decides between equal maxima of a heat map."""
    assert a.keypoints is not None
    assert b.keypoints is not None
    moved = (a.keypoints[..., :2] - b.keypoints[..., :2]).abs().amax(dim=2)  # [M, J]
    is_moved = moved > tolerances.boxes
    repeated = torch.zeros_like(is_moved)
    for other in variations() if is_moved.any() else ():
        assert other.keypoints is not None
        partner = _match(b, other, tolerances)
        same = (other.keypoints[partner, :, :2] - b.keypoints[..., :2]).abs().amax(dim=2) <= tolerances.boxes
        repeated |= is_moved & same & (partner >= 0)[:, None]
        if torch.equal(repeated, is_moved):
            break
    return Differences(
        keypoints=largest_difference(moved[~repeated]),
        logits=largest_difference(a.keypoints[..., 2] - b.keypoints[..., 2]),
        undecided=int(repeated.sum()),
    )


def largest_difference(differences: Tensor) -> float:
    """Return the largest absolute value, infinite if a value is NaN, which `max` would ignore; 0 without values."""
    return float(differences.abs().nan_to_num(nan=torch.inf).max()) if differences.numel() else 0.0
