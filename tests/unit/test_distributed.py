from __future__ import annotations

import pytest
import torch

from fcos.distributed import mean_over_processes, rank, resolve_device, same_everywhere, world_size
from fcos.errors import ConfigError


def test_one_process_is_the_first_of_one() -> None:
    assert (rank(), world_size(), same_everywhere(3)) == (0, 1, 3)


def test_the_mean_has_no_gradient() -> None:
    tensor = torch.ones(2, requires_grad=True)
    mean = mean_over_processes(tensor)
    assert torch.equal(mean, tensor)
    assert not mean.requires_grad


def test_auto_finds_a_device() -> None:
    assert resolve_device("auto").type in ("cpu", "cuda", "mps")
    assert resolve_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "meta"])
def test_a_device_that_is_not_there(name: str) -> None:
    with pytest.raises(ConfigError, match=f"device: .*{name}"):
        resolve_device(name)
