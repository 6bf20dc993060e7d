"""How to build the detector that a config describes."""

from __future__ import annotations

import logging
from typing import Any

from ..config import FCOSConfig
from ..config.text import as_option, flat
from ..errors import ConfigError
from .backbones import build_backbone
from .backbones.pretrained import trained_with
from .backbones.timm_features import PREFIX, pixel_statistics
from .fcos import FCOS, FCOSHead, FCOSOutputs
from .fpn import FPN

__all__ = ["FCOS", "FCOSOutputs", "build_model"]

log = logging.getLogger(__name__)


def build_model(config: FCOSConfig, *, num_classes: int, pretrained: bool = True) -> FCOS:
    """Build the detector that a config describes.

    Args:
        config: the section `model`.
        num_classes: K.
        pretrained: fetch the backbone weights that the config names; False when a checkpoint will be loaded anyway.

    Raises:
        ConfigError: no such backbone, or strides that it cannot serve.
        WeightsError: backbone weights that cannot be had.
    """
    options = config.backbone.model_dump()
    if not pretrained and "weights" in options:
        options["weights"] = None
    backbone = build_backbone(options.pop("name"), options)
    if options.get("weights"):
        _compare_with_training(config)
    levels = [name for name, stride in backbone.strides.items() if stride in config.strides]
    if not levels or backbone.strides[levels[0]] != config.strides[0]:
        raise ConfigError(
            f"model.strides={config.strides}: the first level must be a map of {config.backbone.name}, which has"
            f" strides {list(backbone.strides.values())}"
        )
    if levels[-1] != list(backbone.strides)[-1]:
        if not hasattr(backbone, "end_at"):
            raise ConfigError(
                f"model.backbone.name={config.backbone.name}: has maps after {levels[-1]}, which model.strides="
                f"{config.strides} do not use, and no method end_at(level) to remove them"
            )
        backbone.end_at(levels[-1])
    fpn = FPN(
        [backbone.channels[name] for name in levels],
        config.fpn.channels,
        extra_levels=len(config.strides) - len(levels),
        extra_level_source=config.fpn.extra_level_source,
        norm=config.fpn.norm,
        relu=config.fpn.relu,
    )
    head = FCOSHead(config.fpn.channels, num_classes, strides=config.strides, **config.head.model_dump())
    return FCOS(
        backbone,
        num_classes,
        fpn=fpn,
        head=head,
        **config.model_dump(exclude={"name", "num_classes", "backbone", "fpn", "head"}),
    )


def _compare_with_training(config: FCOSConfig) -> None:
    """Say which options fit the weights of the backbone better than those of the config."""
    name, weights = config.backbone.name, config.backbone.weights or ""
    there: dict[str, Any] = dict(trained_with(name, weights))
    if weights == "imagenet" and name.startswith(PREFIX):
        there |= pixel_statistics(name)
    here = flat(config.model_dump())
    other = {key: value for key, value in there.items() if not _alike(here.get(key, value), value)}
    if other:
        options = " ".join(f"model.{key}={as_option(value)}" for key, value in other.items())
        log.warning("model.backbone.weights=%s of %s: trained with %s, which fits them better", weights, name, options)


def _alike(here: Any, there: Any) -> bool:
    """Whether two values of an option are the same; statistics of pixels: to less than one grey level."""
    if isinstance(there, list):
        return all(abs(a - b) < 1 for a, b in zip(here, there, strict=True))
    return here == there
