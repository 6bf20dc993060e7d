"""Conversion of the head's outputs to candidates, the input of suppression: decoding, scores, threshold, top k.

Shape letters: N images, L levels, K classes, A anchors per location, H W map size, P predictions of a level or
proposals of an image, C candidates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..structures import Instances
from .anchors import BoxCoder, flatten_anchors
from .postprocess import FCOSPostprocess, Postprocess, RoIPostprocess, clip_instances


def decode(points: Tensor, ltrb: Tensor) -> Tensor:
    """Compute boxes [..., 4] XYXY from locations [..., 2] (x, y) and distances [..., 4], all in pixels."""
    return torch.cat([points - ltrb[..., :2], points + ltrb[..., 2:]], dim=-1)


class LevelCandidates(NamedTuple):
    """Candidates of one level of one image, best first.

    Attributes:
        boxes: [C, 4] in pixels, not clipped.
        scores: [C].
        labels: [C].
        locations: [C] positions of their locations among those of the level.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    locations: Tensor


def candidates(
    logits: Sequence[Tensor],
    ltrb: Sequence[Tensor],
    centerness: Sequence[Tensor],
    points: Sequence[Tensor],
    sizes: Sequence[tuple[int, int]],
    *,
    options: FCOSPostprocess,
) -> list[Instances]:
    """Decode and score the boxes of every image and keep the best as candidates, the input of `suppress`.

    Args:
        logits: L tensors [N, K, H, W] of class logits.
        ltrb: L tensors [N, 4, H, W] of distances in pixels.
        centerness: L tensors [N, 1, H, W] of centerness logits.
        points: L tensors [H * W, 2] of locations (x, y) in pixels.
        sizes: (height, width) of the N images without the padding.
        options: options of scoring, selection and clipping.

    Returns:
        Candidates of each of the N images, level by level, in the pixels of `points` and the box convention of
        `options`. They are clipped to their image unless `clip_after_nms` is set.

    Source: FCOS, section 3.1, where the score is the product; the square root follows the original code.
    """
    results = []
    for image, size in enumerate(sizes):
        levels = [
            select_candidates(
                logits[level][image],
                ltrb[level][image],
                centerness[level][image],
                points[level],
                image_size=size,
                options=options,
            )[:3]
            for level in range(len(points))
        ]
        results.append(_join_levels(levels, size, options))
    return results


def anchor_candidates(
    logits: Sequence[Tensor],
    offsets: Sequence[Tensor],
    anchors: Sequence[Tensor],
    points: Sequence[Tensor],
    sizes: Sequence[tuple[int, int]],
    *,
    coder: BoxCoder,
    options: Postprocess,
) -> list[Instances]:
    """Decode the boxes of every image's anchors and keep the best as candidates, the input of `suppress`.

    Args:
        logits: L tensors [N, A * K, H, W] of class logits, the K classes of an anchor together.
        offsets: L tensors [N, A * 4, H, W] of box offsets, the four offsets of an anchor together.
        anchors: L tensors [H * W * A, 4] in pixels, the A anchors of a location together.
        points: L tensors [H * W, 2] of locations (x, y) in pixels.
        sizes: (height, width) of the N images without the padding.
        coder: meaning of the offsets.
        options: options of selection and clipping.

    Returns:
        Candidates of each of the N images, as those of `candidates`. Their score is the class probability.
    """
    results = []
    for image, size in enumerate(sizes):
        levels = [
            _select_anchor_candidates(
                logits[level][image],
                offsets[level][image],
                anchors[level],
                points[level],
                image_size=size,
                coder=coder,
                options=options,
            )
            for level in range(len(points))
        ]
        results.append(_join_levels(levels, size, options))
    return results


