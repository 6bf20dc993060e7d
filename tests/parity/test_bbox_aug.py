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
from golden import load, manifest_of, numbered
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

    A recorded view NAME has the keys `view_NAME/KEY`. Not all views are recorded alone; the others contribute to the
    merged result.
    """

    numbers: dict[str, np.ndarray]
    num_images: int
    model: FCOS
    views: list[View]
    num_views: int

    def recorded_views(self) -> dict[str, list[list[int]]]:
        """Return the sizes (height, width) of the images in each recorded view, by its name."""
        names = dict.fromkeys(
            key.split("/")[0].removeprefix("view_") for key in self.numbers if key.startswith("view_")
        )
        images = range(self.num_images)
        return {name: [self.numbers[f"view_{name}/size_wh{i}"].tolist()[::-1] for i in images] for name in names}


@pytest.fixture(scope="module")
def recorded(goldens: Path) -> Recorded:
    numbers = load(goldens / "units" / "bbox_aug.npz")
    entry = {key: str(numbers[key]) for key in ("config", "manifest") if key in numbers}
    manifest = manifest_of(goldens, entry)
    pairs = [str(item) for item in json.loads(str(numbers["opts"]))]
    config: Config = validate(config_from_yaml(manifest["merged_config"], pairs), where="x")
    model = build_fcos(config.model, num_classes=config.model.num_classes or 0).eval()
    seed = int(numbers["seed"])
    state = {row[0]: torch.from_numpy(fill_array(row[0], row[1], seed)) for row in manifest["tensors"]}
    model.load_state_dict(convert_state_dict(state), strict=False)
    images = [Image.fromarray(pixels.numpy()) for pixels in numbered(numbers, "image")]
    transforms = detection_views(config)
    pixels = [[transform(image).image for transform in transforms] for image in images]
    views = pad_views(pixels, transforms, size_divisor=config.data.size_divisor)
    given = dict(zip(pairs[::2], json.loads(str(numbers["opts"]))[1::2], strict=True))
    options = {key: given.get(f"TEST.BBOX_AUG.{key}", default) for key, default in DEFAULTS.items()}
    num_views = 1 + options["H_FLIP"] + len(options["SCALES"]) * (1 + options["SCALE_H_FLIP"])
    return Recorded(numbers, len(images), model, views, num_views)


def test_number_of_views_matches_the_original(recorded: Recorded) -> None:
    assert len(recorded.views) == recorded.num_views


def test_candidates_of_each_view_match_the_original(recorded: Recorded) -> None:
    """Each recorded view is another one of ours; which of them are mirrored is not recorded."""
    remaining = [(view.sizes.tolist(), candidates_of(recorded.model, view)) for view in recorded.views]
    assert recorded.recorded_views()
    for name, sizes in recorded.recorded_views().items():
        matching = [
            k
            for k, (of_view, images) in enumerate(remaining)
            if of_view == sizes and all(candidates_match(recorded.numbers, name, i, x) for i, x in enumerate(images))
        ]
        assert matching, name
        del remaining[matching[0]]


def candidates_match(numbers: dict[str, np.ndarray], name: str, i: int, found: Instances) -> bool:
    count, score_sum, box_sum = (numbers[f"view_{name}/{key}{i}"] for key in ("count", "score_sum", "box_sum"))
    # The recordings' tolerances, 1e-3 pixels and 1e-5, add up over the candidates.
    return (
        len(found) == int(count)
        and float(found.scores.double().sum()) == pytest.approx(float(score_sum), abs=1e-5 * len(found))
        and np.allclose(found.boxes.double().sum(0).numpy(), box_sum, rtol=0, atol=1e-3 * len(found))
    )


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
