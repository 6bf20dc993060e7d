"""Limit on open files: raised where the system permits it, otherwise an error before the run."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, {limits})
from fcos.errors import ConfigError
from fcos.limits import require_open_files
try:
    require_open_files({workers})
except ConfigError as error:
    print(error)
else:
    print(resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
@pytest.mark.parametrize(
    ("limits", "workers", "told"),
    [
        ((64, 200), 2, "(200, 200)"),
        ((64, 64), 0, "(64, 64)"),
        ((64, 64), 2, "data.workers=2: about 96 open files are needed, but this process may open 64; raise the limit"),
    ],
)
def test_limit_on_open_files_is_raised_or_reported(limits: tuple[int, int], workers: int, told: str) -> None:
    program = PROGRAM.format(limits=limits, workers=workers)
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.startswith(told)