def roi_candidates(
    logits: Tensor,
    offsets: Tensor,
    proposals: Tensor,
    size: tuple[int, int],
    *,
    coder: BoxCoder,
    options: RoIPostprocess,
) -> Instances:
    """Decode the boxes of an image's proposals and keep the best as candidates, the input of `suppress`.

    Args:
        logits: [P, 1 + K] class logits of P proposals, first that of the background.
        offsets: [P, 4 * (1 + K)] box offsets of every class, or [P, 8], of which the last four hold for all classes.
        proposals: [P, 4] in pixels.
        size: (height, width) of the image without the padding.
        coder: meaning of the offsets.
        options: options of selection and clipping; `pre_nms_top_k` applies to all candidates of the image.

    Returns:
        At most `pre_nms_top_k` candidates, each a proposal and a class. Only their boxes are decoded, so that
        the memory does not grow with the number of classes. Their score is the class probability.
    """
    scores = logits.softmax(dim=1)[:, 1:].flatten()  # [P * K]
    num_classes = logits.shape[1] - 1
    index = torch.nonzero(scores > options.score_threshold).squeeze(1)  # also excludes NaN
    if len(index) > options.pre_nms_top_k:
        index = index[scores[index].topk(options.pre_nms_top_k).indices]
    rows, labels = index // num_classes, index % num_classes
    boxes = coder.decode(select_offsets(offsets, rows, labels + 1), proposals[rows])
    candidates = Instances(boxes, labels, scores[index], size)
    candidates = clip_instances(candidates, replace(options, keep_empty_boxes=options.empty_boxes != "remove"))
    if options.min_size > 0:
        sides = candidates.boxes[:, 2:] - candidates.boxes[:, :2]
        candidates = candidates[(sides >= options.min_size).all(dim=1)]
    return candidates


def select_offsets(offsets: Tensor, rows: Tensor, labels: Tensor) -> Tensor:
    """Return the offsets [R, 4] of rows [R] of [P, 4 * (1 + K)] or [P, 8] offsets, for labels [R] in 1..K."""
    columns = offsets.unflatten(1, (-1, 4))
    return columns[rows, labels.clamp(max=columns.shape[1] - 1)]


def _join_levels(
    levels: Sequence[tuple[Tensor, Tensor, Tensor]], size: tuple[int, int], options: Postprocess
) -> Instances:
    """Concatenate the boxes, scores and labels of the levels of an image of (height, width) `size`."""
    boxes, scores, labels = (torch.cat(tensors) for tensors in zip(*levels, strict=True))
    image_candidates = Instances(boxes, labels, scores, size)
    return image_candidates if options.clip_after_nms else clip_instances(image_candidates, options)


def select_candidates(
    logits: Tensor,
    ltrb: Tensor,
    centerness: Tensor,
    points: Tensor,
    *,
    image_size: tuple[int, int],
    options: FCOSPostprocess,
) -> LevelCandidates:
    """Select the candidates of one level of one image, at most `pre_nms_top_k`; for the arguments see `candidates`."""
    score, label, location = _select(
        logits.flatten(1), centerness.flatten(), points, image_size=image_size, options=options
    )
    boxes = decode(points.index_select(0, location), _select_columns(ltrb.flatten(1), location).T)
    return LevelCandidates(boxes, score, label, location)


