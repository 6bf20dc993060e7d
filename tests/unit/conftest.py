"""Fixtures for tests of complete trainings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from detectors import TINY
from tiny_data import write_coco

from fcos.config import Config


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_coco(tmp_path / "data", split="val")
    return write_coco(tmp_path / "data")


@pytest.fixture
def configure(tmp_path: Path, data: Path) -> Callable[..., Config]:
    """Return a function that builds the config of a two-step run in `tmp_path/run`; keywords are options of `train`."""

    def build(*, model: dict[str, Any] | None = None, **settings: Any) -> Config:
        options = {
            key: value for key, value in TINY[(model or {}).get("name", "fcos")].items() if key != "max_detections"
        }
        length = {} if settings.keys() & {"epochs", "max_minutes"} else {"iterations": 2}
        return Config.model_validate(
            {
                "model": {
                    "backbone": {"name": "mobilenet_v2", "weights": None},
                    "fpn": {"channels": 64},
                    **options,
                    **(model or {}),
                },
                "data": {"root": data, "short_side": [32], "max_side": 64, "workers": 0},
                "train": {"batch_size": 2, "warmup": "none", "log_every": 1, "lr": 1e-4, **length, **settings},
                "output_dir": tmp_path / "run",
                "device": "cpu",
            }
        )

    return build
