"""Options of the two-stage detectors: region proposal network (RPN), and Faster, Mask and Keypoint R-CNN."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ..choices import (
    AnchorRounding,
    BoxLoss,
    EmptyBoxes,
    ExtraLevelSource,
    HeadLayers,
    LinearNorm,
    LossAverage,
    MaskHeadLayers,
    MaskPasting,
    PyramidNorm,
    TowerNorm,
)
from .detector import (
    INCLUSIVE,
    AnchorRatio,
    AnchorSizes,
    FPNConfig,
    HeadConfig,
    Length,
    OffsetWeights,
    PyramidConfig,
    Section,
)
from .options import option, section

_MAX_BOXES = 10**6
_RPN = "fcos.enabled!=true"  # condition of the options that FCOS replaces as the first stage
Channels = Annotated[int, Field(ge=1, le=8192)]


class RCNNFPNConfig(FPNConfig):
    """Feature pyramid network of two-stage detectors."""

    enabled: bool = option(True, "shape")
    """Use a feature pyramid; otherwise, the detector uses one map of the backbone, that of the only stride (C4)."""
    extra_level_source: ExtraLevelSource = option("max_pool", "shape", "meaning")
    """Input of the first extra level above the backbone's last one (P6): `p5`, `c5`, or every second pixel of the last
    level (`max_pool`)."""


class ProposalsConfig(Section):
    """Region proposal network: anchors are classified as object or background, and the best are the proposals."""

    layers: HeadLayers = option("own", "shape")
    """Layers before the predictions: `own`, or those that the backbone defines (`backbone`, only FBNet)."""
    num_convs: int = option(1, "shape", needs="layers=own", ge=1, le=64)
    """Number of 3x3 convolutions of `own`."""
    foreground_iou: float = option(0.7, "training", gt=0, le=1)
    """IoU from which on an anchor learns the object that it overlaps most."""
    background_iou: float = option(0.3, "training", ge=0, le=1)
    """IoU below which an anchor is background; anchors between the two thresholds are ignored."""
    low_quality_matches: bool = option(True, "training")
    """Also match the anchors with the highest IoU of an object, so that (almost) every object is learned."""
    straddle_threshold: float | None = option(None, "training", ge=0, le=10**6)
    """Largest number of pixels by which an anchor may cross the image border in training; null: no limit, but anchors
    with their centre in the padding are ignored."""
    samples_per_image: int = option(256, "training", ge=1, le=_MAX_BOXES)
    """Number of randomly sampled anchors per image that are used in the losses."""
    positive_fraction: float = option(0.5, "training", gt=0, le=1)
    """Largest fraction of positives among them."""
    smooth_l1_beta: float = option(1 / 9, "training", ge=0, le=1000)
    """Box loss: error of an offset from which on the smooth L1 loss is linear; 0: L1 loss."""
    train_pre_nms_top_k: int = option(2000, "training", ge=1, le=_MAX_BOXES)
    """Training: maximum number of candidates per level and image before NMS."""
    train_post_nms_top_k: int = option(2000, "training", ge=1, le=_MAX_BOXES)
    """Training: maximum number of proposals per level and image after NMS."""
    train_max_proposals: int = option(2000, "training", ge=1, le=_MAX_BOXES)
    """Training: maximum number of proposals per image, or per batch with `limit_per_batch`."""
    limit_per_batch: bool = option(False, "training")
    """Apply `train_max_proposals` to all images of a process together (the original). Training then depends on the
    number of processes and micro-batches."""
    pre_nms_top_k: int = option(1000, "detection", ge=1, le=_MAX_BOXES)
    """Detection: maximum number of candidates per level and image before NMS."""
    post_nms_top_k: int = option(1000, "detection", ge=1, le=_MAX_BOXES)
    """Detection: maximum number of proposals per level and image after NMS."""
    max_proposals: int = option(1000, "detection", ge=1, le=_MAX_BOXES)
    """Detection: maximum number of proposals per image."""
    nms_threshold: float = option(0.7, "detection", ge=-1, le=1)
    """IoU above which NMS suppresses the lower-scoring of two proposals of a level; 0 or less: no NMS. It also affects
    training."""
    min_size: float = option(0.0, "detection", ge=0, le=10**6)
    """Smallest width and height of a proposal in pixels. It also affects training."""
    in_padding: bool = option(False, "detection", "convention", free_for=INCLUSIVE)
    """Also use anchors with their centre in the padding (as other projects do); results then depend on the batch."""


class FCOSProposalsConfig(Section):
    """FCOS as the first stage of R-CNN, with one class for all objects (FCOS, table 6)."""

    enabled: bool = option(False, "shape", "meaning")
    """Let FCOS propose the boxes, in place of the region proposal network."""
    head: HeadConfig = Field(default_factory=HeadConfig)
    size_ranges: list[tuple[Length, Length | None]] = option(
        [(-1, 32), (32, 64), (64, 128), (128, 256), (256, None)], "training"
    )
    """Range (low, high) per level in pixels: a location learns a box if the largest of its four distances is in this
    range, both ends included; high null: no upper limit."""
    center_sampling_radius: float = option(1.5, "training", ge=0, le=1000)
    """Only locations within this many strides of the box's centre are positive; 0: all locations inside the box."""
    box_loss: BoxLoss = option("giou", "training")
    train_max_proposals: int = option(2000, "training", ge=1, le=_MAX_BOXES)
    """Training: maximum number of proposals per image."""
    pre_nms_top_k: int = option(1000, "detection", ge=1, le=_MAX_BOXES)
    """Maximum number of candidates per level and image before NMS. It also affects training."""
    max_proposals: int = option(1000, "detection", ge=1, le=_MAX_BOXES)
    """Detection: maximum number of proposals per image."""
    nms_threshold: float = option(0.7, "detection", ge=-1, le=1)
    """IoU above which NMS suppresses the lower-scoring of two proposals; 0 or less: no NMS. It also affects
    training."""


