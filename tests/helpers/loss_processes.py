"""Losses of two processes with different batches."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from processes import finish
from torch import Tensor

from fcos.models.losses import FCOSLoss
from fcos.models.points import Assignment

PROGRAM = Path(__file__).parent / "programs" / "loss_process.py"


class LossCall(NamedTuple):
    """Arguments of `fcos_loss`; `predictions` are the first three."""

    predictions: Sequence[Tensor]
    assignment: Assignment
    options: FCOSLoss
    units: Tensor | None


class LossResult(NamedTuple):
    """Loss terms, and the gradients of their sum with respect to the predictions."""

    terms: dict[str, Tensor]
    gradients: list[Tensor]


def losses_of_two_processes(folder: Path, calls: Sequence[LossCall]) -> list[LossResult]:
    """Call `fcos_loss` in two processes of a process group.

    Args:
        folder: empty folder for temporary files.
        calls: arguments of `fcos_loss` for each process.
    """
    for rank, call in enumerate(calls):
        given = {
            "predictions": [tensor.detach() for tensor in call.predictions],
            "assignment": tuple(call.assignment),
            "options": asdict(call.options),
            "units": call.units,
        }
        torch.save(given, folder / f"{rank}.pt")
    processes = [
        subprocess.Popen(
            [sys.executable, PROGRAM, folder, str(rank)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for rank in range(len(calls))
    ]
    for process in processes:
        code, _, err = finish(process)
        assert code == 0, err
    return [LossResult(**torch.load(folder / f"{rank}.out.pt")) for rank in range(len(calls))]
