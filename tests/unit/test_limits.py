"""Limit on open files: raised where the system permits it, otherwise an error before the run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from processes import in_new_process

from fcos import FCOSError, train
from fcos.data.workers import available_cores
from fcos.limits import BASE, PER_WORKER

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


def error_of_training(folder: Path, devices: int, missing: int) -> str:
    """Train with the limit that one of several processes needs, less `missing` files, and return the error message."""
    import resource

    os.chdir(folder)
    limit = BASE + PER_WORKER * max(1, available_cores() // devices) - missing
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    options = ["output_dir=file", f"train.devices={devices}", f"data.workers={available_cores() + 1}"]
    with pytest.raises(FCOSError) as caught:
        train("fcos_mnv2_small", "data=nowhere", *options)
    return str(caught.value)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
@pytest.mark.parametrize(
    ("limits", "workers", "told"),
    [
        ((64, 200), 2, "(200, 200)"),
        ((64, 64), 0, "(64, 64)"),
        (
            (64, 64),
            2,
            "2 loader workers: about 96 open files are needed, but the limit is 64; raise it with `ulimit -n 256`",
        ),
    ],
)
def test_limit_on_open_files_is_raised_or_reported(limits: tuple[int, int], workers: int, told: str) -> None:
    program = PROGRAM.format(limits=limits, workers=workers)
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.startswith(told)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize(("missing", "message"), [(0, "output_dir: file is a file"), (1, "raise it with `ulimit -n ")])
def test_open_files_suffice_for_the_workers_of_one_process(
    tmp_path: Path, devices: int, missing: int, message: str
) -> None:
    (tmp_path / "file").touch()
    assert message in in_new_process(error_of_training, tmp_path, devices, missing)
