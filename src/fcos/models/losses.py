"""Losses of FCOS (classification, box, quality) and RetinaNet (classification, box), normalised over processes, and the
weights of the samples in the losses of two-stage detectors.

Shape letters: N images, R locations or anchors over all levels, K classes, P positive locations or anchors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss

from ..choices import AnchorBoxLoss, BoxLoss, Quality
from ..distributed import mean_over_processes
from .anchors import AnchorAssignment, BoxCoder
from .points import IGNORED, Assignment, centerness_targets

# The original clamps the probability to the smallest normal float32 before the logarithm, so that the loss of a
# positive is at most alpha * 87.34.
_LOG_MIN = float(torch.log(torch.tensor(torch.finfo(torch.float32).tiny, dtype=torch.float64)))


@dataclass(frozen=True)
class FCOSLoss:
    """Options of the losses.

    Attributes:
        box_loss: kind of the box loss, see `iou_loss`.
        quality: target of the third branch at positive locations: their `centerness`, or the `iou` of the currently
            predicted box and its ground truth. No gradient flows through the target.
        focal_alpha: weight of the positive class in the focal loss; the weight of the negative class is 1 - alpha.
        focal_gamma: focusing exponent of the focal loss.
    """

    box_loss: BoxLoss = "iou"
    quality: Quality = "centerness"
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0

    @property
    def names(self) -> tuple[str, str, str]:
        """Names of the loss terms: classification, box, third branch."""
        return "loss_cls", "loss_box", "loss_centerness" if self.quality == "centerness" else "loss_iou_quality"


def focal_loss(logits: Tensor, labels: Tensor, *, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Compute the sigmoid focal loss of every logit.

    Args:
        logits: [R, K] class logits.
        labels: [R] int64: the class 0..K-1, `BACKGROUND`, or `IGNORED` (no loss).
        alpha: weight of the positive class; the weight of the negative class is 1 - alpha.
        gamma: focusing exponent.

    Returns:
        [R, K] losses, not reduced.

    Source: Lin et al., ICCV 2017 (arXiv:1708.02002), equation 5.
    """
    # p ** gamma is computed as exp(gamma * log p): with gamma < 1, the power has no finite gradient where p underflows.
    loss = (1 - alpha) * (gamma * F.logsigmoid(logits)).exp() * F.softplus(logits)
    column = labels.clamp(min=0)[:, None]  # [R, 1]
    # Values of other rows are not used, but an infinite one would give a gradient of NaN.
    x = logits.gather(1, column).masked_fill(labels[:, None] < 0, 0.0)
    log_p = F.logsigmoid(x)
    log_p = log_p + (log_p.clamp(min=_LOG_MIN) - log_p).detach()  # the value saturates, the gradient does not vanish
    positive = -alpha * (-gamma * F.softplus(x)).exp() * log_p
    loss = loss.scatter(1, column, torch.where(labels[:, None] >= 0, positive, loss.gather(1, column)))
    return loss * (labels != IGNORED)[:, None]


def iou_loss(predicted: Tensor, target: Tensor, *, kind: BoxLoss, weight: Tensor | None = None) -> Tensor:
    """Compute the IoU loss of predicted distances, summed over locations.

    Args:
        predicted: [P, 4] distances to the left, top, right and bottom side of the predicted box, at least 0.
        target: [P, 4] distances to the sides of the ground-truth box, in the same unit.
        kind: `iou`: -log IoU; `linear_iou`: 1 - IoU; `giou`: 1 - GIoU.
        weight: [P] weights of the locations. They are ignored if their sum is 0, as in the original. None: all 1.

    Source: Yu et al. 2016 (arXiv:1608.01471); GIoU: Rezatofighi et al. 2019 (arXiv:1902.09630). As in the original,
    intersection and union are smoothed by 1, in the unit of the distances.
    """
    iou, union = _compute_iou(predicted, target)
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


