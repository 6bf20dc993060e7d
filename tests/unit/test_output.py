"""Output that cannot be written, and environment variables of a notebook."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from detectors import MOBILENET
from processes import SECONDS, finish

from fcos.config import Config
from fcos.interop.checkpoints import load_checkpoint

PROGRAMS = Path(__file__).parents[1] / "helpers/programs"
COMMAND = [sys.executable, "-m", "fcos"]
TRAIN_PROGRAM = "import sys, fcos; print(fcos.train(sys.argv[1]))"


def run_in_shell(line: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a shell line with the arguments as "$@"."""
    words = ["bash", "-o", "pipefail", "-c", line, "bash", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, check=False)


@pytest.fixture
def config_file(configure: Callable[..., Config], tmp_path: Path) -> Path:
    file = tmp_path / "own.yaml"
    file.write_text(configure(model=MOBILENET).to_yaml())
    return file


@pytest.mark.parametrize("redirection", [">/dev/full", ">/dev/full 2>&1", "| head -1", ">&-", "<&- >&- 2>&-"])
def test_a_command_whose_output_cannot_be_written_succeeds(redirection: str) -> None:
    result = run_in_shell(f'"$@" config show fcos_r50_fpn_1x {redirection}', *COMMAND)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-"])
def test_an_error_that_cannot_be_printed_has_its_exit_code(redirection: str) -> None:
    assert run_in_shell(f'"$@" config show none {redirection}', *COMMAND).returncode == 2


@pytest.mark.parametrize(
    "words", [[*COMMAND, "train"], [sys.executable, "-c", TRAIN_PROGRAM]], ids=["command", "function"]
)
def test_training_continues_if_its_output_cannot_be_written(
    words: list[str], config_file: Path, tmp_path: Path
) -> None:
    redirection = "2>&1 | head -1" if words[1] == "-c" else ">/dev/full 2>&1"
    run_in_shell(f'"$@" {redirection}', *words, config_file)
    assert load_checkpoint(tmp_path / "run/weights/best.pt").iteration == 2
    assert (tmp_path / "run/report.html").is_file()


def test_training_continues_in_a_closed_terminal(config_file: Path, tmp_path: Path) -> None:
    terminal, side = os.openpty()
    process = subprocess.Popen(
        [*COMMAND, "train", str(config_file)], stdin=side, stdout=side, stderr=side, text=True, start_new_session=True
    )
    os.close(side)
    assert os.read(terminal, 1)  # it has started
    os.close(terminal)
    assert finish(process)[0] == 0
    assert load_checkpoint(tmp_path / "run/weights/best.pt").iteration == 2


@pytest.mark.parametrize(
    "backend",
    ["module://matplotlib_inline.backend_inline", pytest.param("no_such_backend", marks=pytest.mark.slow), "svg"],
)
def test_charts_and_names_are_drawn_whatever_backend_a_notebook_selects(backend: str) -> None:
    result = subprocess.run(
        [sys.executable, str(PROGRAMS / "draw_with_backend.py")],
        env={**os.environ, "MPLBACKEND": backend},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    if backend == "svg":  # valid everywhere
        assert result.stdout == "svg\n"
