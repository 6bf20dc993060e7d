"""Suppression of all images of a batch in one call, as on a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fcos.models import postprocess
from fcos.models.postprocess import Postprocess, suppress, suppress_images
from fcos.structures import Instances


@pytest.mark.parametrize("limit", [0, 2, 8, 100])
@pytest.mark.parametrize("options", [{}, {"box_convention": "inclusive"}, {"clip_after_nms": True}], ids=str)
def test_images_are_suppressed_together_as_one_by_one(
    options: dict[str, Any], limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postprocess, "GPU_TYPES", {"cpu"})
    images = []
    for count, spread in ((0, 50), (300, 200), (70, 3), (5, 50), (300, 8)):  # the last ones overlap strongly
        corner = torch.rand(count, 2) * spread - 5
        scores = (torch.rand(count) * 20).round() / 20  # with ties
        boxes = torch.cat([corner, corner + torch.rand(count, 2) * 30 + 1], 1)
        images.append(Instances(boxes, torch.randint(0, 4, (count,)), scores, (60 + count, 90)))
    chosen = Postprocess(max_detections=limit, **options)
    for found, image in zip(suppress_images(images, chosen, num_classes=4), images, strict=True):
        expected = suppress(image, chosen)
        assert len(found) > 0 or len(image) == 0
        assert found.size == image.size
        assert found.boxes.equal(expected.boxes)
        assert found.scores.equal(expected.scores)
        assert found.labels.equal(expected.labels)
