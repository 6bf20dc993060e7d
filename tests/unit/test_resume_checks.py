"""Resuming from checkpoints with an invalid training state, beside an edited metrics.csv, and with other options."""

from __future__ import annotations

import csv
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_backbone
import torch
from tiny_data import write_coco

from fcos.config import Config
from fcos.config.overrides import apply_overrides
from fcos.errors import ConfigError, WeightsError
from fcos.interop.checkpoints import load_checkpoint
from fcos.recipes import load_config
from fcos.training.loop import train
from fcos.training.resume import load_last, read_training_state

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Return the config of a finished run of two steps with a checkpoint after each step; do not modify its folder."""
    root = tmp_path_factory.mktemp("template")
    for split in ("train", "val"):
        write_coco(root / "data", split=split)
    config = Config.model_validate(
        {
            "model": tiny_backbone.MODEL,
            "data": {"root": root / "data", "short_side": [32], "max_side": 64, "workers": 0},
            "train": {"batch_size": 2, "iterations": 2, "warmup": "none", "lr": 1e-4, "checkpoint_every": 1},
            "output_dir": root / "run",
            "device": "cpu",
        }
    )
    train(config)
    # The first checkpoint, of iteration 1, was replaced by those before and after the evaluation.
    content = torch.load(root / "run/weights/last-1.pt", weights_only=True)
    content["iteration"] = content["training"]["state"]["iteration"] = 1
    content["training"]["state"]["evaluated_at"] = -1
    torch.save(content, root / "run/weights/last-1.pt")
    return config


@pytest.fixture
def run(template: Config, tmp_path: Path) -> Path:
    assert template.output_dir is not None
    return Path(shutil.copytree(template.output_dir, tmp_path / "run"))


def resumed(template: Config, run: Path, **settings: Any) -> Config:
    settings = {"resume": True, "iterations": 3, **settings}
    return template.model_copy(
        update={"output_dir": run, "train": template.train.model_copy(update=settings)}, deep=True
    )


def edit(file: Path, change: Change) -> None:
    content = torch.load(file, weights_only=True)
    change(content["training"])
    torch.save(content, file)


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


TABLES = {
    "other columns": b"time;loss\n1;2\n",
    "UTF-16": "iteration,split\n1,train\n".encode("utf-16"),
    "binary": bytes(range(256)) * 10,
    "a field of 200 kB": b"iteration,split\n1," + b"x" * 200_000 + b"\n",
    "an iteration of 5000 digits": b"iteration,split\n" + b"9" * 5000 + b",train\n",
    "other digits": "iteration,split\n\u0663,train\n".encode(),
    "repeated columns": b"iteration,split,iteration,split\n1,train,1,train\n",
    "an open quote": b'iteration,split\n1,"train\n',
    "empty": b"",
}


@pytest.mark.parametrize("table", TABLES)
def test_an_edited_metrics_table_does_not_prevent_resuming(template: Config, run: Path, table: str) -> None:
    (run / "metrics.csv").write_bytes(TABLES[table])
    train(resumed(template, run, loggers=["csv"]))
    with (run / "metrics.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["iteration"] for row in rows if row["split"] == "val"] == ["3"]


@pytest.mark.skipif(sys.platform == "win32", reason="no /dev/zero on Windows")
@pytest.mark.parametrize("is_link", [False, True])
def test_a_folder_or_device_named_metrics_csv_does_not_prevent_resuming(
    template: Config, run: Path, is_link: bool
) -> None:
    (run / "metrics.csv").unlink()
    if is_link:
        (run / "metrics.csv").symlink_to("/dev/zero")
    else:
        (run / "metrics.csv").mkdir()
    train(resumed(template, run, loggers=["csv"]))
    assert (run / "metrics.csv").is_file()
    assert (run / "metrics.old.csv").is_symlink() == is_link


def test_steps_with_other_losses_get_a_row_of_their_own(template: Config, run: Path) -> None:
    step = ((1, 0.7, 0.1, 0.5), ({"loss_old": 1.0}, 1.0, 3, {"unassigned": 0}, False, ""), 1e-4, 0.1, 0.0)
    (run / "metrics.csv").unlink()
    edit(run / "weights/last-1.pt", lambda training: training.update(steps=[step]))
    (run / "weights/last.pt").unlink()
    train(resumed(template, run, loggers=["csv"]))
    with (run / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "train"]
    assert [(row["iteration"], row["loss_old"]) for row in rows] == [("1", "1"), ("3", "")]


REFUSED: dict[str, tuple[list[str], str]] = {
    "other meanings of the weights": (
        ["model.channel_order=bgr", "model.head.regression=relu_stride"],
        r"the meaning of the weights in .*last\.pt depends on options that have changed"
        r" \(model\.channel_order: rgb -> bgr, model\.head\.regression: exp -> relu_stride\)",
    ),
    "another optimizer": (["train.optimizer=adamw"], r"another optimiser .* \(train\.optimizer: sgd -> adamw\)"),
    "frozen parameters": (
        ["train.freeze=[fpn.*]"],
        r"other trainable parameters \(train\.freeze: \[\] -> \[fpn\.\*\]\)",
    ),
    "more layers": (["model.head.num_convs=2"], r"other trainable parameters \(model\.head\.num_convs: 1 -> 2\)"),
    "wider layers": (["model.fpn.channels=64"], r"other shapes of the weights \(model\.fpn\.channels: 32 -> 64\)"),
    "another backbone": (
        ["model.backbone.name=mobilenet_v2", "train.lr=0.5"],
        r"\(model\.backbone\.name: tiny_backbone:Tiny -> mobilenet_v2\)",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_options_that_do_not_fit_the_checkpoint_are_rejected_by_name(template: Config, run: Path, case: str) -> None:
    overrides, message = REFUSED[case]
    tree = resumed(template, run).to_dict()
    apply_overrides(tree, overrides)
    written = (run / "config.yaml").read_text()
    with pytest.raises(
        ConfigError, match=rf"train\.resume: .*{message}; restore the old values, or start a new run with"
    ):
        train(Config.model_validate(tree))
    assert (run / "config.yaml").read_text() == written


def test_changed_options_are_printed(
    template: Config, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(template.data.root or "", tmp_path / "data")
    settings = {"seed": 5, "batch_size": 3, "schedule": "cosine", "precision": "bfloat16", "ema": 0.9}
    config = resumed(template, run, **settings)
    config.data.root = tmp_path / "data"
    train(config)
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("options that differ from the run so far:")
    assert set(lines[start + 1 : start + 8]) == {
        f"  data.root: {template.data.root} -> {tmp_path / 'data'}",
        "  train.batch_size: 2 -> 3",
        "  train.iterations: 2 -> 3",
        "  train.schedule: multistep -> cosine",
        "  train.ema: null -> 0.9",
        "  train.precision: float32 -> bfloat16",
        "  train.seed: 0 -> 5",
    }


def test_a_finished_run_says_so_and_names_no_options(
    template: Config, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(resumed(template, run, iterations=2))
    output = capsys.readouterr().out
    assert "options that differ" not in output
    assert "nothing left to train: 2 iterations are finished, and the run has train.iterations=2" in output


@pytest.mark.parametrize("has_val", [True, False])
def test_a_finished_run_keeps_its_config(template: Config, run: Path, tmp_path: Path, has_val: bool) -> None:
    """Its next resume and the report use the data of the run, not that given when nothing was left to train."""
    shutil.copytree(template.data.root or "", tmp_path / "other")
    if not has_val:
        (tmp_path / "other/val.json").unlink()
    written = [(run / name).read_bytes() for name in ("config.yaml", "environment.json")]
    config = resumed(template, run, iterations=2, lr=0.5)
    config.data.root = tmp_path / "other"
    result = train(config)
    assert [(run / name).read_bytes() for name in ("config.yaml", "environment.json")] == written
    assert result.train_data is None
    assert result.val_data is None
    for name in ("last", "best"):
        stored = load_checkpoint(run / f"weights/{name}.pt").config
        assert (stored["data"]["root"], stored["train"]["lr"]) == (str(template.data.root), 1e-4)


def test_a_run_that_is_continued_after_its_end_saves_the_new_config(template: Config, run: Path) -> None:
    train(resumed(template, run, iterations=3, lr=0.5))
    assert load_config(run / "config.yaml").train.lr == 0.5
    assert load_checkpoint(run / "weights/last.pt").config["train"]["lr"] == 0.5


def test_a_finished_run_without_config_file_gets_one(template: Config, run: Path) -> None:
    (run / "config.yaml").unlink()
    train(resumed(template, run, iterations=2, lr=0.5))
    assert load_config(run / "config.yaml").train.lr == 0.5


def test_a_run_without_its_last_evaluation_saves_the_config_of_this_evaluation(template: Config, run: Path) -> None:
    edit(run / "weights/last.pt", lambda training: training["state"].update(evaluated_at=1))
    train(resumed(template, run, iterations=2, lr=0.5))
    assert load_config(run / "config.yaml").train.lr == 0.5


@pytest.mark.parametrize(("batch_size", "iterations"), [(2, 6), (1, 10), (3, 5)])
def test_a_run_of_epochs_has_the_same_number_of_images_with_another_batch_size(
    template: Config, run: Path, batch_size: int, iterations: int
) -> None:
    """The two steps of the run had 2 images each; 4 epochs are 12 images."""
    train(resumed(template, run, iterations=None, epochs=4, batch_size=batch_size))
    checkpoint = load_checkpoint(run / "weights/last.pt")
    assert checkpoint.iteration == iterations
    assert checkpoint.training is not None
    assert checkpoint.training["state"]["images"] == 4 + (iterations - 2) * batch_size
    with (run / "metrics.csv").open(newline="") as file:
        epochs = [float(row["epoch"]) for row in csv.DictReader(file) if row["split"] == "val"]
    assert epochs[-1] == pytest.approx((4 + (iterations - 2) * batch_size) / 3, abs=1e-3)  # rounded in the table


def test_a_checkpoint_without_image_count_has_those_of_its_batch_size(run: Path) -> None:
    edit(run / "weights/last.pt", lambda training: training["state"].pop("images"))
    checkpoint = load_checkpoint(run / "weights/last.pt")
    assert read_training_state(checkpoint, where="last.pt").state.images == 4
