"""The training loop with a real, very small detector on three small images."""

from __future__ import annotations

import csv
import itertools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from detectors import MOBILENET, build_fcos
from hooks import at_call, before_forward
from tiny_data import CLASSES, coco_tree, write_coco

from fcos.config import Config
from fcos.data import loader
from fcos.data.augmentations import augmentation_strength
from fcos.evaluation.evaluate import Evaluation
from fcos.interop.checkpoints import load_checkpoint
from fcos.models import DetectionModel
from fcos.models.fcos import FCOS
from fcos.models.retinanet import RetinaNet
from fcos.recipes import load_config
from fcos.training import prepare, validation
from fcos.training.loop import train

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def resume(config: Config, **settings: Any) -> Config:
    return config.model_copy(update={"train": config.train.model_copy(update={"resume": True, **settings})})


def rows(run: Path, split: str) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["split"] == split]


def fake_evaluate(monkeypatch: pytest.MonkeyPatch, aps: list[float], then: Callable[[], None] = lambda: None) -> None:
    """Replace evaluations by stubs that return these APs, one after the other."""
    found = iter(aps)

    def evaluate(*_: Any, progress: Callable[[int, int], None], **__: Any) -> Evaluation:
        then()
        progress(3, 3)
        return Evaluation(dict.fromkeys(METRICS, next(found)), {}, [], {})

    monkeypatch.setattr(validation, "evaluate", evaluate)


def test_run_folder_contains_all_results(configure: Callable[..., Config], tmp_path: Path) -> None:
    result = train(configure())
    run = tmp_path / "run"
    assert result.run == run
    assert set(METRICS) == set(result.metrics)
    assert len(rows(run, "train")) == 2
    assert len(rows(run, "val")) == 1
    assert sorted(p.name for p in (run / "pictures").iterdir()) == ["a.jpg", "b.jpg", "c.jpg"]
    assert list(run.glob("events.out.tfevents.*"))
    last, best = load_checkpoint(run / "weights/last.pt"), load_checkpoint(run / "weights/best.pt")
    assert (last.iteration, last.class_names, last.category_ids) == (2, CLASSES, (7, 6))
    assert last.training is not None
    assert best.training is None
    assert best.metrics == pytest.approx(result.metrics, nan_ok=True)
    assert load_config(run / "config.yaml").to_dict() == best.config


@pytest.mark.parametrize(("options", "copies_statistics"), [({}, False), ({"ema_statistics": "same_age"}, True)])
def test_first_averages_of_statistics_are_copies_only_with_the_option(
    configure: Callable[..., Config], tmp_path: Path, options: dict[str, Any], copies_statistics: bool
) -> None:
    train(configure(model=MOBILENET, ema=0.9, **options))
    last = torch.load(tmp_path / "run/weights/last.pt", weights_only=True)
    averaged, latest = last["model"], last["training"]["weights"]
    names = [name for name in averaged if name.endswith(("running_mean", "running_var"))]
    assert all(torch.equal(averaged[name], latest[name]) for name in names) == copies_statistics
    assert not torch.equal(averaged["fpn.output.0.weight"], latest["fpn.output.0.weight"])


@pytest.mark.parametrize(
    "options",
    [
        {"model": MOBILENET, "ema": 0.9},
        {"optimizer": "adamw", "schedule": "cosine", "clip_norm": 1.0},
        {"model": {"backbone": {"name": "own_backbone:Drops"}}},  # draws random numbers
        {"model": {"name": "retinanet"}, "ema": 0.9},
    ],
)
def test_resumed_run_matches_an_uninterrupted_run(
    configure: Callable[..., Config],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: dict[str, Any],
) -> None:
    whole = configure(iterations=5, **options)
    train(whole.model_copy(update={"output_dir": tmp_path / "whole"}))

    def interrupt(_: DetectionModel) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    detector = RetinaNet if options.get("model", {}).get("name") == "retinanet" else FCOS
    with before_forward(detector, at_call(3, interrupt)), pytest.raises(KeyboardInterrupt):
        train(whole)
    assert load_checkpoint(tmp_path / "run/weights/last.pt").iteration == 3
    assert f"continue with: fcos train {tmp_path}/run/config.yaml train.resume=true" in capsys.readouterr().out

    train(load_config(tmp_path / "run/config.yaml", ["train.resume=true"]))
    expected, found = (load_checkpoint(tmp_path / name / "weights/last.pt") for name in ("whole", "run"))
    for name, tensor in expected.model.items():
        assert torch.equal(found.model[name], tensor), name
    losses = [[row["loss"] for row in rows(tmp_path / name, "train")] for name in ("whole", "run")]
    assert len(losses[0]) == 5
    assert losses[0] == losses[1]


