"""Construction of RPN and R-CNN from a config."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple, cast

from torch import nn

from ..choices import BoxConvention, HeadKind
from ..config import RCNNConfig, RPNConfig
from ..config.rcnn import AnchorPyramidConfig, BoxHeadConfig, KeypointHeadConfig, MaskHeadConfig, ProposalsConfig
from ..errors import ConfigError
from .anchors import AnchorMatcher, BoxCoder, Sampler
from .backbones import Backbone, Head, HeadBackbone
from .building import build_anchors, build_fpn, used_levels
from .detector import Pixels, ProposalStage
from .fcos import FCOS, FCOSHead
from .fpn import FPN
from .keypoint_head import KeypointHead
from .losses import FCOSLoss
from .mask_head import MaskHead
from .one_stage_proposals import OneStageProposals
from .points import Assigner
from .postprocess import FCOSPostprocess, RoIPostprocess
from .proposals import ProposalLimits, ProposalSelection
from .rcnn import RCNN
from .roi_heads import BoxBody, BoxHead, ConvBody, DetailHead, Pooler
from .rpn import RPN, RPNDetector, RPNHead, build_rpn_tower


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
    sections = {"box": config.box, "mask": config.mask, "keypoint": config.keypoints}
    if not config.fcos.enabled:
        sections["rpn"] = config.proposals
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
            empty_boxes=config.empty_boxes,
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
        fpn = build_fpn(config, backbone)
        levels = [level for level, stride in backbone.strides.items() if stride in config.strides]
        return Neck(fpn, levels, config.fpn.channels, config.strides[: len(levels)])
    levels = used_levels(backbone, config.strides, name=config.backbone.name)
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
    return Pooler(
        neck.pooled_strides,
        section.resolution,
        section.sampling_ratio,
        config.box_convention,
        config.pooling_aligned,
        config.level_epsilon,
    )


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
        pasting=options.pasting,
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
