"""The table of backbones, their contract, and how one is built by its name."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from ...config.backbones import SECTIONS, BackboneSection
from ...errors import ConfigError
from .pretrained import restricted_licence
from .timm_features import PREFIX, timm_licence


class Backbone(Protocol):
    """A feature extractor (an `nn.Module`).

    Attributes:
        channels: channels of every map by its name.
        strides: pixels between neighbouring cells of every map by its name, finest first.
    """

    channels: dict[str, int]
    strides: dict[str, int]

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Normalised images [N, 3, H, W] to maps [N, channels, H / stride, W / stride] (rounded up); N may be 0."""
        ...

    def truncate_after(self, level: str) -> None:
        """Remove what comes after a map: nothing uses it, it would cost time and never get a gradient.

        Only called when there is something; a user's own backbone that has no map too many needs no such method.
        """
        ...


def _builder(section: type[BackboneSection]) -> Callable[..., Backbone]:
    """The class or function that a section of the config names."""
    module, _, function = section.builder.partition(":")
    return getattr(importlib.import_module(f"{__name__}.{module}"), function)


BACKBONES: dict[str, Callable[..., Backbone]] = {
    name: partial(_builder(section), name=name)
    for section in SECTIONS
    if not section.is_foreign
    for name in section.names()
}
"""Our own networks by their names; called with the options of their section of the config."""


def build_backbone(config: BackboneSection, *, pretrained: bool = True) -> Backbone:
    """Build the backbone that a config describes.

    Args:
        config: the section `model.backbone`.
        pretrained: load the weights that it names.

    Raises:
        ConfigError: there is none, or it breaks the contract.
        WeightsError: weights that cannot be had.
    """
    options = config.model_dump()
    if not pretrained and "weights" in options:
        options["weights"] = None
    backbone = _builder(type(config))(**options)
    if config.is_foreign:
        _check(backbone, config.name)
    return backbone


def license_warning(name: str, weights: str | None) -> str:
    """The licence of a backbone's weights where it may restrict their use; empty: nothing is known against any use.

    Args:
        name: as for `build_backbone`, which has built it.
        weights: the option `model.backbone.weights`.
    """
    if weights is None:
        return ""
    if weights == "imagenet" and name.startswith(PREFIX):
        return timm_licence(name)
    return restricted_licence(name, weights)


def _check(backbone: Backbone, name: str) -> None:
    """Run a backbone that is not ours on an empty image: does it keep the contract?"""
    height, width = 64, 96
    assert isinstance(backbone, nn.Module)
    training = backbone.training
    backbone.eval()
    try:
        with torch.no_grad():
            found = {level: tuple(x.shape) for level, x in backbone(torch.zeros(1, 3, height, width)).items()}
    except Exception as error:  # whatever a foreign network raises
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise ConfigError(
            f"model.backbone.name={name}: fails on an image of {height}x{width} pixels: {reason}"
        ) from error
    backbone.train(training)
    channels, strides = backbone.channels, backbone.strides
    expected = {c: (1, channels[c], -(-height // stride), -(-width // stride)) for c, stride in strides.items()}
    if found != expected:
        raise ConfigError(
            f"model.backbone.name={name}: of an image of {height}x{width} pixels expected maps {expected}, as its"
            f" channels and strides say, found {found}"
        )
