"""The feature pyramid on top of the backbones."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from fcos.models.fpn import FPN

SOURCES: list[Literal["p5", "c5"]] = ["p5", "c5"]


def maps(*sizes: tuple[int, int], images: int = 2) -> list[Tensor]:
    return [torch.randn(images, 8 * (i + 1), *size) for i, size in enumerate(sizes)]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("norm", ["none", "gn"])
def test_level_sizes_match_the_maps_and_halve_for_extra_levels(norm: str, relu: bool, source: Any) -> None:
    fpn = FPN([8, 16, 24], 32, extra_levels=3, extra_level_source=source, norm=norm, relu=relu)
    levels = fpn(maps((13, 17), (7, 9), (4, 5)))
    assert [tuple(x.shape) for x in levels] == [(2, 32, *s) for s in [(13, 17), (7, 9), (4, 5), (2, 3), (1, 2), (1, 1)]]
    assert all((level >= 0).all() == relu for level in levels[:3])


def test_fpn_accepts_empty_batches_and_single_maps() -> None:
    assert [x.shape[0] for x in FPN([8, 16], 32, norm="gn")(maps((4, 6), (2, 3), images=0))] == [0] * 4
    assert len(FPN([8], 32, extra_levels=0)(maps((4, 6)))) == 1


def test_extra_levels_are_computed_from_the_chosen_source() -> None:
    features = maps((8, 8), (4, 4))
    for source, channels in zip(SOURCES, (32, 16), strict=True):
        fpn = FPN([8, 16], 32, extra_levels=2, extra_level_source=source)
        levels = fpn(features)
        assert fpn.extra[0].in_channels == channels
        torch.testing.assert_close(levels[2], fpn.extra[0](levels[1] if source == "p5" else features[1]))
        torch.testing.assert_close(levels[3], fpn.extra[1](levels[2].relu()))


@pytest.mark.parametrize("size", [(6, 7), (1, 1)])
def test_max_pool_levels_contain_every_second_value_and_have_no_parameters(size: tuple[int, int]) -> None:
    features = maps((2 * size[0], 2 * size[1]), size)
    fpn = FPN([8, 16], 32, extra_levels=2, extra_level_source="max_pool")
    _, last, p6, p7 = fpn(features)
    assert torch.equal(p6, last[:, :, ::2, ::2])
    assert torch.equal(p7, last[:, :, ::4, ::4])
    assert not [name for name, _ in fpn.named_parameters() if name.startswith("extra")]


def test_separable_output_convolutions_have_the_same_levels_and_fewer_weights() -> None:
    features = maps((9, 8), (5, 4))
    for norm, layers in (("none", ["SeparableConv"] * 2), ("bn", ["Sequential"] * 2)):
        fpn = FPN([8, 16], 32, separable=True, norm=norm)
        assert [type(layer).__name__ for layer in fpn.output] == layers
        assert [tuple(x.shape[2:]) for x in fpn(features)] == [(9, 8), (5, 4), (3, 2), (2, 1)]
    weights = {name: list(each.shape) for name, each in FPN([8], 32, separable=True).output.named_parameters()}
    assert weights == {"0.0.weight": [32, 1, 3, 3], "0.1.weight": [32, 32, 1, 1], "0.1.bias": [32]}


def test_information_flows_only_from_coarse_to_fine_levels() -> None:
    fpn, features = FPN([8, 16], 32, extra_levels=0), [x.requires_grad_() for x in maps((8, 8), (4, 4))]
    fine, coarse = fpn(features)
    fine.sum().backward()
    assert all(x.grad is not None for x in features)
    for x in features:
        x.grad = None
    fpn(features)[1].sum().backward()
    assert features[0].grad is None
    assert coarse.shape[2:] == (4, 4)


@pytest.mark.parametrize("rows", [1, 4])
def test_extra_levels_are_computed_in_float32_under_autocast(rows: int) -> None:
    """On CPUs, bfloat16 convolutions with stride 2 and a one-column output give wrong results."""
    fpn = FPN([256], 256, extra_levels=2, extra_level_source="c5")
    features = [torch.randn(2, 256, rows, 2).bfloat16()]

    def gradients(enabled: bool) -> list[Tensor]:
        fpn.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            levels = fpn([f if enabled else f.float() for f in features])
        torch.stack([level.float().square().sum() for level in levels[1:]]).sum().backward()
        return [p.grad for p in fpn.extra.parameters() if p.grad is not None]

    torch.testing.assert_close(gradients(True), gradients(False))
