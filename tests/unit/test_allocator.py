from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import fcos
from fcos.allocator import keep_freed_memory

MEASURE = """
import sys, torch
from fcos.allocator import keep_freed_memory
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
count = int(sys.argv[1])
print(keep_freed_memory(torch.device("cpu")))
tensors = [torch.ones(count) for _ in range(40_000_000 // count)]  # 160 MB
before = resident()
del tensors
print(before - resident())
"""


def run(keep: str, count: int) -> tuple[bool, int]:
    """Return whether the setting was made, and how many bytes of 160 million are returned to the system when freed.

    Args:
        keep: value of the environment variable.
        count: number of values in a tensor.
    """
    environment = {**os.environ, "FCOS_KEEP_FREED_MEMORY": keep}
    command = [sys.executable, "-c", MEASURE, str(count)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    is_set, num_bytes = result.stdout.split()
    return is_set == "True", int(num_bytes)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting exists in glibc only")
def test_setting_keeps_the_memory_of_freed_tensors() -> None:
    version = tuple(map(int, platform.libc_ver()[1].split(".")))
    count = 20_000_000 if version >= (2, 36) else 5_000_000  # older versions may keep blocks of 32 MiB at most
    is_set, num_bytes = run("1", count)
    assert is_set
    assert num_bytes < 20_000_000
    is_set, num_bytes = run("0", count)
    assert not is_set
    assert num_bytes > 100_000_000


def test_old_versions_of_glibc_keep_smaller_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int]] = []

    def mallopt(parameter: int, value: int) -> int:
        calls.append((parameter, value))
        return int(parameter != -3 or value <= 32 * 2**20)

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=mallopt))
    assert keep_freed_memory(torch.device("cpu"))
    assert calls == [(-3, 128 * 2**20), (-3, 32 * 2**20), (-1, 2**31 - 1)]


def test_untrained_detectors_keep_freed_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    devices: list[torch.device] = []
    monkeypatch.setattr("fcos.api.keep_freed_memory", devices.append)
    fcos.load("fcos_mnv2_nano", "model.backbone.weights=null", device="cpu")
    assert devices == [torch.device("cpu")]


def test_setting_is_only_made_for_the_cpu() -> None:
    assert not keep_freed_memory(torch.device("cuda"))
