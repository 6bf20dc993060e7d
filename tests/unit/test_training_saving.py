"""Runs that cannot save, and the checkpoints from which runs resume."""

from __future__ import annotations

import csv
import dataclasses
import errno
import itertools
import math
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectors import MOBILENET, build_fcos
from hooks import at_call, before_forward
from tiny_data import coco_tree, write_coco

from fcos import cli
from fcos.config import Config
from fcos.data import load_annotations
from fcos.errors import ConfigError, TrainingError, WeightsError, WriteError
from fcos.evaluation.evaluate import Evaluation
from fcos.evaluation.results import load_evaluation
from fcos.interop.checkpoints import load_checkpoint
from fcos.models import build_model
from fcos.models.fcos import FCOS
from fcos.training import saving, validation
from fcos.training.folder import BEST
from fcos.training.loop import train
from fcos.training.resume import load_last
from fcos.training.run import Run


def resume(config: Config) -> Config:
    return config.model_copy(update={"train": config.train.model_copy(update={"resume": True})})


def fill_disk(monkeypatch: pytest.MonkeyPatch, *, files: str, when: Callable[[int], bool]) -> None:
    """Make saving of these files fail with ENOSPC if `when(iteration)` is True."""
    original = saving.save_checkpoint

    def save(path: Path, *, iteration: int, **options: Any) -> None:
        if path.stem in files and when(iteration):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(path, iteration=iteration, **options)

    monkeypatch.setattr(saving, "save_checkpoint", save)


