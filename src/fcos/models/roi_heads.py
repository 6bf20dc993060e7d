"""Second stage of two-stage detectors: features pooled from proposals, and the head that classifies and shifts them.

Shape letters: N images, P boxes of all images, S sampled proposals of an image, K classes, C channels, Z side of the
pooled features, D detections of an image.

Source: Girshick, ICCV 2015 (arXiv:1504.08083); Ren et al., NeurIPS 2015 (arXiv:1506.01497); level of a box: Lin et al.,
CVPR 2017 (arXiv:1612.03144), equation 1. The conventions follow maskrcnn-benchmark.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from ..boxes import GPU_TYPES, area
from ..choices import BoxConvention, LinearNorm, PyramidNorm
from ..structures import Instances, Objects
from .anchors import AnchorMatcher, BoxCoder, Sampler, match_anchors, sample_balanced
from .candidates import select_offsets
from .detector import ClassRows
from .layers import NORMS, at_least_float32
from .losses import sample_weights

MAX_BOXES = 512
"""Largest number of boxes whose features are pooled together in detection. A box may take a few MB."""
MAX_BOXES_ON_GPU = 2048
"""The same on a GPU, where every group costs calls."""


def groups_of_boxes(boxes: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Divide boxes into groups of limited size, so that memory does not grow with their number.

    Args:
        boxes: N tensors [P_i, 4].

    Yields:
        N tensors of boxes each, in the order of the boxes of all images. There is at least one group.
    """
    counts = torch.tensor([len(of_image) for of_image in boxes], dtype=torch.int64)
    limit = MAX_BOXES_ON_GPU if boxes and boxes[0].device.type in GPU_TYPES else MAX_BOXES
    if int(counts.sum()) <= limit:
        yield list(boxes)
        return
    images = torch.arange(len(boxes)).repeat_interleave(counts)  # [P]
    for group, of_group in zip(torch.cat(list(boxes)).split(limit), images.split(limit), strict=True):
        yield list(group.split(torch.bincount(of_group, minlength=len(boxes)).tolist()))


