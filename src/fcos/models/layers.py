"""Small layers that backbones, pyramid and head share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d, deform_conv2d

from ..distributed import sum_over_processes, world_size


class GroupNorm(nn.GroupNorm):
    """Group norm of a 1x1 map, too, where a group of one channel becomes its bias: torch's layer refuses that."""

    def forward(self, input: Tensor) -> Tensor:
        """[N, channels, H, W] to the same."""
        return torch.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


def group_norm(channels: int, *, eps: float = 1e-5) -> GroupNorm:
    """32 groups, as everybody's; groups of two channels where 32 does not divide them."""
    return GroupNorm(32 if channels % 32 == 0 else channels // 2, channels, eps=eps)


class SyncBatchNorm(nn.BatchNorm2d):
    """Batch norm with the statistics of all processes, on all devices; see `with_gpu_batch_norm`.

    No `nn.SyncBatchNorm`, which DistributedDataParallel refuses on the CPU.
    """

    def forward(self, input: Tensor) -> Tensor:
        """[N, channels, H, W] to the same; every process must call it as often as the others."""
        if not self.training or world_size() == 1:
            return super().forward(input)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        x = input.to(self.weight.dtype)
        # Two passes: the mean of the squares minus the square of the mean would cancel.
        counted = sum_over_processes(torch.cat([x.sum(dim=(0, 2, 3)), x.new_tensor([x.numel() / x.shape[1]])]))
        mean, count = counted[:-1] / counted[-1], counted[-1].detach()
        centred = x - mean[:, None, None]
        variance = sum_over_processes(centred.square().sum(dim=(0, 2, 3))) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(input.dtype)


def with_gpu_batch_norm(model: nn.Module) -> nn.Module:
    """Put torch's fused kernels, which are for GPUs only, in the place of every `SyncBatchNorm`."""
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


class DeformConv(nn.Module):
    """A 3x3 "same" convolution that samples where another convolution, `offset`, says.

    Args:
        in_channels: of the input.
        out_channels: of the result.
        stride: of both convolutions.
        groups: of the convolution, not of the offsets.
        bias: of the convolution; the offsets have one in any case.
        modulated: version 2, every sample is weighted with a factor in 0..1, too.
        offset_groups: so many equal parts of the input channels are sampled at places of their own.

    Source: Dai et al., ICCV 2017 (arXiv:1703.06211); Zhu et al., CVPR 2019 (arXiv:1811.11168). `offset` predicts
    (dy, dx) of the nine samples in turn for every group, then the weights of all as logits. As in the original FCOS it
    does not begin with zeros, unlike in the papers.
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
        self.coordinates = 18 * offset_groups
        numbers = self.coordinates + (9 * offset_groups if modulated else 0)
        self.offset = nn.Conv2d(in_channels, numbers, 3, stride=stride, padding=1)
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, groups=groups, bias=bias)
        nn.init.kaiming_uniform_(self.offset.weight, a=1)
        for part in (self.offset, self.conv):
            if part.bias is not None:
                nn.init.zeros_(part.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] to [N, out_channels, H / stride, W / stride] (rounded up); N may be 0."""
        weight = self.conv.weight
        # The kernel wants one type; under autocast the input or the offsets may be in half precision.
        offset, mask = self.offset(x).to(weight.dtype), None
        if self.modulated:
            offset, mask = offset[:, : self.coordinates], offset[:, self.coordinates :].sigmoid()
        return deform_conv2d(
            x.to(weight.dtype), offset, weight, self.conv.bias, (self.stride, self.stride), (1, 1), mask=mask
        )


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
