"""Conversion of the original FCOS's (`fcos_core`) configs: YAML with UPPER_CASE keys and `KEY VALUE` overrides.

A converted config selects the original's exact conventions: inclusive boxes, BGR 0..255, frozen batch norm without
epsilon. `keys.py` lists the original's keys, `mapping.py` maps them to our options.
"""

from __future__ import annotations

import ast
import logging
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from ...config.text import flatten, suggest
from ...errors import ConfigError
from .keys import DEFAULTS, FIXED, IDLE
from .mapping import BLOCK_NORMS, MOBILENET, RESNETS, to_options

log = logging.getLogger(__name__)

KNOWN = [*DEFAULTS, *IDLE]
"""All keys of the original."""
_SECTIONS = tuple({f"{key.partition('.')[0]}." for key in KNOWN if "." in key})

_ANY_LENGTH = ("INPUT.MIN_SIZE_TRAIN", "TEST.BBOX_AUG.SCALES")


def config_from_yaml(tree: Mapping[str, Any], pairs: Sequence[str] = (), *, where: str = "config") -> dict[str, Any]:
    """Convert the original's config to our config tree.

    Args:
        tree: parsed YAML with UPPER_CASE keys.
        pairs: `KEY VALUE KEY VALUE ...` from the command line.
        where: source of the config, for messages.

    Raises:
        ConfigError: keys are unknown or have a value without a counterpart in our config (the message lists all of
            them), or `pairs` has an odd length.
    """
    given = {key: _literal(value) for key, value in flatten(tree).items()}
    if len(pairs) % 2:
        raise ConfigError(f"{where}: expected KEY VALUE pairs after the config, found {' '.join(pairs)!r}")
    given |= {key: _literal(value) for key, value in zip(pairs[::2], pairs[1::2], strict=True)}

    problems, idle = [], []
    for key, value in given.items():
        if key in DEFAULTS:
            problems += _refusal(key, value)
        elif key in IDLE:
            idle.append(key)
        elif any(known.startswith(f"{key}.") for known in KNOWN):
            problems.append(f"{key}={value!r}: expected a section with keys")
        else:
            problems.append(f"{key}: no such key in the original{suggest(key, KNOWN)}")
    if idle:
        log.info("%s: without effect on an FCOS model here: %s", where, ", ".join(idle))
    get = {**DEFAULTS, **given}.__getitem__
    problems += _backbone_refusal(get)
    if problems:
        raise ConfigError(f"{where}:" + ("\n  " if len(problems) > 1 else " ") + "\n  ".join(problems))
    return _nested(to_options(get, num_classes_given="MODEL.FCOS.NUM_CLASSES" in given))


def split_pairs(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split the words of a command line into `KEY VALUE` pairs and other words.

    A value may be any text. A word that is not a key but starts like one ("TEST.") counts as a key, unless a file of
    that name exists, such as TEST.jpg.
    """
    pairs: list[str] = []
    others: list[str] = []
    rest = iter(words)
    for word in rest:
        if word in KNOWN or (word.startswith(_SECTIONS) and not Path(word).exists()):
            pairs += [word, *islice(rest, 1)]
        else:
            others.append(word)
    return pairs, others


def _literal(value: Any) -> Any:
    """Evaluate text that is a Python literal, as the original does: "(60000, 80000)". Other values are unchanged."""
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # all that literal_eval documents
        return value


def _refusal(key: str, value: Any) -> list[str]:
    """Return error messages for the value of a single key; empty if it is valid."""
    default = DEFAULTS[key]
    if key in FIXED:
        plain = tuple(value) if isinstance(value, list) else value
        needs = f"{key}={value!r}: needs {FIXED[key]}, which is not here; only {default!r} is"
        return [] if plain == default else [needs]
    expected = None
    if key == "MODEL.FCOS.NUM_CLASSES":
        whole = isinstance(value, int) and not isinstance(value, bool)
        expected = None if whole and value > 1 else "a whole number of at least 2, since background counts, too"
    elif isinstance(default, tuple | list):
        expected = _expected_list(key, value)
    elif isinstance(default, bool | str) and type(value) is not type(default):
        expected = "text" if isinstance(default, str) else "True or False"
    elif not isinstance(default, bool | str) and not _is_number(value):
        expected = "a number"
    return [f"{key}={value!r}: expected {expected}"] if expected else []


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _expected_list(key: str, value: Any) -> str | None:
    """Return a description of the list that `key` expects; None if `value` is valid."""
    if key == "INPUT.MIN_SIZE_TRAIN" and _is_number(value):
        return None
    if key.startswith("DATASETS."):
        named = isinstance(value, tuple | list) and all(isinstance(name, str) for name in value)
        if named and key == "DATASETS.TEST" and len(value) > 1:
            return "one name: data sets are tested one at a time"
        return None if named else "a list of names"
    if key == "SOLVER.STEPS":
        listed = isinstance(value, tuple | list) and all(type(item) is int and item >= 1 for item in value)
        return None if listed and list(value) == sorted(value) else "increasing whole numbers of at least 1"
    flags = any(isinstance(item, bool) for item in DEFAULTS[key])
    fitting = isinstance(value, tuple | list) and all(
        isinstance(item, bool) if flags else _is_number(item) for item in value
    )
    if key in _ANY_LENGTH:
        return None if fitting else "a list of numbers"
    length = len(DEFAULTS[key])
    return None if fitting and len(value) == length else f"{length} {'times True or False' if flags else 'numbers'}"


def _backbone_refusal(get: Callable[[str], Any]) -> list[str]:
    """Return error messages for the combination of the backbone's keys; empty if it is valid."""
    body, frozen = get("MODEL.BACKBONE.CONV_BODY"), get("MODEL.BACKBONE.FREEZE_CONV_BODY_AT")
    bodies = [*dict.fromkeys(name for name, _, _ in RESNETS), MOBILENET]
    if body not in bodies:
        return [f"MODEL.BACKBONE.CONV_BODY={body!r}: expected one of {', '.join(bodies)}"]
    if body == MOBILENET:
        wrong = f"MODEL.BACKBONE.FREEZE_CONV_BODY_AT={frozen!r}: MobileNetV2 has a counterpart for 0 only"
        return [wrong] if frozen else []
    problems = []
    shape = body, get("MODEL.RESNETS.NUM_GROUPS"), get("MODEL.RESNETS.WIDTH_PER_GROUP")
    if shape not in list(RESNETS):
        known = " or ".join(f"{groups}, {width}" for other, groups, width in RESNETS if other == body)
        problems.append(
            f"MODEL.RESNETS.NUM_GROUPS, WIDTH_PER_GROUP={shape[1]}, {shape[2]}: expected {known} with {body}"
        )
    functions = get("MODEL.RESNETS.TRANS_FUNC"), get("MODEL.RESNETS.STEM_FUNC")
    if functions not in list(BLOCK_NORMS):
        known = " or ".join(f"{block}, {stem}" for block, stem in BLOCK_NORMS)
        problems.append(f"MODEL.RESNETS.TRANS_FUNC, STEM_FUNC={functions[0]!r}, {functions[1]!r}: expected {known}")
    return problems


def _nested(options: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for option, value in options.items():
        *sections, last = option.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[last] = value
    return tree
