"""Environment variables of torchrun that are incomplete or invalid."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fcos.config import Config
from fcos.errors import ConfigError
from fcos.training.elastic import join_processes
from fcos.training.loop import train

COMPLETE = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"RANK": None}, "WORLD_SIZE='2' announces several processes, with no RANK; expected"),
        ({"RANK": ""}, "with no RANK"),
        ({"RANK": "first"}, "with RANK='first'"),
        ({"RANK": "-1"}, "with RANK='-1'"),
        ({"RANK": "2"}, "with RANK=2"),
        ({"WORLD_SIZE": "two"}, "with WORLD_SIZE='two'"),
        ({"WORLD_SIZE": "0"}, "with WORLD_SIZE='0'"),
        ({"WORLD_SIZE": "9" * 5000}, "with WORLD_SIZE="),
        ({"LOCAL_RANK": "x"}, "with LOCAL_RANK='x'"),
        ({"MASTER_PORT": None}, "with no MASTER_PORT"),
        ({"MASTER_ADDR": None}, "MASTER_ADDR=''"),
    ],
)
def test_an_incomplete_environment_is_rejected(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, str | None], problem: str
) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    for name, value in {**COMPLETE, **changes}.items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as caught:
        join_processes(torch.device("cpu"))
    assert problem in str(caught.value)
    assert "start with torchrun or train.devices=N, or remove the variable (unset WORLD_SIZE)" in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_leftover_world_size_stops_a_training_before_it_starts(
    configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in COMPLETE:
        monkeypatch.delenv(name, raising=False)
    config = configure()
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ConfigError, match="no RANK"):
        train(config)
    assert config.output_dir is not None
    assert not config.output_dir.exists()


def test_a_single_process_needs_no_other_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in COMPLETE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "1")
    join_processes(torch.device("cpu"))
