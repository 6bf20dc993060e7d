"""How a new training starts from a detector's weights, perhaps those of another project."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ..checkpoint import PIXELS, Checkpoint, load_weights
from ..config import Config, DetectorConfig
from ..config.options import in_effect, info_of, options_of, with_role
from ..config.text import as_option, flatten
from ..errors import WeightsError
from ..formatting import some
from ..interop.checkpoints import with_fcos_core_conventions
from ..models import DetectionModel


def start_from(
    model: DetectionModel, checkpoint: Checkpoint, config: DetectorConfig, class_names: Sequence[str], *, where: str
) -> str:
    """Start a new training from a detector's weights; of the class head the rows of classes that it knows by name.

    Classes without names are taken to be the same when their number is. Optional modules that the weights lack keep
    their initial values. Mean and deviation of the pixels stay those of the config.

    Args:
        model: built from `config`.
        checkpoint: of another training, perhaps of another project.
        config: the section `model` of the new training.
        class_names: of the new training.
        where: for messages.

    Returns:
        What was taken, and what is used otherwise than in the training of the weights; then a line for the tensors that
        are not, or not wholly, from the weights, if there are any.

    Raises:
        WeightsError: see `load_weights`; the options that would fit are named where the weights' own are known.
    """
    own, weights = model.state_dict(), {k: w for k, w in checkpoint.model.items() if k not in PIXELS}
    optional = tuple(f"{path}." for path in model.optional_modules)
    missing = {name: own[name] for name in own if name.startswith(optional) and name not in weights}
    nameless = not checkpoint.class_names and len(class_names) == len(checkpoint.category_ids)
    same_classes = nameless or tuple(class_names) == checkpoint.class_names
    head = {} if same_classes else _class_head(model, weights, checkpoint.class_names, class_names)
    head = {name: tensor for name, tensor in head.items() if name not in missing}
    try:
        load_weights(model, {**weights, **missing, **head}, where=where)
    except WeightsError as error:
        other = _other_structure(checkpoint, config)
        raise WeightsError(f"{error}: {' '.join(other)}" if other else str(error)) from None
    used = weights.keys() & own.keys()  # others are counters, see `load_weights`
    taken = f"all {len(used)}" if same_classes else len(used - head.keys())
    summary = f"weights: {taken} tensors from {where}"
    sections = _conventions(checkpoint, config), config.model_dump(mode="json")
    there, here = ({key: as_option(value) for key, value in flatten(section).items()} for section in sections)
    meanings = with_role(options_of(type(config)), "meaning")
    other = " ".join(f"model.{key}={there[key]}" for key in meanings if key in there and there[key] != here.get(key))
    if other:
        summary += f"; they were trained with {other}, which fits them better"
    if head:
        summary += f"\n  {', '.join(head)}: {_carried(checkpoint, class_names)}"
    if missing:
        summary += f"\n  {some(list(missing))}: fresh, because the weights have none"
    return summary


def _conventions(checkpoint: Checkpoint, config: DetectorConfig) -> Mapping[str, Any]:
    """What is known of the section `model` of the weights' own training."""
    if checkpoint.project == "fcos_core" and config.box_convention != "inclusive":  # else it is as in the original
        return with_fcos_core_conventions({"model": config.model_dump(mode="json")})["model"]
    return checkpoint.config.get("model", {})


def _other_structure(checkpoint: Checkpoint, config: DetectorConfig) -> list[str]:
    """The options that make a model of the structure of the weights, as one types them; empty: unknown, or as it is."""
    if checkpoint.project == "fcos_core" or "model" not in checkpoint.config:
        return []
    try:
        section = Config.model_validate({"model": checkpoint.config["model"]}).model
    except ValueError:  # of another version
        return []
    if type(section) is not type(config):
        return [f"model.name={section.name}"]
    there, here = (flatten(model.model_dump(mode="json")) for model in (section, config))
    if there["backbone.name"] != here["backbone.name"]:  # with the name come the defaults of its section
        default = type(section.backbone).model_validate({"name": there["backbone.name"]})
        here |= flatten(default.model_dump(mode="json", exclude={"name"}), "backbone.")
    for options in (there, here):
        if options.get("backbone.norm") in ("frozen_bn", "sync_bn"):
            options["backbone.norm"] = "bn"  # the same tensors
    options = options_of(type(config))
    return [
        f"model.{key}={as_option(value)}"
        for key, value in in_effect(there, options).items()
        if (info := info_of(options, key)) and "shape" in info.roles and value != here.get(key)
    ]


def _class_head(
    model: DetectionModel, weights: Mapping[str, Tensor], there: Sequence[str], here: Sequence[str]
) -> dict[str, Tensor]:
    """The parameters with rows for classes: rows of known classes from the weights, the others as they are.

    Args:
        model: the new model.
        weights: tensors by name.
        there: names of the classes of the weights, in label order.
        here: names of the classes of the model.
    """
    known = [(label, there.index(name)) for label, name in enumerate(here) if name in there]
    own = model.state_dict()
    head = {name: own[name].clone() for name in model.class_parameters}
    for name in head.keys() & weights.keys() if known else ():
        layout = model.class_parameters[name]
        if weights[name].shape != (layout.count(len(there)), *own[name].shape[1:]):
            head[name] = weights[name]  # `load_weights` refuses it
            continue
        for label, label_there in known:
            head[name][layout.of(label, len(here))] = weights[name][layout.of(label_there, len(there))]
        for row, row_there in zip(layout.of_none(len(here)), layout.of_none(len(there)), strict=True):
            head[name][row] = weights[name][row_there]
    return head


def _carried(checkpoint: Checkpoint, class_names: Sequence[str]) -> str:
    """What became of the class head where the classes differ."""
    known = [name for name in class_names if name in checkpoint.class_names]
    fresh = [name for name in class_names if name not in checkpoint.class_names]
    if not known:
        there = some(checkpoint.class_names) or f"{len(checkpoint.category_ids)} without names"
        return f"fresh, because the classes differ: {there} there, {some(class_names)} here"
    rows = f"{len(known)} of {len(class_names)} rows by class name ({some(known)})"
    return f"partly, {rows}; fresh: {some(fresh)}" if fresh else f"taken, {rows}"
