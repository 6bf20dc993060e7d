"""Conversion of another project's state dict: tensor names by table, detector structure from names and shapes.

The module of each project adds what weights do not show (thresholds, pixel normalisation, the convolution of a block
that has the stride).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

from torch import Tensor

from ..choices import Project
from ..config.options import OptionInfo
from ..config.text import as_option
from ..errors import WeightsError
from ..formatting import join_some

CLASS_HEAD = "head.logits."
"""Prefix of the tensors of our FCOS that have one row per class."""
Rule = tuple[str, str | Callable[[re.Match[str]], str]]
"""Regular expression and its replacement in a tensor name, as for `re.sub`."""

_DEPTHS = {6: 50, 23: 101, 36: 152}
"""Depths of ResNets by the number of blocks in C4."""
_STAGES = {"C2": "layer1", "C3": "layer2", "C4": "layer3", "C5": "layer4"}
_SIZE_LIMITS = (-1, 64, 128, 256, 512)
# Offset channels per group of a modulated 3x3 convolution: 18 offsets and 9 modulation weights.
_MODULATED_CHANNELS = 27


class Converted(NamedTuple):
    """Weights of another project, converted to our names and config.

    Attributes:
        weights: tensors by our names.
        names: the project's tensor names by our names.
        config: sections `model` and `data` that reproduce the project's results.
    """

    weights: dict[str, Tensor]
    names: dict[str, str]
    config: dict[str, Any]


def shift_number(prefix: str, by: int) -> Callable[[re.Match[str]], str]:
    """Return a replacement for `re.sub`: `prefix`, followed by the number in the first group plus `by`."""
    return lambda match: f"{prefix}{int(match[1]) + by}"


def stacked(prefix: str, *, step: int, first: int = 0, layer: int = 0) -> Callable[[re.Match[str]], str]:
    """Return a replacement for `re.sub` for a layer of an `nn.Sequential` of equal blocks.

    Args:
        prefix: our prefix of the layers.
        step: number of layers of a block.
        first: number of the first block, whose number is in the first group.
        layer: index of the layer in its block.
    """
    return lambda match: f"{prefix}{step * (int(match[1]) - first) + layer}."


def replace_prefix(name: str, table: Iterable[tuple[str, str]], *, back: bool = False) -> str:
    """Replace the prefix of a tensor name.

    Args:
        name: tensor name.
        table: pairs of prefixes (old, new); the first match is used. A name without a match is returned unchanged.
        back: replace new prefixes by old ones instead.
    """
    for row in table:
        old, new = reversed(row) if back else row
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def map_names(state: Iterable[str], rules: Sequence[Rule]) -> dict[str, str]:
    """Return another project's tensor names by our names.

    Args:
        state: tensor names of the other project.
        rules: renaming rules, all applied in order to every name. They must put the offsets of a deformable convolution
            under NAME.offset, and its other tensors under NAME or NAME.conv.
    """
    names = {}
    for old in state:
        names[old] = old
        for pattern, replacement in rules:
            names[old] = re.sub(pattern, replacement, names[old])
    deformable = {name.removesuffix(".offset.weight") for name in names.values() if name.endswith(".offset.weight")}
    old_names = {}
    for old, name in names.items():
        layer, _, parameter = name.rpartition(".")
        old_names[f"{layer}.conv.{parameter}" if layer in deformable else name] = old
    return old_names


def count_classes(weights: Mapping[str, Tensor], *, num_anchors: int = 1, where: str) -> int:
    """Return the number of classes of the class head.

    Args:
        weights: tensors by our names.
        num_anchors: number of anchors per location, A; 1 for detectors without anchors.
        where: source of the weights, for messages.

    Raises:
        WeightsError: the weight or bias of the class head is missing, has a wrong shape, or has no rows.
    """
    tensors = [weights.get(f"{CLASS_HEAD}{parameter}") for parameter in ("weight", "bias")]
    weight, bias = ([] if tensor is None else list(tensor.shape) for tensor in tensors)
    if len(weight) != 4 or bias != weight[:1] or not bias[0] or not num_anchors or bias[0] % num_anchors:
        shapes = ["none" if tensor is None else str(list(tensor.shape)) for tensor in tensors]
        rows = "K" if num_anchors == 1 else f"{num_anchors} K"
        raise WeightsError(
            f"{where}: damaged weights or no class head: expected a class head with a weight of shape [{rows}, C, 3, 3]"
            f" and a bias of shape [{rows}] for K classes, found weight: {shapes[0]}, bias: {shapes[1]}"
        )
    return bias[0] // num_anchors


def count_region_classes(weights: Mapping[str, Tensor], *, where: str) -> int:
    """Return the number of classes of the box head of an R-CNN, which has another row for background.

    Args:
        weights: tensors by our names.
        where: source of the weights, for messages.

    Raises:
        WeightsError: the weight or bias of the class predictions is missing, has a wrong shape, or has less than two
            rows.
    """
    tensors = [weights.get(f"box.logits.{parameter}") for parameter in ("weight", "bias")]
    weight, bias = ([] if tensor is None else list(tensor.shape) for tensor in tensors)
    if len(weight) != 2 or bias != weight[:1] or bias[0] < 2:
        raise WeightsError(
            f"{where}: damaged weights: expected class predictions with a weight of shape [1 + K, C] and a bias"
            f" of shape [1 + K] for K classes, found weight: {weight or 'none'}, bias: {bias or 'none'}"
        )
    return bias[0] - 1


def require_same(
    ours: Mapping[str, Any],
    theirs: Mapping[str, Any],
    *,
    free: Iterable[str],
    changeable: Iterable[str],
    where: str,
    project: str,
) -> None:
    """Raise an error if a project's model would compute something else with the weights to be written for it.

    Args:
        ours: options of the checkpoint's `model` section, by dotted key.
        theirs: options that reproduce the project's results, by dotted key.
        free: options that may differ.
        changeable: options that the user may set to other values for these weights, see `changeable_options`.
        where: source of the weights, for messages.
        project: name of the project, for messages.

    Raises:
        WeightsError: an option differs that is not in `free`.
    """
    differing = {
        key: value
        for key, value in theirs.items()
        if key in ours and key not in free and ours[key] != value  # another backbone may lack options
    }
    if not differing:
        return
    texts = [f"model.{key}={as_option(ours[key])} (expected {as_option(value)})" for key, value in differing.items()]
    fixed = [f"model.{key}" for key in differing if key not in changeable]
    remedy = f"; to convert it anyway, add {' '.join(f'model.{k}={as_option(v)}' for k, v in differing.items())}"
    if fixed:
        remedy = f"; the weights were trained for {join_some(fixed)}, which cannot be changed afterwards"
    raise WeightsError(f"{where}: {project} cannot reproduce this detector: {', '.join(texts)}{remedy}")


def changeable_options(options: Mapping[str, OptionInfo], project: Project) -> list[str]:
    """Return the options that a user may set for given weights: those of detection, and for weights of other projects,
    which may be described by any options, all that do not determine the shapes of the tensors.

    Args:
        options: options by dotted key, see `options_of`.
        project: project that wrote the weights.
    """
    fixed = ("classes", "shape", "meaning", "training") if project == "fcos" else ("classes", "shape")
    return [key for key, info in options.items() if info.roles.isdisjoint(fixed)]


def infer_model_section(weights: Mapping[str, Tensor], *, where: str) -> dict[str, Any]:
    """Infer the options of a `model` section that follow from the tensors.

    Args:
        weights: tensors by our names.
        where: source of the weights, for messages.

    Raises:
        WeightsError: the backbone or neck is not supported.
    """
    lateral = weights.get("fpn.lateral.0.weight")
    if lateral is None:
        raise WeightsError(f"{where}: expected a detector with a feature pyramid (FPN), found another neck")
    levels = sum(bool(re.fullmatch(r"fpn\.(output|extra)\.\d+\.weight", name)) for name in weights)
    return {
        "backbone": infer_backbone(weights, where=where),
        "fpn": {"channels": lateral.shape[0]},
        "head": _infer_head(weights),
        "strides": [8 * 2**level for level in range(levels)],
        "size_ranges": list(pairwise([*_SIZE_LIMITS[:levels], None])),
    }


def infer_backbone(weights: Mapping[str, Tensor], *, where: str) -> dict[str, Any]:
    """Infer the section `model.backbone` from the tensors.

    Args:
        weights: tensors by our names.
        where: source of the weights, for messages.

    Raises:
        WeightsError: the backbone is not supported.
    """
    if "backbone.level5.root.conv.weight" in weights:
        return {"name": "dla34", "weights": None}
    blocks = sum(bool(re.fullmatch(r"backbone\.layer3\.\d+\.conv3\.weight", name)) for name in weights)
    first = weights.get("backbone.layer1.0.conv2.weight", weights.get("backbone.layer1.0.conv2.conv.weight"))
    outputs, width = (0, 0) if first is None or first.dim() != 4 else first.shape[:2]
    if blocks not in _DEPTHS or not outputs or not width or outputs % width:
        raise WeightsError(
            f"{where}: expected a detector with one of the backbones resnet50, resnet101, resnet152, a ResNeXt of such"
            " a depth, or dla34, found another backbone"
        )
    kind, suffix = ("resnet", "") if outputs == width == 64 else ("resnext", f"_{outputs // width}x{width}d")
    norm = "bn" if "backbone.layer2.0.bn1.num_batches_tracked" in weights else "frozen_bn"
    if "backbone.layer2.0.bn1.weight" in weights and "backbone.layer2.0.bn1.running_mean" not in weights:
        norm = "gn"
    section: dict[str, Any] = {
        "name": f"{kind}{_DEPTHS[blocks]}{suffix}",
        "weights": None,
        "norm": norm,
        "frozen_stages": 2,
    }
    offsets = {stage: weights.get(f"backbone.{layer}.0.conv2.offset.weight") for stage, layer in _STAGES.items()}
    for stage, offset in offsets.items():
        if offset is not None:
            is_modulated = len(offset) % _MODULATED_CHANNELS == 0
            section.setdefault("deformable_stages", []).append(stage)
            section |= {
                "modulated": is_modulated,
                "offset_groups": len(offset) // (_MODULATED_CHANNELS if is_modulated else 18),
            }
    return section


def _infer_head(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    tower = {
        name: tensor for name, tensor in weights.items() if name.startswith(("head.cls_tower.", "head.shared_tower."))
    }
    convs = [name for name, tensor in tower.items() if tensor.dim() == 4 and ".offset." not in name]
    shared = [name for name in convs if name.startswith("head.shared_tower.")]
    return {
        "num_convs": len(convs) - len(shared),
        "num_shared_convs": len(shared),
        "norm": infer_norm(tower, "head."),
        "conv_bias": all(name.removesuffix("weight") + "bias" in tower for name in convs),
        "deformable": any(".offset." in name for name in tower),
        "level_scales": "head.scales.0" in weights,
    }


def infer_norm(weights: Mapping[str, Tensor], prefix: str) -> Literal["none", "bn", "gn"]:
    """Infer the normalisation of the layers under a prefix from the tensors by our names."""
    tensors = {name: tensor for name, tensor in weights.items() if name.startswith(prefix)}
    if any(name.endswith(".running_mean") for name in tensors):
        return "bn"
    is_affine = any(name.endswith(".weight") and tensor.dim() == 1 for name, tensor in tensors.items())
    return "gn" if is_affine else "none"
