"""Folding of batch norms into the convolutions before them, for inference and for frozen stages in training."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torchvision.ops import FrozenBatchNorm2d as TorchvisionFrozenBatchNorm2d

from .detector import DetectionModel
from .fpn import FPN
from .layers import DeformConv, SeparableConv, Tower

Model = TypeVar("Model", bound=DetectionModel)
Module = TypeVar("Module", bound=nn.Module)

_SIZE = 64
"""Side in pixels of the image that the backbone is run on."""
_TOLERANCE = 1e-3
"""Largest difference of a map, relative to its largest absolute value."""


def fold_frozen_stages(model: Model) -> Model:
    """Return a detector for training steps whose frozen batch norms are folded into frozen convolutions before them.

    The maps differ by rounding only.

    Args:
        model: detector with its initial weights, on its device. It is not changed. As the folded convolutions are not
            trained, the result needs not be computed again after a step.

    Returns:
        A detector that shares all other modules outside of the backbone, and all parameters and buffers that a training
        step changes. `model` itself if nothing can be folded, see `fold_batch_norms`.
    """
    backbone = getattr(model, "backbone", None)
    if not isinstance(backbone, nn.Module):
        return model
    folded = fold_batch_norms(backbone, like=model.pixel_mean, only_frozen=True)
    return model if folded is None else with_modules(model, {"backbone": folded})


def fold_batch_norms(backbone: nn.Module, *, like: Tensor, only_frozen: bool = False) -> nn.Module | None:
    """Return a copy of a backbone with its batch norms folded into the convolutions before them.

    Args:
        backbone: a `Backbone` in evaluation mode, or in any mode with `only_frozen`.
        like: tensor with the device and the data type of its input.
        only_frozen: fold only frozen batch norms into frozen convolutions, and keep the mode of all modules.

    Returns:
        None if there is nothing to fold, if a module has hooks, which may observe a batch norm, or is compiled, if the
        maps would differ, or if the backbone cannot be copied or run on an image of 64x64 pixels.
    """
    if any(num_hooks(module) or is_compiled(module) for module in backbone.modules()):
        return None
    image = torch.randn(1, 3, _SIZE, _SIZE, generator=torch.Generator().manual_seed(0)).to(like)
    # Tensors of the inference mode could not be used outside of it.
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(like.device.type, enabled=False):
        try:
            return _fold(backbone, image, only_frozen=only_frozen)
        except Exception:  # a user's backbone can raise anything
            return None


def fold_sequences(part: nn.Module) -> nn.Module | None:
    """Return a copy of a pyramid or a head with the batch norms folded that follow a convolution in a sequence.

    A convolution that is followed by one batch norm per level becomes one convolution per level.

    Args:
        part: pyramid or head in evaluation mode. Sequences are those of an `FPN` and every `Tower`.

    Returns:
        None if there is nothing to fold, or if a module has hooks or is compiled.
    """
    kind = nn.Sequential if isinstance(part, FPN) else Tower
    if not any(isinstance(module, kind) for module in part.modules()) or any(
        num_hooks(module) or is_compiled(module) for module in part.modules()
    ):
        return None
    with torch.inference_mode(False), torch.no_grad():
        folded = copy_sharing_tensors(part)
        counts = [_fold_sequence(module) for module in list(folded.modules()) if isinstance(module, kind)]
    return folded if any(counts) else None


def _fold_sequence(sequence: nn.Sequential) -> int:
    """Fold the batch norms of a sequence, in place, and return their number."""
    count = 0
    for index, (conv, norm) in enumerate(pairwise(list(sequence))):
        norms = list(norm) if isinstance(norm, nn.ModuleList) else [norm]
        if not (_is_conv(conv) or isinstance(conv, SeparableConv)) or not norms or not all(map(_is_batch_norm, norms)):
            continue
        convs = [copy_sharing_tensors(conv) for _ in norms]
        for each, its_norm in zip(convs, norms, strict=True):
            _fold_into(each, its_norm)
        are_lists = isinstance(norm, nn.ModuleList)
        sequence[index] = nn.ModuleList(convs) if are_lists else convs[0]
        sequence[index + 1] = nn.ModuleList(nn.Identity() for _ in norms) if are_lists else nn.Identity()
        count += len(norms)
    return count


def with_modules(model: Model, modules: Mapping[str, nn.Module]) -> Model:
    """Return a copy of a detector that shares all modules except those given by name."""
    result = copy.copy(model)
    result._modules = {**model._modules, **modules}
    return result


def copy_sharing_tensors(module: Module) -> Module:
    """Return a copy of a module that shares its tensors."""
    return copy.deepcopy(module, {id(tensor): tensor for tensor in chain(module.parameters(), module.buffers())})


def num_hooks(module: nn.Module) -> int:
    """Return the number of forward hooks and forward pre-hooks of a module, without those of its children."""
    return len(module._forward_hooks) + len(module._forward_pre_hooks)


def is_compiled(module: nn.Module) -> bool:
    """Return whether a module is compiled, by `module.compile()` or `torch.compile(module)`; copies would not be."""
    return module._compiled_call_impl is not None or "_orig_mod" in module._modules


def _fold(backbone: nn.Module, image: Tensor, *, only_frozen: bool) -> nn.Module | None:
    """Return a copy of a backbone with its batch norms folded; None if there are none, or if its maps differ."""
    folded = copy_sharing_tensors(backbone)
    modes = [(module, module.training) for module in folded.modules()]
    if only_frozen:
        folded.eval()
    pairs, expected = _find_pairs(folded, image)
    if only_frozen:
        pairs = {conv: norm for conv, norm in pairs.items() if _are_frozen(folded, conv, norm)}
    if not pairs:
        return None
    for conv_path, norm_path in pairs.items():
        norm = folded.get_submodule(norm_path)
        _fold_into(folded.get_submodule(conv_path), norm)
        # timm's batch norms contain the activation.
        folded.set_submodule(norm_path, nn.Sequential(*norm.children()))
    found = folded(image)
    if not all(_is_close(found[name], maps) for name, maps in expected.items()):
        return None
    for module, mode in modes:
        module.training = mode
    return folded


def _are_frozen(backbone: nn.Module, conv_path: str, norm_path: str) -> bool:
    """Return whether a convolution has no trainable parameter, and a batch norm always uses its statistics."""
    conv, norm = backbone.get_submodule(conv_path), backbone.get_submodule(norm_path)
    parameters = chain(conv.parameters(), norm.parameters())
    return isinstance(norm, TorchvisionFrozenBatchNorm2d) and not any(each.requires_grad for each in parameters)


def _find_pairs(backbone: nn.Module, image: Tensor) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Run a backbone and return the path of the batch norm after each convolution, by its path, and the maps."""
    calls: dict[str, int] = defaultdict(int)  # of every convolution
    outputs: dict[int, tuple[str, Tensor]] = {}  # of the convolutions; the tensors are kept, so that ids are unique
    sources: dict[str, list[str | None]] = defaultdict(list)  # of the inputs of every batch norm

    def remember(path: str, output: Tensor) -> None:
        calls[path] += 1
        outputs[id(output)] = path, output

    def look_up(path: str, input: Tensor) -> None:
        sources[path].append(outputs[id(input)][0] if id(input) in outputs else None)

    with _observing(backbone, remember, look_up):
        maps = backbone(image)
    norms: dict[str, list[str]] = defaultdict(list)
    for path, found in sources.items():
        if len(set(found)) == 1 and found[0] is not None and calls[found[0]] == len(found):
            norms[found[0]].append(path)
    return {conv: paths[0] for conv, paths in norms.items() if len(paths) == 1}, maps


