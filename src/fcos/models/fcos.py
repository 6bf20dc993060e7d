"""FCOS: fully convolutional one-stage object detection. Read this file first.

Every location of every pyramid level predicts K class logits, the distances (left, top, right, bottom) to the sides of
its object's box, and how central it is in it or, with `quality="iou"`, how well the box fits.
`forward(images, sizes, targets)` gives the losses, `forward(images, sizes)` the raw outputs, and
`detect(images, sizes)` the detections.

Source: Tian et al., ICCV 2019 (arXiv:1904.01355) and TPAMI 2020 (arXiv:2006.09214). Shape letters: N images, L levels,
R locations over all levels, K classes, H W image or map size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Literal, NamedTuple, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..structures import BoxConvention, Instances, Losses, Targets
from .backbones import Backbone
from .fpn import FPN
from .layers import NORMS, DeformConv
from .losses import BoxLoss, Quality, fcos_loss, loss_normalizers
from .points import Assignment, assign_targets, count_unassigned, pyramid_locations
from .postprocess import candidates, suppress


class FCOSOutputs(NamedTuple):
    """What the head says about every location, a tensor per level.

    Attributes:
        logits: [N, K, H, W].
        ltrb: [N, 4, H, W] distances in pixels, at least 0.
        centerness: [N, 1, H, W] logits, also where the branch has learned the IoU.
    """

    logits: list[Tensor]
    ltrb: list[Tensor]
    centerness: list[Tensor]


class FCOSHead(nn.Module):
    """Two towers of convolutions, shared by all levels, and the three predictions.

    Args:
        channels: of the pyramid and the towers.
        num_classes: K.
        strides: of the levels, in pixels.
        num_convs: convolutions in each tower.
        num_shared_convs: convolutions before the towers, which both share.
        norm: after each of them `gn` (see `layers.group_norm`), `bn` (batch norm, for every level its own: their
            statistics differ) or `none`.
        conv_bias: they have a bias.
        deformable: the last of them is a `DeformConv`.
        centerness_on: which tower the centerness is predicted from.
        regression: `exp`: distances are exp(scale_l x) pixels; `relu_stride`: relu(scale_l x) strides.
        level_scales: learn the scale_l of every level; else they are 1.
        prior_probability: the class probability that an untrained head gives everywhere.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        *,
        strides: Sequence[int],
        num_convs: int = 4,
        num_shared_convs: int = 0,
        norm: Literal["gn", "bn", "none"] = "gn",
        conv_bias: bool = True,
        deformable: bool = False,
        centerness_on: Literal["cls", "box"] = "cls",
        regression: Literal["exp", "relu_stride"] = "exp",
        level_scales: bool = True,
        prior_probability: float = 0.01,
    ):
        super().__init__()
        self.strides = list(strides)
        self.centerness_on_box = centerness_on == "box"
        self.regression = regression
        tower = partial(_tower, channels, len(strides), norm=norm, bias=conv_bias)
        self.shared_tower = tower(num_convs=num_shared_convs, deformable=False)
        self.cls_tower, self.box_tower = (tower(num_convs=num_convs, deformable=deformable) for _ in range(2))
        self.logits = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.ltrb = nn.Conv2d(channels, 4, 3, padding=1)
        self.centerness = nn.Conv2d(channels, 1, 3, padding=1)
        self.scales = nn.ParameterList([nn.Parameter(torch.ones(1)) for _ in strides if level_scales])
        deformed = [module.conv for module in self.modules() if isinstance(module, DeformConv)]
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module not in deformed:
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.constant_(self.logits.bias, -math.log((1 - prior_probability) / prior_probability))  # pyright: ignore[reportArgumentType]

    def forward(self, features: Sequence[Tensor]) -> FCOSOutputs:
        """Pyramid levels [N, channels, H_l, W_l] to predictions."""
        outputs = FCOSOutputs([], [], [])
        scales = self.scales or [1.0] * len(self.strides)
        for level, (feature, stride, scale) in enumerate(zip(features, self.strides, scales, strict=True)):
            shared = _run(self.shared_tower, feature, level)
            cls_feature, box_feature = (_run(tower, shared, level) for tower in (self.cls_tower, self.box_tower))
            distances = _at_least_float32(self.ltrb(box_feature)) * scale
            outputs.logits.append(_at_least_float32(self.logits(cls_feature)))
            outputs.ltrb.append(F.relu(distances) * stride if self.regression == "relu_stride" else distances.exp())
            outputs.centerness.append(
                _at_least_float32(self.centerness(box_feature if self.centerness_on_box else cls_feature))
            )
        return outputs