class AnchorPyramidConfig(PyramidConfig):
    """Options that RPN and R-CNN share."""

    fpn: RCNNFPNConfig = section(RCNNFPNConfig, needs="fpn.enabled")
    strides: list[int] = option([4, 8, 16, 32, 64], "shape", "meaning")
    """Strides of the pyramid levels. Strides that the backbone lacks are computed by further downsampling."""
    anchor_sizes: AnchorSizes = option([[32], [64], [128], [256], [512]], "shape", "meaning", needs=_RPN)
    """Sizes of the anchors of each level: square roots of their areas in pixels, a number or a list per level."""
    anchor_ratios: list[AnchorRatio] = option([0.5, 1.0, 2.0], "shape", "meaning", needs=_RPN, min_length=1)
    """Height / width of the anchors. Every location has an anchor for each ratio and size."""
    anchor_rounding: AnchorRounding = option("none", "meaning", needs=_RPN)
    """Rounding of the anchors to whole pixels. `base`: sides of the anchor of the size of the stride, which are then
    scaled (the original); `corners`: corners of every anchor (torchvision)."""
    loss_average: LossAverage = option("image", "training")
    """Averaging of the losses. `image`: mean over the samples of each image, then over the images, so that any number
    of processes and micro-batches trains alike; `batch`: mean over all samples of a process (the original)."""
    proposals: ProposalsConfig = section(ProposalsConfig, needs=_RPN)

    @property
    def level_sizes(self) -> list[list[float]]:
        """Sizes of the anchors of each level in pixels."""
        return self.anchor_sizes

    @property
    def default_threshold(self) -> float:
        """Default score threshold of 0.5."""
        return 0.5

    def find_pyramid_problems(self, *head_norms: TowerNorm) -> list[str]:
        """Describe the problems of strides and channels, see `find_level_problems`."""
        problems = self.find_level_problems(*head_norms)
        if not self.fpn.enabled and len(self.strides) > 1:
            problems.append(f"fpn.enabled=false: expected one stride, found {self.strides}")
        return problems

    def find_proposal_problems(self) -> list[str]:
        """Describe the problems of anchors and proposals: one text each, empty list if there are none."""
        problems = self.find_anchor_problems(self.anchor_sizes, self.anchor_ratios)
        if self.proposals.layers == "backbone" and self.backbone.name != "fbnet":
            problems.append(f"proposals.layers=backbone: expected backbone.name=fbnet, found {self.backbone.name}")
        return problems + find_threshold_problems(self.proposals, "proposals")


