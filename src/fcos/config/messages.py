"""Messages about invalid configs: one line per error of pydantic, in the terms of a user of the options."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from ..errors import ConfigError
from ..formatting import plural, printable, quote
from .backbones import BACKBONES, DEFAULT_BACKBONE, SECTIONS
from .detectors import DEFAULT_DETECTOR, DETECTORS
from .lookup import option_kinds, suggest_options
from .text import as_option, suggest

_VARIANTS = {section.__name__: section for section in (*DETECTORS.values(), *SECTIONS)}  # names in pydantic's `loc`
_DEFAULT_VARIANTS = {"model": DETECTORS[DEFAULT_DETECTOR], "backbone": BACKBONES[DEFAULT_BACKBONE]}
_NAMED_SECTIONS = {"model": ("detector", list(DETECTORS)), "backbone": ("backbone", list(BACKBONES))}
"""Sections selected by `name`: the noun for messages, and the known names."""
_UNION_MEMBER = re.compile(r"constrained-|literal\[|\[key\]$")
"""Steps in pydantic's `loc` that are not keys: the types of a union, and the key of an entry."""
_MAX_LINES = 20
_LIST = "should be a list, such as [a,b]"
_MAPPING = "should be a mapping, such as {name: value}"
_PHRASES = {
    "bool_parsing": "should be true or false",
    "bool_type": "should be true or false",
    "dict_type": _MAPPING,
    "finite_number": "should be a finite number",
    "float_parsing": "should be a number",
    "float_type": "should be a number",
    "int_from_float": "should be an integer",
    "int_parsing": "should be an integer",
    "int_parsing_size": "should be an integer with fewer digits",
    "int_type": "should be an integer",
    "list_type": _LIST,
    "missing": "is missing",
    "path_type": "should be a path",
    "string_type": "should be text",
    "tuple_type": _LIST,
}
"""Messages by pydantic's type of error; pydantic's own text serves for the others."""


def config_error(
    error: ValidationError, root: type[BaseModel], *, where: str, names: Mapping[str, str] | None = None
) -> ConfigError:
    """Build the error for a config that pydantic rejects, with one line per error.

    Args:
        error: error of pydantic.
        root: class of the validated config.
        where: source of the config, for messages.
        names: another project's names of options by dotted key, for messages.
    """
    errors = error.errors(include_url=False)
    lines = list(dict.fromkeys(_explain(e, root, names or {}) for e in errors[: 2 * _MAX_LINES]))[:_MAX_LINES]
    if len(errors) > 2 * _MAX_LINES:
        lines.append(f"... and {len(errors) - len(lines)} more errors")
    return ConfigError(f"{where}:" + ("\n  " if len(lines) > 1 else " ") + "\n  ".join(lines))


def describe_errors(error: ValidationError) -> list[str]:
    """Return a line for each error in data other than a config: the keys of the value, and what it should be."""
    return [
        f"{'.'.join(map(str, e['loc']))}: {_phrase(e)}" for e in error.errors(include_url=False, include_input=False)
    ]


def _phrase(error: Any) -> str:
    """Return what a value should be, in the words of this project."""
    message = error["msg"].removeprefix("Value error, ").replace("Input should", "should")
    message = message.replace("greater than or equal to", "at least").replace("less than or equal to", "at most")
    return _PHRASES.get(error["type"]) or message


def suggestion(root: type[BaseModel], name: str, value: str = "") -> str:
    """Return a hint with the options that an unknown name may stand for, to type; empty if there are none.

    Args:
        root: class of the config.
        name: unknown name of an option.
        value: value given for it, as typed; empty if unknown.
    """
    keys = [f"{key}={value}" if value else key for key in suggest_options(root, name)]
    return f", did you mean {' or '.join(keys)}?" if keys else ""


def _fields(root: type[BaseModel], location: Sequence[Any]) -> list[str]:
    """Return the option names that are allowed at a location in the tree."""
    section: Any = root
    for key in location:
        if key in _DEFAULT_VARIANTS:
            section = _DEFAULT_VARIANTS[key]  # unless the location names a variant next
        elif key in _VARIANTS:
            section = _VARIANTS[key]
        else:
            field = getattr(section, "model_fields", {}).get(key)
            section = field.annotation if field is not None else None
    return list(getattr(section, "model_fields", {}))


def _explain(error: Any, root: type[BaseModel], names: Mapping[str, str]) -> str:
    """Return a one-line message for a pydantic error."""
    path = [step for step in error["loc"] if step not in _VARIANTS and not _UNION_MEMBER.match(str(step))]
    key = printable(".".join(map(str, path)) or "config")[:120]
    if error["type"] == "missing" and isinstance(error["loc"][-1], int):  # of a list of fixed length
        return f"{printable('.'.join(map(str, path[:-1])))[:120]}: has too few values, found {quote(error['input'])}"
    option = ".".join(step for step in path if isinstance(step, str))  # without list indices
    if option in names:
        key = f"{names[option]} ({key})"
    error_type, value = error["type"], error["input"]
    message = _phrase(error)
    if error_type == "value_error":  # from our validators; messages about a section begin with the option
        other_name = names.get(f"{option}.{message.partition(' ')[0]}")
        return f"{other_name} ({key}): {message}" if other_name else f"{key}: {message}"
    if error_type == "extra_forbidden":
        return f"{key}: no such option{_unknown_option(error, root)}"
    if error_type == "union_tag_invalid":
        name, (noun, known) = value["name"], _NAMED_SECTIONS[path[-1]]
        hint = suggest(name, known) if isinstance(name, str) else "; expected text"
        return f"{key}.name: no {noun} {quote(name)}{hint}; known: {', '.join(known)}"
    if error_type in ("model_type", "model_attributes_type"):
        options = ", ".join(_fields(root, error["loc"]))
        return f"{key}: should be a section with options ({options}), found {quote(value)}"
    if error_type in ("too_short", "too_long"):
        limit = error["ctx"].get("min_length") or error["ctx"].get("max_length")
        message = f"should have {'at least' if error_type == 'too_short' else 'at most'} {plural(limit, 'value')}"
    if error_type == "string_pattern_mismatch":
        message = "expected timm/NAME" if value.startswith("timm/") else "expected package.module:function"
    if isinstance(value, bool) and "_than" in error_type:
        message = "should be a number"
    is_glued = value is None and re.search(r":[-+.\d][-+.\w]*$", str(path[-1]))  # `name:0.5`
    hint = "; YAML needs a space after the colon of a mapping" if is_glued else ""
    return f"{key}: {message}, found {quote(value)}{hint}"


def _unknown_option(error: Any, root: type[BaseModel]) -> str:
    """Return the end of a message about an unknown option: a suggestion, and the options of its section."""
    *parents, last = error["loc"]
    known = _fields(root, parents)
    hint = suggest(str(last)[:80], known)
    name = ".".join(step for step in error["loc"] if step not in _VARIANTS)
    if (not hint or not parents) and name not in option_kinds(root):  # else: an option of another variant
        value = as_option(error["input"]) if isinstance(error["input"], str | int | float) else ""
        hint = suggestion(root, name[:80], value if len(value) < 80 else "") or hint
    return f"{hint}; known options: {', '.join(known)}"
