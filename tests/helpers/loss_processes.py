"""Losses of two processes with different batches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from processes import in_processes
from torch import Tensor

from fcos.models.losses import FCOSLoss, fcos_loss
from fcos.models.points import Assignment


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


def losses_of_two_processes(folder: Path, batches: Sequence[tuple[LossCall, LossCall]]) -> list[list[LossResult]]:
    """Call `fcos_loss` in two processes of a process group.

    Args:
        folder: new folder for temporary files.
        batches: arguments of `fcos_loss` in both processes, for each call.

    Returns:
        The results of both processes, for each call.
    """
    found = in_processes(2, _losses, folder, [[_detach(call) for call in calls] for calls in batches])
    return [[LossResult(*result) for result in results] for results in zip(*found, strict=True)]


def _detach(call: LossCall) -> LossCall:
    return call._replace(predictions=[tensor.detach() for tensor in call.predictions])


def _losses(
    rank: int, count: int, batches: list[list[LossCall]]
) -> list[tuple[dict[str, Tensor], list[Tensor | None]]]:
    return [_loss(calls[rank]) for calls in batches]


def _loss(call: LossCall) -> tuple[dict[str, Tensor], list[Tensor | None]]:
    logits, ltrb, quality = predictions = [tensor.requires_grad_() for tensor in call.predictions]
    terms = fcos_loss(logits, ltrb, quality, call.assignment, call.options, units=call.units)
    torch.autograd.backward(list(terms.values()))
    return {name: term.detach() for name, term in terms.items()}, [tensor.grad for tensor in predictions]
