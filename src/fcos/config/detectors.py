"""The options of the detectors: a section for each, and the table of them."""

from __future__ import annotations

from abc import abstractmethod
from itertools import pairwise
from typing import Any, Literal

from pydantic import BaseModel, Field, PositiveFloat, field_validator, model_validator

from ..choices import (
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
from .backbones import DEFAULT_BACKBONE, BackboneConfig, ResNetConfig
from .options import RULES, OtherProject, option

_GROUPS = 32  # of `models.layers`' group norm
_ROUNDED: dict[OtherProject, str] = {"fcos_core": "its config holds them, perhaps rounded"}
_INCLUSIVE: dict[OtherProject, str] = {"fcos_core": "inclusive boxes imply it"}


class _Section(BaseModel):
    model_config = RULES


class FPNConfig(_Section):
    """Feature pyramid."""

    channels: int = option(256, "shape", ge=1)
    """Of every level and of the head's towers; a multiple of 32 where one of them has group norm."""
    extra_level_source: ExtraLevelSource = option("p5", "shape", "meaning")
    """Whether the first level above the backbone's last (P6) is computed from P5 or from C5."""
    norm: PyramidNorm = option("none", "shape")
    relu: bool = option(False, "shape")
    """ReLU after every lateral and output convolution."""


class HeadConfig(_Section):
    """The two towers, shared by all levels."""

    num_convs: int = option(4, "shape", ge=0)
    num_shared_convs: int = option(0, "shape", ge=0)
    """Convolutions before the towers, which both share (AdelaiDet)."""
    norm: TowerNorm = option("gn", "shape")
    """`bn`: batch norm, for every level its own (AdelaiDet)."""
    conv_bias: bool = option(True, "shape")
    """The convolutions of the towers have a bias (the first configs of mmdetection: none)."""
    deformable: bool = option(False, "shape")
    """The last convolution of each tower is deformable (version 2)."""
    centerness_on: Tower = option("cls", "meaning")
    """Which tower the centerness is predicted from."""
    regression: Regression = option("exp", "meaning")
    """Distances are exp(x) pixels, or relu(x) strides (targets and loss are then in strides, too)."""
    level_scales: bool = option(True, "shape")
    """Multiply the x of every level by a learned factor of its own."""
    prior_probability: float = option(0.01, "training", gt=0, lt=1)


class DetectorConfig(_Section):
    """The options that every detector has.

    Attributes:
        name: of the detector, which decides the other options.
        default_threshold: score below which `predict` hides detections of classes that have no threshold of their own.
    """

    name: str
    num_classes: int | None = option(None, "classes", ge=1)
    """Number of classes; null: taken from the data."""
    backbone: BackboneConfig = Field(default_factory=ResNetConfig)
    box_convention: BoxConvention = option("continuous", "meaning")
    """`inclusive`: the original's boxes with +1 pixels in targets, areas, NMS, clipping and results. FCOS then detects
    in the padding, too, and keeps boxes without area."""
    channel_order: ChannelOrder = option("rgb", "meaning")
    """Order in which the network sees the channels; `pixel_mean` and `pixel_std` are in the same order."""
    pixel_mean: tuple[float, float, float] = option((123.675, 116.28, 103.53), "meaning", free_for=_ROUNDED)
    pixel_std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = option(
        (58.395, 57.12, 57.375), "meaning", free_for=_ROUNDED
    )

    @field_validator("backbone", mode="before")
    @classmethod
    def _default_backbone(cls, value: Any) -> Any:
        return {"name": DEFAULT_BACKBONE, **value} if isinstance(value, dict) else value

    @property
    @abstractmethod
    def default_threshold(self) -> float:
        """In 0..1."""


class FCOSConfig(DetectorConfig):
    """FCOS."""

    name: Literal["fcos"] = "fcos"
    fpn: FPNConfig = Field(default_factory=FPNConfig)
    head: HeadConfig = Field(default_factory=HeadConfig)
    strides: list[int] = option([8, 16, 32, 64, 128], "shape", "meaning")
    """Strides of the pyramid levels; those the backbone has come from it, the others by further downsampling."""
    location: Location = option("center", "meaning")
    """Which point of its cell a location is: the centre, or the upper left corner (torchvision)."""
    size_ranges: list[tuple[float, float | None]] = option(
        [(-1, 64), (64, 128), (128, 256), (256, 512), (512, None)], "training"
    )
    """A level learns a box whose largest distance (pixels) is in its range, both ends included; null: no upper end."""
    center_sampling_radius: float = option(0.0, "training", ge=0)
    """Only locations within this many strides of the box's centre are positive; 0: all inside the box."""
    box_loss: BoxLoss = option("iou", "training")
    quality: Quality = option("centerness", "meaning", "training")
    """What the third branch learns and scores are multiplied by: the centerness of a location, which then also weights
    its box loss, or the IoU of the box predicted there, when all box losses weigh the same (TPAMI version)."""
    focal_alpha: float = option(0.25, "training", ge=0, le=1)
    focal_gamma: float = option(2.0, "training", ge=0)
    score: Score = option("sqrt", "detection", "convention")
    """The score is the square root of class probability times centerness, or that product itself (mmdetection)."""
    score_threshold: float = option(0.05, "detection", ge=0, lt=1)
    threshold_on: RankedBy = option("class", "detection", "convention")
    """What `score_threshold` is compared with: the class probability, or the score (torchvision, detectron2)."""
    pre_nms_top_k: int = option(1000, "detection", ge=1)
    """Candidates (location, class) kept per level and image."""
    top_k_on: RankedBy = option("score", "detection", "convention")
    """The best of them by class probability (mmdetection), or by score."""
    nms_threshold: float = option(0.6, "detection", le=1)
    """Boxes of one class that overlap more are suppressed; 0 or less: no suppression."""
    max_detections: int = option(100, "detection")
    """Detections kept per image; 0 or less: all."""
    detect_in_padding: bool = option(False, "detection", "convention", free_for=_INCLUSIVE)
    """Locations in the padding of a batch detect too (all other projects); results then depend on the batch."""
    keep_empty_boxes: bool = option(False, "detection", "convention", free_for=_INCLUSIVE)
    """Keep detections without area inside the image (torchvision)."""
    clip_after_nms: bool = option(False, "detection", "convention")
    """Boxes overlap as they are predicted, and are clipped to the image in the end (AdelaiDet, detectron2)."""

    @property
    def default_threshold(self) -> float:
        """0.5, or its square for scores without the root.

        The original's thresholds of best F-measure, one for every class of COCO, lie at 0.41 to 0.67, half of them
        below 0.5.
        """
        return 0.5 if self.score == "sqrt" else 0.25

    def rescale(self, threshold: float, *, score: Score) -> float:
        """Convert a score threshold that was measured with another option `score`."""
        if score == self.score:
            return threshold
        return threshold**2 if self.score == "product" else threshold**0.5

    @model_validator(mode="after")
    def _consistent(self) -> FCOSConfig:
        problems = []
        if len(self.strides) != len(self.size_ranges):
            counts = f"strides has {len(self.strides)} levels but size_ranges {len(self.size_ranges)}"
            problems.append(f"{counts}; give one range a level")
        if not self.strides or self.strides[0] < 1 or any(b != 2 * a for a, b in pairwise(self.strides)):
            problems.append(f"strides must double from level to level, found {self.strides}")
        if any(high is not None and low > high for low, high in self.size_ranges):
            problems.append(f"size_ranges must be (lower end, upper end), found {self.size_ranges}")
        if "gn" in (self.fpn.norm, self.head.norm) and self.fpn.channels % _GROUPS:
            problems.append(f"fpn.channels must be a multiple of {_GROUPS} with norm gn, found {self.fpn.channels}")
        if problems:
            raise ValueError("; ".join(problems))
        return self


DETECTORS: dict[str, type[DetectorConfig]] = {"fcos": FCOSConfig}
"""The section of every detector by its `model.name`."""
DEFAULT_DETECTOR = "fcos"


def choose_detector(value: Any) -> str:
    """The class name of a detector's section; the name itself when there is none."""
    name = value.get("name", DEFAULT_DETECTOR) if isinstance(value, dict) else getattr(value, "name", DEFAULT_DETECTOR)
    section = DETECTORS.get(name) if isinstance(name, str) else None
    return str(name) if section is None else section.__name__
