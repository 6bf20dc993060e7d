"""RetinaNet: one-stage detection with anchors and focal loss.

Every location of every pyramid level has A anchors, boxes of fixed sizes and shapes. For each of them, the head
predicts K class logits and the offsets of an object's box. `forward(images, sizes, targets)` returns the losses,
`forward(images, sizes)` the raw outputs, and `detect(images, sizes)` the detections.

Source: Lin et al., ICCV 2017 (arXiv:1708.02002). Shape letters: N images, L levels, A anchors per location, R anchors
over all levels, K classes, H W image or map size.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..boxes import GPU_TYPES
from ..choices import TowerNorm
from ..structures import Instances, Losses, Objects
from .anchors import AnchorGrid, AnchorMatcher, BoxCoder, assign_anchors, flatten_anchors
from .backbones import Backbone
from .candidates import anchor_candidates
from .detector import ClassRows, DetectionModel, Pixels
from .fpn import FPN
from .layers import at_least_float32, build_tower, initialize_head, run_tower
from .losses import RetinaNetLoss, retinanet_loss, retinanet_normalizers
from .padded import Padded, suppress_padded
from .postprocess import Postprocess, suppress, suppress_images
from .top_k import top_anchor_candidates


class RetinaNetOutputs(NamedTuple):
    """Predictions of the head for every anchor, one tensor per level.

    Attributes:
        logits: [N, A * K, H, W], the K classes of an anchor together.
        offsets: [N, A * 4, H, W] box offsets, see `BoxCoder`, the four offsets of an anchor together.
    """

    logits: list[Tensor]
    offsets: list[Tensor]


class RetinaNetHead(nn.Module):
    """Classification and box towers, shared by all levels, and the convolutions of the two predictions.

    Args:
        channels: number of channels of the pyramid and the towers.
        num_classes: K.
        num_anchors: number of anchors per location, A.
        num_levels: number of levels, L.
        num_convs: number of convolutions in each tower.
        norm: normalisation after each of these convolutions, see `layers.build_tower`.
        conv_bias: whether these convolutions have a bias.
        prior_probability: class probability that an untrained head predicts for every anchor.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        *,
        num_anchors: int,
        num_levels: int,
        num_convs: int = 4,
        norm: TowerNorm = "none",
        conv_bias: bool = True,
        prior_probability: float = 0.01,
    ):
        super().__init__()
        tower = partial(build_tower, channels, num_levels, num_convs=num_convs, norm=norm, bias=conv_bias)
        self.cls_tower, self.box_tower = tower(), tower()
        self.logits = nn.Conv2d(channels, num_anchors * num_classes, 3, padding=1)
        self.offsets = nn.Conv2d(channels, num_anchors * 4, 3, padding=1)
        initialize_head(self, self.logits, prior_probability=prior_probability)

    def forward(self, features: Sequence[Tensor]) -> RetinaNetOutputs:
        """Compute the predictions from the pyramid levels [N, channels, H_l, W_l]."""
        outputs = RetinaNetOutputs([], [])
        for level, feature in enumerate(features):
            outputs.logits.append(at_least_float32(self.logits(run_tower(self.cls_tower, feature, level))))
            outputs.offsets.append(at_least_float32(self.offsets(run_tower(self.box_tower, feature, level))))
        return outputs


