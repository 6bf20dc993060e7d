"""Score thresholds with the best F1, against a search over every threshold."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from detectors import MOBILENET
from evaluations import f1_of_classes, random_task
from PIL import Image

import fcos
from fcos.checkpoint import save_checkpoint
from fcos.config import Config
from fcos.evaluation.coco_metrics import coco_metrics
from fcos.evaluation.thresholds import best_threshold, shrink_thresholds
from fcos.interop.checkpoints import load_checkpoint
from fcos.models import build_model
from fcos.training.loop import train


@pytest.mark.parametrize("seed", range(4))
def test_thresholds_maximize_f1_per_class(seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    task = random_task(seed)
    thresholds = coco_metrics(*task).thresholds
    everything = [f1_of_classes(task, t, capsys) for t in sorted({d["score"] for d in task[1]})]
    best = {name: max(f1[name] for f1 in everything) for name in everything[0]}
    assert set(thresholds) == {name for name, f1 in best.items() if f1 > 0}
    assert len(thresholds) > 1
    for name, threshold in thresholds.items():
        assert f1_of_classes(task, threshold, capsys)[name] == pytest.approx(best[name], abs=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_best_threshold_is_centered_in_the_highest_optimal_gap(seed: int) -> None:
    generator = np.random.default_rng(seed)
    scores = generator.integers(1, 9, 12) / 10  # with many ties
    correct, boxes = generator.random(12) < 0.5, 9
    found = best_threshold(scores, correct, boxes)

    def f1(threshold: float) -> float:
        shown = scores >= threshold
        return 2 * int(correct[shown].sum()) / (int(shown.sum()) + boxes)

    best = max(map(f1, scores))
    highest = max(s for s in scores if f1(s) == best)
    below = max((s for s in scores if s < highest), default=0.0)
    assert found == pytest.approx((highest + below) / 2, abs=1e-15)


def test_best_threshold_does_not_depend_on_detection_order() -> None:
    scores, correct = np.array([0.9, 0.5, 0.5, 0.5, 0.2]), np.array([True, True, False, True, False])
    expected = best_threshold(scores, correct, 4)
    assert expected == 0.35
    for order in ([4, 3, 2, 1, 0], [2, 0, 4, 1, 3]):
        assert best_threshold(scores[order], correct[order], 4) == expected


@pytest.mark.parametrize("correct", [[], [False, False]])
def test_class_without_correct_detections_has_no_threshold(correct: list[bool]) -> None:
    assert best_threshold(np.full(len(correct), 0.7), np.array(correct, dtype=bool), 3) is None


def test_training_saves_thresholds_in_best_pt_and_metrics_json(
    configure: Callable[..., Config], tmp_path: Path
) -> None:
    run = train(configure(model=MOBILENET)).run
    checkpoint = load_checkpoint(run / "weights/best.pt")
    metrics = json.loads((run / "val/metrics.json").read_text())
    assert metrics["thresholds"] == checkpoint.thresholds
    assert metrics["metrics"]["AP"] == checkpoint.metrics["AP"]
    evaluation = fcos.evaluate(run / "weights/best.pt")
    assert json.loads((run / "val/detections.json").read_text()) == evaluation.detections
    assert evaluation.thresholds == checkpoint.thresholds


class TestPredict:
    """Detections that a detector shows if no threshold is given."""

    @pytest.fixture
    def picture(self) -> Image.Image:
        return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))

    def weights(self, configure: Callable[..., Config], tmp_path: Path, thresholds: dict[str, float]) -> Path:
        path = tmp_path / "w.pt"
        config = configure(model={**MOBILENET, "score_threshold": 0.0})
        torch.manual_seed(0)
        model = build_model(config.model, num_classes=2, pretrained=False)
        save_checkpoint(
            path, model=model, config=config, class_names=["cat", "dog"], category_ids=[1, 2], thresholds=thresholds
        )
        return path

    def test_stored_thresholds_apply_per_class(
        self, configure: Callable[..., Config], tmp_path: Path, picture: Image.Image
    ) -> None:
        everything = fcos.load(self.weights(configure, tmp_path, {})).predict(picture, threshold=0)
        middle = {
            name: everything.scores[everything.labels == label].double().median().item()
            for label, name in enumerate(("cat", "dog"))
        }
        found = fcos.load(self.weights(configure, tmp_path, middle)).predict(picture)
        expected = [
            (name, score)
            for name, score in zip(everything.names, everything.scores.tolist(), strict=True)
            if score >= middle[name]
        ]
        assert 0 < len(found) < len(everything)
        assert len(expected) == len(found)

    def test_threshold_argument_replaces_stored_thresholds(
        self, configure: Callable[..., Config], tmp_path: Path, picture: Image.Image
    ) -> None:
        detector = fcos.load(self.weights(configure, tmp_path, {"cat": 1.0, "dog": 1.0}))
        assert len(detector.predict(picture)) == 0
        assert len(detector.predict(picture, threshold=0)) > 0

    def test_class_without_stored_threshold_uses_the_default(
        self, configure: Callable[..., Config], tmp_path: Path
    ) -> None:
        assert fcos.load(self.weights(configure, tmp_path, {"dog": 0.3})).thresholds.tolist() == [0.5, 0.3]


@pytest.mark.parametrize(
    ("boxes", "expected"),
    [(0, 0.5), (4, 0.5 + 0.2 / 6), (20, 0.6), (400, 0.5 + 0.2 * 400 / 420)],
)
def test_thresholds_of_few_objects_stay_close_to_the_default(boxes: int, expected: float) -> None:
    assert shrink_thresholds({"cat": 0.7}, {"cat": boxes, "dog": 9}, default=0.5) == {"cat": pytest.approx(expected)}


def test_low_thresholds_are_raised_towards_the_default() -> None:
    assert shrink_thresholds({"cat": 0.1}, {"cat": 20}, default=0.25) == {"cat": pytest.approx(0.175)}
