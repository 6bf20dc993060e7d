"""Progress bar."""

import io
import logging
import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tiny_data import SIZES, config, write_coco

from fcos.data import load_annotations
from fcos.progress import progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch, **options: Any) -> str:
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    with progress_bar("drawing", **options) as update:
        update(2, None)
        update(3, 4)
    return stream.getvalue()


def test_progress_bar_is_shown_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(Terminal(), monkeypatch)
    assert "drawing" in text
    assert "75%" in text


def test_progress_bar_shows_byte_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "3/4 bytes" in shown(Terminal(), monkeypatch, in_bytes=True)


def test_progress_bar_shows_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    assert re.search(r"\d\.\d images/s", shown(Terminal(), monkeypatch, unit="images"))


def test_progress_bar_is_hidden_without_terminal_or_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(io.StringIO(), monkeypatch) == ""
    assert shown(Terminal(), monkeypatch, shown=False) == ""


@pytest.mark.parametrize("step", [2, 10, 30, 100])
def test_progress_is_logged_every_30_seconds_without_terminal(
    step: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seconds = iter(range(0, 100_000, step))
    monkeypatch.setattr(time, "monotonic", lambda: next(seconds))
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with caplog.at_level(logging.INFO, logger="fcos"), progress_bar("drawing", shown=False) as update:
        for done in range(1, 301):
            update(done, 1300)
    assert len(caplog.messages) == 300 * step // max(step, 30)
    assert caplog.messages[0] == f"drawing: {max(30 // step, 1)} of 1,300"


def test_rate_is_logged_without_terminal(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    seconds = iter([0, 40])
    monkeypatch.setattr(time, "monotonic", lambda: next(seconds))
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with caplog.at_level(logging.INFO, logger="fcos"), progress_bar("predicting", unit="images") as update:
        update(100, None)
    assert caplog.messages == ["predicting: 100, 2.5 images/s"]


def test_check_of_few_images_is_logged_if_it_takes_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seconds = iter(range(0, 100_000, 60))
    data = config(write_coco(tmp_path))
    monkeypatch.setattr(time, "monotonic", lambda: next(seconds))
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with caplog.at_level(logging.INFO, logger="fcos"):
        load_annotations(data, "train")
    lines = [text for text in caplog.messages if text.startswith("checking images")]
    assert lines == [f"checking images: {i} of {len(SIZES)}" for i in range(1, len(SIZES) + 1)]
