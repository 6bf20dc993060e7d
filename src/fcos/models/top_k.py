"""Selection of candidates with tensors of fixed size, for GPUs, which have to wait for every size that depends on data.

The candidates are those of `postprocess`, which is faster on a CPU, as it skips the predictions below the threshold.

Shape letters: N images, L levels, K classes, A anchors per location, H W map size, T selected predictions of a level, C
candidates of an image over all levels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..structures import Instances
from .anchors import BoxCoder
from .postprocess import FCOSPostprocess, Postprocess, decode


def top_candidates(
    logits: Sequence[Tensor],
    ltrb: Sequence[Tensor],
    centerness: Sequence[Tensor],
    points: Sequence[Tensor],
    sizes: Sequence[tuple[int, int]],
    *,
    options: FCOSPostprocess,
) -> list[Instances]:
    """Decode, score and select the boxes of every image; see `postprocess.candidates`, whose arguments are the same."""
    limits = _limits(sizes, points[0])
    levels = []
    for x, distances, quality, level_points in zip(logits, ltrb, centerness, points, strict=True):
        probability = x.flatten(2).sigmoid()  # [N, K, H * W]
        product = probability * quality.flatten(2).sigmoid()
        score = product.sqrt() if options.score == "sqrt" else product
        thresholded = probability if options.threshold_on == "class" else score
        valid = (thresholded > options.score_threshold) & (product >= 0)  # the second test excludes NaN
        valid &= _may_detect(level_points, limits, options)[:, None]
        rank = (probability if options.top_k_on == "class" else product).where(valid, -1.0).flatten(1)
        best, index = rank.topk(min(options.pre_nms_top_k, rank.shape[1]), dim=1)  # [N, T]
        location = index % len(level_points)
        selected = distances.flatten(2).transpose(1, 2).gather(1, location[..., None].expand(-1, -1, 4))  # [N, T, 4]
        levels.append(
            (
                decode(level_points[location], selected),
                score.flatten(1).gather(1, index),
                index // len(level_points),
                best >= 0,
            )
        )
    return _to_instances(levels, limits, sizes, options)


def top_anchor_candidates(
    logits: Sequence[Tensor],
    offsets: Sequence[Tensor],
    anchors: Sequence[Tensor],
    points: Sequence[Tensor],
    sizes: Sequence[tuple[int, int]],
    *,
    coder: BoxCoder,
    options: Postprocess,
) -> list[Instances]:
    """Decode and select the boxes of every image; see `postprocess.anchor_candidates`, whose arguments are the same."""
    limits = _limits(sizes, points[0])
    levels = []
    for x, level_offsets, level_anchors, level_points in zip(logits, offsets, anchors, points, strict=True):
        num_points = len(level_points)
        num_anchors = len(level_anchors) // num_points
        num_classes = x.shape[1] // num_anchors
        score = x.flatten(2).sigmoid()  # [N, A * K, H * W]
        valid = (score > options.score_threshold) & _may_detect(level_points, limits, options)[:, None]
        rank = score.where(valid, -1.0).flatten(1)  # NaN is not valid either
        best, index = rank.topk(min(options.pre_nms_top_k, rank.shape[1]), dim=1)  # [N, T]
        row, location = index // num_points, index % num_points
        anchor = location * num_anchors + row // num_classes
        per_anchor = level_offsets.unflatten(1, (num_anchors, 4)).flatten(3).permute(0, 3, 1, 2).flatten(1, 2)
        selected = per_anchor.gather(1, anchor[..., None].expand(-1, -1, 4))  # [N, T, 4]
        levels.append((coder.decode(selected, level_anchors[anchor]), best, row % num_classes, best >= 0))
    return _to_instances(levels, limits, sizes, options)


def _limits(sizes: Sequence[tuple[int, int]], like: Tensor) -> Tensor:
    """Return (width, height) of every image, [N, 1, 2], on the device of a tensor."""
    limits = torch.tensor([(width, height) for height, width in sizes], dtype=like.dtype)
    return limits.reshape(-1, 1, 2).to(like.device, non_blocking=True)


def _may_detect(points: Tensor, limits: Tensor, options: Postprocess) -> Tensor:
    """Return a mask [N, H * W] of the points that may detect: those in the image, or all with `detect_in_padding`."""
    if options.detect_in_padding or options.box_convention == "inclusive":
        return torch.ones_like(points[:, 0], dtype=torch.bool).expand(len(limits), -1)
    return (points < limits).all(dim=-1)


def _to_instances(
    levels: Sequence[tuple[Tensor, Tensor, Tensor, Tensor]],
    limits: Tensor,
    sizes: Sequence[tuple[int, int]],
    options: Postprocess,
) -> list[Instances]:
    """Concatenate the levels' boxes [N, T, 4], scores, labels and validity [N, T], and keep the valid ones."""
    boxes, scores, labels, valid = (torch.cat(tensors, dim=1) for tensors in zip(*levels, strict=True))  # [N, C, ...]
    if not options.clip_after_nms:
        extra = 1.0 if options.box_convention == "inclusive" else 0.0
        boxes = boxes.clamp(min=0).minimum((limits - extra).repeat(1, 1, 2))
        if not (options.keep_empty_boxes or options.box_convention == "inclusive"):
            valid = valid & (boxes[..., 2:] > boxes[..., :2]).all(dim=-1)
    counts = valid.sum(dim=1).tolist()
    image, candidate = torch.nonzero(valid, as_tuple=True)
    columns = (tensor[image, candidate].split(counts) for tensor in (boxes, labels, scores))
    return [Instances(*rows) for rows in zip(*columns, sizes, strict=True)]
