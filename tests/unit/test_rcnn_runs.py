"""Runs of an R-CNN with masks and keypoints: resuming, moving average, selection of the best weights."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hooks import at_call, before_forward

from fcos.config import Config
from fcos.evaluation.evaluate import Evaluation
from fcos.interop.checkpoints import load_checkpoint
from fcos.models import DetectionModel
from fcos.models.rcnn import RCNN
from fcos.recipes import load_config
from fcos.training import validation
from fcos.training.folder import BEST, LAST
from fcos.training.loop import train


def interrupt(_: DetectionModel) -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_resumed_run_with_moving_average_matches_an_uninterrupted_run(
    configure_rcnn: Callable[..., Config], tmp_path: Path
) -> None:
    config = configure_rcnn(iterations=4, ema=0.9)
    train(config.model_copy(update={"output_dir": tmp_path / "whole"}))
    with before_forward(RCNN, at_call(2, interrupt)), pytest.raises(KeyboardInterrupt):
        train(config)
    assert load_checkpoint(tmp_path / "run" / LAST).iteration == 2
    train(load_config(tmp_path / "run/config.yaml", ["train.resume=true"]))
    for file in (LAST, BEST):
        whole, resumed = (load_checkpoint(tmp_path / name / file).model for name in ("whole", "run"))
        assert any(name.startswith("heads.mask") for name in whole)
        assert any(name.startswith("heads.keypoints") for name in whole)
        for name, tensor in whole.items():
            assert torch.equal(resumed[name], tensor), name


def test_moving_average_of_all_heads_is_saved(configure_rcnn: Callable[..., Config], tmp_path: Path) -> None:
    saved = []
    for ema in (None, 0.9):
        train(configure_rcnn(iterations=3, ema=ema).model_copy(update={"output_dir": tmp_path / str(ema)}))
        saved.append(load_checkpoint(tmp_path / str(ema) / BEST).model)
    for head in ("proposals", "box", "heads.mask", "heads.keypoints"):
        names = [name for name in saved[0] if name.startswith(head)]
        assert names
        assert any(not torch.equal(saved[0][name], saved[1][name]) for name in names), head


def test_mask_ap_selects_the_best_weights_and_stops_the_run(
    configure_rcnn: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = iter([(0.1, 0.2), (0.2, 0.4), (0.3, 0.3), (0.4, 0.1)])  # AP, AP_mask

    def evaluate(*_: object, **__: object) -> Evaluation:
        ap, ap_mask = next(given)
        return Evaluation({"AP": ap, "AP_mask": ap_mask}, {}, [], {})

    monkeypatch.setattr(validation, "evaluate", evaluate)
    result = train(configure_rcnn(iterations=9, eval_every=1, patience=2, best_metric="AP_mask"))
    assert load_checkpoint(result.run / LAST).iteration == 4
    best = load_checkpoint(result.run / BEST)
    assert (best.iteration, best.metrics["AP_mask"], best.metrics["AP"]) == (2, 0.4, 0.2)
    assert "stopped early: no better AP_mask in the last 2 evaluations" in capsys.readouterr().out
