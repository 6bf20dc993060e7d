"""A run that is killed or stopped at any moment and then resumed gives exactly the result of an uninterrupted run."""

from __future__ import annotations

import csv
import multiprocessing
import os
import random
import shlex
import signal
import time
from contextlib import suppress
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest.mock import patch
from zipfile import ZipFile

import pytest
import tiny_backbone
import torch
from processes import SECONDS, forkserver, wait_until

from fcos import api
from fcos.cli import main
from fcos.config import Config
from fcos.interop.checkpoints import load_checkpoint

STOPS = 4
STEPS = 12
TIMINGS = ("minutes", "images_per_second", "data_share")


def run_command(words: list[str], log: Path) -> None:
    """Run `fcos WORDS`, the target of a child process; its output goes to a file.

    Most of the time of such a short run would be that of the report, in which a signal changes nothing.
    """
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    multiprocessing.set_start_method("fork", force=True)  # for loader workers; default here: forkserver
    with patch.object(api, "_write_report"):
        main(words)


class Commands:
    """Starts commands in processes of a `forkserver`."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "log.txt"
        self._context = forkserver()

    def start(self, *words: object) -> BaseProcess:
        self.log.write_text("")
        process = self._context.Process(target=run_command, args=([str(word) for word in words], self.log))
        process.start()
        return process

    def finish(self, process: BaseProcess) -> str:
        """Wait for a process and return its output. A process that hangs is killed and fails the test."""
        process.join(SECONDS)
        if process.exitcode is None:
            process.kill()
            raise AssertionError(self.log.read_text())
        return self.log.read_text()

    def run(self, *words: object) -> str:
        process = self.start(*words)
        log = self.finish(process)
        assert process.exitcode == 0, log
        return log


@pytest.fixture(scope="module")
def folder(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of several runs of the same config, of which `whole` is not interrupted."""
    folder = tmp_path_factory.mktemp("resume")
    config = Config.model_validate(
        {
            "model": tiny_backbone.MODEL,
            "data": {
                "root": data,
                "short_side": [48, 64],
                "max_side": 64,
                "zoom": [0.5, 2],
                "color_jitter": 0.3,
                "augmentation_fade": 10,
                "workers": 0,
            },
            "train": {
                "iterations": STEPS,
                "batch_size": 2,
                "lr": 1e-2,
                "warmup": "none",
                "schedule": "cosine",
                "clip_norm": 10.0,
                "ema": 0.9,
                "eval_every": 5,
                "checkpoint_every": 1,
                "log_every": 4,
            },
            "device": "cpu",
        }
    )
    (folder / "config.yaml").write_text(config.to_yaml())
    return folder


@pytest.fixture(scope="module")
def commands(folder: Path) -> Commands:
    return Commands(folder)


@pytest.fixture(scope="module")
def duration(folder: Path, commands: Commands) -> float:
    """Return the duration of the uninterrupted run in seconds."""
    commands.run("--version")  # starts the fork server
    began = time.monotonic()
    commands.run("train", folder / "config.yaml", f"output_dir={folder / 'whole'}")
    return time.monotonic() - began


def train_words(folder: Path, run: str, *, workers: int) -> list[object]:
    """Return the command that starts a run or resumes it."""
    again = folder / run / "config.yaml"
    words = [again, "train.resume=true"] if again.is_file() else [folder / "config.yaml", f"output_dir={folder / run}"]
    return ["train", *words, f"data.workers={workers}"]


def iteration(run: Path) -> int:
    """Return the iteration of the last save, read from a copy because a running process may replace the file."""
    copy = run.with_suffix(".pt")
    try:
        copy.write_bytes((run / "weights/last.pt").read_bytes())
    except FileNotFoundError:  # not yet saved, or in the middle of a save without hard links
        return 0
    return load_checkpoint(copy).iteration


def has_reached(run: Path, steps: int) -> bool:
    return iteration(run) >= steps


