"""Channels-last convolutions whose weight gradients are computed in the contiguous format, for CPUs with AVX2."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def has_slow_weight_gradients(device: torch.device) -> bool:
    """Return whether PyTorch computes weight gradients of convolutions slowly in channels-last format.

    That is so on processors with AVX2, but without AVX-512: the kernel of oneDNN needs up to 6 times as long as in the
    contiguous format (256 channels; more for larger maps). The rest of a training step is not slower in channels-last.
    """
    return device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2"


def use_contiguous_weight_gradients(model: nn.Module) -> None:
    """Let a model compute the weight gradients of its dense convolutions in the contiguous format, in float32.

    Losses are the same, gradients are equal up to rounding. The class of the convolutions changes, in place. Subclasses
    of `nn.Conv2d`, grouped and 1x1 convolutions, and other paddings than a number of zeros stay as they are.
    The changed ones have no second derivatives, and `torch.func` cannot transform them.
    """
    for module in model.modules():
        is_dense = type(module) is nn.Conv2d and module.groups == 1 and module.kernel_size != (1, 1)
        if is_dense and module.padding_mode == "zeros" and not isinstance(module.padding, str):
            module.__class__ = _ContiguousGradientConv2d


class _ContiguousGradientConv2d(nn.Conv2d):
    """Convolution that differs from `nn.Conv2d` in the memory format of its weight gradient only."""

    def forward(self, input: Tensor) -> Tensor:
        """Convolve images [N, C, H, W]; all other inputs of `nn.Conv2d` are computed as there."""
        is_trained = torch.is_grad_enabled() and self.weight.requires_grad
        is_usual = input.device.type == "cpu" and input.dtype == torch.float32 and input.dim() == 4
        if not is_trained or not is_usual or torch.is_autocast_enabled("cpu"):
            return super().forward(input)
        return _ContiguousGradientConvolution.apply(
            input, self.weight, self.bias, (self.stride, self.padding, self.dilation)
        )


class _ContiguousGradientConvolution(torch.autograd.Function):
    """Convolution of images [N, C, H, W] with weights [D, C, h, w] and bias [D] or None.

    The geometry is the stride, the padding and the dilation, (y, x) each.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None, geometry: Any) -> Tensor:
        ctx.save_for_backward(images, weight)
        ctx.geometry = geometry
        ctx.bias_sizes = None if bias is None else list(bias.shape)
        return torch.conv2d(images, weight, bias, *geometry)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, weight = ctx.saved_tensors
        needs_images, *needs_parameters = ctx.needs_input_grad[:3]

        def gradients(tensors: tuple[Tensor, ...], needed: list[bool]) -> tuple[Tensor | None, ...]:
            options = ctx.bias_sizes, *ctx.geometry, False, [0, 0], 1, needed
            return torch.ops.aten.convolution_backward(*tensors, *options)

        tensors = gradient, images, weight
        of_images = gradients(tensors, [True, False, False])[0] if needs_images else None
        # All three are contiguous, because a single one in channels-last format determines the kernel.
        _, *of_parameters = gradients(tuple(each.contiguous() for each in tensors), [False, *needs_parameters])
        return of_images, *of_parameters, None
