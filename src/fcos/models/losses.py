"""The three losses of FCOS and their normalisation over processes.

Shape letters: N images, R locations over all levels, K classes, P positive locations.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..choices import BoxLoss, Quality
from ..distributed import mean_over_processes
from .points import IGNORED, Assignment, centerness_targets

# The original clamps the probability under the logarithm at the smallest normal float32: a positive costs at most
# alpha * 87.34.
_LOG_MIN = float(torch.log(torch.tensor(torch.finfo(torch.float32).tiny, dtype=torch.float64)))


@dataclass(frozen=True)
class FCOSLoss:
    """The options of the losses.

    Attributes:
        box_loss: see `iou_loss`.
        quality: what the third branch learns at positive locations: their `centerness`, or the `iou` of the box that is
            predicted there now with its ground truth, through which no gradient flows.
        focal_alpha: see `focal_loss`.
        focal_gamma: see `focal_loss`.
    """

    box_loss: BoxLoss = "iou"
    quality: Quality = "centerness"
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0

    @property
    def names(self) -> tuple[str, str, str]:
        """The names of the terms: classification, boxes, third branch."""
        return "loss_cls", "loss_box", "loss_centerness" if self.quality == "centerness" else "loss_iou_quality"


def focal_loss(logits: Tensor, labels: Tensor, *, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Sigmoid focal loss of every logit.

    Args:
        logits: [R, K].
        labels: [R] int64: the class 0..K-1, `BACKGROUND`, or `IGNORED` (no loss).
        alpha: weight of the positive class, 1 - alpha that of the negative.
        gamma: focusing exponent.

    Returns:
        [R, K], not reduced.

    Source: Lin et al., ICCV 2017 (arXiv:1708.02002), equation 5.
    """
    # Powers of probabilities as exponentials: a power below 1 of a probability that underflows has no gradient.
    loss = (1 - alpha) * (gamma * F.logsigmoid(logits)).exp() * F.softplus(logits)
    rows = torch.nonzero(labels >= 0).squeeze(1)
    columns = labels[rows]
    x = logits[rows, columns]
    log_p = F.logsigmoid(x)
    log_p = log_p + (log_p.clamp(min=_LOG_MIN) - log_p).detach()  # the value saturates, the gradient does not vanish
    loss = loss.index_put((rows, columns), -alpha * (-gamma * F.softplus(x)).exp() * log_p)
    return loss * (labels != IGNORED)[:, None]


def iou_loss(predicted: Tensor, target: Tensor, *, kind: BoxLoss, weight: Tensor | None = None) -> Tensor:
    """Loss of distance predictions, summed.

    Args:
        predicted: [P, 4] distances left, top, right, bottom to the predicted box, at least 0.
        target: [P, 4] the same for the ground truth, in the same unit.
        kind: `iou`: -log IoU; `linear_iou`: 1 - IoU; `giou`: 1 - GIoU.
        weight: [P]; ignored when it sums to 0 (as the original does), None: ones.

    Source: Yu et al. 2016 (arXiv:1608.01471); GIoU: Rezatofighi et al. 2019 (arXiv:1902.09630). As in the original,
    intersection and union are smoothed by 1, in the unit of the distances.
    """
    iou, union = _overlap(predicted, target)
    if kind == "iou":
        loss = -iou.log()
    elif kind == "linear_iou":
        loss = 1 - iou
    else:
        left, top, right, bottom = predicted.maximum(target).unbind(-1)
        enclosing = (left + right) * (bottom + top) + 1e-7
        loss = 1 - (iou - (enclosing - union) / enclosing)
    if weight is not None:
        loss = loss * torch.where(weight.sum() > 0, weight, 1.0)
    return loss.sum()


def _overlap(predicted: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """IoU, smoothed as `iou_loss` says, and union, both [P]."""
    left, top, right, bottom = predicted.unbind(-1)
    target_left, target_top, target_right, target_bottom = target.unbind(-1)
    shared_left, shared_top, shared_right, shared_bottom = predicted.minimum(target).unbind(-1)
    intersection = (shared_left + shared_right) * (shared_bottom + shared_top)
    target_area = (target_left + target_right) * (target_top + target_bottom)
    union = (left + right) * (top + bottom) + target_area - intersection
    return (intersection + 1.0) / (union + 1.0), union


def loss_normalizers(assignment: Assignment) -> Tensor:
    """What the losses of a batch are divided by: [2], its positives (at least 1), and the sum of their centerness.

    Both are means over the processes, by one collective that every process must call, whatever its data looks like.
    """
    central = centerness_targets(assignment.ltrb[torch.nonzero(assignment.labels >= 0, as_tuple=True)])  # [P]
    sums = torch.stack([central.new_full((), len(central)), central.sum()])
    num_positives, centerness_sum = mean_over_processes(sums)
    return torch.stack([num_positives.clamp(min=1.0), centerness_sum])


def fcos_loss(
    logits: Tensor,
    ltrb: Tensor,
    centerness: Tensor,
    assignment: Assignment,
    options: FCOSLoss,
    *,
    units: Tensor | None = None,
    normalizers: Tensor | None = None,
) -> dict[str, Tensor]:
    """The losses of a batch. Their sum is minimised.

    Args:
        logits: [N, R, K] class logits.
        ltrb: [N, R, 4] predicted distances, pixels.
        centerness: [N, R] logits of the third branch, whatever it has to learn.
        assignment: what the locations have to learn.
        options: kinds and parameters of the losses.
        units: [R] pixels a location's distances are divided by before the box loss (its stride); None: 1.
        normalizers: those of a larger batch that this one is a part of; None: `loss_normalizers(assignment)`.

    Returns:
        Scalars. `loss_cls` and `loss_centerness` (with `iou` called `loss_iou_quality`) are divided by the positives of
        a process (at least 1). `loss_box` is weighted by the centerness targets and divided by their sum; with `iou` it
        has no weights and is divided by the positives, too. All divisors are means over the processes.

    Source: FCOS, equation 2 and section 3.2; the normalisation follows the original code. IoU quality: the
    TPAMI version; as in AdelaiDet (measured) the target is smoothed like the IoU of the box loss, in the same unit.
    """
    image, location = torch.nonzero(assignment.labels >= 0, as_tuple=True)  # [P]
    predicted_ltrb, target_ltrb = ltrb[image, location], assignment.ltrb[image, location]  # [P, 4]
    central = centerness_targets(target_ltrb)  # [P]
    num_positives, centerness_sum = loss_normalizers(assignment) if normalizers is None else normalizers

    alpha, gamma = options.focal_alpha, options.focal_gamma
    loss_cls = focal_loss(logits.flatten(0, 1), assignment.labels.flatten(), alpha=alpha, gamma=gamma).sum()
    if units is not None:
        unit = units[location, None]
        predicted_ltrb, target_ltrb = predicted_ltrb / unit, target_ltrb / unit
    if options.quality == "centerness":
        target_quality, weight, divisor = central, central, centerness_sum
    else:
        overlap, _ = _overlap(predicted_ltrb.detach(), target_ltrb)
        target_quality, weight, divisor = overlap, None, num_positives
    if len(target_ltrb):
        loss_box = iou_loss(predicted_ltrb, target_ltrb, kind=options.box_loss, weight=weight) / divisor
    else:
        loss_box = predicted_ltrb.sum()  # 0, but connected: every process has the same gradients to reduce
    loss_quality = F.binary_cross_entropy_with_logits(
        centerness[image, location], target_quality.to(centerness.dtype), reduction="sum"
    )
    terms = loss_cls / num_positives, loss_box, loss_quality / num_positives
    return dict(zip(options.names, terms, strict=True))
