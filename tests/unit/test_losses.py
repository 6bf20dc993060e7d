"""The three losses and their normalisation."""

from __future__ import annotations

import math

import pytest
import torch
import torchvision.ops
from ground_truth import objects_of
from torch import Tensor

from fcos.choices import BoxLoss
from fcos.models.losses import FCOSLoss, fcos_loss, focal_loss, iou_loss
from fcos.models.points import BACKGROUND, IGNORED, Assigner, Assignment, assign_targets, centerness_targets

KINDS: list[BoxLoss] = ["iou", "linear_iou", "giou"]


def needs_grad(*shape: int, scale: float = 3.0) -> Tensor:
    return (torch.randn(*shape) * scale).requires_grad_()


def grad(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None
    return tensor.grad


# --------------------------------------------------------------------------------------------------------- focal loss


@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.9])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 3.5])
def test_focal_loss_matches_torchvision(alpha: float, gamma: float) -> None:
    labels = torch.randint(-1, 5, (60,))
    one_hot = (labels[:, None] == torch.arange(5)).double()
    ours, theirs = (
        torch.randn(60, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 3 for _ in "12"
    )
    loss = focal_loss(ours.requires_grad_(), labels, alpha=alpha, gamma=gamma)
    expected = torchvision.ops.sigmoid_focal_loss(theirs.requires_grad_(), one_hot, alpha=alpha, gamma=gamma)
    torch.testing.assert_close(loss, expected)
    loss.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(grad(ours), grad(theirs))


def test_ignored_rows_have_neither_loss_nor_gradient() -> None:
    logits = needs_grad(6, 4)
    labels = torch.tensor([IGNORED, 0, IGNORED, BACKGROUND, 3, IGNORED])
    loss = focal_loss(logits, labels)
    loss.sum().backward()
    ignored = labels == IGNORED
    assert (loss[ignored] == 0).all()
    assert (grad(logits)[ignored] == 0).all()
    assert (loss[~ignored] > 0).all()
    assert (grad(logits)[~ignored] != 0).all()


def test_background_loss_has_weight_one_minus_alpha_in_every_class() -> None:
    loss = focal_loss(torch.zeros(1, 3), torch.tensor([BACKGROUND]), alpha=0.25, gamma=2.0)
    torch.testing.assert_close(loss, torch.full((1, 3), 0.75 * 0.25 * math.log(2)))


def test_positive_loss_saturates_but_its_gradient_does_not() -> None:
    logits = torch.tensor([[-100.0], [-200.0]], requires_grad=True)
    loss = focal_loss(logits, torch.zeros(2).long(), alpha=0.25)
    loss.sum().backward()
    assert loss.flatten().tolist() == pytest.approx([0.25 * 87.3365] * 2, rel=1e-5)
    assert grad(logits).flatten().tolist() == pytest.approx([-0.25, -0.25])


@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("label", [0, BACKGROUND, IGNORED])
def test_extreme_logits_have_finite_losses_and_gradients(gamma: float, label: int) -> None:
    logits = torch.tensor([[-1e4], [-200.0], [-90.0], [0.0], [17.0], [30.0], [200.0], [1e4]], requires_grad=True)
    loss = focal_loss(logits, torch.full((8,), label), gamma=gamma)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert grad(logits).isfinite().all()


def test_focal_loss_of_no_locations_is_empty() -> None:
    assert focal_loss(torch.zeros(0, 3), torch.zeros(0).long()).shape == (0, 3)


# ----------------------------------------------------------------------------------------------------------- IoU loss


def corners(ltrb: Tensor) -> Tensor:
    return torch.cat([-ltrb[:, :2], ltrb[:, 2:]], dim=1)


def test_giou_loss_of_large_boxes_matches_torchvision() -> None:
    """Only the smoothing by 1 square pixel differs; it is negligible for large areas, here at least 1e10."""
    predicted, target = (torch.rand(50, 4, dtype=torch.float64) * 9e5 + 1e5 for _ in "12")
    expected = torchvision.ops.generalized_box_iou_loss(corners(predicted), corners(target), reduction="sum")
    assert iou_loss(predicted, target, kind="giou").item() == pytest.approx(expected.item(), rel=1e-8)


def test_smoothing_adds_one_to_intersection_and_union() -> None:
    predicted, target = torch.rand(50, 4) * 9, torch.rand(50, 4) * 9
    a, b = corners(predicted), corners(target)
    sides = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0)
    areas = [(box[:, 2:] - box[:, :2]).prod(1) for box in (a, b)]
    iou = (sides.prod(1) + 1) / (areas[0] + areas[1] - sides.prod(1) + 1)
    torch.testing.assert_close(iou_loss(predicted, target, kind="linear_iou"), (1 - iou).sum())
    torch.testing.assert_close(iou_loss(predicted, target, kind="iou"), -iou.log().sum())


