"""Initial weights against the recorded statistics of the original's, one random draw each.

The sample standard deviation of n numbers has a relative standard error of sqrt((kurtosis - 1) / 4n), at most
sqrt(1 / 2n) (normal distribution); the mean has a standard error of std / sqrt(n). Both draws are random, hence a
factor of sqrt(2). Chance exceeds five of these errors once in two million comparisons; the seed is fixed.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from golden import folder, manifest_of, pairs_of
from torch import Tensor

from fcos.config.overrides import validate
from fcos.interop.fcos_core.config import config_from_yaml
from fcos.interop.fcos_core.weights import rename
from fcos.models import build_model

SIGMAS = 5
ROUNDING = 1e-5  # the recordings have six digits


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    files = sorted((folder(metafunc.config) / "init_stats").glob("*.json"))
    metafunc.parametrize("pairs", files, ids=[file.stem for file in files], indirect=True, scope="module")


@pytest.fixture(scope="module")
def pairs(request: pytest.FixtureRequest) -> list[tuple[str, list[Any], Tensor]]:
    """Return (the original's name, [shape, mean, std, min, max], our tensor) of every tensor."""
    recorded = json.loads(request.param.read_text())
    manifest = manifest_of(folder(request.config), recorded)
    config = validate(config_from_yaml(manifest["merged_config"], pairs_of(recorded)), where="x").model
    torch.manual_seed(0)
    model = build_model(config, num_classes=config.num_classes or 0, pretrained=False)
    tensors = {**dict(model.named_buffers()), **model.state_dict()}
    return [(name, row, tensors[rename(name, config.name)].double()) for name, *row in recorded["tensors"]]


def test_constant_tensors_match_the_original(pairs: list[tuple[str, list[Any], Tensor]]) -> None:
    constants = [(name, row[1], tensor) for name, row, tensor in pairs if row[3] == row[4]]
    assert constants
    for name, value, tensor in constants:
        assert tensor.min().item() == tensor.max().item() == pytest.approx(value, rel=ROUNDING), name


def test_mean_and_std_of_random_tensors_match_the_original(pairs: list[tuple[str, list[Any], Tensor]]) -> None:
    for name, (shape, mean, std, low, high), tensor in pairs:
        assert list(tensor.shape) == shape, name
        if low < high:
            n = tensor.numel()
            assert tensor.std().item() == pytest.approx(std, rel=SIGMAS / n**0.5 + ROUNDING), name
            assert tensor.mean().item() == pytest.approx(mean, abs=SIGMAS * std * (2 / n) ** 0.5), name


def test_uniform_tensors_and_their_bounds_match_the_original(pairs: list[tuple[str, list[Any], Tensor]]) -> None:
    """Uniform values stay within sqrt(3) standard deviations; of thousands of normal values some exceed twice that."""
    for name, (_, _, std, low, high), tensor in pairs:
        if low < high and tensor.numel() > 1000:
            is_uniform = max(-low, high) < 2 * std
            ours = tensor.abs().max().item()
            assert (ours < 2 * tensor.std().item()) == is_uniform, name
            if is_uniform:  # the largest of n values is below the bound by a fraction of about 1 / n
                assert ours == pytest.approx(max(-low, high), rel=20 / tensor.numel() + ROUNDING), name
