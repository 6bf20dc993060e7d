"""Test-time augmentation against the recorded numbers: each view separately, and the merged result."""

from __future__ import annotations

import json
import re
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
from fcos.structures import Instances, View

DEFAULTS = {"H_FLIP": False, "SCALES": [], "SCALE_H_FLIP": False}
"""Default options TEST.BBOX_AUG of the original."""


class Recorded(NamedTuple):
    """Recorded numbers, and our model and views of the recorded images.

    A recorded view NAME has the keys `view_NAME/KEY`; it is mirrored if its name contains "flip". Not all views are
    recorded alone; the others contribute to the merged result.
    """

    numbers: dict[str, np.ndarray]
    num_images: int
    model: FCOS
    views: list[View]
    num_views: int

    def recorded_views(self) -> dict[str, View]:
        """Return our view for the name of each recorded one: that of the same sizes, mirrored or not."""
        names = dict.fromkeys(
            key.split("/")[0].removeprefix("view_") for key in self.numbers if key.startswith("view_")
        )
        found = {}
        for name in names:
            sizes = [self.numbers[f"view_{name}/size_wh{i}"].tolist()[::-1] for i in range(self.num_images)]
            found[name] = next(v for v in self.views if v.sizes.tolist() == sizes and v.flipped == ("flip" in name))
        return found


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
    num_images = sum(re.fullmatch(r"image\d+", key) is not None for key in numbers)
    images = [Image.fromarray(numbers[f"image{i}"]) for i in range(num_images)]
    transforms = detection_views(config)
    pixels = [[transform(image).image for transform in transforms] for image in images]
    views = pad_views(pixels, transforms, size_divisor=config.data.size_divisor)
    given = dict(zip(pairs[::2], json.loads(str(numbers["opts"]))[1::2], strict=True))
    options = {key: given.get(f"TEST.BBOX_AUG.{key}", default) for key, default in DEFAULTS.items()}
    num_views = 1 + options["H_FLIP"] + len(options["SCALES"]) * (1 + options["SCALE_H_FLIP"])
    return Recorded(numbers, num_images, model, views, num_views)


def test_views_match_the_original(recorded: Recorded) -> None:
    """`recorded_views` finds a view of ours with the sizes of each recorded one."""
    assert len(recorded.views) == recorded.num_views
    assert recorded.recorded_views()


def test_candidates_of_each_view_match_the_original(recorded: Recorded) -> None:
    for name, view in recorded.recorded_views().items():
        for i, found in enumerate(candidates_of(recorded.model, view)):
            assert_candidates_match(recorded.numbers, name, i, found)


def assert_candidates_match(numbers: dict[str, np.ndarray], name: str, i: int, found: Instances) -> None:
    count, score_sum, box_sum = (numbers[f"view_{name}/{key}{i}"] for key in ("count", "score_sum", "box_sum"))
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
