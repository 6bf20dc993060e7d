"""Config values as text: YAML parsing, suggestions for misspelled names, formatting of options and configs."""

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
    """Loader for YAML 1.1 that also reads `1e-4` as a number, not as a string."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d+)([eE][-+]?\d+)$"),
    list("-+.0123456789"),
)


def parse_yaml(text: str, *, where: str) -> Any:
    """Parse YAML text safely. Numbers in scientific notation are floats.

    Args:
        text: YAML text.
        where: source of the text, for messages.

    Raises:
        ConfigError: the text is not YAML.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not valid YAML: {error}") from None


def suggest(word: str, known_words: Sequence[str]) -> str:
    """Return a "did you mean" hint with the known word closest to a wrong one; empty if none is close."""
    close = difflib.get_close_matches(word, known_words, n=1)
    return f", did you mean {close[0]!r}?" if close else ""


def annotated_yaml(config: Config) -> str:
    """Return the resolved config as YAML with the description of each option as a comment above it."""
    return "".join(line + "\n" for line in _annotated_lines(config, config.to_dict(), indent=""))


def _annotated_lines(section: BaseModel, values: dict[str, Any], *, indent: str) -> Iterator[str]:
    for key, field in type(section).model_fields.items():
        for text in (field.description or "").splitlines():
            yield f"{indent}# {text}"
        child = getattr(section, key)
        if isinstance(child, BaseModel):
            yield f"{indent}{key}:"
            yield from _annotated_lines(child, values[key], indent=indent + "  ")
        else:
            yield f"{indent}{key}: {_to_inline_yaml(values[key])}"


def _to_inline_yaml(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=1_000_000)
    return text.removesuffix("\n").removesuffix("\n...")


def changes(first: Config, second: Config) -> list[tuple[str, str, str]]:
    """Return (dotted key, first value, second value) of each option that differs; `-` if a config lacks it."""
    a, b = ({key: _to_inline_yaml(value) for key, value in flatten(c.to_dict()).items()} for c in (first, second))
    keys = dict.fromkeys([*a, *b])
    return [(key, a.get(key, "-"), b.get(key, "-")) for key in keys if a.get(key) != b.get(key)]


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
    return _to_inline_yaml([int(value) if is_whole else value])[
        1:-1
    ]  # as a list item, which needs quotes in more cases
