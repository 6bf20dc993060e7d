"""`fcos report` of runs whose data or files have changed: the page shows what is left and how to get the rest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from reports import Made, made_run, section, table

import fcos
from fcos.cli import main
from fcos.data import load_annotations
from fcos.errors import ConfigError, DataError
from fcos.evaluation.coco_metrics import coco_metrics
from fcos.evaluation.evaluate import Evaluation


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return made_run(tmp_path)


def rename_a_class(made: Made) -> None:
    for split in ("train", "val"):
        path = made.data / f"{split}.json"
        tree = json.loads(path.read_text())
        tree["categories"][0]["name"] = "another"
        path.write_text(json.dumps(tree))


@pytest.mark.usefixtures("without_charts")
class TestData:
    def test_moved_data_can_be_given_as_an_option(self, made: Made, capsys: pytest.CaptureFixture[str]) -> None:
        page = made.page()
        made.data.rename(made.data.with_name("elsewhere"))
        assert "If it has moved: fcos report RUN data=DIR" in made.page()
        with pytest.raises(SystemExit) as stop:
            main(["report", str(made.folder), f"data={made.data.with_name('elsewhere')}"])
        assert not stop.value.code
        assert "written: " in capsys.readouterr().out
        assert (made.folder / "report.html").read_text() == page  # including the config

    def test_val_split_alone_can_be_given_as_an_option(self, made: Made) -> None:
        new = made.data.rename(made.data.with_name("elsewhere"))
        (new / "train.json").unlink()
        val = [f"data.val.annotations={new / 'val.json'}", f"data.val.images={new}"]
        with pytest.raises(DataError, match=r"(?s)no such data folder.*of the run has moved: fcos report RUN data=DIR"):
            made.page(overrides=val)
        assert "Score thresholds" in made.page(overrides=["data.root=null", *val])

    @pytest.mark.parametrize("option", ["data.on_error=skip", "data.format=coco"])
    def test_missing_data_is_reported_if_no_option_names_it(self, made: Made, option: str) -> None:
        shutil.rmtree(made.data)
        assert "can no longer be read. If it has moved: fcos report" in made.page(overrides=[option])

    def test_broken_train_split_is_reported_if_only_val_is_given(self, made: Made) -> None:
        (made.data / "train.json").write_text("{")
        page = made.page(overrides=[f"data.val.annotations={made.data / 'val.json'}"])
        assert "The data of the run (train) can no longer be read" in page
        assert "Score thresholds" in page

    def test_missing_data_keeps_the_saved_metrics(self, made: Made) -> None:
        before = made.page()
        shutil.rmtree(made.data)
        page = made.page()
        assert page.count("can no longer be read") == 1
        assert "(train and val)" in page
        title = "Metrics on val"
        assert table(section(page, title)) == table(section(before, title))
        assert "Score thresholds" not in page

    def test_broken_train_split_keeps_all_val_sections(self, made: Made) -> None:
        before = made.page()
        (made.data / "train.json").write_text("{")
        page = made.page()
        assert "The data of the run (train) can no longer be read" in page
        for title in ("Score thresholds", "Confusion matrix", "Error types", "Best and worst images"):
            assert section(page, title) == section(before, title) != ""

    def test_missing_val_split_keeps_the_saved_metrics(self, made: Made) -> None:
        (made.data / "val.json").unlink()
        page = made.page()
        assert "The data no longer has a val split." in page
        assert "Metrics on val" in page

    def test_renamed_class_is_reported(self, made: Made) -> None:
        rename_a_class(made)
        page = made.page()
        assert "another" in section(page, "Summary")
        assert "Metrics on val" in page


def change_boxes(made: Made, change: Callable[[list[dict[str, Any]]], object]) -> None:
    path = made.data / "val.json"
    tree = json.loads(path.read_text())
    change(tree["annotations"])
    path.write_text(json.dumps(tree))


def remove_every_second(boxes: list[dict[str, Any]]) -> None:
    del boxes[::2]


def change_a_class(boxes: list[dict[str, Any]]) -> None:
    classes = {box["category_id"] for box in boxes}
    boxes[0]["category_id"] = min(classes - {boxes[0]["category_id"]})


def evaluation_now(made: Made) -> Evaluation:
    """Evaluate the saved detections with the current annotations."""
    val = load_annotations(made.config.data, "val")
    assert val is not None
    figures = coco_metrics(val.to_coco(), made.evaluation.detections)
    counts = {name: int(((val.labels == k) & ~val.crowd).sum()) for k, name in enumerate(val.class_names)}
    return replace(
        made.evaluation,
        metrics=figures.overall,
        per_class=figures.per_class,
        boxes_per_class=counts,
        annotations_digest=val.digest(),
    )


class TestChangedLabels:
    """The saved metrics belong to the previous labels, so the page does not mix them with current ones."""

    @pytest.mark.usefixtures("without_charts")
    @pytest.mark.parametrize("change", [remove_every_second, change_a_class])
    def test_changed_labels_trigger_a_new_evaluation(
        self, made: Made, change: Callable[[list[dict[str, Any]]], object]
    ) -> None:
        change_boxes(made, change)
        page = made.page(evaluate=lambda *_: evaluation_now(made))
        assert "The evaluation in val/ belongs to other weights or data; best.pt was evaluated for this report" in page
        figures, classes = (table(section(page, t)) for t in ("Metrics on val", "Boxes per class"))
        assert {name: row[0] for name, row in figures.items() if name in classes} == {
            name: row[2] for name, row in classes.items()
        }

    @pytest.mark.usefixtures("without_charts")
    def test_changed_labels_hide_metrics_without_a_new_evaluation(self, made: Made) -> None:
        change_boxes(made, remove_every_second)
        page = made.page()
        told = "The evaluation in val/ belongs to other weights or data; run `fcos report RUN` to evaluate best.pt."
        assert told in page
        assert "Metrics on val" not in page

    def test_val_split_without_labels_has_no_analysis(self, made: Made) -> None:
        """Warnings are errors in tests, including numpy's about the mean of an empty array."""
        change_boxes(made, list.clear)
        page = made.page(evaluate=lambda *_: evaluation_now(made))
        assert table(section(page, "Metrics on val"))["all classes"][:2] == ["0", "\N{EN DASH}"]
        assert "Score thresholds" not in page


