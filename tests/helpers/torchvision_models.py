"""torchvision's detectors, for comparison with ours on the same network input."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from fcos.structures import Instances


def resizing(min_size: int) -> GeneralizedRCNNTransform:
    """Build torchvision's input transform for small images."""
    return GeneralizedRCNNTransform(min_size, 192, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]).eval()


def network_input(transform: GeneralizedRCNNTransform, images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the input of torchvision's network as our images (RGB 0..255) and sizes."""
    batch, _ = transform(list(images))
    mean, std = (torch.tensor(values)[:, None, None] for values in (transform.image_mean, transform.image_std))
    return (batch.tensors * std + mean) * 255, torch.tensor(batch.image_sizes)


def assert_same(found: Instances, expected: dict[str, Tensor], labels: Tensor | None = None) -> None:
    """Compare with the project's tolerances: 0.01 pixels, 1e-4. Detections with nearly equal scores may swap places."""
    assert len(found) == len(expected["scores"])
    torch.testing.assert_close(found.scores, expected["scores"], rtol=0, atol=1e-4)
    same = (found.labels if labels is None else labels)[:, None] == expected["labels"]
    same &= (found.scores[:, None] - expected["scores"]).abs() <= 1e-4
    same &= (found.boxes[:, None] - expected["boxes"]).abs().amax(dim=2) <= 0.01
    assert same.any(dim=0).all()
    assert same.any(dim=1).all()
