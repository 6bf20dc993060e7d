"""Statements of the documentation about the code."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_notice_names_every_library_with_its_licence() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [needs for extra, needs in project["optional-dependencies"].items() if extra != "dev"]
    needed = {re.split(r"[>=]", need)[0] for needs in (project["dependencies"], *extras) for need in needs}
    used = (ROOT / "NOTICE").read_text(encoding="utf-8").split("Used at run time")[1].split("Sample data")[0]
    named = set(re.findall(r"([\w-]+)\s+\(", used))
    assert {name for name in needed if not name.startswith("fcos-vision")} <= named


PAGES = [*ROOT.glob("*.md"), *(ROOT / "benchmarks").glob("*.md"), *(ROOT / "docs").glob("*.md")]


@pytest.mark.parametrize("page", [page.relative_to(ROOT).as_posix() for page in PAGES])
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?://)([^)#]+)", text)
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []
