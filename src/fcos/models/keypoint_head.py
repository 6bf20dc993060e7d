"""Keypoint head: the keypoints of every detection, such as the joints of a person.

Shape letters: N images, P boxes of all images, J keypoints of an object, Z side of the pooled features, G side of the
heat maps, D detections of an image, S samples of an image.

Source: He et al., ICCV 2017 (arXiv:1703.06870), section 5. The conventions follow maskrcnn-benchmark.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..structures import Instances
from .layers import at_least_float32
from .losses import sample_weights
from .roi_heads import DetailHead, Pooler, RoiSamples, groups_of_boxes, initialize


class KeypointHead(DetailHead):
    """Head that predicts a heat map of every keypoint on a grid that spans the box.

    Args:
        body: layers from pooled features [P, C, Z, Z] to [P, in_channels, Z, Z].
        in_channels: number of channels of the body's output.
        num_keypoints: J.
        pooler: options of the pooling of features.
    """

    detail_name = "keypoints"
    loss_names = ("loss_keypoints",)
    keypoint_parameters: Mapping[str, int] = {"logits.weight": 1, "logits.bias": 0}

    def __init__(self, body: nn.Module, in_channels: int, *, num_keypoints: int, pooler: Pooler):
        super().__init__()
        self.body = body
        self.logits = nn.ConvTranspose2d(in_channels, num_keypoints, 4, stride=2, padding=1)
        initialize(self.logits)
        self.pooler = pooler
        self.class_parameters = {}

    def forward(self, features: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """Compute the heat maps [P, J, 4 Z, 4 Z] (logits) of N tensors of boxes [P_i, 4] in pixels."""
        x = at_least_float32(self.logits(self.body(self.pooler(features, boxes))))
        # torch cannot resize an empty batch.
        return _double(x) if len(x) else x.repeat(1, 1, 2, 2)

    def losses(
        self, features: Sequence[Tensor], samples: Sequence[RoiSamples], num_images: Tensor | None
    ) -> dict[str, Tensor]:
        """Compute `loss_keypoints`: the cross entropy over the cells of the heat map, averaged over visible keypoints.

        Only positives are used whose object has a visible keypoint inside its box, and only keypoints inside the
        sampled box.
        """
        positives = [_with_visible_keypoints(image.positives()) for image in samples]
        heat_maps = self(features, [image.boxes for image in positives])  # [P, J, G, G]
        pairs = [keypoint_cells(_keypoints(image), image.boxes, heat_maps.shape[-1]) for image in positives]
        none = torch.zeros(0, heat_maps.shape[1], dtype=torch.int64, device=heat_maps.device)  # there may be no images
        found = [pair for pair in pairs if len(pair[0])]  # data without objects has no number of keypoints
        cells = torch.cat([none, *(of_image for of_image, _ in found)])  # [P, J]
        valid = torch.cat([none.bool(), *(of_image for _, of_image in found)])
        logits = heat_maps.flatten(2)[valid]  # [valid, G * G]
        weights = sample_weights([int(is_valid.sum()) for _, is_valid in pairs], num_images, like=logits)
        errors = F.cross_entropy(logits, cells[valid], reduction="none")
        return {"loss_keypoints": (errors * weights).sum() + 0 * heat_maps.sum()}

    def add(self, features: Sequence[Tensor], detections: Sequence[Instances]) -> list[Instances]:
        """Return the detections with `keypoints` [D, J, 3], see `decode_keypoints`."""
        keypoints = [
            decode_keypoints(self(features, boxes), torch.cat([torch.zeros(0, 4, device=features[0].device), *boxes]))
            for boxes in groups_of_boxes([image.boxes for image in detections])
        ]
        pairs = zip(detections, torch.cat(keypoints).split([len(image) for image in detections]), strict=True)
        return [replace(image, keypoints=part) for image, part in pairs]

    def of_padded(self, features: Sequence[Tensor], boxes: Tensor, labels: Tensor) -> Tensor:
        """Compute the keypoints [N, D, J, 3] of detections; see `DetailHead.of_padded`."""
        x = at_least_float32(self.logits(self.body(self.pooler.pool_padded(features, boxes))))
        return keypoint_operator(_double(x), boxes.flatten(0, 1)).unflatten(0, (-1, boxes.shape[1]))


def _double(heat_maps: Tensor) -> Tensor:
    return F.interpolate(heat_maps, scale_factor=2, mode="bilinear", align_corners=False)


def _keypoints(image: RoiSamples) -> Tensor:
    """Return the keypoints [S, J, 3] of the objects that samples are matched with."""
    keypoints = image.objects.keypoints
    assert keypoints is not None, "training a keypoint head requires ground truth with keypoints"
    return keypoints[image.matched]


def _with_visible_keypoints(image: RoiSamples) -> RoiSamples:
    """Return the samples whose object has a visible keypoint inside its box."""
    keypoints, boxes = _keypoints(image), image.objects.boxes[image.matched]
    points = keypoints[..., :2]
    inside = (points >= boxes[:, None, :2]) & (points <= boxes[:, None, 2:])
    keep = (inside.all(dim=2) & (keypoints[..., 2] > 0)).any(dim=1)
    return image._replace(boxes=image.boxes[keep], matched=image.matched[keep])


def keypoint_cells(keypoints: Tensor, boxes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Compute the cells of heat maps that contain keypoints.

    Args:
        keypoints: [S, J, 3] x, y in pixels and visibility; 0: not labelled.
        boxes: [S, 4] that the heat maps span.
        size: side G of the heat maps.

    Returns:
        [S, J] int64 index of the cell, row by row, and [S, J] bool, whether the keypoint is visible and inside the box.
        The index of other keypoints is 0. Keypoints on the right or lower side belong to the last cell.
    """
    corner, other = boxes[:, None, :2], boxes[:, None, 2:]
    points = keypoints[..., :2].to(boxes)
    scaled = ((points - corner) * (size / (other - corner))).floor().long()
    cells = torch.where(points == other, size - 1, scaled)  # [S, J, 2] (x, y)
    valid = ((cells >= 0) & (cells < size)).all(dim=2) & (keypoints[..., 2] > 0)
    return (cells[..., 1] * size + cells[..., 0]) * valid, valid


