"""Configs as text: reading recipes, YAML files and `key=value` overrides, explaining mistakes, printing.

`load_config("fcos_r50_fpn_1x", ["data=path", "train.lr=5e-3"])` reads a shipped recipe or a YAML file and applies
overrides. All mistakes are reported together, each with its place and a suggestion.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from .config import Config
from .config_backbones import BACKBONES, DEFAULT_BACKBONE
from .errors import ConfigError

RECIPES = Path(__file__).parent / "recipes"
_BACKBONE_NAME = "model.backbone.name"
_SECTIONS = {section.__name__: section for section in BACKBONES.values()}  # pydantic's places name them
_FIRST = (f"{_BACKBONE_NAME}=", "data=", "data.root=")
"""Overrides after which the options of another backbone or data set are gone."""


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


def recipe_names() -> list[str]:
    """The shipped recipes."""
    return sorted(p.stem for p in RECIPES.glob("*.yaml"))


def load_config(source: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Read a recipe or a YAML file and apply `key=value` overrides.

    A YAML whose top keys are UPPER_CASE is one of the original's, read by `interop.fcos_core_config`.

    Args:
        source: a recipe's name or the path of a YAML file; None: the defaults.
        overrides: `key=value`; with one of the original's YAMLs `KEY VALUE` pairs may stand among them.

    Raises:
        ConfigError: unknown recipe, file, key or value; all mistakes in one message.
    """
    tree = read_config_tree(source)
    name = str(source) if source is not None else "defaults"
    names: dict[str, str] = {}
    if tree and all(key.isupper() for key in tree):
        from .interop.fcos_core_config import KNOWN, config_from_yaml, split_pairs
        from .interop.fcos_core_keys import KEYS as names

        pairs, overrides = split_pairs(overrides)
        strange = next((word for word in overrides if "=" not in word), None)
        if strange is not None:
            hint = suggest(strange.upper(), KNOWN)
            raise ConfigError(f"{name}: {strange!r}: expected key=value, or a KEY of the original and its VALUE{hint}")
        tree = config_from_yaml(tree, pairs, where=name)
    apply_overrides(tree, overrides)
    return validate(tree, where=name, names=names)


def apply_overrides(tree: dict[str, Any], overrides: Sequence[str]) -> None:
    """Set `key=value` texts in a plain tree.

    Args:
        tree: sections and options; changed in place.
        overrides: `key=value`. Another backbone's name or data folder comes first, whatever the order, then its
            options.

    Raises:
        ConfigError: texts of another form, or a key below a value.
    """
    problems = []
    for override in sorted(overrides, key=lambda text: not text.startswith(_FIRST)):
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


