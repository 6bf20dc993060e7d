"""Options of the detectors: one section per detector, and the table of sections."""

from __future__ import annotations

from abc import abstractmethod
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from ..choices import (
    AnchorRounding,
    BoxConvention,
    BoxLoss,
    ChannelOrder,
    ExtraLevelSource,
    Location,
    PyramidNorm,
    Quality,
    RankedBy,
    Regression,
    Score,
    Tower,
    TowerNorm,
)
from ..formatting import quote
from .backbones import DEFAULT_BACKBONE, BackboneConfig, ResNetConfig
from .options import MAX_VALUE, RULES, OtherProject, option

_GROUPS = 32  # number of groups of the group norm in `models.layers`
_ROUNDED: dict[OtherProject, str] = {"fcos_core": "its config contains them, possibly rounded"}
_MAX_STRIDE = 4096
PixelMean = Annotated[float, Field(ge=-MAX_VALUE, le=MAX_VALUE)]
PixelStd = Annotated[float, Field(gt=0, le=MAX_VALUE)]
Length = Annotated[float, Field(ge=-MAX_VALUE, le=MAX_VALUE)]
"""Length in pixels."""
AnchorSide = Annotated[float, Field(gt=0, le=MAX_VALUE)]
AnchorRatio = Annotated[float, Field(ge=0.01, le=100)]
OffsetWeight = Annotated[float, Field(gt=0, le=1000)]
_MAX_ANCHORS = 64
_INCLUSIVE: dict[OtherProject, str] = {"fcos_core": "inclusive boxes imply it"}


class _Section(BaseModel):
    model_config = RULES


class FPNConfig(_Section):
    """Feature pyramid network."""

    channels: int = option(256, "shape", ge=1, le=2048)
    """Channels of all pyramid levels and of the head's towers; a multiple of 32 if the towers use group norm, and of
    `norm_groups` if the pyramid does."""
    extra_level_source: ExtraLevelSource = option("p5", "shape", "meaning")
    """Input of the first extra level above the backbone's last one (P6): `p5` or `c5`."""
    norm: PyramidNorm = option("none", "shape")
    norm_groups: int = option(32, "meaning", needs="norm=gn", ge=-4096, le=4096)
    """Number of groups of group norm (`gn`); a negative number -n: groups of n channels."""
    norm_eps: float = option(1e-5, "meaning", needs="norm=gn", ge=0, le=1)
    """Epsilon of group norm."""
    relu: bool = option(False, "shape")
    """Apply ReLU after every lateral and output convolution."""


class HeadConfig(_Section):
    """Head with two towers, shared by all levels."""

    num_convs: int = option(4, "shape", ge=0, le=64)
    num_shared_convs: int = option(0, "shape", ge=0, le=64)
    """Number of convolutions before the towers, shared by both (AdelaiDet)."""
    norm: TowerNorm = option("gn", "shape")
    """Normalisation in the towers. `bn`: separate batch norm for every level (AdelaiDet)."""
    conv_bias: bool = option(True, "shape")
    """Use a bias in the convolutions of the towers (mmdetection's first configs do not)."""
    deformable: bool = option(False, "shape")
    """Make the last convolution of each tower deformable (DCNv2)."""
    centerness_on: Tower = option("cls", "meaning")
    """Tower that predicts the centerness."""
    regression: Regression = option("exp", "meaning")
    """`exp`: distances are exp(x) pixels; `relu_stride`: relu(x) strides, and targets and loss are in strides, too."""
    level_scales: bool = option(True, "shape")
    """Multiply the x of `regression` by a learned scale per level."""
    prior_probability: float = option(0.01, "training", gt=0, lt=1)


