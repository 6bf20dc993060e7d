"""Loading and validation of recipes (configs shipped with the package) and config files.

`load_config("fcos_r50_fpn_1x", ["data=path", "train.lr=5e-3"])` reads a shipped recipe or a YAML file and applies
overrides. All errors are reported together, each with its option and a suggestion.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..config import Config, DetectorConfig
from ..config.arguments import check_overrides, check_source
from ..config.options import all_options, idle_because, options_of, with_role
from ..config.overrides import apply_overrides, is_text, validate
from ..config.text import flatten, suggest
from ..config.yaml_text import parse_yaml
from ..errors import ConfigError
from ..files import require_regular
from ..formatting import printable

log = logging.getLogger(__name__)

RECIPES = Path(__file__).parent
FIRST_RECIPE = "fcos_mnv2_small"
"""Recipe to start with."""


def recipe_names() -> list[str]:
    """Return the sorted names of the shipped recipes."""
    return sorted(p.stem for p in RECIPES.glob("*.yaml"))


def is_recipe(source: str | Path) -> bool:
    """Return whether a source is the name of a recipe or the path of a YAML file, as opposed to weights."""
    return Path(source).suffix in (".yaml", ".yml") or (str(source) in recipe_names() and not Path(source).exists())


def recipe_descriptions() -> dict[str, str]:
    """Return the one-line description of each shipped recipe by name: the first line of its file."""
    first_lines = {
        name: (RECIPES / f"{name}.yaml").read_text(encoding="utf-8").partition("\n")[0] for name in recipe_names()
    }
    return {name: line.removeprefix("# ") for name, line in first_lines.items()}


def recipes_with(model: DetectorConfig) -> list[str]:
    """Return the recipes with this detector; classes, initial weights and the selection of detections may differ."""
    ignored = {"num_classes", *with_role(options_of(type(model)), "detection", only=True)}
    excluded = {"backbone": {"weights", "frozen_stages"}, **dict.fromkeys(ignored, True)}

    def describe(section: DetectorConfig) -> dict[str, Any]:
        return section.model_dump(exclude=excluded)

    return [name for name in recipe_names() if describe(load_config(name).model) == describe(model)]


def load_config(source: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Read a recipe or a YAML file and apply `key=value` overrides.

    A YAML file with UPPER_CASE top-level keys is a config of the original and is converted to ours.

    Args:
        source: name of a recipe or path of a YAML file; None: the defaults.
        overrides: `key=value`. For a YAML file of the original, the list may also contain its `KEY VALUE` pairs.

    Raises:
        ConfigError: the recipe or file does not exist, or a key or value is invalid; one message lists all errors.
    """
    overrides = check_overrides(overrides)
    tree = read_config_tree(source)
    name = str(source) if source is not None else "defaults"
    names: dict[str, str] = {}
    if any(key.isupper() for key in tree) and all(key == key.upper() for key in tree):
        from ..interop.fcos_core.config import KNOWN, config_from_yaml, split_pairs
        from ..interop.fcos_core.mapping import option_keys

        pairs, overrides = split_pairs(overrides)
        invalid = next((word for word in overrides if "=" not in word), None)
        if invalid is not None:
            hint = suggest(invalid.upper(), KNOWN)
            raise ConfigError(f"{name}: {invalid!r}: expected key=value, or a KEY of the original and its VALUE{hint}")
        tree = config_from_yaml(tree, pairs, where=name)
        names = option_keys(tree["model"]["name"], tree["model"]["backbone"]["name"])
    apply_overrides(tree, overrides)
    config = validate(tree, where=name, names=names)
    warn_of_idle_options(config, overrides)
    return config


def warn_of_idle_options(config: Config, overrides: Sequence[str]) -> None:
    """Warn of `key=value` overrides that have no effect, given the other options of the resulting config."""
    values, options = flatten(config.model_dump()), all_options(config)
    for override in overrides:
        if condition := idle_because(override.partition("=")[0], values, options):
            log.warning("%s: no effect, because it needs %s", printable(override), condition)


def warn_of_unused_details(config: Config, overrides: Sequence[str] | None = None) -> None:
    """Warn of options for masks and keypoints if the detector does not predict them.

    Args:
        config: config of a training or an evaluation.
        overrides: `key=value`; only these options are named. None: all options of the config.
    """
    given = None if overrides is None else {override.partition("=")[0] for override in overrides}
    of_masks = {"data.masks": config.data.masks and config.data.boxes == "file"}
    of_keypoints = {
        "data.keypoints": config.data.keypoints,
        "data.keypoint_pairs": config.data.keypoint_pairs,
        "eval.keypoint_sigmas": config.eval.keypoint_sigmas,
    }
    for name, is_predicted, options in (
        ("masks", config.model.predicts_masks, of_masks),
        ("keypoints", config.model.num_predicted_keypoints, of_keypoints),
    ):
        unused = [key for key, value in options.items() if value and (given is None or key in given)]
        if unused and not is_predicted:
            log.warning("%s: no effect, because the detector predicts no %s", ", ".join(unused), name)


def read_config_tree(source: str | Path | None) -> dict[str, Any]:
    """Read a recipe or YAML file as nested dictionaries, without overrides and defaults.

    Args:
        source: name of a recipe or path of a YAML file; None: an empty tree.

    Raises:
        ConfigError: the recipe or file does not exist, or it does not contain a mapping of options.
    """
    if source is None:
        return {}
    path = Path(check_source(source, name="config"))
    if path.suffix not in (".yaml", ".yml"):
        path = RECIPES / f"{source}.yaml"
        if not path.is_file():
            if Path(source).is_dir():
                is_run = (Path(source) / "config.yaml").is_file()
                meant = f"{source}/config.yaml, the config of this run" if is_run else f"data={source}"
                raise ConfigError(f"{source}: is a folder, not a recipe; did you mean {meant}?")
            if Path(source).is_file():
                raise ConfigError(
                    f"{source}: is not a recipe; expected the name of a recipe, or the path of a .yaml file such as the"
                    " config.yaml in a run folder"
                )
            name, known = str(source), recipe_names()
            raise ConfigError(
                f"no recipe {name!r}{suggest(name, known)}; recipes: {', '.join(known)}"
                " (or give the path of a .yaml file)"
            )
    if path.exists() and not path.is_file():
        raise ConfigError(f"{path}: expected a YAML file, found a {'folder' if path.is_dir() else 'special file'}")
    try:
        require_regular(path)
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file{suggest(path.stem.lower(), recipe_names())}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot read the config: {error}") from None
    tree = parse_yaml(text, where=str(path), is_text=_is_text) or {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected a mapping of options, found {type(tree).__name__}")
    return tree


def _is_text(path: Sequence[str], is_null: bool) -> bool:
    """Return whether a value in a config of ours or of the original is a name or path."""
    from ..interop.fcos_core.keys import is_text as is_text_of_original

    return is_text(path, is_null) or (not is_null and is_text_of_original(path))