def read_config_tree(source: str | Path | None) -> dict[str, Any]:
    """The plain tree of a recipe or YAML file, before overrides and defaults.

    Args:
        source: see `load_config`.

    Raises:
        ConfigError: no such recipe or file, or no mapping of options in it.
    """
    if source is None:
        return {}
    path = Path(source)
    if path.suffix not in (".yaml", ".yml"):
        path = RECIPES / f"{source}.yaml"
        if not path.is_file():
            if Path(source).is_dir():
                raise ConfigError(f"{source}: a folder is no recipe, did you mean data={source}?")
            name, known = str(source), recipe_names()
            raise ConfigError(
                f"no recipe {name!r}{suggest(name, known)}; recipes: {', '.join(known)}"
                " (or give the path of a .yaml file)"
            )
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file{suggest(path.stem.lower(), recipe_names())}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot read the config: {error}") from None
    tree = parse_yaml(text, where=str(path)) or {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected a mapping of options, found {type(tree).__name__}")
    for key in tree:
        if not isinstance(key, str):
            raise ConfigError(f"{path}: expected names of options, found the key {key!r}, which is no text")
    return tree


def validate(tree: dict[str, Any], *, where: str, names: Mapping[str, str] | None = None) -> Config:
    """Check a plain tree against the schema.

    Args:
        tree: sections and options.
        where: for messages.
        names: what another project calls options, for messages.

    Raises:
        ConfigError: one line for every mistake.
    """
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        lines = [_explain(e, names or {}) for e in error.errors()]
        raise ConfigError(f"{where}:" + ("\n  " if len(lines) > 1 else " ") + "\n  ".join(lines)) from None


def _assign(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    node: dict[str, Any] = tree
    for depth, parent in enumerate(parents):
        child = node.setdefault(parent, {})
        if isinstance(child, str) and parents[: depth + 1] == ["data"]:
            child = node[parent] = {"root": child}
        if not isinstance(child, dict):
            raise ConfigError(f"override {key}: {'.'.join(parents[: depth + 1])} is a value, not a section")
        node = child
    if key == _BACKBONE_NAME and value != node.get("name", DEFAULT_BACKBONE):
        node.clear()  # the options were meant for the old one
    if key == "data" and isinstance(node.get("data"), dict) and not isinstance(value, dict):
        node, last, key = node["data"], "root", "data.root"
    if key == "data.root":
        for split in ("train", "val", "test"):
            node.pop(split, None)  # the files were those of the old one
    node[last] = value
    if key in ("train.iterations", "train.epochs", "train.max_minutes") and value is not None:
        for other in ("iterations", "epochs", "max_minutes"):
            if other != last:
                node[other] = None


def _fields(location: Sequence[Any]) -> list[str]:
    """The option names that are allowed at a place in the tree."""
    section: Any = Config
    for part in location:
        if part == "backbone":
            section = BACKBONES[DEFAULT_BACKBONE]  # a known name may follow
        elif part in _SECTIONS:
            section = _SECTIONS[part]
        else:
            field = getattr(section, "model_fields", {}).get(part)
            section = field.annotation if field is not None else None
    return list(getattr(section, "model_fields", {}))


def _explain(error: Any, names: Mapping[str, str]) -> str:
    """One line on what pydantic found wrong."""
    place = [part for part in error["loc"] if part not in _SECTIONS]
    key = ".".join(map(str, place)) or "config"
    option = ".".join(part for part in place if isinstance(part, str))  # without the number of an item
    if option in names:
        key = f"{names[option]} ({key})"
    kind, value = error["type"], error["input"]
    message = error["msg"].removeprefix("Value error, ").replace("Input should", "should")
    if kind == "value_error":  # from our own validators, complete; those of a section name the option first
        theirs = names.get(f"{option}.{message.partition(' ')[0]}")
        return f"{theirs} ({key}): {message}" if theirs else f"{key}: {message}"
    if kind == "extra_forbidden":
        *parents, last = error["loc"]
        known = _fields(parents)
        return f"{key}: no such option{suggest(str(last), known)}; known here: {', '.join(known)}"
    if kind == "union_tag_invalid":
        name, known = value["name"], list(BACKBONES)
        text = isinstance(name, str)
        hint = suggest(name, known) if text else ", as YAML reads it; expected text"
        return f"{key}.name: no backbone {name!r}{hint}; known: {', '.join(known)}"
    if kind in ("model_type", "model_attributes_type"):
        return f"{key}: should be a section with options ({', '.join(_fields(error['loc']))}), found {value!r}"
    if kind in ("string_type", "path_type") and isinstance(value, int | float | date):
        return f"{key}: should be text, found a {type(value).__name__}; quote it twice to keep it text: '\"{value}\"'"
    return f"{key}: {message}, found {value!r}"


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
    a, b = ({key: _inline(value) for key, value in flat(c.to_dict()).items()} for c in (first, second))
    keys = dict.fromkeys([*a, *b])
    return [(key, a.get(key, "-"), b.get(key, "-")) for key in keys if a.get(key) != b.get(key)]


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The options of a tree by their dotted keys, each with `prefix` before it."""
    options: dict[str, Any] = {}
    for key, value in tree.items():
        options |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return options


def as_option(value: Any) -> str:
    """A value as one types it after `key=`: no spaces, `null` for none, whole numbers without a point."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(as_option, value))}]"
    whole = isinstance(value, float) and value.is_integer()
    return _inline([int(value) if whole else value])[1:-1]  # as within a list, where more text needs quotes
