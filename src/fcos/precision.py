"""Precision of the network in training and inference."""

from __future__ import annotations

import logging
from functools import cache

import torch

from .choices import Precision

log = logging.getLogger(__name__)


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Return the autocast context for backbone and head. Losses and boxes stay in float32 in any case."""
    dtype = getattr(torch, precision)
    if device.type == "cpu" and precision != "float32":
        _warn_if_slow(precision)
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


@cache
def _warn_if_slow(precision: Precision) -> None:
    """Warn once if this CPU has no instructions for a precision."""
    if not has_instructions(precision):
        log.warning(
            "warning: this CPU has no %s instructions, so %s is many times slower than float32; set train.precision"
            " and eval.precision to float32",
            precision,
            precision,
        )


def has_instructions(precision: Precision) -> bool:
    """Return False if this CPU lacks instructions for a precision: PyTorch then computes convolutions without oneDNN.

    If PyTorch was built without oneDNN, which could tell, the result is True.
    """
    supported = {
        "bfloat16": torch.ops.mkldnn._is_mkldnn_bf16_supported,
        "float16": torch.ops.mkldnn._is_mkldnn_fp16_supported,
    }
    return precision == "float32" or not torch.backends.mkldnn.is_available() or supported[precision]()
