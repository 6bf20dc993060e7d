"""Runs and predictions that were written into a data folder are not data."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from detectors import CATEGORY_IDS, NAMES, tiny_config, tiny_model
from tiny_data import SIZES, config, write_coco, write_images
from tool_exports import SINGLE

from fcos import Detector
from fcos.config import Config
from fcos.data import load_annotations
from fcos.errors import ConfigError
from fcos.inference.sources import predict_files
from fcos.training.loop import train


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    SINGLE["LabelImg YOLO"][1](tmp_path / "cells")
    return tmp_path / "cells"


def names(root: Path) -> list[str]:
    annotations = load_annotations(config(root), "train")
    assert annotations is not None
    return [annotations.file_name(i) for i in range(len(annotations))]


@pytest.mark.parametrize("folder", ["run", "results/first"])
def test_pictures_of_a_run_in_the_data_folder_are_not_data(
    folder: str, cells: Path, configure: Callable[..., Config], caplog: pytest.LogCaptureFixture
) -> None:
    data = {"root": cells, "val_fraction": 0.34, "short_side": [32], "max_side": 64, "workers": 0}
    tree = {**configure(iterations=1).to_dict(), "data": data, "output_dir": cells / folder}
    run = train(Config.model_validate(tree)).run
    assert list((run / "pictures").iterdir())
    with caplog.at_level(logging.INFO, logger="fcos"):
        assert names(cells) == list(SIZES)
    assert f"folders of runs and predictions are not read as data: {run}" in caplog.text


@pytest.mark.parametrize("write_json", [True, False])
def test_predicted_pictures_in_the_data_folder_are_not_data(write_json: bool, cells: Path) -> None:
    detector = Detector(tiny_model(tiny_config()), tiny_config(), class_names=NAMES, category_ids=CATEGORY_IDS)
    out = cells / "predictions"
    for _ in range(2):
        predict_files(
            detector,
            [str(cells)],
            out,
            save=("images", "json") if write_json else ("images",),
            report=lambda result: None,
        )
    assert len(list(out.glob("*.png"))) == len(SIZES)
    assert names(cells) == list(SIZES)


@pytest.mark.parametrize(
    ("file", "text"), [("config.yaml", "train: a"), ("predictions.json", '[{"image_id": 1}]'), ("metrics.csv", "")]
)
def test_other_folders_with_similar_files_are_data(file: str, text: str, cells: Path) -> None:
    write_images(cells / "more", {"z.png": SIZES["a.png"]})
    (cells / "more" / file).write_text(text)
    assert names(cells) == [*SIZES, "more/z.png"]


@pytest.mark.parametrize("folder", ["data", "data/images", "data/../data", "link", "link/images"])
def test_output_dir_with_images_of_the_data_is_rejected(
    folder: str, data: Path, tmp_path: Path, configure: Callable[..., Config]
) -> None:
    (tmp_path / "link").symlink_to(data)
    before = sorted(data.rglob("*"))
    given = {"annotations": data / "train.json", "images": data / "images"}
    for changes in ({}, {"root": None, "train": given}):
        tree: dict[str, Any] = configure().to_dict()
        tree |= {"data": {**tree["data"], **changes}, "output_dir": tmp_path / folder}
        with pytest.raises(ConfigError, match=r"output_dir: .* is a folder of the data set; .*output_dir=runs/"):
            train(Config.model_validate(tree))
    assert sorted(data.rglob("*")) == before


def test_output_dir_next_to_the_data_folder_is_accepted(tmp_path: Path, configure: Callable[..., Config]) -> None:
    write_coco(tmp_path / "datasets/cells")
    tree: dict[str, Any] = configure(iterations=1).to_dict()
    tree |= {"data": {**tree["data"], "root": tmp_path / "datasets/cells"}, "output_dir": tmp_path}
    assert train(Config.model_validate(tree)).run == tmp_path


def test_output_dir_may_contain_the_annotation_file(
    data: Path, tmp_path: Path, configure: Callable[..., Config]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (data / "train.json").rename(run / "train.json")
    tree: dict[str, Any] = configure(iterations=1).to_dict()
    paths = {"annotations": run / "train.json", "images": data / "images"}
    tree |= {"data": {**tree["data"], "root": None, "train": paths}, "output_dir": run}
    assert train(Config.model_validate(tree)).run == run
