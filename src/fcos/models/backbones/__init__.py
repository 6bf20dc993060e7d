"""Table of backbones, their interface, and construction of a backbone by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from ...choices import HeadKind
from ...config.backbones import SECTIONS, BackboneSection
from ...errors import ConfigError
from .pretrained import restricted_licence
from .timm_features import PREFIX, timm_licence


class Backbone(Protocol):
    """Feature extractor (an `nn.Module`) that returns several maps.

    Attributes:
        channels: number of channels of every map, by map name.
        strides: stride of every map in pixels, by map name, finest first.
    """

    channels: dict[str, int]
    strides: dict[str, int]

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Compute the maps [N, channels, H / stride, W / stride] (rounded up) by name.

        Args:
            images: [N, 3, H, W] normalised images; N may be 0.
        """
        ...

    def truncate_after(self, level: str) -> None:
        """Remove all layers after a map. They are not used, cost time and never get a gradient.

        It is only called if the pyramid does not use the last map; other user-defined backbones do not need it.
        """
        ...


class Head(Protocol):
    """Layers of a head (an `nn.Module`) that the architecture of a backbone defines.

    Attributes:
        out_channels: number of channels of the output.
    """

    out_channels: int

    def __call__(self, x: Tensor) -> Tensor:
        """Compute [N, out_channels, H', W'] from a map (head of kind `rpn`) or pooled regions [N, C, H, W]."""
        ...


class HeadBackbone(Backbone, Protocol):
    """Backbone whose architecture also defines layers for the heads of an R-CNN on one of its maps."""

    def build_head(self, kind: HeadKind) -> Head:
        """Build the layers of a head, with pretrained weights if the backbone has them.

        Every call returns new layers. The map that the head expects is C4 for a ResNet, whose heads consist of C5, and
        the last map for FBNet. For a ResNet, it must be called before `truncate_after`.
        """
        ...


def _import_builder(section: type[BackboneSection]) -> Callable[..., Backbone]:
    """Import the class or function that a config section names as its builder."""
    module, _, function = section.builder.partition(":")
    return getattr(importlib.import_module(f"{__name__}.{module}"), function)


BACKBONES: dict[str, Callable[..., Backbone]] = {
    name: partial(_import_builder(section), name=name)
    for section in SECTIONS
    if not section.is_foreign
    for name in section.names()
}
"""Backbones of this project by name; called with the options of their config section."""


def build_backbone(config: BackboneSection, *, pretrained: bool = True) -> Backbone:
    """Build the backbone that a config describes.

    Args:
        config: section `model.backbone` of the config.
        pretrained: whether to load the weights that the section names.

    Raises:
        ConfigError: the backbone does not exist, or does not implement the interface `Backbone`.
        WeightsError: the weights cannot be obtained or do not fit.
    """
    options = config.model_dump()
    if not pretrained and "weights" in options:
        options["weights"] = None
    backbone = _import_builder(type(config))(**options)
    if config.is_foreign:
        _check_maps(backbone, config.name)
    return backbone


def license_warning(name: str, weights: str | None) -> str:
    """Return the licence of a backbone's weights if it may restrict their use, or "" if no restriction is known.

    Args:
        name: name of a backbone that `build_backbone` has already built.
        weights: option `model.backbone.weights`.
    """
    if weights is None:
        return ""
    if weights == "imagenet" and name.startswith(PREFIX):
        return timm_licence(name)
    return restricted_licence(name, weights)


def _check_maps(backbone: Backbone, name: str) -> None:
    """Check a backbone from outside this project: the maps of a black image must have the stated channels and strides.

    Raises:
        ConfigError: the backbone raises an exception, or its maps have other shapes.
    """
    height, width = 64, 96
    assert isinstance(backbone, nn.Module)
    was_training = backbone.training
    backbone.eval()
    try:
        with torch.no_grad():
            shapes = {level: tuple(x.shape) for level, x in backbone(torch.zeros(1, 3, height, width)).items()}
    except Exception as error:  # a foreign network can raise anything
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise ConfigError(
            f"model.backbone.name={name}: fails on an image of {height}x{width} pixels: {reason}"
        ) from error
    backbone.train(was_training)
    channels, strides = backbone.channels, backbone.strides
    expected = {c: (1, channels[c], -(-height // stride), -(-width // stride)) for c, stride in strides.items()}
    if shapes != expected:
        raise ConfigError(
            f"model.backbone.name={name}: expected maps {expected} for an image of {height}x{width} pixels, from its"
            f" channels and strides, found {shapes}"
        )
