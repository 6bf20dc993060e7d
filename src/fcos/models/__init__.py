"""Table of detectors, and construction of a detector from a config."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from ..choices import BoxConvention
from ..config import DetectorConfig, FCOSConfig, RetinaNetConfig, RPNConfig
from ..config.detector import PyramidConfig
from ..config.rcnn import AnchorPyramidConfig, ProposalsConfig
from ..config.text import as_option, flatten
from ..errors import ConfigError
from .anchors import AnchorGrid, AnchorMatcher, BoxCoder, Sampler
from .backbones import Backbone, build_backbone
from .backbones.pretrained import trained_with
from .backbones.timm_features import PREFIX, pixel_statistics
from .detector import DetectionModel, Pixels
from .fcos import FCOS, FCOSHead
from .fpn import FPN
from .losses import FCOSLoss, RetinaNetLoss
from .points import Assigner
from .postprocess import FCOSPostprocess, Postprocess
from .proposals import ProposalLimits, ProposalSelection
from .retinanet import RetinaNet, RetinaNetHead
from .rpn import RPN, RPNDetector, RPNHead, build_rpn_tower

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


def build_fcos(config: FCOSConfig, backbone: Backbone, num_classes: int) -> FCOS:
    """Build an FCOS on a backbone from a config, see `build_model`."""
    return FCOS(
        backbone,
        num_classes,
        fpn=_build_fpn(config, backbone),
        head=FCOSHead(config.fpn.channels, num_classes, strides=config.strides, **config.head.model_dump()),
        assigner=_build_options(Assigner, config),
        loss=_build_options(FCOSLoss, config),
        postprocess=_build_options(FCOSPostprocess, config),
        pixels=Pixels(config.channel_order, config.pixel_mean, config.pixel_std),
    )


def build_retinanet(config: RetinaNetConfig, backbone: Backbone, num_classes: int) -> RetinaNet:
    """Build a RetinaNet on a backbone from a config, see `build_model`."""
    anchors = build_anchors(config)
    return RetinaNet(
        backbone,
        num_classes,
        fpn=_build_fpn(config, backbone),
        head=RetinaNetHead(
            config.fpn.channels,
            num_classes,
            num_anchors=anchors.num_anchors,
            num_levels=len(config.strides),
            **config.head.model_dump(),
        ),
        anchors=anchors,
        matcher=_build_options(AnchorMatcher, config),
        coder=BoxCoder(config.offset_weights, config.box_convention),
        loss=_build_options(RetinaNetLoss, config),
        postprocess=_build_options(Postprocess, config),
        pixels=Pixels(config.channel_order, config.pixel_mean, config.pixel_std),
    )


def build_rpn_detector(config: RPNConfig, backbone: Backbone, num_classes: int) -> RPNDetector:
    """Build a region proposal network on a backbone from a config, see `build_model`."""
    fpn = _build_fpn(config, backbone)
    return RPNDetector(
        backbone,
        num_classes,
        fpn=fpn,
        proposals=build_rpn(config, config.fpn.channels),
        default_threshold=config.default_threshold,
        pixels=Pixels(config.channel_order, config.pixel_mean, config.pixel_std),
    )


def build_rpn(config: AnchorPyramidConfig, channels: int) -> RPN:
    """Build the proposal network of RPN and R-CNN for features with this number of channels."""
    anchors, options = build_anchors(config), config.proposals
    return RPN(
        RPNHead(build_rpn_tower(channels, num_convs=options.num_convs), channels, num_anchors=anchors.num_anchors),
        anchors=anchors,
        matcher=AnchorMatcher(
            options.foreground_iou, options.background_iou, options.low_quality_matches, config.box_convention
        ),
        sampler=Sampler(options.samples_per_image, options.positive_fraction),
        coder=BoxCoder((1.0, 1.0, 1.0, 1.0), config.box_convention),
        selection=_build_selection(options, config.box_convention),
        straddle_threshold=options.straddle_threshold,
        smooth_l1_beta=options.smooth_l1_beta,
        loss_average=config.loss_average,
    )


def _build_selection(options: ProposalsConfig, box_convention: BoxConvention) -> ProposalSelection:
    return ProposalSelection(
        training=ProposalLimits(options.train_pre_nms_top_k, options.train_post_nms_top_k, options.train_max_proposals),
        detection=ProposalLimits(options.pre_nms_top_k, options.post_nms_top_k, options.max_proposals),
        nms_threshold=options.nms_threshold,
        min_size=options.min_size,
        limit_per_batch=options.limit_per_batch,
        in_padding=options.in_padding,
        box_convention=box_convention,
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


Builder = Callable[[Any, Backbone, int], DetectionModel]
MODELS: dict[str, Builder] = {"fcos": build_fcos, "retinanet": build_retinanet}
"""Builders of detectors by `model.name`; called with the section `model`, a backbone and the number of classes."""


def _build_options(options_class: Callable[..., Any], config: DetectorConfig) -> Any:
    """Build a dataclass of options from the config fields with the same names."""
    return options_class(**{field.name: getattr(config, field.name) for field in fields(options_class)})  # pyright: ignore[reportArgumentType]


def _build_fpn(config: PyramidConfig, backbone: Backbone) -> FPN:
    """Build the pyramid of a detector, and remove the maps of the backbone that it does not use."""
    levels = _used_levels(backbone, config.strides, name=config.backbone.name)
    return FPN(
        [backbone.channels[name] for name in levels],
        config.fpn.channels,
        extra_levels=len(config.strides) - len(levels),
        **config.fpn.model_dump(exclude={"channels", "enabled"}),
    )


def _used_levels(backbone: Backbone, strides: list[int], *, name: str) -> list[str]:
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