class RPNConfig(AnchorPyramidConfig):
    """Options of a region proposal network that is trained and used alone. Its detections are the proposals."""

    limit_option = "proposals.max_proposals"

    name: Literal["rpn"] = "rpn"

    @property
    def is_class_agnostic(self) -> bool:
        """True: objects of all classes are of the class `object`."""
        return True

    @model_validator(mode="after")
    def _check_consistency(self) -> RPNConfig:
        problems = self.find_pyramid_problems() + self.find_proposal_problems()
        if self.num_classes not in (None, 1):
            problems.append(
                f"num_classes must be 1, because an RPN does not distinguish classes, found {self.num_classes}"
            )
        _reject(problems)
        return self


class BoxHeadConfig(Section):
    """Head that classifies proposals and shifts their boxes."""

    layers: HeadLayers = option("own", "shape")
    """Layers on the pooled features: convolutions and linear layers with the following options (`own`), or those that
    the backbone defines (`backbone`): the last stage of a ResNet on C4, or the head of FBNet."""
    num_convs: int = option(0, "shape", needs="layers=own", ge=0, le=64)
    """Number of 3x3 convolutions."""
    conv_channels: Channels = option(256, "shape", needs="layers=own,num_convs")
    conv_norm: PyramidNorm = option("none", "shape", needs="layers=own,num_convs")
    """Normalisation after the convolutions. `bn`: batch norm over all proposals (torchvision)."""
    dilation: int = option(1, "meaning", needs="layers=own,num_convs", ge=1, le=64)
    """Dilation of the convolutions."""
    num_linears: int = option(2, "shape", needs="layers=own", ge=1, le=64)
    """Number of linear layers, after the convolutions."""
    linear_channels: Channels = option(1024, "shape", needs="layers=own")
    linear_norm: LinearNorm = option("none", "shape", needs="layers=own")
    """Normalisation after the linear layers."""
    resolution: int = option(7, "shape", ge=1, le=64)
    """Width and height of the features that are pooled from every proposal."""
    sampling_ratio: int = option(2, "meaning", ge=0, le=64)
    """Number of sampling points per pooled feature and axis; 0: as many as the proposal has map cells."""
    class_agnostic: bool = option(False, "shape")
    """Predict one box per proposal instead of one for each class."""
    offset_weights: OffsetWeights = option((10.0, 10.0, 5.0, 5.0), "meaning")
    """Factors of the predicted box offsets dx, dy, dw and dh."""
    foreground_iou: float = option(0.5, "training", gt=0, le=1)
    """IoU from which on a proposal learns the object that it overlaps most."""
    background_iou: float = option(0.5, "training", ge=0, le=1)
    """IoU below which a proposal is background; proposals between the two thresholds are ignored."""
    samples_per_image: int = option(512, "training", ge=1, le=_MAX_BOXES)
    """Number of randomly sampled proposals per image that are used in the losses."""
    positive_fraction: float = option(0.25, "training", gt=0, le=1)
    """Largest fraction of positives among them."""
    smooth_l1_beta: float = option(1.0, "training", ge=0, le=1000)
    """Box loss: error of an offset from which on the smooth L1 loss is linear; 0: L1 loss."""


