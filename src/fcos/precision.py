"""Precision of the network in training and inference."""

from __future__ import annotations

import torch

from .choices import Precision


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Return the autocast context for backbone and head. Losses and boxes stay in float32 in any case."""
    dtype = getattr(torch, precision)
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
