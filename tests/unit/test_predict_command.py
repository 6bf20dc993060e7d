"""Options and messages of the command `fcos predict`."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest
from detectors import CATEGORY_IDS, NAMES
from hooks import at_call, before_forward
from PIL import Image

from fcos import Detector, cli
from fcos.checkpoint import save_checkpoint
from fcos.models import DetectionModel


@pytest.fixture
def weights(detector: Detector, tmp_path: Path) -> Path:
    model, names, ids = detector.model, NAMES, CATEGORY_IDS
    save_checkpoint(tmp_path / "w.pt", model=model, config=detector.config, class_names=names, category_ids=ids)
    return tmp_path / "w.pt"


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main([str(word) for word in words])
    return int(stop.value.code or 0)


def test_a_video_is_one_line(weights: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert run("predict", weights, clip, "--out", out, "device=cpu", "--threshold", "0") == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{clip}: 5 frames: ")
    assert line.endswith(f" -> {out / 'clip.webm'}")


def test_a_video_that_is_listed_twice_is_read_twice(
    weights: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "list.txt").write_text(f"{clip}\n{clip}\n")
    out = tmp_path / "out"
    with open(tmp_path / "list.txt") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        words = ["predict", weights, "-", "--out", out, "device=cpu", "--threshold", "0", "--track"]
        assert run(*words, "--save", "images,json") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition(" -> ")[2] for line in lines] == [str(out / "clip.webm"), str(out / "clip_2.webm")]
    rows = json.loads((out / "predictions.json").read_text())
    is_tracked = [any(detection["track_id"] for detection in row["detections"]) for row in rows]
    assert is_tracked == [False, True, True, True, True] * 2  # an object gets its number in its second frame


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_termination_stops_as_ctrl_c(weights: Path, tmp_path: Path, name: str) -> None:
    number = getattr(signal, name)
    for i in range(6):  # of different shapes, so that none are detected in one batch
        Image.new("RGB", (120, 80 + 40 * i)).save(tmp_path / f"{i}.png")

    def fail(*_: object) -> None:
        raise AssertionError("the command does not handle the signal")

    out, before = tmp_path / "out", signal.signal(number, fail)
    try:
        with before_forward(DetectionModel, at_call(5, lambda _: os.kill(os.getpid(), number))):
            code = run("predict", weights, tmp_path / "*.png", "--out", out, "device=cpu", "--save", "json,csv")
        assert signal.getsignal(number) is fail
    finally:
        signal.signal(number, before)
    assert code == 130
    assert {path.name for path in out.iterdir()} == {".fcos-predictions", "predictions.json", "predictions.csv"}
    assert 1 <= len(json.loads((out / "predictions.json").read_text())) <= 5


def test_thresholds_of_single_classes(weights: Path, tmp_path: Path) -> None:
    Image.radial_gradient("L").convert("RGB").resize((120, 80)).save(tmp_path / "a.png")
    words = ["predict", weights, tmp_path / "a.png", "--out", tmp_path / "out", "device=cpu", "--save", "json"]

    def names(*thresholds: str) -> set[str]:
        more = [word for text in thresholds for word in ("--threshold", text)]
        assert run(*words, *more) == 0
        (row,) = json.loads((tmp_path / "out/predictions.json").read_text())
        return {detection["name"] for detection in row["detections"]}

    everything = names("0")
    assert len(everything) > 1
    first = min(everything)
    assert names("1", f"{first}=0") == {first}
    assert names("0", f"{first}=1") == everything - {first}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--threshold", "2"], "--threshold: expected a number from 0 to 1, found '2'"),
        (["--threshold", "cat=x"], "--threshold: expected a number from 0 to 1, found 'x'"),
        (["--threshold", "cot=0.5"], "--threshold: no class 'cot', did you mean 'cat'?"),
        (["--save", "jsn"], "--save: expected one of images, "),
        (["--save", "none,json"], "--save: expected none, or other outputs, found none,json"),
        (["--watch"], "--watch: expected a folder"),
        (["--overlap", "0.3"], "--overlap 0.3: no effect without tiles"),
        (["--tile", "8"], "--tile: expected an integer of at least 32, found '8'"),
        (["--tile", "x"], "--tile: expected an integer of at least 32, found 'x'"),
        (["--tile", "64", "--overlap", "1"], "--overlap: expected a number from 0 to 0.9, found '1'"),
    ],
)
def test_wrong_arguments_are_explained(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    assert run("predict", weights, tmp_path / "a.png", "--out", tmp_path / "out", *words, "device=cpu") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
