"""Arguments of wrong types in Python calls give a FCOSError that names the argument."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fcos
from fcos.errors import FCOSError

WRONG_SOURCES: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "bytes": lambda: b"a.pt",
    "file": lambda: io.BytesIO(b"a"),
    "generator": lambda: (name for name in ["a.pt"]),
    "list": lambda: ["a.pt"],
    "number": lambda: 3,
    "mapping": lambda: {"train": {}},
    "NUL": lambda: "a\0b.pt",
    "long name": lambda: "a" * 300 + ".pt",
}
WRONG_OPTIONS: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "bytes": lambda: b"train.lr=1",
    "number": lambda: 3,
    "list": lambda: ["train.lr=1"],
    "generator": lambda: (name for name in ["train.lr=1"]),
    "mapping": lambda: {"train.lr": 1},
    "path": lambda: Path("train.lr=1"),
}


@pytest.mark.parametrize("make", WRONG_SOURCES.values(), ids=WRONG_SOURCES)
@pytest.mark.parametrize("function", ["load", "train", "evaluate", "report", "convert", "convert to", "config"])
def test_source_of_a_wrong_type_is_rejected(function: str, make: Callable[[], Any], tmp_path: Path) -> None:
    call: dict[str, Callable[[Any], Any]] = {
        "load": fcos.load,
        "train": fcos.train,
        "evaluate": fcos.evaluate,
        "report": fcos.report,
        "convert": lambda source: fcos.convert(source, tmp_path / "new.pt"),
        "convert to": lambda source: fcos.convert(tmp_path / "a.pt", source),
        "config": lambda source: fcos.evaluate("a.pt", config=source) if source is not None else fcos.load(None),  # pyright: ignore[reportArgumentType]
    }
    with pytest.raises(FCOSError) as caught:
        call[function](make())
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("make", WRONG_OPTIONS.values(), ids=WRONG_OPTIONS)
@pytest.mark.parametrize("function", ["load", "train", "train config", "evaluate", "report", "convert", "load_config"])
def test_option_of_a_wrong_type_is_rejected(function: str, make: Callable[[], Any], tmp_path: Path) -> None:
    call: dict[str, Callable[[Any], Any]] = {
        "load": lambda option: fcos.load("fcos_mnv2_small", option),
        "train": lambda option: fcos.train("fcos_mnv2_small", option),
        "train config": lambda option: fcos.train(fcos.Config(), option),
        "evaluate": lambda option: fcos.evaluate(tmp_path / "a.pt", option),
        "report": lambda option: fcos.report(tmp_path, option),
        "convert": lambda option: fcos.convert(tmp_path / "a.pt", tmp_path / "b.pt", option),
        "load_config": lambda option: fcos.load_config(None, [option]),
    }
    with pytest.raises(FCOSError, match="options: expected key=value strings such as 'data=cells', found "):
        call[function](make())


@pytest.mark.parametrize("overrides", ["train.lr=1", b"train.lr=1", None, 3, {"train.lr": 1}])
def test_options_of_load_config_must_be_a_list(overrides: Any) -> None:
    with pytest.raises(FCOSError, match="options: expected a list of key=value strings, found "):
        fcos.load_config(None, overrides)


def test_options_of_load_config_may_come_from_a_generator() -> None:
    assert fcos.load_config(None, (text for text in ["train.lr=1"])).train.lr == 1  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("device", [3, ["cpu"], "x" * 10**6, "cpu\0", "cuda:-1", "meta", object()])
def test_device_of_a_wrong_type_is_rejected(device: Any) -> None:
    with pytest.raises(FCOSError, match="device: ") as caught:
        fcos.load("fcos_mnv2_small", "model.backbone.weights=null", device=device)
    assert len(str(caught.value)) < 400
