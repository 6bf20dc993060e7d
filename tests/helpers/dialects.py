"""Recorded models of AdelaiDet, detectron2 and mmdetection, and their outputs (formats: goldens/README.md).

The weights pass through `from_content` like a file of the project; its result determines everything else.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectors import fcos_section
from fill_dialects import fill_array
from golden import folder, load, tensor
from torch import Tensor

from fcos.checkpoint import Checkpoint
from fcos.config import Config, FCOSConfig
from fcos.config.overrides import validate
from fcos.interop.checkpoints import from_content


@dataclass
class Dialect:
    """Recorded model: its manifest, its recorded outputs, and its weights converted by our code."""

    name: str
    manifest: dict[str, Any]
    numbers: dict[str, np.ndarray]
    checkpoint: Checkpoint
    config: Config

    @property
    def section(self) -> FCOSConfig:
        return fcos_section(self.config)


def dialect(goldens: Path, name: str, *, filled: bool = True) -> Dialect:
    manifest = json.loads((goldens / "dialects" / f"{name}.json").read_text())
    seed, extra = manifest["fill"]["seed"], manifest["fill"]["extra"]
    state = {
        row[0]: torch.from_numpy(fill_array(row[0], row[1], seed, extra)) if filled else torch.empty(row[1])
        for row in manifest["tensors"]
    }
    key = "state_dict" if manifest["dialect"] == "mmdetection" else "model"
    checkpoint = from_content({key: state}, where=name)
    config = validate(checkpoint.config, where=name)
    return Dialect(name, manifest, load(goldens / "dialects" / f"{name}.npz"), checkpoint, config)


def names(config: pytest.Config) -> list[str]:
    """Return the names of the recorded models."""
    index = folder(config) / "dialects" / "index.json"
    return [row[0] for row in json.loads(index.read_text())["models"]] if index.exists() else []


def network_input(goldens: Path, model: Dialect) -> Tensor:
    inputs = model.manifest["inputs"]
    return tensor(load(goldens / "dialects" / inputs["file"])[inputs["tensor"]])


def used_tensors(model: Dialect) -> list[list[Any]]:
    """Return the tensors of the project, without layers that do not influence the output."""
    idle = model.manifest.get("dla34_parameters_without_influence_in_test_mode", [])
    layers = tuple(name.rpartition(".")[0] for name in idle)
    return [row for row in model.manifest["tensors"] if not (layers and row[0].startswith(layers))]
