"""State dicts of other projects, built from recorded names and shapes."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

DIALECTS = Path(__file__).parents[1] / "parity" / "goldens" / "dialects"
MANIFESTS = DIALECTS.parent / "manifests" / "fcos"
MOBILE = json.loads((MANIFESTS / "fcos_syncbn_bs32_c128_MNV2_FPN_1x.json").read_text())
"""Config and tensors of the original's MobileNetV2 detector."""
CLASS_HEAD = ("cls_logits", "cls_score", "conv_cls")
"""Names of the layers with one row per class in these projects."""


def state_of(model: str, *, classes: int = 80, device: str = "meta") -> dict[str, Tensor]:
    """Return a state dict with the names and shapes of a recorded model."""
    state = {}
    for name, shape, *_ in json.loads((DIALECTS / f"{model}.json").read_text())["tensors"]:
        rows = [classes, *shape[1:]] if name.split(".")[-2] in CLASS_HEAD else shape
        state[name] = torch.zeros(rows, device=device)
    return state


def original_state(classes: int = 80) -> dict[str, Tensor]:
    """Return a state dict with the names and shapes of the original's MobileNetV2 detector."""
    torch.manual_seed(0)
    state = {}
    for name, shape, *_ in MOBILE["tensors"]:
        rows = [classes, *shape[1:]] if ".cls_logits." in name else shape
        state[name] = torch.rand(rows) if name.endswith("running_var") else torch.randn(rows) * 0.05
        if name.endswith("num_batches_tracked"):
            state[name] = torch.zeros((), dtype=torch.int64)
    return state


def original_file(path: Path, classes: int = 80, *, module: str = "", old_format: bool = False) -> Path:
    """Write a checkpoint like those of the original's training."""
    content = {
        "model": {module + name: tensor for name, tensor in original_state(classes).items()},
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.01, "params": [0]}]},
        "scheduler": {"milestones": (60000, 80000), "gamma": 0.1, "warmup_method": "constant", "last_epoch": 90000},
        "iteration": 90000,
    }
    torch.save(content, path, _use_new_zipfile_serialization=not old_format)
    return path