@dataclass(frozen=True)
class Pooler:
    """Options of the pooling of box features from the levels of a pyramid (RoIAlign).

    Attributes:
        strides: strides of the levels that features are pooled from, finest first, each twice the previous one.
        resolution: side Z of the pooled features.
        sampling_ratio: number of sampling points per pooled feature and axis; 0: as many as the box has map cells.
        box_convention: convention in which the areas of boxes are computed.
        aligned: True if features are pooled half a pixel further to the upper left, see torchvision's `roi_align`.
        level_epsilon: number that is added to the argument of the logarithm in `levels`.
        canonical_size: square root of the area of boxes that are pooled from the level with stride 16, pixels.
    """

    strides: Sequence[int] = (4, 8, 16, 32)
    resolution: int = 7
    sampling_ratio: int = 2
    box_convention: BoxConvention = "continuous"
    aligned: bool = False
    level_epsilon: float = 1e-6
    canonical_size: float = 224.0

    def levels(self, boxes: Tensor) -> Tensor:
        """Return the index of the level [P] int64 that each box [P, 4] is pooled from."""
        sides = area(boxes, convention=self.box_convention).sqrt()
        finest = math.log2(self.strides[0])
        levels = torch.floor(4 + torch.log2(sides / self.canonical_size + self.level_epsilon)) - finest
        return levels.clamp(0, len(self.strides) - 1).long()

    def __call__(self, features: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """Pool the features of boxes.

        Args:
            features: levels [N, C, H_l, W_l]; those after the last of `strides` are not used.
            boxes: N tensors [P_i, 4] in pixels.

        Returns:
            [P, C, Z, Z], the boxes of all images in their order.
        """
        counts = torch.tensor([len(of_image) for of_image in boxes], dtype=torch.int64)
        images = torch.arange(len(boxes)).repeat_interleave(counts)  # [P]
        corners = torch.cat([torch.zeros(0, 4, device=features[0].device), *boxes])
        rois = torch.cat([images[:, None].to(corners), corners], dim=1)  # [P, 5]
        if len(self.strides) == 1:
            return self._pool(features[0], rois, self.strides[0])
        levels = self.levels(rois[:, 1:])
        pooled = features[0].new_zeros(len(rois), features[0].shape[1], self.resolution, self.resolution)
        for level, (feature, stride) in enumerate(zip(features, self.strides, strict=False)):
            index = torch.nonzero(levels == level).squeeze(1)
            pooled = pooled.index_put((index,), self._pool(feature, rois[index], stride).to(pooled.dtype))
        return pooled

    def pool_padded(self, features: Sequence[Tensor], boxes: Tensor) -> Tensor:
        """Pool the features of the same number of boxes in every image, from every level, without waiting for a GPU.

        Args:
            features: levels [N, C, H_l, W_l].
            boxes: [N, P, 4] in pixels.

        Returns:
            [N * P, C, Z, Z].
        """
        images = torch.arange(boxes.shape[0], device=boxes.device)[:, None, None].expand(-1, boxes.shape[1], 1)
        rois = torch.cat([images.to(boxes), boxes], dim=2).flatten(0, 1)  # [N * P, 5]
        pooled = self._pool(features[0], rois, self.strides[0])
        levels = self.levels(rois[:, 1:])[:, None, None, None]
        for level in range(1, len(self.strides)):
            pooled = torch.where(levels == level, self._pool(features[level], rois, self.strides[level]), pooled)
        return pooled

    def _pool(self, feature: Tensor, rois: Tensor, stride: int) -> Tensor:
        feature = at_least_float32(feature)  # half precision would round the coordinates of the boxes
        options = self.resolution, 1 / stride, self.sampling_ratio, self.aligned
        return roi_align(feature, rois.to(feature.dtype), *options)


class ConvBody(nn.Sequential):
    """3x3 convolutions on pooled features, each followed by a ReLU: [P, C, Z, Z] to [P, out_channels, Z, Z].

    Args:
        in_channels: C.
        channels: number of outputs of each layer.
        norm: normalisation after each convolution.
        dilation: dilation of the convolutions.
        std: standard deviation of the normal initial weights; None: that of He et al. (arXiv:1502.01852) for outputs.
    """

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int],
        *,
        norm: PyramidNorm = "none",
        dilation: int = 1,
        std: float | None = None,
    ):
        layers: list[nn.Module] = []
        for inputs, outputs in zip([in_channels, *channels], channels, strict=False):
            conv = nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation, bias=norm == "none")
            initialize(conv, std=std)
            layers += [conv, *([] if norm == "none" else [NORMS[norm](outputs)]), nn.ReLU(inplace=True)]
        super().__init__(*layers)
        self.out_channels = channels[-1] if channels else in_channels


class BoxBody(nn.Module):
    """Convolutions and linear layers on pooled features, each followed by a ReLU: [P, C, Z, Z] to [P, out_channels].

    Args:
        convs: convolutions on the pooled features.
        channels: number of outputs of each linear layer.
        num_linears: number of linear layers.
        norm: normalisation after each linear layer.
        resolution: Z.
    """

    def __init__(
        self, convs: ConvBody, channels: int, *, num_linears: int = 2, norm: LinearNorm = "none", resolution: int = 7
    ):
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        for i in range(num_linears):
            inputs = channels if i else convs.out_channels * resolution**2
            linear = nn.Linear(inputs, channels, bias=norm == "none")
            nn.init.kaiming_uniform_(linear.weight, a=1)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
            layers += [linear, *([] if norm == "none" else [NORMS[norm](channels)]), nn.ReLU(inplace=True)]
        self.convs = convs
        self.linears = nn.Sequential(*layers)
        self.out_channels = channels

    def forward(self, x: Tensor) -> Tensor:
        """Map [P, C, Z, Z] to [P, out_channels]."""
        return self.linears(self.convs(x))


