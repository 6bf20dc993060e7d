"""The surroundings of a process that torchrun has started."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import torch


class StoreWithoutFirst:
    """torchrun's store, in which process 0 has written its port, 4711, and then nobody listens there."""

    timeout = timedelta(seconds=0)

    def __init__(self, address: str, port: int, **_: Any):
        if port == 4711:
            raise torch.distributed.DistNetworkError(f"no connection to {address}:{port}")

    def get(self, _: str) -> bytes:
        return b"4711"


def be_second_without_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this process the second of two, the first of which, on `node1`, is out of reach."""
    monkeypatch.setattr(torch.distributed, "TCPStore", StoreWithoutFirst)
    surroundings = {"MASTER_ADDR": "node1", "MASTER_PORT": "29500", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    for key, value in {**surroundings, "WORLD_SIZE": "2", "RANK": "1"}.items():
        monkeypatch.setenv(key, value)
