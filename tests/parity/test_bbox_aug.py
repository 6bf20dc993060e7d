"""Test-time augmentation against the recorded numbers: each view separately, and the merged result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from detectors import build_fcos
from fill import fill_array
from golden import load
from PIL import Image

from fcos.config import Config
from fcos.config.overrides import validate
from fcos.data.loader import pad_views
from fcos.data.transforms import detection_views
from fcos.inference.detect import candidates_of, detect_in_views
from fcos.interop.fcos_core.config import config_from_yaml
from fcos.interop.fcos_core.weights import convert_state_dict
from fcos.models.fcos import FCOS
from fcos.structures import View

BASE_AND_SCALES = {"base": 0, "flip": 1, "scale96": 2, "scale160": 4}
"""Index of each recorded view among ours; mirrored views at other scales are recorded in the merged result only."""


class Recorded(NamedTuple):
    numbers: dict[str, np.ndarray]
    model: FCOS
    views: list[View]


@pytest.fixture(scope="module")
def recorded(goldens: Path) -> Recorded:
    numbers = load(goldens / "units" / "bbox_aug.npz")
    name = Path(str(numbers["config"])).stem
    manifest = json.loads((goldens / "manifests" / "fcos" / f"{name}.json").read_text())
    pairs = [str(item) for item in json.loads(str(numbers["opts"]))]
    config: Config = validate(config_from_yaml(manifest["merged_config"], pairs), where=name)
    model = build_fcos(config.model, num_classes=80).eval()
    seed = int(numbers["seed"])
    state = {row[0]: torch.from_numpy(fill_array(row[0], row[1], seed)) for row in manifest["tensors"]}
    model.load_state_dict(convert_state_dict(state), strict=False)
    images = [Image.fromarray(numbers[f"image{i}"]) for i in range(2)]
    transforms = detection_views(config)
    pixels = [[transform(image).image for transform in transforms] for image in images]
    views = pad_views(pixels, transforms, size_divisor=config.data.size_divisor)
    return Recorded(numbers, model, views)


def test_view_sizes_and_flips_match_the_original(recorded: Recorded) -> None:
    assert [view.flipped for view in recorded.views] == [False, True, False, True, False, True]
    for name, position in BASE_AND_SCALES.items():
        sizes = [recorded.numbers[f"view_{name}/size_wh{i}"].tolist()[::-1] for i in range(2)]
        assert recorded.views[position].sizes.tolist() == sizes


@pytest.mark.parametrize("name", BASE_AND_SCALES)
def test_candidates_of_each_view_match_the_original(recorded: Recorded, name: str) -> None:
    view = recorded.views[BASE_AND_SCALES[name]]
    for i, found in enumerate(candidates_of(recorded.model, view)):
        count, score_sum, box_sum = (
            recorded.numbers[f"view_{name}/{key}{i}"] for key in ("count", "score_sum", "box_sum")
        )
        assert len(found) == int(count)
        # The recordings' tolerances, 1e-3 pixels and 1e-5, add up over the candidates.
        assert float(found.scores.double().sum()) == pytest.approx(float(score_sum), abs=1e-5 * len(found))
        np.testing.assert_allclose(found.boxes.double().sum(0).numpy(), box_sum, rtol=0, atol=1e-3 * len(found))


def test_merged_detections_match_the_original(recorded: Recorded) -> None:
    for i, found in enumerate(detect_in_views(recorded.model, recorded.views)):
        boxes, scores, labels = (recorded.numbers[f"out{i}/{key}"] for key in ("boxes", "scores", "labels"))
        assert list(found.size) == recorded.numbers[f"out{i}/size_wh"].tolist()[::-1]
        np.testing.assert_allclose(found.scores, scores, rtol=0, atol=1e-5)
        remaining = list(range(len(found)))
        for box, score, label in zip(boxes, scores, labels, strict=True):  # equal scores may come in any order
            match = next(
                j
                for j in remaining
                if abs(float(found.scores[j]) - score) <= 1e-5
                and int(found.labels[j]) + 1 == label
                and np.abs(found.boxes[j].numpy() - box).max() <= 1e-3
            )
            remaining.remove(match)