def initialize(layer: nn.Conv2d | nn.ConvTranspose2d | nn.Linear, *, std: float | None = None) -> None:
    """Initialise a layer with normal weights, by default those of He et al. for its outputs, and zero biases."""
    if std is None:
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    else:
        nn.init.normal_(layer.weight, std=std)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class RoiSamples(NamedTuple):
    """Sampled proposals of an image.

    Attributes:
        boxes: [S, 4] in pixels.
        matched: [S] int64 index of the object that is matched with each, or `points.BACKGROUND`.
        objects: ground truth of the image.
    """

    boxes: Tensor
    matched: Tensor
    objects: Objects

    def positives(self) -> RoiSamples:
        """Return the samples that are matched with an object."""
        mask = self.matched >= 0
        return self._replace(boxes=self.boxes[mask], matched=self.matched[mask])


@torch.no_grad()
def sample_proposals(proposals: Tensor, objects: Objects, *, matcher: AnchorMatcher, sampler: Sampler) -> RoiSamples:
    """Match proposals [P, 4] and the objects' boxes themselves with the objects of an image, and sample both."""
    boxes = torch.cat([proposals, objects.boxes[~objects.is_crowd].to(proposals)])
    matched = match_anchors(boxes, objects, matcher)
    # The first stage draws with the seed itself.
    samples = sample_balanced(matched, sampler, seed=(objects.seed + 1) % 2**63)
    return RoiSamples(boxes[samples], matched[samples], objects)


class BoxOutputs(NamedTuple):
    """Predictions of the box head for the proposals of all images.

    Attributes:
        logits: [P, 1 + K] class logits, first that of the background.
        offsets: [P, 4 * (1 + K)] box offsets of the background (not used) and every class, see `BoxCoder`; [P, 8] if
            they are class-agnostic, the last four of which are used for all classes.
    """

    logits: Tensor
    offsets: Tensor


class BoxHead(nn.Module):
    """Head that classifies proposals and shifts their boxes.

    Args:
        body: layers from pooled features [P, C, Z, Z] to [P, channels].
        channels: number of channels of the body's output.
        num_classes: K.
        pooler: options of the pooling of features.
        matcher: options of the matching of proposals with objects.
        sampler: numbers of proposals that are sampled for the losses.
        coder: meaning of the box offsets.
        class_agnostic: True if all classes share the offsets of a proposal.
        smooth_l1_beta: offset at which the smooth L1 loss becomes linear; 0: L1 loss.
    """

    loss_names = ("loss_cls", "loss_box")

    def __init__(
        self,
        body: nn.Module,
        channels: int,
        *,
        num_classes: int,
        pooler: Pooler,
        matcher: AnchorMatcher,
        sampler: Sampler,
        coder: BoxCoder,
        class_agnostic: bool = False,
        smooth_l1_beta: float = 1.0,
    ):
        super().__init__()
        self.body = body
        self.logits = nn.Linear(channels, 1 + num_classes)
        self.offsets = nn.Linear(channels, 8 if class_agnostic else 4 * (1 + num_classes))
        initialize(self.logits, std=0.01)
        initialize(self.offsets, std=0.001)
        self.pooler = pooler
        self.matcher = matcher
        self.sampler = sampler
        self.coder = coder
        self.smooth_l1_beta = smooth_l1_beta
        self.class_parameters = dict.fromkeys(("logits.weight", "logits.bias"), ClassRows(before=1))
        if not class_agnostic:
            rows = ClassRows(before=4, per_class=4)
            self.class_parameters |= dict.fromkeys(("offsets.weight", "offsets.bias"), rows)

    def forward(self, features: Sequence[Tensor], boxes: Sequence[Tensor]) -> BoxOutputs:
        """Compute the predictions for N tensors of boxes [P_i, 4] from the pyramid levels."""
        x = self.body(self.pooler(features, boxes))
        return BoxOutputs(at_least_float32(self.logits(x)), at_least_float32(self.offsets(x)))

    def of_padded(self, features: Sequence[Tensor], boxes: Tensor) -> BoxOutputs:
        """Compute the predictions [N, P, ...] for the same number of boxes [N, P, 4] in every image."""
        x = self.body(self.pooler.pool_padded(features, boxes))
        outputs = (at_least_float32(layer(x)) for layer in (self.logits, self.offsets))
        return BoxOutputs(*(values.unflatten(0, (-1, boxes.shape[1])) for values in outputs))

    def sample(self, proposals: Sequence[Tensor], targets: Sequence[Objects]) -> list[RoiSamples]:
        """Sample the proposals of every image for the losses, see `sample_proposals`."""
        pairs = zip(proposals, targets, strict=True)
        return [
            sample_proposals(boxes, objects.to(boxes.device), matcher=self.matcher, sampler=self.sampler)
            for boxes, objects in pairs
        ]

    def losses(
        self, features: Sequence[Tensor], samples: Sequence[RoiSamples], num_images: Tensor | None
    ) -> dict[str, Tensor]:
        """Compute the losses of sampled proposals.

        Args:
            features: pyramid levels.
            samples: sampled proposals of the N images.
            num_images: denominator, see `losses.sample_weights`.

        Returns:
            `loss_cls`, the cross entropy, and `loss_box`, the smooth L1 loss of the offsets of positives; both are
            divided by the number of samples, positives and negatives.
        """
        logits, offsets = self(features, [image.boxes for image in samples])
        labels = torch.cat([logits.new_zeros(0, dtype=torch.int64), *map(_class_rows, samples)])  # [P] in 0..K
        weights = sample_weights([len(image.boxes) for image in samples], num_images, like=logits)
        loss_cls = (F.cross_entropy(logits, labels, reduction="none") * weights).sum()
        rows = torch.nonzero(labels).squeeze(1)
        predicted = select_offsets(offsets, rows, labels[rows])  # [positives, 4]
        positives = [image.positives() for image in samples]
        references = torch.cat([predicted.new_zeros(0, 4), *(image.boxes for image in positives)])
        boxes = torch.cat([references[:0], *(image.objects.boxes[image.matched].to(references) for image in positives)])
        wanted = self.coder.encode(boxes, references).to(predicted.dtype)
        errors = F.smooth_l1_loss(predicted, wanted, reduction="none", beta=self.smooth_l1_beta)
        loss_box = (errors.sum(dim=1) * weights[rows]).sum()
        return dict(zip(self.loss_names, (loss_cls, loss_box), strict=True))