@pytest.mark.usefixtures("without_charts")
class TestMistakes:
    """A command-line option either has an effect or is rejected before anything is written."""

    def error_of(self, made: Made, capsys: pytest.CaptureFixture[str], *words: object) -> str:
        (made.folder / "report.html").write_text("an earlier report")
        with pytest.raises(SystemExit) as stop:
            main(["report", str(made.folder), *map(str, words)])
        assert stop.value.code == 2
        assert (made.folder / "report.html").read_text() == "an earlier report"
        out, err = capsys.readouterr()
        assert out == ""
        return err

    def test_missing_data_folder_is_rejected(
        self, made: Made, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        err = self.error_of(made, capsys, f"data={tmp_path / 'nowhere'}")
        assert "nowhere: no such data folder" in err
        assert "If the data of the run has moved: fcos report RUN data=DIR" in err

    @pytest.mark.parametrize("split", ["train", "val"])
    def test_missing_annotation_file_is_rejected(
        self, made: Made, capsys: pytest.CaptureFixture[str], tmp_path: Path, split: str
    ) -> None:
        assert "gone.json" in self.error_of(made, capsys, f"data.{split}.annotations={tmp_path / 'gone.json'}")

    def test_data_with_other_classes_is_rejected(self, made: Made, capsys: pytest.CaptureFixture[str]) -> None:
        rename_a_class(made)
        assert "another" in self.error_of(made, capsys, f"data={made.data}")

    def test_data_without_val_split_is_rejected(self, made: Made, capsys: pytest.CaptureFixture[str]) -> None:
        (made.data / "val.json").unlink()
        assert "has no val split" in self.error_of(made, capsys, f"data={made.data}")

    def test_options_without_effect_are_rejected(self, made: Made, capsys: pytest.CaptureFixture[str]) -> None:
        err = self.error_of(made, capsys, "train.lr=3", "device=cpu", "data.test_short_side=32")
        assert "train.lr, data.test_short_side: no effect on a report; fcos report accepts data=DIR" in err
        taken = " ".join(err.split()).partition("location of the data, and ")[2].split(", ")
        assert "device" in taken
        assert all(f"`{name}" in str(fcos.report.__doc__) for name in taken)

    def test_unknown_option_suggests_the_closest_option(self, made: Made, capsys: pytest.CaptureFixture[str]) -> None:
        assert "did you mean 'data'?" in self.error_of(made, capsys, "dat=x")

    def test_report_remarks_are_logged_as_warnings(self, made: Made, caplog: pytest.LogCaptureFixture) -> None:
        shutil.rmtree(made.data)
        made.page()
        (record,) = caplog.records
        assert record.levelname == "WARNING"
        assert record.message.startswith("report: The data of the run (train and val) can no longer be read")

    def test_backbone_name_option_is_accepted(self, made: Made) -> None:
        fcos.report(made.folder, f"model.backbone.name={made.config.model.backbone.name}")


@pytest.mark.usefixtures("without_charts")
class TestEvaluations:
    @pytest.fixture
    def unevaluated(self, made: Made) -> Made:
        shutil.rmtree(made.folder / "val")
        return made

    def test_failing_evaluation_keeps_the_other_sections(self, unevaluated: Made) -> None:
        def fail(*_: object) -> Evaluation:
            raise DataError("no luck today")

        page = unevaluated.page(evaluate=fail)
        assert "val/ contains no complete evaluation, and the evaluation of best.pt failed: no luck today" in page
        assert "Learning rate" in page

    def test_missing_evaluation_and_data_are_reported(self, unevaluated: Made) -> None:
        shutil.rmtree(unevaluated.data)
        assert (
            "val/ contains no complete evaluation, and best.pt cannot be evaluated without the val split."
            in unevaluated.page()
        )

    def test_run_without_evaluations_and_val_split_has_no_remark(self, unevaluated: Made) -> None:
        unevaluated.save_best(metrics={})
        (unevaluated.data / "val.json").unlink()
        assert "val/" not in section(unevaluated.page(), "Summary")

    @pytest.mark.parametrize(("by", "held"), [(1e-6, True), (0.01, False)])
    def test_thresholds_may_differ_from_best_pt_by_rounding(self, unevaluated: Made, by: float, held: bool) -> None:
        other = {name: threshold + by for name, threshold in unevaluated.evaluation.thresholds.items()}
        page = unevaluated.page(evaluate=lambda *_: replace(unevaluated.evaluation, thresholds=other))
        assert (" and are stored in best.pt" in page) == held
        assert ("best.pt contains different thresholds or none" in page) == (not held)


@pytest.mark.usefixtures("without_charts")
class TestEvaluationsOfAnEarlierVersion:
    """Their metrics.json lacks a digest of the data."""

    @pytest.fixture
    def earlier(self, made: Made) -> Made:
        path = made.folder / "val/metrics.json"
        content = json.loads(path.read_text())
        del content["annotations_digest"]
        path.write_text(json.dumps(content))
        return made

    def test_old_evaluation_is_shown_if_the_data_is_missing(self, earlier: Made) -> None:
        shutil.rmtree(earlier.data)
        page = earlier.page()
        figures = table(section(page, "Metrics on val"))
        assert figures["all classes"][1] == f"{earlier.evaluation.metrics['AP']:.3f}"
        assert "val/" not in section(page, "Summary")

    def test_old_evaluation_is_rerun_without_overwriting_it(self, earlier: Made) -> None:
        before = (earlier.folder / "val/metrics.json").read_bytes()
        page = earlier.page(evaluate=lambda *_: earlier.evaluation)
        told = "does not record which data it used; best.pt was evaluated for this report, val/ is unchanged"
        assert f"The evaluation in val/ {told}" in page
        assert "Score thresholds" in page
        assert (earlier.folder / "val/metrics.json").read_bytes() == before

    def test_old_evaluation_suggests_the_report_command(self, earlier: Made) -> None:
        told = "The evaluation in val/ does not record which data it used; run `fcos report RUN` to evaluate best.pt."
        assert told in earlier.page()

    def test_old_evaluation_of_other_weights_is_not_shown(self, earlier: Made) -> None:
        earlier.save_best(metrics={**earlier.evaluation.metrics, "AP": 0.9})
        shutil.rmtree(earlier.data)
        page = earlier.page()
        told = "belongs to other weights or data, and best.pt cannot be evaluated without the val split."
        assert f"The evaluation in val/ {told}" in page
        assert "Metrics on val" not in page


class TestFiles:
    @pytest.mark.parametrize(
        ("content", "iterations", "duration"),
        [
            (b"iteration,split,loss\n1,train,3\n2,train,2\n", "2", "\N{EN DASH}"),
            (b"step,split,loss\n1,train,3\n", "0", "\N{EN DASH}"),
            (b"", "0", "\N{EN DASH}"),
            (b"iteration,split,loss,minutes\n1,train,3,1\n2,train,3e-,1\n", "2", "60 s"),
            (b"iteration,split,loss,minutes\n1,train,3,1\n\x00\x00\xff\xfe", "1", "60 s"),
        ],
        ids=["no minutes", "no iterations", "empty", "truncated number", "binary"],
    )
    def test_malformed_metrics_csv_is_read_as_far_as_possible(
        self, made: Made, content: bytes, iterations: str, duration: str
    ) -> None:
        (made.folder / "metrics.csv").write_bytes(content)
        page = made.page()
        assert f"<dt>Iterations</dt><dd>{iterations}</dd>" in page
        assert f"<dt>Duration</dt><dd>{duration}</dd>" in page

    def test_zero_gradient_norms_are_plotted_without_warnings(self, made: Made) -> None:
        """Warnings are errors in tests, including the one about a logarithmic axis without positive values."""
        (made.folder / "metrics.csv").write_text("iteration,split,loss,grad_norm\n1,train,3,0\n2,train,3,0\n")
        assert "Gradient norm" in made.page()

    @pytest.mark.usefixtures("without_charts")
    @pytest.mark.parametrize("content", ["[]", '{"metrics": []}', "null"])
    def test_malformed_metrics_json_counts_as_no_evaluation(self, made: Made, content: str) -> None:
        (made.folder / "val/metrics.json").write_text(content)
        assert "val/ contains no complete evaluation; run `fcos report RUN` to evaluate best.pt." in made.page()

    @pytest.mark.usefixtures("without_charts")
    @pytest.mark.parametrize(("content", "known"), [("[1]", False), ('{"torch": 2}', True)])
    def test_malformed_environment_json_counts_as_missing(self, made: Made, content: str, known: bool) -> None:
        (made.folder / "environment.json").write_text(content)
        assert ("The run has no environment.json" in made.page()) != known

    def test_unknown_config_option_mentions_another_version(self, made: Made) -> None:
        path = made.folder / "config.yaml"
        path.write_text(path.read_text() + "gone_option: 3\n")
        with pytest.raises(
            ConfigError, match=r"(?s)gone_option: no such option.*another version of fcos created the run"
        ):
            made.page()

    def test_folder_at_the_report_path_is_rejected(self, made: Made) -> None:
        (made.folder / "report.html").mkdir()
        with pytest.raises(ConfigError, match=r"report\.html: expected a file, found a folder; move or rename it"):
            made.page()


def test_precision_recall_chart_limits_the_number_of_curves(tmp_path: Path) -> None:
    """The page draws the best curve, the worst and a hundred others."""
    page = made_run(tmp_path, classes=300).page()
    curves = section(page, "Precision and recall").count('style="fill: none; stroke: #8a93a0')
    assert 0 < curves <= 2 * 100
    assert "up to 100 others are grey" in page
