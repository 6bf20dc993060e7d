"""Examples of the README, word for word except for the length of the training and for weights that need a download."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fcos.cli import app

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
SHORT = [
    "train.iterations=1",
    "train.batch_size=2",
    "model.backbone.weights=null",
    "model.backbone.frozen_stages=0",
    "data.short_side=96",
    "data.workers=0",
    "device=cpu",
]


@pytest.fixture
def folder(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the working directory of a user with a data set and a photograph."""
    for name in ("DIR", "cells"):
        (tmp_path / name).symlink_to(data)
    for name in ("PHOTO.jpg", "photo.jpg"):
        shutil.copy(data / "images/0.png", tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_readme_commands_for_custom_data_run(folder: Path) -> None:
    section = README.split("## Your own data in three lines")[1].split("```")[1]
    lines = [line.partition("#")[0].strip() for line in section.splitlines() if line.startswith("fcos ")]
    assert [line.split()[1] for line in lines] == ["train", "predict"]
    for line in lines:
        words = shlex.split(line)[1:]
        if words[0] == "train":
            words = [word for word in words if not word.startswith("train.max_minutes")] + SHORT
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, result.output
    assert (folder / "pictures").is_dir()
    assert [path.name for path in (folder / "pictures").glob("[!.]*")] == ["PHOTO.jpg"]


def test_readme_python_example_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert code
    options = ", ".join(f'"{option}"' for option in SHORT)
    short, replaced = re.subn(r'"train\.max_minutes=\d+"', options, code[1])
    assert replaced == 1
    exec(compile(short, "README.md", "exec"), {})
    ap50 = float(capsys.readouterr().out.splitlines()[-1])  # the last line: one step is too short for detections
    assert 0 <= ap50 < 0.5
    assert (folder / "detections.jpg").is_file()


def test_commands_of_the_doctor_page_run(folder: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/doctor.md").read_text(encoding="utf-8")
    lines = [line for block in page.split("```")[1::2] for line in block.splitlines() if line.startswith("fcos ")]
    assert [line.split()[1] for line in lines] == ["doctor", "doctor", "doctor", "train"]
    for line in lines:
        words = shlex.split(line)[1:]
        result = CliRunner().invoke(app, words + SHORT if words[0] == "train" else words)
        assert result.exit_code == 0, result.output
    assert (folder / "checkup/doctor.html").is_file()
