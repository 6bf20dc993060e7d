"""How a new training starts from a detector's weights, perhaps those of another project."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ..checkpoint import CLASS_HEAD, PIXELS, Checkpoint, fill
from ..config import FCOSConfig
from ..config.backbones import OF_DEFORMABLE
from ..config.text import as_option, flat
from ..errors import WeightsError
from ..interop.checkpoints import with_fcos_core_conventions
from ..models import FCOS
from ..text import some

_LEVEL_SCALES = "head.scales."
_MEANINGS = (
    "strides",
    "location",
    "quality",
    "box_convention",
    "channel_order",
    *PIXELS,
    "backbone.norm_eps",
    "backbone.stride_in_1x1",
    "fpn.extra_level_source",
    "head.centerness_on",
    "head.regression",
)
"""Options of the model that change what its tensors mean, but not their shapes."""
_STRUCTURE = (
    "strides",
    *(f"backbone.{key}" for key in ("name", "norm", "deformable_stages")),
    *OF_DEFORMABLE,
    *(f"fpn.{key}" for key in ("channels", "norm", "relu")),
    *(f"head.{key}" for key in ("num_convs", "num_shared_convs", "norm", "conv_bias", "deformable", "level_scales")),
)
"""Options of the model that change names or shapes of its tensors."""


def start_from(
    model: FCOS, checkpoint: Checkpoint, config: FCOSConfig, class_names: Sequence[str], *, where: str
) -> str:
    """Start a new training from a detector's weights; of the class head the rows of classes that it knows by name.

    Classes without names are taken to be the same when their number is. A head without level scales fits one that has
    them: they begin with 1. Mean and deviation of the pixels stay those of the config.

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
        WeightsError: see `fill`; the options that would fit are named where the weights' own are known.
    """
    own, weights = model.state_dict(), {k: w for k, w in checkpoint.model.items() if k not in PIXELS}
    scales = {name: own[name] for name in own if name.startswith(_LEVEL_SCALES) and name not in weights}
    nameless = not checkpoint.class_names and len(class_names) == len(checkpoint.category_ids)
    same_classes = nameless or tuple(class_names) == checkpoint.class_names
    head = {} if same_classes else _class_head(own, weights, checkpoint.class_names, class_names)
    try:
        fill(model, {**weights, **scales, **head}, where=where)
    except WeightsError as error:
        other = _other_structure(checkpoint, config)
        raise WeightsError(f"{error}: {' '.join(other)}" if other else str(error)) from None
    used = weights.keys() & own.keys()  # others are counters, see `fill`
    taken = f"all {len(used)}" if same_classes else len(used - head.keys())
    summary = f"weights: {taken} tensors from {where}"
    sections = _conventions(checkpoint, config), config.model_dump(mode="json")
    there, here = ({key: as_option(value) for key, value in flat(section).items()} for section in sections)
    other = " ".join(f"model.{key}={there[key]}" for key in _MEANINGS if key in there and there[key] != here.get(key))
    if other:
        summary += f"; they were trained with {other}, which fits them better"
    if head:
        summary += f"\n  {', '.join(head)}: {_carried(checkpoint, class_names)}"
    if scales:
        summary += f"\n  {some(list(scales))}: fresh, because the weights have none"
    return summary


def _conventions(checkpoint: Checkpoint, config: FCOSConfig) -> Mapping[str, Any]:
    """What is known of the section `model` of the weights' own training."""
    if checkpoint.project == "fcos_core" and config.box_convention != "inclusive":  # else it is as in the original
        return with_fcos_core_conventions({"model": config.model_dump(mode="json")})["model"]
    return checkpoint.config.get("model", {})


def _other_structure(checkpoint: Checkpoint, config: FCOSConfig) -> list[str]:
    """The options that make a model of the structure of the weights, as one types them; empty: unknown, or as it is."""
    if checkpoint.project == "fcos_core" or "model" not in checkpoint.config:
        return []
    try:
        section = FCOSConfig.model_validate(checkpoint.config["model"])
    except ValueError:  # of another version
        return []
    there, here = (flat(model.model_dump(mode="json")) for model in (section, config))
    if there["backbone.name"] != here["backbone.name"]:  # with the name come the defaults of its section
        here |= flat(type(section.backbone)().model_dump(mode="json", exclude={"name"}), "backbone.")
    for options in (there, here):
        if options.get("backbone.norm") in ("frozen_bn", "sync_bn"):
            options["backbone.norm"] = "bn"  # the same tensors
    if not there.get("backbone.deformable_stages"):
        there = {key: value for key, value in there.items() if key not in OF_DEFORMABLE}
    keys = (key for key in there if key in _STRUCTURE or key.startswith("backbone.options."))
    return [f"model.{key}={as_option(there[key])}" for key in keys if there[key] != here.get(key)]


def _class_head(
    own: Mapping[str, Tensor], weights: Mapping[str, Tensor], there: Sequence[str], here: Sequence[str]
) -> dict[str, Tensor]:
    """The tensors with a row for every class: the rows of classes that are there by name, else the model's own."""
    rows = [(row, there.index(name)) for row, name in enumerate(here) if name in there]
    head = {name: tensor.clone() for name, tensor in own.items() if name.startswith(CLASS_HEAD)}
    for name in head.keys() & weights.keys() if rows else ():
        if weights[name].shape[1:] != head[name].shape[1:]:
            head[name] = weights[name]  # `fill` refuses it
            continue
        for row, row_there in rows:
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
