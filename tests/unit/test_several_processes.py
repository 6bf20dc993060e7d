"""Layers and steps that combine numbers of several processes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_backbone
import torch
import torch.distributed as dist
from detectors import build_fcos
from ground_truth import objects_of
from processes import in_processes
from torch import nn

from fcos.config import Config
from fcos.data import load_annotations
from fcos.data.samplers import shard
from fcos.errors import ConfigError
from fcos.evaluation.evaluate import evaluate
from fcos.models import build_model
from fcos.models.layers import SyncBatchNorm, with_gpu_batch_norm
from fcos.structures import Batch, Objects
from fcos.training import loop, step
from fcos.training.run import Run


def normalise(rank: int, count: int, x: torch.Tensor, weight: torch.Tensor) -> dict[str, Any]:
    """Run a training step of batch norm on a shard of `x`; the loss is a weighted sum of squares over all processes."""
    norm = SyncBatchNorm(x.shape[1]).to(x.dtype)
    share = x[shard(range(len(x)), rank, count)].clone().requires_grad_()
    y = norm(share)
    (y.square() * weight[shard(range(len(x)), rank, count)]).sum().backward()
    for parameter in norm.parameters():
        assert parameter.grad is not None
        dist.all_reduce(parameter.grad)
    found = {name: p.grad for name, p in norm.named_parameters()}
    return {"y": y.detach(), "x": share.grad, **found, **{f"{n}_": b for n, b in norm.named_buffers()}}


@pytest.mark.parametrize("count", [2, 3])
def test_sync_batch_norm_matches_batch_norm_of_the_whole_batch(tmp_path: Path, count: int) -> None:
    x = torch.randn(7, 5, 3, 4, dtype=torch.float64) * 3 + torch.arange(5, dtype=torch.float64)[:, None, None] * 100
    weight = torch.rand(7, 5, 3, 4, dtype=torch.float64)
    found = in_processes(count, normalise, tmp_path / "group", x, weight)

    norm, whole = nn.BatchNorm2d(5).double(), x.clone().requires_grad_()
    y = norm(whole)
    (y.square() * weight).sum().backward()
    torch.testing.assert_close(torch.cat([part["y"] for part in found]), y.detach())
    torch.testing.assert_close(torch.cat([part["x"] for part in found]), whole.grad)
    for part in found:
        for name, parameter in norm.named_parameters():
            torch.testing.assert_close(part[name], parameter.grad)
        for name, buffer in norm.named_buffers():
            torch.testing.assert_close(part[f"{name}_"], buffer)


def test_with_gpu_batch_norm_uses_torch_sync_batch_norm() -> None:
    first = SyncBatchNorm(3)
    nn.init.constant_(first.weight, 7.0)
    model = nn.Sequential(first, nn.ModuleDict({"norm": SyncBatchNorm(2, eps=0.5)}), nn.BatchNorm2d(4))
    names = list(model.state_dict())
    kinds = [type(module) for module in with_gpu_batch_norm(model).modules()]
    assert kinds.count(nn.SyncBatchNorm) == 2
    assert kinds.count(nn.BatchNorm2d) == 1
    assert list(model.state_dict()) == names
    assert model.state_dict()["0.weight"].tolist() == [7.0] * 3
    assert model.get_submodule("1.norm").eps == 0.5


OWN = {"backbone": {"name": "own_backbone:Own"}}
UNDISTURBED: Any = SimpleNamespace(requested=False)
"""Stand-in for a `StopRequest` without a request to stop."""


def five_images() -> tuple[torch.Tensor, torch.Tensor, list[Objects]]:
    """Return five images, of which only the last two have objects, so that rank 0 has no positives."""
    images = torch.randint(0, 256, (5, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    boxes = [torch.empty(0, 4)] * 3 + [
        torch.tensor([[4.0, 6, 40, 50], [30, 10, 60, 24]]),
        torch.tensor([[2.0, 2, 60, 60]]),
    ]
    return images, torch.tensor([[64, 64]] * 5), objects_of(boxes, [torch.arange(len(b)) for b in boxes])


def prepare(rank: int, count: int, config: Config, first: int = 0) -> tuple[Run, Batch]:
    """Return a run and this process's shard of the five images, or of those from index `first` on."""
    torch.manual_seed(0)
    model = build_model(config.model, num_classes=2).double()
    images, sizes, targets = five_images()
    indices = shard(range(first, 5), rank, count)
    rows = slice(indices[0], indices[-1] + 1)
    data = load_annotations(config.data, "train")
    assert data is not None
    run = Run(Path(), config, model=model, train_data=data, val_data=None, elapsed=lambda: 0.0)
    return run, Batch(images[rows], sizes[rows], targets[rows], torch.tensor(indices))


def gradients(run: Run) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in run.model.named_parameters() if p.grad is not None}


