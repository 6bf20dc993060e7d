"""Outputs of exported files as detections."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ..models.padded import Padded
from ..structures import Instances


def to_instances(outputs: Mapping[str, Tensor], sizes: Tensor) -> list[Instances]:
    """Return the detections or candidates of N images.

    Args:
        outputs: outputs of `graph.DetectionGraph`.
        sizes: [N, 2] int64 (height, width) of the images without the padding.
    """
    boxes, scores, labels = outputs["boxes"].float(), outputs["scores"].float(), outputs["labels"]
    valid = outputs.get("valid")
    if valid is None:
        valid = torch.arange(scores.shape[1]) < outputs["counts"][:, None]
    results = Padded(boxes, scores, labels, valid).to_instances(sizes)
    for name, field in (("masks", "mask_grids"), ("keypoints", "keypoints")):
        if name in outputs:  # detections, which are the first of every image
            rows = zip(results, outputs[name].float(), strict=True)
            results = [replace(image, **{field: values[: len(image)]}) for image, values in rows]
    return results
