"""FCOS: fully convolutional one-stage object detection. Read this file first.

Every location of every pyramid level predicts K class logits, its distances (left, top, right, bottom) to the sides of
its object's box, and its centerness in that box or, with `quality="iou"`, the IoU of the predicted box.
`forward(images, sizes, targets)` returns the losses, `forward(images, sizes)` the raw outputs, and
`detect(images, sizes)` the detections.

Source: Tian et al., ICCV 2019 (arXiv:1904.01355) and TPAMI 2020 (arXiv:2006.09214). Shape letters: N images, L levels,
R locations over all levels, K classes, H W image or map size.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..boxes import GPU_TYPES
from ..choices import Regression, Tower, TowerNorm
from ..structures import Instances, Losses, Objects
from .backbones import Backbone
from .candidates import candidates
from .detector import ClassRows, DetectionModel, Pixels
from .fpn import FPN
from .layers import at_least_float32, build_tower, initialize_head, run_tower
from .losses import FCOSLoss, fcos_loss, loss_normalizers
from .padded import Padded, suppress_padded
from .points import Assigner, assign_targets
from .postprocess import FCOSPostprocess, suppress, suppress_images
from .top_k import top_candidates


class FCOSOutputs(NamedTuple):
    """Predictions of the head for every location, one tensor per level.

    Attributes:
        logits: [N, K, H, W].
        ltrb: [N, 4, H, W] distances in pixels, at least 0.
        centerness: [N, 1, H, W] logits of the centerness, or of the IoU with `quality="iou"`.
    """

    logits: list[Tensor]
    ltrb: list[Tensor]
    centerness: list[Tensor]


class FCOSHead(nn.Module):
    """Classification and box towers, shared by all levels, and the convolutions of the three predictions.

    Args:
        channels: number of channels of the pyramid and the towers.
        num_classes: K.
        strides: strides of the levels in pixels.
        num_convs: number of convolutions in each tower.
        num_shared_convs: number of convolutions before the towers, shared by both.
        norm: normalisation after each of these convolutions, see `layers.build_tower`.
        conv_bias: whether these convolutions have a bias.
        deformable: whether the last convolution of each tower is a `DeformConv`.
        separable: whether the other convolutions of the towers are `SeparableConv`s.
        centerness_on: tower that the centerness is predicted from.
        regression: `exp`: distances are exp(scale_l x) pixels; `relu_stride`: relu(scale_l x) strides.
        level_scales: whether the scale_l of every level is learned; otherwise it is 1.
        prior_probability: class probability that an untrained head predicts at every location.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        *,
        strides: Sequence[int],
        num_convs: int = 4,
        num_shared_convs: int = 0,
        norm: TowerNorm = "gn",
        conv_bias: bool = True,
        deformable: bool = False,
        separable: bool = False,
        centerness_on: Tower = "cls",
        regression: Regression = "exp",
        level_scales: bool = True,
        prior_probability: float = 0.01,
    ):
        super().__init__()
        self.strides = list(strides)
        self.centerness_on_box = centerness_on == "box"
        self.regression = regression
        tower = partial(build_tower, channels, len(strides), norm=norm, bias=conv_bias, separable=separable)
        self.shared_tower = tower(num_convs=num_shared_convs, deformable=False)
        self.cls_tower, self.box_tower = (tower(num_convs=num_convs, deformable=deformable) for _ in range(2))
        self.logits = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.ltrb = nn.Conv2d(channels, 4, 3, padding=1)
        self.centerness = nn.Conv2d(channels, 1, 3, padding=1)
        self.scales = nn.ParameterList([nn.Parameter(torch.ones(1)) for _ in strides if level_scales])
        initialize_head(self, self.logits, prior_probability=prior_probability)

    def forward(self, features: Sequence[Tensor]) -> FCOSOutputs:
        """Compute the predictions from the pyramid levels [N, channels, H_l, W_l]."""
        outputs = FCOSOutputs([], [], [])
        scales = self.scales or [1.0] * len(self.strides)
        for level, (feature, stride, scale) in enumerate(zip(features, self.strides, scales, strict=True)):
            shared = run_tower(self.shared_tower, feature, level)
            cls_feature, box_feature = (run_tower(tower, shared, level) for tower in (self.cls_tower, self.box_tower))
            distances = at_least_float32(self.ltrb(box_feature)) * scale
            outputs.logits.append(at_least_float32(self.logits(cls_feature)))
            outputs.ltrb.append(F.relu(distances) * stride if self.regression == "relu_stride" else distances.exp())
            centerness = self.centerness(box_feature if self.centerness_on_box else cls_feature)
            outputs.centerness.append(at_least_float32(centerness))
        return outputs


