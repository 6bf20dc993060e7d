"""What the pages promise about the code."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_map_names_every_file() -> None:
    files = [path.relative_to(ROOT / "src/fcos").as_posix() for path in (ROOT / "src/fcos").rglob("*.py")]
    named = set(re.findall(r"`([\w/]+\.py)`", README))  # in full, or within the table of their folder
    assert [f for f in files if f not in named and f.split("/", 1)[-1] not in named and "__init__" not in f] == []


PAGES = [*ROOT.glob("*.md"), *(ROOT / "benchmarks").glob("*.md"), *(ROOT / "docs").glob("*.md")]


@pytest.mark.parametrize("page", [page.relative_to(ROOT).as_posix() for page in PAGES])
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?://)([^)#]+)", text)
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []
