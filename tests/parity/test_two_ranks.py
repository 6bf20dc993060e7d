"""Losses of two processes, normalised over both; a rank without positive locations does not hang."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from golden import load, tensor
from ground_truth import objects_of
from loss_processes import LossCall, LossResult, losses_of_two_processes

from fcos.models.losses import FCOSLoss
from fcos.models.points import Assigner, assign_targets

LOSSES = ("loss_cls", "loss_box", "loss_centerness")


def call(numbers: dict[str, np.ndarray], case: str, rank: int, *, improved: bool) -> LossCall:
    """Return the recorded outputs and targets of a process. The improved model's distances are recorded in strides."""
    key = f"{case}/rank{rank}"
    assigner = Assigner(center_sampling_radius=1.5 if improved else 0.0, box_convention="inclusive")
    points = assigner.locations([(int(height), int(width)) for height, width in numbers["grids"].tolist()])
    units = torch.cat([p.new_full((len(p),), s) for p, s in zip(points, assigner.strides, strict=True)])
    levels = ([tensor(numbers[f"{key}/{part}{i}"]) for i in range(5)] for part in ("cls", "reg", "ctr"))
    logits, ltrb, quality = (torch.cat([x.flatten(2) for x in part], dim=2).transpose(1, 2) for part in levels)
    targets = objects_of([tensor(numbers[f"{key}/boxes"]).reshape(-1, 4)], [tensor(numbers[f"{key}/labels"]) - 1])
    return LossCall(
        (logits, ltrb * units[:, None] if improved else ltrb, quality.squeeze(2)),
        assign_targets(points, targets, assigner),
        FCOSLoss(box_loss="giou" if improved else "iou"),
        units if improved else None,
    )


def test_losses_and_gradients_on_two_ranks_match_the_original(goldens: Path, tmp_path: Path) -> None:
    """A case does not state its model, so the results of one of both models match."""
    numbers = load(goldens / "units" / "two_rank_loss.npz")
    cases = sorted({"/".join(key.split("/")[:2]) for key in numbers if key.count("/") == 3})
    assert cases
    models = [(case, improved) for case in cases for improved in (False, True)]
    batches = [
        (call(numbers, case, 0, improved=improved), call(numbers, case, 1, improved=improved))
        for case, improved in models
    ]
    results = losses_of_two_processes(tmp_path / "group", batches)
    matching = {
        case
        for (case, _), batch, found in zip(models, batches, results, strict=True)
        if all(matches(numbers, f"{case}/rank{rank}", batch[rank], result) for rank, result in enumerate(found))
    }
    assert sorted(matching) == cases


def matches(numbers: dict[str, np.ndarray], key: str, given: LossCall, found: LossResult) -> bool:
    """Return whether the losses and the norms of the gradients are the recorded ones."""
    logits, ltrb, quality = found.gradients
    in_recorded_units = ltrb if given.units is None else ltrb * given.units[:, None]
    norms = [gradient.double().norm().item() for gradient in (logits, in_recorded_units, quality)]
    losses = [found.terms[name].item() for name in LOSSES]
    # float32 rounding: sums in another order.
    return all(
        np.allclose(ours, numbers[f"{key}/{name}"], rtol=1e-5, atol=1e-7)
        for ours, name in ((losses, "losses"), (norms, "grad_norms_cls_reg_ctr"))
    )