class MaskHeadConfig(Section):
    """Head that predicts the mask of every detection (Mask R-CNN)."""

    enabled: bool = option(False, "shape")
    layers: MaskHeadLayers = option("own", "shape")
    """Layers on the pooled features: `own` convolutions, those that the backbone defines (`backbone`), or those of the
    box head (`box`, if these are of the backbone)."""
    conv_channels: list[Channels] = option([256, 256, 256, 256], "shape", min_length=1)
    """Channels of the 3x3 convolutions of `own`. The transposed convolution of `upsample` has as many channels as the
    last."""
    upsample: bool = option(True, "shape")
    """Double the side of the grid with a transposed convolution after the layers."""
    norm: PyramidNorm = option("none", "shape", needs="layers=own")
    dilation: int = option(1, "meaning", needs="layers=own", ge=1, le=64)
    """Dilation of the convolutions."""
    resolution: int = option(14, "meaning", ge=1, le=128)
    """Width and height of the features that are pooled from every box. With `upsample` and `own` layers, masks have
    twice as many pixels per side."""
    sampling_ratio: int = option(2, "meaning", ge=0, le=64)
    """Number of sampling points per pooled feature and axis; 0: as many as the box has map cells."""
    margin: float = option(0.0, "detection", "convention", needs="pasting=truncated", ge=0, le=16)
    """Number of pixels by which masks extend beyond the right and lower sides of boxes in the original image (1 in
    torchvision)."""
    pasting: MaskPasting = option("truncated", "detection", "convention")
    """Pasting of masks into the image. `truncated`: the corners of boxes are truncated to whole pixels (the original,
    torchvision); `exact`: masks are sampled at the centres of the pixels (detectron2, mmdetection)."""


class KeypointHeadConfig(Section):
    """Head that predicts the keypoints of every detection (Keypoint R-CNN)."""

    enabled: bool = option(False, "shape")
    layers: HeadLayers = option("own", "shape")
    """Layers on the pooled features: `own` convolutions, or those that the backbone defines (`backbone`)."""
    num_keypoints: int = option(17, "shape", ge=1, le=10_000)
    """Number of keypoints of an object."""
    conv_channels: list[Channels] = option([512] * 8, "shape", needs="layers=own", min_length=1)
    """Channels of the 3x3 convolutions of `own`."""
    resolution: int = option(14, "meaning", ge=1, le=128)
    """Width and height of the features that are pooled from every box. Heat maps have four times as many pixels per
    side."""
    sampling_ratio: int = option(2, "meaning", ge=0, le=64)
    """Number of sampling points per pooled feature and axis; 0: as many as the box has map cells."""


