"""Loader workers: their number, little shared memory, and workers that are killed."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from full_disk import files_up_to
from tiny_data import config as data_config
from tiny_data import write_coco

from fcos import cli
from fcos.config import Config
from fcos.data import build_test_loader, build_train_loader, load_annotations
from fcos.data.loader import Loader
from fcos.data.workers import WorkerError, available_cores, available_memory, cgroup_quota, limit_workers
from fcos.errors import DataError, TrainingError
from fcos.interop.checkpoints import load_checkpoint
from fcos.structures import Batch
from fcos.training.loop import train


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, float("inf")),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "300000 100000\n"}, 3),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/cpu.max": "300000 100000\n",
                "sys/fs/cgroup/a/b/cpu.max": "50000 100000\n",
            },
            0.5,
        ),
        (
            {
                "proc/self/cgroup": "7:cpuset:/x\n4:cpu,cpuacct:/docker/0:1\n0::/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            2,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            float("inf"),
        ),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "strange\n"}, float("inf")),
        ({}, float("inf")),
    ],
)
def test_quota_of_the_cgroups(tmp_path: Path, files: dict[str, str], quota: float) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cgroup_quota(tmp_path) == quota


MEMINFO = {"proc/meminfo": "MemTotal:  64 kB\nMemAvailable:  50 kB\n"}
STATISTICS = "anon 7\ninactive_file 1000\nactive_file 500\n"


@pytest.mark.parametrize(
    ("files", "available"),
    [
        ({}, None),
        (MEMINFO, 50 * 1024),
        ({**MEMINFO, "proc/self/cgroup": "0::/\n"}, 50 * 1024),
        (
            {
                **MEMINFO,
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/memory.max": "20000\n",
                "sys/fs/cgroup/a/memory.current": "9000\n",
                "sys/fs/cgroup/a/memory.stat": STATISTICS,
                "sys/fs/cgroup/a/b/memory.max": "max\n",
                "sys/fs/cgroup/a/b/memory.current": "9000\n",
                "sys/fs/cgroup/a/b/memory.stat": STATISTICS,
            },
            12_500,
        ),
        (
            {
                **MEMINFO,
                "proc/self/cgroup": "4:cpu,memory:/docker/1\n0::/\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "3000\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "5000\n",
                "sys/fs/cgroup/memory/memory.stat": STATISTICS,
            },
            1,
        ),
    ],
)
def test_available_memory_is_limited_by_cgroups(files: dict[str, str], available: int | None, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert available_memory(tmp_path) == available


@contextmanager
def one_core() -> Iterator[None]:
    """Pin this process and the processes that it starts to one CPU core, as `taskset` does."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def test_no_more_workers_than_cores_are_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert limit_workers(10**6) == available_cores()
    assert limit_workers(0) == 0
    with one_core():
        assert available_cores() == 1
        assert limit_workers(2) == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1000")
    assert limit_workers(2) == 1


def loaders(root: Path, workers: int) -> list[Loader]:
    """Return loaders for training and for detection, the second with two views of each image."""
    tree = {"data": data_config(root, workers=workers), "train": {"batch_size": 2}, "eval": {"flip": True}}
    config = Config.model_validate(tree)
    annotations = load_annotations(config.data, "train")
    assert annotations is not None
    return [build_train_loader(config, annotations), build_test_loader(config, annotations, batch_size=2)]


def first_batches(loader: Loader) -> list[Batch]:
    return list(itertools.islice(loader, 6))


def tensors(batch: Batch) -> Iterator[torch.Tensor]:
    for view in (batch, *batch.more_views):
        yield from (view.images, view.sizes)
    yield batch.indices
    for objects in batch.targets or ():
        yield from (objects.boxes, objects.labels, objects.is_crowd)


def assert_equal(first: list[Batch], second: list[Batch]) -> None:
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(list(tensors(a)), list(tensors(b)), rtol=0, atol=0)


