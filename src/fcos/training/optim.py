"""Optimiser, learning-rate schedule, arithmetic and weight averaging.

The rules are the original's (numbers in tests/parity/goldens): one learning rate and weight decay per trainable
parameter, decided by its name alone; `optimizer.step()` before the schedule advances.
"""

from __future__ import annotations

import copy
import fnmatch
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ..choices import Precision
from ..config import TrainConfig
from ..errors import ConfigError
from ..models.layers import freeze


class ParameterSetting(NamedTuple):
    """How one parameter learns; `lr` is the rate before warm-up and schedule."""

    name: str
    parameter: nn.Parameter
    lr: float
    weight_decay: float


def freeze_parameters(model: nn.Module, patterns: Sequence[str]) -> None:
    """Stop parameters from learning, and the batch norms of which they are all parameters from taking statistics.

    Args:
        model: batch norms in it are replaced.
        patterns: of names of parameters, as file names have them: `backbone.*`.

    Raises:
        ConfigError: a pattern that fits no parameter.
    """
    frozen = {name for pattern in patterns for name in _named_like(pattern, model, option="train.freeze")}
    for path, module in list(model.named_modules()):
        names = [f"{path}.{name}" for name, _ in module.named_parameters(recurse=False)]
        if isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm) and names and frozen.issuperset(names):
            model.set_submodule(path, freeze(module))
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)


def _named_like(pattern: str, model: nn.Module, *, option: str) -> list[str]:
    names = [name for name, _ in model.named_parameters()]
    found = fnmatch.filter(names, pattern)
    if not found:
        examples = ", ".join(names[:: max(len(names) // 4, 1)])
        raise ConfigError(f"{option}: no parameter has a name like {pattern!r}; there are for example {examples}")
    return found


def parameter_settings(model: nn.Module, config: TrainConfig) -> list[ParameterSetting]:
    """Give every trainable parameter its learning rate and weight decay, in `named_parameters` order.

    "bias" in the name multiplies the rate by `bias_lr_factor` and sets the decay to `bias_weight_decay`; the offsets of
    deformable convolutions have their rate multiplied by `offset_lr_factor`; the weights of normalisation layers decay
    like all others. `lr_factors` multiply the rates of what their patterns name.

    Args:
        model: with what is frozen already frozen.
        config: rates, decays and their factors.

    Raises:
        ConfigError: a pattern that fits no parameter; or nothing learns.
    """
    factors: dict[str, float] = {}
    for pattern, factor in config.lr_factors.items():
        factors |= dict.fromkeys(_named_like(pattern, model, option="train.lr_factors"), factor)
    settings = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rate, decay = config.lr * factors.get(name, 1.0), config.weight_decay
            if "bias" in name:
                rate, decay = rate * config.bias_lr_factor, config.bias_weight_decay
            if ".offset." in name:
                rate *= config.offset_lr_factor
            settings.append(ParameterSetting(name, parameter, rate, decay))
    if not settings:
        raise ConfigError("nothing is left to learn; name fewer parameters in train.freeze")
    return settings


def build_optimizer(model: nn.Module, config: TrainConfig) -> Optimizer:
    """Build SGD or AdamW with one group for each distinct pair of rate and decay.

    Every group remembers its rate before the schedule as `initial_lr`. The fused kernels are used: the same numbers
    within one rounding, in a third of the time on the CPU.

    Args:
        model: on its device, see `parameter_settings`.
        config: the optimiser, its rates and decays.

    Raises:
        ConfigError: see `parameter_settings`.
    """
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for setting in parameter_settings(model, config):
        groups.setdefault((setting.lr, setting.weight_decay), []).append(setting.parameter)
    options = [
        {"params": parameters, "lr": lr, "initial_lr": lr, "weight_decay": decay}
        for (lr, decay), parameters in groups.items()
    ]
    if config.optimizer == "adamw":
        return AdamW(options, lr=config.lr, fused=True)
    return SGD(options, lr=config.lr, momentum=config.momentum, fused=True)


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """The arithmetic of backbone and head; losses and boxes keep to float32 themselves."""
    dtype = getattr(torch, precision)
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def learning_rate_factor(step: int, total: float, config: TrainConfig) -> float:
    """Say by what the learning rates are multiplied in a step.

    Args:
        step: steps done before this one, from 0.
        total: steps of the whole run, > 0; an estimate (not a whole number, infinite at first) under a time budget.
        config: schedule and warm-up; `milestones` below 1 are fractions of `total`.

    Returns:
        The product of warm-up (0..1) and decay (0..1).
    """
    if config.schedule == "cosine":
        decay = 0.5 * (1 + math.cos(math.pi * min(step / total, 1.0)))
    else:
        # Half a step of slack: a fraction of the run falls on the nearest step, whatever its rounding.
        passed = sum((m if m >= 1 else m * total) <= step + 0.5 for m in config.milestones)
        decay = config.gamma**passed
    if config.warmup == "none" or step >= config.warmup_iterations:
        return decay
    if config.warmup == "constant":
        return config.warmup_factor * decay
    alpha = step / config.warmup_iterations
    return (config.warmup_factor * (1 - alpha) + alpha) * decay


def set_learning_rate(optimizer: Optimizer, factor: float) -> None:
    """Multiply every group's initial rate by a factor."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


class WeightAverage:
    """Exponential moving average of a model's weights, as a model of its own.

    The decay in update t (from 0) is min(decay, (1 + t) / (10 + t)), so that the random start is soon forgotten.
    Batch-norm statistics are averaged with the weights that they belong to; integer buffers are copied.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights after a step."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        pairs = list(zip(self.model.state_dict().values(), model.state_dict().values(), strict=True))
        averaged, latest = zip(*(pair for pair in pairs if pair[0].is_floating_point()), strict=True)
        get_ema_multi_avg_fn(decay)(averaged, latest, self.updates)
        for mine, new in pairs:
            if not mine.is_floating_point():
                mine.copy_(new)
