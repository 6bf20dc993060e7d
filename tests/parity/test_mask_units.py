"""Polygons, targets of mask heads and pasted masks against the recorded numbers, bit for bit."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import folder, load, tensor

from fcos.masks import Masks, paste


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    recorded = load(folder(metafunc.config) / "rcnn_units" / "masks.npz")
    for name, pattern in {"side": r"projected_(\d+)", "threshold": r"pasted_(-?[\d.]+)"}.items():
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, [match[1] for key in recorded if (match := re.fullmatch(pattern, key))])


@pytest.fixture
def recorded(goldens: Path) -> dict[str, np.ndarray]:
    return load(goldens / "rcnn_units" / "masks.npz")


@pytest.fixture
def masks(recorded: dict[str, np.ndarray]) -> Masks:
    return Masks.from_polygons(json.loads(str(recorded["polygons"])), dtype=np.float32)


def bits(packed: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    return np.unpackbits(packed)[: math.prod(shape)].reshape(shape).astype(bool)


def test_bitmaps_match_the_original(recorded: dict[str, np.ndarray], masks: Masks) -> None:
    _, height, width = shape = recorded["full/shape"].tolist()
    np.testing.assert_array_equal(masks.to_bitmaps((height, width)), bits(recorded["full"], shape))
    flipped = masks.flip(width, convention="inclusive").to_bitmaps((height, width))
    np.testing.assert_array_equal(flipped, bits(recorded["flip"], shape))


def test_resized_bitmaps_match_the_original(recorded: dict[str, np.ndarray], masks: Masks) -> None:
    count, height, width = recorded["full/shape"].tolist()
    new_width, new_height = recorded["resized/size_wh"].tolist()
    resized = masks.scale(new_width / width, new_height / height).to_bitmaps((new_height, new_width))
    np.testing.assert_array_equal(resized, bits(recorded["resized"], (count, new_height, new_width)))


def test_targets_of_the_mask_head_match_the_original(recorded: dict[str, np.ndarray], masks: Masks, side: str) -> None:
    targets = masks.crop(tensor(recorded["project_boxes"]), int(side))
    assert targets.dtype == torch.float32
    expected = bits(recorded[f"projected_{side}"], recorded[f"projected_{side}/shape"].tolist())
    np.testing.assert_array_equal(targets, expected.astype(np.float32))


def test_pasted_masks_match_the_original(recorded: dict[str, np.ndarray], threshold: str) -> None:
    width, height = recorded["size_wh"].tolist()
    pasted = torch.stack(list(paste(tensor(recorded["mask"])[:, 0], tensor(recorded["boxes"]), (height, width))))
    # A negative threshold gives the probabilities in 1/255.
    ours = pasted > float(threshold) if float(threshold) >= 0 else (pasted * 255).to(torch.uint8)
    np.testing.assert_array_equal(ours, recorded[f"pasted_{threshold}"][:, 0])
