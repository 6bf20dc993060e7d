"""Average precision of Pascal VOC against the recorded numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fcos.evaluation.voc_metrics import ClassInImage, average_precisions


def test_average_precision_matches_the_original(goldens: Path) -> None:
    recorded = json.loads((goldens / "rcnn_units" / "voc_eval.json").read_text())
    # The original adds the last pixel twice to inclusive boxes.
    end = np.array([0, 0, 2, 2], dtype=np.float32)
    values = {"AP50_voc07": [], "AP50_voc10": []}
    for label in range(1, len(recorded["ap"])):
        images = []
        for image in recorded["images"]:
            of_class, detected = np.array(image["gt_labels"]) == label, np.array(image["labels"]) == label
            images.append(
                ClassInImage(
                    (np.array(image["gt"], dtype=np.float32).reshape(-1, 4) + end)[of_class],
                    np.array(image["difficult"], dtype=bool)[of_class],
                    (np.array(image["boxes"], dtype=np.float32).reshape(-1, 4) + end)[detected],
                    np.array(image["scores"])[detected],
                )
            )
        for name, value in average_precisions(images).items():
            values[name].append(value)
    for name, key in {"AP50_voc07": "07", "AP50_voc10": ""}.items():
        suffix = f"_{key}" if key else ""
        expected = np.array(recorded[f"ap{suffix}"][1:], dtype=np.float64)
        # Sums of a few fractions in float64.
        np.testing.assert_allclose(values[name], expected, rtol=0, atol=1e-12)
        assert np.nanmean(values[name]) == pytest.approx(recorded[f"map{suffix}"], abs=1e-12)