def truncated(file: Path) -> bytes:
    content = file.read_bytes()
    return content[: len(content) // 3]


def with_wrong_byte(file: Path) -> bytes:
    """Return a file's content with one wrong byte in a tensor: bytes between the records of a file have no meaning."""
    with ZipFile(file) as records:
        tensor = records.read(max(records.infolist(), key=lambda record: record.file_size))
    content = bytearray(file.read_bytes())
    content[content.index(tensor) + len(tensor) // 2] ^= 0xFF
    return bytes(content)


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return [{key: row[key] for key in row if key not in TIMINGS} for row in csv.DictReader(file)]


def compare(expected: Any, found: Any, where: str = "") -> None:
    """Compare bit by bit, except for measured times."""
    if isinstance(expected, torch.Tensor):
        assert torch.equal(expected, found), where
    elif isinstance(expected, dict):
        assert expected.keys() == found.keys(), where
        for key in expected:
            if key not in ("seconds", "step_seconds"):
                compare(expected[key], found[key], f"{where}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(expected) == len(found), where
        for i, (a, b) in enumerate(zip(expected, found, strict=True)):
            compare(a, b, f"{where}[{i}]")
    else:
        assert repr(expected) == repr(found), where  # NaN is not equal to itself


def assert_matches_uninterrupted_run(folder: Path, run: str) -> None:
    for name in ("last.pt", "best.pt"):
        expected, found = (load_checkpoint(folder / r / "weights" / name) for r in ("whole", run))
        compare(expected.model, found.model, f"{name}: weights")
        compare(expected.training, found.training, f"{name}: training")
        compare(expected.metrics, found.metrics, f"{name}: metrics")
        assert found.iteration == expected.iteration
    assert rows(folder / run) == rows(folder / "whole")
    assert not list((folder / run / "weights").glob(".*"))


@pytest.mark.parametrize("count", [6, pytest.param(20, marks=pytest.mark.slow)])
def test_run_killed_at_random_moments_resumes_bit_identically(
    folder: Path, commands: Commands, duration: float, count: int
) -> None:
    seed = random.randrange(1000)
    print(f"seed {seed}")  # shown when the test fails
    moments = random.Random(seed)
    kills = runs = 0
    while True:
        process = commands.start(*train_words(folder, f"killed{count}_{runs}", workers=moments.randrange(4)))
        process.join(moments.uniform(0, duration) if kills < count else SECONDS)
        if process.exitcode is None:
            process.kill()
            process.join()
            assert kills < count, commands.log.read_text()  # fails if it hangs
            kills += 1
            continue
        assert process.exitcode == 0, commands.log.read_text()
        assert_matches_uninterrupted_run(folder, f"killed{count}_{runs}")
        if kills == count:
            return
        runs += 1


def test_run_stopped_by_signals_resumes_with_the_printed_command(
    folder: Path, commands: Commands, duration: float
) -> None:
    seed = random.randrange(1000)
    print(f"seed {seed}")
    moments = random.Random(seed)
    runs, run = 0, folder / "stopped0"
    words = train_words(folder, run.name, workers=2)
    signals = [signal.SIGINT, signal.SIGTERM] * (STOPS // 2)
    while signals:
        stop_at = iteration(run) + moments.randint(1, 2)
        process = commands.start(*words)
        wait_until(partial(has_reached, run, stop_at), process)
        assert process.pid is not None
        with suppress(ProcessLookupError):
            os.kill(process.pid, signals[-1])
        log = commands.finish(process)
        told = [line for line in log.splitlines() if line.startswith("interrupted; ")]
        if told:
            assert process.exitcode == 130, log
            words = shlex.split(told[0].partition("continue with: fcos ")[2])
            signals.pop()
        else:  # the training ended before the signal
            assert f"{STEPS} iterations, " in log
            assert_matches_uninterrupted_run(folder, run.name)
            runs += 1
            run = folder / f"stopped{runs}"
            words = train_words(folder, run.name, workers=2)
    commands.run(*words)
    assert_matches_uninterrupted_run(folder, run.name)


def test_damaged_checkpoint_falls_back_to_the_previous_one(folder: Path, commands: Commands, duration: float) -> None:
    last = folder / "damaged/weights/last.pt"
    for damage in (truncated, with_wrong_byte):
        process = commands.start(*train_words(folder, "damaged", workers=0))
        assert wait_until(lambda: "step: " in commands.log.read_text(), process), commands.log.read_text()
        assert wait_until(last.with_stem("last-1").is_file, process), commands.log.read_text()
        process.kill()
        process.join()
        # In the middle of a save last.pt is the same file as last-1.pt, or does not exist without hard links.
        content = damage(last if last.exists() else last.with_stem("last-1"))
        last.unlink(missing_ok=True)
        last.write_bytes(content)
    log = commands.run(*train_words(folder, "damaged", workers=0))
    assert f"warning: {last}: damaged checkpoint: " in log
    previous, damaged = last.with_stem("last-1"), last.with_stem("damaged.2")  # damaged.pt is from the first resume
    assert f"resuming from the previous checkpoint, {previous}; renamed {last} to {damaged}" in log
    assert_matches_uninterrupted_run(folder, "damaged")
