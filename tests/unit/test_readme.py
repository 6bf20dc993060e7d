"""Statements of the documentation about the code."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_notice_lists_every_runtime_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [needs for extra, needs in project["optional-dependencies"].items() if extra != "dev"]
    needed = {re.split(r"[\[>=]", need)[0] for needs in (project["dependencies"], *extras) for need in needs}
    used = (ROOT / "NOTICE").read_text(encoding="utf-8").split("Used at run time")[1].split("Sample data")[0]
    named = set(re.findall(r"([\w-]+)\s+\(", used))
    assert {name for name in needed if not name.startswith("fcos-vision")} <= named


PAGES = [*ROOT.glob("*.md"), *(ROOT / "benchmarks").glob("*.md"), *(ROOT / "docs").glob("*.md")]


@pytest.mark.parametrize("page", [page.relative_to(ROOT).as_posix() for page in PAGES])
def test_relative_links_point_to_existing_files(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?://)([^)#]+)", text)
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []


def structure(page: str) -> dict[str, list[str]]:
    """Return what a translation of a page keeps: heading levels, code, number of table rows, linked files."""
    text = (ROOT / page).read_text(encoding="utf-8")
    prose = re.sub(r"```.*?```", "", text, flags=re.S)
    links = re.findall(r"\]\(([^)]+)\)", prose)
    return {
        "headings": re.findall(r"^(#+) ", prose, flags=re.M),
        "blocks": re.findall(r"```.*?```", text, flags=re.S),
        "code": sorted(re.findall(r"`[^`\n]+`", prose)),
        "rows": re.findall(r"^(\|).*\|$", prose, flags=re.M),
        "links": sorted(link.replace(".zh-CN", "") for link in links),
    }


@pytest.mark.parametrize("page", ["README", "docs/tour"])
def test_chinese_page_matches_the_structure_of_the_english_page(page: str) -> None:
    english, chinese = structure(f"{page}.md"), structure(f"{page}.zh-CN.md")
    assert chinese == english
