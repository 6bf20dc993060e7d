"""Loading of the recorded reference values (formats: goldens/README.md)."""

from __future__ import annotations

import json
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectors import build_fcos, fcos_section
from fill import fill_array
from torch import Tensor

from fcos.config import Config, FCOSConfig
from fcos.config.overrides import validate
from fcos.interop.fcos_core.config import config_from_yaml
from fcos.interop.fcos_core.weights import convert_state_dict, rename
from fcos.models.fcos import FCOS
from fcos.models.postprocess import Postprocess


def folder(config: pytest.Config) -> Path:
    """Return the folder with the recordings that this test run compares with."""
    return Path(str(config.getoption("--goldens"))).resolve()


def cases(file: Path, *, skip: tuple[str, ...] = ()) -> list[str]:
    """Return the case names in a file of `units`: the first parts of its keys."""
    with np.load(file) as numbers:
        return sorted({key.split("/")[0] for key in numbers.files if "/" in key} - set(skip))


@cache
def load(file: Path) -> dict[str, np.ndarray]:
    with np.load(file) as numbers:
        return dict(numbers)


def postprocess_of(section: FCOSConfig) -> Postprocess:
    """Return the post-processing options of a `model` config section."""
    return Postprocess(**{field.name: getattr(section, field.name) for field in fields(Postprocess)})


def tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(array))


def sample(values: Tensor, count: int = 5) -> np.ndarray:
    """Return the entries of a tensor that the recordings contain, padded with NaN."""
    flat = values.detach().reshape(-1).double().numpy()
    index = np.unique(np.linspace(0, flat.size - 1, count).astype(np.int64)) if flat.size >= count else slice(None)
    row = np.full(count, np.nan)
    picked = flat[index]
    row[: len(picked)] = picked
    return row


class Model:
    """Recorded model of the original: its outputs, its config converted to ours, and its synthetic weights."""

    def __init__(self, goldens: Path, entry: dict[str, Any]):
        self.name = Path(entry["file"]).stem
        self.numbers = load(goldens / "models" / entry["file"])
        self.inputs = load(goldens / "models" / "inputs.npz")
        self.head_outputs_full = entry["head_outputs_full"]
        index = json.loads((goldens / "models" / "index.json").read_text())
        self.feature_stride, self.head_stride = index["feature_stride"], index["head_stride"]
        self.manifest = json.loads((goldens / "manifests" / "fcos" / f"{Path(entry['config']).stem}.json").read_text())
        pairs = [str(item) for item in entry["opts"]]
        self.config: Config = validate(config_from_yaml(self.manifest["merged_config"], pairs), where=self.name)
        self.section = fcos_section(self.config)
        self.names: list[str] = [row[0] for row in self.manifest["tensors"]]
        self.state = {
            row[0]: torch.from_numpy(fill_array(row[0], row[1], entry["seed"])) for row in self.manifest["tensors"]
        }

    def build(self, *, normalise: bool = False, dtype: torch.dtype = torch.float32) -> FCOS:
        """Build the model with the synthetic weights. Without `normalise` it expects normalised images."""
        model = build_fcos(self.section, num_classes=self.section.num_classes or 0)
        missing, unexpected = model.load_state_dict(convert_state_dict(self.state), strict=False)
        assert not unexpected
        assert set(missing) == {"pixel_mean", "pixel_std"}
        if not normalise:
            model.pixel_mean.zero_()
            model.pixel_std.fill_(1.0)
            model.channel_order = "rgb"
        return model.to(dtype)

    def parameters(self, model: FCOS) -> list[torch.nn.Parameter]:
        """Return the parameters of the model in the recorded order."""
        named = dict(model.named_parameters())
        return [named[rename(name)] for name in self.numbers["param_names"].tolist()]

    def buffers(self, model: FCOS) -> list[Tensor]:
        named = dict(model.named_buffers())
        return [named[rename(name)] for name in self.numbers["buffer_names"].tolist()]


def model_entries(config: pytest.Config) -> list[dict[str, Any]]:
    """Return the models listed in the index of the recordings."""
    return json.loads((folder(config) / "models" / "index.json").read_text())["models"]
