"""`key=value` overrides, and validation of a config tree against the schema."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from ..errors import ConfigError
from ..formatting import quote
from .backbones import DEFAULT_BACKBONE
from .detector import DetectorConfig
from .detectors import DEFAULT_DETECTOR, DETECTORS
from .lookup import Kind, option_kinds
from .messages import config_error, suggestion
from .options import options_of
from .schema import LENGTHS, Config
from .text import flatten, nest
from .yaml_text import ITEM, parse_yaml

log = logging.getLogger(__name__)

_DETECTOR_NAME = "model.name"
_BACKBONE_NAME = "model.backbone.name"
_APPLIED_FIRST = (f"{_DETECTOR_NAME}=", f"{_BACKBONE_NAME}=", "data=", "data.root=")
"""Overrides that reset the options of a detector, backbone or data set if they change it."""
_QUOTED = r""" "(?:[^"\\]|\\.)*" | '(?:[^']|'')*' """
_LIST_ITEM = re.compile(rf"\s* ( (?:{_QUOTED})(?=\s*(?:,|$)) | [^,]* ) \s*(?:,|$)", re.VERBOSE)


def apply_overrides(tree: dict[str, Any], overrides: Sequence[str]) -> None:
    """Apply `key=value` strings to a config tree.

    Args:
        tree: nested dictionaries of sections and options; modified in place.
        overrides: `key=value`. The name of a detector or backbone and the data folder are applied first, because they
            reset the options that belong to them. Another detector keeps the backbone and the options that both have.

    Raises:
        ConfigError: a string does not have the form `key=value`, its key treats an option as a section, or its value
            is a whole section.
    """
    problems = _find_two_lengths(overrides)
    for override in sorted(overrides, key=lambda text: not text.startswith(_APPLIED_FIRST)):
        key, separator, text = override.partition("=")
        if not separator or not all(key.split(".")):
            hint = suggestion(Config, override, "VALUE") or ", for example train.lr=0.005"
            problems.append(f"option {quote(override)}: expected key=value{hint}")
            continue
        try:
            value = parse_value(key, text, where=f"option {quote(override)}")
            _reject_whole_section(key, value, override)
            _assign(tree, key, value)
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
        raise config_error(error, Config, where=where, names=names) from None


def parse_value(key: str, text: str, *, where: str) -> Any:
    """Parse the value of an option as typed on a command line.

    Names and paths stay as typed (`cells #2`, `007`, `on`), lists of these are split at commas, and other values are
    YAML. A name in quotes loses them; `null` and nothing are None.

    Args:
        key: dotted key of the option.
        text: text after `key=`.
        where: source of the text, for messages.

    Raises:
        ConfigError: the text is not YAML.
    """
    kind = kind_of(key)
    is_section = key == "data" and re.fullmatch(r"\{.*\}", text, re.DOTALL)
    if kind == "other" or is_section or text in ("", "null"):
        return parse_yaml(text, where=where, is_text=lambda path, is_null: is_text((*key.split("."), *path), is_null))
    if kind == "texts" and text.startswith("[") and text.endswith("]"):
        items = [match[1].strip() for match in _LIST_ITEM.finditer(text[1:-1])]
        return [_unquote(item) for item in (items if items[-1] else items[:-1])]  # the last match is empty
    return _unquote(text)


def kind_of(key: str) -> Kind:
    """Return the kind of an option by its dotted key; `data` is short for `data.root`."""
    return option_kinds(Config).get("data.root" if key == "data" else key, "other")


def is_text(path: Sequence[str], is_null: bool) -> bool:
    """Return whether a value in a config is a name or path, which is text even if it looks like a number.

    Args:
        path: keys from the root to the value, `*` for items of lists.
        is_null: True if the value looks like null, which sets an option to None but is text in a list.
    """
    if path and path[-1] == ITEM:
        return kind_of(".".join(path[:-1])) == "texts"
    return not is_null and kind_of(".".join(path)) != "other"


