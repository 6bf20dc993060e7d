"""Convolutions that compute their weight gradients in the contiguous format."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectors import MOBILENET
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fcos.config import Config
from fcos.interop.checkpoints import load_checkpoint
from fcos.models.weight_gradients import has_slow_weight_gradients, use_contiguous_weight_gradients
from fcos.training import step
from fcos.training.loop import train


class WeightGradients(TorchDispatchMode):
    """Records the memory formats that determine the kernels of weight gradients: channels-last if one tensor is.

    Attributes:
        formats: formats in all convolutions.
        formats_of_dense: formats in those that are neither grouped nor 1x1.
    """

    def __init__(self) -> None:
        super().__init__()
        self.formats: set[str] = set()
        self.formats_of_dense: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution_backward.default and args[-1][1]:
            gradient, images, weight, *_, groups, _ = args
            is_contiguous = all(tensor.is_contiguous() for tensor in (gradient, images, weight))
            memory_format = "contiguous" if is_contiguous else "channels-last"
            self.formats.add(memory_format)
            if groups == 1 and weight.shape[2:] != (1, 1):
                self.formats_of_dense.add(memory_format)
        return func(*args, **(kwargs or {}))


def gradients(conv: nn.Module, images: Tensor) -> tuple[list[Tensor], set[str]]:
    """Return the output and all gradients, and the formats of the maps of weight gradients."""
    images = images.clone(memory_format=torch.channels_last).requires_grad_()
    parameters = [parameter for parameter in conv.parameters() if parameter.requires_grad]
    with WeightGradients() as recorded:
        output = conv(images)
        found = torch.autograd.grad(output.float().square().sum(), [images, *parameters])
    return [output.detach(), *found], recorded.formats


@pytest.mark.parametrize(
    ("options", "formats"),
    [
        ({"padding": 1}, {"contiguous"}),
        ({"padding": 1, "bias": False}, {"contiguous"}),
        ({"padding": (2, 1), "stride": (1, 2), "dilation": (2, 1)}, {"contiguous"}),
        ({"padding": 1, "groups": 2}, {"channels-last"}),
        ({"padding": "same"}, {"channels-last"}),
        ({"padding": 1, "padding_mode": "reflect"}, {"channels-last"}),
        ({"kernel_size": 1}, {"channels-last"}),
    ],
)
def test_gradients_are_the_same(options: dict[str, Any], formats: set[str]) -> None:
    conv = nn.Conv2d(4, 6, **{"kernel_size": 3, **options}).to(memory_format=torch.channels_last)
    images = torch.randn(2, 4, 9, 11)
    expected, before = gradients(conv, images)
    assert before == {"channels-last"}
    use_contiguous_weight_gradients(conv)
    found, after = gradients(conv, images)
    assert after == formats
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_frozen_parameters_have_no_gradient(frozen: str) -> None:
    conv = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)
    conv.get_parameter(frozen).requires_grad_(False)
    images = torch.randn(2, 4, 9, 11)
    expected, _ = gradients(conv, images)
    use_contiguous_weight_gradients(conv)
    found, _ = gradients(copy.deepcopy(conv), images)
    torch.testing.assert_close(found, expected)


def test_autocast_computes_as_before() -> None:
    conv = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)
    images = torch.randn(2, 4, 9, 11)
    with torch.autocast("cpu", torch.bfloat16):
        expected, _ = gradients(conv, images)
        use_contiguous_weight_gradients(conv)
        found, _ = gradients(conv, images)
    assert found[0].dtype == torch.bfloat16
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", ["fcos", "rcnn"])
def test_training_gives_the_same_weights(
    name: str, configure: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = []
    for capability in ("AVX512", "AVX2"):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda capability=capability: capability)
        config = configure(model={"name": name, **MOBILENET}).model_copy(update={"output_dir": tmp_path / capability})
        with WeightGradients() as recorded:
            run = train(config).run
        assert ("channels-last" in recorded.formats_of_dense) == (capability == "AVX512")
        states.append(load_checkpoint(run / "weights/last.pt").model)
    for key, expected in states[0].items():
        torch.testing.assert_close(states[1][key], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{"model": {"backbone": {"name": "own_backbone:Own"}}}, {"compile": True}])
def test_own_and_compiled_modules_stay_as_they_are(
    options: dict[str, Any], configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts: list[nn.Module] = []
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(step, "use_contiguous_weight_gradients", parts.append)
    monkeypatch.setattr(step, "compile_modules", lambda _: None)
    train(configure(**options))
    assert [type(part).__name__ for part in parts] == ([] if "compile" in options else ["FPN", "FCOSHead"])


def test_other_inputs_are_computed_as_before() -> None:
    conv = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)
    changed = copy.deepcopy(conv)
    use_contiguous_weight_gradients(changed)
    for images in (torch.randn(4, 9, 11), torch.randn(0, 4, 9, 11), torch.randn(2, 4, 9, 11, dtype=torch.float64)):
        outputs = [each.to(images.dtype)(images) for each in (conv, changed)]
        assert torch.equal(*outputs)
        found = [
            torch.autograd.grad(output.square().sum(), list(each.parameters()))
            for output, each in zip(outputs, (conv, changed), strict=True)
        ]
        torch.testing.assert_close(found[0], found[1])


def test_subclasses_stay_as_they_are() -> None:
    class Own(nn.Conv2d):
        pass

    conv = Own(4, 6, 3)
    use_contiguous_weight_gradients(conv)
    assert type(conv) is Own


@pytest.mark.parametrize(
    ("device", "capability", "expected"),
    [("cpu", "AVX2", True), ("cpu", "AVX512", False), ("cpu", "DEFAULT", False), ("cuda", "AVX2", False)],
)
def test_only_cpus_with_avx2_and_without_avx512_are_slow(
    device: str, capability: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert has_slow_weight_gradients(torch.device(device)) is expected
