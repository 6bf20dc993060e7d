"""Backbones with fewer layers, and classifiers with weights for them."""

from __future__ import annotations

from typing import Any

import pytest
import torchvision
from torch import Tensor, nn

from fcos.models.backbones import BACKBONES, resnet


def one_block_per_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reduce ResNets to one block per stage: the first blocks have everything that tests look at."""
    for name, shape in resnet.SHAPES.items():
        monkeypatch.setitem(resnet.SHAPES, name, shape._replace(blocks=(1, 1, 1, 1)))


def build(name: str, **options: Any) -> nn.Module:
    backbone = BACKBONES[name](**options)
    assert isinstance(backbone, nn.Module)
    return backbone


def classifier(name: str, classes: int = 7) -> nn.Module:
    """Build torchvision's classifier, a ResNet with one block per stage."""
    if name == "mobilenet_v2":
        return torchvision.models.mobilenet_v2(num_classes=classes)
    return torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [1, 1, 1, 1], num_classes=classes)


def randomise(net: nn.Module) -> dict[str, Tensor]:
    """Fill all tensors of a network with random numbers and return its state dict."""
    state = net.state_dict()
    for tensor in state.values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
    return state