@contextmanager
def _observing(backbone: nn.Module, on_conv: Any, on_norm: Any) -> Iterator[None]:
    """Call `on_conv(path, output)` after every convolution and `on_norm(path, input)` after every batch norm."""
    handles = []
    for path, module in backbone.named_modules():
        if _is_conv(module):
            handles.append(module.register_forward_hook(lambda _, __, output, path=path: on_conv(path, output)))
        elif _is_batch_norm(module):
            handles.append(module.register_forward_hook(lambda _, inputs, __, path=path: on_norm(path, inputs[0])))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _is_conv(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d | DeformConv) and not is_parametrized(module)


def _is_batch_norm(module: nn.Module) -> bool:
    """Return whether a module normalises with stored statistics; the frozen variants have no common base class."""
    return getattr(module, "running_var", None) is not None and hasattr(module, "eps") and not module.training


def _fold_into(conv: nn.Module, norm: Any) -> None:
    """Multiply and shift the output of a convolution as a batch norm does; computed in float64."""
    target = conv.conv if isinstance(conv, DeformConv) else conv[-1] if isinstance(conv, SeparableConv) else conv
    assert isinstance(target, nn.Conv2d)
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -norm.running_mean if target.bias is None else target.bias - norm.running_mean
    bias = shift * scale if norm.bias is None else shift * scale + norm.bias
    target.weight = _like(target.weight * scale[:, None, None, None], target.weight)
    target.bias = _like(bias, target.weight)


def _like(values: Tensor, parameter: Tensor) -> nn.Parameter:
    return nn.Parameter(values.to(parameter.dtype), requires_grad=False)


def _is_close(found: Tensor, expected: Tensor) -> bool:
    return torch.allclose(found, expected, rtol=0.0, atol=_TOLERANCE * float(expected.abs().max()))
