"""`fcos export --precision int8`: layers with weights compute in int8, and the file is written if AP does not drop."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openvino
import pytest
from exports import OWN_CODE, picture, save_small_detector, small_detector
from tiny_data import coco_tree, write_coco

import fcos
from fcos import ConfigError, api_export, cli
from fcos.export.exported import ExportedModel
from fcos.export.quantization import MAX_IMAGES


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with weights and a data set with the splits train and val."""
    folder = tmp_path_factory.mktemp("int8")
    save_small_detector(folder / "best.pt")
    for split in ("train", "val"):
        write_coco(folder / "data", coco_tree(), split=split)
    return folder


def run(
    monkeypatch: pytest.MonkeyPatch, folder: Path, out: Path, *options: str | Path, before: float, after: float
) -> int:
    """Return the exit code of an export whose evaluations find the AP `before` and `after` the quantisation."""

    def evaluate(file: str | Path, *overrides: str, **_: Any) -> SimpleNamespace:
        assert f"data={folder / 'data'}" in overrides
        is_quantized = Path(file).suffix == ".xml"
        assert is_quantized == (OWN_CODE not in overrides)
        return SimpleNamespace(metrics={"AP": after if is_quantized else before})

    monkeypatch.setattr(api_export, "evaluate", evaluate)
    words = ["export", folder / "best.pt", out, OWN_CODE, "--format", "openvino", "--precision", "int8"]
    with pytest.raises(SystemExit) as stop:
        cli.main([str(word) for word in (*words, "--data", folder / "data", *options)])
    return int(stop.value.code or 0)


def kinds_before(value: Any) -> list[str]:
    """Return the types of the operations that lead from a constant or a quantised value to an input."""
    node = value.get_source_output().get_node()
    kinds = [node.get_type_name()]
    while kinds[-1] in ("Convert", "Multiply", "Subtract", "Reshape"):
        node = node.input(0).get_source_output().get_node()
        kinds.append(node.get_type_name())
    return kinds


def test_layers_compute_in_int8_and_everything_else_in_float(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "best.xml"
    assert run(monkeypatch, folder, out, before=0.8, after=0.7925) == 0
    printed, errors = capsys.readouterr()
    assert errors == ""
    assert "proof before the quantisation: 9 images" in printed
    assert printed.endswith("AP on val: 0.8000 in PyTorch, 0.7925 in the exported file\n")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["best.bin", "best.xml", "best.xml.proof.json"]

    operations = openvino.Core().read_model(out).get_ordered_ops()
    layers = [op for op in operations if op.get_type_name() == "Convolution"]
    assert len(layers) > 5
    for layer in layers:
        assert layer.input(0).get_source_output().get_node().get_type_name() == "FakeQuantize"
        kinds = kinds_before(layer.input(1))
        assert kinds[-1] == "Constant"
        assert "Convert" in kinds  # of int8 weights
    users = {
        user.get_node().get_type_name()
        for op in operations
        if op.get_type_name() == "FakeQuantize"
        for user in op.output(0).get_target_inputs()
    }
    assert users == {"Convolution"}  # so that no sigmoid, exponential, product or suppression gets int8

    figures = json.loads((tmp_path / "best.xml.proof.json").read_text())
    assert figures["precision"] == "int8"
    assert figures["low_threshold"]["accuracy"] == {"float32": 0.8, "int8": 0.7925, "max_drop": 0.01}
    assert figures["low_threshold"]["differences"]["boxes"] < 1e-2  # before the quantisation
    loaded, original = fcos.load(out), fcos.load(folder / "best.pt", OWN_CODE)
    assert isinstance(loaded.model, ExportedModel)
    assert loaded.model.metadata.precision == "int8"
    assert json.loads(loaded.model.runtime.metadata["proof"]) == figures["low_threshold"]
    best, expected = (float(detector.predict(picture(), threshold=0.0).scores[0]) for detector in (loaded, original))
    assert best != expected
    assert best == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize(
    ("before", "after", "options", "message"),
    [
        (
            0.5,
            0.47,
            ["--max-drop", "0.02"],
            "best.xml is not written: AP on val drops by 0.0300, from 0.5000 in float32 to 0.4700 in int8, and"
            " --max-drop is 0.02",
        ),
        (0.29, 0.29, [], "AP on val is 0.2900 in float32, and at least 0.3 is needed to judge a drop"),
        (float("nan"), 0.5, [], "AP on val is nan in float32"),
    ],
)
def test_file_is_not_written_if_accuracy_drops_or_is_unknown(  # noqa: PLR0917 (fixtures and parameters)
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    before: float,
    after: float,
    options: list[str],
    message: str,
) -> None:
    options = [*options, "--batch", "2", "--size", "64x64"]
    assert run(monkeypatch, folder, tmp_path / "best.xml", *options, before=before, after=after) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--format", "onnx", "--data", "data"], "--precision int8: only --format openvino supports it, not onnx"),
        (["--format", "torch_export", "--data", "data"], "only --format openvino supports it, not torch_export"),
        (["--format", "openvino"], "--precision int8: images are needed for the calibration, and annotations"),
        (["--format", "openvino", "--data", "data", "--raw"], "leave out --raw"),
        (["--format", "openvino", "--data", "data", "--nms", "none"], "leave out --nms none"),
        (["--format", "openvino", "--data", "data", "--nms", "matrix"], "leave out --nms matrix"),
        (["--format", "openvino", "--data", "data", "--max-drop", "2"], "--max-drop: expected a number from 0 to 1"),
        (
            ["--format", "openvino", "--data", "data", "--precision", "float16", "--max-drop", "0.1"],
            "--max-drop: no effect on --precision float16; remove it, or use --precision int8",
        ),
    ],
)
def test_wrong_options_are_explained(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["export", str(folder / "best.pt"), "--precision", "int8", *words])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("max_drop", [float("nan"), -0.1, 1.5])
def test_a_drop_out_of_range_is_rejected(folder: Path, tmp_path: Path, max_drop: float) -> None:
    with pytest.raises(ConfigError, match="--max-drop: expected a number from 0 to 1, found"):
        fcos.export_detector(
            folder / "best.pt",
            tmp_path / "best.xml",
            form="openvino",
            precision="int8",
            data=folder / "data",
            max_drop=max_drop,
        )


def test_other_mistakes_are_found_before_an_evaluation(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "best.xml"
    options = ["--triton", tmp_path / "models"]
    assert run(monkeypatch, folder, out, *options, before=0.0, after=0.0) == 2
    assert "--triton: " in capsys.readouterr().err


def test_detector_alone_cannot_be_quantized(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"in Python: fcos\.export_detector with data=DIR"):
        small_detector().export(tmp_path / "best.xml", form="openvino", precision="int8")


def test_missing_nncf_is_named_with_its_extra(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "nncf", None)
    with pytest.raises(ConfigError, match=r'nncf is not installed; type: pip install "fcos-vision\[int8\]"'):
        fcos.export_detector(
            folder / "best.pt", tmp_path / "best.xml", form="openvino", precision="int8", data=folder / "data"
        )


def test_calibration_uses_train_images_evenly_or_else_val_images(folder: Path, tmp_path: Path) -> None:
    assert [path.name for path in api_export._sample_paths(folder / "data", "train", limit=MAX_IMAGES)] == [
        "a.png",
        "b.png",
        "c.png",
    ]
    assert [path.name for path in api_export._sample_paths(folder / "data", "train", limit=2)] == ["a.png", "b.png"]
    only_val = write_coco(tmp_path / "data", coco_tree(), split="val")
    assert api_export._sample_paths(only_val, "train", limit=2) == []