def test_temporarily_full_disk_does_not_stop_the_run(
    configure: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    fill_disk(monkeypatch, files="last", when=lambda iteration: iteration == 2)
    train(configure(iterations=3, checkpoint_every=1))
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith(f"warning: {tmp_path / 'run/weights/last.pt'}: not saved: No space left")
    assert load_checkpoint(tmp_path / "run/weights/last.pt").iteration == 3
    assert load_checkpoint(tmp_path / "run/weights/best.pt").iteration == 3


def test_folder_that_cannot_be_written_is_reported_once(
    configure: Callable[..., Config], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = tmp_path / "run/weights"

    def block(_: object) -> None:
        shutil.rmtree(weights)
        weights.write_text("")

    with before_forward(FCOS, at_call(2, block)), pytest.raises(TrainingError) as caught:
        train(configure(iterations=4, checkpoint_every=1))
    reports = [text for record in caplog.records if "last.pt" in (text := record.getMessage())]
    assert len(reports) == 1
    assert reports[0].startswith(f"warning: {weights}/last.pt: not saved: Not a directory; files saved earlier")
    assert f"{weights}/last.pt: not saved: Not a directory; " in str(caught.value)


def give_aps(monkeypatch: pytest.MonkeyPatch, *aps: float) -> None:
    """Make evaluations return these APs, independent of the detections."""
    left, original = iter(aps), validation.evaluate

    def evaluate(*args: Any, **options: Any) -> Evaluation:
        found = original(*args, **options)
        return dataclasses.replace(found, metrics={**found.metrics, "AP": next(left)})

    monkeypatch.setattr(validation, "evaluate", evaluate)


def give_metrics(monkeypatch: pytest.MonkeyPatch, *metrics: dict[str, float]) -> None:
    """Make evaluations return these metrics, independent of the detections."""
    left, original = iter(metrics), validation.evaluate

    def evaluate(*args: Any, **options: Any) -> Evaluation:
        found = original(*args, **options)
        return dataclasses.replace(found, metrics={**found.metrics, **next(left)})

    monkeypatch.setattr(validation, "evaluate", evaluate)


@pytest.mark.parametrize("expected", [("AP", 2, 0.3), ("AP50", 1, 0.9), ("APl", 3, 0.25)])
def test_best_metric_selects_the_best_weights(
    configure: Callable[..., Config],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    expected: tuple[str, int, float],
) -> None:
    metric, iteration, value = expected
    figures = [(0.1, 0.9, math.nan), (0.3, 0.5, math.nan), (0.2, 0.4, 0.25)]  # APl is undefined at first
    give_metrics(monkeypatch, *({"AP": ap, "AP50": ap50, "APl": apl} for ap, ap50, apl in figures))
    result = train(configure(iterations=3, eval_every=1, best_metric=metric))
    best = load_checkpoint(result.run / BEST)
    assert best.iteration == iteration
    assert result.metrics[metric] == best.metrics[metric] == value
    assert f"{metric} {value:.3f} on val" in capsys.readouterr().out


def test_patience_monitors_the_best_metric(
    configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    give_metrics(monkeypatch, {"AP": 0.1, "AP50": 0.9}, {"AP": 0.2, "AP50": 0.8}, {"AP": 0.3, "AP50": 0.7})
    train(configure(iterations=9, eval_every=1, patience=2, best_metric="AP50"))
    assert "stopped early: no better AP50 in the last 2 evaluations" in capsys.readouterr().out


def test_undefined_best_metric_selects_the_last_weights(
    configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    give_metrics(monkeypatch, {"AP": 0.1, "APl": math.nan}, {"AP": 0.2, "APl": math.nan})
    run = train(configure(eval_every=1, best_metric="APl")).run
    best, evaluation = load_checkpoint(run / BEST), load_evaluation(run / "val")
    assert evaluation is not None
    assert (best.iteration, best.metrics["AP"], evaluation.metrics["AP"]) == (2, 0.2, 0.2)
    assert best.thresholds == evaluation.thresholds
    assert capsys.readouterr().out.count("train.best_metric=APl is undefined because val has no objects") == 1


def test_unknown_best_metric_is_rejected_before_folder_is_created(
    configure: Callable[..., Config], tmp_path: Path
) -> None:
    message = r"train\.best_metric=APS: no such metric, did you mean 'AP'\?; known: AP, AP50"
    with pytest.raises(ConfigError, match=message):
        train(configure(best_metric="APS"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("stopped", [False, True])
def test_best_weights_are_saved_once_the_disk_has_space_again(
    configure: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: bool
) -> None:
    """The second of four evaluations is the best. There is room again for the next save, or only after a stop."""
    config = configure(iterations=4, eval_every=1)
    give_aps(monkeypatch, *(0.1, 0.5, 0.05, 0.05) * 2)
    expected = load_checkpoint(train(config.model_copy(update={"output_dir": tmp_path / "spacious"})).run / BEST)
    failures = itertools.count()
    with monkeypatch.context() as patches:
        fill_disk(patches, files="best", when=lambda iteration: iteration == 2 and (stopped or next(failures) == 0))
        if stopped:
            with pytest.raises(
                TrainingError, match=r"best\.pt: not saved: .*free up disk space; .*; fix this, then continue with"
            ):
                train(config)
            assert load_checkpoint(tmp_path / "run" / BEST).metrics["AP"] == 0.1
        else:
            assert train(config).metrics["AP"] == 0.5
    if stopped:
        assert train(resume(config)).metrics["AP"] == 0.5
    found = load_checkpoint(tmp_path / "run" / BEST)
    assert (found.iteration, found.thresholds) == (2, expected.thresholds)
    assert found.metrics == pytest.approx(expected.metrics, rel=0, abs=0, nan_ok=True)
    torch.testing.assert_close(found.model, expected.model, rtol=0, atol=0)


def test_checkpoint_of_an_older_version_can_be_resumed(configure: Callable[..., Config]) -> None:
    """That version counted passed multiples of `eval_every`, and could not store best weights outside best.pt."""
    last = train(configure(iterations=1)).run / "weights/last.pt"
    content = torch.load(last, weights_only=True)
    content["training"]["state"]["marks"] = 3
    del content["training"]["best"]
    torch.save(content, last)
    train(resume(configure(iterations=2)))
    assert load_checkpoint(last).iteration == 2


def test_resume_keeps_unassigned_counts_of_an_older_version(
    configure: Callable[..., Config], data: Path, tmp_path: Path
) -> None:
    """That version counted only boxes without an assigned location, in the state and in the steps without a row."""
    tree = coco_tree()
    tree["annotations"][0]["bbox"] = [5.0, 5.0, 1.0, 1.0]
    write_coco(data, tree)
    config = configure(iterations=6, log_every=6)
    with (
        before_forward(FCOS, at_call(4, lambda _: os.kill(os.getpid(), signal.SIGINT))),
        pytest.raises(KeyboardInterrupt),
    ):
        train(config)
    run, again = tmp_path / "run", tmp_path / "again"
    shutil.copytree(run, again)
    content = torch.load(again / "weights/last.pt", weights_only=True)
    training = content["training"]
    training["state"]["unassigned"] = training["state"].pop("stats")["unassigned"]
    training["steps"] = [
        (progress, (*learned[:3], learned[3]["unassigned"], *learned[4:]), *step)
        for progress, learned, *step in training["steps"]
    ]
    assert len(training["steps"]) == 4
    torch.save(content, again / "weights/last.pt")
    for folder in (run, again):
        train(resume(config).model_copy(update={"output_dir": folder}))
    files = [load_checkpoint(folder / "weights/last.pt").training for folder in (run, again)]
    states = [file["state"] for file in files if file is not None]
    assert states[0]["stats"] == states[1]["stats"]
    shares = []
    for folder in (run, again):
        with (folder / "metrics.csv").open(newline="") as file:
            shares += [row["unassigned_share"] for row in csv.DictReader(file) if row["split"] == "train"]
    assert len(shares) == 2
    assert shares[0] == shares[1]
    assert float(shares[0]) > 0


@pytest.mark.usefixtures("without_report")
@pytest.mark.parametrize("files", ["last", "best"])
def test_full_disk_at_the_end_raises_and_the_run_can_be_resumed(
    configure: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: str
) -> None:
    config = configure(iterations=3, checkpoint_every=1)
    with monkeypatch.context() as patches:
        fill_disk(patches, files=files, when=lambda iteration: iteration == 3)
        with pytest.raises(TrainingError) as caught:
            train(config)
    command = f"continue with: fcos train {tmp_path / 'run/config.yaml'} train.resume=true"
    assert f"{files}.pt: not saved: No space left on device; free up disk space" in str(caught.value)
    assert str(caught.value).endswith(f"fix this, then {command}")
    cli_words = command.partition("fcos ")[2].split()
    with pytest.raises(SystemExit, match="0"):
        cli.main(cli_words)
    for name in ("last", "best"):
        saved = load_checkpoint(tmp_path / f"run/weights/{name}.pt")
        assert saved.iteration == 3
        assert "AP" in saved.metrics


def test_full_disk_at_startup_raises_and_keeps_the_previous_config(
    configure: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(configure(iterations=1)).run
    before = {path: path.read_bytes() for path in (run / "config.yaml", run / "environment.json")}

    def write_half(path: Path, text: str, **_: Any) -> None:
        path.write_bytes(text[:10].encode())
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", write_half)
    with pytest.raises(WriteError) as caught:
        train(resume(configure(iterations=2)))
    assert str(caught.value).startswith(f"{run / 'run.lock.txt'}: cannot be written: No space left on device")
    assert {path: path.read_bytes() for path in before} == before
    assert not list(run.glob(".*"))


def test_resume_of_a_run_without_checkpoints_starts_over(
    configure: Callable[..., Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(configure().to_yaml())
    train(resume(configure()))
    assert f"nothing was saved in {folder} yet; starting from the beginning" in capsys.readouterr().out
    assert load_checkpoint(folder / "weights/last.pt").iteration == 2


def test_resume_removes_temporary_files_of_a_killed_process(configure: Callable[..., Config], tmp_path: Path) -> None:
    weights = train(configure(iterations=1)).run / "weights"
    (weights / ".last.pt.123.tmp").write_bytes(b"half a file")
    (weights / ".best.pt.123.tmp").write_bytes(b"half a file")
    train(resume(configure(iterations=2)))
    assert sorted(path.name for path in weights.iterdir()) == ["best.pt", "last-1.pt", "last.pt"]


def test_missing_last_checkpoint_falls_back_to_the_previous_one(
    configure: Callable[..., Config], tmp_path: Path
) -> None:
    run = train(configure(iterations=2, checkpoint_every=1)).run
    (run / "weights/last.pt").unlink()
    checkpoint, note, _ = load_last(run)
    assert checkpoint is not None
    assert f"{run / 'weights/last.pt'} is missing" in note
    assert load_checkpoint(run / "weights/last.pt").iteration == checkpoint.iteration


def test_unreadable_checkpoints_raise_weights_error(configure: Callable[..., Config]) -> None:
    run = train(configure(iterations=2, checkpoint_every=1)).run
    for name in ("last", "last-1"):
        (run / f"weights/{name}.pt").write_bytes(b"PK")
    with pytest.raises(WeightsError, match=r"no checkpoint in .* can be resumed from:\n.*last\.pt: .*\n.*last-1\.pt: "):
        load_last(run)


def test_checkpoint_without_stored_steps_can_be_resumed(configure: Callable[..., Config], tmp_path: Path) -> None:
    run = train(configure(iterations=2, log_every=3)).run
    file = run / "weights/last.pt"
    saved = torch.load(file, weights_only=True)
    del saved["training"]["steps"]
    saved["training"]["unlogged"] = [((1, 0.5, 0.1, 0.5), {"losses": {"loss_cls": 1.0}, "images": 2})]
    torch.save(saved, file)
    train(resume(configure(iterations=3, log_every=3)))
    assert load_checkpoint(file).iteration == 3


def test_resume_keeps_momentum_if_parameter_groups_change(configure: Callable[..., Config]) -> None:
    """The two towers have the same shapes; centerness and logits have not."""
    before = configure(model=MOBILENET, lr_factors={"head.cls_tower.*": 0.5, "head.logits.*": 0.1})
    checkpoint = load_checkpoint(train(before).run / "weights/last.pt")
    after = configure(model=MOBILENET, lr_factors={"head.box_tower.*": 0.5, "head.centerness.*": 0.1})
    model, data = build_model(after.model, num_classes=2), load_annotations(after.data, "train")
    assert data is not None
    assert checkpoint.training is not None
    run = Run(before.output_dir or Path(), after, model=model, train_data=data, val_data=None, elapsed=lambda: 0.0)
    run.restore(checkpoint, where="last.pt")
    saved, names = checkpoint.training["optimizer"]["state"], checkpoint.training["learning"]
    assert len(saved) > 50
    parameters = dict(model.named_parameters())
    for i, values in saved.items():
        assert torch.equal(run.optimizer.state[parameters[names[i]]]["momentum_buffer"], values["momentum_buffer"])
    assert parameters["head.cls_tower.0.weight"].shape == parameters["head.box_tower.0.weight"].shape


class OnGPU(FCOS):
    """FCOS that reports a GPU as its device, also on machines without one."""

    @property
    def device(self) -> torch.device:
        return torch.device("cuda")


def test_resume_restores_the_cuda_rng_state(configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.arange(16, dtype=torch.uint8)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda _: generator)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, _: generator.copy_(state))
    config = configure()
    model, data = build_fcos(config.model, num_classes=2), load_annotations(config.data, "train")
    model.__class__ = OnGPU
    assert data is not None
    assert config.output_dir is not None
    (config.output_dir / "weights").mkdir(parents=True)
    run = Run(config.output_dir, config, model=model, train_data=data, val_data=None, elapsed=lambda: 0.0)
    run.save_last()
    generator.zero_()
    run.restore(load_checkpoint(config.output_dir / "weights/last.pt"), where="last.pt")
    assert generator.tolist() == list(range(16))
