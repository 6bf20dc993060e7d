"""Hooks of the docs site (mkdocs.yml): pages generated from the code and from files outside docs/."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

import fcos
from fcos.config import Config
from fcos.config.options import OneOf
from fcos.config.text import as_option
from fcos.inference.prediction import Prediction

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "README.zh-CN.md": "index.zh-CN.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
"""Pages of the site that are files in the root of the repository."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    pages = {page: (ROOT / name).read_text(encoding="utf-8") for name, page in PAGES.items()}
    for page, content in {**pages, "api.md": api_reference(), "config.md": config_reference()}.items():
        files.append(File.generated(config, page, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Point links at pages of the site; links to other files of the repository become their paths."""
    folder = ROOT if page.file.src_uri in PAGES.values() else ROOT / "docs"

    def rewrite(match: re.Match[str]) -> str:
        text, target, anchor = match.groups(default="")
        path = (folder / target).resolve().relative_to(ROOT).as_posix()
        if path in PAGES or path.startswith("docs/"):
            return f"[{text}]({PAGES.get(path, path.removeprefix('docs/'))}{anchor})"
        return f"{text} (`{path}`)"

    return re.sub(r"\[([^]]*)\]\((?!https?://|#)([^)#]+)(#[^)]*)?\)", rewrite, markdown)


def api_reference() -> str:
    """Build the page of the public names, from their docstrings."""
    lines = ["# Python API", "", "The functions, classes and exceptions can be imported from `fcos`.", ""]
    titles = {"Functions": [], "Classes": [], "Exceptions": []}
    for name in fcos.__all__:
        value = getattr(fcos, name)
        kind = "Functions"
        if isinstance(value, type):
            kind = "Exceptions" if issubclass(value, Exception) else "Classes"
        titles[kind].append(f"::: {value.__module__}.{name}")
    titles["Results of Detector.predict"] = [f"::: {Prediction.__module__}.{Prediction.__name__}"]
    for title, names in titles.items():
        lines += [f"## {title}", "", *(f"{name}\n" for name in names)]
    return "\n".join(lines)


def config_reference() -> str:
    """Build the page of all options, from the schema."""
    lines = [
        "# Config",
        "",
        "Options are `key=value` pairs on the command line, or keys of a YAML file.",
        "`fcos config show RECIPE` prints all options of a recipe.",
        "",
    ]
    for key, section in sections(Config):
        lines += [f"## {key or 'Top level'}", "", " ".join((section.__doc__ or "").split("\n\n")[0].split()), ""]
        rows = list(options(section))
        if rows:
            lines += ["| option | type | default | description |", "|---|---|---|---|", *rows, ""]
    return "\n".join(lines)


def sections(section: type[BaseModel], key: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield the dotted key and class of each section; variants are named by their class."""
    yield key, section
    for name, field in section.model_fields.items():
        for variant in children(field):
            child = f"{key}.{name}" if key else name
            named = len(children(field)) > 1 or any(isinstance(mark, OneOf) for mark in field.metadata)
            yield from sections(variant, child) if not named else variants(variant, child)


def variants(section: type[BaseModel], key: str) -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield a section that is selected by `name`, and its children."""
    for child, kind in sections(section, key):
        yield (f"{key} ({section.__name__.removesuffix('Config')})" if child == key else child), kind


def children(field: Any) -> list[type[BaseModel]]:
    """Return the section classes that a field can hold."""
    marks = [mark for mark in field.metadata if isinstance(mark, OneOf)]
    if marks:
        return list(marks[0].sections)
    kind = field.annotation
    return [kind] if isinstance(kind, type) and issubclass(kind, BaseModel) else []


def options(section: type[BaseModel]) -> Iterator[str]:
    """Yield a table row for each option of a section."""
    for name, field in section.model_fields.items():
        if children(field):
            continue
        default = field.get_default(call_default_factory=True)
        shown = "" if default is PydanticUndefined else f"`{as_option(default)}`"
        description = " ".join((field.description or "").split()).replace("|", r"\|")
        yield f"| `{name}` | {type_name(field.annotation)} | {shown} | {description} |"


def type_name(kind: Any) -> str:
    """Format a type annotation for users."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return type_name(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (Union, UnionType):
        return " or ".join(map(type_name, arguments))
    if origin is not None:
        return f"{origin.__name__}[{', '.join(map(type_name, arguments))}]"
    return {type(None): "null", Any: "any", Path: "path"}.get(kind) or kind.__name__
