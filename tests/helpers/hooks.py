"""Forward hooks on all modules of a class, even if they are built while the context manager is active."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook


@contextmanager
def before_forward(kind: type[nn.Module], act: Callable[[Any], object]) -> Iterator[None]:
    """Call `act(module)` before every forward pass of a module of class `kind`."""

    def hook(module: nn.Module, _: Any) -> None:
        if isinstance(module, kind):
            act(module)

    handle = register_module_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def after_forward(kind: type[nn.Module], change: Callable[[tuple[Any, ...], Any], Any]) -> Iterator[None]:
    """Replace the output of every module of class `kind` by `change(arguments, output)`."""

    def hook(module: nn.Module, arguments: Any, output: Any) -> Any:
        return change(arguments, output) if isinstance(module, kind) else None

    handle = register_module_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def at_call(number: int, act: Callable[[Any], object]) -> Callable[[Any], None]:
    """Wrap a function for `before_forward` so that it only runs in the given call, counted from 1."""
    calls = 0

    def act_once(module: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            act(module)

    return act_once
