"""Two and three processes train, stop, resume and evaluate like one process."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from hooks import at_call, before_forward
from processes import in_launched_processes, train_in_processes

import fcos
from fcos.config import Config
from fcos.data import build_train_loader, load_annotations
from fcos.distributed import all_gather, broadcast_buffers, rank
from fcos.interop.checkpoints import load_checkpoint
from fcos.models.fcos import FCOS
from fcos.recipes import load_config
from fcos.training import loop

SIDE = 96
STEPS, STOP_AT = 6, 3


def stop_training(_: FCOS) -> None:
    if rank() == 1:
        os.kill(os.getpid(), signal.SIGTERM)


def stop_evaluation(_done: int, _total: int) -> None:
    if rank() == 1:
        raise KeyboardInterrupt


def outcome(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    try:
        return function(*arguments, **options)
    except KeyboardInterrupt:
        return "stopped"


def stop_and_resume(folder: Path) -> None:
    """Train, evaluate and stop both; then resume the training. Process 1 is asked to stop, not process 0.

    `folder` gets the stopped weights, `stopped.pt`, the results of all processes, `results.json`, and the output of
    the resumed training in each process, `out0.txt` and `out1.txt`.
    """
    weights = folder / "two/weights/last.pt"
    with before_forward(FCOS, at_call(STOP_AT, stop_training)):
        found = {"training": outcome(fcos.train, folder / "config.yaml")}
    found["detections"] = fcos.evaluate(weights).detections
    found["evaluation"] = outcome(fcos.evaluate, weights, progress=stop_evaluation)
    norm = torch.nn.BatchNorm2d(2)
    norm.running_mean = torch.full((2,), 5.0 + rank())
    broadcast_buffers(norm)
    found["mean"] = norm.running_mean.tolist()
    every = all_gather(found)
    if rank() == 0:
        (folder / "results.json").write_text(json.dumps(every))
        shutil.copy(weights, folder / "stopped.pt")
    with (folder / f"out{rank()}.txt").open("w") as file, redirect_stdout(file):
        fcos.train(folder / "two/config.yaml", "train.resume=true")


@pytest.fixture(scope="module")
def folder(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two runs of a config, `one` in one process and `two` in two, with a stop in between."""
    folder = tmp_path_factory.mktemp("processes")
    config = Config.model_validate(
        {
            # Batch norm is frozen: otherwise its statistics would come from one process's share of the batch.
            "model": {
                "backbone": {"name": "mobilenet_v2", "weights": None, "norm": "frozen_bn"},
                "fpn": {"channels": 64},
                "head": {"num_convs": 1, "prior_probability": 0.2},
                "strides": [8, 16],  # further stages of the backbone get no gradient
                "size_ranges": [[-1, 32], [32, None]],
            },
            "data": {"root": data, "short_side": SIDE, "max_side": SIDE, "workers": 0},
            "train": {
                "iterations": STEPS,
                "batch_size": 3,
                "lr": 1e-3,
                "warmup": "none",
                "clip_norm": 10.0,
                "ema": 0.9,
                "log_every": 1,
            },
            "output_dir": folder / "two",
            "device": "cpu",
        }
    )
    (folder / "config.yaml").write_text(config.to_yaml())
    in_launched_processes(2, stop_and_resume, folder)
    loop.train(config.model_copy(update={"output_dir": folder / "one"}))
    return folder


@pytest.fixture
def results(folder: Path) -> list[dict]:
    return json.loads((folder / "results.json").read_text())


def rows(run: Path) -> Iterator[dict[str, float]]:
    with (run / "metrics.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            yield {
                name: float(row[name] or "nan") for name in row if name.startswith(("loss", "unassigned", "grad", "AP"))
            }


def test_losses_gradients_and_metrics_match_a_single_process_run(folder: Path) -> None:
    one, two = list(rows(folder / "one")), list(rows(folder / "two"))
    assert len(one) == len(two) == STEPS + 1
    for expected, found in zip(one, two, strict=True):
        assert found == pytest.approx(expected, rel=1e-4, nan_ok=True)  # float32 sums in another order


def test_final_weights_match_a_single_process_run(folder: Path) -> None:
    one, two = (load_checkpoint(folder / name / "weights/last.pt") for name in ("one", "two"))
    assert two.iteration == STEPS
    torch.testing.assert_close(two.model, one.model, rtol=1e-4, atol=1e-6)
    assert one.training is not None
    assert two.training is not None
    states = one.training["state"], two.training["state"]
    assert states[0]["boxes"] == states[1]["boxes"] == 2 * 3 * STEPS
    assert states[0]["stats"] == states[1]["stats"]


def test_signal_to_one_process_stops_all_in_the_same_iteration(folder: Path, results: list[dict]) -> None:
    assert [found["training"] for found in results] == ["stopped", "stopped"]
    assert load_checkpoint(folder / "stopped.pt").iteration == STOP_AT


