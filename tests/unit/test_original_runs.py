"""Runs of the original FCOS that this project continues, or whose files a new run does not use."""

from __future__ import annotations

import runpy
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_data import write_coco

from fcos import cli
from fcos.checkpoint import Checkpoint, generations
from fcos.config import Config
from fcos.config.overrides import validate
from fcos.errors import ConfigError, WeightsError
from fcos.interop.checkpoints import load_checkpoint
from fcos.interop.fcos_core.config import config_from_yaml
from fcos.interop.fcos_core.weights import rename, to_fcos_core
from fcos.recipes import load_config
from fcos.training.loop import train

ROOT = Path(__file__).parents[2]
STEPS = 4
PAIRS = """
    MODEL.DEVICE cpu MODEL.BACKBONE.CONV_BODY MNV2-FPN-RETINANET MODEL.BACKBONE.FREEZE_CONV_BODY_AT 0
    MODEL.RESNETS.BACKBONE_OUT_CHANNELS 32 MODEL.FCOS.NUM_CONVS 1 INPUT.MIN_SIZE_TRAIN (32,) INPUT.MAX_SIZE_TRAIN 64
    SOLVER.IMS_PER_BATCH 2 SOLVER.CHECKPOINT_PERIOD 2 SOLVER.STEPS (3,) SOLVER.WARMUP_ITERS 3 SOLVER.BASE_LR 0.01
    DATALOADER.NUM_WORKERS 0
"""


RETINANET = "MODEL.RETINANET_ON True MODEL.FCOS_ON False MODEL.RETINANET.NUM_CONVS 1"


def build_config(data: Path, folder: Path, *, iterations: int = STEPS, pairs: str = PAIRS, **settings: Any) -> Config:
    """Build the config of a run from the original's keys."""
    tree = config_from_yaml({}, [*pairs.split(), "SOLVER.MAX_ITER", str(iterations)])
    tree["data"] |= {"root": data, "train": {}, "val": {}}
    tree["train"] |= settings
    return validate({**tree, "output_dir": folder}, where="test")


