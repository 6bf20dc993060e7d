"""Config values as text: suggestions for misspelled names, formatting of options and configs."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from .yaml_text import dump_inline


def suggest(word: str, known_words: Sequence[str]) -> str:
    """Return a "did you mean" hint with the known word closest to a wrong one; empty if none is close."""
    close = difflib.get_close_matches(word, known_words, n=1)
    return f", did you mean {close[0]!r}?" if close else ""


def annotated_yaml(config: BaseModel) -> str:
    """Return the resolved config as YAML with the description of each option as a comment above it."""
    return "".join(line + "\n" for line in _annotated_lines(config, config.model_dump(mode="json"), indent=""))


def _annotated_lines(section: BaseModel, values: dict[str, Any], *, indent: str) -> Iterator[str]:
    for key, field in type(section).model_fields.items():
        for text in (field.description or "").splitlines():
            yield f"{indent}# {text}"
        child = getattr(section, key)
        if isinstance(child, BaseModel):
            yield f"{indent}{key}:"
            yield from _annotated_lines(child, values[key], indent=indent + "  ")
        else:
            yield f"{indent}{key}: {dump_inline(values[key])}"


def changes(first: BaseModel, second: BaseModel) -> list[tuple[str, str, str]]:
    """Return (dotted key, first value, second value) of each option that differs; `-` if a config lacks it."""
    trees = (config.model_dump(mode="json") for config in (first, second))
    a, b = ({key: dump_inline(value) for key, value in flatten(tree).items()} for tree in trees)
    keys = dict.fromkeys([*a, *b])
    return [(key, a.get(key, "-"), b.get(key, "-")) for key in keys if a.get(key) != b.get(key)]


def nest(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options by dotted key as nested dictionaries; `flatten` is the inverse."""
    tree: dict[str, Any] = {}
    for key, value in options.items():
        *parents, name = key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested sections to options by dotted key, with `prefix` in front of each key."""
    options: dict[str, Any] = {}
    for key, value in tree.items():
        options |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return options


def as_option(value: Any) -> str:
    """Format a value for use after `key=`: no spaces, `null` for None, whole numbers without a decimal point."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(as_option, value))}]"
    is_whole = isinstance(value, float) and value.is_integer()
    return dump_inline([int(value) if is_whole else value])[1:-1]  # as a list item, which needs quotes in more cases
