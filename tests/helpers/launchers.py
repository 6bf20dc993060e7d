"""Environment of a process started by torchrun."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import torch


class StoreWithoutFirst:
    """Store of torchrun in which rank 0 has registered port 4711, where connections fail."""

    timeout = timedelta(seconds=0)

    def __init__(self, address: str, port: int, **_: Any):
        if port == 4711:
            raise torch.distributed.DistNetworkError(f"no connection to {address}:{port}")

    def get(self, _: str) -> bytes:
        return b"4711"


def be_second_without_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this process rank 1 of two, with an unreachable rank 0 on `node1`."""
    monkeypatch.setattr(torch.distributed, "TCPStore", StoreWithoutFirst)
    surroundings = {"MASTER_ADDR": "node1", "MASTER_PORT": "29500", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    for key, value in {**surroundings, "WORLD_SIZE": "2", "RANK": "1"}.items():
        monkeypatch.setenv(key, value)
