"""`fcos report`: numbers on the page, and runs of every kind."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectors import MOBILENET
from evaluations import f1_of_classes
from hotcoco import COCO, COCOeval
from matplotlib.figure import Figure
from reports import ROWS, Made, made_run, section, table

import fcos
from fcos.cli import main
from fcos.config import Config
from fcos.data import Annotations, load_annotations
from fcos.errors import ConfigError
from fcos.evaluation.evaluate import Evaluation
from fcos.evaluation.results import save_evaluation
from fcos.html_page import WIDTH
from fcos.reporting.analysis import analyse
from fcos.reporting.detection import _height, _precision_curves
from fcos.reporting.history import _curves
from fcos.reporting.record import Splits
from fcos.training import loop


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Made]:
    return partial(made_run, tmp_path)


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> tuple[Made, str]:
    """Return a complete run and its page, which tests must not change."""
    made = made_run(tmp_path_factory.mktemp("usual"))
    return made, made.page()


def written(value: float) -> str:
    return "\N{EN DASH}" if np.isnan(value) else f"{value:.3f}"


def test_metrics_table_matches_metrics_json(usual: tuple[Made, str]) -> None:
    made, page = usual
    saved = json.loads((made.folder / "val/metrics.json").read_text())
    rows = table(section(page, "Metrics on val"))
    expected = {"all classes": saved["metrics"], **saved["per_class"]}
    assert rows.keys() == expected.keys()
    for name, figures in expected.items():
        assert rows[name][1:] == [written(np.nan if v is None else v) for v in figures.values()]


def test_report_supports_custom_metric_names(tmp_path: Path) -> None:
    made = made_run(tmp_path)
    config = made.config.model_copy(update={"train": made.config.train.model_copy(update={"best_metric": "AP_mask"})})
    (made.folder / "config.yaml").write_text(config.to_yaml())
    metrics = {"AP_mask": 0.375, "AP50_mask": 0.625, "APs_mask": math.nan}
    per_class = {name: {"AP_mask": 0.25} for name in made.evaluation.boxes_per_class}
    evaluation = dataclasses.replace(made.evaluation, metrics=metrics, per_class=per_class)
    made.save_best(metrics=metrics)
    save_evaluation(evaluation, made.folder / "val")
    rows = [
        "iteration,minutes,split,images_per_second,loss,AP_mask,unassigned_share",
        "10,0.5,train,9,3.0,,0.125",
        "10,0.5,val,,,0.375,",
    ]
    (made.folder / "metrics.csv").write_text("\n".join(rows) + "\n")
    page = made.page()
    assert table(section(page, "Metrics on val"))["all classes"][1:] == ["0.375", "0.625", "\N{EN DASH}"]
    assert table(section(page, "Metrics on val"))["class 0"][1:] == ["0.250", "\N{EN DASH}", "\N{EN DASH}"]
    tiles = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", page))
    assert (tiles["AP_mask"], tiles["AP50_mask"], tiles["Unassigned boxes"]) == ("0.375", "0.625", "12.5%")
    assert not {"AP", "AP50", "APs_mask"} & tiles.keys()
    assert "Validation metrics" in section(page, "Training")


def test_score_threshold_table_matches_pycocotools(usual: tuple[Made, str], capsys: pytest.CaptureFixture[str]) -> None:
    made, page = usual
    rows = table(section(page, "Score thresholds"))
    for name, threshold in made.evaluation.thresholds.items():
        shown, f1, _, _, found, _, missed = rows[name]
        assert shown == f"{threshold:.3f}"
        assert f1 == f"{f1_of_classes(made.task, threshold, capsys)[name]:.3f}"
        assert int(found) + int(missed) == made.evaluation.boxes_per_class[name]


def test_error_types_match_hotcoco(usual: tuple[Made, str]) -> None:
    made, page = usual
    truth = COCO(made.task[0])
    run = COCOeval(truth, truth.load_res(made.task[1]), "bbox")
    run.evaluate()
    expected = run.tide_errors()
    rows = table(section(page, "Error types"))
    assert [row[:2] for row in rows.values()] == [
        [f"+{expected['delta_ap'][kind]:.3f}", str(expected["counts"][kind])]
        for kind in ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss")
    ]


def test_confusion_matrix_sums_match_objects_and_shown_detections(usual: tuple[Made, str]) -> None:
    """The category ids are in descending order, so a matrix sorted by id would be reversed."""
    made, page = usual
    names = list(made.evaluation.boxes_per_class)
    rows = table(section(page, "Confusion matrix"))
    assert list(rows) == [*names, "background"]
    matrix = np.array([[int(cell or 0) for cell in row] for row in rows.values()])
    assert matrix[:-1].sum(axis=1).tolist() == [
        sum(a["category_id"] == c["id"] and not a["iscrowd"] for a in made.task[0]["annotations"])
        for c in made.task[0]["categories"]
    ]
    val = load_annotations(made.config.data, "val")
    assert val is not None
    analysis = analyse(val, made.evaluation, default_threshold=0.5)
    shown = np.bincount(analysis.labels[analysis.shown], minlength=len(names))
    assert matrix[:, :-1].sum(axis=0).tolist() == shown.tolist()
    assert np.trace(matrix) > 0


def test_image_captions_match_objects_and_are_sorted_by_f1(usual: tuple[Made, str]) -> None:
    made, page = usual
    part = section(page, "Best and worst images")
    captions = re.findall(r"<figcaption>(\S+): (\d+) correct, (\d+) wrong, (\d+) missed", part)
    assert len(captions) == len({name for name, *_ in captions}) == part.count("<img")
    val = load_annotations(made.config.data, "val")
    assert val is not None
    ids = {val.file_name(i): int(val.image_ids[i]) for i in range(len(val))}
    for name, found, _, missed in captions:
        objects = [a for a in made.task[0]["annotations"] if a["image_id"] == ids[name] and not a["iscrowd"]]
        assert int(found) + int(missed) == len(objects)
    f1 = [2 * int(t) / (2 * int(t) + int(w) + int(m)) for _, t, w, m in captions]
    half = len(f1) // 2
    assert f1[:half] == sorted(f1[:half])
    assert f1[half:] == sorted(f1[half:], reverse=True)
    assert max(f1[:half]) <= min(f1[half:])


def test_summary_matches_metrics_csv(usual: tuple[Made, str]) -> None:
    made, page = usual
    tiles = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", page))
    assert tiles["AP"] == f"{made.evaluation.metrics['AP']:.3f}"
    assert (tiles["Iterations"], tiles["Duration"], tiles["Images"], tiles["Classes"]) == ("20", "90 s", "12", "4")
    assert (tiles["Training speed"], tiles["Waiting for data"]) == ("25.0", "30.0%")
    assert "increase data.workers" in page


def test_report_is_deterministic(usual: tuple[Made, str]) -> None:
    made, page = usual
    assert made.page() == page


def test_class_names_are_html_escaped(make: Callable[..., Made]) -> None:
    page = make(rename="<script>alert(1)</script> $x$").page()
    assert "<script" not in page
    assert page.count("&lt;script&gt;") > 5
    assert not re.search(r"https?://", re.sub("<pre>.*?</pre>", "", page, flags=re.DOTALL))


@pytest.mark.parametrize("log", [False, True])
def test_curve_of_a_single_row_is_a_marker_at_its_iteration(log: bool) -> None:
    axes = Figure(layout="constrained").subplots()
    _curves(axes, {"": (np.array([6.0]), np.array([2.0]))}, log=log)
    low, high = axes.get_xlim()
    assert axes.lines[0].get_marker() == "o"
    assert [tick for tick in axes.get_xticks() if low <= tick <= high] == [6]


def test_legend_of_many_classes_does_not_cover_the_curves() -> None:
    figure = Figure(figsize=(WIDTH / 72, _height(7) / 72), layout="constrained")
    axes = figure.subplots()
    _precision_curves(axes, {f"a name of 18 letters 0.{i}5": np.linspace(1, 0, 101) for i in range(7)}, [])
    figure.draw_without_rendering()
    (legend,) = figure.legends
    box, chart = legend.get_window_extent(), axes.get_window_extent()
    assert box.y1 < chart.y0
    assert 0 <= box.x0 < box.x1 <= figure.bbox.width
    assert chart.height > 0.5 * figure.bbox.height


def test_right_to_left_class_name_precedes_its_value(make: Callable[..., Made]) -> None:
    part = section(make(rename="שלום").page(), "Precision and recall")
    assert len(re.findall(r"שלום\u200e \d\.\d\d", part)) == 2


class TestUnusualRuns:
    """The page names missing parts and shows the rest."""

    def test_missing_val_split_is_reported(self, make: Callable[..., Made]) -> None:
        made = make()
        (made.data / "val.json").unlink()
        made.save_best(metrics={}, thresholds={})
        page = made.page()
        assert "The data has no val split: no validation was run" in page
        assert "Score thresholds" not in page
        assert "Learning rate" in page

    def test_run_interrupted_before_the_first_evaluation_is_reported(self, make: Callable[..., Made]) -> None:
        made = make()
        (made.folder / "weights/best.pt").unlink()
        (made.folder / "metrics.csv").write_text("\n".join(ROWS[:2]) + "\n20,1.0,tra")
        page = made.page()
        assert "has not been evaluated so far" in page
        assert "<dt>Iterations</dt><dd>10</dd>" in page
        assert "Validation metrics" not in page

    def test_missing_training_rows_are_reported(self, make: Callable[..., Made]) -> None:
        made = make()
        (made.folder / "metrics.csv").unlink()
        page = made.page()
        assert "no training rows yet" in page
        assert "Metrics on val" in page

    def test_confusion_matrix_is_limited_to_20_classes(self, make: Callable[..., Made]) -> None:
        page = make(classes=80).page()
        assert len(table(section(page, "Metrics on val"))) == 81
        assert "Of 80 classes, only the 20 with the most errors are shown." in page
        assert len(table(section(page, "Confusion matrix"))) == 21

    def test_run_without_detections_shows_default_thresholds(self, make: Callable[..., Made]) -> None:
        page = make(detections=False).page()
        assert all(row[0] == "0.500 (default)" for row in table(section(page, "Score thresholds")).values())

    def test_run_without_objects_has_undefined_metrics(self, make: Callable[..., Made]) -> None:
        page = make(objects=False).page()
        assert table(section(page, "Metrics on val"))["all classes"][1] == "\N{EN DASH}"
        assert "Score thresholds" not in page

    @pytest.mark.usefixtures("without_charts")
    def test_missing_image_is_reported_and_left_out(self, make: Callable[..., Made]) -> None:
        made = make()
        before = made.page()
        name = re.findall(r"<figcaption>(\S+): \d+ correct", before)[0]
        val = load_annotations(made.config.data, "val")
        (made.data / name).unlink()
        page = made.page(data=Splits(val, val))
        assert page.count("<img") == before.count("<img") - 1
        assert f"Cannot show {name}" in page

    def test_missing_data_is_reported(self, make: Callable[..., Made]) -> None:
        made = make()
        (made.data / "val.json").unlink()
        (made.data / "train.json").unlink()
        page = made.page()
        assert "The data of the run (train and val) can no longer be read" in page
        assert f"<dt>AP</dt><dd>{made.evaluation.metrics['AP']:.3f}" in page

    def test_weights_without_thresholds_are_reported(self, make: Callable[..., Made]) -> None:
        made = make()
        made.save_best(thresholds={})
        page = made.page()
        assert "best.pt contains different thresholds or none" in page
        assert table(section(page, "Score thresholds")).keys() == made.evaluation.boxes_per_class.keys()

    @pytest.mark.usefixtures("without_charts")
    @pytest.mark.parametrize("missing", [True, False], ids=["missing", "from other weights"])
    def test_missing_or_stale_evaluation_is_rerun(self, make: Callable[..., Made], missing: bool) -> None:
        made = make()
        if missing:
            (made.folder / "val/detections.json").unlink()
        else:
            save_evaluation(
                dataclasses.replace(
                    made.evaluation, metrics={**made.evaluation.metrics, "AP": 0.9}, detections=[], thresholds={}
                ),
                made.folder / "val",
            )
        assert "Score thresholds" not in made.page()
        asked, before = [], (made.folder / "val/metrics.json").read_bytes()

        def evaluate(weights: Path, _: Annotations) -> Evaluation:
            asked.append(weights)
            return made.evaluation

        assert "best.pt was evaluated for this report" in made.page(evaluate=evaluate)
        assert asked == [made.folder / "weights/best.pt"]
        assert ("best.pt was evaluated for this report" in made.page(evaluate=evaluate)) == (not missing)
        assert missing or (made.folder / "val/metrics.json").read_bytes() == before  # a user's file is kept


def test_folder_without_a_run_is_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["report", str(tmp_path)])
    assert stop.value.code == 2
    assert "not a run folder, it has no config.yaml" in capsys.readouterr().err
    (tmp_path / "run/weights").mkdir(parents=True)
    (tmp_path / "run/weights/best.pt").touch()
    (tmp_path / "run/config.yaml").touch()
    for path in (tmp_path / "run/weights/best.pt", tmp_path / "run/weights"):
        with pytest.raises(ConfigError, match=rf"{path}: this is in the run folder .*: fcos report {tmp_path}/run$"):
            fcos.report(path)
    with pytest.raises(ConfigError, match="not a run folder"):
        fcos.report(tmp_path / "nowhere")


def test_report_command_reproduces_the_report_of_training(
    configure: Callable[..., Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fcos.train(configure(eval_every=1)).run
    first = (run / "report.html").read_bytes()
    assert b"Metrics on val" in first
    assert json.loads((run / "environment.json").read_text())["device"] == "cpu"
    (run / "report.html").unlink()
    with pytest.raises(SystemExit) as stop:
        main(["report", str(run)])
    assert not stop.value.code
    assert f"written: {run / 'report.html'}" in capsys.readouterr().out
    assert (run / "report.html").read_bytes() == first


def test_report_reevaluates_best_pt_with_the_given_options(configure: Callable[..., Config], tmp_path: Path) -> None:
    run = loop.train(configure(model=MOBILENET, eval_every=1)).run
    before = json.loads((run / "val/metrics.json").read_text())
    shutil.rmtree(run / "val")
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    page = fcos.report(run, f"data={tmp_path / 'elsewhere'}", "device=cpu", "eval.batch_size=1").read_text()
    assert "val/ contains no complete evaluation; best.pt was evaluated for this report." in page
    assert json.loads((run / "val/metrics.json").read_text()) == before


def test_failing_report_does_not_fail_training(
    configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any, **__: Any) -> Path:
        raise RuntimeError("no chart today")

    monkeypatch.setattr("fcos.reporting.report.write_report", fail)
    result = fcos.train(configure())
    assert (result.run / "weights/best.pt").is_file()
    assert "warning: no report of the run: RuntimeError: no chart today" in caplog.messages