def _tower(
    channels: int, levels: int, *, num_convs: int, norm: Literal["gn", "bn", "none"], bias: bool, deformable: bool
) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(num_convs):
        if deformable and i == num_convs - 1:
            layers.append(DeformConv(channels, channels, bias=bias))
        else:
            layers.append(nn.Conv2d(channels, channels, 3, padding=1, bias=bias))
        if norm == "bn":
            layers.append(nn.ModuleList(NORMS[norm](channels) for _ in range(levels)))
        elif norm != "none":
            layers.append(NORMS[norm](channels))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def _run(tower: nn.Sequential, x: Tensor, level: int) -> Tensor:
    """A tower on one level; of a list of layers it is the level's own that counts."""
    for layer in tower:
        x = layer[level](x) if isinstance(layer, nn.ModuleList) else layer(x)
    return x


def _at_least_float32(x: Tensor) -> Tensor:
    """Losses and box arithmetic are never done in half precision."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class FCOS(nn.Module):
    """The detector.

    Args:
        backbone: see `backbones.Backbone`.
        num_classes: K.
        fpn: pyramid over the backbone's maps whose strides are among `strides`.
        head: see `FCOSHead`.
        strides: of the levels, in pixels.
        location: see `pyramid_locations`.
        size_ranges: see `assign_targets`.
        center_sampling_radius: see `assign_targets`.
        box_loss: see `iou_loss`.
        quality: see `fcos_loss`.
        focal_alpha: see `focal_loss`.
        focal_gamma: see `focal_loss`.
        score: see `candidates`; likewise `score_threshold`, `threshold_on`, `pre_nms_top_k`, `top_k_on`,
            `detect_in_padding`, `keep_empty_boxes`, `clip_after_nms`.
        nms_threshold: see `suppress`; likewise `max_detections`.
        box_convention: of targets and detections, see `structures`.
        channel_order: in which order the backbone wants the channels.
        pixel_mean: subtracted from the channels 0..255, in that order.
        pixel_std: divided by.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        fpn: FPN,
        head: FCOSHead,
        strides: Sequence[int] = (8, 16, 32, 64, 128),
        location: Literal["center", "corner"] = "center",
        size_ranges: Sequence[tuple[float, float | None]] = ((-1, 64), (64, 128), (128, 256), (256, 512), (512, None)),
        center_sampling_radius: float = 0.0,
        box_loss: BoxLoss = "iou",
        quality: Quality = "centerness",
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        score: Literal["sqrt", "product"] = "sqrt",
        score_threshold: float = 0.05,
        threshold_on: Literal["class", "score"] = "class",
        pre_nms_top_k: int = 1000,
        top_k_on: Literal["class", "score"] = "score",
        nms_threshold: float = 0.6,
        max_detections: int = 100,
        box_convention: BoxConvention = "continuous",
        detect_in_padding: bool = False,
        keep_empty_boxes: bool = False,
        clip_after_nms: bool = False,
        channel_order: Literal["rgb", "bgr"] = "rgb",
        pixel_mean: Sequence[float] = (123.675, 116.28, 103.53),
        pixel_std: Sequence[float] = (58.395, 57.12, 57.375),
    ):
        super().__init__()
        self.backbone = backbone
        self.fpn = fpn
        self.head = head
        self.num_classes = num_classes
        self.strides = list(strides)
        self.location: Literal["center", "corner"] = location
        self.size_ranges = list(size_ranges)
        self.center_sampling_radius = center_sampling_radius
        self.box_loss: BoxLoss = box_loss
        self.quality: Quality = quality
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma
        self.score: Literal["sqrt", "product"] = score
        self.score_threshold = score_threshold
        self.threshold_on: Literal["class", "score"] = threshold_on
        self.pre_nms_top_k = pre_nms_top_k
        self.top_k_on: Literal["class", "score"] = top_k_on
        self.nms_threshold = nms_threshold
        self.max_detections = max_detections
        self.box_convention: BoxConvention = box_convention
        self.detect_in_padding = detect_in_padding
        self.keep_empty_boxes = keep_empty_boxes
        self.clip_after_nms = clip_after_nms
        self.channel_order = channel_order
        # Which backbone maps the pyramid stands on.
        self.backbone_levels = [name for name, stride in backbone.strides.items() if stride in self.strides]
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(3, 1, 1))
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(3, 1, 1))

    @overload
    def forward(self, images: Tensor, sizes: Tensor) -> FCOSOutputs: ...
    @overload
    def forward(self, images: Tensor, sizes: Tensor, targets: Targets, normalizers: Tensor | None = None) -> Losses: ...

    def forward(
        self,
        images: Tensor,
        sizes: Tensor,
        targets: Targets | None = None,
        normalizers: Tensor | None = None,
    ) -> FCOSOutputs | Losses:
        """Losses when targets are given, else the head's outputs.

        Args:
            images: [N, 3, H, W] RGB 0..255 (uint8 or float), padded at the right and the bottom.
            sizes: [N, 2] (height, width) without the padding.
            targets: ground truth in pixels of `images`, in the model's box convention. Of a batch that is learned in
                parts the first part gets the targets of all, its own first, and the others its `normalizers`: then the
                losses of the parts add up to those of the batch.
            normalizers: see `Losses`; None: those of `targets`.

        Returns:
            `FCOSOutputs`, or the losses.
        """
        features = self.backbone(self.normalize(images, sizes))
        outputs = self.head(self.fpn([features[name] for name in self.backbone_levels]))
        return outputs if targets is None else self.losses(outputs, targets, normalizers)

    def normalize(self, images: Tensor, sizes: Tensor) -> Tensor:
        """Network input [N, 3, H, W]: channel order, mean and deviation; zeros in the padding, whatever was there."""
        if self.channel_order == "bgr":
            images = images.flip(1)
        normalized = (images.to(self.pixel_mean.dtype) - self.pixel_mean) / self.pixel_std
        rows, columns = (torch.arange(side, device=images.device) for side in images.shape[-2:])
        real = (rows[:, None] < sizes[:, 0, None, None]) & (columns < sizes[:, 1, None, None])  # [N, H, W]
        return normalized.where(real[:, None], 0.0)  # not a product: 0 times infinity is not 0

    def locations(self, outputs: FCOSOutputs) -> list[Tensor]:
        """The (x, y) of every level's locations, L tensors [H * W, 2] in pixels."""
        maps, device = [(level.shape[-2], level.shape[-1]) for level in outputs.logits], outputs.logits[0].device
        return pyramid_locations(maps, self.strides, location=self.location, device=device)

    def losses(self, outputs: FCOSOutputs, targets: Targets, normalizers: Tensor | None = None) -> Losses:
        """The losses of `fcos_loss` for the head's outputs, and how many boxes no location learns; see `forward`."""
        points = self.locations(outputs)
        assignment = assign_targets(
            points,
            targets,
            strides=self.strides,
            size_ranges=self.size_ranges,
            center_sampling_radius=self.center_sampling_radius,
            box_convention=self.box_convention,
        )
        if normalizers is None:
            normalizers = loss_normalizers(assignment)
        here = slice(len(outputs.logits[0]))
        assignment, targets = Assignment(*(column[here] for column in assignment)), targets.of(here)
        units = None
        if self.head.regression == "relu_stride":
            units = torch.cat([p.new_full((len(p),), s) for p, s in zip(points, self.strides, strict=True)])
        logits, ltrb, centerness = (
            torch.cat([level.flatten(2) for level in levels], dim=2).transpose(1, 2) for levels in outputs
        )  # [N, R, K], [N, R, 4], [N, R, 1]
        terms = fcos_loss(
            logits,
            ltrb,
            centerness.squeeze(2),
            assignment,
            box_loss=self.box_loss,
            quality=self.quality,
            alpha=self.focal_alpha,
            gamma=self.focal_gamma,
            units=units,
            normalizers=normalizers,
        )
        return Losses(terms, count_unassigned(assignment, targets), normalizers)

    @torch.inference_mode()
    def detect(self, images: Tensor, sizes: Tensor) -> list[Instances]:
        """Detections of every image, best first, in pixels of `images` and the model's box convention.

        Args:
            images: see `forward`.
            sizes: see `forward`.
        """
        return [self.suppress(found) for found in self.candidates(images, sizes)]

    @torch.inference_mode()
    def candidates(self, images: Tensor, sizes: Tensor) -> list[Instances]:
        """What `detect` chooses from, image by image; see `postprocess.candidates`."""
        outputs = self(images, sizes)
        return candidates(
            *outputs,
            points=self.locations(outputs),
            sizes=[(int(height), int(width)) for height, width in sizes.tolist()],
            score=self.score,
            score_threshold=self.score_threshold,
            threshold_on=self.threshold_on,
            pre_nms_top_k=self.pre_nms_top_k,
            top_k_on=self.top_k_on,
            box_convention=self.box_convention,
            detect_in_padding=self.detect_in_padding,
            keep_empty_boxes=self.keep_empty_boxes,
            clip_after_nms=self.clip_after_nms,
        )

    @torch.inference_mode()
    def suppress(self, candidates: Instances) -> Instances:
        """The detections among the candidates of an image; see `postprocess.suppress`."""
        return suppress(
            candidates,
            nms_threshold=self.nms_threshold,
            max_detections=self.max_detections,
            box_convention=self.box_convention,
            keep_empty_boxes=self.keep_empty_boxes,
            clip_after_nms=self.clip_after_nms,
        )
