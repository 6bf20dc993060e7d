"""Layers shared by backbones, pyramid and heads."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d as TorchvisionFrozenBatchNorm2d
from torchvision.ops import deform_conv2d

from ..choices import TowerNorm
from ..distributed import sum_over_processes, world_size


class GroupNorm(nn.GroupNorm):
    """`nn.GroupNorm` that also accepts groups of a single value (one channel of a 1x1 map), where torch raises.

    The output for such a group is the bias. On GPUs, half-precision maps keep their data type under autocast, which
    otherwise converts them to float32; statistics are computed in float32 in any case.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise a map [N, channels, H, W]; shape and data type stay the same."""
        if input.device.type != "cuda":
            return torch.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)
        with torch.autocast("cuda", enabled=False):
            if torch.compiler.is_compiling():
                return group_norm_by_channels(input, self.num_groups, self.weight, self.bias, eps=self.eps)
            weight, bias = self.weight.to(input.dtype), self.bias.to(input.dtype)
            return torch.group_norm(input, self.num_groups, weight, bias, self.eps)


def group_norm_by_channels(x: Tensor, groups: int, weight: Tensor, bias: Tensor, *, eps: float) -> Tensor:
    """Compute a group norm from the statistics of every channel.

    Compilers fuse it with the layers around it, and read and write maps in any memory format. The operator of torch
    converts channels-last maps on GPUs.

    Args:
        x: map [N, channels, H, W].
        groups: number of groups.
        weight: [channels] factors.
        bias: [channels] summands.
        eps: epsilon.
    """
    variance, mean = torch.var_mean(x.float(), dim=(2, 3), correction=0)  # [N, channels]
    variance, mean = (each.unflatten(1, (groups, -1)) for each in (variance, mean))
    group_mean = mean.mean(dim=2, keepdim=True)
    # Channels have equally many values: the variance of a group is the mean of theirs, plus that of their means.
    group_variance = variance.mean(dim=2, keepdim=True) + (mean - group_mean).square().mean(dim=2, keepdim=True)
    scale = (group_variance + eps).rsqrt() * weight.unflatten(0, (groups, -1))
    shift = bias.unflatten(0, (groups, -1)) - group_mean * scale
    scale, shift = (each.flatten(1)[:, :, None, None] for each in (scale, shift))
    return (x * scale + shift).to(x.dtype)


def group_norm(channels: int, *, eps: float = 1e-5, groups: int = 32) -> GroupNorm:
    """Build a group norm.

    Args:
        channels: number of channels.
        eps: epsilon.
        groups: number of groups, or -n for groups of n channels. If it does not divide `channels`, groups have 2
            channels.
    """
    if channels % groups:
        return GroupNorm(channels // 2, channels, eps=eps)
    return GroupNorm(groups if groups > 0 else channels // -groups, channels, eps=eps)


class FrozenBatchNorm2d(TorchvisionFrozenBatchNorm2d):
    """Batch norm with fixed statistics and parameters, in the data type of the map.

    torchvision's float32 parameters would convert half-precision maps to float32. On the CPU, float32 maps round
    exactly as there and in the original; all others are normalised in one pass.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Normalise a map [N, channels, H, W]; shape and data type stay the same."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        scale, shift = scale.to(x.dtype)[:, None, None], shift.to(x.dtype)[:, None, None]
        if x.device.type == "cpu" and x.dtype == self.weight.dtype:
            return (x * scale).add_(shift)  # `addcmul` rounds once instead of twice
        return torch.addcmul(shift, x, scale)


class SyncBatchNorm(nn.BatchNorm2d):
    """Batch norm with statistics over all processes, on any device.

    It replaces `nn.SyncBatchNorm` on the CPU, where DistributedDataParallel refuses that layer. On GPUs,
    `with_gpu_batch_norm` converts it to `nn.SyncBatchNorm`.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise a map [N, channels, H, W]; in training, every process must make the same number of calls."""
        if not self.training or world_size() == 1:
            return super().forward(input)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        x = input.to(self.weight.dtype)
        # Two passes, because the mean of the squares minus the square of the mean suffers from cancellation.
        sums = sum_over_processes(torch.cat([x.sum(dim=(0, 2, 3)), x.new_tensor([x.numel() / x.shape[1]])]))
        mean, count = sums[:-1] / sums[-1], sums[-1].detach()
        centred = x - mean[:, None, None]
        variance = sum_over_processes(centred.square().sum(dim=(0, 2, 3))) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(input.dtype)