class RCNNConfig(AnchorPyramidConfig):
    """Options of Faster R-CNN, Mask R-CNN (`mask.enabled`) and Keypoint R-CNN (`keypoints.enabled`)."""

    limit_option = "max_detections"

    name: Literal["rcnn"] = "rcnn"
    fcos: FCOSProposalsConfig = section(FCOSProposalsConfig, needs="fcos.enabled")
    box: BoxHeadConfig = Field(default_factory=BoxHeadConfig)
    mask: MaskHeadConfig = section(MaskHeadConfig, needs="mask.enabled")
    keypoints: KeypointHeadConfig = section(KeypointHeadConfig, needs="keypoints.enabled")
    pooling_aligned: bool = option(False, "meaning")
    """Pool features half a pixel further to the upper left, so that the centres of map cells and of image regions
    coincide (detectron2, mmdetection; `aligned` of torchvision's `roi_align`)."""
    level_epsilon: float = option(1e-6, "meaning", ge=0, le=0.01)
    """Number that is added to (size of a box) / 224 before its logarithm selects the level that the box is pooled
    from."""
    score_threshold: float = option(0.05, "detection", ge=0, lt=1)
    pre_nms_top_k: int = option(10_000, "detection", ge=1, le=10**9)
    """Maximum number of candidates (proposal, class) per image before NMS."""
    nms_threshold: float = option(0.5, "detection", ge=-1, le=1)
    """IoU above which NMS suppresses the lower-scoring of two boxes of a class; 0 or less: no NMS."""
    min_size: float = option(0.0, "detection", ge=0, le=10**6)
    """Smallest width and height of a detection in pixels of the resized image, after clipping."""
    empty_boxes: EmptyBoxes = option("remove", "detection", "convention", free_for=INCLUSIVE)
    """Boxes without area inside the image: `remove` them, remove them from the detections (`remove_last`, detectron2),
    or `keep` them (mmdetection)."""
    max_detections: int = option(100, "detection", ge=-_MAX_BOXES, le=_MAX_BOXES)
    """Maximum number of detections per image; 0 or less: no limit. Above 100, the metrics count as many, too (per image
    and class)."""

    def _find_layer_problems(self) -> list[str]:
        """Describe the problems of the heads' layers: one text each, empty list if there are none."""
        problems = _find_odd_channels(self.box.conv_norm, [self.box.conv_channels], "box.conv_channels")
        problems += _find_odd_channels(self.box.linear_norm, [self.box.linear_channels], "box.linear_channels")
        problems += _find_odd_channels(self.mask.norm, self.mask.conv_channels, "mask.conv_channels")
        if self.box.layers == "backbone" and self.backbone.name.startswith("resn") and self.strides != [16]:
            problems.append(
                f"box.layers=backbone: expected strides=[16], the map before the last stage, found {self.strides}"
            )
        return problems

    @property
    def predicts_masks(self) -> bool:
        """True if the detector predicts masks."""
        return self.mask.enabled

    @property
    def num_predicted_keypoints(self) -> int:
        """Number of keypoints that the detector predicts for every object; 0: it predicts none."""
        return self.keypoints.num_keypoints if self.keypoints.enabled else 0

    @model_validator(mode="after")
    def _check_consistency(self) -> RCNNConfig:
        if self.fcos.enabled:
            problems = self.find_pyramid_problems(self.fcos.head.norm)
            problems += self.find_range_problems(self.fcos.size_ranges, "fcos.size_ranges")
            if self.loss_average == "batch":
                problems.append("fcos.enabled: expected loss_average=image")
        else:
            problems = self.find_pyramid_problems() + self.find_proposal_problems()
        problems += find_threshold_problems(self.box, "box")
        problems += self._find_layer_problems()
        if self.mask.layers == "box" and self.box.layers != "backbone":
            problems.append("mask.layers=box: expected box.layers=backbone")
        heads = {"box": self.box.layers, "mask": self.mask.layers, "keypoints": self.keypoints.layers}
        if self.fpn.enabled and "backbone" in heads.values():
            named = " ".join(f"{name}.layers=backbone" for name, layers in heads.items() if layers == "backbone")
            problems.append(f"{named}: expected fpn.enabled=false, because these layers expect a map of the backbone")
        _reject(problems)
        return self


def _find_odd_channels(norm: str, channels: list[int], name: str) -> list[str]:
    """Return a text if group norm, which needs an even number, follows layers with an odd number of channels."""
    odd = [number for number in channels if number % 2] if norm == "gn" else []
    return [f"{name} must be even with norm gn, found {odd[0]}"] if odd else []


def find_threshold_problems(section: ProposalsConfig | BoxHeadConfig, name: str) -> list[str]:
    """Return a text if the background threshold of a section exceeds its foreground threshold, else an empty list."""
    if section.background_iou <= section.foreground_iou:
        return []
    ious = f"{section.background_iou} and {section.foreground_iou}"
    return [f"{name}.background_iou must be at most {name}.foreground_iou, found {ious}"]


def _reject(problems: list[str]) -> None:
    if problems:
        raise ValueError("; ".join(problems))
