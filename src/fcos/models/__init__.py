"""Table of detectors, and construction of a detector from a config."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, NamedTuple, cast

from torch import nn

from ..choices import BoxConvention, HeadKind
from ..config import DetectorConfig, FCOSConfig, RCNNConfig, RetinaNetConfig, RPNConfig
from ..config.detector import PyramidConfig
from ..config.rcnn import AnchorPyramidConfig, BoxHeadConfig, KeypointHeadConfig, MaskHeadConfig, ProposalsConfig
from ..config.text import as_option, flatten
from ..errors import ConfigError
from .anchors import AnchorGrid, AnchorMatcher, BoxCoder, Sampler
from .backbones import Backbone, Head, HeadBackbone, build_backbone
from .backbones.pretrained import trained_with
from .backbones.timm_features import PREFIX, pixel_statistics
from .detector import DetectionModel, Pixels, ProposalStage
from .fcos import FCOS, FCOSHead
from .fpn import FPN
from .keypoint_head import KeypointHead
from .losses import FCOSLoss, RetinaNetLoss
from .mask_head import MaskHead
from .one_stage_proposals import OneStageProposals
from .points import Assigner
from .postprocess import FCOSPostprocess, Postprocess, RoIPostprocess
from .proposals import ProposalLimits, ProposalSelection
from .rcnn import RCNN
from .retinanet import RetinaNet, RetinaNetHead
from .roi_heads import BoxBody, BoxHead, ConvBody, DetailHead, Pooler
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
    tower = _build_head(backbone, "rpn", name=config.backbone.name) if config.proposals.layers == "backbone" else None
    neck = _build_neck(config, backbone)
    return RPNDetector(
        backbone,
        num_classes,
        fpn=neck.module,
        levels=neck.levels,
        proposals=build_rpn(config, neck.channels, tower=tower),
        default_threshold=config.default_threshold,
        pixels=Pixels(config.channel_order, config.pixel_mean, config.pixel_std),
    )


def build_rcnn(config: RCNNConfig, backbone: Backbone, num_classes: int) -> RCNN:
    """Build a two-stage detector on a backbone from a config, see `build_model`."""
    sections = {"rpn": config.proposals, "box": config.box, "mask": config.mask, "keypoint": config.keypoints}
    # Before the neck: it removes the stages of the backbone that it does not use, of which some heads consist.
    layers = {
        kind: _build_head(backbone, kind, name=config.backbone.name)
        for kind, section in sections.items()
        if section.layers == "backbone" and getattr(section, "enabled", True)
    }
    neck = _build_neck(config, backbone)
    box = _build_box_head(config, neck, num_classes, layers=layers.get("box"))
    heads: dict[str, DetailHead] = {}
    if config.mask.enabled:
        shared = layers["box"] if config.mask.layers == "box" else layers.get("mask")
        heads["mask"] = _build_mask_head(config, neck, num_classes, layers=shared)
    if config.keypoints.enabled:
        heads["keypoints"] = _build_keypoint_head(config, neck, layers=layers.get("keypoint"))
    first = (
        _build_fcos_proposals(config, backbone, neck)
        if config.fcos.enabled
        else build_rpn(config, neck.channels, tower=layers.get("rpn"))
    )
    return RCNN(
        backbone,
        num_classes,
        fpn=neck.module,
        levels=neck.levels,
        proposals=cast("ProposalStage", first),
        box=box,
        heads=heads,
        loss_average=config.loss_average,
        postprocess=RoIPostprocess(
            score_threshold=config.score_threshold,
            pre_nms_top_k=config.pre_nms_top_k,
            nms_threshold=config.nms_threshold,
            max_detections=config.max_detections,
            box_convention=config.box_convention,
            default_threshold=config.default_threshold,
            min_size=config.min_size,
        ),
        pixels=Pixels(config.channel_order, config.pixel_mean, config.pixel_std),
    )


class Neck(NamedTuple):
    """Module between a backbone and the stages of a two-stage detector.

    Attributes:
        module: feature pyramid, or the identity for a single map.
        levels: names of the backbone maps that it uses.
        channels: number of channels of its outputs.
        pooled_strides: strides of the outputs from which box features are pooled.
    """

    module: nn.Module
    levels: list[str]
    channels: int
    pooled_strides: list[int]


def _build_neck(config: AnchorPyramidConfig, backbone: Backbone) -> Neck:
    if config.fpn.enabled:
        fpn = _build_fpn(config, backbone)
        levels = [level for level, stride in backbone.strides.items() if stride in config.strides]
        return Neck(fpn, levels, config.fpn.channels, config.strides[: len(levels)])
    levels = _used_levels(backbone, config.strides, name=config.backbone.name)
    return Neck(nn.Identity(), levels, backbone.channels[levels[0]], config.strides)


def _build_head(backbone: Backbone, kind: str, *, name: str) -> Head:
    """Build the layers of a head that the backbone defines.

    Raises:
        ConfigError: the backbone defines none.
    """
    if not hasattr(backbone, "build_head"):
        raise ConfigError(f"model.backbone.name={name}: defines no layers for heads; set layers=own in all heads")
    return cast("HeadBackbone", backbone).build_head(cast("HeadKind", kind))


def _build_fcos_proposals(config: RCNNConfig, backbone: Backbone, neck: Neck) -> OneStageProposals:
    """Build an FCOS with one class as the first stage."""
    options, convention = config.fcos, config.box_convention
    postprocess = FCOSPostprocess(
        score_threshold=0.0,
        pre_nms_top_k=options.pre_nms_top_k,
        nms_threshold=options.nms_threshold,
        max_detections=options.max_proposals,
        box_convention=convention,
    )
    detector = FCOS(
        backbone,
        1,
        fpn=cast("FPN", neck.module),
        head=FCOSHead(neck.channels, 1, strides=config.strides, **options.head.model_dump()),
        assigner=Assigner(
            config.strides, options.size_ranges, options.center_sampling_radius, config.location, convention
        ),
        loss=FCOSLoss(box_loss=options.box_loss),
        postprocess=postprocess,
        pixels=Pixels(),
    )
    for part in ("backbone", "fpn"):  # the second stage runs them once for both
        setattr(detector, part, nn.Identity())
    return OneStageProposals(detector, training=replace(postprocess, max_detections=options.train_max_proposals))


HeadConfig = BoxHeadConfig | MaskHeadConfig | KeypointHeadConfig


def _build_pooler(config: RCNNConfig, neck: Neck, section: HeadConfig) -> Pooler:
    return Pooler(neck.pooled_strides, section.resolution, section.sampling_ratio, config.box_convention)


def _build_box_head(config: RCNNConfig, neck: Neck, num_classes: int, *, layers: Head | None) -> BoxHead:
    options = config.box
    if layers is not None:
        body = nn.Sequential(cast("nn.Module", layers), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        channels = layers.out_channels
    else:
        convs = ConvBody(
            neck.channels,
            [options.conv_channels] * options.num_convs,
            norm=options.conv_norm,
            dilation=options.dilation,
            std=0.01,
        )
        channels = options.linear_channels
        body = BoxBody(
            convs,
            channels,
            num_linears=options.num_linears,
            norm=options.linear_norm,
            resolution=options.resolution,
        )
    return BoxHead(
        body,
        channels,
        num_classes=num_classes,
        pooler=_build_pooler(config, neck, options),
        matcher=AnchorMatcher(options.foreground_iou, options.background_iou, False, config.box_convention),
        sampler=Sampler(options.samples_per_image, options.positive_fraction),
        coder=BoxCoder(options.offset_weights, config.box_convention),
        class_agnostic=options.class_agnostic,
        smooth_l1_beta=options.smooth_l1_beta,
    )


def _build_mask_head(config: RCNNConfig, neck: Neck, num_classes: int, *, layers: Head | None) -> MaskHead:
    options = config.mask
    body = layers or ConvBody(neck.channels, options.conv_channels, norm=options.norm, dilation=options.dilation)
    return MaskHead(
        cast("nn.Module", body),
        body.out_channels,
        channels=options.conv_channels[-1] if options.upsample else None,
        num_classes=num_classes,
        pooler=_build_pooler(config, neck, options),
        margin=options.margin,
    )


def _build_keypoint_head(config: RCNNConfig, neck: Neck, *, layers: Head | None) -> KeypointHead:
    options = config.keypoints
    body = layers or ConvBody(neck.channels, options.conv_channels)
    return KeypointHead(
        cast("nn.Module", body),
        body.out_channels,
        num_keypoints=options.num_keypoints,
        pooler=_build_pooler(config, neck, options),
    )


def build_rpn(config: AnchorPyramidConfig, channels: int, *, tower: Head | None = None) -> RPN:
    """Build the proposal network of RPN and R-CNN.

    Args:
        config: section `model` of the config.
        channels: number of channels of the features.
        tower: layers before the predictions; None: those of the config.
    """
    anchors, options = build_anchors(config), config.proposals
    if tower is not None:
        layers, channels = cast("nn.Module", tower), tower.out_channels
    else:
        layers = build_rpn_tower(channels, num_convs=options.num_convs)
    return RPN(
        RPNHead(layers, channels, num_anchors=anchors.num_anchors),
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
MODELS: dict[str, Builder] = {
    "fcos": build_fcos,
    "retinanet": build_retinanet,
    "rpn": build_rpn_detector,
    "rcnn": build_rcnn,
}
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
