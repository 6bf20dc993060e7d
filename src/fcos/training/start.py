"""Fine-tuning: starting a new run from the weights of a detector, possibly of another project."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ..checkpoint import PIXELS, Checkpoint, load_weights
from ..config import DetectorConfig
from ..config.detectors import DEFAULT_DETECTOR, DETECTORS
from ..config.options import in_effect, info_of, options_of, with_role
from ..config.text import as_option, flatten
from ..errors import WeightsError
from ..formatting import join_some, plural
from ..interop.checkpoints import with_fcos_core_conventions
from ..models import DetectionModel


def start_from(
    model: DetectionModel,
    checkpoint: Checkpoint,
    config: DetectorConfig,
    class_names: Sequence[str],
    *,
    keypoint_names: Sequence[str] = (),
    where: str,
) -> str:
    """Load the weights of a checkpoint into the model of a new run.

    If the classes differ, the class head gets the rows of classes with the same names and keeps its initial values for
    the others. If the checkpoint has no class names, an equal number of classes is taken to mean the same classes. The
    layer that predicts keypoints is treated in the same way.
    Optional modules that the checkpoint lacks keep their initial values. Pixel mean and standard deviation stay those
    of the config.

    Args:
        model: model built from `config`, modified in place.
        checkpoint: checkpoint of another run, possibly of another project.
        config: section `model` of the new run.
        class_names: class names of the new run.
        keypoint_names: names of the keypoints of the new run; empty: unknown, or without keypoints.
        where: path or address of the checkpoint, for messages.

    Returns:
        Message with the number of loaded tensors and the options of role `meaning` that differ from the training of the
        weights. A line each follows for the class head if the classes differ, for the layer of the keypoints if they
        differ, and for missing optional modules.

    Raises:
        WeightsError: the weights do not fit the model, see `load_weights`. If the config of the weights is known, the
            message names the options that would fit.
    """
    tensors, weights = model.state_dict(), {k: w for k, w in checkpoint.model.items() if k not in PIXELS}
    optional = tuple(f"{path}." for path in model.optional_modules)
    missing = {name: tensors[name] for name in tensors if name.startswith(optional) and name not in weights}
    nameless = not checkpoint.class_names and len(class_names) == len(checkpoint.category_ids)
    same_classes = nameless or tuple(class_names) == checkpoint.class_names
    head = {} if same_classes else _class_head(model, weights, checkpoint.class_names, class_names)
    head = {name: tensor for name, tensor in head.items() if name not in missing}
    keypoints, shared = _keypoint_layer(model, weights, checkpoint.keypoint_layout.names, keypoint_names)
    try:
        load_weights(model, {**weights, **missing, **head, **keypoints}, where=where)
    except WeightsError as error:
        differences = _structure_options(checkpoint, config)
        raise WeightsError(f"{error}: {' '.join(differences)}" if differences else str(error)) from None
    used_names = weights.keys() & tensors.keys()  # the rest are batch-norm counters, see `load_weights`
    num_loaded = len(used_names - head.keys() - keypoints.keys())
    loaded = f"all {num_loaded}" if same_classes and not keypoints else num_loaded
    summary = f"weights: {loaded} tensors from {where}"
    if differences := _meaning_options(checkpoint, config):
        summary += f"; they were trained with {differences}; use the same options"
    if head:
        summary += f"\n  {', '.join(head)}: {_describe_class_head(checkpoint, class_names)}"
    if keypoints:
        description = _describe_keypoint_layer(keypoints, weights, shared, keypoint_names)
        summary += f"\n  {', '.join(keypoints)}: {description}"
    if checkpoint.project != "fcos" and checkpoint.training:
        summary += f"\n  not used: the optimizer state of this file and its iteration {checkpoint.iteration}"
        if checkpoint.project == "fcos_core":
            summary += "; to continue that run instead, also set train.resume=true"
    if missing:
        summary += f"\n  {join_some(list(missing))}: newly initialised, because the weights do not contain them"
    return summary


def _meaning_options(checkpoint: Checkpoint, config: DetectorConfig) -> str:
    """Return the options of role `meaning` that differ from the training of the weights, as typed for its values."""
    infos = options_of(type(config))
    sections = _trained_model_options(checkpoint, config), config.model_dump(mode="json")
    trained_options, options = (in_effect(flatten(section), infos) for section in sections)
    return " ".join(
        f"model.{key}={as_option(trained_options[key])}"
        for key in with_role(infos, "meaning")
        if key in trained_options and key in options and as_option(trained_options[key]) != as_option(options[key])
    )


def _trained_model_options(checkpoint: Checkpoint, config: DetectorConfig) -> Mapping[str, Any]:
    """Return the section `model` of the config that the weights were trained with.

    It is complete, except for files of the original, which only determine conventions that all of its detectors share.
    """
    if checkpoint.project == "fcos_core" and config.box_convention != "inclusive":  # else it already follows fcos_core
        return with_fcos_core_conventions({"model": config.model_dump(mode="json")})["model"]
    section = _trained_section(checkpoint)
    return checkpoint.config.get("model", {}) if section is None else section.model_dump(mode="json")


def _trained_section(checkpoint: Checkpoint) -> DetectorConfig | None:
    """Return the complete section `model` that the weights were trained with; None: unknown, or of another version."""
    section = checkpoint.config.get("model")
    if checkpoint.project == "fcos_core" or section is None:
        return None
    try:
        return DETECTORS[section.get("name", DEFAULT_DETECTOR)].model_validate(section)
    except (KeyError, ValueError):
        return None


def _structure_options(checkpoint: Checkpoint, config: DetectorConfig) -> list[str]:
    """Return the command-line options that give the model the structure of the weights; empty if unknown or equal."""
    if checkpoint.project == "fcos_core":  # the file does not determine the other options
        name = checkpoint.config["model"].get("name", DEFAULT_DETECTOR)
        return [] if name == config.name else [f"model.name={name}"]
    section = _trained_section(checkpoint)
    if section is None:
        return []
    if type(section) is not type(config):
        return [f"model.name={section.name}"]
    trained_options, options = (flatten(model.model_dump(mode="json")) for model in (section, config))
    if trained_options["backbone.name"] != options["backbone.name"]:  # another name has other defaults
        default = type(section.backbone).model_validate({"name": trained_options["backbone.name"]})
        options |= flatten(default.model_dump(mode="json", exclude={"name"}), "backbone.")
    for section_options in (trained_options, options):
        if section_options.get("backbone.norm") in ("frozen_bn", "sync_bn"):
            section_options["backbone.norm"] = "bn"  # the tensors are the same
    option_info = options_of(type(config))
    return [
        f"model.{key}={as_option(value)}"
        for key, value in in_effect(trained_options, option_info).items()
        if (info := info_of(option_info, key)) and "shape" in info.roles and value != options.get(key)
    ]


def _keypoint_layer(
    model: DetectionModel, weights: Mapping[str, Tensor], weight_names: Sequence[str], model_names: Sequence[str]
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the layer that predicts keypoints, and the names of its loaded keypoints, if the weights have other ones.

    Other keypoints are another number, other names or another order. The entries of keypoints with the same names are
    those of the weights, and the others keep their initial values. Without common names, an equal number of keypoints
    is taken to mean the same keypoints. An empty layer is returned for the same keypoints.

    Args:
        model: model of the new run.
        weights: tensors of the checkpoint by name.
        weight_names: names of the keypoints of the weights; empty: unknown.
        model_names: names of the keypoints of the new run; empty: unknown.
    """
    tensors, dims = model.state_dict(), model.keypoint_parameters
    layer = {name: tensors[name].clone() for name in dims if name in weights}
    shared = [name for name in _real_names(model_names) if name in _real_names(weight_names)]
    rows, weight_rows = ([names.index(name) for name in shared] for names in (model_names, weight_names))
    fits = all(
        weights[name].movedim(dims[name], 0).shape == (len(weight_names), *tensor.movedim(dims[name], 0).shape[1:])
        and tensor.shape[dims[name]] == len(model_names)
        for name, tensor in layer.items()
    )
    if shared and fits and tuple(weight_names) != tuple(model_names):
        for name, tensor in layer.items():
            tensor.movedim(dims[name], 0)[rows] = weights[name].movedim(dims[name], 0)[weight_rows]
        return layer, shared
    has_same_number = all(weights[name].shape == tensor.shape for name, tensor in layer.items())
    return ({} if has_same_number else layer), []


