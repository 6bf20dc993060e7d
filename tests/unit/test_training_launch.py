"""Number of processes that `train.devices` starts, and mistakes reported before any process starts."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

import fcos
from fcos.checkpoint import save_checkpoint
from fcos.config import Config
from fcos.errors import ConfigError, TrainingError
from fcos.training import launch
from fcos.training.folder import BEST
from fcos.training.launch import processes_to_start
from fcos.training.loop import TrainResult


def config(devices: int | None, device: str = "cpu", batch_size: int = 4) -> Config:
    return Config.model_validate({"train": {"devices": devices, "batch_size": batch_size}, "device": device})


@pytest.mark.parametrize(("devices", "count"), [(None, 1), (1, 1), (3, 3)])
def test_devices_option_sets_process_count_without_torchrun(
    devices: int | None, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert processes_to_start(config(devices)) == count


@pytest.mark.parametrize("devices", [None, 2])
def test_processes_of_torchrun_start_no_further_processes(devices: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert processes_to_start(config(devices)) == 1


@pytest.mark.parametrize("devices", [1, 3])
def test_devices_that_contradict_torchrun_are_rejected(devices: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        ConfigError, match=rf"train\.devices={devices}: torchrun has started 2 processes; set train\.devices=null"
    ):
        processes_to_start(config(devices))


def test_fewer_images_than_processes_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(
        ConfigError, match=r"train\.devices=3: .* per process, found train\.batch_size=2; use a larger batch, or fewer"
    ):
        processes_to_start(config(3, batch_size=2))


@pytest.mark.parametrize(("device", "present"), [("auto", 2), ("cuda", 2), ("cuda:1", 1)])
def test_fewer_gpus_than_processes_are_rejected(monkeypatch: pytest.MonkeyPatch, device: str, present: int) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(
        ConfigError,
        match=rf"expected at most {present} with device={device} on this machine; use train\.devices={present}, or",
    ):
        processes_to_start(config(3, device))


def fail(monkeypatch: pytest.MonkeyPatch, exit_codes: dict[int, int]) -> None:
    """Make processes end with these exit codes instead of training."""
    failures = {
        rank: ProcessFailure(local_rank=rank, pid=7, exitcode=code, error_file="none")
        for rank, code in exit_codes.items()
    }

    def end(*_: object) -> None:
        raise ChildFailedError("fcos", failures)

    monkeypatch.setattr(launch, "elastic_launch", lambda *_: end)


@pytest.mark.parametrize(
    ("exit_codes", "text", "told"),
    [
        ({0: 2, 1: -9}, "process 1 was terminated by SIGKILL, possibly because the system ran out of memory", False),
        ({0: -11, 1: 2}, "process 0 was terminated by SIGSEGV; the other processes", False),
        ({0: 1}, "process 0 ended with exit code 1", False),
        ({0: 2, 1: 2}, "process 0 ended with exit code 2", True),
        ({0: 2, 1: 1}, "process 1 ended with exit code 1", False),
        ({0: -15, 1: 1}, "process 1 ended with exit code 1", False),
        ({0: -15, 1: 2}, "process 1 ended with exit code 2", True),
        ({0: -15, 1: -9}, "process 1 was terminated by SIGKILL", False),
        ({0: -15, 1: -15}, "process 0 was terminated by SIGTERM", False),
    ],
)
def test_error_names_the_process_that_caused_the_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, exit_codes: dict[int, int], text: str, told: bool
) -> None:
    fail(monkeypatch, exit_codes)
    with pytest.raises(TrainingError) as caught:
        launch.launch(config(2).model_copy(update={"output_dir": tmp_path / "a"}), "a", 2)
    assert text in str(caught.value)
    assert str(caught.value).endswith(f"continue with: fcos train {tmp_path / 'a/config.yaml'} train.resume=true")
    assert caught.value.told == told


def test_launch_returns_the_folder_and_the_metrics_of_the_best_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = config(2).model_copy(update={"output_dir": tmp_path / "a"})

    def save(*_: object) -> None:
        (tmp_path / "a/weights").mkdir(parents=True)
        details = {"class_names": ["cat"], "category_ids": [1], "metrics": {"AP": 0.5}}
        save_checkpoint(tmp_path / "a" / BEST, model=torch.nn.Linear(1, 1), config=run, **details)

    monkeypatch.setattr(launch, "elastic_launch", lambda *_: save)
    assert launch.launch(run, "a", 2) == TrainResult(tmp_path / "a", {"AP": 0.5})


def test_only_the_started_processes_warn_of_options_without_effect(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(launch, "launch", lambda *_: TrainResult(Path("run"), {}))
    options = ["data=DIR", "data.masks=true", "device=cpu", "train.batch_size=2"]
    fcos.train("fcos_mnv2_small", *options, "train.devices=2")
    assert not caplog.messages


def test_launch_leaves_no_temporary_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fail(monkeypatch, {0: 2})
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    with pytest.raises(TrainingError):
        launch.launch(config(2).model_copy(update={"output_dir": tmp_path / "a"}), "a", 2)
    assert not list(temporary.iterdir())


@pytest.mark.parametrize("mine", [None, Path("mine")])
def test_failed_launch_keeps_existing_folders(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mine: Path | None
) -> None:
    fail(monkeypatch, {0: 2})
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    Path("runs").mkdir()
    with pytest.raises(TrainingError):
        launch.launch(config(2).model_copy(update={"output_dir": mine}), "a", 2)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["mine", "runs"]