class DetectorConfig(_Section):
    """Options that all detectors have.

    Attributes:
        name: name of the detector, which determines the other options.
        default_threshold: score threshold of `predict` for classes without a per-class threshold, 0..1.
    """

    name: str
    num_classes: int | None = option(None, "classes", ge=1, le=50_000)
    """Number of classes; null: that of the data."""
    backbone: BackboneConfig = Field(default_factory=ResNetConfig)
    box_convention: BoxConvention = option("continuous", "meaning")
    """`inclusive`: the original's boxes with +1 pixels in targets, areas, NMS, clipping and results. The detector then
    also detects in the padding and keeps boxes without area."""
    channel_order: ChannelOrder = option("rgb", "meaning")
    """Channel order of the network input; `pixel_mean` and `pixel_std` use the same order."""
    pixel_mean: tuple[PixelMean, PixelMean, PixelMean] = option((123.675, 116.28, 103.53), "meaning", free_for=_ROUNDED)
    pixel_std: tuple[PixelStd, PixelStd, PixelStd] = option((58.395, 57.12, 57.375), "meaning", free_for=_ROUNDED)

    @field_validator("backbone", mode="before")
    @classmethod
    def _set_default_backbone(cls, value: Any) -> Any:
        return {"name": DEFAULT_BACKBONE, **value} if isinstance(value, dict) else value

    @property
    @abstractmethod
    def default_threshold(self) -> float:
        """Score threshold of `predict` for classes without a per-class threshold, 0..1."""


class OneStageConfig(DetectorConfig):
    """Options that FCOS and RetinaNet share: levels of the pyramid, focal loss, selection of detections."""

    fpn: FPNConfig = Field(default_factory=FPNConfig)
    strides: list[int] = option([8, 16, 32, 64, 128], "shape", "meaning")
    """Strides of the pyramid levels. Strides that the backbone lacks are computed by further downsampling."""
    location: Location = option("center", "meaning")
    """Position of a location in its cell: `center`, or the upper left `corner` (torchvision)."""
    focal_alpha: float = option(0.25, "training", ge=0, le=1)
    focal_gamma: float = option(2.0, "training", ge=0, le=100)
    score_threshold: float = option(0.05, "detection", ge=0, lt=1)
    pre_nms_top_k: int = option(1000, "detection", ge=1, le=10**6)
    """Maximum number of candidates (location or anchor, class) per level and image before NMS."""
    nms_threshold: float = option(0.6, "detection", ge=-1, le=1)
    """IoU above which NMS suppresses the lower-scoring of two boxes of a class; 0 or less: no NMS."""
    max_detections: int = option(100, "detection", ge=-(10**6), le=10**6)
    """Maximum number of detections per image; 0 or less: no limit. Above 100, the metrics count as many, too (per image
    and class)."""
    detect_in_padding: bool = option(False, "detection", "convention", free_for=_INCLUSIVE)
    """Also detect at locations in the padding (as all other projects do); results then depend on the batch."""
    keep_empty_boxes: bool = option(False, "detection", "convention", free_for=_INCLUSIVE)
    """Keep detections whose box has no area inside the image (torchvision)."""
    clip_after_nms: bool = option(False, "detection", "convention")
    """Clip boxes to the image after NMS (AdelaiDet, detectron2); otherwise before NMS."""

    def find_level_problems(self, head_norm: TowerNorm) -> list[str]:
        """Describe the problems of strides and channels: one text each, empty list if there are none."""
        problems = []
        if not self.strides or self.strides[0] < 1 or any(b != 2 * a for a, b in pairwise(self.strides)):
            problems.append(f"strides must double from level to level, found {quote(self.strides)}")
        elif self.strides[-1] > _MAX_STRIDE:
            problems.append(f"strides must be at most {_MAX_STRIDE}, found {quote(self.strides)}")
        groups = [_GROUPS] if head_norm == "gn" else []
        groups += [abs(self.fpn.norm_groups)] if self.fpn.norm == "gn" else []
        wrong = next((number for number in groups if not number or self.fpn.channels % number), None)
        if wrong is not None:
            problems.append(f"fpn.channels must be a multiple of {wrong} with norm gn, found {self.fpn.channels}")
        return problems


