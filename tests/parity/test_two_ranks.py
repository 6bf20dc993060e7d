"""Losses of two processes, normalised over both; a rank without positives does not hang."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from golden import folder, load
from processes import finish

WORKER = """
import json, sys, torch
from pathlib import Path
import torch.distributed as dist
from golden import load, tensor
from fcos.models.losses import fcos_loss
from fcos.models.points import assign_targets, locations
from fcos.structures import Targets

folder, case, rank, rendezvous = sys.argv[1:]
imprv = case.startswith("imprv")
strides, ranges = [8, 16, 32, 64, 128], [(-1, 64), (64, 128), (128, 256), (256, 512), (512, None)]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=int(rank), world_size=2)
numbers = load(Path(folder) / "units" / "two_rank_loss.npz")
key = f"{case}/rank{rank}"
points = [locations((int(h), int(w)), s) for (h, w), s in zip(numbers["grids"].tolist(), strides)]
levels = {k: [tensor(numbers[f"{key}/{k}{i}"]).requires_grad_() for i in range(5)] for k in ("cls", "reg", "ctr")}
targets = Targets.pad([tensor(numbers[f"{key}/boxes"]).reshape(-1, 4)], [tensor(numbers[f"{key}/labels"]) - 1])
assignment = assign_targets(
    points, targets, strides=strides, size_ranges=ranges,
    center_sampling_radius=1.5 if imprv else 0.0, box_convention="inclusive",
)
units = torch.cat([p.new_full((len(p),), s) for p, s in zip(points, strides)])
cat = {k: torch.cat([x.flatten(2) for x in v], dim=2).transpose(1, 2) for k, v in levels.items()}
losses = fcos_loss(
    cat["cls"],
    cat["reg"] * units[:, None] if imprv else cat["reg"],  # recorded in strides, ours are pixels
    cat["ctr"].squeeze(2),
    assignment,
    box_loss="giou" if imprv else "iou",
    units=units if imprv else None,
)
sum(losses.values()).backward()
norms = [torch.cat([x.grad.flatten() for x in levels[k]]).double().norm().item() for k in ("cls", "reg", "ctr")]
print(json.dumps({"losses": [losses[k].item() for k in ("loss_cls", "loss_box", "loss_centerness")], "norms": norms}))
dist.destroy_process_group()
"""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "rank_case" in metafunc.fixturenames:
        numbers = load(folder(metafunc.config) / "units" / "two_rank_loss.npz")
        metafunc.parametrize("rank_case", sorted({"/".join(k.split("/")[:2]) for k in numbers if k.count("/") == 3}))


def test_losses_of_two_processes(goldens: Path, rank_case: str, tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(goldens), rank_case, str(rank), str(tmp_path / "rendezvous")],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent,
        )
        for rank in range(2)
    ]
    numbers = load(goldens / "units" / "two_rank_loss.npz")
    for rank, process in enumerate(processes):
        code, out, _ = finish(process)
        assert code == 0
        result = json.loads(out.splitlines()[-1])
        key = f"{rank_case}/rank{rank}"
        # float32 sums in another order
        np.testing.assert_allclose(result["losses"], numbers[f"{key}/losses"], rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(result["norms"], numbers[f"{key}/grad_norms_cls_reg_ctr"], rtol=1e-5, atol=1e-7)
