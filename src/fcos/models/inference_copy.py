"""Copy of a detector that detects the same in less time."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from functools import partial
from itertools import chain
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from .cuda_graphs import CudaGraphs
from .detector import DetectionModel
from .folding import copy_sharing_tensors, fold_batch_norms, fold_sequences, is_compiled, num_hooks, with_modules
from .layers import DeformConv

Model = TypeVar("Model", bound=DetectionModel)


def require_compiler(device: torch.device, *, option: str) -> None:
    """Check that torch.compile finds the C++ compiler that it needs on the CPU.

    Args:
        device: device of the network.
        option: name of the option that compiles, for the message.

    Raises:
        ConfigError: the device is the CPU and no C++ compiler is installed.
    """
    compiler = os.environ.get("CXX", "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise ConfigError(
            f"{option}: torch.compile needs a C++ compiler on the CPU, but {compiler} was not found; install one"
            " (apt-get install g++), set CXX, or remove the option"
        )


def compile_modules(model: DetectionModel) -> None:
    """Compile the modules in `compiled_parts` (not the losses) with torch.compile, each at its first call."""
    for path in model.compiled_parts:
        model.get_submodule(path).compile()


class _Kept(NamedTuple):
    """Result of a call, kept for the next ones.

    Attributes:
        state: everything that it depends on.
        modules: modules that replace those of the detector, by their names.
        cuda_graphs: graphs of the detector with these modules.
        tensors: tensors of the detector. While they exist, no others have their ids.
    """

    state: list[Any]
    modules: dict[str, nn.Module]
    cuda_graphs: CudaGraphs | None
    tensors: list[Tensor]


class InferenceCopy:
    """Copy of a detector for inference.

    - Batch norms that follow a convolution, in the backbone, the pyramid and one-stage heads, are folded into it. In
      evaluation mode, a batch norm is an affine function of every channel, which the weights and the bias of the
      convolution can contain. The maps differ by rounding only. This saves a pass over every map, and the conversion to
      float32 that float32 statistics cause under autocast.
    - On a GPU under autocast, convolutions have half-precision weights, which are otherwise converted at every call.
    - On request, the network is compiled.
    - On a GPU, repeated small batches replay CUDA graphs, see `cuda_graphs`.

    What the last call has made is kept until the modules change. Values changed by `tensor.data` or in the inference
    mode are not noticed, because PyTorch does not track these changes. Copies and pickles do not contain it.

    Args:
        compiled: whether to compile the modules in `compiled_parts` with torch.compile, each at its first call.
    """

    def __init__(self, *, compiled: bool = False):
        self.compiled = compiled
        self._kept = _Kept([], {}, None, [])

    def __reduce__(self) -> tuple[partial[InferenceCopy], tuple[()]]:
        return partial(InferenceCopy, compiled=self.compiled), ()

    def __call__(self, model: Model) -> Model:
        """Return a detector for inference, in the autocast context of its use.

        Args:
            model: detector in evaluation mode. It is not changed.

        Returns:
            A detector that shares all modules with `model` except the changed ones, and all parameters except those of
            changed convolutions. `model` itself if nothing can be changed: it is compiled, has hooks, or has no parts
            to fold (see `fold_batch_norms` and `fold_sequences`).
        """
        if not isinstance(getattr(model, "backbone", None), nn.Module) or is_compiled(model):
            return model
        kind = model.device.type
        state = [torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)]
        state += [item for part in model.children() for item in _state(part)]
        state += _versions(model.buffers(recurse=False))  # CUDA graphs read them where they are
        kept = self._kept
        if state != kept.state:
            is_observed = any(map(num_hooks, model.modules()))
            can_replay = kind == "cuda" and model.has_fixed_sizes and not is_observed
            graphs = CudaGraphs() if can_replay else None
            tensors = [*model.parameters(), *model.buffers()]
            kept = self._kept = _Kept(state, self._replacements(model), graphs, tensors)  # at once, for other threads
        if not kept.modules and kept.cuda_graphs is None:
            return model
        result = with_modules(model, kept.modules)
        result.cuda_graphs = kept.cuda_graphs
        return result

    def _replacements(self, model: DetectionModel) -> dict[str, nn.Module]:
        """Return the modules that replace those of a detector, by their names."""
        kind, modules = model.device.type, dict[str, nn.Module]()
        has_half_weights = kind == "cuda" and torch.is_autocast_enabled(kind)
        for name in ("backbone", "fpn", "head"):
            part = model._modules.get(name)
            if part is None:
                continue
            changed = fold_batch_norms(part, like=model.pixel_mean) if name == "backbone" else fold_sequences(part)
            if has_half_weights and not any(num_hooks(module) or is_compiled(module) for module in part.modules()):
                half = with_weights_in(part if changed is None else changed, torch.get_autocast_dtype(kind))
                if name != "backbone" or can_run(half, like=model.pixel_mean):
                    changed = half
            if changed is not None:
                modules[name] = changed
        if not self.compiled or any(map(is_compiled, model.modules())):
            return modules
        compiled = copy_sharing_tensors(with_modules(model, modules))
        compile_modules(compiled)
        return {name: part for name, part in compiled._modules.items() if part is not None}


def with_weights_in(part: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return a copy of a part of a detector whose convolutions have weights of a data type, for autocast.

    Deformable convolutions keep theirs, because their operator does not take part in autocast, and so do subclasses of
    `nn.Conv2d`, which may compute with their weights.
    """
    part = copy_sharing_tensors(part)
    excluded = {module.conv for module in part.modules() if isinstance(module, DeformConv)}
    with torch.inference_mode(False), torch.no_grad():
        for module in part.modules():
            if type(module) is nn.Conv2d and module not in excluded:
                for name, parameter in list(module.named_parameters(recurse=False)):
                    setattr(module, name, nn.Parameter(parameter.to(dtype), requires_grad=False))
    return part


def can_run(backbone: nn.Module, *, like: Tensor) -> bool:
    """Return whether a backbone runs on an image of 64x64 pixels, in the autocast context of the call.

    A user's backbone whose convolutions have half-precision weights does not if it leaves autocast.

    Args:
        backbone: a `Backbone` in evaluation mode.
        like: tensor with the device and the data type of its input.
    """
    with torch.inference_mode():
        try:
            backbone(like.new_zeros(1, 3, 64, 64))
        except Exception:  # a user's backbone can raise anything
            return False
    return True


def _state(part: nn.Module) -> list[Any]:
    """Return everything that a changed module depends on; equal lists mean that it need not be changed again."""
    state: list[Any] = []
    for module in part.modules():
        state += module, module.training, num_hooks(module), is_compiled(module), getattr(module, "eps", None)
    return state + _versions(chain(part.parameters(), part.buffers()))


def _versions(tensors: Iterable[Tensor]) -> list[Any]:
    state: list[Any] = []
    for tensor in tensors:
        state += id(tensor), tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version
    return state