def _real_names(keypoint_names: Sequence[str]) -> Sequence[str]:
    """Return the names of keypoints; empty if they are only the numbers that unnamed keypoints have."""
    return () if all(name.isdecimal() for name in keypoint_names) else keypoint_names


def _describe_keypoint_layer(
    layer: Mapping[str, Tensor], weights: Mapping[str, Tensor], shared: Sequence[str], keypoint_names: Sequence[str]
) -> str:
    if shared:
        return f"loaded {len(shared)} of {plural(len(keypoint_names), 'keypoint')} by name ({join_some(shared)})"
    counts = [tensors[name].shape[0] for tensors in (weights, layer) for name in layer if "bias" in name]
    return (
        "newly initialised, because the numbers of keypoints differ: the weights have"
        f" {counts[0]}, the model has {counts[1]}"
    )


def _class_head(
    model: DetectionModel, weights: Mapping[str, Tensor], weight_classes: Sequence[str], model_classes: Sequence[str]
) -> dict[str, Tensor]:
    """Return the parameters with per-class rows, with the rows of shared classes from the weights.

    The rows of other classes keep their initial values. If any class is shared, rows that belong to no class are also
    taken from the weights.

    Args:
        model: model of the new run.
        weights: tensors of the checkpoint by name.
        weight_classes: class names of the weights, in label order.
        model_classes: class names of the model, in label order.
    """
    shared = [(label, weight_classes.index(name)) for label, name in enumerate(model_classes) if name in weight_classes]
    tensors = model.state_dict()
    head = {name: tensors[name].clone() for name in model.class_parameters}
    for name in head.keys() & weights.keys() if shared else ():
        layout = model.class_parameters[name]
        if weights[name].shape != (layout.count(len(weight_classes)), *tensors[name].shape[1:]):
            head[name] = weights[name]  # `load_weights` raises an error for it
            continue
        for label, weight_label in shared:
            head[name][layout.of(label, len(model_classes))] = weights[name][
                layout.of(weight_label, len(weight_classes))
            ]
        for row, weight_row in zip(
            layout.of_none(len(model_classes)), layout.of_none(len(weight_classes)), strict=True
        ):
            head[name][row] = weights[name][weight_row]
    return head


def _describe_class_head(checkpoint: Checkpoint, class_names: Sequence[str]) -> str:
    """Return a message on which rows of the class head were loaded when the classes differ."""
    shared = [name for name in class_names if name in checkpoint.class_names]
    new = [name for name in class_names if name not in checkpoint.class_names]
    if not shared:
        weight_classes = join_some(checkpoint.class_names) or f"{len(checkpoint.category_ids)} unnamed classes"
        return (
            f"newly initialised, because the classes differ: the weights have {weight_classes}, the data has"
            f" {join_some(class_names)}"
        )
    rows = f"{len(shared)} of {len(class_names)} rows by class name ({join_some(shared)})"
    return f"loaded {rows}; newly initialised: {join_some(new)}" if new else f"loaded {rows}"
