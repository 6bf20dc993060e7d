"""Region proposal network (RPN): boxes that may contain an object of any class.

Every location of every pyramid level has A anchors. For each of them, the head predicts the probability of an object
and the offsets of its box. `RPN` is the first stage of `rcnn.RCNN`; `RPNDetector` is trained and used alone.

Source: Ren et al., NeurIPS 2015 (arXiv:1506.01497). The conventions follow maskrcnn-benchmark. Shape letters: N images,
L levels, A anchors per location, R anchors over all levels, C candidates, S sampled anchors, H W map size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..choices import LossAverage
from ..distributed import mean_over_processes
from ..structures import Instances, Losses, Objects
from .anchors import (
    AnchorGrid,
    AnchorMatcher,
    BoxCoder,
    Sampler,
    count_unmatched,
    flatten_anchors,
    match_anchors,
    sample_balanced,
)
from .backbones import Backbone
from .detector import DetectionModel, Pixels
from .layers import at_least_float32
from .losses import sample_weights
from .padded import Padded
from .points import IGNORED
from .proposals import (
    ProposalLimits,
    ProposalSelection,
    anchors_in_image,
    limit_per_batch,
    proposal_candidates,
    select_proposals,
)
from .top_k import select_padded_proposals, top_proposals


class RPNOutputs(NamedTuple):
    """Predictions of the head for every anchor, one tensor per level.

    Attributes:
        logits: [N, A, H, W] logits of the probability of an object.
        offsets: [N, A * 4, H, W] box offsets, see `BoxCoder`, the four offsets of an anchor together.
    """

    logits: list[Tensor]
    offsets: list[Tensor]


class RPNHead(nn.Module):
    """Layers shared by all levels, and the 1x1 convolutions of the two predictions.

    Args:
        tower: layers before the predictions, see `build_rpn_tower`.
        channels: number of channels of the tower's output.
        num_anchors: number of anchors per location, A.
    """

    def __init__(self, tower: nn.Module, channels: int, *, num_anchors: int):
        super().__init__()
        self.tower = tower
        self.logits = nn.Conv2d(channels, num_anchors, 1)
        self.offsets = nn.Conv2d(channels, num_anchors * 4, 1)
        initialize_convs(self.logits, self.offsets)

    def forward(self, features: Sequence[Tensor]) -> RPNOutputs:
        """Compute the predictions from the pyramid levels [N, channels, H_l, W_l]."""
        outputs = RPNOutputs([], [])
        for feature in features:
            x = self.tower(feature)
            outputs.logits.append(at_least_float32(self.logits(x)))
            outputs.offsets.append(at_least_float32(self.offsets(x)))
        return outputs


def build_rpn_tower(channels: int, *, num_convs: int = 1) -> nn.Sequential:
    """Build the layers before the predictions: 3x3 convolutions with as many channels as the pyramid, and ReLUs."""
    convs = [nn.Conv2d(channels, channels, 3, padding=1) for _ in range(num_convs)]
    initialize_convs(*convs)
    return nn.Sequential(*(layer for conv in convs for layer in (conv, nn.ReLU(inplace=True))))


def initialize_convs(*convs: nn.Conv2d) -> None:
    """Initialise convolutions with normal weights (std 0.01) and zero biases."""
    for conv in convs:
        nn.init.normal_(conv.weight, std=0.01)
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)


class SampledAnchors(NamedTuple):
    """Sampled anchors of all images, image by image.

    Attributes:
        images: [S] int64 image of each sample.
        anchors: [S] int64 index of its anchor.
        is_positive: [S] bool.
        boxes: [P, 4] boxes of the objects matched with the positives.
        counts: number of samples of each image.
        num_unassigned: 0-dim int64 number of objects, crowd boxes excluded, that are matched with no anchor.
    """

    images: Tensor
    anchors: Tensor
    is_positive: Tensor
    boxes: Tensor
    counts: list[int]
    num_unassigned: Tensor


class RPN(nn.Module):
    """Region proposal network on the features of a detector, see `detector.ProposalStage`.

    Args:
        head: prediction head.
        anchors: options of the anchors, and the strides of the levels.
        matcher: options of the matching of objects with anchors.
        sampler: numbers of anchors that are sampled for the losses.
        coder: meaning of the box offsets.
        selection: options of the conversion of outputs to proposals.
        straddle_threshold: anchors used in training, see `anchors_in_image`.
        smooth_l1_beta: offset at which the smooth L1 loss becomes linear; 0: L1 loss.
        loss_average: averaging of the losses, see `losses.sample_weights`.
    """

    loss_names: tuple[str, ...] = ("loss_objectness", "loss_rpn_box")

    def __init__(
        self,
        head: RPNHead,
        *,
        anchors: AnchorGrid,
        matcher: AnchorMatcher,
        sampler: Sampler,
        coder: BoxCoder,
        selection: ProposalSelection,
        straddle_threshold: float | None = None,
        smooth_l1_beta: float = 1 / 9,
        loss_average: LossAverage = "image",
    ):
        super().__init__()
        assert len({x.box_convention for x in (anchors, matcher, coder, selection)}) == 1
        self.head = head
        self.anchors = anchors
        self.matcher = matcher
        self.sampler = sampler
        self.coder = coder
        self.selection = selection
        self.straddle_threshold = straddle_threshold
        self.smooth_l1_beta = smooth_l1_beta
        self.loss_average = loss_average
        # Not saved, as they follow from the options. Weights of the original contain them; loading compares them.
        for level, cell in enumerate(anchors.cells()):
            self.register_buffer(f"cell_anchors_{level}", cell, persistent=False)

    def loss_normalizers(self, targets: Sequence[Objects], size: tuple[int, int]) -> Tensor | None:
        """Return the mean number of images per process [1]; None if the losses are averaged over the batch."""
        if self.loss_average == "batch":
            return None
        return mean_over_processes(self.head.logits.weight.new_tensor([len(targets)]))

    def losses(
        self, outputs: RPNOutputs, sizes: Tensor, targets: Sequence[Objects], normalizers: Tensor | None = None
    ) -> Losses:
        """Compute the losses of sampled anchors; `stats` counts the objects that are matched with no anchor.

        The objectness loss is the binary cross entropy, and the box loss the smooth L1 loss of the offsets of
        positives. Both are divided by the number of samples, positives and negatives.

        Args:
            outputs: predictions of the head.
            sizes: [N, 2] (height, width) of the images without the padding.
            targets: ground truth of the N images; objects of all classes are positive.
            normalizers: see `loss_normalizers`; None: computed from `targets`.
        """
        anchors = torch.cat(self._anchors_of(outputs))  # [R, 4]
        num_anchors = self.anchors.num_anchors
        logits, offsets = (torch.cat([flatten_anchors(x, num_anchors) for x in levels], dim=1) for levels in outputs)
        samples = self.sample(anchors, targets, _as_pairs(sizes))
        if normalizers is None:
            normalizers = self.loss_normalizers(targets, (0, 0))
        weights = sample_weights(samples.counts, normalizers, like=logits)  # [S]
        scores = logits[samples.images, samples.anchors, 0]
        loss_objectness = F.binary_cross_entropy_with_logits(
            scores, samples.is_positive.to(scores.dtype), weights, reduction="sum"
        )
        images, positives = samples.images[samples.is_positive], samples.anchors[samples.is_positive]
        errors = F.smooth_l1_loss(
            offsets[images, positives],
            self.coder.encode(samples.boxes, anchors[positives]).to(offsets.dtype),
            reduction="none",
            beta=self.smooth_l1_beta,
        )
        loss_box = (errors.sum(dim=1) * weights[samples.is_positive]).sum()
        terms = zip(self.loss_names, (loss_objectness, loss_box), strict=True)
        return Losses(dict(terms), {"unassigned": samples.num_unassigned})

    @torch.no_grad()
    def sample(self, anchors: Tensor, targets: Sequence[Objects], sizes: Sequence[tuple[int, int]]) -> SampledAnchors:
        """Match the anchors [R, 4] with the objects of every image, and sample positives and negatives."""
        images, indices, is_positive, boxes, num_unassigned = [], [], [], [anchors[:0]], []
        for image, (target, size) in enumerate(zip(targets, sizes, strict=True)):
            objects = target.to(anchors.device)
            matched = match_anchors(anchors, objects, self.matcher)  # [R]
            is_used = anchors_in_image(anchors, size, straddle_threshold=self.straddle_threshold)
            matched = torch.where(is_used, matched, IGNORED)
            num_unassigned.append(count_unmatched(objects, matched))
            samples = sample_balanced(matched, self.sampler, seed=target.seed)  # [S]
            index = matched[samples]
            images.append(torch.full_like(samples, image))
            indices.append(samples)
            is_positive.append(index >= 0)
            boxes.append(objects.boxes[index[index >= 0]].to(anchors.dtype))
        none = torch.zeros(0, dtype=torch.int64, device=anchors.device)
        return SampledAnchors(
            images=torch.cat([none, *images]),
            anchors=torch.cat([none, *indices]),
            is_positive=torch.cat([none.bool(), *is_positive]),
            boxes=torch.cat(boxes),
            counts=[len(samples) for samples in indices],
            num_unassigned=torch.stack([none.sum(), *num_unassigned]).sum(),
        )

    def candidates(self, outputs: RPNOutputs, sizes: Tensor, *, top_k: int) -> list[Instances]:
        """Return the candidates of every image, see `proposal_candidates`."""
        anchors, options = self._anchors_of(outputs), self.selection
        return proposal_candidates(*outputs, anchors, _as_pairs(sizes), coder=self.coder, top_k=top_k, options=options)

    def padded_candidates(self, outputs: RPNOutputs, sizes: Tensor) -> Padded:
        """Return the candidates of every image in detection, see `top_proposals`."""
        anchors = self._anchors_of(outputs)
        return top_proposals(*outputs, anchors, sizes, coder=self.coder, options=self.selection)

    def padded_proposals(self, outputs: RPNOutputs, sizes: Tensor) -> Padded:
        """Return the proposals of every image in detection, see `select_padded_proposals`."""
        candidates = self.padded_candidates(outputs, sizes)
        return select_padded_proposals(candidates, self.selection, num_levels=len(self.anchors.strides))

    def propose(self, outputs: RPNOutputs, sizes: Tensor, *, training: bool) -> list[Instances]:
        """Return the proposals of every image with the limits of training or detection, see `select_proposals`."""
        options = self.selection
        limits = options.training if training else options.detection
        candidates = self.candidates(outputs, sizes, top_k=limits.pre_nms_top_k)
        if training and options.limit_per_batch:
            per_level = ProposalLimits(
                limits.pre_nms_top_k, limits.post_nms_top_k, limits.post_nms_top_k * len(outputs[0])
            )
            return limit_per_batch([select_proposals(x, per_level, options) for x in candidates], limits.max_proposals)
        return [select_proposals(image, limits, options) for image in candidates]

    def _anchors_of(self, outputs: RPNOutputs) -> list[Tensor]:
        maps = [(level.shape[-2], level.shape[-1]) for level in outputs.logits]
        return self.anchors.levels(maps, [self.get_buffer(f"cell_anchors_{level}") for level in range(len(maps))])


class RPNDetector(DetectionModel):
    """Region proposal network that is trained and used alone. Its detections are proposals, all with label 0.

    Args:
        backbone: feature extractor, see `backbones.Backbone`.
        num_classes: number of classes, which are not distinguished; 1 for data whose objects are of one class.
        fpn: module from the list of used backbone maps to the features.
        levels: names of the backbone maps that `fpn` uses.
        proposals: the proposal network.
        default_threshold: score threshold for displaying proposals.
        pixels: pixel normalisation that the backbone expects.
    """

    compiled_parts = ("backbone", "fpn", "proposals.head")

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        fpn: nn.Module,
        levels: Sequence[str],
        proposals: RPN,
        default_threshold: float = 0.5,
        pixels: Pixels,
    ):
        super().__init__(
            num_classes,
            box_convention=proposals.selection.box_convention,
            default_threshold=default_threshold,
            loss_names=proposals.loss_names,
            pixels=pixels,
        )
        self.class_parameters = {}
        self.backbone = backbone
        self.fpn = fpn
        self.proposals = proposals
        self.backbone_levels = list(levels)

    def forward(
        self,
        images: Tensor,
        sizes: Tensor,
        targets: Sequence[Objects] | None = None,
        normalizers: Tensor | None = None,
    ) -> RPNOutputs | Losses:
        """Compute the losses if targets are given, otherwise the head's outputs; see `DetectionModel.forward`."""
        outputs = self.proposals.head(self.features(images, sizes))
        return outputs if targets is None else self.proposals.losses(outputs, sizes, targets, normalizers)

    def features(self, images: Tensor, sizes: Tensor) -> list[Tensor]:
        """Compute the pyramid levels [N, channels, H_l, W_l], finest first; see `DetectionModel.forward`."""
        maps = self.backbone(self.normalize(images, sizes))
        return self.fpn([maps[name] for name in self.backbone_levels])

    def loss_normalizers(self, targets: Sequence[Objects], size: tuple[int, int]) -> Tensor | None:
        """Compute the denominators of the losses, see `RPN.loss_normalizers`."""
        return self.proposals.loss_normalizers(targets, size)

    @torch.no_grad()
    def decode(self, outputs: RPNOutputs, sizes: Tensor) -> list[Instances]:
        """Convert raw outputs to candidates, whose labels are the numbers of their levels."""
        return self.proposals.candidates(outputs, sizes, top_k=self.proposals.selection.detection.pre_nms_top_k)

    @torch.no_grad()
    def suppress(self, candidates: Instances) -> Instances:
        """Select the proposals among the candidates of an image, see `select_proposals`."""
        options = self.proposals.selection
        proposals = select_proposals(candidates, options.detection, options)
        return replace(proposals, labels=torch.zeros_like(proposals.labels))

    def padded_candidates(self, outputs: RPNOutputs, sizes: Tensor, *, score_threshold: Tensor | float) -> Padded:
        """Convert raw outputs to candidates in tensors of fixed size; see `DetectionModel.padded_candidates`."""
        return self.proposals.padded_candidates(outputs, sizes)

    def padded_detections(self, candidates: Padded, sizes: Tensor) -> Padded:
        """Select the proposals in tensors of fixed size; see `DetectionModel.padded_detections`."""
        options = self.proposals.selection
        proposals = select_padded_proposals(candidates, options, num_levels=len(self.proposals.anchors.strides))
        return proposals._replace(labels=torch.zeros_like(proposals.labels))


def _as_pairs(sizes: Tensor) -> list[tuple[int, int]]:
    return [(int(height), int(width)) for height, width in sizes.tolist()]
