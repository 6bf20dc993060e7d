"""Progress bar."""

import io
import sys

import pytest

from fcos.progress import progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch, **options: bool) -> str:
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


def test_progress_bar_is_hidden_without_terminal_or_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(io.StringIO(), monkeypatch) == ""
    assert shown(Terminal(), monkeypatch, shown=False) == ""
