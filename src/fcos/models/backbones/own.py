"""User-defined backbones: networks that a user's function returns."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from ...errors import ConfigError
from ...extensions import load_function


def build_own(*, name: str, options: dict[str, Any]) -> nn.Module:
    """Import a user's function, call it, and check that it returns a backbone.

    Args:
        name: function as `package.module:function`.
        options: keyword arguments of the function.

    Raises:
        ConfigError: the function cannot be imported, does not accept the options, or does not return a `Backbone`.
    """
    function = load_function(name, option=f"model.backbone.name={name}")
    try:
        inspect.signature(function).bind(**options)
    except TypeError as error:
        raise ConfigError(f"model.backbone.options of {name}: {error}; found {options}") from None
    backbone = function(**options)
    missing = [key for key in ("channels", "strides") if not isinstance(getattr(backbone, key, None), dict)]
    if not isinstance(backbone, nn.Module) or missing:
        raise ConfigError(
            f"model.backbone.name={name}: expected an nn.Module with the dictionaries channels and strides, found"
            f" {type(backbone).__name__}" + (f" without {' and '.join(missing)}" if missing else "")
        )
    channels: Any = backbone.channels
    strides: Any = backbone.strides
    stride_values = list(strides.values())
    if not stride_values or stride_values != sorted(stride_values) or list(channels) != list(strides):
        raise ConfigError(
            f"model.backbone.name={name}: channels and strides must have the same keys, finest map first; found"
            f" channels {channels} and strides {strides}"
        )
    return backbone
