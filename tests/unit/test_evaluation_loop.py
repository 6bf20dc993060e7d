"""`evaluate`: from a model and annotated images to metrics and files."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectors import NAMES, fcos_section, tiny_config, tiny_model
from PIL import Image
from rich.console import Console

import fcos
from fcos import ConfigError, DataError
from fcos.boxes import clip
from fcos.checkpoint import save_checkpoint
from fcos.config import DataConfig
from fcos.data import load_annotations
from fcos.evaluation.coco_metrics import METRICS, to_coco_results
from fcos.evaluation.evaluate import Evaluation, evaluate
from fcos.evaluation.results import (
    headline_metrics,
    load_evaluation,
    print_evaluation,
    save_evaluation,
)
from fcos.inference.predictor import Detector
from fcos.models.fcos import FCOS
from fcos.restore import restore_detector
from fcos.structures import Instances

SIZES = [(120, 80), (80, 120), (122, 80), (64, 64), (200, 90), (118, 80), (120, 80)]


@pytest.fixture
def folder(tmp_path):
    """Return a data set of seven images of several shapes, the last two without objects.

    Their ids are not sorted, and only two of three classes have objects.
    """
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for i, (width, height) in enumerate(SIZES):
        noise = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        noise.resize((width, height), Image.Resampling.BICUBIC).save(tmp_path / f"{i}.png")
        images.append({"id": 100 - i, "file_name": f"{i}.png", "width": width, "height": height})
        for _ in range(3 if i < 5 else 0):
            x, y = rng.uniform(0, 30, 2).tolist()
            box = {"bbox": [x, y, 30.0, 25.0], "category_id": int(rng.choice([18, 3])), "image_id": 100 - i}
            annotations.append({"id": len(annotations) + 1, **box})
    categories = [{"id": i, "name": name} for i, name in zip((18, 3, 90), NAMES, strict=True)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    for split in ("train", "val"):
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
    return tmp_path


@pytest.fixture
def config(folder):
    config = tiny_config()
    return config.model_copy(update={"data": config.data.model_copy(update={"root": folder})})


def in_batches_of(size, config):
    return config.model_copy(update={"eval": config.eval.model_copy(update={"batch_size": size})})


@pytest.fixture
def annotations(config):
    return load_annotations(config.data, "val")


class Oracle(torch.nn.Module):
    """Detector stub that returns exactly the annotated boxes, scaled to the input size."""

    def __init__(self, annotations, order, convention, score=1.0):
        super().__init__()
        self.score = score
        self.annotations, self.box_convention, self.order = annotations, convention, iter(order)

    def detect(self, images, sizes):
        del images
        results = []
        for height, width in sizes.tolist():
            index = next(self.order)
            span = self.annotations.span(index)
            boxes, labels = (torch.from_numpy(x[span]) for x in (self.annotations.boxes, self.annotations.labels))
            original = Instances(
                boxes, labels, torch.full((len(boxes),), self.score), tuple(self.annotations.sizes[index].tolist())
            )
            found = original.resize_to((height, width))
            if self.box_convention == "inclusive":
                # The conversion back to continuous boxes adds one pixel of the original image.
                scale = [width / original.size[1], height / original.size[0]]
                found.boxes[:, 2:] -= torch.tensor(scale)
            results.append(found)
        return results


@pytest.mark.parametrize("convention", ["continuous", "inclusive"])
def test_ground_truth_as_detections_has_ap_of_one(annotations, config, convention, monkeypatch):
    from fcos.evaluation import evaluate as loop

    loader = loop.build_test_loader(config, annotations, batch_size=2)
    order = [i for batch in loader for i in batch.indices.tolist()]
    model: Any = Oracle(annotations, order, convention)
    monkeypatch.setattr(loop, "build_test_loader", lambda *_, **__: loader)
    result = evaluate(model, annotations, config, device="cpu")
    assert result.metrics["AP"] == pytest.approx(1.0)
    assert result.metrics["AR100"] == pytest.approx(1.0)
    assert math.isnan(result.metrics["APl"])
    assert math.isnan(result.per_class["owl"]["AP"])
    assert sum(result.boxes_per_class.values()) == 15
    assert result.boxes_per_class["owl"] == 0


def test_detections_are_coco_results_with_the_original_ids(annotations, config):
    result = evaluate(tiny_model(config), annotations, config, device="cpu")
    assert list(result.metrics) == list(METRICS)
    assert {d["image_id"] for d in result.detections} == {100 - i for i in range(len(SIZES))}
    assert {d["category_id"] for d in result.detections} <= {18, 3, 90}
    for detection in result.detections:
        width, height = SIZES[100 - detection["image_id"]]
        x, y, w, h = detection["bbox"]
        assert min(x, y) >= 0
        assert min(w, h) > 0
        assert x + w <= width + 1e-3
        assert y + h <= height + 1e-3
    json.dumps(result.detections)


AUGMENTED = {"flip": True, "scales": [64, 128], "scales_max_side": 200, "scales_flip": True}


def corners(results):
    return torch.tensor([[x, y, x + w, y + h] for x, y, w, h in (d["bbox"] for d in results)], dtype=torch.float64)


@pytest.mark.parametrize("views", [{}, AUGMENTED], ids=["one view", "six views"])
@pytest.mark.parametrize("convention", ["continuous", "inclusive"])
def test_evaluation_and_prediction_give_the_same_detections(convention, views, annotations, folder):
    """In the inclusive convention only prediction clips boxes to the image; evaluation does not, as in the original."""
    config = tiny_config(box_convention=convention)
    sections = {
        "data": config.data.model_copy(update={"root": folder}),
        "eval": config.eval.model_copy(update={**views, "batch_size": 1}),
    }
    config = config.model_copy(update=sections)
    detector = Detector(tiny_model(config), config, class_names=NAMES, category_ids=(18, 3, 90))
    evaluated = evaluate(detector.model, annotations, config, device="cpu").detections
    predicted = []
    for i in reversed(range(len(SIZES))):
        found = detector.predict(folder / f"{i}.png", threshold=0)
        assert len(found) > 5
        assert torch.equal(found.boxes, clip(found.boxes, found.size))
        predicted += to_coco_results(found, image_id=100 - i, category_ids=(18, 3, 90))
    if convention == "continuous":
        assert evaluated == predicted
        return
    assert [{**d, "bbox": None} for d in evaluated] == [{**d, "bbox": None} for d in predicted]
    frames = torch.tensor([SIZES[100 - d["image_id"]] * 2 for d in evaluated], dtype=torch.float64)
    inside = corners(evaluated).clamp(min=0).minimum(frames)
    torch.testing.assert_close(inside, corners(predicted), rtol=0, atol=1e-9)
    assert (corners(evaluated) > frames).any()


def test_objects_of_unreadable_images_count_as_missed(annotations, config, folder, caplog):
    for i in (0, 2):
        (folder / f"{i}.png").unlink()
    result = evaluate(tiny_model(config), annotations, config, device="cpu")
    assert {d["image_id"] for d in result.detections} == {99, 97, 96, 95, 94}
    assert sum(result.boxes_per_class.values()) == 15
    assert "2 of 7 images could not be read; their objects count as missed" in caplog.text


def test_evaluation_uses_its_precision(annotations, config):
    model, dtypes = tiny_model(config), set()
    model.head.register_forward_pre_hook(lambda _, inputs: dtypes.update(level.dtype for level in inputs[0]))
    for precision, has_bfloat16 in (("float32", False), ("bfloat16", True)):
        dtypes.clear()
        chosen = config.model_copy(update={"eval": config.eval.model_copy(update={"precision": precision})})
        evaluation = evaluate(model, annotations, chosen, device="cpu")
        assert (torch.bfloat16 in dtypes) == has_bfloat16
        assert evaluation.detections


def test_results_do_not_depend_on_the_batch_size(annotations, config):
    model = tiny_model(config)
    one, three, eight = (evaluate(model, annotations, in_batches_of(n, config), device="cpu") for n in (1, 3, 8))
    for other in (three, eight):
        assert other.metrics == pytest.approx(one.metrics, abs=1e-9, nan_ok=True)
        assert len(other.detections) == len(one.detections)
        for ours, theirs in zip(other.detections, one.detections, strict=True):
            assert (ours["image_id"], ours["category_id"]) == (theirs["image_id"], theirs["category_id"])
            assert ours["bbox"] == pytest.approx(theirs["bbox"], abs=1e-3)
            assert ours["score"] == pytest.approx(theirs["score"], abs=1e-5)


def test_training_modes_of_modules_are_restored(annotations, config):
    model = tiny_model(config).train()
    model.head.eval()
    evaluate(model, annotations, config, device="cpu")
    assert model.training
    assert model.fpn.training
    assert not any(module.training for module in model.head.modules())


def test_progress_counts_images(annotations, config):
    calls = []
    settings = in_batches_of(3, config)
    evaluate(tiny_model(config), annotations, settings, device="cpu", progress=lambda *call: calls.append(call))
    assert calls[-1] == (7, 7)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)


EVALUATION = Evaluation(
    metrics=dict.fromkeys(METRICS, 0.5) | {"APl": float("nan")},
    per_class={
        "cat": dict.fromkeys(METRICS, 0.25),
        "[dog]": {name: float("nan") for name in METRICS},
    },
    detections=[{"image_id": 1, "category_id": 2, "bbox": [1.0, 2.0, 3.0, 4.0], "score": 0.5}],
    boxes_per_class={"cat": 12, "[dog]": 0},
    thresholds={"cat": 0.41},
    annotations_digest="cafe",
)


def test_saved_json_has_null_for_undefined_metrics(tmp_path):
    save_evaluation(EVALUATION, tmp_path / "new" / "val")
    metrics = json.loads((tmp_path / "new/val/metrics.json").read_text(), parse_constant=pytest.fail)
    assert metrics["metrics"]["AP"] == 0.5
    assert metrics["metrics"]["APl"] is None
    assert metrics["per_class"]["[dog]"]["AP"] is None
    assert metrics["thresholds"] == {"cat": 0.41}
    assert json.loads((tmp_path / "new/val/detections.json").read_text()) == EVALUATION.detections


def test_saved_evaluation_can_be_loaded(tmp_path):
    save_evaluation(EVALUATION, tmp_path)
    found = load_evaluation(tmp_path)
    assert found is not None
    assert found.metrics == pytest.approx(EVALUATION.metrics, nan_ok=True)
    assert found.per_class["[dog]"] == pytest.approx(EVALUATION.per_class["[dog]"], nan_ok=True)
    for name in ("detections", "boxes_per_class", "thresholds", "annotations_digest"):
        assert getattr(found, name) == getattr(EVALUATION, name)


@pytest.mark.parametrize("damage", ["metrics.json", "detections.json", "cut short"])
def test_loading_an_incomplete_evaluation_returns_none(tmp_path, damage):
    save_evaluation(EVALUATION, tmp_path)
    if damage == "cut short":
        (tmp_path / "detections.json").write_text('[{"image_id": 1')
    else:
        (tmp_path / damage).unlink()
    assert load_evaluation(tmp_path) is None


@pytest.mark.parametrize("terminal", [False, True])
def test_tables_show_all_metrics_and_classes(terminal, capsys):
    print_evaluation(EVALUATION, Console(width=120, force_terminal=terminal, color_system=None))
    text = capsys.readouterr().out
    words = text.split()
    assert all(name in words for name in METRICS)
    assert any(line.split() == ["cat", "12", *["0.250"] * 7, "0.410"] for line in text.splitlines())
    assert any(line.split() == ["[dog]", "0", *["-"] * 8] for line in text.splitlines())


def test_tables_show_metrics_with_any_name(tmp_path, capsys):
    metrics = {"AP": 0.5, "AP50": 0.6, "AP_mask": 0.4, "ARs_mask": 0.3, "recall of rows": 0.2}
    evaluation = Evaluation(metrics, {"cat": {"AP_mask": 0.25, "ARs_mask": 0.125}}, [], {"cat": 3})
    save_evaluation(evaluation, tmp_path)
    assert load_evaluation(tmp_path) == evaluation
    print_evaluation(evaluation, Console(width=120))
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    rows = [[cell.strip() for cell in line if cell.strip()] for line in lines if any(line)]
    assert rows == [
        list(metrics),
        ["0.500", "0.600", "0.400", "0.300", "0.200"],
        ["class", "boxes", "AP_mask", "threshold"],
        ["cat", "3", "0.250", "-"],
    ]


def test_headline_metrics_omit_per_size_metrics_except_the_best_one():
    names = [*METRICS, "AP_mask", "APs_mask", "AR1_mask"]
    assert headline_metrics(names, "AP") == ["AP", "AP50", "AP75", "AR100", "AP_mask"]
    assert headline_metrics(names, "APs_mask") == ["AP", "AP50", "AP75", "AR100", "AP_mask", "APs_mask"]


def test_control_characters_in_class_names_are_escaped(capsys):
    figures = dict.fromkeys(METRICS, 0.5)
    name = "a\n\x1b[31mb\u202ec"
    print_evaluation(Evaluation(figures, {name: figures}, [], {name: 3}), Console(width=160))
    assert r"a\n\x1b[31mb\u202ec" in capsys.readouterr().out.split()


def data_options(weights: Path, *overrides: str) -> DataConfig:
    return restore_detector(weights, overrides, None, use="an evaluation").config.data


class TestWeights:
    """Tests of `fcos.evaluate` with a weights file."""

    @pytest.fixture
    def weights(self, config, tmp_path):
        path = tmp_path / "weights" / "best.pt"
        path.parent.mkdir()
        save_checkpoint(path, model=tiny_model(config), config=config, class_names=NAMES, category_ids=(18, 3, 90))
        return path

    def test_training_data_is_the_default(self, weights):
        assert len(fcos.evaluate(weights, "device=cpu").detections) > 0

    def test_classes_of_other_data_are_matched_by_name(self, weights, folder):
        expected = fcos.evaluate(weights, "device=cpu")
        content = json.loads((folder / "val.json").read_text())
        new_id = {18: 7, 3: 8, 90: 5}
        content["categories"] = [{**c, "id": new_id[c["id"]]} for c in reversed(content["categories"])]
        content["annotations"] = [{**a, "category_id": new_id[a["category_id"]]} for a in content["annotations"]]
        (folder / "val.json").write_text(json.dumps(content))
        found = fcos.evaluate(weights, f"data={folder}", "device=cpu")
        assert found.metrics == pytest.approx(expected.metrics, nan_ok=True)
        assert [new_id[d["category_id"]] for d in expected.detections] == [d["category_id"] for d in found.detections]

    def test_classes_missing_from_the_weights_raise(self, weights, folder):
        content = json.loads((folder / "val.json").read_text())
        content["categories"][0]["name"] = "wolf"
        (folder / "val.json").write_text(json.dumps(content))
        with pytest.raises(DataError, match="wolf"):
            fcos.evaluate(weights, "device=cpu")

    def test_new_data_replaces_all_paths_of_the_training_data(self, weights, folder, config, tmp_path):
        places = {"val": {"annotations": folder / "gone.json", "images": folder}}
        config = config.model_copy(update={"data": type(config.data)(**{**config.data.model_dump(), **places})})
        save_checkpoint(weights, model=tiny_model(config), config=config, class_names=NAMES, category_ids=(18, 3, 90))
        assert len(fcos.evaluate(weights, f"data={folder}", "device=cpu").detections) > 0

    def test_missing_split_raises(self, weights, folder):
        with pytest.raises(DataError, match=r"has no split 'test'"):
            fcos.evaluate(weights, f"data={folder}", "device=cpu", split="test")

    def test_error_about_a_missing_split_names_the_existing_ones(self, weights, folder):
        with pytest.raises(DataError, match=r"no split 'test'; choose another one with --split \((train, )?val\)"):
            fcos.evaluate(weights, f"data={folder}", "device=cpu", split="test")

    def test_moved_data_of_a_training_with_val_fraction_needs_the_fraction(self, weights, folder, config):
        (folder / "val.json").rename(folder / "train.json")
        config = config.model_copy(update={"data": type(config.data)(root=folder, val_fraction=0.25)})
        save_checkpoint(weights, model=tiny_model(config), config=config, class_names=NAMES, category_ids=(18, 3, 90))
        message = r"no split 'val'; add data\.val_fraction=0\.25, .* or choose another one with --split \(train\)"
        with pytest.raises(DataError, match=message):
            fcos.evaluate(weights, f"data={folder}", "device=cpu")
        moved = fcos.evaluate(weights, f"data={folder}", "data.val_fraction=0.25", "device=cpu")
        assert moved.metrics == pytest.approx(fcos.evaluate(weights, "device=cpu").metrics, nan_ok=True)

    def test_new_fraction_and_new_row_meaning_keep_the_training_data(self, weights, folder, config):
        (folder / "val.json").rename(folder / "train.json")
        config = config.model_copy(update={"data": type(config.data)(root=folder, val_fraction=0.25)})
        save_checkpoint(weights, model=tiny_model(config), config=config, class_names=NAMES, category_ids=(18, 3, 90))
        options = data_options(weights, "data.val_fraction=0.5", "data.yolo_rows=boxes")
        assert (options.root, options.val_fraction, options.yolo_rows) == (folder, 0.5, "boxes")

    def test_new_data_replaces_the_meaning_of_yolo_rows(self, weights, folder, config):
        config = config.model_copy(update={"data": type(config.data)(root=folder, yolo_rows="polygons")})
        save_checkpoint(weights, model=tiny_model(config), config=config, class_names=NAMES, category_ids=(18, 3, 90))
        assert data_options(weights).yolo_rows == "polygons"
        assert data_options(weights, f"data={folder}").yolo_rows == "auto"

    def test_missing_path_of_the_training_is_explained(self, weights, config, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        config = config.model_copy(update={"data": type(config.data)(root="pets")})
        save_checkpoint(weights, model=tiny_model(config), config=config, class_names=NAMES, category_ids=(18, 3, 90))
        message = r"data: pets does not exist\. This is the path .* relative to the folder .* with data=DIR"
        with pytest.raises(DataError, match=message):
            fcos.evaluate(weights, "device=cpu")

    def test_invalid_split_name_raises(self, weights):
        with pytest.raises(ConfigError, match="expected train, val or test, found 'tset'"):
            fcos.evaluate(weights, split="tset")

    def test_config_sets_test_options_and_weights_set_the_model(self, weights, folder, tmp_path):
        path = tmp_path / "other.yaml"
        pairs = {"MODEL": {"BACKBONE": {"CONV_BODY": "R-50-FPN-RETINANET"}, "FCOS": {"NMS_TH": 0.4}}}
        path.write_text(json.dumps({**pairs, "INPUT": {"MIN_SIZE_TEST": 120, "MAX_SIZE_TEST": 200}}))
        detector = fcos.load(weights, "TEST.DETECTIONS_PER_IMG", "7", "data.test_max_side=150", config=path)
        assert isinstance(detector.model, FCOS)
        model, data = fcos_section(detector.config), detector.config.data
        assert (model.backbone.name, model.box_convention) == ("mobilenet_v2", "continuous")
        assert (model.nms_threshold, detector.model.postprocess.nms_threshold, model.max_detections) == (0.4, 0.4, 7)
        assert (data.test_short_side, data.test_max_side) == (120, 150)
        assert len(fcos.evaluate(weights, f"data={folder}", "data.workers=0", config=path).detections) > 0


def test_thresholds_are_shrunk_by_the_number_of_objects(annotations, config, monkeypatch):
    from fcos.evaluation import evaluate as loop

    loader = loop.build_test_loader(config, annotations, batch_size=2)
    order = [i for batch in loader for i in batch.indices.tolist()]
    model: Any = Oracle(annotations, order, "continuous", score=0.2)
    monkeypatch.setattr(loop, "build_test_loader", lambda *_, **__: loader)
    result = evaluate(model, annotations, config, device="cpu")
    best = 0.1  # halfway between the score of all detections and 0
    assert result.thresholds == {
        name: pytest.approx((boxes * best + 20 * 0.5) / (boxes + 20))
        for name, boxes in result.boxes_per_class.items()
        if boxes
    }
