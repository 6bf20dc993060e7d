"""`fcos val` writes results of other data, options or weights to folders of their own, which `fcos report` ignores."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from detectors import NAMES, tiny_config, tiny_model
from reports import made_run
from tiny_data import coco_tree, write_coco

from fcos.checkpoint import save_checkpoint
from fcos.cli import main
from fcos.evaluation.evaluate import Evaluation
from fcos.evaluation.results import default_folder, save_evaluation

RESULT = Evaluation({"AP": 0.5}, {}, [], {}, annotations_digest="a")
MOVED = replace(RESULT, changed_options={"data.root": "moved"})


@pytest.mark.parametrize(
    ("weights", "saved", "evaluation", "expected"),
    [
        ("run/weights/best.pt", {}, RESULT, "run/val"),
        ("run", {}, RESULT, "run/val"),
        ("run/weights/last.pt", {}, RESULT, "run/last_val"),
        ("mine.pt", {}, RESULT, "mine_val"),
        ("mine.pt", {}, MOVED, "mine_val"),
        ("mine.pt", {"mine_val": RESULT}, replace(RESULT, metrics={"AP": 0.9}), "mine_val"),
        ("mine.pt", {"mine_val": RESULT}, replace(RESULT, annotations_digest="b"), "mine_val-2"),
        ("run", {"run/val": RESULT}, replace(RESULT, metrics={"AP": 0.9}), "run/val"),
        ("run", {"run/val": RESULT}, replace(RESULT, annotations_digest="b"), "run/val-2"),
        ("run", {"run/val": RESULT}, MOVED, "run/val"),
        ("run", {"run/val": RESULT}, replace(MOVED, metrics={"AP": 0.9}), "run/val-2"),
        ("run", {"run/val": RESULT}, replace(MOVED, annotations_digest="b"), "run/val-2"),
        ("run", {}, MOVED, "run/val-2"),
        ("run", {}, replace(RESULT, changed_options={"eval.scales": "[600]"}), "run/val-2"),
        ("run", {"run/val-2": MOVED}, MOVED, "run/val-2"),
        ("run", {"run/val-2": RESULT}, MOVED, "run/val-3"),
        ("run", {"run/val-2": None}, MOVED, "run/val-3"),
    ],
)
def test_default_folder_never_replaces_another_evaluation(
    tmp_path: Path, weights: str, saved: dict[str, Evaluation | None], evaluation: Evaluation, expected: str
) -> None:
    (tmp_path / "run/weights").mkdir(parents=True)
    (tmp_path / "run/weights/best.pt").touch()
    for name, result in saved.items():
        (tmp_path / name).mkdir()
        if result is not None:
            save_evaluation(result, tmp_path / name)
    assert default_folder(tmp_path / weights, "val", evaluation) == tmp_path / expected


def test_default_folder_of_a_run_without_best_weights_is_that_of_the_last(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    assert default_folder(tmp_path, "test", RESULT) == tmp_path / "last_test"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    tree = coco_tree()
    tree["categories"].append({"id": 1, "name": NAMES[2]})
    write_coco(tmp_path / "data", tree, split="val")
    del tree["annotations"][0]
    write_coco(tmp_path / "other", tree, split="val")
    config = tiny_config()
    config = config.model_copy(update={"data": config.data.model_copy(update={"root": tmp_path / "data"})})
    path = tmp_path / "run/weights/best.pt"
    path.parent.mkdir(parents=True)
    save_checkpoint(path, model=tiny_model(config), config=config, class_names=NAMES, category_ids=(7, 6, 1))
    main_without_exit("val", tmp_path / "run", "device=cpu")
    return tmp_path / "run"


def main_without_exit(*words: object) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*map(str, words)])
    assert not stop.value.code


@pytest.mark.parametrize(
    "option", ["data={root}/other", "eval.scales=[48]", "data.short_side=64", "model.nms_threshold=0.3"]
)
def test_other_data_and_options_leave_the_results_of_the_run_alone(
    run: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    before = {path: path.read_bytes() for path in (run / "val").iterdir()}
    capsys.readouterr()
    main_without_exit("val", run, option.format(root=run.parent))
    out = capsys.readouterr().out
    assert f"written: {run}/val-2/metrics.json" in out
    assert f"{run}/val is reserved for results with the data and options of the run" in out
    assert {path: path.read_bytes() for path in (run / "val").iterdir()} == before


@pytest.mark.parametrize("option", ["data={root}/moved", "eval.batch_size=1", "data.workers=1", "model.num_classes=3"])
def test_moved_data_and_speed_options_update_the_results_of_the_run(
    run: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    shutil.copytree(run.parent / "data", run.parent / "moved")
    main_without_exit("val", run, option.format(root=run.parent))
    assert f"written: {run}/val/metrics.json" in capsys.readouterr().out.splitlines()[-1]


def test_weights_without_recorded_data_are_evaluated_on_any(tmp_path: Path) -> None:
    tree = coco_tree()
    tree["categories"].append({"id": 1, "name": NAMES[2]})
    write_coco(tmp_path / "data", tree, split="val")
    config = tiny_config()
    save_checkpoint(
        tmp_path / "mine.pt", model=tiny_model(config), config=config, class_names=NAMES, category_ids=(7, 6, 1)
    )
    main_without_exit("val", tmp_path / "mine.pt", f"data={tmp_path / 'data'}", "device=cpu")
    assert json.loads((tmp_path / "mine_val/metrics.json").read_text())["changed_options"] == {}


def test_report_ignores_an_evaluation_with_other_options(tmp_path: Path) -> None:
    made = made_run(tmp_path)
    save_evaluation(replace(made.evaluation, changed_options={"eval.scales": "[48]"}), made.folder / "val")
    page = made.page()
    assert "was made with other options than the training (eval.scales)" in page
    assert "Metrics on val" not in page