def test_one_core_gives_the_same_batches_without_a_warning_of_torch(tmp_path: Path) -> None:
    write_coco(tmp_path)
    with one_core():
        for alone, loader in zip(loaders(tmp_path, 0), loaders(tmp_path, 4), strict=True):
            assert_equal(first_batches(alone), first_batches(loader))


@pytest.mark.parametrize("size", [1000, 8000])
def test_batches_that_do_not_fit_into_shared_memory_arrive(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, size: int
) -> None:
    write_coco(tmp_path)
    for alone, loader in zip(loaders(tmp_path, 0), loaders(tmp_path, 2), strict=True):
        with files_up_to(size):
            received = first_batches(loader)
        assert_equal(first_batches(alone), received)
        (warning,) = caplog.messages
        caplog.clear()
        assert "(/dev/shm) is too small" in warning
        assert "docker run --shm-size=2g" in warning
        assert "data.workers=0" in warning


def test_without_any_shared_memory_the_main_process_loads_the_images(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_coco(tmp_path)
    (alone, _), (loader, _) = loaders(tmp_path, 0), loaders(tmp_path, 1)
    with files_up_to(0):
        received = first_batches(loader)
    assert_equal(first_batches(alone), received)
    assert "data.workers=1: cannot start the loader workers: [Errno 27]" in caplog.text
    assert "docker run --shm-size=2g" in caplog.text


temporary_files_stay_open = pytest.mark.filterwarnings(
    "ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning"
)
"""Mark of tests with a killed worker: if it dies while its batch is read, torch opens files without closing them."""
KILLED = r"loader worker \d+ was terminated by SIGKILL, possibly because the system ran out of memory; use fewer data\."


def with_killed_workers(config: Config, workers: int) -> Config:
    tree = config.to_dict()
    tree["data"].update(workers=workers, transforms="own_transforms:kill_worker")
    return Config.model_validate(tree)


@temporary_files_stay_open
def test_a_killed_worker_is_an_error_that_names_the_remedy(tmp_path: Path) -> None:
    write_coco(tmp_path)
    tree = {"data": data_config(tmp_path, workers=1, transforms="own_transforms:kill_worker")}
    config = Config.model_validate({**tree, "train": {"batch_size": 2}})
    annotations = load_annotations(config.data, "train")
    assert annotations is not None
    handler = signal.getsignal(signal.SIGCHLD)
    batches = iter(build_train_loader(config, annotations))
    for _ in range(2):  # the worker loads at most two batches ahead
        next(batches)
        assert signal.getsignal(signal.SIGCHLD) == handler  # a training step is not interrupted
    with pytest.raises(WorkerError, match=KILLED + r"workers \(now 1\), or data\.workers=0"):
        list(batches)
    assert signal.getsignal(signal.SIGCHLD) == handler
    assert issubclass(WorkerError, DataError)


@temporary_files_stay_open
@pytest.mark.usefixtures("without_report")
def test_a_run_whose_worker_is_killed_saves_and_resumes(configure: Callable[..., Config], tmp_path: Path) -> None:
    config = configure(iterations=12)
    whole = train(config.model_copy(update={"output_dir": tmp_path / "whole"})).run
    with pytest.raises(TrainingError, match=KILLED) as caught:
        train(with_killed_workers(config, 1))
    assert str(caught.value).endswith(f"continue with: fcos train {tmp_path / 'run/config.yaml'} train.resume=true")
    last = load_checkpoint(tmp_path / "run/weights/last.pt")
    assert 3 <= last.iteration < 12
    command = str(caught.value).partition("continue with: fcos ")[2].split()
    with pytest.raises(SystemExit, match="0"):
        cli.main([*command, "data.workers=0"])
    models = [load_checkpoint(run / "weights/last.pt").model for run in (whole, tmp_path / "run")]
    torch.testing.assert_close(*models, rtol=0, atol=0)
