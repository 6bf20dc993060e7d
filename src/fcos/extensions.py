"""User-defined functions, given in options as `package.module:function`."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from typing import Any

from .errors import ConfigError

FUNCTION = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"
"""Regular expression of `package.module:function`."""


def load_function(name: str, *, option: str) -> Callable[..., Any]:
    """Import the function that an option names.

    A config of unknown origin could name any function. Those of Python's standard library, which start processes and
    delete files, are rejected.

    Args:
        name: `package.module:function`.
        option: the option with its value, for messages.

    Raises:
        ConfigError: the module does not exist, cannot be imported or has no such function, the name is not callable, or
            it belongs to the standard library.
    """
    module, _, function = name.partition(":")
    _reject_standard_library(module, option)
    try:
        attribute = getattr(importlib.import_module(module), function, None)
    except ModuleNotFoundError as error:
        raise ConfigError(f"{option}: no module {error.name!r}; install it, or add its folder to PYTHONPATH") from error
    except (Exception, SystemExit) as error:  # a user's module may raise anything
        reason = " ".join(str(error).split())
        raise ConfigError(f"{option}: importing {module!r} failed: {type(error).__name__}: {reason}") from error
    if attribute is None:
        raise ConfigError(f"{option}: the module {module!r} has no function {function!r}")
    if not callable(attribute):
        raise ConfigError(
            f"{option}: {function!r} of the module {module!r} is not a function: {type(attribute).__name__}"
        )
    if inspect.isroutine(attribute) or inspect.isclass(attribute):  # `from subprocess import run` in another module
        _reject_standard_library(getattr(attribute, "__module__", None) or "", option)
    return attribute


def _reject_standard_library(module: str, option: str) -> None:
    package = module.partition(".")[0]
    if package in sys.stdlib_module_names:
        raise ConfigError(
            f"{option}: functions of Python's standard library are not allowed, because a config could run any command"
            f" with them; expected a function of yours (a module of yours must not be named {package!r})"
        )