def _compute_iou(predicted: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the IoU (intersection and union smoothed by 1) and the unsmoothed union, both [P]."""
    left, top, right, bottom = predicted.unbind(-1)
    target_left, target_top, target_right, target_bottom = target.unbind(-1)
    shared_left, shared_top, shared_right, shared_bottom = predicted.minimum(target).unbind(-1)
    intersection = (shared_left + shared_right) * (shared_bottom + shared_top)
    target_area = (target_left + target_right) * (target_top + target_bottom)
    union = (left + right) * (top + bottom) + target_area - intersection
    return (intersection + 1.0) / (union + 1.0), union


def loss_normalizers(assignment: Assignment) -> Tensor:
    """Compute the loss denominators [2] of a batch: the number of positives (at least 1) and their summed centerness.

    Both are means over the processes, computed in one collective. Every process must call it, even without positives.
    """
    return _loss_normalizers(centerness_targets(assignment.ltrb[torch.nonzero(assignment.labels >= 0, as_tuple=True)]))


def _loss_normalizers(centerness: Tensor) -> Tensor:
    """Compute the loss denominators from the centerness targets [P], see `loss_normalizers`."""
    sums = torch.stack([centerness.new_full((), len(centerness)), centerness.sum()])
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
    """Compute the losses of a batch. Training minimises their sum.

    Args:
        logits: [N, R, K] class logits.
        ltrb: [N, R, 4] predicted distances in pixels.
        centerness: [N, R] logits of the third branch, for centerness or IoU.
        assignment: training targets of the locations.
        options: kinds and parameters of the losses.
        units: [R] pixels that distances are divided by before the box loss (the stride of each location); None: 1.
        normalizers: [2] denominators of the whole batch, if this is a micro-batch of it; None:
            `loss_normalizers(assignment)`.

    Returns:
        Scalars by name. `loss_cls` and `loss_centerness` (`loss_iou_quality` with `quality="iou"`) are divided by the
        number of positives (at least 1). `loss_box` is weighted by the centerness targets and divided by their sum.
        With `quality="iou"`, it is not weighted and is also divided by the number of positives. All denominators are
        means over the processes.

    Source: FCOS, equation 2 and section 3.2; the normalisation follows the original code. IoU quality: the
    TPAMI version; as in AdelaiDet (measured) the target is smoothed like the IoU of the box loss, in the same unit.
    """
    image, location = torch.nonzero(assignment.labels >= 0, as_tuple=True)  # [P]
    predicted_ltrb, target_ltrb = ltrb[image, location], assignment.ltrb[image, location]  # [P, 4]
    target_centerness = centerness_targets(target_ltrb)  # [P]
    num_positives, centerness_sum = _loss_normalizers(target_centerness) if normalizers is None else normalizers

    alpha, gamma = options.focal_alpha, options.focal_gamma
    loss_cls = focal_loss(logits.flatten(0, 1), assignment.labels.flatten(), alpha=alpha, gamma=gamma).sum()
    if units is not None:
        location_units = units[location, None]
        predicted_ltrb, target_ltrb = predicted_ltrb / location_units, target_ltrb / location_units
    if options.quality == "centerness":
        target_quality, weight, divisor = target_centerness, target_centerness, centerness_sum
    else:
        iou, _ = _compute_iou(predicted_ltrb.detach(), target_ltrb)
        target_quality, weight, divisor = iou, None, num_positives
    if len(target_ltrb):
        loss_box = iou_loss(predicted_ltrb, target_ltrb, kind=options.box_loss, weight=weight) / divisor
    else:
        loss_box = predicted_ltrb.sum()  # 0, but keeps the graph, so that all ranks reduce the same gradients
    loss_quality = F.binary_cross_entropy_with_logits(
        centerness[image, location], target_quality.to(centerness.dtype), reduction="sum"
    )
    terms = loss_cls / num_positives, loss_box, loss_quality / num_positives
    return dict(zip(options.names, terms, strict=True))


@dataclass(frozen=True)
class RetinaNetLoss:
    """Options of the losses of RetinaNet.

    Attributes:
        focal_alpha: weight of the positive class in the focal loss; the weight of the negative class is 1 - alpha.
        focal_gamma: focusing exponent of the focal loss.
        box_loss: `smooth_l1`: loss of the box offsets; `giou`: GIoU loss of the decoded boxes (Rezatofighi et al., CVPR
            2019, arXiv:1902.09630).
        smooth_l1_beta: offset at which the smooth L1 loss becomes linear; 0: L1 loss.
        box_loss_divisor: factor of the number of positives in the denominator of the box loss.
    """

    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    box_loss: AnchorBoxLoss = "smooth_l1"
    smooth_l1_beta: float = 0.11
    box_loss_divisor: float = 4.0
    names = ("loss_cls", "loss_box")


def retinanet_normalizers(assignment: AnchorAssignment, options: RetinaNetLoss) -> Tensor:
    """Compute the loss denominators [2] of a batch: positives plus images, and positives times `box_loss_divisor`.

    Both are at least 1 and use means over the processes, computed in one collective. Every process must call it.
    """
    labels = assignment.labels
    counts = torch.stack([assignment.boxes.new_tensor(len(labels)), (labels >= 0).sum().to(assignment.boxes.dtype)])
    num_images, num_positives = mean_over_processes(counts)
    return torch.stack([num_positives + num_images, num_positives * options.box_loss_divisor]).clamp(min=1.0)


def retinanet_loss(
    logits: Tensor,
    offsets: Tensor,
    anchors: Tensor,
    assignment: AnchorAssignment,
    options: RetinaNetLoss,
    *,
    coder: BoxCoder,
    normalizers: Tensor | None = None,
) -> dict[str, Tensor]:
    """Compute the losses of a batch. Training minimises their sum.

    Args:
        logits: [N, R, K] class logits.
        offsets: [N, R, 4] predicted box offsets.
        anchors: [R, 4] in pixels.
        assignment: training targets of the anchors.
        options: parameters of the losses.
        coder: meaning of the offsets.
        normalizers: [2] denominators of the whole batch, if this is a micro-batch of it; None:
            `retinanet_normalizers(assignment, options)`.

    Returns:
        Scalars by name: `loss_cls`, the focal loss, and `loss_box`, the smooth L1 or GIoU loss of positive anchors,
        each summed and divided by its denominator.

    Source: Lin et al., ICCV 2017 (arXiv:1708.02002), section 4.1; the denominators follow the original code, which
    computes them per process.
    """
    image, anchor = torch.nonzero(assignment.labels >= 0, as_tuple=True)  # [P]
    cls_divisor, box_divisor = retinanet_normalizers(assignment, options) if normalizers is None else normalizers
    alpha, gamma = options.focal_alpha, options.focal_gamma
    loss_cls = focal_loss(logits.flatten(0, 1), assignment.labels.flatten(), alpha=alpha, gamma=gamma).sum()
    predicted, matched = offsets[image, anchor], assignment.boxes[assignment.matched[image, anchor]]  # [P, 4]
    if options.box_loss == "giou":
        extra = predicted.new_tensor([0.0, 0.0, 1.0, 1.0]) * (coder.box_convention == "inclusive")
        boxes, targets = coder.decode(predicted, anchors[anchor]) + extra, matched.to(predicted.dtype) + extra
        loss_box = generalized_box_iou_loss(boxes, targets, reduction="sum")
    else:
        target = coder.encode(matched, anchors[anchor]).to(predicted.dtype)
        loss_box = F.smooth_l1_loss(predicted, target, reduction="sum", beta=options.smooth_l1_beta)
    return dict(zip(options.names, (loss_cls / cls_divisor, loss_box / box_divisor), strict=True))


def sample_weights(counts: Sequence[int], num_images: Tensor | None, *, like: Tensor) -> Tensor:
    """Compute the weights of samples; a sum of their losses with these weights is a mean.

    Args:
        counts: number of samples S_i of each image.
        num_images: [1] mean number of images per process of the whole batch. The mean is then computed over the samples
            of each image, and over the images, of which those without samples count as 0. None: over all samples.
        like: tensor whose dtype and device the result has.

    Returns:
        [sum of S_i], image by image.
    """
    sizes = torch.tensor(counts, dtype=like.dtype, device=like.device)
    divisors = sizes.sum().expand(len(sizes)) if num_images is None else sizes * num_images.to(sizes)
    return (1 / divisors.clamp(min=1e-9)).repeat_interleave(sizes.long())
