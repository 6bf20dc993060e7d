"""Options of the one-stage detectors, and the table of the sections of all detectors."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from ..choices import (
    AnchorBoxLoss,
    AnchorRounding,
    BoxLoss,
    ExtraLevelSource,
    Quality,
    RankedBy,
    Score,
    TowerNorm,
)
from .detector import (
    INCLUSIVE,
    AnchorRatio,
    AnchorSizes,
    DetectorConfig,
    FPNConfig,
    HeadConfig,
    Length,
    OffsetWeights,
    PyramidConfig,
    Section,
)
from .options import option
from .rcnn import RCNNConfig, RPNConfig


class OneStageConfig(PyramidConfig):
    """Options that FCOS and RetinaNet share: focal loss, selection of detections."""

    limit_option = "max_detections"

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
    detect_in_padding: bool = option(False, "detection", "convention", free_for=INCLUSIVE)
    """Also detect at locations in the padding (as all other projects do); results then depend on the batch."""
    keep_empty_boxes: bool = option(False, "detection", "convention", free_for=INCLUSIVE)
    """Keep detections whose box has no area inside the image (torchvision)."""
    clip_after_nms: bool = option(False, "detection", "convention")
    """Clip boxes to the image after NMS (AdelaiDet, detectron2); otherwise before NMS."""


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
        problems = self.find_range_problems(self.size_ranges, "size_ranges")
        problems += self.find_level_problems(self.head.norm)
        if problems:
            raise ValueError("; ".join(problems))
        return self


class RetinaNetFPNConfig(FPNConfig):
    """Feature pyramid network of RetinaNet."""

    extra_level_source: ExtraLevelSource = option("c5", "shape", "meaning")
    """Input of the first extra level above the backbone's last one (P6): `p5` or `c5`."""


class RetinaNetHeadConfig(Section):
    """Head with two towers, shared by all levels."""

    num_convs: int = option(4, "shape", ge=0, le=64)
    norm: TowerNorm = option("none", "shape")
    """Normalisation in the towers. `bn`: separate batch norm for every level."""
    conv_bias: bool = option(True, "shape")
    """Use a bias in the convolutions of the towers (torchvision's second version does not)."""
    prior_probability: float = option(0.01, "training", gt=0, lt=1)


class RetinaNetConfig(OneStageConfig):
    """Options of RetinaNet."""

    name: Literal["retinanet"] = "retinanet"
    fpn: RetinaNetFPNConfig = Field(default_factory=RetinaNetFPNConfig)
    head: RetinaNetHeadConfig = Field(default_factory=RetinaNetHeadConfig)
    anchor_sizes: AnchorSizes = option([[32], [64], [128], [256], [512]], "shape", "meaning")
    """Sizes of the anchors of each level: square roots of their areas in pixels, a number or a list per level."""
    scales_per_octave: int = option(3, "shape", "meaning", ge=1, le=16)
    """Number of scales of every anchor size: the size times `octave`^(k/n) for k from 0 to n - 1."""
    octave: float = option(2.0, "meaning", gt=1, le=16)
    anchor_ratios: list[AnchorRatio] = option([0.5, 1.0, 2.0], "shape", "meaning", min_length=1)
    """Height / width of the anchors. Every location has an anchor for each ratio and size."""
    anchor_rounding: AnchorRounding = option("none", "meaning")
    """Rounding of the anchors to whole pixels. `base`: sides of the anchor of the size of the stride, which are then
    scaled (the original); `corners`: corners of every anchor (torchvision)."""
    offset_weights: OffsetWeights = option((10.0, 10.0, 5.0, 5.0), "meaning")
    """Factors of the predicted box offsets dx, dy, dw and dh."""
    foreground_iou: float = option(0.5, "training", gt=0, le=1)
    """IoU from which on an anchor learns the object that it overlaps most."""
    background_iou: float = option(0.4, "training", ge=0, le=1)
    """IoU below which an anchor is background; anchors between the two thresholds are ignored."""
    low_quality_matches: bool = option(True, "training")
    """Also match the anchors with the highest IoU of an object, so that (almost) every object is learned."""
    box_loss: AnchorBoxLoss = option("smooth_l1", "training")
    """`smooth_l1` loss of the box offsets, or `giou` loss of the boxes (torchvision's second version)."""
    smooth_l1_beta: float = option(0.11, "training", needs="box_loss=smooth_l1", ge=0, le=1000)
    """Box loss: error of an offset from which on the smooth L1 loss is linear; 0: L1 loss."""
    box_loss_divisor: float = option(4.0, "training", gt=0, le=1000)
    """The box loss is divided by this, times the number of positive anchors."""
    nms_threshold: float = option(0.4, "detection", ge=-1, le=1)
    """IoU above which NMS suppresses the lower-scoring of two boxes of a class; 0 or less: no NMS."""

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
        scales = self.scales_per_octave
        problems = self.find_level_problems(self.head.norm)
        problems += self.find_anchor_problems(self.anchor_sizes, self.anchor_ratios, scales=scales)
        if self.background_iou > self.foreground_iou:
            ious = f"{self.background_iou} and {self.foreground_iou}"
            problems.append(f"background_iou must be at most foreground_iou, found {ious}")
        if problems:
            raise ValueError("; ".join(problems))
        return self


DETECTORS: dict[str, type[DetectorConfig]] = {
    "fcos": FCOSConfig,
    "retinanet": RetinaNetConfig,
    "rpn": RPNConfig,
    "rcnn": RCNNConfig,
}
"""Section of each detector by `model.name`."""
DEFAULT_DETECTOR = "fcos"


def choose_detector(value: Any) -> str:
    """Return the class name of the section for a raw value, or the detector name itself if it is unknown."""
    name = value.get("name", DEFAULT_DETECTOR) if isinstance(value, dict) else getattr(value, "name", DEFAULT_DETECTOR)
    section = DETECTORS.get(name) if isinstance(name, str) else None
    return str(name) if section is None else section.__name__