def _unquote(text: str) -> str:
    if not re.fullmatch(_QUOTED, text, re.VERBOSE | re.DOTALL):
        return text
    try:
        return parse_yaml(text, where="quoted text")
    except ConfigError:  # not an escape of YAML: "C:\data"
        return text[1:-1]


def _find_two_lengths(overrides: Sequence[str]) -> list[str]:
    """Return a message if the overrides give the length of the run in two ways, in a list."""
    keys = {f"train.{name}" for name in LENGTHS}
    given = {text.partition("=")[0]: text for text in overrides if text.partition("=")[0] in keys}
    lengths = [text for text in given.values() if not text.endswith(("=null", "="))]
    return [f"{' and '.join(lengths)}: give one length of the run"] if len(lengths) > 1 else []


def _reject_whole_section(key: str, value: Any, override: str) -> None:
    """Raise ConfigError if an override gives a section as a mapping, which would reset its other options."""
    options = [option for option in option_kinds(Config) if option.startswith(f"{key}.")]
    if options and isinstance(value, Mapping):
        given = [f"{key}.{name}" for name in flatten(dict(value))]
        example = next((option for option in given if option in options), options[0])
        text = f"option {quote(override)}: {key} is a section; give its options one by one, for example {example}=VALUE"
        raise ConfigError(text)


def _assign(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, name = key.split(".")
    node: dict[str, Any] = tree
    for depth, parent in enumerate(parents):
        child = node.setdefault(parent, {})
        if isinstance(child, str) and parents[: depth + 1] == ["data"]:
            child = node[parent] = {"root": child}
        if not isinstance(child, dict):
            raise ConfigError(f"{key}: no such option, because {'.'.join(parents[: depth + 1])} has a single value")
        node = child
    default = {_DETECTOR_NAME: DEFAULT_DETECTOR, _BACKBONE_NAME: DEFAULT_BACKBONE}.get(key)
    if default is not None and value != node.get("name", default):
        kept = _kept_options(node, value) if key == _DETECTOR_NAME else {}
        node.clear()  # the options belong to the previous detector or backbone
        node.update(kept)
    if key == "data" and isinstance(node.get("data"), dict):
        node, name, key = node["data"], "root", "data.root"
    if key == "data.root":
        for split in ("train", "val", "test"):
            node.pop(split, None)  # the files belong to the previous data set
    node[name] = value
    if key.startswith("train.") and name in LENGTHS and value is not None:
        node.update({other: None for other in LENGTHS if other != name})


def _kept_options(section: Mapping[str, Any], name: Any) -> dict[str, Any]:
    """Return the options of a detector that another one keeps, and log those that it drops.

    It keeps the backbone, and the options that it has, too, and accepts. The defaults of a detector are never kept.

    Args:
        section: options of the previous detector, nested.
        name: name of the other detector.
    """
    old_name = str(section.get("name", DEFAULT_DETECTOR))
    old, new = DETECTORS.get(old_name), DETECTORS.get(str(name))
    if old is None or new is None:
        return {}
    backbone = {"backbone": section["backbone"]} if "backbone" in section else {}
    defaults, known = flatten(old.model_validate({}).model_dump(mode="json")), options_of(new)
    given = flatten({key: value for key, value in section.items() if key not in ("name", "backbone")})
    given = {key: value for key, value in given.items() if key not in defaults or value != defaults[key]}
    shared = {key: value for key, value in given.items() if key in known}
    without_one = [{key: value for key, value in shared.items() if key != other} for other in shared]
    kept = next(filter(lambda options: _is_valid(new, backbone | nest(options)), [shared, *without_one]), {})
    if dropped := [key for key in given if key not in kept]:
        text = "model.name=%s: dropped options of %s, which this detector lacks or does not accept: %s"
        log.warning(text, name, old_name, ", ".join(f"model.{key}" for key in dropped))
    return backbone | nest(kept)


def _is_valid(section: type[DetectorConfig], options: dict[str, Any]) -> bool:
    try:
        section.model_validate(options)
    except ValidationError:
        return False
    return True
