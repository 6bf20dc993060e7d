"""Config values as text: parsing YAML, suggesting names, formatting options and whole configs."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml
from pydantic import BaseModel

from ..errors import ConfigError
from .schema import Config


class _Loader(yaml.SafeLoader):
    """YAML 1.1 without its trap: `1e-4` is a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d+)([eE][-+]?\d+)$"),
    list("-+.0123456789"),
)


def parse_yaml(text: str, *, where: str) -> Any:
    """Parse YAML text safely; scientific notation is a float.

    Args:
        text: YAML.
        where: it comes from, for messages.

    Raises:
        ConfigError: the text is not YAML.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not valid YAML: {error}") from None


def suggest(word: str, known: Sequence[str]) -> str:
    """A remark on the known word that is close to a wrong one; empty when none is."""
    close = difflib.get_close_matches(word, known, n=1)
    return f", did you mean {close[0]!r}?" if close else ""


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
    a, b = ({key: _inline(value) for key, value in flatten(c.to_dict()).items()} for c in (first, second))
    keys = dict.fromkeys([*a, *b])
    return [(key, a.get(key, "-"), b.get(key, "-")) for key in keys if a.get(key) != b.get(key)]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The options of a tree by their dotted keys, each with `prefix` before it."""
    options: dict[str, Any] = {}
    for key, value in tree.items():
        options |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return options


def as_option(value: Any) -> str:
    """A value as one types it after `key=`: no spaces, `null` for none, whole numbers without a point."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(as_option, value))}]"
    whole = isinstance(value, float) and value.is_integer()
    return _inline([int(value) if whole else value])[1:-1]  # as within a list, where more text needs quotes
