"""Construction of the one-stage detectors from a config, and the parts that all detectors share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from ..config import DetectorConfig, FCOSConfig, RetinaNetConfig
from ..config.detector import PyramidConfig
from ..config.rcnn import AnchorPyramidConfig
from ..errors import ConfigError
from .anchors import AnchorGrid, AnchorMatcher, BoxCoder
from .backbones import Backbone
from .detector import Pixels
from .fcos import FCOS, FCOSHead
from .fpn import FPN
from .losses import FCOSLoss, RetinaNetLoss
from .points import Assigner
from .postprocess import FCOSPostprocess, Postprocess
from .retinanet import RetinaNet, RetinaNetHead


def build_fcos(config: FCOSConfig, backbone: Backbone, num_classes: int) -> FCOS:
    """Build an FCOS on a backbone from a config, see `build_model`."""
    return FCOS(
        backbone,
        num_classes,
        fpn=build_fpn(config, backbone),
        head=FCOSHead(config.fpn.channels, num_classes, strides=config.strides, **config.head.model_dump()),
        assigner=build_options(Assigner, config),
        loss=build_options(FCOSLoss, config),
        postprocess=build_options(FCOSPostprocess, config),
        pixels=Pixels(config.channel_order, config.pixel_mean, config.pixel_std),
    )


def build_retinanet(config: RetinaNetConfig, backbone: Backbone, num_classes: int) -> RetinaNet:
    """Build a RetinaNet on a backbone from a config, see `build_model`."""
    anchors = build_anchors(config)
    return RetinaNet(
        backbone,
        num_classes,
        fpn=build_fpn(config, backbone),
        head=RetinaNetHead(
            config.fpn.channels,
            num_classes,
            num_anchors=anchors.num_anchors,
            num_levels=len(config.strides),
            **config.head.model_dump(),
        ),
        anchors=anchors,
        matcher=build_options(AnchorMatcher, config),
        coder=BoxCoder(config.offset_weights, config.box_convention),
        loss=build_options(RetinaNetLoss, config),
        postprocess=build_options(Postprocess, config),
        pixels=Pixels(config.channel_order, config.pixel_mean, config.pixel_std),
    )


def build_anchors(config: RetinaNetConfig | AnchorPyramidConfig) -> AnchorGrid:
    """Build the options of the anchors from a config."""
    return AnchorGrid(
        strides=config.strides,
        sizes=config.level_sizes,
        ratios=config.anchor_ratios,
        location=config.location,
        rounding=config.anchor_rounding,
        box_convention=config.box_convention,
    )


def build_options(options_class: Callable[..., Any], config: DetectorConfig) -> Any:
    """Build a dataclass of options from the config fields with the same names."""
    return options_class(**{field.name: getattr(config, field.name) for field in fields(options_class)})  # pyright: ignore[reportArgumentType]


def build_fpn(config: PyramidConfig, backbone: Backbone) -> FPN:
    """Build the pyramid of a detector, and remove the maps of the backbone that it does not use."""
    levels = used_levels(backbone, config.strides, name=config.backbone.name)
    return FPN(
        [backbone.channels[name] for name in levels],
        config.fpn.channels,
        extra_levels=len(config.strides) - len(levels),
        **config.fpn.model_dump(exclude={"channels", "enabled"}),
    )


def used_levels(backbone: Backbone, strides: list[int], *, name: str) -> list[str]:
    """Return the names of the backbone maps that a pyramid with these strides uses, and remove all later maps.

    Raises:
        ConfigError: the backbone has no map with the stride of the first level, or later maps cannot be removed.
    """
    levels = [level for level, stride in backbone.strides.items() if stride in strides]
    if not levels or backbone.strides[levels[0]] != strides[0]:
        raise ConfigError(
            f"model.strides={strides}: the first stride must be one of the strides of {name}:"
            f" {list(backbone.strides.values())}"
        )
    if levels[-1] != list(backbone.strides)[-1]:
        if not hasattr(backbone, "truncate_after"):
            raise ConfigError(
                f"model.backbone.name={name}: has maps after {levels[-1]}, which model.strides={strides} do not use,"
                " and no method truncate_after(level) to remove them"
            )
        backbone.truncate_after(levels[-1])
    return levels
