"""COCO metrics of masks and keypoints against pycocotools, the reference implementation."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluations import Task, random_task
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from rich.console import Console

from fcos.config import Config
from fcos.data import load_annotations
from fcos.data.dataset import Annotations
from fcos.errors import ConfigError
from fcos.evaluation.coco_metrics import (
    COCO_SIGMAS,
    Output,
    coco_metrics,
    metrics_of,
    sigmas_of,
    to_coco_results,
)
from fcos.evaluation.evaluate import Evaluation, evaluate, metric_names
from fcos.evaluation.results import load_evaluation, print_evaluation, save_evaluation
from fcos.masks import Masks, to_text
from fcos.structures import Instances

SIZE = (480, 640)


def star(box: list[float], rng: np.random.Generator) -> list[float]:
    """Return a random polygon inside a box XYWH."""
    angles = np.sort(rng.uniform(0, 2 * np.pi, 9))
    radii = rng.uniform(0.5, 1, 9)[:, None]
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii * 0.5 + 0.5
    return (points * box[2:] + box[:2]).round(2).reshape(-1).tolist()


def task_with_shapes(seed: int, num_keypoints: int) -> Task:
    ground_truth, detections = random_task(seed)
    rng = np.random.default_rng(1000 + seed)
    boxes = {}
    for annotation in ground_truth["annotations"]:
        annotation["segmentation"] = [star(annotation["bbox"], rng) for _ in range(rng.integers(1, 3))]
        points = np.array(annotation["bbox"][:2]) + rng.random((num_keypoints, 2)) * annotation["bbox"][2:]
        visibility = rng.integers(0, 3, (num_keypoints, 1)) * (rng.random() < 0.8)
        annotation["keypoints"] = np.concatenate([points, visibility], axis=1).reshape(-1).tolist()
        annotation["num_keypoints"] = int((visibility > 0).sum())
        annotation["area"] *= 0.5
        boxes[annotation["image_id"], annotation["category_id"]] = annotation
    for detection in detections:
        near = boxes.get((detection["image_id"], detection["category_id"]))
        ring = star(detection["bbox"], rng) if near is None or rng.random() < 0.5 else near["segmentation"][0]
        detection["segmentation"] = to_text(Masks.from_polygons([[ring]]).to_rles(SIZE)[0])
        points = np.array((near or detection)["bbox"][:2]) + rng.random((num_keypoints, 2)) * detection["bbox"][2:]
        if near is not None:
            points = np.array(near["keypoints"]).reshape(-1, 3)[:, :2] + rng.normal(0, 3, (num_keypoints, 2))
        detection["keypoints"] = np.concatenate([points, rng.random((num_keypoints, 1))], axis=1).reshape(-1).tolist()
    return ground_truth, detections


def run_pycocotools(task: Task, kind: Any, key: str, sigmas: tuple[float, ...]) -> np.ndarray:
    ground_truth, detections = task
    with contextlib.redirect_stdout(io.StringIO()):
        truth: Any = COCO()
        truth.dataset = ground_truth
        truth.createIndex()
        columns = ("image_id", "category_id", "score", key)
        run = COCOeval(truth, truth.loadRes([{name: d[name] for name in columns} for d in detections]), kind)
        run.params.kpt_oks_sigmas = np.array(sigmas)
        run.evaluate()
        run.accumulate()
        run.summarize()
    return np.where(np.array(run.stats) == -1, np.nan, run.stats)


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # of pycocotools with NumPy 2
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("output", "kind", "key"), [("masks", "segm", "segmentation"), ("keypoints",) * 3])
def test_metrics_match_pycocotools(output: Output, kind: str, key: str, seed: int) -> None:
    task = task_with_shapes(seed, 17)
    expected = run_pycocotools(task, kind, key, COCO_SIGMAS)
    metrics = coco_metrics(*task, outputs=["boxes", output]).overall
    names = metrics_of([output])
    assert list(metrics) == [*metrics_of(["boxes"]), *names]
    assert 0.01 < metrics[names[0]] < 1
    # Measured: the tables behind the metrics are bit-identical; only the order of summation may differ.
    np.testing.assert_allclose([metrics[name] for name in names], expected, rtol=0, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("sigmas", [(0.05,) * 3, (0.1, 0.02, 0.3)])
def test_metrics_of_other_keypoints_match_pycocotools(sigmas: tuple[float, ...]) -> None:
    task = task_with_shapes(0, 3)
    expected = run_pycocotools(task, "keypoints", "keypoints", sigmas)
    metrics = coco_metrics(*task, outputs=["keypoints"], sigmas=sigmas).overall
    np.testing.assert_allclose(list(metrics.values()), expected, rtol=0, atol=1e-12, equal_nan=True)


def test_default_sigmas_are_those_of_coco() -> None:
    assert sigmas_of(17) == COCO_SIGMAS
    assert sigmas_of(2) == (0.067, 0.067)
    assert np.mean(COCO_SIGMAS) == pytest.approx(0.067, abs=5e-4)
    assert sigmas_of(2, [0.1, 0.2]) == (0.1, 0.2)


def test_detections_without_masks_have_no_precision() -> None:
    ground_truth, detections = task_with_shapes(0, 3)
    for detection in detections:
        del detection["segmentation"]
    metrics = coco_metrics(ground_truth, detections, outputs=["boxes", "masks"]).overall
    assert metrics["AP"] > 0
    assert metrics["AP_mask"] == 0


DETAILS = {"name": "rcnn", "mask": {"enabled": True}, "keypoints": {"enabled": True, "num_keypoints": 3}}
"""Section `model` of a detector that predicts masks and keypoints."""


def test_metric_names_follow_what_is_predicted() -> None:
    names = metric_names(Config.model_validate({"model": DETAILS, "data": {"masks": True, "keypoints": True}}))
    assert {"AP", "AP_mask", "APs_mask", "AP_keypoints", "AR75_keypoints"} <= set(names)
    assert len(names) == 12 + 12 + 10
    assert "AP_mask" not in metric_names(Config.model_validate({"data": {"masks": True}}))


def test_results_contain_masks_and_keypoints() -> None:
    instances = Instances(
        torch.tensor([[2.0, 2.0, 8.0, 6.0]]),
        torch.tensor([0]),
        torch.tensor([0.5]),
        size=(10, 12),
        mask_grids=torch.ones(1, 28, 28),
        keypoints=torch.tensor([[[3.0, 4.0, 0.25]]]),
    )
    (result,) = to_coco_results(instances, image_id=3, category_ids=[7])
    assert result["keypoints"] == [3, 4, 0.25]
    assert result["segmentation"]["size"] == [10, 12]
    assert result["bbox"] == [2, 2, 6, 4]


def test_saved_evaluation_keeps_masks_and_prints_a_table_for_each_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ground_truth, detections = task_with_shapes(0, 3)
    metrics = coco_metrics(ground_truth, detections, outputs=["boxes", "masks", "keypoints"], sigmas=[0.1] * 3)
    counts = {c["name"]: 3 for c in ground_truth["categories"]}
    evaluation = Evaluation(metrics.overall, metrics.per_class, detections, counts)
    save_evaluation(evaluation, tmp_path)
    loaded = load_evaluation(tmp_path)
    assert loaded is not None
    assert loaded.detections == detections
    assert loaded.metrics["AP_mask"] == metrics.overall["AP_mask"]
    print_evaluation(evaluation, Console(width=200))
    headers = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("class ")]
    assert [line[2] for line in headers if line[1] == "boxes"] == ["AP", "AP_mask", "AP_keypoints"]


class Oracle(torch.nn.Module):
    """Detector stub that returns the annotated objects, scaled to the input size."""

    box_convention = "continuous"

    def __init__(self, annotations: Annotations) -> None:
        super().__init__()
        self.annotations, self.order = annotations, iter(range(len(annotations)))

    def detect(self, images: torch.Tensor, sizes: torch.Tensor) -> list[Instances]:
        del images
        images_found = [self.annotations.instances(next(self.order)).resize_to((h, w)) for h, w in sizes.tolist()]
        return [replace(found, mask_grids=_grids(found), polygons=None) for found in images_found]


def _grids(objects: Instances) -> torch.Tensor:
    """Return masks as a detector predicts them."""
    assert objects.polygons is not None
    return objects.polygons.crop(objects.boxes, 112)


def test_ground_truth_as_detections_is_found(tmp_path: Path) -> None:
    images, annotations, rng = [], [], np.random.default_rng(0)
    for i in range(3):
        Image.new("RGB", (160, 120)).save(tmp_path / f"{i}.png")
        images.append({"id": i + 1, "file_name": f"{i}.png", "width": 160, "height": 120})
        for x, y in ((10.0, 10.0), (80.0, 50.0)):
            box = [x, y, 70.0, 60.0]
            points = [[x + 10, y + 10, 2], [x + 50, y + 40, 1], [0, 0, 0]]
            shape = {
                "bbox": box,
                "segmentation": [star(box, rng)],
                "keypoints": [v for point in points for v in point],
                "area": 2000,
            }
            annotations.append({"id": len(annotations) + 1, "image_id": i + 1, "category_id": 1, **shape})
    tree = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "star"}]}
    (tmp_path / "val.json").write_text(json.dumps(tree))
    data = {"root": tmp_path, "masks": True, "keypoints": True, "short_side": [90], "max_side": 400, "workers": 0}
    config = Config.model_validate({"model": DETAILS, "data": data, "eval": {"batch_size": 1, "voc_metrics": True}})
    split = load_annotations(config.data, "val")
    assert split is not None
    model: Any = Oracle(split)
    result = evaluate(model, split, config, device="cpu")
    assert list(result.metrics) == list(metric_names(config))
    assert result.metrics["AP"] == pytest.approx(1)
    assert result.metrics["AP50_voc07"] == 1
    assert result.metrics["AP_keypoints"] == pytest.approx(1)
    # The original pastes masks at whole pixels, so they differ at the border.
    assert result.metrics["AP75_mask"] == pytest.approx(1)
    assert result.metrics["AP_mask"] > 0.8
    assert result.per_class["star"]["AP75_mask"] == result.metrics["AP75_mask"]


def test_number_of_sigmas_must_be_that_of_the_keypoints() -> None:
    with pytest.raises(ConfigError, match=r"eval.keypoint_sigmas: expected 3 numbers, one per keypoint, found 2"):
        sigmas_of(3, [0.1, 0.2])
