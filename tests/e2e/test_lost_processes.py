"""One of several processes is killed: the others stop and report the reason, and a torchrun restart resumes the run."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_backbone
import torch
from processes import finish, free_port, train_in_processes, wait_until

from fcos.config import Config
from fcos.interop.checkpoints import load_checkpoint
from fcos.training.loop import train

STEPS = 8
KILLED = "1:5"  # rank and call; one call happens at the start, so three steps are complete


def start(folder: Path, *words: object, kill_at: str = "") -> subprocess.Popen[str]:
    """Start `python -m WORDS` in a folder."""
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, words)],
        cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path), "KILL_AT": kill_at},
    )  # fmt: skip


@pytest.fixture(scope="module")
def config(data: Path) -> Config:
    return Config.model_validate(
        {
            "model": tiny_backbone.MODEL,
            "data": {"root": data, "short_side": [48, 64], "max_side": 64, "workers": 0},
            "train": {
                "iterations": STEPS,
                "batch_size": 3,
                "warmup": "none",
                "ema": 0.9,
                "checkpoint_every": 1,
                "log_every": 4,
            },
            "device": "cpu",
        }
    )


@pytest.fixture(scope="module")
def folder(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a working directory with the config of a run and a finished run of the same name."""
    folder = tmp_path_factory.mktemp("lost")
    (folder / "tiny.yaml").write_text(config.to_yaml())
    short = config.train.model_copy(update={"iterations": 1})
    train(config.model_copy(update={"train": short, "output_dir": folder / "runs/tiny"}))
    return folder


@pytest.fixture(scope="module")
def restarted(folder: Path) -> str:
    """Return the output of a run whose second process was killed and that torchrun restarted."""
    launch = ("torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1", "-m", "fcos")
    code, out, err = finish(start(folder, *launch, "train", "tiny.yaml", kill_at=KILLED))
    assert code == 0, err
    return out + err


def saved_at(file: Path) -> int:
    """Return a file's modification time, or 0 if it does not exist: during a save without hard links it may not."""
    try:
        return file.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def compare(expected: Any, found: Any) -> None:
    if isinstance(expected, torch.Tensor):
        assert torch.equal(expected, found)
    elif isinstance(expected, dict):
        assert expected.keys() == found.keys()
        for key in expected:
            compare(expected[key], found[key])


def test_torchrun_restart_resumes_in_the_same_run_folder(folder: Path, restarted: str) -> None:
    assert "weights: iteration 3 of this run" in restarted
    assert sorted(path.name for path in (folder / "runs").iterdir()) == ["tiny", "tiny-2"]
    assert load_checkpoint(folder / "runs/tiny/weights/last.pt").iteration == 1
    assert load_checkpoint(folder / "runs/tiny-2/weights/last.pt").iteration == STEPS


def assert_is_restarted_run(folder: Path, run: str) -> None:
    """Check that a run in two processes has the same weights and optimizer state as the restarted one, bit by bit."""
    found, expected = (load_checkpoint(folder / name / "weights/last.pt") for name in ("runs/tiny-2", run))
    compare(expected.model, found.model)
    assert expected.training is not None
    assert found.training is not None
    compare(expected.training["optimizer"], found.training["optimizer"])
    compare(expected.training["weights"], found.training["weights"])


@pytest.mark.usefixtures("restarted")
def test_restarted_run_is_bit_identical_to_an_uninterrupted_run(folder: Path, config: Config) -> None:
    train_in_processes(2, config.model_copy(update={"output_dir": folder / "whole"}))
    assert_is_restarted_run(folder, "whole")


@pytest.mark.slow
@pytest.mark.usefixtures("restarted")
def test_restarted_run_is_bit_identical_to_a_two_node_run(folder: Path) -> None:
    endpoint = f"--rdzv-endpoint=localhost:{free_port()}"
    rendezvous = ("--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", endpoint)
    words = ("torch.distributed.run", *rendezvous, "-m", "fcos", "train", "tiny.yaml", "output_dir=nodes")
    for code, _, err in [finish(node) for node in [start(folder, *words), start(folder, *words)]]:
        assert code == 0, err
    assert_is_restarted_run(folder, "nodes")


def test_surviving_process_reports_the_lost_process(restarted: str) -> None:
    assert (
        "fcos: process 0: another process has ended or cannot be reached; see the message of that process or of the"
        " launcher (" in restarted
    )
    assert "exitcode: -9) local_rank: 1" in restarted
    assert "Traceback" not in restarted


@pytest.fixture(scope="module")
def killed(folder: Path) -> tuple[int, str]:
    """Return exit code and stderr of a command whose second process was killed after the third step."""
    command = ("fcos", "train", "tiny.yaml", "train.devices=2", "output_dir=killed")
    code, _, err = finish(start(folder, *command, kill_at=KILLED))
    return code, err


def test_command_without_restarts_reports_the_killed_process(killed: tuple[int, str]) -> None:
    code, err = killed
    assert code == 2
    first, last = err.strip().splitlines()
    assert first.startswith("fcos: process 0: another process has ended")
    assert last == (
        "fcos: process 1 was terminated by SIGKILL, possibly because the system ran out of memory; the other"
        " processes were stopped; continue with: fcos train killed/config.yaml train.resume=true"
    )


def test_printed_command_resumes_the_run_and_sigterm_saves_and_stops_it(folder: Path, killed: tuple[int, str]) -> None:
    last = folder / "killed/weights/last.pt"
    before = saved_at(last)
    words = shlex.split(killed[1].partition("continue with: ")[2])
    process = start(folder, *words, "train.iterations=100000")
    assert wait_until(lambda: saved_at(last) != before, process), finish(process)
    process.terminate()
    code, out, err = finish(process)
    assert (code, err) == (130, "")
    assert "weights: iteration 3 of this run" in out
    assert out.endswith("interrupted; continue with: fcos train killed/config.yaml train.resume=true\n")
    assert load_checkpoint(last).iteration > 3


def test_processes_save_and_stop_when_their_launcher_is_killed(folder: Path) -> None:
    """`finish` waits until all processes that write to the launcher's output have ended."""
    process = start(
        folder, "fcos", "train", "tiny.yaml", "train.devices=2", "output_dir=orphans", "train.iterations=100000"
    )
    last = folder / "orphans/weights/last.pt"
    assert wait_until(last.exists, process), finish(process)
    process.kill()
    code, out, err = finish(process)
    assert (code, err) == (-9, "")
    assert out.endswith(
        "interrupted: the launcher has ended; continue with: fcos train orphans/config.yaml train.resume=true\n"
    )
    assert load_checkpoint(last).training is not None


def test_data_error_is_reported_once_and_leaves_no_run_folder(folder: Path, data: Path) -> None:
    shutil.copytree(data, folder / "broken")
    (folder / "broken/train.json").unlink()
    command = ("fcos", "train", "tiny.yaml", "train.devices=2", "data=broken", "output_dir=none")
    code, out, err = finish(start(folder, *command))
    assert (code, out) == (2, "")
    assert err.count("fcos: ") == 1
    assert "no train split in broken" in err
    assert not (folder / "none").exists()
