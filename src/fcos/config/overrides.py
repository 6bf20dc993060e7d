"""`key=value` overrides, and validation of a config tree against the schema with readable error messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

from pydantic import ValidationError

from ..errors import ConfigError
from .backbones import BACKBONES, DEFAULT_BACKBONE, SECTIONS
from .detectors import DEFAULT_DETECTOR, DETECTORS
from .schema import Config
from .text import parse_yaml, suggest

_DETECTOR_NAME = "model.name"
_BACKBONE_NAME = "model.backbone.name"
_VARIANTS = {section.__name__: section for section in (*DETECTORS.values(), *SECTIONS)}  # names in pydantic's `loc`
_DEFAULT_VARIANTS = {"model": DETECTORS[DEFAULT_DETECTOR], "backbone": BACKBONES[DEFAULT_BACKBONE]}
_NAMED_SECTIONS = {"model": ("detector", list(DETECTORS)), "backbone": ("backbone", list(BACKBONES))}
"""Sections selected by `name`: the noun for messages, and the known names."""
_APPLIED_FIRST = (f"{_DETECTOR_NAME}=", f"{_BACKBONE_NAME}=", "data=", "data.root=")
"""Overrides that reset the options of a detector, backbone or data set if they change it."""


def apply_overrides(tree: dict[str, Any], overrides: Sequence[str]) -> None:
    """Apply `key=value` strings to a config tree.

    Args:
        tree: nested dictionaries of sections and options; modified in place.
        overrides: `key=value`. The name of a detector or backbone and the data folder are applied first, because they
            reset the options that belong to them.

    Raises:
        ConfigError: a string does not have the form `key=value`, or its key treats an option as a section.
    """
    problems = []
    for override in sorted(overrides, key=lambda text: not text.startswith(_APPLIED_FIRST)):
        key, separator, text = override.partition("=")
        if not separator or not all(key.split(".")):
            problems.append(f"override {override!r}: expected key=value, for example train.lr=0.005")
            continue
        try:
            _assign(tree, key, parse_yaml(text, where=f"override {override!r}"))
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))


def validate(tree: dict[str, Any], *, where: str, names: Mapping[str, str] | None = None) -> Config:
    """Validate a config tree against the schema.

    Args:
        tree: nested dictionaries of sections and options.
        where: source of the tree, for messages.
        names: another project's names of options by dotted key, for messages.

    Raises:
        ConfigError: the tree is invalid; the message has one line per error.
    """
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        lines = [_explain(e, names or {}) for e in error.errors()]
        raise ConfigError(f"{where}:" + ("\n  " if len(lines) > 1 else " ") + "\n  ".join(lines)) from None


def _assign(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, name = key.split(".")
    node: dict[str, Any] = tree
    for depth, parent in enumerate(parents):
        child = node.setdefault(parent, {})
        if isinstance(child, str) and parents[: depth + 1] == ["data"]:
            child = node[parent] = {"root": child}
        if not isinstance(child, dict):
            raise ConfigError(f"override {key}: {'.'.join(parents[: depth + 1])} is a value, not a section")
        node = child
    default = {_DETECTOR_NAME: DEFAULT_DETECTOR, _BACKBONE_NAME: DEFAULT_BACKBONE}.get(key)
    if default is not None and value != node.get("name", default):
        node.clear()  # the options belong to the previous detector or backbone
    if key == "data" and isinstance(node.get("data"), dict) and not isinstance(value, dict):
        node, name, key = node["data"], "root", "data.root"
    if key == "data.root":
        for split in ("train", "val", "test"):
            node.pop(split, None)  # the files belong to the previous data set
    node[name] = value
    if key in ("train.iterations", "train.epochs", "train.max_minutes") and value is not None:
        for other in ("iterations", "epochs", "max_minutes"):
            if other != name:
                node[other] = None


def _fields(location: Sequence[Any]) -> list[str]:
    """Return the option names that are allowed at a location in the tree."""
    section: Any = Config
    for key in location:
        if key in _DEFAULT_VARIANTS:
            section = _DEFAULT_VARIANTS[key]  # unless the location names a variant next
        elif key in _VARIANTS:
            section = _VARIANTS[key]
        else:
            field = getattr(section, "model_fields", {}).get(key)
            section = field.annotation if field is not None else None
    return list(getattr(section, "model_fields", {}))


def _explain(error: Any, names: Mapping[str, str]) -> str:
    """Return a one-line message for a pydantic error."""
    path = [step for step in error["loc"] if step not in _VARIANTS]
    key = ".".join(map(str, path)) or "config"
    option = ".".join(step for step in path if isinstance(step, str))  # without list indices
    if option in names:
        key = f"{names[option]} ({key})"
    error_type, value = error["type"], error["input"]
    message = error["msg"].removeprefix("Value error, ").replace("Input should", "should")
    if error_type == "value_error":  # from our validators; messages about a section begin with the option
        other_name = names.get(f"{option}.{message.partition(' ')[0]}")
        return f"{other_name} ({key}): {message}" if other_name else f"{key}: {message}"
    if error_type == "extra_forbidden":
        *parents, last = error["loc"]
        known = _fields(parents)
        return f"{key}: no such option{suggest(str(last), known)}; known options: {', '.join(known)}"
    if error_type == "union_tag_invalid":
        name, (noun, known) = value["name"], _NAMED_SECTIONS[path[-1]]
        hint = suggest(name, known) if isinstance(name, str) else " (as YAML parses it); expected text"
        return f"{key}.name: no {noun} {name!r}{hint}; known: {', '.join(known)}"
    if error_type in ("model_type", "model_attributes_type"):
        return f"{key}: should be a section with options ({', '.join(_fields(error['loc']))}), found {value!r}"
    if error_type == "string_pattern_mismatch":
        message = "expected timm/NAME" if value.startswith("timm/") else "expected package.module:function"
    if error_type in ("string_type", "path_type") and isinstance(value, int | float | date):
        return f"{key}: should be text, found {type(value).__name__}; quote it twice to keep it text: '\"{value}\"'"
    return f"{key}: {message}, found {value!r}"