def test_interrupting_one_process_stops_evaluation_on_all(results: list[dict]) -> None:
    assert [found["evaluation"] for found in results] == ["stopped", "stopped"]


def test_both_ranks_get_all_detections_and_buffers_of_rank_zero(folder: Path, results: list[dict]) -> None:
    expected = fcos.evaluate(folder / "stopped.pt", "device=cpu").detections
    assert len(expected) > 0
    for found in results:
        assert [(d["image_id"], d["category_id"]) for d in found["detections"]] == [
            (d["image_id"], d["category_id"]) for d in expected
        ]
        assert found["mean"] == [5.0, 5.0]


def test_only_rank_zero_prints_and_writes_files(folder: Path) -> None:
    out, other = ((folder / f"out{i}.txt").read_text() for i in range(2))
    assert out.count("val at iteration 6") == out.count("best.pt: AP") == 1
    assert other == ""
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["one", "two"]
    assert sorted(p.name for p in (folder / "two/weights").iterdir()) == ["best.pt", "last-1.pt", "last.pt"]


@pytest.fixture(scope="module")
def uneven(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of runs of the same config in 1, 2 and 3 processes, in subfolders of these names.

    Batches have five images, a third of all images has no object, and val has two images. So there are steps in which a
    process has no object, and evaluations in which one has no image. Every batch has objects: without any, the
    original's normaliser (at least one positive location per process) would depend on the number of processes.
    """
    folder = tmp_path_factory.mktemp("uneven")
    (folder / "images").symlink_to(data / "images")
    tree = json.loads((data / "train.json").read_text())
    few = {**tree, "annotations": [box for box in tree["annotations"] if box["image_id"] < 8]}
    (folder / "train.json").write_text(json.dumps(few))
    (folder / "val.json").write_text(
        json.dumps({**few, "images": tree["images"][:2], "annotations": few["annotations"][:4]})
    )
    config = Config.model_validate(
        {
            "model": {
                "backbone": {"name": "tiny_backbone:plain"},
                "fpn": {"channels": 32},
                "head": {"num_convs": 1, "prior_probability": 0.2},
                "strides": [8, 16],
                "size_ranges": [[-1, 32], [32, None]],
            },
            "data": {"root": folder, "short_side": 64, "max_side": 64, "workers": 0},
            "train": {
                "iterations": 20,
                "batch_size": 5,
                "warmup": "none",
                "clip_norm": 10.0,
                "ema": 0.9,
                "eval_every": 10,
                "log_every": 1,
            },
            "device": "cpu",
        }
    )
    loop.train(config.model_copy(update={"output_dir": folder / "1"}))
    for count in (2, 3):
        train_in_processes(count, config.model_copy(update={"output_dir": folder / str(count)}))
    return folder


def test_some_batches_have_no_objects_on_one_rank(uneven: Path) -> None:
    config = load_config(uneven / "1/config.yaml")
    data = load_annotations(config.data, "train")
    assert data is not None
    shares = [islice(build_train_loader(config, data, rank=i, world_size=3), 20) for i in range(3)]
    assert any(batch.targets is not None and not any(map(len, batch.targets)) for share in shares for batch in share)


@pytest.mark.parametrize("count", [2, 3])
def test_uneven_shards_train_like_a_single_process(uneven: Path, count: int) -> None:
    one, several = (list(rows(uneven / str(n))) for n in (1, count))
    assert len(one) == len(several) == 20 + 2
    for expected, found in zip(one, several, strict=True):
        assert found == pytest.approx(expected, rel=1e-4, nan_ok=True)  # float32 sums in another order
    expected, found = (load_checkpoint(uneven / f"{n}/weights/last.pt") for n in (1, count))
    torch.testing.assert_close(found.model, expected.model, rtol=1e-4, atol=1e-6)


def test_retinanet_trains_in_two_processes_like_in_one(data: Path, tmp_path: Path) -> None:
    model = {"name": "retinanet", "backbone": {"name": "tiny_backbone:plain"}, "fpn": {"channels": 32},
             "head": {"num_convs": 1}, "strides": [8, 16], "anchor_sizes": [16, 32]}  # fmt: skip
    settings = {"iterations": 3, "batch_size": 3, "warmup": "none", "log_every": 1}
    sizes = {"root": data, "short_side": SIDE, "max_side": SIDE, "workers": 0}
    config = Config.model_validate({"model": model, "data": sizes, "train": settings, "device": "cpu"})
    loop.train(config.model_copy(update={"output_dir": tmp_path / "1"}))
    train_in_processes(2, config.model_copy(update={"output_dir": tmp_path / "2"}))
    one, two = (list(rows(tmp_path / str(count))) for count in (1, 2))
    for expected, found in zip(one, two, strict=True):
        assert found == pytest.approx(expected, rel=1e-4, nan_ok=True)  # float32 sums in another order
    expected, found = (load_checkpoint(tmp_path / f"{count}/weights/last.pt").model for count in (1, 2))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
