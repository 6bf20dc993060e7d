from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import pytest
from full_disk import files_up_to
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fcos.config import Config
from fcos.errors import WriteError
from fcos.training import logs
from fcos.training.logs import RunLog, Step, StepResult, TrainingProgress


def config(log_every: int) -> Config:
    return Config.model_validate({"train": {"log_every": log_every, "batch_size": 4}})


def progress(iteration: int) -> TrainingProgress:
    return TrainingProgress(iteration, epoch=iteration / 8, minutes=iteration / 60, fraction=iteration / 100)


def step(loss: float = 1.0, *, seconds: float = 2.0, waited: float = 0.5, **learned: Any) -> Step:
    given = {"boxes": 10, "stats": {"unassigned": 1}, "grad_norm": 3.0, "skipped": "", **learned}
    losses = {"loss_cls": loss, "loss_box": 0.5, "loss_centerness": 0.25}
    return Step(StepResult(losses, stop=False, **given), lr=0.01, seconds=seconds, waited=waited)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_csv_row_contains_means_over_its_steps(tmp_path: Path) -> None:
    with RunLog(tmp_path, config(2)) as log:
        log.step(progress(1), step(1.0))
        log.step(progress(2), step(3.0, waited=1.5, seconds=6.0, stats={"unassigned": 3}, grad_norm=7.0))
    (row,) = rows(tmp_path)
    expected = {
        "iteration": 2,
        "epoch": 0.25,
        "loss": 2.75,
        "loss_cls": 2,
        "loss_box": 0.5,
        "loss_centerness": 0.25,
        "lr": 0.01,
        "images_per_second": 1,
        "data_share": 0.25,
        "unassigned_share": 0.2,
        "grad_norm": 7,
    }
    assert {name: float(row[name]) for name in expected} == pytest.approx(expected)
    assert row["split"] == "train"
    first = ["iteration", "epoch", "minutes", "split", "loss", "loss_cls", "loss_box", "loss_centerness", "lr"]
    assert list(row)[:9] == first


def test_remaining_steps_are_written_as_a_final_row(tmp_path: Path) -> None:
    with RunLog(tmp_path, config(2)) as log:
        for i in range(1, 4):
            log.step(progress(i), step(loss=i))
        log.sum_up()
        log.evaluation(progress(3), {"AP": 0.5})
    assert [(row["iteration"], row["split"], row["loss_cls"]) for row in rows(tmp_path)] == [
        ("2", "train", "1.5"),
        ("3", "train", "3"),
        ("3", "val", ""),
    ]


def test_closing_writes_a_row_for_pending_steps(tmp_path: Path) -> None:
    with RunLog(tmp_path, config(20)) as log:
        log.step(progress(1), step())
    assert [row["iteration"] for row in rows(tmp_path)] == ["1"]


def test_evaluation_is_logged_as_a_val_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunLog(tmp_path, config(1)) as log:
        log.step(progress(1), step())
        log.evaluation(progress(1), {"AP": 0.5, "AP50": 0.75})
    row = rows(tmp_path)[1]
    assert (row["split"], row["iteration"], row["AP"], row["AP50"], row["loss"]) == ("val", "1", "0.5", "0.75", "")
    assert "val at iteration 1: AP 0.500  AP50 0.750" in capsys.readouterr().out


def test_resumed_run_replaces_repeated_rows(tmp_path: Path) -> None:
    with RunLog(tmp_path, config(1)) as log:
        for i in range(1, 5):
            log.step(progress(i), step(loss=i))
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("train,")  # as after a full disk
    with RunLog(tmp_path, config(1), iteration=2) as log:
        log.step(progress(3), step(loss=30))
    assert [(row["iteration"], row["loss_cls"]) for row in rows(tmp_path)] == [("1", "1"), ("2", "2"), ("3", "30")]


def test_tensorboard_logs_losses_and_metrics(tmp_path: Path) -> None:
    with RunLog(tmp_path, config(1)) as log:
        log.step(progress(1), step(2.0))
        log.evaluation(progress(1), {"AP": 0.5})
    events = EventAccumulator(str(tmp_path)).Reload()
    assert events.Scalars("train/loss_cls")[0].value == 2.0
    assert events.Scalars("val/AP")[0].value == 0.5


