"""Table of detectors, and construction of a detector from a config."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from .. import torchvision_import  # noqa: F401 (before anything that imports torchvision)
from ..config import DetectorConfig
from ..config.text import as_option, flatten
from .backbones import Backbone, build_backbone
from .backbones.pretrained import trained_with
from .backbones.timm_features import PREFIX, pixel_statistics
from .building import build_anchors, build_fcos, build_retinanet
from .building_rcnn import build_rcnn, build_rpn_detector
from .detector import DetectionModel

__all__ = ["DetectionModel", "build_anchors", "build_model"]

log = logging.getLogger(__name__)


def build_model(config: DetectorConfig, *, num_classes: int, pretrained: bool = True) -> DetectionModel:
    """Build the detector that a config describes.

    Args:
        config: section `model` of the config.
        num_classes: number of classes K.
        pretrained: whether to load the backbone weights that the config names. False is for callers that load a
            checkpoint afterwards.

    Raises:
        ConfigError: the backbone does not exist or has no maps for the strides of the config.
        WeightsError: the backbone weights cannot be obtained or do not fit.
    """
    backbone = build_backbone(config.backbone, pretrained=pretrained)
    if pretrained and config.backbone.weights:
        _compare_with_training(config)
    return MODELS[config.name](config, backbone, num_classes)


Builder = Callable[[Any, Backbone, int], DetectionModel]
MODELS: dict[str, Builder] = {
    "fcos": build_fcos,
    "retinanet": build_retinanet,
    "rpn": build_rpn_detector,
    "rcnn": build_rcnn,
}
"""Builders of detectors by `model.name`; called with the section `model`, a backbone and the number of classes."""


def _compare_with_training(config: DetectorConfig) -> None:
    """Warn about options that differ from those that the backbone weights were trained with."""
    name, weights = config.backbone.name, config.backbone.weights or ""
    trained: dict[str, Any] = dict(trained_with(name, weights))
    if weights == "imagenet" and name.startswith(PREFIX):
        trained |= pixel_statistics(name)
    current = flatten(config.model_dump())
    differing = {key: value for key, value in trained.items() if not _is_equal(current.get(key, value), value)}
    if differing:
        options = " ".join(f"model.{key}={as_option(value)}" for key, value in differing.items())
        log.warning("model.backbone.weights=%s (%s) were trained with %s; set the same options", weights, name, options)


def _is_equal(current: Any, trained: Any) -> bool:
    """Return whether two values of an option are equal; pixel statistics may differ by less than one grey level."""
    if isinstance(trained, list):
        return all(abs(a - b) < 1 for a, b in zip(current, trained, strict=True))
    return current == trained
