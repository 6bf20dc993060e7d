"""Runs that are resumed, and edits of their checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fcos.config import Config

Change = Callable[[dict[str, Any]], object]


def resumed(template: Config, run: Path, **settings: Any) -> Config:
    settings = {"resume": True, "iterations": 3, **settings}
    return template.model_copy(
        update={"output_dir": run, "train": template.train.model_copy(update=settings)}, deep=True
    )


def edit(file: Path, change: Change) -> None:
    content = torch.load(file, weights_only=True)
    change(content["training"])
    torch.save(content, file)
