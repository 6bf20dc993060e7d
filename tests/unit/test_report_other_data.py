"""`fcos report RUN data=OTHER` never writes figures of other data to the page of a run."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from reports import Made, made_run

import fcos
from fcos.errors import DataError
from fcos.evaluation.evaluate import Evaluation

pytestmark = pytest.mark.usefixtures("without_charts")


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return made_run(tmp_path)


def copy_without_boxes(made: Made, *splits: str) -> Path:
    """Copy the data, without a third of the boxes of the given splits."""
    other = made.data.with_name("other")
    shutil.copytree(made.data, other)
    for split in splits:
        tree = json.loads((other / f"{split}.json").read_text())
        del tree["annotations"][::3]
        (other / f"{split}.json").write_text(json.dumps(tree))
    return other


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def reject(made: Made, *overrides: str, evaluation: Evaluation | None = None) -> str:
    """Check that a report is rejected and changes no file of the run; return the message."""
    before = files(made.folder)
    with pytest.raises(DataError) as caught:
        made.page(overrides=overrides, evaluate=None if evaluation is None else lambda *_: evaluation)
    assert files(made.folder) == before
    return str(caught.value)


@pytest.mark.parametrize("has_report", [True, False])
@pytest.mark.parametrize("splits", [("val",), ("train", "val"), ("train",)])
def test_other_data_is_rejected(made: Made, splits: tuple[str, ...], has_report: bool) -> None:
    if has_report:
        made.page()
    other = copy_without_boxes(made, *splits)
    message = reject(made, f"data={other}", evaluation=made.evaluation)
    assert f"{splits[0]} in {other} is not the {splits[0]} split of the run" in message
    assert f"fcos val {made.folder / 'weights/best.pt'} data=DIR" in message


def test_other_data_is_rejected_where_the_data_of_the_run_is_gone(made: Made) -> None:
    other = copy_without_boxes(made, "val")
    shutil.rmtree(made.data)
    assert "val in" in reject(made, f"data={other}", evaluation=made.evaluation)


def test_other_data_is_rejected_by_its_metrics_without_a_saved_evaluation(made: Made) -> None:
    other = copy_without_boxes(made, "val")
    shutil.rmtree(made.data)
    shutil.rmtree(made.folder / "val")
    metrics = {**made.evaluation.metrics, "AP": made.evaluation.metrics["AP"] / 2}
    assert "val in" in reject(made, f"data={other}", evaluation=replace(made.evaluation, metrics=metrics))


def test_an_evaluation_of_other_data_in_the_run_folder_does_not_admit_this_data(made: Made) -> None:
    """Earlier versions of `fcos val RUN/weights/best.pt data=OTHER` wrote to RUN/val."""
    other = copy_without_boxes(made, "val")
    shutil.rmtree(made.data)
    path = made.folder / "val/metrics.json"
    saved = json.loads(path.read_text())
    saved["metrics"]["AP"] /= 2
    path.write_text(json.dumps(saved))
    metrics = {**made.evaluation.metrics, "AP": made.evaluation.metrics["AP"] / 2}
    assert "val in" in reject(made, f"data={other}", evaluation=replace(made.evaluation, metrics=metrics))


def test_val_of_a_run_that_had_none_is_rejected(made: Made) -> None:
    made.save_best(metrics={})
    shutil.rmtree(made.folder / "val")
    other = copy_without_boxes(made, "val")
    (made.data / "val.json").unlink()
    assert "val in" in reject(made, f"data={other}", evaluation=made.evaluation)


def test_a_copy_of_the_data_is_accepted(made: Made) -> None:
    page = made.page()
    assert fcos.report(made.folder, f"data={copy_without_boxes(made)}").read_text(encoding="utf-8") == page
