"""Resuming from checkpoints with an invalid training state, and from those that are no checkpoints."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from resuming import Change, edit, resumed

from fcos.config import Config
from fcos.errors import WeightsError
from fcos.interop.checkpoints import load_checkpoint
from fcos.training.loop import train
from fcos.training.resume import load_last, read_training_state


def first_momentum(training: dict[str, Any]) -> dict[str, Any]:
    return training["optimizer"]["state"][0]


DAMAGES: dict[str, tuple[Change, str]] = {
    "momentum of another shape": (
        lambda t: first_momentum(t).update(momentum_buffer=torch.zeros(1)),
        "optimizer.state.0.momentum_buffer: expected finite torch.float32 [8, 3, 8, 8] as backbone.c3.0.weight",
    ),
    "momentum of another type": (
        lambda t: first_momentum(t).update(momentum_buffer=first_momentum(t)["momentum_buffer"].double()),
        "optimizer.state.0.momentum_buffer: expected finite torch.float32",
    ),
    "momentum that is not finite": (
        lambda t: first_momentum(t)["momentum_buffer"].fill_(torch.nan),
        "optimizer.state.0.momentum_buffer: expected finite",
    ),
    "momentum without data": (
        lambda t: first_momentum(t).update(momentum_buffer=torch.zeros(1).expand(8, 3, 8, 8)),
        "optimizer.state.0.momentum_buffer: the shape [8, 3, 8, 8] is larger than the stored data",
    ),
    "sparse momentum": (
        lambda t: first_momentum(t).update(momentum_buffer=torch.eye(3).to_sparse()),
        "optimizer.state.0.momentum_buffer: not a dense tensor",
    ),
    "momentum that is text": (
        lambda t: first_momentum(t).update(momentum_buffer="large"),
        "optimizer.state.0.momentum_buffer: ",
    ),
    "state of another optimizer": (
        lambda t: t["optimizer"]["state"].update({0: {"exp_avg": torch.zeros(8, 3, 8, 8)}}),
        "optimizer.state.0: of no parameter, or of another optimiser than sgd",
    ),
    "state of no parameter": (
        lambda t: t["optimizer"]["state"].update({999: {}}),
        "optimizer.state.999: of no parameter",
    ),
    "name of no parameter": (lambda t: t["learning"].__setitem__(0, "nose"), "optimizer.state.0: of no parameter"),
    "no parameter groups": (lambda t: t["optimizer"].update(param_groups=[]), "optimizer.param_groups: "),
    "no optimizer": (lambda t: t.pop("optimizer"), "optimizer: "),
    "optimizer that is a list": (lambda t: t.update(optimizer=[1]), "optimizer: "),
    "no state": (lambda t: t.pop("state"), "state: "),
    "missing counter": (lambda t: t["state"].pop("iteration"), "state: missing or unknown entries: iteration"),
    "more images than possible": (
        lambda t: t["state"].update(images=10**9),
        "more images than the iterations can have",
    ),
    "foreign counter": (lambda t: t["state"].update(mood=3), "state: missing or unknown entries: mood"),
    "negative counter": (lambda t: t["state"].update(evaluations=-1), "state.evaluations: "),
    "counter that is text": (lambda t: t["state"].update(boxes="many"), "state.boxes: "),
    "counter of 400 digits": (lambda t: t["state"].update(boxes=10**400), "state.boxes: "),
    "another iteration": (lambda t: t["state"].update(iteration=7), "state.iteration: 7, but the file is of 2"),
    "evaluation in the future": (lambda t: t["state"].update(evaluated_at=9), "more evaluations or steps"),
    "seconds that are not finite": (lambda t: t["state"].update(seconds=float("nan")), "state.seconds: "),
    "metrics that are text": (lambda t: t["state"].update(best={"AP": "good"}), "state.best.AP: "),
    "truncated random state": (lambda t: t.update(rng=t["rng"][:100]), "rng: not the state of a random number"),
    "random state of floats": (lambda t: t.update(rng=torch.zeros(5056)), "rng: not the state of a random number"),
    "random state that is text": (lambda t: t.update(rng="random"), "rng: "),
    "no random state": (lambda t: t.pop("rng"), "rng: "),
    "truncated random state of a GPU": (
        lambda t: t.update(cuda_rng=torch.zeros(5, dtype=torch.uint8)),
        "cuda_rng: not the state of a CUDA random number generator",
    ),
    "foreign scaler": (lambda t: t.update(scaler={"size": 3}), "scaler: not the state of a gradient scaler: size"),
    "weights of another model": (
        lambda t: t.update(weights={"weight": torch.zeros(3)}),
        "weights: other tensors than in the model",
    ),
    "weights that are text": (lambda t: t.update(weights={"weight": "heavy"}), "weights: weight: not a tensor but str"),
    "unsaved best weights of another model": (
        lambda t: t.update(best=({"weight": torch.zeros(3)}, {}, {}, 1)),
        "best: other tensors than in the model",
    ),
    "truncated steps": (lambda t: t.update(steps=[((1, 0.5),)]), "steps.0."),
    "steps that are numbers": (lambda t: t.update(steps=[5]), "steps.0: "),
    "an empty state": (lambda t: t.clear(), "state: "),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_training_state_is_replaced_by_the_previous_checkpoint(run: Path, damage: str) -> None:
    change, reason = DAMAGES[damage]
    last = run / "weights/last.pt"
    edit(last, change)
    checkpoint, note, _ = load_last(run)
    assert checkpoint is not None
    assert checkpoint.iteration == 1
    warning, consequence = note.splitlines()
    assert warning.startswith(f"warning: {last}: damaged checkpoint: invalid training state: ")
    assert reason in warning
    assert len(warning) < 1500
    assert f"resuming from the previous checkpoint, {run / 'weights/last-1.pt'}" in consequence


def test_a_run_is_finished_from_the_previous_checkpoint(template: Config, run: Path) -> None:
    edit(run / "weights/last.pt", lambda training: first_momentum(training).update(momentum_buffer=torch.zeros(1)))
    train(resumed(template, run))
    assert load_checkpoint(run / "weights/last.pt").iteration == 3


def test_a_run_whose_only_checkpoint_is_damaged_is_an_error(run: Path) -> None:
    edit(run / "weights/last.pt", lambda training: training.pop("rng"))
    (run / "weights/last-1.pt").unlink()
    with pytest.raises(WeightsError, match=r"can be resumed from:\n.*last\.pt: damaged checkpoint: .*rng: is missing"):
        load_last(run)


def test_momentum_in_another_memory_layout_gives_the_same_weights(template: Config, run: Path, tmp_path: Path) -> None:
    """The fused kernels on the CPU take the layout of parameter and momentum to be the same."""
    other = Path(shutil.copytree(run, tmp_path / "other"))

    def make_contiguous(training: dict[str, Any]) -> None:
        states = training["optimizer"]["state"].values()
        assert any(not state["momentum_buffer"].is_contiguous() for state in states)
        for state in states:
            state["momentum_buffer"] = state["momentum_buffer"].contiguous()

    edit(other / "weights/last.pt", make_contiguous)
    for folder in (run, other):
        train(resumed(template, folder, lr=0.1))
    models = [load_checkpoint(folder / "weights/last.pt").model for folder in (run, other)]
    torch.testing.assert_close(*models, rtol=0, atol=0)


@pytest.mark.parametrize("momentum", ["no entry", None])
def test_missing_momentum_of_a_parameter_counts_as_zero(
    template: Config, run: Path, tmp_path: Path, momentum: str | None
) -> None:
    other = Path(shutil.copytree(run, tmp_path / "other"))

    def clear(training: dict[str, Any]) -> None:
        training["optimizer"]["state"][0]["momentum_buffer"].zero_()

    def remove(training: dict[str, Any]) -> None:
        if momentum is None:
            training["optimizer"]["state"][0]["momentum_buffer"] = None
        else:
            del training["optimizer"]["state"][0]

    edit(run / "weights/last.pt", clear)
    edit(other / "weights/last.pt", remove)
    for folder in (run, other):
        train(resumed(template, folder, lr=0.1))
    models = [load_checkpoint(folder / "weights/last.pt").model for folder in (run, other)]
    torch.testing.assert_close(*models, rtol=0, atol=0)


WEIGHTS_ONLY = "contains weights only, without the training state that resuming needs"


def test_weights_without_training_state_are_replaced_by_the_previous_checkpoint(template: Config, run: Path) -> None:
    weights = run / "weights"
    shutil.copy(weights / "best.pt", weights / "last.pt")
    expected = (weights / "best.pt").read_bytes()
    point = load_last(run)
    assert point.checkpoint is not None
    assert point.checkpoint.iteration == 1
    assert point.note == (
        f"warning: {weights / 'last.pt'}: {WEIGHTS_ONLY}\n  resuming from the previous checkpoint,"
        f" {weights / 'last-1.pt'}; renamed {weights / 'last.pt'} to {weights / 'damaged.pt'}"
    )
    assert (weights / "damaged.pt").read_bytes() == expected


@pytest.mark.parametrize("best", [True, False])
def test_a_run_with_weights_only_names_the_weights_to_start_from(run: Path, best: bool) -> None:
    weights = run / "weights"
    for name in ("last.pt", "last-1.pt"):
        shutil.copy(weights / "best.pt", weights / name)
    if not best:
        (weights / "best.pt").unlink()
    with pytest.raises(WeightsError) as caught:
        load_last(run)
    assert str(caught.value).splitlines() == [
        f"train.resume: no checkpoint in {run} can be resumed from:",
        f"  {weights / 'last.pt'}: {WEIGHTS_ONLY}",
        f"  {weights / 'last-1.pt'}: {WEIGHTS_ONLY}",
        f"start a new run in another folder with train.weights={weights / ('best.pt' if best else 'last.pt')}",
    ]


def test_a_folder_in_place_of_the_last_checkpoint_is_renamed(template: Config, run: Path) -> None:
    weights = run / "weights"
    (weights / "last.pt").unlink()
    (weights / "last.pt").mkdir()
    assert f"warning: {weights / 'last.pt'}: this is a folder; expected a checkpoint" in load_last(run).note
    assert (weights / "damaged.pt").is_dir()
    assert load_checkpoint(weights / "last.pt").iteration == 1


def test_a_folder_in_place_of_the_only_checkpoint_is_an_error(run: Path) -> None:
    shutil.rmtree(run / "weights")
    (run / "weights/last.pt").mkdir(parents=True)
    with pytest.raises(
        WeightsError, match=r"last\.pt: this is a folder; expected a checkpoint\nstart a new run in another"
    ):
        load_last(run)


def test_every_damaged_checkpoint_is_kept(run: Path) -> None:
    weights = run / "weights"
    (weights / "last-1.pt").rename(weights / "last-2.pt")
    (weights / "last.pt").write_bytes(b"first")
    (weights / "last-1.pt").write_bytes(b"second")
    assert "last-2.pt" in load_last(run).note
    assert (weights / "damaged.pt").read_bytes() == b"first"
    assert (weights / "damaged-1.pt").read_bytes() == b"second"


def test_a_damaged_checkpoint_keeps_what_exists_under_its_new_name(run: Path) -> None:
    (run / "weights/damaged.pt").mkdir()
    (run / "weights/damaged.2.pt").write_bytes(b"of an earlier resume")
    (run / "weights/last.pt").write_bytes(b"damaged")
    assert "damaged.3.pt" in load_last(run).note
    assert (run / "weights/damaged.3.pt").read_bytes() == b"damaged"
    assert (run / "weights/damaged.2.pt").read_bytes() == b"of an earlier resume"


def test_a_checkpoint_without_image_count_has_those_of_its_batch_size(run: Path) -> None:
    edit(run / "weights/last.pt", lambda training: training["state"].pop("images"))
    checkpoint = load_checkpoint(run / "weights/last.pt")
    assert read_training_state(checkpoint, where="last.pt").state.images == 4
