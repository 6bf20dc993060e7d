"""Small layers that backbones, pyramid and head share."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torchvision.ops import FrozenBatchNorm2d


def group_norm(channels: int, *, eps: float = 1e-5) -> nn.GroupNorm:
    """32 groups; of 32 channels 16, for a group of one channel has nothing to normalise on a 1x1 map."""
    return nn.GroupNorm(min(32, channels // 2), channels, eps=eps)


NORMS: dict[str, Callable[..., nn.Module]] = {
    "frozen_bn": FrozenBatchNorm2d,
    "bn": nn.BatchNorm2d,
    "sync_bn": nn.SyncBatchNorm,
    "gn": group_norm,
}
"""Normalisation layers by config name; called with (channels, eps=...)."""


def conv_norm_relu(
    in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, norm: str = "none", relu: bool = False
) -> nn.Module:
    """A "same" convolution; with a norm it has no bias of its own. A plain `nn.Conv2d` when neither norm nor ReLU."""
    conv = nn.Conv2d(
        in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2, bias=norm == "none"
    )
    nn.init.kaiming_uniform_(conv.weight, a=1)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    layers: list[nn.Module] = [conv]
    if norm != "none":
        layers.append(NORMS[norm](out_channels))
    if relu:
        layers.append(nn.ReLU(inplace=True))
    return conv if len(layers) == 1 else nn.Sequential(*layers)


def freeze(module: nn.Module) -> nn.Module:
    """Stop learning: parameters get no gradient, batch norm keeps its statistics also in training mode.

    Returns:
        The module, or what replaces it when it is a batch norm itself.
    """
    if isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm):
        frozen = FrozenBatchNorm2d(module.num_features, eps=module.eps)
        frozen.load_state_dict(module.state_dict())
        return frozen
    for parameter in module.parameters(recurse=False):
        parameter.requires_grad_(False)
    for name, child in module.named_children():
        setattr(module, name, freeze(child))
    return module