def _select(
    logits: Tensor, quality: Tensor, points: Tensor, *, image_size: tuple[int, int], options: FCOSPostprocess
) -> tuple[Tensor, Tensor, Tensor]:
    """Select the best predictions of one level of one image, at most `pre_nms_top_k`.

    Args:
        logits: [K, P] class logits of P predictions, equally many for each point, those of a point together.
        quality: [P] centerness logits.
        points: [H * W, 2] (x, y) in pixels.
        image_size: (height, width) of the image without the padding.
        options: options of scoring and selection.

    Returns:
        Scores [C], labels [C] and positions [C] among the P predictions, best first.
    """
    is_one_class = len(logits) == 1
    best = logits[0] if is_one_class else logits.amax(0)  # [P]; NaN if any is NaN, which excludes no prediction
    # As the centerness is at most 1, sqrt(probability * centerness) > threshold implies probability > threshold**2.
    is_squared = options.threshold_on == "score" and options.score == "sqrt"
    lowest = options.score_threshold**2 if is_squared else options.score_threshold
    # A test on logits avoids the sigmoid of most; the exact tests follow on the rest.
    min_logits: Tensor | float = _logit(lowest) - 1e-3
    index = torch.nonzero(~(best <= min_logits)).squeeze(1)
    if not may_detect(points[-1:], image_size, options):  # the last point has the largest x and y
        index = index[may_detect(points[index // (len(best) // len(points))], image_size, options)]
    if not len(index):  # as on most coarse levels
        return logits.new_zeros(0), index, index
    quality = quality.index_select(0, index).sigmoid()
    if len(index) > options.pre_nms_top_k:
        # The k-th best of these ranks is a lower bound of the k-th best of all classes.
        _, rank, is_valid = _score(best[index], quality, options)
        bound = torch.where(is_valid, rank, 0.0).topk(options.pre_nms_top_k).values[-1] * (1 - 1e-5)
        is_candidate = ~(rank < bound)
        index, quality = index[is_candidate], quality[is_candidate]
        probability = bound if options.top_k_on == "class" else bound / quality
        min_logits = probability.clamp(lowest, 0.999).logit() - 1e-3
    if is_one_class:
        x, label = best.index_select(0, index), torch.zeros_like(index)
    else:
        x = _select_columns(logits, index)
        label, column = torch.nonzero(x > min_logits, as_tuple=True)
        x, quality, index = x[label, column], quality.index_select(0, column), index.index_select(0, column)
    score, rank, is_valid = _score(x, quality, options)
    limit = min(options.pre_nms_top_k, int(is_valid.sum()))
    best = torch.where(is_valid, rank, -1.0).topk(limit).indices
    return score.index_select(0, best), label.index_select(0, best), index.index_select(0, best)


def _select_columns(rows: Tensor, index: Tensor) -> Tensor:
    """Return the columns [K, P] of [K, H * W]: faster than indexing, in both memory formats."""
    return rows.T.index_select(0, index).T if rows.stride(0) == 1 else rows.index_select(1, index)


def _score(logits: Tensor, quality: Tensor, options: FCOSPostprocess) -> tuple[Tensor, Tensor, Tensor]:
    """Compute scores [..., P], the values that rank the candidates, and a mask of those above the threshold.

    Args:
        logits: [..., P] of P locations.
        quality: [P] centerness in 0..1.
        options: options of scoring and selection.
    """
    probability = logits.sigmoid()
    product = probability * quality
    score = product.sqrt() if options.score == "sqrt" else product
    thresholded = probability if options.threshold_on == "class" else score
    is_valid = (thresholded > options.score_threshold) & (product >= 0)  # the second test excludes NaN
    return score, probability if options.top_k_on == "class" else product, is_valid


def _select_anchor_candidates(
    logits: Tensor,
    offsets: Tensor,
    anchors: Tensor,
    points: Tensor,
    *,
    image_size: tuple[int, int],
    coder: BoxCoder,
    options: Postprocess,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return boxes [C, 4], scores [C] and labels [C] of one level of one image, with C <= `pre_nms_top_k`."""
    num_anchors = len(anchors) // len(points)
    rows, anchor_offsets = (flatten_anchors(x[None], num_anchors)[0] for x in (logits, offsets))  # [P, K], [P, 4]
    scoring = FCOSPostprocess(**vars(options), score="product", top_k_on="class")  # the score is the class probability
    certain = logits.new_full((), math.inf).expand(len(anchors))
    score, label, anchor = _select(rows.T, certain, points, image_size=image_size, options=scoring)
    return coder.decode(anchor_offsets[anchor], anchors[anchor]), score, label


def may_detect(points: Tensor, image_size: tuple[int, int], options: Postprocess) -> Tensor:
    """Return a mask [C] of the points (x, y) that may detect: those in the image, or all with `detect_in_padding`."""
    if options.detect_in_padding or options.box_convention == "inclusive":
        return torch.ones_like(points[:, 0], dtype=torch.bool)
    height, width = image_size
    return (points < points.new_tensor([width, height])).all(dim=1)


def _logit(probability: float) -> float:
    if not 0 < probability < 1:
        return -math.inf if probability <= 0 else math.inf
    return math.log(probability / (1 - probability))
