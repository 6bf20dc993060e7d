"""Selection of proposals among the outputs of a region proposal network.

Shape letters: N images, L levels, A anchors per location, R anchors over all levels, C candidates, H W map size.

Source: Ren et al., NeurIPS 2015 (arXiv:1506.01497). The order of the steps follows maskrcnn-benchmark.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..boxes import class_wise_nms, clip
from ..choices import BoxConvention
from ..structures import Instances
from .anchors import BoxCoder, flatten_anchors


@dataclass(frozen=True)
class ProposalLimits:
    """Largest numbers of proposals.

    Attributes:
        pre_nms_top_k: largest number of candidates per level and image.
        post_nms_top_k: largest number of proposals per level and image.
        max_proposals: largest number of proposals per image.
    """

    pre_nms_top_k: int = 1000
    post_nms_top_k: int = 1000
    max_proposals: int = 1000


@dataclass(frozen=True)
class ProposalSelection:
    """Options of the conversion of the head's outputs to proposals.

    Attributes:
        training: limits in training.
        detection: limits in detection.
        nms_threshold: IoU above which the lower-scoring of two boxes of a level is suppressed; 0 or less: no
            suppression.
        min_size: smallest width and height in pixels.
        limit_per_batch: whether `max_proposals` applies to all images together in training, as in the original.
        in_padding: whether anchors with their centre in the padding are also used; results then depend on the batch.
        box_convention: convention of the boxes. `inclusive` implies `in_padding`.
    """

    training: ProposalLimits = ProposalLimits(2000, 2000, 2000)
    detection: ProposalLimits = ProposalLimits()
    nms_threshold: float = 0.7
    min_size: float = 0.0
    limit_per_batch: bool = False
    in_padding: bool = False
    box_convention: BoxConvention = "continuous"


@torch.no_grad()
def proposal_candidates(
    logits: Sequence[Tensor],
    offsets: Sequence[Tensor],
    anchors: Sequence[Tensor],
    sizes: Sequence[tuple[int, int]],
    *,
    coder: BoxCoder,
    top_k: int,
    options: ProposalSelection,
) -> list[Instances]:
    """Decode the boxes of every image's anchors and keep the best of each level, the input of `select_proposals`.

    Args:
        logits: L tensors [N, A, H, W] of logits of the probability of an object.
        offsets: L tensors [N, A * 4, H, W] of box offsets, the four offsets of an anchor together.
        anchors: L tensors [H * W * A, 4] in pixels.
        sizes: (height, width) of the N images without the padding.
        coder: meaning of the offsets.
        top_k: largest number of candidates per level and image.
        options: options of the selection.

    Returns:
        Candidates of each of the N images, clipped to the image. Their labels are the numbers of their levels.
    """
    levels = [
        (flatten_anchors(x, x.shape[1]).squeeze(2).sigmoid(), flatten_anchors(y, x.shape[1]))
        for x, y in zip(logits, offsets, strict=True)
    ]  # [N, H * W * A], [N, H * W * A, 4]
    convention = options.box_convention
    results = []
    for image, size in enumerate(sizes):
        boxes, scores = [], []
        for (level_scores, level_offsets), level_anchors in zip(levels, anchors, strict=True):
            rank = torch.where(level_scores[image] >= 0, level_scores[image], -1.0)  # excludes NaN
            if not (options.in_padding or convention == "inclusive"):
                rank = torch.where(anchors_in_image(level_anchors, size), rank, -1.0)
            rank, index = rank.topk(min(top_k, len(rank)))
            index = index[rank >= 0]
            boxes.append(
                clip(coder.decode(level_offsets[image, index], level_anchors[index]), size, convention=convention)
            )
            scores.append(rank[rank >= 0])
        labels = [torch.full((len(x),), level, device=x.device) for level, x in enumerate(boxes)]
        candidates = Instances(torch.cat(boxes), torch.cat(labels), torch.cat(scores), size)
        sides = candidates.boxes[:, 2:] - candidates.boxes[:, :2] + (1 if convention == "inclusive" else 0)
        is_large = sides >= options.min_size if convention == "inclusive" else (sides >= options.min_size) & (sides > 0)
        results.append(candidates[is_large.all(dim=1)])
    return results


@torch.no_grad()
def select_proposals(candidates: Instances, limits: ProposalLimits, options: ProposalSelection) -> Instances:
    """Select the proposals among the candidates of an image, best score first, level by level suppressed and limited.

    Args:
        candidates: candidates whose labels are the numbers of their levels.
        limits: largest numbers of proposals.
        options: options of the suppression.
    """
    if not len(candidates):
        return candidates
    keep = class_wise_nms(
        candidates.boxes,
        candidates.scores,
        candidates.labels,
        options.nms_threshold,
        convention=options.box_convention,
    )
    levels = candidates.labels[keep]
    rank = F.one_hot(levels).cumsum(0).gather(1, levels[:, None]).squeeze(1)  # 1 for the best of a level
    return candidates[keep[rank <= limits.post_nms_top_k][: limits.max_proposals]]


def limit_per_batch(proposals: Sequence[Instances], limit: int) -> list[Instances]:
    """Keep the `limit` proposals with the highest scores of all images together."""
    scores = torch.cat([image.scores for image in proposals])
    is_best = torch.zeros_like(scores, dtype=torch.bool)
    is_best[scores.topk(min(limit, len(scores))).indices] = True
    masks = is_best.split([len(image) for image in proposals])
    return [image[mask] for image, mask in zip(proposals, masks, strict=True)]


def anchors_in_image(anchors: Tensor, size: tuple[int, int], *, straddle_threshold: float | None = None) -> Tensor:
    """Return a mask [R] of the anchors that are used for an image.

    Args:
        anchors: [R, 4] in pixels.
        size: (height, width) of the image without the padding.
        straddle_threshold: largest number of pixels by which an anchor may cross the image border. None: anchors are
            used if their centre is not in the padding.
    """
    limit = anchors.new_tensor(size[::-1])
    if straddle_threshold is None:
        return ((anchors[:, :2] + anchors[:, 2:]) / 2 < limit).all(dim=1)
    inside = (anchors[:, :2] >= -straddle_threshold) & (anchors[:, 2:] < limit + straddle_threshold)
    return inside.all(dim=1)
