"""Detector that is not in the package; a test adds it to a copy of the package as `models/grid.py`.

Every cell of one feature map predicts class logits and a box. No code is shared with FCOS.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcos.boxes import class_wise_nms
from fcos.models.backbones import Backbone
from fcos.models.detector import ClassRows, DetectionModel, Pixels
from fcos.structures import Instances, Losses, Objects

if TYPE_CHECKING:
    from fcos.config import DetectorConfig


class GridOutputs(NamedTuple):
    """Class logits [N, K, H, W] and boxes [N, 4, H, W] in pixels."""

    logits: Tensor
    boxes: Tensor


class Grid(DetectionModel):
    """Detector on one feature map, in which each cell learns the objects whose centre it contains.

    Args:
        backbone: feature extractor; only its last map is used.
        num_classes: number of classes K.
        score_threshold: candidates must score above this, 0..1.
        default_threshold: score threshold for classes without a per-class threshold, see `DetectionModel`.
        pixels: pixel normalisation, see `DetectionModel`.
    """

    class_parameters = dict.fromkeys(("classes.weight", "classes.bias"), ClassRows())
    compiled_parts = ("backbone", "classes", "corners")

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        score_threshold: float,
        default_threshold: float,
        pixels: Pixels,
    ):
        super().__init__(
            num_classes,
            box_convention="continuous",
            default_threshold=default_threshold,
            loss_names=("loss_grid_class", "loss_grid_corners"),
            pixels=pixels,
        )
        self.level, self.stride = list(backbone.strides.items())[-1]
        self.score_threshold = score_threshold
        self.backbone = backbone
        self.classes = nn.Conv2d(backbone.channels[self.level], num_classes, 1)
        self.corners = nn.Conv2d(backbone.channels[self.level], 4, 1)

    def forward(
        self,
        images: Tensor,
        sizes: Tensor,
        targets: Sequence[Objects] | None = None,
        normalizers: Tensor | None = None,
    ) -> GridOutputs | Losses:
        """Compute losses if targets are given, else the raw outputs, see `DetectionModel.forward`."""
        assert normalizers is None
        features = self.backbone(self.normalize(images, sizes))[self.level]
        logits, corners = self.classes(features).float(), self.corners(features).float()
        rows, columns = (torch.arange(n, device=images.device) for n in features.shape[-2:])
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        outputs = GridOutputs(logits, (corners + torch.stack([x, y, x + 1, y + 1])) * self.stride)
        return outputs if targets is None else self.losses(outputs, targets)

    def losses(self, outputs: GridOutputs, targets: Sequence[Objects]) -> Losses:
        """Compute the classification and box losses, both divided by the number of objects."""
        wanted = torch.zeros_like(outputs.logits)
        terms, cells = [outputs.boxes.sum() * 0], set()
        for image, target in enumerate(targets):
            objects = target[~target.is_crowd]
            centers = ((objects.boxes[:, :2] + objects.boxes[:, 2:]) / 2 / self.stride).long()
            x, y = centers[:, 0].clamp(0, wanted.shape[3] - 1), centers[:, 1].clamp(0, wanted.shape[2] - 1)
            wanted[image, objects.labels, y, x] = 1
            terms.append(F.l1_loss(outputs.boxes[image, :, y, x].T, objects.boxes, reduction="sum") / self.stride)
            cells |= {(image, *cell) for cell in centers.tolist()}
        count = sum(int((~objects.is_crowd).sum()) for objects in targets)
        loss = F.binary_cross_entropy_with_logits(outputs.logits, wanted, reduction="sum") / max(count, 1)
        crowded = torch.tensor(count - len(cells), device=self.device)
        return Losses(
            dict(zip(self.loss_names, [loss, torch.stack(terms).sum() / max(count, 1)], strict=True)),
            {"crowded": crowded},
        )

    def loss_normalizers(self, targets: Sequence[Objects], size: tuple[int, int]) -> None:
        """Return None: micro-batches are weighted by their numbers of images."""
        return None

    @torch.inference_mode()
    def decode(self, outputs: GridOutputs, sizes: Tensor) -> list[Instances]:
        """Convert raw outputs to the boxes before NMS of each image, see `DetectionModel.decode`."""
        found = []
        for logits, boxes, size in zip(*outputs, sizes.tolist(), strict=True):
            scores, labels = logits.sigmoid().flatten(1).max(0)
            instances = Instances(boxes.flatten(1).T, labels, scores, tuple(size)).clip()
            sides = instances.boxes[:, 2:] - instances.boxes[:, :2]
            found.append(instances[(scores > self.score_threshold) & (sides > 0).all(1)])
        return found

    @torch.inference_mode()
    def suppress(self, candidates: Instances) -> Instances:
        """Apply NMS to the candidates of an image, see `DetectionModel.suppress`."""
        return candidates[class_wise_nms(candidates.boxes, candidates.scores, candidates.labels, 0.5)]


def build_grid(config: DetectorConfig, backbone: Backbone, num_classes: int) -> Grid:
    """Build a `Grid` on a backbone, as `build_model` expects."""
    return Grid(
        backbone,
        num_classes,
        score_threshold=getattr(config, "score_threshold"),  # noqa: B009 (the section is in the copy only)
        default_threshold=config.default_threshold,
        pixels=Pixels(config.channel_order, config.pixel_mean, config.pixel_std),
    )
