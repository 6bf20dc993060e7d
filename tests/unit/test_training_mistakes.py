"""Mistakes that prevent a training, and the choice of the run to resume."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_data import coco_tree, write_coco

from fcos.config import Config
from fcos.errors import ConfigError, DataError, FCOSError
from fcos.training.loop import train


def resume(config: Config, **settings: Any) -> Config:
    return config.model_copy(update={"train": config.train.model_copy(update={"resume": True, **settings})})


def error_of(config: Config) -> str:
    with pytest.raises((ConfigError, DataError)) as caught:
        train(config)
    return str(caught.value)


def test_num_classes_that_contradicts_the_data_is_rejected(configure: Callable[..., Config]) -> None:
    assert "model.num_classes: 80, but the data has 2 classes" in error_of(configure(model={"num_classes": 80}))


def test_missing_train_split_is_rejected(configure: Callable[..., Config], data: Path, tmp_path: Path) -> None:
    (data / "train.json").unlink()
    assert "train" in error_of(configure())
    assert not (tmp_path / "run").exists()


def test_existing_run_is_rejected_without_resume(configure: Callable[..., Config]) -> None:
    config = configure(iterations=1)
    train(config)
    assert "already contains a run; resume it with train.resume=true" in error_of(config)


@pytest.mark.parametrize("below", ["", "cells"])
def test_output_dir_at_or_below_a_file_is_rejected(
    configure: Callable[..., Config], tmp_path: Path, below: str
) -> None:
    (tmp_path / "file").touch()
    config = configure().model_copy(update={"output_dir": tmp_path / "file" / below})
    assert f"output_dir: {tmp_path / 'file'} is a file; expected a folder" in error_of(config)


def test_resume_without_a_run_is_rejected(configure: Callable[..., Config]) -> None:
    assert "train.resume: no weights/last.pt in" in error_of(resume(configure()))


def test_resume_with_another_optimizer_is_rejected(configure: Callable[..., Config]) -> None:
    run = train(configure(iterations=1)).run
    written = (run / "config.yaml").read_text()
    assert "another optimiser or other trainable parameters (train.optimizer: sgd -> adamw)" in error_of(
        resume(configure(iterations=2, optimizer="adamw"))
    )
    assert (run / "config.yaml").read_text() == written


def test_resume_with_other_trainable_parameters_is_rejected(configure: Callable[..., Config]) -> None:
    """The other parameters have the same number and shapes as before."""
    train(configure(iterations=1, freeze=["head.cls_tower.*"]))
    assert "other trainable parameters (train.freeze: " in error_of(
        resume(configure(iterations=2, freeze=["head.box_tower.*"]))
    )


def test_resume_with_other_classes_is_rejected(configure: Callable[..., Config], data: Path) -> None:
    train(configure(iterations=1))
    tree = coco_tree()
    tree["categories"][0]["name"] = "owl"
    for split in ("train", "val"):
        write_coco(data, tree, split=split)
    assert "has the classes cat, dog, but the data has owl, dog" in error_of(resume(configure()))


def test_run_folders_are_numbered_and_resume_picks_the_newest(
    configure: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = configure(iterations=1).model_copy(update={"output_dir": None})
    folders = [train(config, name="cells").run for _ in range(2)]
    assert folders == [Path("runs/cells"), Path("runs/cells-2")]
    train(config, name="cells2")  # the newest run, but with another name
    os.utime("runs/cells/weights/last.pt", (0, 0))
    assert train(resume(config), name="cells").run == Path("runs/cells-2")


def test_failed_start_leaves_no_run_folder(configure: Callable[..., Config], tmp_path: Path, data: Path) -> None:
    config = configure(weights="none.pt")
    with pytest.raises(FCOSError):
        train(config)
    assert not (tmp_path / "run").exists()