def original_content(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return a checkpoint of ours in the format of the original: one optimizer group per trainable parameter."""
    assert checkpoint.training is not None
    saved, names = checkpoint.training["optimizer"]["state"], checkpoint.training["learning"]
    weights = to_fcos_core(checkpoint)
    detector = checkpoint.config["model"]["name"]
    trainable = [ours for ours in (rename(name, detector) for name in weights) if ours in names]
    return {
        "model": {f"module.{name}": tensor for name, tensor in weights.items()},
        "optimizer": {
            "state": {i: saved[names.index(name)] for i, name in enumerate(trainable)},
            "param_groups": [{"lr": 0.01, "params": [i]} for i in range(len(trainable))],
        },
        "scheduler": {"last_epoch": checkpoint.iteration},
        "iteration": checkpoint.iteration,
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an uninterrupted run of four iterations, with its data in `data`."""
    folder = tmp_path_factory.mktemp("whole")
    train(build_config(write_coco(folder / "data"), folder, keep=9))
    return folder


@pytest.fixture
def data(whole: Path) -> Path:
    return whole / "data"


@pytest.fixture
def original(whole: Path, tmp_path: Path) -> Path:
    """Return the folder of the same run, stopped after two iterations, as the original would have written it."""
    folder = tmp_path / "original"
    folder.mkdir()
    checkpoints = map(load_checkpoint, generations(whole / "weights/last.pt"))
    stopped = next(checkpoint for checkpoint in checkpoints if checkpoint.iteration == 2)
    torch.save(original_content(stopped), folder / "model_0000002.pth")
    (folder / "last_checkpoint").write_text("training_dir/elsewhere/model_0000002.pth")  # the folder was moved
    return folder


def assert_equal_weights(first: Path, second: Path) -> None:
    found, expected = (load_checkpoint(folder / "weights/last.pt").model for folder in (first, second))
    assert [name for name, tensor in found.items() if not torch.equal(tensor, expected[name])] == []


def test_a_resumed_run_of_the_original_ends_with_the_weights_of_an_uninterrupted_one(
    whole: Path, data: Path, original: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(build_config(data, original, resume=True))
    assert_equal_weights(original, whole)
    output = capsys.readouterr().out
    assert (
        f"resuming a run of the original FCOS: {original}/model_0000002.pth: using its weights, momentum and iteration"
        " 2; learning rate and schedule follow the config, and its scheduler is not used" in output
    )
    assert "weights: iteration 2 of this run" in output


def test_a_retinanet_run_of_the_original_ends_with_the_weights_of_an_uninterrupted_one(
    data: Path, tmp_path: Path
) -> None:
    pairs = f"{PAIRS} {RETINANET}"
    train(build_config(data, tmp_path / "whole", pairs=pairs, keep=9))
    checkpoints = map(load_checkpoint, generations(tmp_path / "whole/weights/last.pt"))
    stopped = next(checkpoint for checkpoint in checkpoints if checkpoint.iteration == 2)
    file = tmp_path / "model_0000002.pth"
    torch.save(original_content(stopped), file)
    train(build_config(data, tmp_path / "new", pairs=pairs, resume=True, weights=str(file)))
    assert_equal_weights(tmp_path / "new", tmp_path / "whole")


def test_a_run_of_the_original_is_resumed_from_its_weights_file_in_a_new_folder(
    whole: Path, data: Path, original: Path, tmp_path: Path
) -> None:
    weights = str(original / "model_0000002.pth")
    train(build_config(data, tmp_path / "new", resume=True, weights=weights))
    assert_equal_weights(tmp_path / "new", whole)


def test_a_resumed_run_of_the_original_can_be_resumed_before_its_first_checkpoint(data: Path, original: Path) -> None:
    train(build_config(data, original, iterations=2, resume=True))  # nothing is left to do
    assert load_config(original / "config.yaml").train.iterations == 2
    (original / "model_0000002.pth").unlink()
    train(build_config(data, original, resume=True))
    assert load_checkpoint(original / "weights/last.pt").iteration == STEPS


def test_a_new_run_says_that_it_does_not_use_the_run_of_the_original_in_its_folder(
    data: Path, original: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(build_config(data, original, iterations=1))
    assert load_checkpoint(original / "weights/last.pt").iteration == 1
    assert (
        f"{original} contains a run of the original FCOS (last_checkpoint: training_dir/elsewhere/model_0000002.pth),"
        " which is not used; to continue it with its weights, momentum and iteration, set train.resume=true"
        in capsys.readouterr().out
    )


def test_a_new_run_says_that_it_does_not_use_the_solver_state_of_its_initial_weights(
    data: Path, original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(build_config(data, tmp_path / "new", iterations=1, weights=str(original / "model_0000002.pth")))
    assert (
        "not used: the optimizer state of this file and its iteration 2; to continue that run instead, also set"
        " train.resume=true" in capsys.readouterr().out
    )


def test_a_missing_last_checkpoint_is_an_error_with_its_name(data: Path, original: Path) -> None:
    (original / "model_0000002.pth").unlink()
    with pytest.raises(WeightsError) as caught:
        train(build_config(data, original, resume=True))
    assert str(caught.value).startswith(
        f"train.resume: {original}/last_checkpoint names 'training_dir/elsewhere/model_0000002.pth', which is not in"
    )
    assert not (original / "config.yaml").exists()


@pytest.mark.parametrize("missing", ["optimizer", "iteration"])
def test_a_checkpoint_without_solver_state_cannot_be_resumed(missing: str, data: Path, original: Path) -> None:
    path = original / "model_0000002.pth"
    content = torch.load(path)
    del content[missing]
    torch.save(content, path)
    with pytest.raises(ConfigError, match="is not a checkpoint of the original FCOS with `optimizer` and `iteration`"):
        train(build_config(data, original, resume=True))


def test_weights_of_this_project_are_not_resumed_in_a_new_folder(whole: Path, data: Path, tmp_path: Path) -> None:
    last = str(whole / "weights/last.pt")
    with pytest.raises(ConfigError, match=f"train.resume: {last} is not a checkpoint of the original FCOS"):
        train(build_config(data, tmp_path / "new", resume=True, weights=last))


def test_momentum_of_other_parameters_is_an_error(data: Path, original: Path) -> None:
    with pytest.raises(WeightsError, match="a model with 188 trainable parameters, but the config trains 185; resume"):
        train(build_config(data, original, resume=True, freeze=["backbone.features.0.*"]))


def damage(optimizer: dict[str, Any], kind: str) -> None:
    if kind == "shape":
        optimizer["state"][5] = {"momentum_buffer": torch.zeros(1)}
    elif kind == "text":
        optimizer["state"][5] = {"momentum_buffer": "x"}
    elif kind == "groups":
        optimizer["param_groups"] = ["x"]
    else:
        optimizer["state"][5] = 3


@pytest.mark.parametrize("kind", ["shape", "text", "groups", "number"])
def test_a_damaged_solver_state_is_an_error(kind: str, data: Path, original: Path) -> None:
    path = original / "model_0000002.pth"
    content = torch.load(path)
    damage(content["optimizer"], kind)
    torch.save(content, path)
    with pytest.raises(WeightsError, match=r"damaged optimizer state|has another shape"):
        train(build_config(data, original, resume=True))


def test_a_run_of_the_original_cannot_be_resumed_with_a_recipe_of_ours(data: Path, original: Path) -> None:
    config = build_config(data, original, resume=True)
    model = config.model.model_copy(update={"box_convention": "continuous"})
    with pytest.raises(ConfigError, match="give the YAML file of that run instead of a recipe"):
        train(config.model_copy(update={"model": model}))


def test_a_run_of_the_original_cannot_be_resumed_with_another_optimizer(data: Path, original: Path) -> None:
    with pytest.raises(ConfigError, match="the original FCOS trains with sgd"):
        train(build_config(data, original, resume=True, optimizer="adamw"))


def test_a_run_of_the_original_with_other_classes_cannot_be_resumed(original: Path, tmp_path: Path) -> None:
    tree = {"images": [{"id": 1, "file_name": "a.png"}], "categories": [{"id": 1, "name": "cat"}]}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 20, 20]}
    data = write_coco(tmp_path / "other", {**tree, "annotations": [box]})
    with pytest.raises(WeightsError, match="has 2 classes, but the data has 1"):
        train(build_config(data, original, resume=True))


@pytest.fixture
def train_net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Return a function that runs tools/train_net.py in `tmp_path` and returns the words passed to `fcos`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").write_text("MODEL: {BACKBONE: {CONV_BODY: R-50-FPN-RETINANET}}\n")
    calls: list[list[str]] = []
    monkeypatch.setattr(cli, "main", calls.append)

    def run(*words: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["train_net.py", "--config-file", "own.yaml", *words])
        runpy.run_path(str(ROOT / "tools/train_net.py"), run_name="__main__")
        return calls[-1]

    return run


@pytest.mark.parametrize("file", ["config.yaml", "weights/last.pt", "last_checkpoint"])
@pytest.mark.parametrize(("folder", "words"), [("run", ["OUTPUT_DIR", "run"]), ("runs/own-2", [])])
def test_the_training_command_of_the_original_resumes_a_run(
    file: str, folder: str, words: list[str], train_net: Callable[..., list[str]], tmp_path: Path
) -> None:
    assert train_net(*words) == ["train", "own.yaml", "--", *words]
    path = tmp_path / folder / file
    path.parent.mkdir(parents=True)
    path.touch()
    expected = [] if (folder, file) == ("runs/own-2", "last_checkpoint") else ["train.resume=true"]  # not a run of ours
    assert train_net(*words) == ["train", "own.yaml", "--", *words, *expected]


def test_the_training_command_of_the_original_continues_where_it_was_stopped(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(ROOT / "configs/fcos/fcos_bn_bs16_MNV2_FPN_1x.yaml", tmp_path / "mobile.yaml")
    words = ["--config-file", str(tmp_path / "mobile.yaml"), *PAIRS.split(), "MODEL.WEIGHT", "", f"data={data}"]
    for iterations in ("1", "2"):
        folder = ["OUTPUT_DIR", str(tmp_path / "run"), "SOLVER.MAX_ITER", iterations]
        monkeypatch.setattr(sys, "argv", ["train_net.py", *words, *folder])
        with pytest.raises(SystemExit, match="0"):
            runpy.run_path(str(ROOT / "tools/train_net.py"), run_name="__main__")
    assert "weights: iteration 1 of this run" in capsys.readouterr().out
    assert load_checkpoint(tmp_path / "run/weights/last.pt").iteration == 2


def test_the_iteration_of_a_checkpoint_of_the_original_is_kept(original: Path) -> None:
    checkpoint = load_checkpoint(original / "model_0000002.pth")
    assert checkpoint.iteration == 2
    assert checkpoint.training is not None
    assert replace(checkpoint, training=None).project == "fcos_core"


@pytest.fixture
def run_test_net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[list[str]]]:
    """Return a function that runs tools/test_net.py and returns the words of each `fcos` command."""
    path = tmp_path / "own.yaml"
    path.write_text(
        "MODEL: {BACKBONE: {CONV_BODY: R-50-FPN-RETINANET}}\nDATASETS: {TEST: [coco_2014_val, voc_2007_val]}\n"
    )

    def run(*words: str, code: int = 0) -> list[list[str]]:
        calls: list[list[str]] = []

        def command(arguments: list[str]) -> None:
            calls.append(arguments)
            raise SystemExit(code)

        monkeypatch.setattr(cli, "main", command)
        monkeypatch.setattr(sys, "argv", ["test_net.py", "--config-file", str(path), "MODEL.WEIGHT", "w.pth", *words])
        runpy.run_path(str(ROOT / "tools/test_net.py"), run_name="__main__")
        return calls

    return run


def test_the_test_command_of_the_original_evaluates_every_test_set(
    run_test_net: Callable[..., list[list[str]]], capsys: pytest.CaptureFixture[str]
) -> None:
    calls = run_test_net("OUTPUT_DIR", "run")
    assert [call[call.index("--out") + 1] for call in calls] == ["run/val/coco_2014_val", "run/val/voc_2007_val"]
    assert [call[-2:] for call in calls] == [
        ["DATASETS.TEST", "('coco_2014_val',)"],
        ["DATASETS.TEST", "('voc_2007_val',)"],
    ]
    assert capsys.readouterr().out == "coco_2014_val:\nvoc_2007_val:\n"


def test_the_test_command_of_the_original_stops_at_the_first_error(
    run_test_net: Callable[..., list[list[str]]], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run_test_net("OUTPUT_DIR", "run", code=2)
    assert capsys.readouterr().out == "coco_2014_val:\n"


def test_the_test_command_of_the_original_evaluates_given_data_once(
    run_test_net: Callable[..., list[list[str]]], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="0"):
        run_test_net("data=cells")
    assert capsys.readouterr().out == ""
