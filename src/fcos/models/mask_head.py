"""Mask head: a mask for every detection.

Shape letters: N images, P boxes of all images, K classes, C channels, Z side of the pooled features, D detections.

Source: He et al., ICCV 2017 (arXiv:1703.06870). The conventions follow maskrcnn-benchmark.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..choices import MaskPasting
from ..structures import Instances
from .detector import ClassRows
from .layers import at_least_float32
from .losses import sample_weights
from .roi_heads import DetailHead, Pooler, RoiSamples, groups_of_boxes, initialize


class MaskHead(DetailHead):
    """Head that predicts a mask of every class on a grid that spans the box.

    Args:
        body: layers from pooled features [P, C, Z, Z] to [P, in_channels, z, z].
        in_channels: number of channels of the body's output.
        channels: number of channels of the transposed convolution that doubles the side of the grid; None: there is no
            such convolution.
        num_classes: K. The first row of the last layer belongs to the background and is not used.
        pooler: options of the pooling of features.
        margin: pixels by which masks extend beyond boxes, see `Instances.mask_margin`.
        pasting: pasting of masks into the image, see `Instances.mask_pasting`.
    """

    detail_name = "masks"
    loss_names = ("loss_mask",)
    class_parameters = dict.fromkeys(("logits.weight", "logits.bias"), ClassRows(before=1))

    def __init__(
        self,
        body: nn.Module,
        in_channels: int,
        *,
        channels: int | None,
        num_classes: int,
        pooler: Pooler,
        margin: float = 0.0,
        pasting: MaskPasting = "truncated",
    ):
        super().__init__()
        self.body = body
        self.upsample = nn.Sequential()
        if channels is not None:
            conv = nn.ConvTranspose2d(in_channels, channels, 2, stride=2)
            initialize(conv)
            self.upsample = nn.Sequential(conv, nn.ReLU(inplace=True))
        self.logits = nn.Conv2d(channels or in_channels, 1 + num_classes, 1)
        initialize(self.logits)
        self.pooler = pooler
        self.margin = margin
        self.pasting: MaskPasting = pasting

    def forward(self, features: Sequence[Tensor], boxes: Sequence[Tensor], labels: Tensor) -> Tensor:
        """Compute the mask logits of boxes.

        Args:
            features: pyramid levels [N, C, H_l, W_l].
            boxes: N tensors [P_i, 4] in pixels.
            labels: [P] class of every box, 0..K-1.

        Returns:
            [P, G, G], where G is 2 z, or z without transposed convolution. Logits of other classes are not computed,
            since they would take most of the memory.
        """
        return self._predict(self.pooler(features, boxes), labels)

    def _predict(self, pooled: Tensor, labels: Tensor) -> Tensor:
        """Compute the mask logits [P, G, G] from pooled features [P, C, Z, Z]."""
        x = self.upsample(self.body(pooled))  # [P, channels, G, G]
        weight, bias = self.logits.weight.flatten(1)[labels + 1], self.logits.bias
        assert bias is not None
        logits = torch.bmm(weight[:, None], x.flatten(2)).squeeze(1)  # [P, G * G]
        return at_least_float32(logits).unflatten(1, x.shape[2:]) + bias[labels + 1, None, None]

    def losses(
        self, features: Sequence[Tensor], samples: Sequence[RoiSamples], num_images: Tensor | None
    ) -> dict[str, Tensor]:
        """Compute `loss_mask`: the mean binary cross entropy of the pixels of a positive's mask, averaged over them."""
        positives = [image.positives() for image in samples]
        none = features[0].new_zeros(0, dtype=torch.int64)  # there may be no images
        labels = torch.cat([none, *(image.objects.labels[image.matched] for image in positives)])
        logits = self(features, [image.boxes for image in positives], labels)
        targets = []
        for image in positives:
            masks = image.objects.masks
            assert masks is not None, "training a mask head requires ground truth with masks"
            targets.append(masks[image.matched].crop(image.boxes, logits.shape[-1]).to(logits))
        weights = sample_weights([len(image.boxes) for image in positives], num_images, like=logits)
        errors = F.binary_cross_entropy_with_logits(
            logits, torch.cat([logits[:0].detach(), *targets]), reduction="none"
        )
        return {"loss_mask": (errors.mean(dim=(1, 2)) * weights).sum()}

    def add(self, features: Sequence[Tensor], detections: Sequence[Instances]) -> list[Instances]:
        """Return the detections with `mask_grids` [D, G, G], the probabilities of their class."""
        labels = torch.cat([features[0].new_zeros(0, dtype=torch.int64), *(image.labels for image in detections)])
        grids, start = [], 0
        for boxes in groups_of_boxes([image.boxes for image in detections]):
            end = start + sum(map(len, boxes))
            grids.append(self(features, boxes, labels[start:end]).sigmoid())
            start = end
        pairs = zip(detections, torch.cat(grids).split([len(image) for image in detections]), strict=True)
        return [
            replace(image, mask_grids=part, mask_margin=self.margin, mask_pasting=self.pasting) for image, part in pairs
        ]

    def of_padded(self, features: Sequence[Tensor], boxes: Tensor, labels: Tensor) -> Tensor:
        """Compute the probabilities [N, D, G, G] of the masks of detections; see `DetailHead.of_padded`."""
        logits = self._predict(self.pooler.pool_padded(features, boxes), labels.flatten())
        return logits.sigmoid().unflatten(0, (-1, boxes.shape[1]))