@pytest.mark.parametrize("kind", KINDS)
def test_equal_boxes_have_zero_loss(kind: BoxLoss) -> None:
    boxes = torch.rand(20, 4) * 100 + 1
    assert iou_loss(boxes, boxes, kind=kind).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_iou_loss_weights_multiply_the_rows(kind: BoxLoss) -> None:
    predicted, target, weight = torch.rand(5, 4) * 9, torch.rand(5, 4) * 9, torch.rand(5)
    rows = [iou_loss(p[None], t[None], kind=kind) * w for p, t, w in zip(predicted, target, weight, strict=True)]
    torch.testing.assert_close(iou_loss(predicted, target, kind=kind, weight=weight), torch.stack(rows).sum())


@pytest.mark.parametrize("kind", KINDS)
def test_all_zero_weights_are_ignored(kind: BoxLoss) -> None:
    predicted, target = torch.rand(5, 4) * 9, torch.rand(5, 4) * 9
    unweighted = iou_loss(predicted, target, kind=kind)
    assert iou_loss(predicted, target, kind=kind, weight=torch.zeros(5)) == unweighted > 0


@pytest.mark.parametrize("kind", KINDS)
def test_empty_predicted_box_has_finite_loss_and_gradient(kind: BoxLoss) -> None:
    predicted = torch.zeros(1, 4, requires_grad=True)
    loss = iou_loss(predicted, torch.tensor([[3.0, 4.0, 5.0, 6.0]]), kind=kind)
    loss.backward()
    assert loss.isfinite()
    assert grad(predicted).isfinite().all()


# ----------------------------------------------------------------------------------------------------- combined losses


def assignment_of(*labels: list[int]) -> Assignment:
    """Return an assignment of images with these labels; all distances are 1, 2, 4 and 8 pixels."""
    rows = torch.tensor(labels)
    ltrb = torch.tensor([1.0, 2.0, 4.0, 8.0]).expand(*rows.shape, 4)
    return Assignment(rows, ltrb, (rows >= 0).long() - 1, torch.tensor(0))