class FCOSConfig(OneStageConfig):
    """Options of FCOS."""

    name: Literal["fcos"] = "fcos"
    head: HeadConfig = Field(default_factory=HeadConfig)
    size_ranges: list[tuple[Length, Length | None]] = option(
        [(-1, 64), (64, 128), (128, 256), (256, 512), (512, None)], "training"
    )
    """Range (low, high) per level in pixels: a location learns a box if the largest of its four distances is in this
    range, both ends included; high null: no upper limit."""
    center_sampling_radius: float = option(0.0, "training", ge=0, le=1000)
    """Only locations within this many strides of the box's centre are positive; 0: all locations inside the box."""
    box_loss: BoxLoss = option("iou", "training")
    quality: Quality = option("centerness", "meaning", "training")
    """Quality that the third branch learns, a factor of the score. `centerness`: centerness of the location, which also
    weights its box loss; `iou`: IoU of its predicted box, with equal weights of all box losses (TPAMI version)."""
    score: Score = option("sqrt", "detection", "convention")
    """Score of a detection. `product`: class probability times centerness (mmdetection); `sqrt`: its square root."""
    threshold_on: RankedBy = option("class", "detection", "convention")
    """Value compared with `score_threshold`: the class probability, or the score (torchvision, detectron2)."""
    top_k_on: RankedBy = option("score", "detection", "convention")
    """Value that ranks the candidates of `pre_nms_top_k`: the class probability (mmdetection), or the score."""

    @property
    def default_threshold(self) -> float:
        """Default score threshold: 0.5 for `sqrt` scores, and its square, 0.25, for `product` scores.

        The original's per-class thresholds with the best F-measure on COCO range from 0.41 to 0.67; half of them are
        below 0.5.
        """
        return 0.5 if self.score == "sqrt" else 0.25

    def rescale(self, threshold: float, *, score: Score) -> float:
        """Convert a score threshold that was measured with the given `score` option to that of this config."""
        if score == self.score:
            return threshold
        return threshold**2 if self.score == "product" else threshold**0.5

    @model_validator(mode="after")
    def _check_consistency(self) -> FCOSConfig:
        problems = []
        if len(self.strides) != len(self.size_ranges):
            counts = f"strides has {len(self.strides)} levels but size_ranges has {len(self.size_ranges)}"
            problems.append(f"{counts}; give one range per level")
        problems += self.find_level_problems(self.head.norm)
        if any(high is not None and low > high for low, high in self.size_ranges):
            problems.append(f"size_ranges must be pairs (low, high), found {quote(self.size_ranges)}")
        if problems:
            raise ValueError("; ".join(problems))
        return self


class RetinaNetFPNConfig(FPNConfig):
    """Feature pyramid network of RetinaNet."""

    extra_level_source: ExtraLevelSource = option("c5", "shape", "meaning")
    """Input of the first extra level above the backbone's last one (P6): `p5` or `c5`."""


class RetinaNetHeadConfig(_Section):
    """Head with two towers, shared by all levels."""

    num_convs: int = option(4, "shape", ge=0, le=64)
    norm: TowerNorm = option("none", "shape")
    """Normalisation in the towers. `bn`: separate batch norm for every level."""
    prior_probability: float = option(0.01, "training", gt=0, lt=1)


