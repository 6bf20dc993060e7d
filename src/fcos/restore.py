"""Restoring of a trained detector from a weights file, with the options that a user gives for it."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from .checkpoint import Checkpoint, load_weights
from .config import Config, FCOSConfig
from .config.arguments import check_overrides, check_source
from .config.backbones import is_own
from .config.detectors import DEFAULT_DETECTOR
from .config.lookup import suggest_options
from .config.options import (
    ANNOTATION_OPTIONS,
    DATA_SET_OPTIONS,
    EVALUATION_OPTIONS,
    SPEED_OPTIONS,
    TRAINING_OPTIONS,
    in_effect,
    info_of,
    is_among,
    options_of,
    with_role,
)
from .config.overrides import apply_overrides, validate
from .config.text import changes, flatten, suggest
from .errors import ConfigError, WeightsError
from .export.runtimes import is_exported
from .formatting import join_some
from .interop.checkpoints import load_checkpoint, with_fcos_core_conventions
from .interop.fcos_core.config import split_pairs
from .interop.torchvision import WEIGHTS, reject_unsupported
from .models import DetectionModel, build_model
from .recipes import is_recipe, load_config, recipe_names, warn_of_idle_options

Use = Literal["an evaluation", "predictions", "a conversion"]
"""Purpose for which a detector is restored."""

_EXAMPLES = {
    "fcos": "fcos_imprv_r50_fpn_1x",
    "retinanet": "retinanet_r50",
    "rpn": "rpn_R_50_FPN_1x.yaml",
    "rcnn": "faster_rcnn_r50",
}
"""Recipes or files of the original named in messages, by detector."""
_NO_EFFECT: dict[Use, tuple[str, ...]] = {
    "an evaluation": TRAINING_OPTIONS,
    "predictions": (
        *TRAINING_OPTIONS,
        *EVALUATION_OPTIONS,
        *(key for key in ANNOTATION_OPTIONS if key != "data.classes"),
    ),
    "a conversion": (),  # the new file contains the whole config
}
"""Options and sections without effect on each use."""
_UNRELATED = (*TRAINING_OPTIONS, *SPEED_OPTIONS, "model.num_classes")
"""Options and sections that change neither detections nor annotations."""
_LOCATION = ("root", "format", "train", "val", "test")
"""Options of `data` that locate new data."""
_ROLES = {
    "classes": "the weights determine the number of classes",
    "shape": "this option determines the shapes of the weights",
    "meaning": "this option determines the meaning of the weights",
    "training": "this option only affects training",
}
"""Reasons why an option of `model` cannot change for trained weights, by its role."""


class RestoredDetector(NamedTuple):
    """Trained detector and its config.

    Attributes:
        model: detector in evaluation mode, on the CPU.
        checkpoint: content of the weights file.
        config: config of the weights, with the options given for it.
        changed_options: values of the options given that may change the detections or the annotations, by dotted key.
    """

    model: DetectionModel
    checkpoint: Checkpoint
    config: Config
    changed_options: dict[str, str]

    @property
    def thresholds(self) -> dict[str, float]:
        """Score thresholds of the weights by class name, for scores as the config defines them."""
        thresholds, model = self.checkpoint.thresholds, self.config.model
        if not isinstance(model, FCOSConfig):
            return thresholds
        trained_score = self.checkpoint.config.get("model", {}).get("score", model.score)
        return {name: model.rescale(value, score=trained_score) for name, value in thresholds.items()}


def restore_detector(
    weights: str | Path, overrides: Sequence[str], config: str | Path | Config | None, *, use: Use
) -> RestoredDetector:
    """Load the detector of a weights file on the CPU.

    Args:
        weights: weights file or name, see `fcos.load`.
        overrides: `key=value`; with a config of the original also its `KEY VALUE` pairs.
        config: config of weights that contain none, see `fcos.load`.
        use: purpose; options without effect on it are rejected.

    Raises:
        WeightsError: the file does not exist, or does not contain weights of a known project.
        ConfigError: an override is wrong, has no effect, or contradicts the weights; or a config is missing.
    """
    weights, overrides = check_source(weights, name="weights"), check_overrides(overrides)
    if is_exported(weights):
        return _restore_exported(Path(weights), overrides, config, use)
    _check_is_weights(weights)
    pairs, options = split_pairs(overrides) if isinstance(config, str | Path) else ([], overrides)
    _reject_without_effect(options, use)
    given = config if isinstance(config, Config | None) else load_config(config, pairs)
    checkpoint, has_new_data = _load(weights, options, given)
    tree = {**_config_tree(checkpoint, given, where=str(weights)), "output_dir": None}
    trained_tree = {**checkpoint.config, "output_dir": None} if checkpoint.project == "fcos" else tree
    trained = validate(trained_tree, where=f"{weights}, config")
    if has_new_data:
        tree["data"] = {key: value for key, value in tree["data"].items() if key not in DATA_SET_OPTIONS}
    tree = deepcopy(tree)  # the checkpoint's config must not change
    apply_overrides(tree, options)
    resolved = _validate_without_details(tree, where=f"{weights}, config", use=use)
    if checkpoint.project == "fcos":
        _reject_contradictions(trained, resolved, len(checkpoint.category_ids), where=str(weights))
    warn_of_idle_options(resolved, options)
    backbone_option = f"model.backbone.name={resolved.model.backbone.name}"
    if checkpoint.project == "fcos" and is_own(resolved.model.backbone.name) and backbone_option not in options:
        raise ConfigError(
            f"{weights}: loading it runs the code of a user-defined backbone; if you trust it, add {backbone_option}"
        )
    model = build_model(resolved.model, num_classes=len(checkpoint.category_ids), pretrained=False)
    load_weights(model, checkpoint.model, where=str(weights))
    unrelated = [*_UNRELATED]
    if trained.data.root is None and not trained.data.train.data_sets:  # the weights do not record their data
        unrelated += ANNOTATION_OPTIONS
    changed = {key: new for key, _, new in changes(trained, resolved) if not is_among(key, unrelated)}
    # Channels-last is a fifth faster on the CPU.
    return RestoredDetector(model.eval().to(memory_format=torch.channels_last), checkpoint, resolved, changed)


def _restore_exported(
    path: Path, overrides: Sequence[str], config: str | Path | Config | None, use: Use
) -> RestoredDetector:
    """Load an exported file, whose model options are fixed."""
    if use == "a conversion":
        raise WeightsError(f"{path}: an exported file has no weights that can be converted; give the weights file")
    if config is not None:
        raise ConfigError(f"config: not allowed, because {path} contains its config; remove it")
    fixed = [text for text in overrides if text.startswith(("model.", "data.size_divisor=", "eval.precision="))]
    if fixed:
        raise ConfigError(f"{', '.join(fixed)}: {path} was exported with other values; export it again with them")
    _reject_without_effect(overrides, use)
    from .export.exported import load_exported

    model = load_exported(path)
    metadata = model.metadata
    tree = metadata.config.to_dict()
    tree["eval"]["compile"] = False  # concerns PyTorch only
    keys = [text.partition("=")[0] for text in overrides]
    if any(key == "data" or key.startswith(tuple(f"data.{name}" for name in _LOCATION)) for key in keys):
        tree["data"] = {key: value for key, value in tree["data"].items() if key not in DATA_SET_OPTIONS}
    apply_overrides(tree, overrides)
    resolved = validate(tree, where=f"{path}, config")
    if resolved.eval.compile:
        raise ConfigError(f"eval.compile: {path} is an exported file, which torch.compile cannot compile; remove it")
    warn_of_idle_options(resolved, overrides)
    changed = {key: new for key, _, new in changes(metadata.config, resolved) if not is_among(key, _UNRELATED)}
    checkpoint = Checkpoint(
        model={},
        config=metadata.config.to_dict(),
        class_names=metadata.class_names,
        category_ids=metadata.category_ids,
        thresholds=dict(metadata.thresholds),
        licence=metadata.licence,
        keypoint_layout=metadata.keypoint_layout,
    )
    return RestoredDetector(model.eval(), checkpoint, resolved, changed)


def _validate_without_details(tree: dict[str, Any], *, where: str, use: Use) -> Config:
    """Validate a config tree. An evaluation need not read the masks and keypoints that the detector predicts."""
    data = tree["data"]
    unread = [name for name in ("masks", "keypoints") if isinstance(data, dict) and data.get(name) is False]
    if use != "an evaluation" or not unread:
        return validate(tree, where=where)
    config = validate({**tree, "data": data | dict.fromkeys(unread, True)}, where=where)
    return config.model_copy(update={"data": config.data.model_copy(update=dict.fromkeys(unread, False))})


def _check_is_weights(weights: str | Path) -> None:
    """Raise WeightsError for a recipe, and for a name that is neither a file nor known."""
    if is_recipe(weights):
        raise WeightsError(f"{weights}: this is a recipe or config; expected weights that were trained with it")
    reject_unsupported(str(weights))
    if not (str(weights) in WEIGHTS or "//" in str(weights) or Path(weights).suffix or Path(weights).exists()):
        hint = suggest(str(weights), [*recipe_names(), *WEIGHTS])
        raise WeightsError(
            f"{weights}: neither a weights file nor a recipe{hint}; recipes: {', '.join(recipe_names())}; named"
            f" weights: {', '.join(WEIGHTS)}"
        )


def _reject_without_effect(options: Sequence[str], use: Use) -> None:
    # The parser of options rejects `data={...}`, a section and not a data set, with the form to type.
    keys = [text.partition("=")[0] for text in options if not text.startswith("data={")]
    for key in keys:
        meant = suggest_options(Config, key)
        if meant and key not in (*meant, "data") and all(is_among(option, _NO_EFFECT[use]) for option in meant):
            raise ConfigError(f"{key}: no such option, and {' and '.join(meant)} has no effect on {use}; remove it")
    idle = [key for key in keys if is_among("data.root" if key == "data" else key, _NO_EFFECT[use])]
    if idle:
        raise ConfigError(f"{', '.join(idle)}: no effect on {use}; remove {'it' if len(idle) == 1 else 'them'}")


def _load(weights: str | Path, options: Sequence[str], config: Config | None) -> tuple[Checkpoint, bool]:
    """Load a weights file with the class names in `data.classes`; also return whether the options locate new data."""
    parsed: dict[str, Any] = {}
    apply_overrides(parsed, [text for text in options if text.startswith("data")])
    data = parsed.get("data", {})
    names = data.get("classes") if isinstance(data, dict) else None
    names = names if isinstance(names, list) else None
    names_in_config = config.data.classes if config is not None else None
    checkpoint = load_checkpoint(weights, class_names=names_in_config if names is None else names)
    if names is not None and checkpoint.class_names and tuple(names) != checkpoint.class_names:
        raise ConfigError(
            f"data.classes: {weights} already names its classes: {join_some(checkpoint.class_names)}; remove"
            " data.classes, which is for files without class names"
        )
    return checkpoint, not isinstance(data, dict) or any(key in data for key in _LOCATION)


def _config_tree(checkpoint: Checkpoint, config: Config | None, *, where: str) -> dict[str, Any]:
    """Return the config tree for weights: the one in their file, or `config` if the file contains none.

    If there are both, `config` sets every option that the weights do not determine: all sections except `model`, and
    the options of `model` that only select detections.
    """
    if config is None and checkpoint.project != "fcos_core":
        return {**checkpoint.config, "device": "auto"}
    name = checkpoint.config["model"].get("name", DEFAULT_DETECTOR)
    if config is None:
        raise ConfigError(
            f"{where}: a checkpoint of the original FCOS, which does not describe its head; give the config it"
            f" was trained with: --config {_EXAMPLES[name]} (a recipe, or the original's YAML file)"
        )
    tree, section = config.to_dict(), config.model
    if section.name != name:
        raise ConfigError(f"{where}: weights of {name}, but the config is for {section.name}; give a config for {name}")
    if checkpoint.project == "fcos_core":
        return tree if tree["model"]["box_convention"] == "inclusive" else with_fcos_core_conventions(tree)
    model, values = deepcopy(checkpoint.config["model"]), flatten(section.model_dump())
    for key in with_role(options_of(type(section)), "detection", only=True):
        *parents, leaf = key.split(".")
        inner = model
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[leaf] = values[key]
    return {**tree, "model": model}


def _reject_contradictions(trained: Config, resolved: Config, num_classes: int, *, where: str) -> None:
    """Raise ConfigError if options of `model` differ from those that our weights were trained with.

    Only options for detection may differ, and options that have no effect. Weights of other projects may be described
    by any options.
    """
    options, problems = options_of(type(trained.model)), []
    used = [
        in_effect(flatten(config.model.model_dump()), options_of(type(config.model))) for config in (trained, resolved)
    ]
    for key, old, new in changes(trained, resolved):
        name = key.removeprefix("model.")
        info = info_of(options, name)
        roles = [role for role in _ROLES if info is not None and role in info.roles]
        if not key.startswith("model.") or not roles or not any(name in values for values in used):
            continue
        if roles[0] == "classes" and new == str(num_classes):
            continue
        value = num_classes if roles[0] == "classes" else old
        problems.append(f"{key}={new}: {where} was trained with {key}={value}, and {_ROLES[roles[0]]}; remove it")
        if key == "model.backbone.name":  # the other options of the backbone follow from it
            break
    if problems:
        raise ConfigError("\n".join(problems))
