"""What the tests of whole trainings share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_data import write_coco

from fcos.config import Config


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_coco(tmp_path / "data", split="val")
    return write_coco(tmp_path / "data")


@pytest.fixture
def configure(tmp_path: Path, data: Path) -> Callable[..., Config]:
    """Config of a run of two steps in `tmp_path/run`; options of `train` as keywords."""

    def build(*, model: dict[str, Any] | None = None, **settings: Any) -> Config:
        length = {} if settings.keys() & {"epochs", "max_minutes"} else {"iterations": 2}
        return Config.model_validate(
            {
                "model": {
                    "backbone": {"name": "mobilenet_v2", "weights": None},
                    "fpn": {"channels": 64},
                    "head": {"num_convs": 1},
                    **(model or {}),
                },
                "data": {"root": data, "short_side": [32], "max_side": 64, "workers": 0},
                "train": {"batch_size": 2, "warmup": "none", "log_every": 1, "lr": 1e-4, **length, **settings},
                "output_dir": tmp_path / "run",
                "device": "cpu",
            }
        )

    return build