class RetinaNetConfig(OneStageConfig):
    """Options of RetinaNet."""

    name: Literal["retinanet"] = "retinanet"
    fpn: RetinaNetFPNConfig = Field(default_factory=RetinaNetFPNConfig)
    head: RetinaNetHeadConfig = Field(default_factory=RetinaNetHeadConfig)
    anchor_sizes: list[Annotated[list[AnchorSide], Field(min_length=1)]] = option(
        [[32], [64], [128], [256], [512]], "shape", "meaning"
    )
    """Sizes of the anchors of each level: square roots of their areas in pixels, a number or a list per level."""
    scales_per_octave: int = option(3, "shape", "meaning", ge=1, le=16)
    """Number of scales of every anchor size: the size times `octave`^(k/n) for k from 0 to n - 1."""
    octave: float = option(2.0, "meaning", gt=1, le=16)
    anchor_ratios: list[AnchorRatio] = option([0.5, 1.0, 2.0], "shape", "meaning", min_length=1)
    """Height / width of the anchors. Every location has an anchor for each ratio and size."""
    anchor_rounding: AnchorRounding = option("none", "meaning")
    """Rounding of the anchors to whole pixels. `base`: sides of the anchor of the size of the stride, which are then
    scaled (the original); `corners`: corners of every anchor (torchvision)."""
    offset_weights: tuple[OffsetWeight, OffsetWeight, OffsetWeight, OffsetWeight] = option(
        (10.0, 10.0, 5.0, 5.0), "meaning"
    )
    """Factors of the predicted box offsets dx, dy, dw and dh."""
    foreground_iou: float = option(0.5, "training", gt=0, le=1)
    """IoU from which on an anchor learns the object that it overlaps most."""
    background_iou: float = option(0.4, "training", ge=0, le=1)
    """IoU below which an anchor is background; anchors between the two thresholds are ignored."""
    low_quality_matches: bool = option(True, "training")
    """Also match the anchors with the highest IoU of an object, so that (almost) every object is learned."""
    smooth_l1_beta: float = option(0.11, "training", ge=0, le=1000)
    """Box loss: error of an offset from which on the smooth L1 loss is linear; 0: L1 loss."""
    box_loss_divisor: float = option(4.0, "training", gt=0, le=1000)
    """The box loss is divided by this, times the number of positive anchors."""
    nms_threshold: float = option(0.4, "detection", ge=-1, le=1)
    """IoU above which NMS suppresses the lower-scoring of two boxes of a class; 0 or less: no NMS."""

    @field_validator("anchor_sizes", mode="before")
    @classmethod
    def _wrap_sizes(cls, value: Any) -> Any:
        return (
            [[size] if isinstance(size, int | float) else size for size in value] if isinstance(value, list) else value
        )

    @property
    def level_sizes(self) -> list[list[float]]:
        """Sizes of all anchors of each level in pixels, with the scales of `scales_per_octave`."""
        scales = [self.octave ** (k / self.scales_per_octave) for k in range(self.scales_per_octave)]
        return [[size * scale for size in sizes for scale in scales] for sizes in self.anchor_sizes]

    @property
    def default_threshold(self) -> float:
        """Default score threshold of 0.5."""
        return 0.5

    @model_validator(mode="after")
    def _check_consistency(self) -> RetinaNetConfig:
        problems = []
        if len(self.strides) != len(self.anchor_sizes):
            counts = f"strides has {len(self.strides)} levels but anchor_sizes has {len(self.anchor_sizes)}"
            problems.append(f"{counts}; give one size, or one list of sizes, per level")
        problems += self.find_level_problems(self.head.norm)
        if len({len(sizes) for sizes in self.anchor_sizes}) > 1:
            problems.append(f"anchor_sizes must have equally many sizes per level, found {quote(self.anchor_sizes)}")
        num_anchors = len(self.level_sizes[0]) * len(self.anchor_ratios) if self.anchor_sizes else 0
        if num_anchors > _MAX_ANCHORS:
            problems.append(f"anchors per location must be at most {_MAX_ANCHORS}, found {num_anchors}")
        if self.background_iou > self.foreground_iou:
            ious = f"{self.background_iou} and {self.foreground_iou}"
            problems.append(f"background_iou must be at most foreground_iou, found {ious}")
        if problems:
            raise ValueError("; ".join(problems))
        return self


DETECTORS: dict[str, type[DetectorConfig]] = {"fcos": FCOSConfig, "retinanet": RetinaNetConfig}
"""Section of each detector by `model.name`."""
DEFAULT_DETECTOR = "fcos"


def choose_detector(value: Any) -> str:
    """Return the class name of the section for a raw value, or the detector name itself if it is unknown."""
    name = value.get("name", DEFAULT_DETECTOR) if isinstance(value, dict) else getattr(value, "name", DEFAULT_DETECTOR)
    section = DETECTORS.get(name) if isinstance(name, str) else None
    return str(name) if section is None else section.__name__
