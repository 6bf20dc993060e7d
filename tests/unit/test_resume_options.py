"""Resuming beside an edited metrics.csv, with other options, and after the end of a run."""

from __future__ import annotations

import csv
import shutil
import sys
from pathlib import Path

import pytest
from resuming import edit, resumed

from fcos.config import Config
from fcos.config.overrides import apply_overrides
from fcos.errors import ConfigError
from fcos.interop.checkpoints import load_checkpoint
from fcos.recipes import load_config
from fcos.training.loop import train

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
