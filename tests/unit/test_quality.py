"""Quality branch that predicts the IoU of the box; tests/parity/test_dialect_losses.py compares it with AdelaiDet's."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from detectors import CATEGORY_IDS, NAMES, build_fcos, tiny_config, tiny_model
from ground_truth import objects_of
from loss_processes import LossCall, losses_of_two_processes
from torch import Tensor

from fcos.checkpoint import save_checkpoint
from fcos.choices import BoxLoss
from fcos.interop.checkpoints import load_checkpoint
from fcos.models.fcos import FCOS
from fcos.models.losses import FCOSLoss, fcos_loss
from fcos.models.points import BACKGROUND, Assignment, assign_targets
from fcos.structures import Objects
from fcos.training.start import start_from

SIDES = [[2.0, 4.0, 6.0, 8.0], [4.0, 4.0, 4.0, 4.0]]  # ground truth of two locations: areas 96 and 64
FOUND = [[2.0, 2.0, 6.0, 8.0], [8.0, 4.0, 4.0, 4.0]]  # areas 80 and 96
UNITS = [2.0, 4.0]
OPTIONS = FCOSLoss(quality="iou")
IOUS = [(20 + 1) / (24 + 1), (4 + 1) / (6 + 1)]  # areas in units, smoothed by 1


def make_assignment(labels: list[int]) -> Assignment:
    rows = torch.tensor([labels])
    sides = torch.tensor(SIDES, dtype=torch.float64)[torch.arange(len(labels)) % 2]
    return Assignment(rows, sides[None], (rows >= 0).long() - 1, torch.tensor(0))


def predictions() -> tuple[Tensor, Tensor, Tensor]:
    """Return class logits, the boxes `FOUND` and logits of the quality branch at two locations."""
    logits, quality = torch.randn(1, 2, 3, dtype=torch.float64), torch.tensor([[0.5, -1.0]], dtype=torch.float64)
    ltrb = torch.tensor([FOUND], dtype=torch.float64)
    return logits.requires_grad_(), ltrb.requires_grad_(), quality.requires_grad_()


def test_losses_match_values_computed_by_hand() -> None:
    terms = fcos_loss(*predictions(), make_assignment([0, 2]), OPTIONS, units=torch.tensor(UNITS))
    assert list(terms) == ["loss_cls", "loss_box", "loss_iou_quality"]
    assert terms["loss_box"].item() == pytest.approx(sum(-math.log(iou) for iou in IOUS) / 2, rel=1e-14)
    entropy = [math.log1p(math.exp(x)) - x * iou for x, iou in zip([0.5, -1.0], IOUS, strict=True)]
    assert terms["loss_iou_quality"].item() == pytest.approx(sum(entropy) / 2, rel=1e-14)


@pytest.mark.parametrize("kind", ["iou", "linear_iou", "giou"])
def test_quality_target_does_not_depend_on_the_box_loss(kind: BoxLoss) -> None:
    torch.manual_seed(0)
    plain = fcos_loss(*predictions(), make_assignment([0, 2]), OPTIONS)
    other = fcos_loss(*predictions(), make_assignment([0, 2]), replace(OPTIONS, box_loss=kind))
    assert other["loss_iou_quality"] == plain["loss_iou_quality"]
    assert (other["loss_box"] == plain["loss_box"]) == (kind == "iou")


def test_quality_loss_has_gradients_only_for_quality_logits() -> None:
    logits, ltrb, quality = predictions()
    terms = fcos_loss(logits, ltrb, quality, make_assignment([0, 2]), OPTIONS, units=torch.tensor(UNITS))
    found = torch.autograd.grad(terms["loss_iou_quality"], [logits, ltrb, quality], allow_unused=True)
    assert found[:2] == (None, None)
    expected = (quality.sigmoid() - torch.tensor([IOUS], dtype=torch.float64)) / 2
    torch.testing.assert_close(found[2], expected.detach())


def test_quality_loss_ignores_background_locations() -> None:
    logits, ltrb, quality = predictions()
    terms = fcos_loss(logits, ltrb, quality, make_assignment([BACKGROUND, 1]), OPTIONS, units=torch.tensor(UNITS))
    only = F.binary_cross_entropy_with_logits(quality[0, 1], torch.tensor(IOUS[1], dtype=torch.float64))
    torch.testing.assert_close(terms["loss_iou_quality"], only)
    assert terms["loss_box"].item() == pytest.approx(-math.log(IOUS[1]), rel=1e-14)


def test_every_prediction_gets_a_finite_gradient_without_positives() -> None:
    tensors = predictions()
    terms = fcos_loss(*tensors, make_assignment([BACKGROUND, BACKGROUND]), OPTIONS)
    assert terms["loss_box"] == terms["loss_iou_quality"] == 0
    for grad in torch.autograd.grad(torch.stack(list(terms.values())).sum(), tensors):
        assert grad.isfinite().all()


def test_losses_are_normalized_across_ranks_if_one_has_no_positives(tmp_path: Path) -> None:
    units = torch.tensor(UNITS)
    batch = (
        LossCall(predictions(), make_assignment([0, 2]), OPTIONS, units),
        LossCall(predictions(), make_assignment([BACKGROUND] * 2), OPTIONS, units),
    )
    ((first, second),) = losses_of_two_processes(tmp_path / "group", [batch])
    assert all(gradient.isfinite().all() for found in (first, second) for gradient in found.gradients)
    alone = fcos_loss(*predictions(), make_assignment([0, 2]), OPTIONS, units=units)
    # Two processes normalise by their mean of one positive; a single process divides the same loss by two.
    for name in ("loss_box", "loss_iou_quality"):
        assert first.terms[name].item() == pytest.approx(2 * alone[name].item(), rel=1e-12)
        assert second.terms[name] == 0


def build() -> FCOS:
    config = tiny_config(
        quality="iou",
        backbone={"name": "mobilenet_v2", "weights": None, "norm": "frozen_bn"},
        fpn={"channels": 32},
        head={"num_convs": 1, "regression": "relu_stride"},
        box_loss="giou",
        strides=[8, 16],
        size_ranges=[(-1, None), (-1, None)],
    )
    model = build_fcos(config.model, num_classes=3)
    torch.nn.init.constant_(model.state_dict()["head.ltrb.bias"], 1.0)  # keeps relu active
    return model


def ious_and_scores(model: FCOS, images: Tensor, sizes: Tensor, targets: list[Objects]) -> Tensor:
    """Return [2, P] for P positive locations: the IoU of predicted box and ground truth, and the predicted quality."""
    with torch.no_grad():
        outputs = model(images, sizes)
    assigned = assign_targets(model.locations(outputs), targets, model.assigner)
    positive = assigned.labels[0] >= 0
    found, scores = (torch.cat([x.flatten(2) for x in levels], dim=2)[0].T[positive] for levels in outputs[1:])
    wanted = assigned.ltrb[0][positive]
    area, target_area, common = (
        (x[:, 0] + x[:, 2]) * (x[:, 1] + x[:, 3]) for x in (found, wanted, found.minimum(wanted))
    )
    return torch.stack([common / (area + target_area - common), scores[:, 0].sigmoid()])


def test_quality_scores_correlate_with_ious_after_training() -> None:
    model, sizes = build(), torch.tensor([[64, 96]])
    images = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    boxes = torch.tensor([[4.0, 4.0, 60.0, 50.0], [66.0, 10.0, 92.0, 60.0]])
    targets = objects_of([boxes], [torch.tensor([0, 2])])
    first = sum(model(images, sizes, targets).terms.values())
    branch = [p for name, p in model.named_parameters() if name.startswith(("head.cls_tower", "head.centerness"))]
    # First all parameters are trained. Then the boxes stay fixed, and the branch learns which of them are better.
    for parameters, lr, steps in ((list(model.parameters()), 2e-3, 20), (branch, 1e-2, 60)):
        optimizer = torch.optim.AdamW(parameters, lr=lr)
        for _ in range(steps):
            terms = model(images, sizes, targets).terms
            optimizer.zero_grad()
            torch.stack(list(terms.values())).sum().backward()
            optimizer.step()
    assert sum(model(images, sizes, targets).terms.values()) < 0.6 * first
    assert torch.corrcoef(ious_and_scores(model, images, sizes, targets))[0, 1] > 0.7


def test_start_from_reports_a_different_quality_option(tmp_path: Path) -> None:
    there, here = tiny_config(quality="iou"), tiny_config()
    model = tiny_model(there)
    save_checkpoint(tmp_path / "a.pt", model=model, config=there, class_names=NAMES, category_ids=CATEGORY_IDS)
    summary = start_from(model, load_checkpoint(tmp_path / "a.pt"), here.model, NAMES, where="a.pt")
    assert summary.endswith("; they were trained with model.quality=iou; use the same options")