def _class_rows(image: RoiSamples) -> Tensor:
    """Return the classes of the samples of an image [S], 0 for background, 1..K for objects."""
    if not len(image.objects):
        return torch.zeros_like(image.matched)
    return torch.where(image.matched >= 0, image.objects.labels[image.matched.clamp(min=0)] + 1, 0)


class DetailHead(nn.Module, ABC):
    """Head that predicts more about detections, such as masks or keypoints.

    Attributes:
        detail_name: name of the predictions, `masks` or `keypoints`.
        loss_names: keys of the terms of `losses`.
        class_parameters: layouts of the parameters with rows for every class, see `DetectionModel`.
        keypoint_parameters: dimension of the keypoints by the name of a parameter, see `DetectionModel`.
    """

    detail_name: str
    loss_names: tuple[str, ...]
    class_parameters: Mapping[str, ClassRows]
    keypoint_parameters: Mapping[str, int] = {}

    @abstractmethod
    def losses(
        self, features: Sequence[Tensor], samples: Sequence[RoiSamples], num_images: Tensor | None
    ) -> dict[str, Tensor]:
        """Compute the losses of the positives among the sampled proposals, see `BoxHead.losses`."""

    @abstractmethod
    def add(self, features: Sequence[Tensor], detections: Sequence[Instances]) -> list[Instances]:
        """Return the detections of the N images with the predictions of this head."""

    @abstractmethod
    def of_padded(self, features: Sequence[Tensor], boxes: Tensor, labels: Tensor) -> Tensor:
        """Compute the predictions of the same number of detections in every image.

        Args:
            features: pyramid levels.
            boxes: [N, D, 4] in pixels.
            labels: [N, D] in 0..K-1.

        Returns:
            Probabilities of masks [N, D, G, G], see `Instances.mask_grids`, or keypoints [N, D, J, 3].
        """
