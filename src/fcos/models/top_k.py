"""Selection of candidates in tensors of fixed size, see `padded`: those that `candidates` selects on a CPU.

Shape letters: N images, L levels, K classes, A anchors per location, H W map size, T selected predictions of a level, C
candidates of an image over all levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .anchors import BoxCoder, flatten_anchors
from .candidates import decode
from .padded import Padded, clip_boxes, clip_padded, limits_of, nms_padded
from .postprocess import FCOSPostprocess, Postprocess, RoIPostprocess
from .proposals import ProposalSelection


def top_candidates(
    logits: Sequence[Tensor],
    ltrb: Sequence[Tensor],
    centerness: Sequence[Tensor],
    points: Sequence[Tensor],
    sizes: Tensor,
    *,
    options: FCOSPostprocess,
    score_threshold: Tensor | float,
) -> Padded:
    """Decode, score and select the boxes of every image; see `candidates.candidates`.

    Args:
        logits: L tensors [N, K, H, W] of class logits.
        ltrb: L tensors [N, 4, H, W] of distances in pixels.
        centerness: L tensors [N, 1, H, W] of centerness logits.
        points: L tensors [H * W, 2] of locations (x, y) in pixels.
        sizes: [N, 2] int64 (height, width) of the images without the padding.
        options: options of scoring, selection and clipping.
        score_threshold: threshold that replaces `options.score_threshold`; a tensor can change in an exported file.
    """
    limits = limits_of(sizes, points[0])
    levels = []
    for x, distances, quality, level_points in zip(logits, ltrb, centerness, points, strict=True):
        probability = x.flatten(2).sigmoid()  # [N, K, H * W]
        product = probability * quality.flatten(2).sigmoid()
        score = product.sqrt() if options.score == "sqrt" else product
        thresholded = probability if options.threshold_on == "class" else score
        valid = (thresholded > score_threshold) & (product >= 0)  # the second test excludes NaN
        valid &= _may_detect(level_points, limits, options)[:, None]
        rank = (probability if options.top_k_on == "class" else product).where(valid, -1.0).flatten(1)
        best, index = _top_k(rank, options.pre_nms_top_k)  # [N, T]
        num_points = level_points.shape[0]  # not len(), which is never symbolic
        label = index // num_points
        location = index - label * num_points  # not the remainder, which ONNX lacks for a symbolic divisor
        selected = distances.flatten(2).transpose(1, 2).gather(1, location[..., None].expand(-1, -1, 4))  # [N, T, 4]
        levels.append(
            (
                decode(level_points[location], selected),
                score.flatten(1).gather(1, index),
                label,
                best >= 0,
            )
        )
    return _join(levels, sizes, options)


def top_anchor_candidates(
    logits: Sequence[Tensor],
    offsets: Sequence[Tensor],
    anchors: Sequence[Tensor],
    points: Sequence[Tensor],
    sizes: Tensor,
    *,
    coder: BoxCoder,
    options: Postprocess,
    score_threshold: Tensor | float,
) -> Padded:
    """Decode and select the boxes of every image; see `candidates.anchor_candidates`.

    Args:
        logits: L tensors [N, A * K, H, W] of class logits, the K classes of an anchor together.
        offsets: L tensors [N, A * 4, H, W] of box offsets, the four offsets of an anchor together.
        anchors: L tensors [H * W * A, 4] in pixels, the A anchors of a location together.
        points: L tensors [H * W, 2] of locations (x, y) in pixels.
        sizes: [N, 2] int64 (height, width) of the images without the padding.
        coder: meaning of the offsets.
        options: options of selection and clipping.
        score_threshold: threshold that replaces `options.score_threshold`; a tensor can change in an exported file.
    """
    limits = limits_of(sizes, points[0])
    levels = []
    for x, level_offsets, level_anchors, level_points in zip(logits, offsets, anchors, points, strict=True):
        num_points = level_points.shape[0]  # not len(), which is never symbolic
        num_anchors = level_offsets.shape[1] // 4
        num_classes = x.shape[1] // num_anchors
        score = x.flatten(2).sigmoid()  # [N, A * K, H * W]
        valid = (score > score_threshold) & _may_detect(level_points, limits, options)[:, None]
        rank = score.where(valid, -1.0).flatten(1)  # NaN is not valid either
        best, index = _top_k(rank, options.pre_nms_top_k)  # [N, T]
        row = index // num_points
        location = index - row * num_points
        anchor = location * num_anchors + row // num_classes
        per_anchor = level_offsets.unflatten(1, (num_anchors, 4)).flatten(3).permute(0, 3, 1, 2).flatten(1, 2)
        selected = per_anchor.gather(1, anchor[..., None].expand(-1, -1, 4))  # [N, T, 4]
        levels.append((coder.decode(selected, level_anchors[anchor]), best, row % num_classes, best >= 0))
    return _join(levels, sizes, options)


def top_proposals(
    logits: Sequence[Tensor],
    offsets: Sequence[Tensor],
    anchors: Sequence[Tensor],
    sizes: Tensor,
    *,
    coder: BoxCoder,
    options: ProposalSelection,
) -> Padded:
    """Decode and select the proposals of every image in detection; see `proposals.proposal_candidates`.

    Args:
        logits: L tensors [N, A, H, W] of logits of the probability of an object.
        offsets: L tensors [N, A * 4, H, W] of box offsets, the four offsets of an anchor together.
        anchors: L tensors [H * W * A, 4] in pixels.
        sizes: [N, 2] int64 (height, width) of the images without the padding.
        coder: meaning of the offsets.
        options: options of the selection.

    Returns:
        Candidates whose labels are the numbers of their levels.
    """
    is_inclusive = options.box_convention == "inclusive"
    limits = limits_of(sizes, anchors[0])
    levels = []
    for level, (x, level_offsets, level_anchors) in enumerate(zip(logits, offsets, anchors, strict=True)):
        num_anchors = x.shape[1]
        score = flatten_anchors(x, num_anchors).squeeze(2).sigmoid()  # [N, H * W * A]
        rank = score.where(score >= 0, -1.0)  # excludes NaN
        if not (options.in_padding or is_inclusive):
            centers = (level_anchors[:, :2] + level_anchors[:, 2:]) / 2
            rank = rank.where((centers < limits).all(dim=-1), -1.0)
        best, index = _top_k(rank, options.detection.pre_nms_top_k)  # [N, T]
        selected = flatten_anchors(level_offsets, num_anchors).gather(1, index[..., None].expand(-1, -1, 4))
        boxes = coder.decode(selected, level_anchors[index])
        levels.append((boxes, best, torch.full_like(index, level), best >= 0))
    candidates = Padded(*(torch.cat(tensors, dim=1) for tensors in zip(*levels, strict=True)))  # [N, C, ...]
    boxes = clip_boxes(candidates.boxes, sizes, options.box_convention)
    sides = boxes[..., 2:] - boxes[..., :2] + (1 if is_inclusive else 0)
    is_large = sides >= options.min_size if is_inclusive else (sides >= options.min_size) & (sides > 0)
    return candidates._replace(boxes=boxes, valid=candidates.valid & is_large.all(dim=-1))


def select_padded_proposals(candidates: Padded, options: ProposalSelection, *, num_levels: int) -> Padded:
    """Select the proposals of every image in detection; see `proposals.select_proposals`.

    Args:
        candidates: C candidates of every image, whose labels are the numbers of their levels.
        options: options of the suppression, and the limits.
        num_levels: L.

    Returns:
        The proposals, the valid ones first and best score first.
    """
    limits = options.detection
    kept = nms_padded(candidates, options.nms_threshold, options.box_convention, num_classes=num_levels)
    if limits.post_nms_top_k < limits.pre_nms_top_k:
        is_of_level = (kept.labels[..., None] == torch.arange(num_levels, device=kept.labels.device)) & kept.valid[
            ..., None
        ]
        rank = is_of_level.long().cumsum(1).gather(2, kept.labels[..., None]).squeeze(2)  # 1 for the best of a level
        kept = kept.compact(kept.valid & (rank <= limits.post_nms_top_k))
    return Padded(*(column[:, : limits.max_proposals] for column in kept))


def top_roi_candidates(
    logits: Tensor,
    offsets: Tensor,
    proposals: Padded,
    sizes: Tensor,
    *,
    coder: BoxCoder,
    options: RoIPostprocess,
    score_threshold: Tensor | float,
) -> Padded:
    """Decode and select the boxes of the proposals of every image; see `candidates.roi_candidates`.

    Args:
        logits: [N, P, 1 + K] class logits of P proposals, first that of the background.
        offsets: [N, P, 4 * (1 + K)] box offsets of every class, or [N, P, 8], of which the last four hold for all.
        proposals: P proposals of every image.
        sizes: [N, 2] int64 (height, width) of the images without the padding.
        coder: meaning of the offsets.
        options: options of selection and clipping.
        score_threshold: threshold that replaces `options.score_threshold`; a tensor can change in an exported file.
    """
    num_classes, num_boxes = logits.shape[2] - 1, offsets.shape[2] // 4
    score = logits.softmax(dim=2)[..., 1:]  # [N, P, K]
    rank = score.where((score > score_threshold) & proposals.valid[..., None], -1.0).flatten(1)
    best, index = _top_k(rank, options.pre_nms_top_k)  # [N, C]
    row, label = index // num_classes, index % num_classes
    column = row * num_boxes + (label + 1).clamp(max=num_boxes - 1)
    selected = offsets.unflatten(2, (-1, 4)).flatten(1, 2).gather(1, column[..., None].expand(-1, -1, 4))
    references = proposals.boxes.gather(1, row[..., None].expand(-1, -1, 4))
    candidates = Padded(coder.decode(selected, references), best, label, best >= 0)
    candidates = clip_padded(candidates, sizes, replace(options, keep_empty_boxes=options.empty_boxes != "remove"))
    if options.min_size > 0:
        sides = candidates.boxes[..., 2:] - candidates.boxes[..., :2]
        candidates = candidates._replace(valid=candidates.valid & (sides >= options.min_size).all(dim=-1))
    return candidates


def _top_k(rank: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """Return the `limit` largest values of every row of [N, P], and their indices; all of a row that has fewer.

    If the number P is symbolic (in an exported graph with images of any size), rows are padded with -1.
    """
    count = rank.shape[1]
    if isinstance(count, int):
        return rank.topk(min(limit, count), dim=1)
    best, index = F.pad(rank, (0, limit), value=-1.0).topk(limit, dim=1)
    return best, index.clamp(max=count - 1)


def _may_detect(points: Tensor, limits: Tensor, options: Postprocess) -> Tensor:
    """Return a mask [N, H * W] of the points that may detect: those in the image, or all with `detect_in_padding`."""
    if options.detect_in_padding or options.box_convention == "inclusive":
        return torch.ones_like(points[:, 0], dtype=torch.bool).expand(limits.shape[0], -1)
    return (points < limits).all(dim=-1)


def _join(levels: Sequence[tuple[Tensor, Tensor, Tensor, Tensor]], sizes: Tensor, options: Postprocess) -> Padded:
    """Concatenate the levels' boxes [N, T, 4], scores, labels and validity [N, T]."""
    candidates = Padded(*(torch.cat(tensors, dim=1) for tensors in zip(*levels, strict=True)))  # [N, C, ...]
    return candidates if options.clip_after_nms else clip_padded(candidates, sizes, options)