def predictions(images: int, count: int, classes: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    ltrb = (torch.rand(images, count, 4) * 9 + 0.5).requires_grad_()
    return needs_grad(images, count, classes), ltrb, needs_grad(images, count)


@pytest.mark.parametrize("kind", KINDS)
def test_losses_match_normalisation_computed_by_hand(kind: BoxLoss) -> None:
    assignment = assignment_of([0, 2, BACKGROUND, IGNORED], [BACKGROUND, 1, BACKGROUND, BACKGROUND])
    logits, ltrb, centerness = predictions(2, 4)
    losses = fcos_loss(logits, ltrb, centerness, assignment, FCOSLoss(box_loss=kind))
    positive = assignment.labels >= 0
    target = centerness_targets(assignment.ltrb[positive])
    assert target.tolist() == pytest.approx([0.25] * 3)
    classification = focal_loss(logits.flatten(0, 1), assignment.labels.flatten()).sum() / 3
    box = iou_loss(ltrb[positive], assignment.ltrb[positive], kind=kind) * 0.25 / (3 * 0.25)
    central = torch.nn.functional.binary_cross_entropy_with_logits(centerness[positive], target, reduction="sum") / 3
    torch.testing.assert_close(losses, {"loss_cls": classification, "loss_box": box, "loss_centerness": central})


def test_units_divide_only_the_distances_of_the_box_loss() -> None:
    assignment = assignment_of([0, 1, BACKGROUND])
    logits, ltrb, centerness = predictions(1, 3)
    units = torch.tensor([2.0, 4.0, 8.0])
    losses = fcos_loss(logits, ltrb, centerness, assignment, FCOSLoss(), units=units)
    plain = fcos_loss(logits, ltrb, centerness, assignment, FCOSLoss())
    scale = units[:2, None]
    expected = iou_loss(ltrb[0, :2] / scale, assignment.ltrb[0, :2] / scale, kind="iou") * 0.25 / 0.5
    torch.testing.assert_close(losses["loss_box"], expected)
    assert losses["loss_box"] != plain["loss_box"]
    assert losses["loss_cls"] == plain["loss_cls"]
    assert losses["loss_centerness"] == plain["loss_centerness"]


@pytest.mark.parametrize("label", [BACKGROUND, IGNORED])
@pytest.mark.parametrize("units", [None, torch.full((4,), 8.0)])
def test_gradients_are_finite_without_positives(label: int, units: Tensor | None) -> None:
    tensors = predictions(2, 4)
    losses = fcos_loss(*tensors, assignment_of([label] * 4, [label] * 4), FCOSLoss(), units=units)
    torch.stack(list(losses.values())).sum().backward()
    assert losses["loss_box"] == losses["loss_centerness"] == 0
    assert (losses["loss_cls"] > 0) == (label == BACKGROUND)
    for tensor in tensors:
        assert grad(tensor).isfinite().all()


def test_images_without_objects_do_not_change_the_normalisers() -> None:
    logits, ltrb, centerness = predictions(1, 4)
    objects = assignment_of([0, BACKGROUND, 2, BACKGROUND])
    alone = fcos_loss(logits, ltrb, centerness, objects, FCOSLoss())
    quiet = torch.full_like(logits, -60.0)  # no loss as background
    both = fcos_loss(
        torch.cat([logits, quiet]), ltrb.repeat(2, 1, 1), centerness.repeat(2, 1),
        assignment_of([0, BACKGROUND, 2, BACKGROUND], [BACKGROUND] * 4), FCOSLoss(),
    )  # fmt: skip
    torch.testing.assert_close(alone, both)


def test_repeating_a_batch_does_not_change_the_losses() -> None:
    logits, ltrb, centerness = predictions(1, 4)
    row = [0, BACKGROUND, 2, IGNORED]
    once = fcos_loss(logits, ltrb, centerness, assignment_of(row), FCOSLoss())
    twice = fcos_loss(
        logits.repeat(2, 1, 1), ltrb.repeat(2, 1, 1), centerness.repeat(2, 1), assignment_of(row, row), FCOSLoss()
    )  # fmt: skip
    torch.testing.assert_close(once, twice)


def test_image_losses_do_not_depend_on_box_padding_in_the_batch() -> None:
    """Box tensors of a batch are padded to the largest number of boxes in an image."""
    few = objects_of([torch.tensor([[8.0, 8.0, 40.0, 50.0]])], [torch.tensor([1])])
    many = objects_of([torch.rand(8, 1) + torch.tensor([0.0, 0.0, 60.0, 60.0])], [torch.arange(8)])
    assigner = Assigner()
    points = assigner.locations(assigner.maps((64, 64)))
    alone, beside = (assign_targets(points, targets, assigner) for targets in (few, few + many))
    first = Assignment(beside.labels[:1], beside.ltrb[:1], beside.boxes[:1], beside.num_unassigned)
    tensors = predictions(1, alone.labels.shape[1])
    expected, found = (fcos_loss(*tensors, assignment, FCOSLoss()) for assignment in (alone, first))
    assert all(loss > 0 for loss in expected.values())
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_infinite_logits_of_the_background_have_finite_gradients() -> None:
    logits = torch.tensor([[-torch.inf, 0.5], [0.1, -0.2]], requires_grad=True)
    focal_loss(logits, torch.tensor([BACKGROUND, 1])).sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
