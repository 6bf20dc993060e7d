"""Damaged weights and run folders: a detector or a run that works, or one clean message."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectors import CATEGORY_IDS, NAMES, tiny_config, tiny_model
from fuzzing import ODD_VALUES, Damaged, damaged_bytes, damaged_tree, examples, fuzz, result_or_message
from hypothesis import strategies as st
from tiny_backbone import MODEL
from tiny_data import write_coco

import fcos
from fcos.checkpoint import save_checkpoint
from fcos.config import Config

ODD_TENSORS = (
    *(torch.zeros(0), torch.zeros(()), torch.zeros(3, dtype=torch.int64), torch.full((8,), float("nan"))),
    *(
        torch.zeros(2, 2, dtype=torch.complex64),
        torch.zeros(3).to_sparse(),
        torch.zeros(1).expand(1_000_000, 1_000_000),
    ),
    *(torch.zeros(5, dtype=torch.bool), torch.zeros(2, dtype=torch.float64), torch.zeros(1, 1, 1, 1, 1)),
)
VALUES = (*(value for value in ODD_VALUES if not isinstance(value, int) or abs(value) < 2**62), *ODD_TENSORS)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = tiny_config()
    path = tmp_path_factory.mktemp("weights") / "best.pt"
    options = {"class_names": NAMES, "category_ids": CATEGORY_IDS, "thresholds": dict.fromkeys(NAMES, 0.4)}
    save_checkpoint(path, model=tiny_model(config), config=config, **options)
    return path


def save_or_skip(content: Any, path: Path) -> bool:
    """Save the content with torch.save; return False if torch cannot save it, so that no user can have such a file."""
    try:
        torch.save(content, path)
    except (RuntimeError, TypeError, OverflowError, NotImplementedError):  # raised for sparse, meta and huge content
        return False
    return True


def use_weights(path: Path) -> None:
    detector = result_or_message(lambda: fcos.load(path))
    if detector is not None:
        result_or_message(lambda: detector.predict(torch.zeros(3, 40, 60, dtype=torch.uint8)))


@examples(20)
def test_damaged_weights_are_used_or_rejected(count: int, weights: Path, tmp_path: Path) -> None:
    content = torch.load(weights, weights_only=True)
    content["model"] = dict(list(content["model"].items())[:4]) | content["model"]
    path = tmp_path / "damaged.pt"

    def check(damaged: Damaged) -> None:
        if save_or_skip(damaged.tree, path):
            use_weights(path)

    fuzz(check, st.one_of(damaged_tree(content, VALUES), damaged_tree({"state_dict": content["model"]}, VALUES)), count)


@examples(20)
def test_damaged_weights_files_are_used_or_rejected(count: int, weights: Path, tmp_path: Path) -> None:
    path = tmp_path / "damaged.pt"

    def check(content: bytes) -> None:
        path.write_bytes(content)
        use_weights(path)

    fuzz(check, damaged_bytes([weights.read_bytes()]), count)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of two steps that can be resumed to a third."""
    root = tmp_path_factory.mktemp("run")
    write_coco(root / "data", split="val")
    write_coco(root / "data")
    config = {
        "model": MODEL,
        "data": {"root": root / "data", "short_side": [32], "max_side": 64, "workers": 0},
        "train": {"batch_size": 2, "iterations": 2, "warmup": "none", "log_every": 1, "checkpoint_every": 1},
        "output_dir": root / "run",
        "device": "cpu",
    }
    fcos.train(Config.model_validate(config))
    return root / "run"


def resume(run_folder: Path, folder: Path, damage: Callable[[Path], bool]) -> None:
    """Damage a copy of a run and resume it."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(run_folder, folder)
    if damage(folder):
        options = ("train.resume=true", "train.iterations=3", f"output_dir={folder}")
        result_or_message(lambda: fcos.train(folder / "config.yaml", *options))


@examples(4, slow=60)  # each resumes a run
def test_damaged_training_state_is_resumed_or_rejected(count: int, run_folder: Path, tmp_path: Path) -> None:
    content = torch.load(run_folder / "weights/last.pt", weights_only=True)

    def check(damaged: Damaged) -> None:
        changed = {**copy.deepcopy(content), "training": damaged.tree}
        resume(run_folder, tmp_path / "copy", lambda folder: save_or_skip(changed, folder / "weights/last.pt"))

    fuzz(check, damaged_tree(content["training"], VALUES), count)


@examples(4, slow=40)
def test_damaged_run_folders_are_resumed_or_rejected(count: int, run_folder: Path, tmp_path: Path) -> None:
    names = ("weights/last.pt", "metrics.csv", "config.yaml", "environment.json")
    damages = st.sampled_from(names).flatmap(
        lambda name: st.tuples(st.just(name), damaged_bytes([(run_folder / name).read_bytes(), b"", b"\xff\xfe"]))
    )

    def check(drawn: tuple[str, bytes]) -> None:
        name, content = drawn
        resume(run_folder, tmp_path / "copy", lambda folder: bool((folder / name).write_bytes(content) + 1))

    fuzz(check, damages, count)
