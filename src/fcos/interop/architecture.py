"""How a detector of another project is built, as its tensors tell: names by table, structure by names and shapes.

What weights do not show (thresholds, pixels, where a block strides) is said in the module of each project.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from torch import Tensor

from ..checkpoint import Checkpoint
from ..config.text import as_option
from ..errors import WeightsError

CLASS_HEAD = "head.logits."
"""Prefix of the tensors of our FCOS with a row for every class."""
Rule = tuple[str, str | Callable[[re.Match[str]], str]]
"""A regular expression and what replaces it in a name."""

_RESNETS = {
    (6, (64, 64)): "resnet50",
    (23, (64, 64)): "resnet101",
    (23, (256, 8)): "resnext101_32x8d",
    (23, (256, 4)): "resnext101_64x4d",
}
"""Backbones by the blocks of C4 and the channels (out, in) of the first 3x3 convolution of C2."""
_STAGES = {"C2": "layer1", "C3": "layer2", "C4": "layer3", "C5": "layer4"}
_SIZE_ENDS = (-1, 64, 128, 256, 512)
_MODULATED = 27  # numbers a sample group of a modulated 3x3 convolution needs; 18 without the weights


class Converted(NamedTuple):
    """Weights of another project in our terms.

    Attributes:
        weights: tensors by our names.
        names: the project's name of each tensor by ours.
        config: the sections `model` and `data` that compute the same.
    """

    weights: dict[str, Tensor]
    names: dict[str, str]
    config: dict[str, Any]


def shifted(prefix: str, by: int) -> Callable[[re.Match[str]], str]:
    """A replacement: `prefix` and the number in the first group plus `by`."""
    return lambda match: f"{prefix}{int(match[1]) + by}"


def with_prefixes(name: str, table: Iterable[tuple[str, str]], *, back: bool = False) -> str:
    """A name with another beginning.

    Args:
        name: of a tensor.
        table: beginnings (old, new); the first row that fits counts. A name that none fits stays.
        back: from new to old.
    """
    for row in table:
        old, new = reversed(row) if back else row
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def new_names(state: Iterable[str], rules: Sequence[Rule]) -> dict[str, str]:
    """The names of another project's tensors by ours.

    Args:
        state: names in the project's form.
        rules: applied to every name, all of them, one after the other. A deformable convolution then has its offsets
            under NAME.offset, its own tensors under NAME or NAME.conv.
    """
    names = {}
    for old in state:
        names[old] = old
        for pattern, replacement in rules:
            names[old] = re.sub(pattern, replacement, names[old])
    deformable = {name.removesuffix(".offset.weight") for name in names.values() if name.endswith(".offset.weight")}
    found = {}
    for old, name in names.items():
        layer, _, part = name.rpartition(".")
        found[f"{layer}.conv.{part}" if layer in deformable else name] = old
    return found


def class_rows(weights: Mapping[str, Tensor], *, where: str) -> int:
    """The number of rows of the class head.

    Args:
        weights: in our names.
        where: for messages.

    Raises:
        WeightsError: weight or bias are missing, or have not a row each for every one of at least one class.
    """
    tensors = [weights.get(f"{CLASS_HEAD}{part}") for part in ("weight", "bias")]
    weight, bias = ([] if tensor is None else list(tensor.shape) for tensor in tensors)
    if len(weight) != 4 or bias != weight[:1] or not bias[0]:
        found = " and ".join("none" if tensor is None else str(list(tensor.shape)) for tensor in tensors)
        raise WeightsError(
            f"{where}: damaged or without a class head: expected its weight [K, C, 3, 3] and its bias [K] for K"
            f" classes, found {found}"
        )
    return bias[0]


def require_fcos(checkpoint: Checkpoint, *, where: str, project: str) -> None:
    """Refuse to write weights of another detector for a project's FCOS.

    Raises:
        WeightsError: it is another detector.
    """
    name = checkpoint.config["model"].get("name", "fcos")
    if name != "fcos":
        raise WeightsError(f"{where}: weights of {name}; {project} computes FCOS only")


def require_same(
    own: Mapping[str, Any], there: Mapping[str, Any], *, free: Iterable[str], where: str, project: str
) -> None:
    """Refuse to write weights for a project that would compute something else with them.

    Args:
        own: the options of a section `model` by their dotted keys.
        there: those of what the project computes.
        free: options that do not matter.
        where: for messages.
        project: likewise.

    Raises:
        WeightsError: an option that is not free differs.
    """
    other = [
        f"model.{key}={as_option(own[key])} (there: {as_option(value)})"
        for key, value in there.items()
        if key in own and key not in free and own[key] != value  # options of another backbone go with its name
    ]
    if other:
        raise WeightsError(
            f"{where}: {project} computes something else: {', '.join(other)}; to convert in spite of an option that"
            " shapes no tensor, give the value it has there as KEY=VALUE"
        )


def model_section(weights: Mapping[str, Tensor], *, where: str) -> dict[str, Any]:
    """As much of a config's section `model` as the tensors show.

    Args:
        weights: in our names.
        where: for messages.

    Raises:
        WeightsError: a backbone or neck that is not known here.
    """
    lateral = weights.get("fpn.lateral.0.weight")
    if lateral is None:
        raise WeightsError(f"{where}: expected a detector with a feature pyramid (FPN), found another neck")
    levels = sum(bool(re.fullmatch(r"fpn\.(output|extra)\.\d+\.weight", name)) for name in weights)
    return {
        "backbone": _backbone(weights, where=where),
        "fpn": {"channels": lateral.shape[0]},
        "head": _head(weights),
        "strides": [8 * 2**level for level in range(levels)],
        "size_ranges": list(pairwise([*_SIZE_ENDS[:levels], None])),
    }


def _backbone(weights: Mapping[str, Tensor], *, where: str) -> dict[str, Any]:
    if "backbone.level5.root.conv.weight" in weights:
        return {"name": "dla34", "weights": None}
    blocks = sum(bool(re.fullmatch(r"backbone\.layer3\.\d+\.conv3\.weight", name)) for name in weights)
    first = weights.get("backbone.layer1.0.conv2.weight")
    name = None if first is None else _RESNETS.get((blocks, (first.shape[0], first.shape[1])))
    if name is None:
        known = ", ".join([*_RESNETS.values(), "dla34"])
        raise WeightsError(f"{where}: expected a detector on one of {known}, found another backbone")
    norm = "bn" if "backbone.layer2.0.bn1.num_batches_tracked" in weights else "frozen_bn"
    section: dict[str, Any] = {"name": name, "weights": None, "norm": norm, "frozen_stages": 2}
    offsets = {stage: weights.get(f"backbone.{layer}.0.conv2.offset.weight") for stage, layer in _STAGES.items()}
    for stage, offset in offsets.items():
        if offset is not None:
            modulated = len(offset) % _MODULATED == 0
            section.setdefault("deformable_stages", []).append(stage)
            section |= {"modulated": modulated, "offset_groups": len(offset) // (_MODULATED if modulated else 18)}
    return section


def _head(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    tower = {name: t for name, t in weights.items() if name.startswith(("head.cls_tower.", "head.shared_tower."))}
    convs = [name for name, tensor in tower.items() if tensor.dim() == 4 and ".offset." not in name]
    shared = [name for name in convs if name.startswith("head.shared_tower.")]
    affine = any(name.endswith(".weight") and tensor.dim() == 1 for name, tensor in tower.items())
    return {
        "num_convs": len(convs) - len(shared),
        "num_shared_convs": len(shared),
        "norm": "bn" if any(name.endswith(".running_mean") for name in tower) else "gn" if affine else "none",
        "conv_bias": all(name.removesuffix("weight") + "bias" in tower for name in convs),
        "deformable": any(".offset." in name for name in tower),
        "level_scales": "head.scales.0" in weights,
    }
