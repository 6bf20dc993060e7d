"""The table of backbones, their contract, and how one is built by its name."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from .dla import DLA34
from .mobilenet import MobileNetV2
from .pretrained import restricted_licence
from .resnet import SHAPES, ResNet
from .timm_features import PREFIX, Timm, timm_licence


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

    def end_at(self, level: str) -> None:
        """Remove what comes after a map: nothing uses it, it would cost time and never get a gradient.

        Only called when there is something; a user's own backbone that has no map too many needs no such method.
        """
        ...


BACKBONES: dict[str, Callable[..., Backbone]] = {
    **{name: partial(ResNet, name=name) for name in SHAPES},
    "mobilenet_v2": MobileNetV2,
    "dla34": DLA34,
}


def build_backbone(name: str, options: dict[str, Any]) -> Backbone:
    """Build a backbone.

    Args:
        name: a key of `BACKBONES`, `timm/NAME`, or `package.module:function`: the user's own, which is imported.
        options: keyword arguments of its constructor; for `package.module:function` the section of the config, whose
            `options` the function gets.

    Raises:
        ConfigError: there is none, or it breaks the contract.
        WeightsError: weights that cannot be had.
    """
    if name in BACKBONES:
        return BACKBONES[name](**options)
    backbone = Timm(name=name, **options) if name.startswith(PREFIX) else _own(name, options["options"])
    _check(backbone, name)
    return backbone


def licence_to_mind(name: str, weights: str | None) -> str:
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


def _own(name: str, options: dict[str, Any]) -> Backbone:
    """What the user's function returns."""
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function, None)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"model.backbone.name={name}: no module {error.name!r}; it must be installed, or its folder on PYTHONPATH"
        ) from error
    if not callable(found):
        raise ConfigError(f"model.backbone.name={name}: the module {module!r} has no function {function!r}")
    try:
        inspect.signature(found).bind(**options)
    except TypeError as error:
        raise ConfigError(f"model.backbone.options of {name}: {error}; found {options}") from None
    backbone = found(**options)
    lacking = [key for key in ("channels", "strides") if not isinstance(getattr(backbone, key, None), dict)]
    if not isinstance(backbone, nn.Module) or lacking:
        raise ConfigError(
            f"model.backbone.name={name}: expected an nn.Module with the dictionaries channels and strides, found"
            f" {type(backbone).__name__}" + (f" without {' and '.join(lacking)}" if lacking else "")
        )
    backbone = cast(Backbone, backbone)
    strides = list(backbone.strides.values())
    if not strides or strides != sorted(strides) or list(backbone.channels) != list(backbone.strides):
        raise ConfigError(
            f"model.backbone.name={name}: channels and strides must have the same maps, the finest first; found"
            f" channels {backbone.channels} and strides {backbone.strides}"
        )
    return backbone


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