def decode_keypoints(heat_maps: Tensor, boxes: Tensor) -> Tensor:
    """Find the keypoints of detections: the maxima of their heat maps, resized to the box in pixels.

    Args:
        heat_maps: [D, J, G, G] logits.
        boxes: [D, 4] that the heat maps span, in pixels.

    Returns:
        [D, J, 3]: x, y in pixels, and the logit at that position.
    """
    keypoints = heat_maps.new_zeros(*heat_maps.shape[:2], 3)
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1)
    for i, (maps, (width, height)) in enumerate(zip(heat_maps, sides.ceil().long().tolist(), strict=True)):
        resized = F.interpolate(maps[None], size=(height, width), mode="bicubic", align_corners=False)[0]
        logits, index = resized.flatten(1).max(dim=1)  # [J]
        cells = torch.stack([index % width, index // width], dim=1)
        scale = sides[i] / sides.new_tensor([width, height])
        keypoints[i, :, :2] = boxes[i, :2] + (cells + 0.5) * scale
        keypoints[i, :, 2] = logits
    return keypoints


# One operator, because the sizes of its steps depend on values; see `padded.nms_operator`.
@torch.library.custom_op("fcos::decode_keypoints", mutates_args=())
def keypoint_operator(heat_maps: Tensor, boxes: Tensor) -> Tensor:
    """Call `decode_keypoints`."""
    return decode_keypoints(heat_maps, boxes)


@keypoint_operator.register_fake
def _keypoint_shapes(heat_maps: Tensor, boxes: Tensor) -> Tensor:
    return heat_maps.new_empty(heat_maps.shape[0], heat_maps.shape[1], 3)