def train_steps(rank: int, count: int, config: Config, micro_batches: int, first: int = 0) -> dict[str, Any]:
    """Compute loss terms and gradients of this process's shard of the five images, in micro-batches."""
    run, own = prepare(rank, count, config, first)
    result = step.train_step(step.wrap_model(run), own, run, UNDISTURBED, micro_batches=micro_batches)
    return {"terms": result.losses, "gradients": gradients(run)}


def test_unequal_shards_match_losses_and_gradients_of_the_batch(
    configure: Callable[..., Config], tmp_path: Path
) -> None:
    """In three micro-batches, rank 0 has two images without objects, and rank 1 has three images."""
    config = configure(model={"backbone": {"name": "mobilenet_v2", "weights": None, "norm": "frozen_bn"}})
    expected = train_steps(0, 1, config, 1)
    for found in in_processes(2, train_steps, tmp_path / "group", config, 3):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)  # float64 sums in another order


def test_rank_with_fewer_images_than_micro_batches_stays_in_step(
    configure: Callable[..., Config], tmp_path: Path
) -> None:
    """The ranks have one and two images in two micro-batches: their collectives must stay in step."""
    config = configure(model={"backbone": {"name": "mobilenet_v2", "weights": None, "norm": "frozen_bn"}})
    expected = train_steps(0, 1, config, 1, 2)
    for found in in_processes(2, train_steps, tmp_path / "group", config, 2, 2):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)  # float64 sums in another order


def test_user_backbone_may_have_unused_parameters(configure: Callable[..., Config], tmp_path: Path) -> None:
    config = configure(model={"backbone": {"name": "own_backbone:PartlyUnused"}})
    expected = train_steps(0, 1, config, 1)
    for found in in_processes(2, train_steps, tmp_path / "group", config, 2):
        found["gradients"] = {name: g for name, g in found["gradients"].items() if "classifier" not in name}
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)  # float64 sums in another order


def train_with_random_branches(rank: int, count: int, config: Config) -> list[dict[str, torch.Tensor]]:
    """Return the gradients of steps in which each process skips a branch at random."""
    run, own = prepare(rank, count, config)
    ddp_model = step.wrap_model(run)
    torch.manual_seed(rank)
    found = []
    for _ in range(8):
        step.train_step(ddp_model, own, run, UNDISTURBED, micro_batches=1)
        found.append(gradients(run))
    return found


def test_user_backbone_may_skip_branches_at_random(
    configure: Callable[..., Config], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = configure(model={"backbone": {"name": "own_backbone:LeavesOut"}})
    first, second = in_processes(2, train_with_random_branches, tmp_path / "group", config)
    torch.testing.assert_close(first, second, rtol=0, atol=0)  # both have the mean
    assert len({"backbone.branch.weight" in gradients for gradients in first}) == 2  # both skipped it in some step
    assert "find_unused_parameters" not in capfd.readouterr().err  # torch's advice if no parameter is unused


def error_without_compiler(rank: int, count: int, config: Config) -> str:
    """Train with a second process that has no compiler, and return the error message."""
    os.environ["CXX"] = sys.executable if rank == 0 else "no-such-compiler"  # an existing program is enough
    with pytest.raises(ConfigError) as caught:
        loop.train(config)
    return str(caught.value)


def test_check_that_fails_on_one_rank_stops_all_ranks(configure: Callable[..., Config], tmp_path: Path) -> None:
    config = configure(model=OWN, compile=True, micro_batch="auto", batch_size=4)
    first, second = in_processes(2, error_without_compiler, tmp_path / "group", config)
    assert first == second
    assert "no-such-compiler was not found" in first


def detections(rank: int, _: int, config: Config, means: list[list[float]]) -> list[list[dict[str, Any]]]:
    """Evaluate on val once for each entry of `means`, which gives a running mean per process."""
    torch.manual_seed(0)
    model = build_fcos(config.model, num_classes=2)
    norms = [norm for norm in model.modules() if isinstance(norm, nn.BatchNorm2d)]
    val = load_annotations(config.data, "val")
    assert val is not None
    found = []
    for own in means:
        for norm in norms:
            norm.running_mean = torch.full((norm.num_features,), own[rank])
        found.append(evaluate(model, val, config, device="cpu").detections)
    return found


def test_evaluation_uses_batch_norm_statistics_of_rank_0(configure: Callable[..., Config], tmp_path: Path) -> None:
    config = configure(model={**tiny_backbone.MODEL, "max_detections": 5})
    means = [[0.5, 0.5], [-0.5, -0.5], [0.5, -0.5]]
    by_rank = in_processes(2, detections, tmp_path / "group", config, means)
    for high, low, mixed in by_rank:
        assert len(high) == 3 * 5
        assert high != low
        assert mixed == high
