"""The training guide explains every warning that a training gives, in the words of the warning."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [
    path
    for pattern in (
        "training/*.py",
        "data/*.py",
        "evaluation/evaluate.py",
        "api.py",
        "models/**/*.py",
        "distributed.py",
        "downloads.py",
    )
    for path in sorted((ROOT / "src/fcos").glob(pattern))
]
GUIDE = (ROOT / "docs/training.md").read_text(encoding="utf-8")
TABLE = GUIDE.split("## What the messages mean")[1]
PHRASES = [
    phrase
    for line in TABLE.splitlines()
    if line.startswith("| `")
    for phrase in re.findall(r"`(.*?)`", line.split("|")[1])
]


def text_of(node: ast.AST) -> str:
    """The constant text of a string or f-string; what is put in is "..."."""
    constants = (part.value for part in ast.walk(node) if isinstance(part, ast.Constant))
    return re.sub(r"%[sdg]", "...", "...".join(str(value) for value in constants))


def warnings_in(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "warning":
            yield text_of(node.args[0])
        elif isinstance(node, ast.JoinedStr) and text_of(node).startswith("warning: "):
            yield text_of(node)
        elif isinstance(node, ast.FunctionDef) and node.name == "start_warnings":
            yield from (text_of(part.value) for part in ast.walk(node) if isinstance(part, ast.Yield) and part.value)


WARNINGS = {
    text: path.name
    for path in SOURCES
    for text in warnings_in(path)
    if re.search("[a-z]{2} [a-z]", text.removeprefix("warning: "))
}


SAID = "\n".join(text_of(ast.parse(path.read_text(encoding="utf-8"))) for path in SOURCES)


def test_the_warnings_are_found() -> None:
    assert len(PHRASES) > 20
    assert {"diagnosis.py", "loop.py", "saving.py", "folder.py", "__init__.py", "downloads.py"} <= set(
        WARNINGS.values()
    )


@pytest.mark.parametrize("warning", WARNINGS)
def test_the_guide_explains_a_warning(warning: str) -> None:
    assert [phrase for phrase in PHRASES if phrase in warning] != []


@pytest.mark.parametrize("phrase", PHRASES)
def test_what_the_guide_explains_is_said(phrase: str) -> None:
    assert phrase in SAID
