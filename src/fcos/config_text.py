"""Configs as text for people: every option with its explanation, and what differs between two."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml
from pydantic import BaseModel

from .config import Config


def annotated_yaml(config: Config) -> str:
    """The resolved config as YAML with the explanation of every option above it."""
    return "".join(line + "\n" for line in _lines(config, config.to_dict(), indent=""))


def _lines(section: BaseModel, values: dict[str, Any], *, indent: str) -> Iterator[str]:
    for key, field in type(section).model_fields.items():
        for text in (field.description or "").splitlines():
            yield f"{indent}# {text}"
        child = getattr(section, key)
        if isinstance(child, BaseModel):
            yield f"{indent}{key}:"
            yield from _lines(child, values[key], indent=indent + "  ")
        else:
            yield f"{indent}{key}: {_inline(values[key])}"


def _inline(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=1_000_000)
    return text.removesuffix("\n").removesuffix("\n...")


def changes(first: Config, second: Config) -> list[tuple[str, str, str]]:
    """(dotted key, first value, second value) of every option that differs; `-` where one does not have it."""
    a, b = _flat(first.to_dict()), _flat(second.to_dict())
    keys = dict.fromkeys([*a, *b])
    return [(key, a.get(key, "-"), b.get(key, "-")) for key in keys if a.get(key) != b.get(key)]


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = _inline(value)
    return flat
