"""Conversion of weights of the original FCOS (`fcos_core`), in both directions.

Names are facts about that project; none of its code or text is used. `config.py` converts its configs.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from ...checkpoint import PIXELS, Checkpoint
from ...config import DetectorConfig, RetinaNetConfig
from ...config.backbones import FBNetConfig, MobileNetV2Config, ResNetConfig
from ...config.detectors import DEFAULT_DETECTOR, DETECTORS
from ...config.fbnet import find_architecture
from ...config.options import free_options, in_effect, options_of
from ...config.rcnn import AnchorPyramidConfig
from ...config.text import flatten, nest
from ...errors import WeightsError
from ...models import build_anchors
from ...models.backbones.renames import mobilenet_name, original_mobilenet_name
from ..architecture import CLASS_HEAD, changeable_options, replace_prefix, require_same
from .bodies import STRIDES
from .keys import DEFAULTS, ONE_STAGE
from .mapping import find_body, find_end, to_keys, to_options
from .rcnn_names import RCNN_PREFIXES, Prefixes, prefixes_of

log = logging.getLogger(__name__)

ANCHORS = {"retinanet": "cell_anchors_", "rpn": "proposals.cell_anchors_", "rcnn": "proposals.cell_anchors_"}
"""Beginnings of the names of the anchors of a cell by detector; the original saves them with the weights."""
_BODY_PREFIXES = [
    *((f"backbone.body.stem.{layer}.", f"backbone.{layer}.") for layer in ("conv1", "bn1")),
    ("backbone.body.", "backbone."),
]


def _pyramid_prefixes(first: int) -> list[tuple[str, str]]:
    """Return the prefixes of a pyramid from the map with this number on; the original numbers C2 to C5 from 1 to 4."""
    return [
        *((f"backbone.fpn.fpn_inner{number}.", f"fpn.lateral.{number - first}.") for number in range(first, 5)),
        *((f"backbone.fpn.fpn_layer{number}.", f"fpn.output.{number - first}.") for number in range(first, 5)),
    ]


TWO_STAGE_PREFIXES = [*_BODY_PREFIXES, *_pyramid_prefixes(1)]
"""Prefixes of the names of backbone and pyramid in R-CNN, (the original's, ours)."""
_PREFIXES = [
    *_BODY_PREFIXES,
    *_pyramid_prefixes(2),
    *((f"backbone.fpn.top_blocks.p{i + 6}.", f"fpn.extra.{i}.") for i in range(2)),
    ("rpn.head.bbox_tower.", "head.box_tower."),
    ("rpn.head.cls_logits.", CLASS_HEAD),
]
"""Prefixes of the names of the same tensors in one-stage detectors, (the original's, ours)."""
_LAST_PREFIX = ("rpn.head.", "head.")
_HEADS = {
    "fcos": [
        *_PREFIXES,
        ("rpn.head.bbox_pred.", "head.ltrb."),
        *((f"rpn.head.scales.{i}.scale", f"head.scales.{i}") for i in range(5)),
        _LAST_PREFIX,
    ],
    "retinanet": [
        *_PREFIXES,
        ("rpn.head.bbox_pred.", "head.offsets."),
        ("rpn.anchor_generator.cell_anchors.", ANCHORS["retinanet"]),
        _LAST_PREFIX,
    ],
    "rpn": [*TWO_STAGE_PREFIXES, *RCNN_PREFIXES],
    "rcnn": [*TWO_STAGE_PREFIXES, *RCNN_PREFIXES],
}
"""Prefixes by detector (`model.name`)."""
_BACKBONE = "backbone."
_PROJECT = "the original FCOS"
_BACKBONES = (ResNetConfig, MobileNetV2Config, FBNetConfig)


def find_detector(state: Mapping[str, Tensor]) -> str | None:
    """Return the detector (`model.name`) of a state dict with the original's tensor names; None if it has others.

    The region proposal network predicts the same quantities as RetinaNet, but with 1x1 convolutions.
    """
    if {"rpn.head.cls_logits.bias", "rpn.head.centerness.bias"} <= state.keys():
        return "fcos"
    heads = [state.get(f"rpn.head.{name}.weight") for name in ("cls_logits", "bbox_pred")]
    if all(head is not None and head.shape[2:] == (3, 3) for head in heads):
        return "retinanet"
    if "roi_heads.box.predictor.cls_score.weight" in state:
        return "rcnn"
    if any(name.startswith("roi_heads.") for name in state):  # of another project
        return None
    is_rpn = "rpn.head.conv.weight" in state or any(name.startswith("rpn.head.0.head.") for name in state)
    return "rpn" if is_rpn else None


def rename(name: str, detector: str = "fcos") -> str:
    """Return the name in our model for the original's name of a tensor of a detector (`model.name`)."""
    renamed = replace_prefix(name, _HEADS[detector])
    if not renamed.startswith(_BACKBONE):
        return renamed
    return _BACKBONE + mobilenet_name(renamed.removeprefix(_BACKBONE))


def renaming_back(section: Mapping[str, Any]) -> Callable[[str], str]:
    """Return a function from our name of a tensor to the original's; inverse of `rename` for the original's backbones.

    Args:
        section: complete `model` section of the detector.
    """
    detector = section["name"]
    prefixes = _HEADS[detector] if detector in ONE_STAGE else [*TWO_STAGE_PREFIXES, *prefixes_of(section)]
    return partial(_rename_back, prefixes=prefixes)


def _rename_back(name: str, *, prefixes: Prefixes) -> str:
    if name.startswith(_BACKBONE):
        name = _BACKBONE + original_mobilenet_name(name.removeprefix(_BACKBONE))
    return replace_prefix(name, prefixes, back=True)


def convert_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of the original's state dict to our names."""
    detector = find_detector(state) or "fcos"
    return {rename(name, detector): tensor for name, tensor in state.items()}


def to_fcos_core(checkpoint: Checkpoint, *, where: str = "weights") -> dict[str, Tensor]:
    """Build a state dict for the original's model.

    The original also needs a YAML config. Its settings that differ from the defaults are logged as `KEY VALUE` pairs.
    The order of the class rows is kept and logged: the original numbers classes in the order of its JSON file, as our
    COCO reader does.

    Args:
        checkpoint: detector with the original's conventions.
        where: source of the weights, for messages.

    Raises:
        WeightsError: the original cannot compute this detector.
    """
    section = checkpoint.config["model"]
    config_class = DETECTORS[section.get("name", DEFAULT_DETECTOR)]
    config = config_class.model_validate(section)
    if config.name not in _HEADS:
        raise WeightsError(
            f"{where}: weights of {config.name}, but the original has only FCOS, RetinaNet, RPN and R-CNN"
        )
    ours, options = flatten(config.model_dump()), options_of(config_class)
    _require_body(ours, where=where)
    settings = to_keys(ours, len(checkpoint.category_ids))
    again = to_options({**DEFAULTS, **settings}.__getitem__, detector=config.name, num_classes_given=True)
    theirs = flatten(config_class.model_validate(nest(again)["model"]).model_dump())
    if ours["backbone.name"] == "mobilenet_v2" and ours["backbone.norm"] == "frozen_bn":
        ours["backbone.norm"] = "bn"  # the same computation in inference
    require_same(
        in_effect(ours, options),
        theirs,
        free=free_options(options, "fcos_core"),
        changeable=changeable_options(options, checkpoint.project),
        where=where,
        project=_PROJECT,
    )
    pairs = " ".join(f"{key} {_quote(value)}" for key, value in settings.items())
    log.info("%s: settings that the original's config needs in addition to its defaults: %s", where, pairs)
    if config.name != "rpn":
        log.info(
            "%s: order of the classes: %s; the original numbers them in the order of the categories in its JSON file,"
            " which must be the same",
            where,
            ", ".join(checkpoint.class_names or [f"category {i}" for i in checkpoint.category_ids]),
        )
    tensors = {name: tensor for name, tensor in checkpoint.model.items() if name not in PIXELS}
    if config.name in ANCHORS:
        later = {name: tensors.pop(name) for name in list(tensors) if not name.startswith(("backbone.", "fpn."))}
        tensors |= {f"{ANCHORS[config.name]}{level}": cell for level, cell in enumerate(_anchors(config))} | later
    rename_back = renaming_back(config.model_dump())
    return {rename_back(name): tensor for name, tensor in tensors.items()}


def _anchors(config: DetectorConfig) -> list[Tensor]:
    """Return the anchors of the cell in the upper left corner of every level."""
    assert isinstance(config, RetinaNetConfig | AnchorPyramidConfig)
    return build_anchors(config).cells()


def _require_body(ours: Mapping[str, Any], *, where: str) -> None:
    """Raise an error if the original has no first stage, or no backbone with the maps, that a detector uses.

    Args:
        ours: options of the checkpoint's `model` section, by dotted key.
        where: source of the weights, for messages.
    """
    name, end = ours["backbone.name"], find_end(ours)
    if find_body(ours) is None:
        names = [known for section in _BACKBONES for known in section.names()]
        name = " or ".join(known for known in names if find_body({**ours, "backbone.name": known}))
    last = find_architecture(ours["backbone.architecture"]).trunk_strides[-1] if end == "last" else 0
    required = {"backbone.name": name, "strides": STRIDES.get(end, [last])}
    if "fcos.enabled" in ours:  # with FCOS_ON, the original has no second stage
        required["fcos.enabled"] = False
    require_same({key: ours[key] for key in required}, required, free=(), changeable=(), where=where, project=_PROJECT)


def _quote(value: Any) -> str:
    """Return a value as a word of a command line, in double quotes if possible, which every shell knows."""
    text = str(value)
    return shlex.quote(text) if '"' in text else f'"{text}"'