def with_gpu_batch_norm(model: nn.Module) -> nn.Module:
    """Replace every `SyncBatchNorm` by `nn.SyncBatchNorm`, whose fused kernels run on GPUs only."""
    for path, module in list(model.named_modules()):
        if isinstance(module, SyncBatchNorm):
            model.set_submodule(path, nn.SyncBatchNorm.convert_sync_batchnorm(module))
    return model


NORMS: dict[str, Callable[..., nn.Module]] = {
    "frozen_bn": FrozenBatchNorm2d,
    "bn": nn.BatchNorm2d,
    "sync_bn": SyncBatchNorm,
    "gn": group_norm,
}
"""Normalisation layers by config name; called with (channels, eps=...)."""


def conv_norm_relu(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    *,
    stride: int = 1,
    norm: str = "none",
    norm_options: Mapping[str, Any] | None = None,
    relu: bool = False,
    separable: bool = False,
) -> nn.Module:
    """Build a "same" convolution, optionally followed by a norm and a ReLU.

    With a norm, which is called with `norm_options`, the convolution has no bias. Without norm and ReLU, the result is
    a plain `nn.Conv2d`. If it is `separable`, it is a `SeparableConv`, whose kernel is 3x3 and whose stride is 1.
    """
    bias = norm == "none"
    if separable:
        assert (kernel_size, stride) == (3, 1)
        conv = SeparableConv(in_channels, out_channels, bias=bias)
    else:
        conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2, bias=bias)
        nn.init.kaiming_uniform_(conv.weight, a=1)
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)
    layers: list[nn.Module] = [conv]
    if norm != "none":
        layers.append(NORMS[norm](out_channels, **(norm_options or {})))
    if relu:
        layers.append(nn.ReLU(inplace=True))
    return conv if len(layers) == 1 else nn.Sequential(*layers)


class SeparableConv(nn.Sequential):
    """Depthwise separable 3x3 "same" convolution: a 3x3 convolution of every channel, then a 1x1 convolution.

    Compared with a plain convolution, it has about a ninth of the weights and operations.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        bias: whether the 1x1 convolution has a bias; the depthwise one has none.

    Source: Sandler et al., CVPR 2018 (arXiv:1801.04381), section 3.1.
    """

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool = True):
        depthwise = nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False)
        pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=bias)
        super().__init__(depthwise, pointwise)
        nn.init.kaiming_uniform_(depthwise.weight, a=1)
        nn.init.kaiming_uniform_(pointwise.weight, a=1)
        if pointwise.bias is not None:
            nn.init.zeros_(pointwise.bias)


class DeformConv(nn.Module):
    """Deformable 3x3 "same" convolution, whose sampling points are predicted by another convolution, `offset`.

    For every offset group, `offset` predicts (dy, dx) of each of the nine samples; the logits of all weights follow.
    As in the original FCOS and unlike in the papers, `offset` is not initialised with zeros.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: stride of both convolutions.
        groups: groups of the main convolution; `offset` is not grouped.
        bias: whether the main convolution has a bias; `offset` always has one.
        modulated: whether every sample is also multiplied by a predicted weight in 0..1 (version 2).
        offset_groups: number of equal groups of input channels, each with separate offsets and weights.

    Source: Dai et al., ICCV 2017 (arXiv:1703.06211); Zhu et al., CVPR 2019 (arXiv:1811.11168).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int = 1,
        groups: int = 1,
        bias: bool = False,
        modulated: bool = True,
        offset_groups: int = 1,
    ):
        super().__init__()
        self.stride = stride
        self.modulated = modulated
        self.num_coordinates = 18 * offset_groups
        num_outputs = self.num_coordinates + (9 * offset_groups if modulated else 0)
        self.offset = nn.Conv2d(in_channels, num_outputs, 3, stride=stride, padding=1)
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, groups=groups, bias=bias)
        nn.init.kaiming_uniform_(self.offset.weight, a=1)
        for conv in (self.offset, self.conv):
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, in_channels, H, W] to [N, out_channels, H / stride, W / stride] (rounded up); N may be 0."""
        weight = self.conv.weight
        # The kernel requires a single dtype; under autocast, the input or the offsets may be in half precision.
        offset, mask = self.offset(x).to(weight.dtype), None
        if self.modulated:
            offset, mask = offset[:, : self.num_coordinates], offset[:, self.num_coordinates :].sigmoid()
        return deform_conv2d(
            x.to(weight.dtype), offset, weight, self.conv.bias, (self.stride, self.stride), (1, 1), mask=mask
        )


