"""`fcos export`, the commands that accept exported files, and the examples of docs/deploy.md."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest
from exports import OWN_CODE, picture, save_small_detector
from hooks import before_forward
from tiny_data import coco_tree, write_coco

import fcos
from fcos import cli
from fcos.models import DetectionModel

EXAMPLES = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[2] / "docs/deploy.md").read_text(), re.DOTALL)


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """Return (exit code, stdout, stderr) of a command."""
    with pytest.raises(SystemExit) as stop:
        cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Weights of a detector of cats and dogs."""
    return save_small_detector(tmp_path / "best.pt")


def test_termination_leaves_no_files(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("the command does not handle the signal")

    written = []

    def stop_in_the_proof(_: object) -> None:
        if files := list(weights.parent.glob(".export-*/best.onnx")):
            written.extend(files)
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, fail)
    try:
        with before_forward(DetectionModel, stop_in_the_proof):
            code, _, _ = run(capsys, "export", weights, OWN_CODE, "--size", "64x64", "--batch", "1")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (code, len(written)) == (130, 1)
    assert list(weights.parent.iterdir()) == [weights]


def test_exported_file_is_written_evaluated_and_used_by_all_commands(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_coco(tmp_path / "data", coco_tree(), split="val")
    code, out, err = run(capsys, "export", weights, OWN_CODE, "--data", data)
    assert (code, err) == (0, "")
    assert "unmatched" in out
    file = weights.with_suffix(".onnx")
    assert f"written: {file}, {file}.proof.json" in out
    assert fcos.load(file).licence == "CC-BY-4.0"
    scores = re.search(r"AP on val: (\S+) in PyTorch, (\S+) in the exported file", out)
    assert scores is not None
    assert scores[1] == scores[2]

    code, out, _ = run(capsys, "val", file, f"data={data}", "--out", tmp_path / "metrics")
    assert code == 0
    assert json.loads((tmp_path / "metrics/metrics.json").read_text())["metrics"]["AP"] == pytest.approx(
        float(scores[1]), abs=1e-4
    )

    picture(90, 70).save(tmp_path / "photo.jpg")
    code, out, _ = run(capsys, "predict", file, tmp_path / "photo.jpg", "--out", tmp_path / "found", "--json")
    assert code == 0
    detections = json.loads((tmp_path / "found/predictions.json").read_text())[0]["detections"]
    assert detections

    monkeypatch.chdir(tmp_path)
    exec(compile(EXAMPLES[0], "deploy.md", "exec"), {})  # ONNX Runtime without this project
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(detections)
    assert lines[0].startswith(f"{detections[0]['name']} {detections[0]['score']:.3f}".rstrip("0"))


def test_openvino_example_runs(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = run(capsys, "export", weights, tmp_path / "best.xml", OWN_CODE, "--format", "openvino")
    assert (code, err) == (0, "")
    assert f"written: {tmp_path / 'best.xml'}" in out
    monkeypatch.chdir(tmp_path)
    namespace = {}
    exec(compile(EXAMPLES[1], "deploy.md", "exec"), namespace)
    assert namespace["boxes"].shape == (1, 30, 4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--format", "tflite"], "--format: expected one of onnx, openvino, torch_export, aoti, found 'tflite'"),
        (["--size", "640"], "--size: expected HEIGHTxWIDTH in pixels, such as 608x800, found '640'"),
        (["--size", "40x64", OWN_CODE], "--size: expected multiples of data.size_divisor=16, found 40x64"),
        (["--size", "99968x99968", OWN_CODE], "--size: expected at most 178956970 pixels, found 99968x99968"),
        (["--batch", "0"], "--batch: expected an integer of at least 1, found '0'"),
        (["--batch", "2000", "--data", "nowhere", OWN_CODE], "--batch: expected at most 1024 images, found 2000"),
        (["/proc/a.onnx"], "/proc/a.onnx: cannot be written: "),
        (["--nms", "no"], "--nms: expected one of graph, matrix, none, found 'no'"),
        (["--opset", "19"], "--opset: expected an integer from 20 to 25, found 19"),
        (["--opset", "latest"], "--opset: expected an integer, found 'latest'"),
        (["--opset", "21", "--format", "openvino"], "--opset: no effect on --format openvino; remove it"),
        (["out=y.onnx"], "to name the output file, type y.onnx, or ./out=y.onnx if this is its name"),
        (["--raw", "--nms", "none"], "--nms none: no effect with --raw"),
        (["a.onnx", "b.onnx"], "b.onnx: expected one output file and KEY=VALUE options, found two"),
        (["a.onnx", "--format", "openvino"], "files of the format openvino end in .xml"),
        (["--precision", "int4"], "--precision: expected one of float32, bfloat16, float16, int8, found 'int4'"),
        (["--precision", "bfloat16", OWN_CODE], "--precision bfloat16: the runtime of --format onnx does not compute"),
        (["--batch", "2", "--triton", "models", OWN_CODE], "--triton: dynamic batching needs a file for any number"),
        (["--verbose"], "--verbose: no such option"),
    ],
)
def test_wrong_arguments_are_explained(
    weights: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    code, _, err = run(capsys, "export", weights, *words)
    assert code == 2
    assert message in err
    assert [file.name for file in weights.parent.iterdir()] == ["best.pt"]
