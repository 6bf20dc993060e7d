"""torchvision's detectors on MobileNetV2, with the levels, widths, anchors and limits of our small recipes, and its
FCOS on ResNet-50."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, TypeVar

from torch import nn
from torchvision.models import mobilenet_v2
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN, resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool, LastLevelP6P7

from fcos.config import DetectorConfig, FCOSConfig, RCNNConfig, RetinaNetConfig
from fcos.models.backbones.pretrained import imagenet_weights

Detector = FCOS | RetinaNet | FasterRCNN
D = TypeVar("D", FCOS, RetinaNet, FasterRCNN)


def build(section: DetectorConfig, num_classes: int) -> Detector:
    """Build torchvision's counterpart of one of our small detectors, with ImageNet weights; it does not resize images.

    Args:
        section: section `model` of our recipe.
        num_classes: number of classes without background.
    """
    if isinstance(section, FCOSConfig):
        channels, num_convs = section.fpn.channels, section.head.num_convs
        return fcos(num_classes + 1, channels=channels, num_convs=num_convs, pretrained=True)
    if isinstance(section, RetinaNetConfig):
        return _retinanet(section, num_classes + 1)
    assert isinstance(section, RCNNConfig), section.name
    return _rcnn(section, num_classes + 1)


def fcos(num_labels: int, *, channels: int, num_convs: int, pretrained: bool) -> FCOS:
    """Build torchvision's FCOS with levels P3 to P7 and the given channels and depth of the head."""
    backbone = _backbone(channels, LastLevelP6P7(channels, channels), pretrained=pretrained)
    head = FCOSHead(channels, 1, num_labels, num_convs)
    return without_resize(FCOS(backbone, num_labels, head=head, score_thresh=0.05, nms_thresh=0.6))


def fcos_resnet50(num_labels: int) -> FCOS:
    """Build torchvision's FCOS on ResNet-50 with random weights, whose stem and first stage are frozen."""
    levels: dict[str, Any] = {"returned_layers": [2, 3, 4], "extra_blocks": LastLevelP6P7(256, 256)}
    backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None, **levels)
    return without_resize(FCOS(backbone, num_labels, score_thresh=0.05, nms_thresh=0.6))


def _retinanet(section: RetinaNetConfig, num_labels: int) -> Detector:
    channels, num_convs = section.fpn.channels, section.head.num_convs
    anchors = _anchors(section.level_sizes, section.anchor_ratios)
    norm = partial(nn.GroupNorm, 32)
    head = RetinaNetHead(channels, anchors.num_anchors_per_location()[0], num_labels, norm_layer=norm)
    for tower in (head.classification_head, head.regression_head):
        tower.conv = tower.conv[:num_convs]
    backbone = _backbone(channels, LastLevelP6P7(channels, channels), pretrained=True)
    limit = section.max_detections
    return without_resize(
        RetinaNet(backbone, num_labels, anchor_generator=anchors, head=head, detections_per_img=limit)
    )


def _rcnn(section: RCNNConfig, num_labels: int) -> FasterRCNN:
    channels, proposals, levels = section.fpn.channels, section.proposals, ["c3", "c4", "c5"]
    options = {
        "rpn_anchor_generator": _anchors(section.level_sizes, section.anchor_ratios),
        "rpn_pre_nms_top_n_train": proposals.train_pre_nms_top_k,
        "rpn_post_nms_top_n_train": proposals.train_max_proposals,
        "rpn_pre_nms_top_n_test": proposals.pre_nms_top_k,
        "rpn_post_nms_top_n_test": proposals.max_proposals,
        "rpn_batch_size_per_image": proposals.samples_per_image,
        "box_batch_size_per_image": section.box.samples_per_image,
        "box_detections_per_img": section.max_detections,
        "box_roi_pool": MultiScaleRoIAlign(levels, 7, 2),
        "box_head": TwoMLPHead(channels * 7 * 7, section.box.linear_channels),
        "box_predictor": FastRCNNPredictor(section.box.linear_channels, num_labels),
    }
    backbone = _backbone(channels, LastLevelMaxPool(), pretrained=True)
    if not section.mask.enabled:
        return without_resize(FasterRCNN(backbone, **options))
    *_, mask_channels = section.mask.conv_channels
    return without_resize(
        MaskRCNN(
            backbone,
            **options,
            mask_roi_pool=MultiScaleRoIAlign(levels, 14, 2),
            mask_head=MaskRCNNHeads(channels, section.mask.conv_channels, 1),
            mask_predictor=MaskRCNNPredictor(mask_channels, mask_channels, num_labels),
        )
    )


def _backbone(channels: int, extra_blocks: ExtraFPNBlock, *, pretrained: bool) -> BackboneWithFPN:
    """Build MobileNetV2 and a pyramid from its strides 8, 16 and 32."""
    body = mobilenet_v2()
    if pretrained:
        body.load_state_dict(imagenet_weights("mobilenet_v2", "imagenet"))
    return BackboneWithFPN(
        body.features,
        return_layers={"6": "c3", "13": "c4", "17": "c5"},
        in_channels_list=[32, 96, 320],
        out_channels=channels,
        extra_blocks=extra_blocks,
    )


def _anchors(sizes: Sequence[Sequence[float]], ratios: Sequence[float]) -> AnchorGenerator:
    return AnchorGenerator(tuple(map(tuple, sizes)), (tuple(ratios),) * len(sizes))


def without_resize(model: D) -> D:
    """Disable torchvision's resizing of images (its option for that has an effect in training only)."""
    transform: Any = model.transform
    transform.resize = lambda image, target=None: (image, target)
    return model
