"""Capture of CUDA graphs without a GPU: a stand-in for torch's graphs that runs the function once, at the capture."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from fcos.models.cuda_graphs import CudaGraphs
from fcos.models.padded import Padded

SIZES = torch.tensor([(8, 8)])


class StandIn:
    """Graph that cannot be replayed."""

    def pool(self) -> str:
        return "memory"

    def replay(self) -> None:
        pass


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Replace CUDA by the stand-in and return the options of every capture."""
    options: list[dict[str, Any]] = []

    @contextmanager
    def graph(_: StandIn, **chosen: Any) -> Iterator[None]:
        options.append(chosen)
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", StandIn)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: ("stream", device))
    return options


def candidates(images: Tensor, sizes: Tensor) -> Padded:
    scores = images.float().mean(dim=(1, 2, 3))[:, None]
    return Padded(scores.new_zeros(1, 1, 4), scores, sizes[:, :1], scores > 0)


def test_all_captures_use_one_stream_of_the_device(captures: list[dict[str, Any]]) -> None:
    """The default stream of torch belongs to the device of the first capture, and captures nothing on others."""
    graphs = CudaGraphs()
    for side in (8, 16):
        images = torch.ones(1, 3, side, 8)
        assert graphs.run(candidates, images, SIZES, options=None) is None
        assert graphs.run(candidates, images, SIZES, options=None) is not None
    assert [each["stream"] for each in captures] == [("stream", torch.device("cpu"))] * 2
    assert [each["pool"] for each in captures] == [None, "memory"]


def test_first_shapes_that_occur_twice_get_graphs(captures: list[dict[str, Any]]) -> None:
    graphs = CudaGraphs()
    sides = [8 * number for number in range(1, 31)]
    for _ in range(3):
        for side in sides:
            graphs.run(candidates, torch.ones(1, 3, side, 8), SIZES, options=None)
    assert len(captures) == 16
    replayed = [graphs.run(candidates, torch.ones(1, 3, side, 8), SIZES, options=None) is not None for side in sides]
    assert replayed == [True] * 16 + [False] * 14
    large = torch.ones(1, 3, 2049, 1024)
    assert [graphs.run(candidates, large, SIZES, options=None) for _ in range(3)] == [None] * 3


def test_failed_capture_is_not_repeated(captures: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    restored = []
    monkeypatch.setattr(torch.cuda, "set_stream", restored.append)

    def wait(images: Tensor, sizes: Tensor) -> Padded:
        raise RuntimeError("operation not permitted when stream is capturing")

    graphs, images = CudaGraphs(), torch.ones(1, 3, 8, 8)
    assert [graphs.run(wait, images, SIZES, options=None) for _ in range(4)] == [None] * 4
    assert len(captures) == 1
    assert restored == [None]  # the stream before the capture
