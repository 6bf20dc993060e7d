"""State dicts of other projects, built from recorded names and shapes."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

DIALECTS = Path(__file__).parents[1] / "parity" / "goldens" / "dialects"
CLASS_HEAD = ("cls_logits", "cls_score", "conv_cls")
"""Names of the layers with one row per class in these projects."""


def state_of(model: str, *, classes: int = 80, device: str = "meta") -> dict[str, Tensor]:
    """Return a state dict with the names and shapes of a recorded model."""
    state = {}
    for name, shape, *_ in json.loads((DIALECTS / f"{model}.json").read_text())["tensors"]:
        rows = [classes, *shape[1:]] if name.split(".")[-2] in CLASS_HEAD else shape
        state[name] = torch.zeros(rows, device=device)
    return state