def test_finished_run_can_be_resumed_with_more_iterations(configure: Callable[..., Config], tmp_path: Path) -> None:
    config = configure()
    train(config)
    train(resume(config, iterations=3))
    assert load_checkpoint(tmp_path / "run/weights/last.pt").iteration == 3
    assert len(rows(tmp_path / "run", "train")) == 3


def test_best_and_last_weights_are_saved_separately(
    configure: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_evaluate(monkeypatch, [0.1, 0.5, float("nan"), 0.3])
    result = train(configure(iterations=8, eval_every=0.25))
    best, last = (load_checkpoint(tmp_path / "run/weights" / f"{name}.pt") for name in ("best", "last"))
    assert (best.iteration, best.metrics["AP"], result.metrics["AP"]) == (4, 0.5, 0.5)
    assert (last.iteration, last.metrics["AP"]) == (8, 0.3)
    assert [row["iteration"] for row in rows(tmp_path / "run", "val")] == ["2", "4", "6", "8"]


def test_eval_every_sets_the_evaluation_interval_in_iterations(
    configure: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_evaluate(monkeypatch, [0.1] * 3)
    train(configure(iterations=5, eval_every=2))
    assert [row["iteration"] for row in rows(tmp_path / "run", "val")] == ["2", "4", "5"]


@pytest.mark.parametrize(
    ("lengths", "evaluated"),
    [
        (({"iterations": 5, "eval_every": 0.4}, {"iterations": 10}), ["2", "4", "5", "8", "10"]),
        (({"iterations": 5, "eval_every": 4}, {"iterations": 8, "eval_every": 2}), ["4", "5", "6", "8"]),
        (({"iterations": 5, "eval_every": 1}, {"iterations": 9, "eval_every": 4}), ["1", "2", "3", "4", "5", "8", "9"]),
    ],
)
def test_extended_run_is_evaluated_at_the_new_interval(
    configure: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lengths: tuple[dict[str, Any], dict[str, Any]],
    evaluated: list[str],
) -> None:
    fake_evaluate(monkeypatch, [0.1] * 9)
    config = configure(**lengths[0])
    train(config)
    train(resume(config, **lengths[1]))
    assert [row["iteration"] for row in rows(tmp_path / "run", "val")] == evaluated


def test_last_weights_become_best_pt_without_a_val_split(
    configure: Callable[..., Config], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "val.json").unlink()
    result = train(configure())
    assert result.metrics == {}
    assert load_checkpoint(tmp_path / "run/weights/best.pt").iteration == 2
    out = capsys.readouterr().out
    assert "no val split (data.val_fraction=0.2 makes one), best.pt gets the last weights" in out
    assert "the last weights, no validation" in out


def test_first_step_applies_learning_rate_and_gradient_clipping(
    configure: Callable[..., Config], tmp_path: Path
) -> None:
    config = configure(iterations=1, lr=0.5, clip_norm=0.01, weight_decay=0.0, bias_lr_factor=1.0, ema=None)
    torch.manual_seed(0)
    start = {n: p.detach().clone() for n, p in build_fcos(config.model, num_classes=2).named_parameters()}
    train(config)
    end = load_checkpoint(tmp_path / "run/weights/last.pt").model
    change = torch.stack([(end[name] - before).norm() for name, before in start.items()]).norm()
    assert change.item() == pytest.approx(0.5 * 0.01, rel=1e-3)
    assert float(rows(tmp_path / "run", "train")[0]["grad_norm"]) > 0.01


def test_epochs_are_counted_in_images(configure: Callable[..., Config], tmp_path: Path) -> None:
    train(configure(epochs=2.5))  # three images per epoch, two per step
    last = rows(tmp_path / "run", "train")[-1]
    assert last["iteration"] == "4"
    assert float(last["epoch"]) == pytest.approx(8 / 3, rel=1e-5)


def test_max_minutes_limits_the_whole_run(
    configure: Callable[..., Config], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0

    def pass_time(seconds: float) -> None:
        nonlocal now
        now += seconds

    def slow_data(*args: Any, **kwargs: Any) -> Any:
        pass_time(5.0)
        return load(*args, **kwargs)

    load = prepare.load_annotations
    monkeypatch.setattr(prepare, "load_annotations", slow_data)
    fake_evaluate(monkeypatch, [0.1] * 3, then=lambda: pass_time(8.0))
    config = configure(max_minutes=1.0, schedule="cosine", eval_every=0.5)
    with before_forward(FCOS, lambda _: pass_time(1.0)):
        train(config, clock=lambda: now)

    assert 60 - 8 * 0.15 - 2 - 1 < now <= 60  # safety, margin, less than one step
    training = rows(tmp_path / "run", "train")
    rates = [float(row["lr"]) for row in training]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.01 * rates[0]
    # 60 seconds - 2 * 5 for data - 3 * 8 for evaluations (one to measure) - 4 as above.
    assert len(training) == pytest.approx(60 - 10 - 24 - 4, abs=1)
    assert len(rows(tmp_path / "run", "val")) == 2


def fading(config: Config, monkeypatch: pytest.MonkeyPatch) -> tuple[Config, list[float]]:
    """Return a config whose augmentations fade, and the list to which the strengths of its batches will be added."""
    strengths = []

    def record(*args: Any) -> float:
        strengths.append(augmentation_strength(*args))
        return strengths[-1]

    monkeypatch.setattr(loader, "augmentation_strength", record)
    data = config.data.model_copy(update={"zoom": (0.5, 2.0), "augmentation_fade": 1.0})
    return config.model_copy(update={"data": data}), strengths


def test_augmentations_fade_within_a_time_budget(
    configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = itertools.count()  # passed on by every call of the clock, three of them in a step
    config, strengths = fading(configure(max_minutes=5.0), monkeypatch)
    train(config, clock=lambda: float(next(seconds)))
    assert len(strengths) > 50
    assert strengths[0] == 1
    assert strengths == sorted(strengths, reverse=True)
    assert 0 <= strengths[-1] < 0.2


@pytest.mark.parametrize(("batch_size", "strengths"), [(2, [1, 0.75, 0.5, 0.25]), (1, [1, 0.75, 2 / 6, 1 / 6])])
def test_resumed_run_continues_to_fade(
    configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, batch_size: int, strengths: list[float]
) -> None:
    config, found = fading(configure(iterations=4), monkeypatch)

    def interrupt(_: DetectionModel) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with before_forward(FCOS, at_call(2, interrupt)), pytest.raises(KeyboardInterrupt):
        train(config)
    train(resume(config, batch_size=batch_size))
    assert found == pytest.approx(strengths)


def test_final_work_is_timed_on_part_of_the_val_split(monkeypatch: pytest.MonkeyPatch) -> None:
    now, done = 0.0, 0

    def evaluate(*_: Any, progress: Callable[[int, int], None], **__: Any) -> None:
        nonlocal now, done
        now += 3.0  # start of the workers
        for done in range(10, 1001, 10):
            now += 0.5
            progress(done, 1000)

    class SlowDisk:
        val_data, detector, config, device = object(), None, None, None

        def save_last(self) -> None:
            nonlocal now
            now += 2.0

    monkeypatch.setattr(validation, "evaluate", evaluate)
    run: Any = SlowDisk()
    log: Any = None
    stop_request: Any = SimpleNamespace(requested=False)
    end = validation.Validation(run, log, stop_request)
    assert end.measure_end(6.0, lambda: now) == pytest.approx(3 * 2.0 + 3.0 + 100 * 0.5)
    assert done < 100
    stop_request.requested = True
    with pytest.raises(KeyboardInterrupt):
        end.measure_end(6.0, lambda: now)


def test_user_backbone_can_be_trained(configure: Callable[..., Config], capsys: pytest.CaptureFixture[str]) -> None:
    train(configure(model={"backbone": {"name": "own_backbone:Own"}}))
    assert "weights: backbone initialised by its function, the rest random" in capsys.readouterr().out


def test_run_starts_from_the_weights_of_another_run(
    configure: Callable[..., Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = configure(iterations=1)
    train(first)
    weights = tmp_path / "run/weights/best.pt"
    second = configure(iterations=1, weights=str(weights), lr=1e-12)
    train(second.model_copy(update={"output_dir": tmp_path / "second"}))
    before, after = load_checkpoint(weights).model, load_checkpoint(tmp_path / "second/weights/last.pt").model
    torch.testing.assert_close(after["head.logits.weight"], before["head.logits.weight"])
    learned = len(before) - 2  # pixel mean and std come from the config
    assert f"weights: all {learned} tensors from {weights}" in capsys.readouterr().out


def test_licence_of_the_start_weights_is_kept_in_checkpoints(configure: Callable[..., Config], tmp_path: Path) -> None:
    train(configure(iterations=1))
    weights = tmp_path / "run/weights/best.pt"
    torch.save({**torch.load(weights, weights_only=True), "licence": "CC BY-NC 4.0"}, weights)
    second = configure(iterations=1, weights=str(weights)).model_copy(update={"output_dir": tmp_path / "second"})
    train(second)
    train(resume(second, iterations=2))
    files = [load_checkpoint(tmp_path / "second/weights" / name) for name in ("last.pt", "best.pt")]
    assert [file.licence for file in files] == ["CC BY-NC 4.0"] * 2
    assert files[0].iteration == 2


def test_licence_of_the_backbone_weights_is_kept_in_checkpoints(
    configure: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fcos.training.prepare.license_warning", lambda name, weights: f"that of {name}")
    train(configure(iterations=1))
    assert load_checkpoint(tmp_path / "run/weights/best.pt").licence == "that of own_backbone:Own"


def test_message_uses_singular_for_one_iteration(
    configure: Callable[..., Config], capsys: pytest.CaptureFixture[str]
) -> None:
    train(configure(iterations=1, warmup="linear"))
    out = capsys.readouterr().out
    assert "the run of 1 iteration ends within the warm-up" in out
    assert "\n1 iteration, " in out


def test_unassigned_boxes_are_reported_once(
    configure: Callable[..., Config], data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = coco_tree()
    for annotation in tree["annotations"]:
        annotation["bbox"] = [5.0, 5.0, 1.0, 1.0]
    write_coco(data, tree)
    train(configure(iterations=6))
    out = capsys.readouterr().out
    assert out.count("not assigned to any location") == 1
    assert "data.short_side" in out


@pytest.mark.parametrize("ignored", [False, True])
def test_a_closed_terminal_stops_a_run_unless_nohup_started_it(configure: Callable[..., Config], ignored: bool) -> None:
    config, previous = configure(iterations=3), signal.getsignal(signal.SIGHUP)
    handler = signal.SIG_IGN if ignored else signal.SIG_DFL
    signal.signal(signal.SIGHUP, handler)
    try:
        with before_forward(FCOS, at_call(2, lambda _: os.kill(os.getpid(), signal.SIGHUP))):
            if ignored:
                train(config)
            else:
                with pytest.raises(KeyboardInterrupt):
                    train(config)
        assert signal.getsignal(signal.SIGHUP) == handler
    finally:
        signal.signal(signal.SIGHUP, previous)
    assert config.output_dir is not None
    assert load_checkpoint(config.output_dir / "weights/last.pt").iteration == (3 if ignored else 2)