class RetinaNet(DetectionModel):
    """The RetinaNet detector.

    Args:
        backbone: feature extractor, see `backbones.Backbone`.
        num_classes: K.
        fpn: pyramid on those backbone maps whose stride is the stride of a level.
        head: prediction head.
        anchors: options of the anchors, and the strides of the levels.
        matcher: options of the assignment of objects to anchors.
        coder: meaning of the box offsets.
        loss: options of the losses.
        postprocess: options of the conversion from raw outputs to detections.
        pixels: pixel normalisation that the backbone expects.
    """

    compiled_parts = ("backbone", "fpn", "head")
    has_fixed_sizes = True
    postprocess: Postprocess  # pyright: ignore[reportIncompatibleVariableOverride] (never None)

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        fpn: FPN,
        head: RetinaNetHead,
        anchors: AnchorGrid,
        matcher: AnchorMatcher,
        coder: BoxCoder,
        loss: RetinaNetLoss,
        postprocess: Postprocess,
        pixels: Pixels,
    ):
        conventions = {x.box_convention for x in (anchors, matcher, coder, postprocess)}
        assert len(conventions) == 1, conventions
        super().__init__(
            num_classes,
            box_convention=postprocess.box_convention,
            default_threshold=postprocess.default_threshold,
            loss_names=loss.names,
            pixels=pixels,
        )
        self.class_parameters = dict.fromkeys(
            ("head.logits.weight", "head.logits.bias"), ClassRows(repeats=anchors.num_anchors)
        )
        self.backbone = backbone
        self.fpn = fpn
        self.head = head
        self.anchors = anchors
        self.matcher = matcher
        self.coder = coder
        self.loss = loss
        self.postprocess = postprocess
        # Names of the backbone maps that the pyramid uses.
        self.backbone_levels = [name for name, stride in backbone.strides.items() if stride in anchors.strides]
        # Not saved, as they follow from the options. Weights of the original contain them; loading compares them.
        for level, cell in enumerate(anchors.cells()):
            self.register_buffer(f"cell_anchors_{level}", cell, persistent=False)

    def forward(
        self,
        images: Tensor,
        sizes: Tensor,
        targets: Sequence[Objects] | None = None,
        normalizers: Tensor | None = None,
    ) -> RetinaNetOutputs | Losses:
        """Compute the losses if targets are given, otherwise the head's outputs; see `DetectionModel.forward`."""
        outputs = self.head(self.features(images, sizes))
        return outputs if targets is None else self.losses(outputs, targets, normalizers)

    def features(self, images: Tensor, sizes: Tensor) -> list[Tensor]:
        """Compute the pyramid levels [N, channels, H_l, W_l], finest first; see `DetectionModel.forward`."""
        maps = self.backbone(self.normalize(images, sizes))
        return self.fpn([maps[name] for name in self.backbone_levels])

    def losses(
        self, outputs: RetinaNetOutputs, targets: Sequence[Objects], normalizers: Tensor | None = None
    ) -> Losses:
        """Compute the losses (see `retinanet_loss`); `stats` counts the objects that are matched with no anchor."""
        maps = [(level.shape[-2], level.shape[-1]) for level in outputs.logits]
        anchors = torch.cat(self._anchors(maps))  # [R, 4]
        assignment = assign_anchors(anchors, targets, self.matcher)
        logits, offsets = (
            torch.cat([flatten_anchors(level, self.anchors.num_anchors) for level in levels], dim=1)
            for levels in outputs
        )  # [N, R, K], [N, R, 4]
        terms = retinanet_loss(
            logits, offsets, anchors, assignment, self.loss, coder=self.coder, normalizers=normalizers
        )
        return Losses(terms, {"unassigned": assignment.num_unassigned})

    def loss_normalizers(self, targets: Sequence[Objects], size: tuple[int, int]) -> Tensor:
        """Compute the two denominators of the losses, see `losses.retinanet_normalizers`."""
        anchors = torch.cat(self._anchors(self.anchors.maps(size)))
        return retinanet_normalizers(assign_anchors(anchors, targets, self.matcher), self.loss)

    @torch.no_grad()
    def decode(self, outputs: RetinaNetOutputs, sizes: Tensor) -> list[Instances]:
        """Convert raw outputs to the candidates of every image, see `candidates.anchor_candidates`."""
        if outputs.logits[0].device.type in GPU_TYPES:
            threshold = self.postprocess.score_threshold
            return self.padded_candidates(outputs, sizes, score_threshold=threshold).to_instances(sizes)
        anchors, points = self._grids(outputs)
        sides = [(int(height), int(width)) for height, width in sizes.tolist()]
        return anchor_candidates(*outputs, anchors, points, sides, coder=self.coder, options=self.postprocess)

    @torch.no_grad()
    def suppress(self, candidates: Instances) -> Instances:
        """Select the detections among the candidates of an image, see `postprocess.suppress`."""
        return suppress(candidates, self.postprocess)

    def suppress_images(self, candidates: Sequence[Instances]) -> list[Instances]:
        """Select the detections among the candidates of several images, see `postprocess.suppress_images`."""
        return suppress_images(candidates, self.postprocess, num_classes=self.num_classes)

    def padded_candidates(self, outputs: RetinaNetOutputs, sizes: Tensor, *, score_threshold: Tensor | float) -> Padded:
        """Convert raw outputs to candidates in tensors of fixed size; see `DetectionModel.padded_candidates`."""
        return top_anchor_candidates(
            *outputs,
            *self._grids(outputs),
            sizes,
            coder=self.coder,
            options=self.postprocess,
            score_threshold=score_threshold,
        )

    def padded_detections(self, candidates: Padded, sizes: Tensor) -> Padded:
        """Select the detections in tensors of fixed size; see `DetectionModel.padded_detections`."""
        return suppress_padded(candidates, sizes, self.postprocess, num_classes=self.num_classes)

    def _grids(self, outputs: RetinaNetOutputs) -> tuple[list[Tensor], list[Tensor]]:
        """Return the anchors [H * W * A, 4] and locations [H * W, 2] of every level."""
        maps = [(level.shape[-2], level.shape[-1]) for level in outputs.logits]
        return self._anchors(maps), self.anchors.locations(maps, device=self.device)

    def _anchors(self, maps: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Return the anchors of every level; those of a cell are on the model's device already."""
        cells = [self.get_buffer(f"cell_anchors_{level}") for level in range(len(maps))]
        return self.anchors.levels(maps, cells)
