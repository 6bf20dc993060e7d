from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from fcos.allocator import keep_freed_memory

MEASURE = """
import sys, torch
from fcos.allocator import keep_freed_memory
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
print(keep_freed_memory(torch.device("cpu")))
tensors = [torch.ones(5_000_000) for _ in range(8)]  # 160 MB
before = resident()
del tensors
print(before - resident())
"""


def run(keep: str) -> tuple[bool, int]:
    """Return whether the setting was made, and how many of 160 million bytes are returned to the system when freed."""
    environment = {**os.environ, "FCOS_KEEP_FREED_MEMORY": keep}
    result = subprocess.run(
        [sys.executable, "-c", MEASURE], env=environment, capture_output=True, text=True, check=True
    )
    is_set, num_bytes = result.stdout.split()
    return is_set == "True", int(num_bytes)


@pytest.mark.skipif(sys.platform != "linux", reason="the setting exists in glibc only")
def test_setting_keeps_the_memory_of_freed_tensors() -> None:
    is_set, num_bytes = run("1")
    assert is_set
    assert num_bytes < 20_000_000
    is_set, num_bytes = run("0")
    assert not is_set
    assert num_bytes > 100_000_000


def test_setting_is_only_made_for_the_cpu() -> None:
    assert not keep_freed_memory(torch.device("cuda"))
