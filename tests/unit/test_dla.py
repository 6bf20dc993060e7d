"""DLA-34 beyond what all backbones are tested for; its numbers: tests/parity/test_dialects.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.ops import FrozenBatchNorm2d

from fcos.config_backbones import DLAConfig
from fcos.errors import WeightsError
from fcos.models.backbones.dla import DLA34

STAGES = [("base_layer", "level0", "level1"), ("level2",), ("level3",), ("level4",), ("level5",)]


def authors_state() -> dict[str, Tensor]:
    """The authors' file: with projections that nothing uses, and a classifier."""
    torch.manual_seed(3)
    state = DLA34().state_dict()
    for level, channels in (("level3", (128, 64)), ("level4", (256, 128))):
        state[f"{level}.project.0.weight"] = torch.randn(*channels, 1, 1)
        state[f"{level}.project.1.weight"] = torch.randn(channels[0])
    state["fc.weight"], state["fc.bias"] = torch.randn(1000, 512, 1, 1), torch.randn(1000)
    return state


def test_the_weights_of_its_authors_load(tmp_path: Path) -> None:
    state = authors_state()
    torch.save(state, tmp_path / "dla34.pth")
    net = DLA34(weights=str(tmp_path / "dla34.pth"))
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())


def test_other_weights_do_not_fit(tmp_path: Path) -> None:
    state = authors_state()
    del state["level5.root.conv.weight"]
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"does not fit dla34.*level5\.root\.conv\.weight"):
        DLA34(weights=str(tmp_path / "other.pth"))


def test_no_weights_have_a_name() -> None:
    assert DLAConfig().weights is None
    with pytest.raises(ValueError, match="torchvision has no dla34"):
        DLAConfig(weights="imagenet")


@pytest.mark.parametrize("count", range(6))
def test_frozen_stages_do_not_learn(count: int) -> None:
    net = DLA34(norm="bn", frozen_stages=count)
    learning = {name.partition(".")[0] for name, parameter in net.named_parameters() if parameter.requires_grad}
    assert learning == {name for stage in STAGES[count:] for name in stage}
    frozen = [module for module in net.modules() if isinstance(module, FrozenBatchNorm2d)]
    assert bool(frozen) == (count > 0)
