"""Options that all detectors have, and those that several have."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, Field, field_validator

from ..choices import BoxConvention, ChannelOrder, ExtraLevelSource, Location, PyramidNorm, Regression, Tower, TowerNorm
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
OffsetWeights = tuple[OffsetWeight, OffsetWeight, OffsetWeight, OffsetWeight]
MAX_ANCHORS = 64
"""Largest number of anchors per location."""
INCLUSIVE: dict[OtherProject, str] = {"fcos_core": "inclusive boxes imply it"}
"""Reason why the original accepts any value of an option."""


def _wrap_sizes(value: Any) -> Any:
    return [[size] if isinstance(size, int | float) else size for size in value] if isinstance(value, list) else value


AnchorSizes = Annotated[list[Annotated[list[AnchorSide], Field(min_length=1)]], BeforeValidator(_wrap_sizes)]
"""Sizes of the anchors of each level in pixels, a number or a list per level."""


class Section(BaseModel):
    """Section of the options of a detector."""

    model_config = RULES


class FPNConfig(Section):
    """Feature pyramid network."""

    channels: int = option(256, "shape", ge=1, le=2048)
    """Channels of all pyramid levels and of the head's towers; a multiple of 32 if the towers use group norm, and of
    `norm_groups` if the pyramid does."""
    extra_level_source: ExtraLevelSource = option("p5", "shape", "meaning")
    """Input of the first extra level above the backbone's last one (P6): `p5` or `c5`."""
    extra_level_relu: bool = option(True, "meaning", needs="extra_level_source!=max_pool")
    """Apply ReLU to the input of the second and later extra levels (mmdetection's RetinaNet does not)."""
    norm: PyramidNorm = option("none", "shape")
    """Normalisation after every lateral and output convolution."""
    norm_groups: int = option(32, "meaning", needs="norm=gn", ge=-4096, le=4096)
    """Number of groups of group norm (`gn`); a negative number -n: groups of n channels."""
    norm_eps: float = option(1e-5, "meaning", needs="norm!=none", ge=0, le=1)
    """Epsilon of group norm or batch norm."""
    relu: bool = option(False, "shape")
    """Apply ReLU after every lateral and output convolution."""
    separable: bool = option(False, "shape")
    """Make the 3x3 output convolutions depthwise separable, with a ninth of the operations."""


class HeadConfig(Section):
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
    separable: bool = option(False, "shape")
    """Make the other convolutions of the towers depthwise separable, with a ninth of the operations."""
    centerness_on: Tower = option("cls", "meaning")
    """Tower that predicts the centerness."""
    regression: Regression = option("exp", "meaning")
    """`exp`: distances are exp(x) pixels; `relu_stride`: relu(x) strides, and targets and loss are in strides, too."""
    level_scales: bool = option(True, "shape")
    """Multiply the x of `regression` by a learned scale per level."""
    prior_probability: float = option(0.01, "training", gt=0, lt=1)


class DetectorConfig(Section):
    """Options that all detectors have.

    Attributes:
        name: name of the detector, which determines the other options.
        limit_option: key of the option that limits the number of detections per image, whose value 0 or less means no
            limit; empty: the detector has no limit.
        default_threshold: score threshold of `predict` for classes without a per-class threshold, 0..1.
    """

    limit_option: ClassVar[str] = ""

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

    @property
    def is_class_agnostic(self) -> bool:
        """True if the detector does not distinguish classes: all objects of the data are of the class `object`."""
        return False

    @property
    def predicts_masks(self) -> bool:
        """True if the detector predicts masks."""
        return False

    @property
    def num_predicted_keypoints(self) -> int:
        """Number of keypoints that the detector predicts for every object; 0: it predicts none."""
        return 0


class PyramidConfig(DetectorConfig):
    """Options of detectors with several levels."""

    fpn: FPNConfig = Field(default_factory=FPNConfig)
    strides: list[int] = option([8, 16, 32, 64, 128], "shape", "meaning")
    """Strides of the pyramid levels. Strides that the backbone lacks are computed by further downsampling."""
    location: Location = option("center", "meaning")
    """Position of a location: the `center` of its cell, its upper left `corner`, with the spacing of torchvision, or
    the `multiple` of the stride that is this corner (detectron2, mmdetection)."""

    def find_level_problems(self, *head_norms: TowerNorm) -> list[str]:
        """Describe the problems of strides and channels: one text each, empty list if there are none.

        Args:
            *head_norms: normalisation of the layers of heads that have as many channels as the pyramid.
        """
        problems = []
        if not self.strides or self.strides[0] < 1 or any(b != 2 * a for a, b in pairwise(self.strides)):
            problems.append(f"strides must double from level to level, found {quote(self.strides)}")
        elif self.strides[-1] > _MAX_STRIDE:
            problems.append(f"strides must be at most {_MAX_STRIDE}, found {quote(self.strides)}")
        groups = [_GROUPS] if "gn" in head_norms else []
        groups += [abs(self.fpn.norm_groups)] if self.fpn.norm == "gn" else []
        wrong = next((number for number in groups if not number or self.fpn.channels % number), None)
        if wrong is not None:
            problems.append(f"fpn.channels must be a multiple of {wrong} with norm gn, found {self.fpn.channels}")
        return problems

    def find_range_problems(self, size_ranges: Sequence[tuple[float, float | None]], name: str) -> list[str]:
        """Describe the problems of the ranges of sizes of the levels: one text each, empty list if there are none.

        Args:
            size_ranges: (low, high) of every level.
            name: key of this option.
        """
        problems = []
        if len(self.strides) != len(size_ranges):
            counts = f"strides has {len(self.strides)} levels but {name} has {len(size_ranges)}"
            problems.append(f"{counts}; give one range per level")
        if any(high is not None and low > high for low, high in size_ranges):
            problems.append(f"{name} must be pairs (low, high), found {quote(size_ranges)}")
        return problems

    def find_anchor_problems(self, sizes: list[list[float]], ratios: list[float], *, scales: int = 1) -> list[str]:
        """Describe the problems of the anchors: one text each, empty list if there are none.

        Args:
            sizes: sizes of the anchors of each level in pixels.
            ratios: height / width of the anchors.
            scales: number of anchors per size and ratio.
        """
        problems = []
        if len(self.strides) != len(sizes):
            counts = f"strides has {len(self.strides)} levels but anchor_sizes has {len(sizes)}"
            problems.append(f"{counts}; give one size, or one list of sizes, per level")
        if len(set(map(len, sizes))) > 1:
            problems.append(f"anchor_sizes must have equally many sizes per level, found {quote(sizes)}")
        num_anchors = len(sizes[0]) * scales * len(ratios) if sizes else 0
        if num_anchors > MAX_ANCHORS:
            problems.append(f"anchors per location must be at most {MAX_ANCHORS}, found {num_anchors}")
        return problems
