"""R-CNN: a first stage proposes boxes, a second stage classifies and shifts them (Faster R-CNN), and optional heads add
masks (Mask R-CNN) or keypoints (Keypoint R-CNN).

`forward(images, sizes, targets)` returns the losses, `forward(images, sizes)` the raw outputs, and
`detect(images, sizes)` the detections.

Source: Ren et al., NeurIPS 2015 (arXiv:1506.01497); He et al., ICCV 2017 (arXiv:1703.06870). Shape letters: N images,
P proposals of all images, K classes, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from ..choices import LossAverage
from ..structures import Instances, Losses, Objects
from .backbones import Backbone
from .candidates import roi_candidates
from .detector import DetectionModel, Pixels, ProposalStage
from .padded import Padded, has_area, suppress_padded
from .postprocess import RoIPostprocess, suppress
from .roi_heads import BoxHead, DetailHead, groups_of_boxes
from .top_k import top_roi_candidates


class RCNNOutputs(NamedTuple):
    """Raw outputs.

    Attributes:
        features: pyramid levels [N, C, H_l, W_l], from which the details of detections are computed.
        proposals: N tensors [P_i, 4] in pixels of the padded images.
        logits: [P, 1 + K] class logits of the proposals of all images, first that of the background.
        offsets: box offsets, see `roi_heads.BoxOutputs`.
    """

    features: list[Tensor]
    proposals: list[Tensor]
    logits: Tensor
    offsets: Tensor


class PaddedRCNNOutputs(NamedTuple):
    """Raw outputs for the same number P of proposals in every image.

    Attributes:
        features: pyramid levels [N, C, H_l, W_l].
        proposals: [N, P, ...]; the boxes of those that are padding are 0.
        logits: [N, P, 1 + K] class logits.
        offsets: [N, P, ...] box offsets, see `roi_heads.BoxOutputs`.
    """

    features: list[Tensor]
    proposals: Padded
    logits: Tensor
    offsets: Tensor


class RCNN(DetectionModel):
    """Two-stage detector.

    Args:
        backbone: feature extractor, see `backbones.Backbone`.
        num_classes: K.
        fpn: module from the list of used backbone maps to the features of both stages.
        levels: names of the backbone maps that `fpn` uses.
        proposals: first stage.
        box: box head.
        heads: heads that add details to detections, by the name of their option.
        loss_average: averaging of the losses of the second stage, see `losses.sample_weights`.
        postprocess: options of the conversion from raw outputs to detections.
        pixels: pixel normalisation that the backbone expects.
    """

    postprocess: RoIPostprocess  # pyright: ignore[reportIncompatibleVariableOverride] (never None)

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        fpn: nn.Module,
        levels: Sequence[str],
        proposals: ProposalStage,
        box: BoxHead,
        heads: Mapping[str, DetailHead],
        loss_average: LossAverage = "image",
        postprocess: RoIPostprocess,
        pixels: Pixels,
    ):
        assert len({x.box_convention for x in (box.pooler, box.matcher, box.coder, postprocess)}) == 1
        super().__init__(
            num_classes,
            box_convention=postprocess.box_convention,
            default_threshold=postprocess.default_threshold,
            loss_names=tuple(name for part in (proposals, box, *heads.values()) for name in part.loss_names),
            pixels=pixels,
        )
        self.backbone = backbone
        self.fpn = fpn
        self.proposals = proposals
        self.box = box
        self.heads = nn.ModuleDict(dict(heads))
        self.backbone_levels = list(levels)
        self.loss_average = loss_average
        self.postprocess = postprocess
        parts = {"box": box.class_parameters, **{f"heads.{name}": h.class_parameters for name, h in heads.items()}}
        self.class_parameters = {f"{part}.{name}": rows for part, all in parts.items() for name, rows in all.items()}
        self.keypoint_parameters = {
            f"heads.{name}.{key}": dim for name, h in heads.items() for key, dim in h.keypoint_parameters.items()
        }
        self.optional_modules = tuple(f"heads.{name}" for name in heads)
        self.detail_names = tuple(head.detail_name for head in heads.values())
        self.compiled_parts = ("backbone", "fpn", "proposals.head", *(f"{part}.body" for part in parts))

    def forward(
        self,
        images: Tensor,
        sizes: Tensor,
        targets: Sequence[Objects] | None = None,
        normalizers: Tensor | None = None,
    ) -> RCNNOutputs | Losses:
        """Compute the losses if targets are given, otherwise the raw outputs; see `DetectionModel.forward`."""
        features = self.features(images, sizes)
        if targets is not None:
            if normalizers is None:
                normalizers = self.loss_normalizers(targets, (images.shape[-2], images.shape[-1]))
            return self.losses(features, sizes, targets, normalizers)
        proposals = self.proposals.propose(self.proposals.head(features), sizes, training=False)
        boxes = [image.boxes for image in proposals]
        logits, offsets = zip(*(self.box(features, group) for group in groups_of_boxes(boxes)), strict=True)
        return RCNNOutputs(features, boxes, torch.cat(logits), torch.cat(offsets))

    def features(self, images: Tensor, sizes: Tensor) -> list[Tensor]:
        """Compute the pyramid levels [N, C, H_l, W_l], finest first; see `DetectionModel.forward`."""
        maps = self.backbone(self.normalize(images, sizes))
        return self.fpn([maps[name] for name in self.backbone_levels])

    def losses(
        self, features: list[Tensor], sizes: Tensor, targets: Sequence[Objects], normalizers: Tensor | None
    ) -> Losses:
        """Compute the losses of both stages from the features; `stats` are those of the first stage.

        The second stage learns from sampled proposals, through which no gradient flows to the first stage.
        """
        num_images = None if normalizers is None else normalizers[:1]
        outputs = self.proposals.head(features)
        first = self.proposals.losses(outputs, sizes, targets, normalizers)
        proposals = self.proposals.propose(outputs, sizes, training=True)
        samples = self.box.sample([image.boxes for image in proposals], targets)
        terms = {**first.terms, **self.box.losses(features, samples, num_images)}
        for head in self._detail_heads():
            terms |= head.losses(features, samples, num_images)
        return Losses(terms, first.stats)

    def loss_normalizers(self, targets: Sequence[Objects], size: tuple[int, int]) -> Tensor | None:
        """Return the denominators of the first stage, which begin with that of the second, see `ProposalStage`.

        With `loss_average="batch"`, the denominators are numbers of sampled proposals of each process: None.
        """
        return None if self.loss_average == "batch" else self.proposals.loss_normalizers(targets, size)

    @torch.no_grad()
    def decode(self, outputs: RCNNOutputs, sizes: Tensor) -> list[Instances]:
        """Convert raw outputs to the candidates of every image, see `candidates.roi_candidates`."""
        counts = [len(boxes) for boxes in outputs.proposals]
        images = zip(
            outputs.logits.split(counts), outputs.offsets.split(counts), outputs.proposals, sizes.tolist(), strict=True
        )
        return [
            roi_candidates(logits, offsets, boxes, (height, width), coder=self.box.coder, options=self.postprocess)
            for logits, offsets, boxes, (height, width) in images
        ]

    @torch.no_grad()
    def suppress(self, candidates: Instances) -> Instances:
        """Select the detections among the candidates of an image, see `postprocess.suppress`."""
        detections = suppress(candidates, self.postprocess)
        if self.postprocess.empty_boxes != "remove_last":
            return detections
        return detections[has_area(detections.boxes)]

    def padded_outputs(self, images: Tensor, sizes: Tensor) -> PaddedRCNNOutputs:
        """Compute the raw outputs in tensors of fixed size; see `DetectionModel.padded_outputs`."""
        features = self.features(images, sizes)
        proposals = self.proposals.padded_proposals(self.proposals.head(features), sizes).without_padding()
        return PaddedRCNNOutputs(features, proposals, *self.box.of_padded(features, proposals.boxes))

    def padded_candidates(
        self, outputs: PaddedRCNNOutputs, sizes: Tensor, *, score_threshold: Tensor | float
    ) -> Padded:
        """Convert raw outputs to candidates in tensors of fixed size; see `DetectionModel.padded_candidates`."""
        return top_roi_candidates(
            outputs.logits,
            outputs.offsets,
            outputs.proposals,
            sizes,
            coder=self.box.coder,
            options=self.postprocess,
            score_threshold=score_threshold,
        )

    def padded_detections(self, candidates: Padded, sizes: Tensor) -> Padded:
        """Select the detections in tensors of fixed size; see `DetectionModel.padded_detections`."""
        detections = suppress_padded(candidates, sizes, self.postprocess, num_classes=self.num_classes)
        if self.postprocess.empty_boxes != "remove_last":
            return detections
        return detections.compact(detections.valid & has_area(detections.boxes))

    def padded_details(self, outputs: PaddedRCNNOutputs, detections: Padded) -> dict[str, Tensor]:
        """Compute masks or keypoints in tensors of fixed size; see `DetectionModel.padded_details`."""
        boxes, _, labels, _ = detections.without_padding()
        heads = self._detail_heads()
        return {head.detail_name: head.of_padded(outputs.features, boxes, labels.clamp(min=0)) for head in heads}

    @torch.no_grad()
    def add_details(self, outputs: RCNNOutputs, detections: list[Instances]) -> list[Instances]:
        """Add the predictions of the heads to the detections of every image."""
        for head in self._detail_heads():
            detections = head.add(outputs.features, [image.to(self.device) for image in detections])
        return detections

    def _detail_heads(self) -> list[DetailHead]:
        return [cast("DetailHead", head) for head in self.heads.values()]
