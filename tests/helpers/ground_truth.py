"""Ground truth of several images, built from lists of tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fcos.structures import Objects


def objects_of(
    boxes: Sequence[Tensor], labels: Sequence[Tensor], crowd: Sequence[Tensor] | None = None
) -> list[Objects]:
    """Build one `Objects` per image; without `crowd` there are no crowd boxes."""
    flags = [None] * len(boxes) if crowd is None else crowd
    return [Objects(*columns) for columns in zip(boxes, labels, flags, strict=True)]  # pyright: ignore[reportArgumentType]


def assert_same_objects(found: Objects, expected: Objects) -> None:
    assert torch.equal(found.boxes, expected.boxes)
    assert torch.equal(found.labels, expected.labels)
    assert torch.equal(found.is_crowd, expected.is_crowd)
