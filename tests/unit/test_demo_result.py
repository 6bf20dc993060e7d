"""Result of `make demo`: the measured AP50, with a reason and a remedy if it is low."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml

TOOL = runpy.run_path(str(Path(__file__).parents[2] / "tools/demo_result.py"))


def explain(run: Path, *, ap50: float, weights: str | None, train: dict[str, Any]) -> str:
    (run / "val").mkdir()
    (run / "val/metrics.json").write_text(json.dumps({"metrics": {"AP50": ap50}}))
    (run / "config.yaml").write_text(yaml.safe_dump({"model": {"backbone": {"weights": weights}}, "train": train}))
    return TOOL["explain"](run)


@pytest.mark.parametrize(
    ("ap50", "weights", "train", "ending"),
    [
        (0.97, "imagenet", {"iterations": 1800}, "AP50 on the validation images: 0.970"),
        (0.91, None, {"iterations": 1800}, "images: 0.910"),
        (0.2, None, {"iterations": 1800}, "then run `make demo` again."),
        (0.2, "imagenet", {"iterations": 900}, "Run `make demo` without DEMO_OPTIONS."),
        (0.2, "imagenet", {"iterations": None}, "Run `make demo` without DEMO_OPTIONS."),
        (0.2, "imagenet", {"iterations": 1800}, "attach the page report.html of the run."),
    ],
)
def test_low_result_is_explained(
    tmp_path: Path, ap50: float, weights: str | None, train: dict[str, Any], ending: str
) -> None:
    text = explain(tmp_path, ap50=ap50, weights=weights, train=train)
    assert text.endswith(ending)
    assert ("less than the expected 0.85" in text) == (ap50 < 0.85)