class Tower(nn.Sequential):
    """Layers of a tower, see `build_tower`; `run_tower` applies them, because some exist once per level."""


def build_tower(
    channels: int,
    levels: int,
    *,
    num_convs: int,
    norm: TowerNorm = "gn",
    bias: bool = True,
    deformable: bool = False,
    separable: bool = False,
) -> Tower:
    """Build a tower of a head, which `run_tower` applies to the levels of a pyramid.

    Args:
        channels: number of channels of the pyramid and of all layers.
        levels: number of levels.
        num_convs: number of 3x3 convolutions; a norm and a ReLU follow each.
        norm: `gn` (see `group_norm`), `bn` (a separate batch norm per level, because statistics differ between levels)
            or `none`.
        bias: whether the convolutions have a bias.
        deformable: whether the last convolution is a `DeformConv`.
        separable: whether the other convolutions are `SeparableConv`s.
    """
    layers: list[nn.Module] = []
    usual = SeparableConv if separable else partial(nn.Conv2d, kernel_size=3, padding=1)
    for i in range(num_convs):
        conv = DeformConv if deformable and i == num_convs - 1 else usual
        layers.append(conv(channels, channels, bias=bias))
        if norm == "bn":
            layers.append(nn.ModuleList(NORMS[norm](channels) for _ in range(levels)))
        elif norm != "none":
            layers.append(NORMS[norm](channels))
        layers.append(nn.ReLU(inplace=True))
    return Tower(*layers)


def run_tower(tower: Tower, x: Tensor, level: int) -> Tensor:
    """Run a tower on one level [N, channels, H, W]; a `ModuleList` in it has one layer per level."""
    for layer in tower:
        x = layer[level](x) if isinstance(layer, nn.ModuleList) else layer(x)
    return x


def initialize_head(head: nn.Module, logits: nn.Conv2d, *, prior_probability: float) -> None:
    """Initialise the convolutions of a head: normal weights (std 0.01) and zero biases.

    Deformable convolutions and the depthwise ones of `SeparableConv` keep their initial weights.

    Args:
        head: head with towers and predictions.
        logits: convolution in `head` that predicts class logits; its bias gives every class the prior probability.
        prior_probability: probability in 0..1.

    Source: Lin et al., ICCV 2017 (arXiv:1708.02002), section 4.1.
    """
    excluded = [module.conv for module in head.modules() if isinstance(module, DeformConv)]
    excluded += [module[0] for module in head.modules() if isinstance(module, SeparableConv)]
    for module in head.modules():
        if isinstance(module, nn.Conv2d) and module not in excluded:
            nn.init.normal_(module.weight, std=0.01)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    assert logits.bias is not None
    nn.init.constant_(logits.bias, -math.log((1 - prior_probability) / prior_probability))


def at_least_float32(x: Tensor) -> Tensor:
    """Convert half precision to float32, in which losses and boxes are computed."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def freeze(module: nn.Module) -> nn.Module:
    """Freeze a module: parameters get no gradient, and batch norm keeps its statistics in training mode, too.

    Returns:
        The module, or a `FrozenBatchNorm2d` if it is itself a batch norm.
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