class FCOS(DetectionModel):
    """The FCOS detector.

    Args:
        backbone: feature extractor, see `backbones.Backbone`.
        num_classes: K.
        fpn: pyramid on those backbone maps whose stride is the stride of a level.
        head: prediction head.
        assigner: options of the target assignment, and the strides of the levels.
        loss: options of the losses.
        postprocess: options of the conversion from raw outputs to detections.
        pixels: pixel normalisation that the backbone expects.
    """

    class_parameters = dict.fromkeys(("head.logits.weight", "head.logits.bias"), ClassRows())
    optional_modules = ("head.scales",)
    compiled_parts = ("backbone", "fpn", "head")
    has_fixed_sizes = True
    postprocess: FCOSPostprocess  # pyright: ignore[reportIncompatibleVariableOverride] (never None)

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        fpn: FPN,
        head: FCOSHead,
        assigner: Assigner,
        loss: FCOSLoss,
        postprocess: FCOSPostprocess,
        pixels: Pixels,
    ):
        assert (assigner.box_convention, list(assigner.strides)) == (postprocess.box_convention, head.strides)
        super().__init__(
            num_classes,
            box_convention=postprocess.box_convention,
            default_threshold=postprocess.default_threshold,
            loss_names=loss.names,
            pixels=pixels,
        )
        self.backbone = backbone
        self.fpn = fpn
        self.head = head
        self.assigner = assigner
        self.loss = loss
        self.postprocess = postprocess
        # Names of the backbone maps that the pyramid uses.
        self.backbone_levels = [name for name, stride in backbone.strides.items() if stride in assigner.strides]

    def forward(
        self,
        images: Tensor,
        sizes: Tensor,
        targets: Sequence[Objects] | None = None,
        normalizers: Tensor | None = None,
    ) -> FCOSOutputs | Losses:
        """Compute the losses if targets are given, otherwise the head's outputs; see `DetectionModel.forward`."""
        outputs = self.head(self.features(images, sizes))
        return outputs if targets is None else self.losses(outputs, targets, normalizers)

    def features(self, images: Tensor, sizes: Tensor) -> list[Tensor]:
        """Compute the pyramid levels [N, channels, H_l, W_l], finest first; see `DetectionModel.forward`."""
        maps = self.backbone(self.normalize(images, sizes))
        return self.fpn([maps[name] for name in self.backbone_levels])

    def locations(self, outputs: FCOSOutputs) -> list[Tensor]:
        """Return the (x, y) of every level's locations, L tensors [H * W, 2] in pixels."""
        maps = [(level.shape[-2], level.shape[-1]) for level in outputs.logits]
        return self.assigner.locations(maps, device=outputs.logits[0].device)

    def losses(self, outputs: FCOSOutputs, targets: Sequence[Objects], normalizers: Tensor | None = None) -> Losses:
        """Compute the losses (see `fcos_loss`); `stats` counts the boxes that are assigned to no location."""
        points = self.locations(outputs)
        assignment = assign_targets(points, targets, self.assigner)
        units = None
        if self.head.regression == "relu_stride":
            pairs = zip(points, self.assigner.strides, strict=True)
            units = torch.cat([level.new_full((len(level),), stride) for level, stride in pairs])
        flattened = (torch.cat([level.flatten(2) for level in levels], dim=2).transpose(1, 2) for levels in outputs)
        logits, ltrb, quality = flattened  # [N, R, K], [N, R, 4], [N, R, 1]
        terms = fcos_loss(logits, ltrb, quality.squeeze(2), assignment, self.loss, units=units, normalizers=normalizers)
        return Losses(terms, {"unassigned": assignment.num_unassigned})

    def loss_normalizers(self, targets: Sequence[Objects], size: tuple[int, int]) -> Tensor:
        """Compute the two denominators of the losses, see `losses.loss_normalizers`."""
        points = self.assigner.locations(self.assigner.maps(size), device=self.device)
        return loss_normalizers(assign_targets(points, targets, self.assigner))

    @torch.no_grad()
    def decode(self, outputs: FCOSOutputs, sizes: Tensor) -> list[Instances]:
        """Convert raw outputs to the candidates of every image, see `candidates.candidates`."""
        if outputs.logits[0].device.type in GPU_TYPES:
            threshold = self.postprocess.score_threshold
            return self.padded_candidates(outputs, sizes, score_threshold=threshold).to_instances(sizes)
        sides = [(int(height), int(width)) for height, width in sizes.tolist()]
        return candidates(*outputs, self.locations(outputs), sides, options=self.postprocess)

    def padded_candidates(self, outputs: FCOSOutputs, sizes: Tensor, *, score_threshold: Tensor | float) -> Padded:
        """Convert raw outputs to candidates in tensors of fixed size; see `DetectionModel.padded_candidates`."""
        points = self.locations(outputs)
        return top_candidates(*outputs, points, sizes, options=self.postprocess, score_threshold=score_threshold)

    def padded_detections(self, candidates: Padded, sizes: Tensor) -> Padded:
        """Select the detections in tensors of fixed size; see `DetectionModel.padded_detections`."""
        return suppress_padded(candidates, sizes, self.postprocess, num_classes=self.num_classes)

    @torch.no_grad()
    def suppress(self, candidates: Instances) -> Instances:
        """Select the detections among the candidates of an image, see `postprocess.suppress`."""
        return suppress(candidates, self.postprocess)

    def suppress_images(self, candidates: Sequence[Instances]) -> list[Instances]:
        """Select the detections among the candidates of several images, see `postprocess.suppress_images`."""
        return suppress_images(candidates, self.postprocess, num_classes=self.num_classes)
