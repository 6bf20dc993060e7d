"""Options with which a run is resumed, compared with those that it was trained with so far."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from pydantic import ValidationError
from yaml import YAMLError

from ..config import Config
from ..config.options import all_options, in_effect, info_of
from ..config.schema import LENGTHS
from ..config.text import flatten
from ..config.yaml_text import dump_inline
from ..distributed import resolve_device
from ..errors import ConfigError

Options = Mapping[str, Any]
"""Values of options by dotted key."""

_NEW_RUNS_ONLY = (
    "output_dir",
    "train.resume",
    "train.weights",
    "model.num_classes",  # the class names of checkpoint and data are compared instead
    "model.backbone.weights",
    "model.head.prior_probability",
)
"""Options without effect on a resumed run, apart from the choice of its folder."""
_SPLITS = ("data.train.", "data.val.", "data.test.")
_MAX_CHARACTERS = 100


class OptionChange(NamedTuple):
    """An option with its value in the checkpoint of a run and the value to resume with, each as text."""

    key: str
    old: str
    new: str

    def __str__(self) -> str:
        old, new = (text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]}..." for text in self[1:])
        return f"{self.key}: {old} -> {new}"


def compare_options(saved: Mapping[str, Any], config: Config) -> list[OptionChange]:
    """Return the options whose effective values differ.

    Options that are not used, and options that only follow from another changed option, are left out.

    Args:
        saved: config in the checkpoint, as plain data. If it is not valid, for example because it is of another
            version, the options that both versions have are compared.
        config: config to resume with.
    """
    new, new_used = _as_text(flatten(config.to_dict())), _as_text(_used_options(config))
    try:
        earlier = Config.model_validate(saved)
        old, old_used = _as_text(flatten(earlier.to_dict())), _as_text(_used_options(earlier))
    except ValidationError:
        old = old_used = {**new, **{key: text for key, text in _as_text(flatten(saved)).items() if key in new}}
    differing = [
        key
        for key in dict.fromkeys([*old_used, *new_used])
        if old.get(key) != new.get(key)
        and old_used.get(key) != new_used.get(key)
        and (key in new_used or key not in new)  # else: not used any more
    ]
    changes = [
        OptionChange(key, old_used.get(key, old.get(key, "-")), new_used.get(key, new.get(key, "-")))
        for key in differing
        if key not in _NEW_RUNS_ONLY and not _follows(key, differing, new)
    ]
    return _join_lengths(changes)


def describe_changed_options(saved: Mapping[str, Any], config: Config, *, where: str) -> str:
    """Return a message with the options whose effective values differ from those of the run; empty if there are none.

    Args:
        saved: config in the checkpoint, see `compare_options`.
        config: config to resume with.
        where: path of the checkpoint, for messages.

    Raises:
        ConfigError: the weights have another meaning with the options of `config`, for example another channel order.
    """
    changes = compare_options(saved, config)
    refused = [change for change in changes if "meaning" in _roles(change.key, config)]
    if refused:
        raise ConfigError(
            f"train.resume: the meaning of the weights in {where} depends on options that have changed"
            f" ({', '.join(map(str, refused))}); restore the old values, or start a new run with train.weights={where}"
        )
    return "\n  ".join(["options that differ from the run so far:", *map(str, changes)]) if changes else ""


def find_structural_changes(saved: Mapping[str, Any], config: Config) -> list[OptionChange]:
    """Return the changed options that determine the tensors of the model and of the optimiser's state.

    Args:
        saved: config in the checkpoint, see `compare_options`.
        config: config to resume with.
    """

    def is_structural(key: str) -> bool:
        is_freezing = key == "train.freeze" or key.endswith(".frozen_stages")
        return is_freezing or key in ("train.optimizer", "model.name") or "shape" in _roles(key, config)

    return [change for change in compare_options(saved, config) if is_structural(change.key)]


def _roles(key: str, config: Config) -> frozenset[str]:
    """Return the roles of a model option, see `config.options`; empty for other options."""
    info = info_of(all_options(config), key)
    return info.roles if info else frozenset()


def _used_options(config: Config) -> Options:
    """Return the options that are used, with the values that null stands for and with absolute paths."""
    options = flatten(config.to_dict())
    options["data.test_short_side"] = config.data.detection_short_side
    options["data.test_max_side"] = config.data.detection_max_side
    options["train.devices"] = config.train.devices or 1
    with suppress(ConfigError):  # the device of the run may be one of another machine
        options["device"] = str(resolve_device(config.device))
    return {key: _absolute(key, value) for key, value in in_effect(options, all_options(config)).items()}


def _absolute(key: str, value: Any) -> Any:
    """Return the paths of an option of the data as absolute paths, and other values unchanged."""
    if key == "data.root" or key.startswith(_SPLITS):
        if isinstance(value, list):
            return [_absolute(key, path) for path in value]
        return value and os.path.abspath(value)
    return value


def _as_text(options: Options) -> dict[str, str]:
    """Return the values as YAML on one line, without values that are not plain data (of a damaged checkpoint)."""
    texts = {}
    for key, value in options.items():
        try:
            texts[key] = dump_inline(value)
        except YAMLError:
            continue
    return texts


def _follows(key: str, differing: Sequence[str], new: Mapping[str, str]) -> bool:
    """Return whether the change of an option only follows from that of another: a name, or the folder of the data."""
    if key.startswith(_SPLITS):
        return "data.root" in differing and new.get(key) == "[]"
    names = ("model.name", "model.backbone.name")
    return any(name in differing and key != name and key.startswith(name.removesuffix("name")) for name in names)


def _join_lengths(changes: list[OptionChange]) -> list[OptionChange]:
    """Replace the two changes of a length that is given in another way by one."""
    keys = {f"train.{name}" for name in LENGTHS}
    lengths = [change for change in changes if change.key in keys]
    old = [f"{change.key}={change.old}" for change in lengths if change.old != "null"]
    new = [f"{change.key}={change.new}" for change in lengths if change.new != "null"]
    if len(lengths) < 2 or not (old and new):
        return changes
    joined = OptionChange("length of the run", old[0], new[0])
    return [joined if change is lengths[0] else change for change in changes if change not in lengths[1:]]