def test_rows_not_saved_on_a_full_disk_are_written_later(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunLog(tmp_path, config(1)) as log:
        log.step(progress(1), step())
        (board,) = tmp_path.glob("events.*")
        for path in (tmp_path / "metrics.csv", board):  # cuts each file in the middle of a row
            with files_up_to(path.stat().st_size + 30):
                log.step(progress(2), step())
            log.step(progress(3), step())
    assert [row["iteration"] for row in rows(tmp_path)] == ["1", "2", "3", "2", "3"]
    assert all(None not in row.values() for row in rows(tmp_path))
    events = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0}, purge_orphaned_data=False).Reload()
    assert {event.step for event in events.Scalars("train/loss")} == {1, 2, 3}
    told = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    problem = "not saved: File too large; free up disk space"
    assert told == [f"warning: {tmp_path}: {name}: {problem}" for name in ("csv", "tensorboard")]


def test_full_disk_does_not_stop_the_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    room = 1500  # for the first rows and the printed output
    with RunLog(tmp_path, config(1)) as log, files_up_to(room):
        for i in range(1, 300):
            log.step(progress(i), step())
        log.__exit__(None, None, None)
    assert (tmp_path / "metrics.csv").stat().st_size == room
    out, err = capfd.readouterr()
    assert out.count("warning") == 2  # one for each logger
    assert err == ""


def test_rows_with_an_unknown_split_are_dropped_on_resume(tmp_path: Path) -> None:
    with RunLog(tmp_path, config(1)) as log:
        for i in range(1, 4):
            log.step(progress(i), step())
    table = tmp_path / "metrics.csv"
    table.write_text(table.read_text().replace("0.0333333,train", "0.0333333,tra"))
    with RunLog(tmp_path, config(1), iteration=3):
        pass
    assert [row["iteration"] for row in rows(tmp_path)] == ["1", "3"]


def test_full_disk_at_startup_raises_with_the_folder_name(tmp_path: Path) -> None:
    message = re.escape(f"{tmp_path}: cannot be written: File too large; free up disk space")
    with files_up_to(10), pytest.raises(WriteError, match=message):
        RunLog(tmp_path, config(1))


def test_tensorboard_drops_steps_repeated_after_resume(tmp_path: Path) -> None:
    for iteration, loss in ((0, 1.0), (2, 2.0)):
        with RunLog(tmp_path, config(1), iteration=iteration) as log:
            for i in range(iteration + 1, 5):
                log.step(progress(i), step(loss))
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss_cls")] == [(1, 1), (2, 1), (3, 2), (4, 2)]


def test_progress_lines_without_a_terminal_are_rate_limited(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most one line in five seconds is printed, each with all important values."""
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    with RunLog(tmp_path, config(1)) as log:
        for i in range(1, 11):
            now += 2.0
            log.step(progress(i), step())
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[0] == (
        "  3%  iteration 3  loss 1.750 (cls 1.000  box 0.500  centerness 0.250)  lr 1.00e-02  2.0 images/s  data 25%"
        "  ETA 3:14"
    )


def test_only_rank_0_writes_logs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "rank", lambda: 1)
    with RunLog(tmp_path, config(1)) as log:
        log.message("hello")
        log.step(progress(1), step())
        log.evaluation(progress(1), {"AP": 0.5})
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().out == ""


def test_slow_steps_and_evaluations_print_a_line_every_thirty_seconds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    with RunLog(tmp_path, config(100)) as log:
        for i in range(1, 7):
            now += 20.0
            log.step(progress(i), step(loss=i))
        lines = capsys.readouterr().out.splitlines()
        for i in range(1, 7):
            now += 20.0
            log.evaluating(i, 6)
        evaluation_lines = capsys.readouterr().out.splitlines()
    assert [line.split("  loss")[0].strip() for line in lines] == [f"{i}%  iteration {i}" for i in (2, 4, 6)]
    assert "loss 4.250 (cls 3.500" in lines[2]  # means since the last row
    assert evaluation_lines == ["evaluating 2/6", "evaluating 4/6", "evaluating 6/6"]
    assert [row["iteration"] for row in rows(tmp_path)] == ["6"]  # lines are no rows
