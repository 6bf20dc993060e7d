"""Box geometry, non-maximum suppression, maximum number of detections."""

from __future__ import annotations

import pytest
import torch
import torchvision.ops
from torch import Tensor

from fcos import boxes as module
from fcos.boxes import area, class_wise_nms, clip, limit_detections
from fcos.choices import BoxConvention

CONVENTIONS: list[BoxConvention] = ["continuous", "inclusive"]


def random_boxes(count: int, *, extent: float = 100.0, whole: bool = False) -> Tensor:
    """Return boxes of which some overlap. With `whole` pixels, many overlaps are equal ratios of small integers."""
    corner, size = torch.rand(count, 2) * extent, torch.rand(count, 2) * extent * 0.4 + 1
    boxes = torch.cat([corner, corner + size], dim=1)
    return boxes.round() if whole else boxes


# --------------------------------------------------------------------------------------------------------- geometry


def test_a_continuous_pixel_and_an_inclusive_pixel_have_area_one() -> None:
    assert area(torch.tensor([[3.0, 4.0, 4.0, 5.0]])).tolist() == [1.0]
    assert area(torch.tensor([[3.0, 4.0, 3.0, 4.0]]), convention="inclusive").tolist() == [1.0]


@pytest.mark.parametrize(("convention", "end"), [("continuous", (50.0, 30.0)), ("inclusive", (49.0, 29.0))])
def test_clipping_ends_at_the_image(convention: BoxConvention, end: tuple[float, float]) -> None:
    boxes = torch.tensor([[-5.0, -6.0, 500.0, 600.0], [10.0, 11.0, 12.0, 13.0], [70.0, 80.0, 90.0, 95.0]])
    clipped = clip(boxes, (30, 50), convention=convention)
    assert clipped[0].tolist() == [0.0, 0.0, *end]
    assert clipped[1].tolist() == boxes[1].tolist()
    assert clipped[2].tolist() == [*end, *end]


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_clipping_takes_infinite_boxes(convention: BoxConvention) -> None:
    infinite = torch.tensor([[-torch.inf, -torch.inf, torch.inf, torch.inf]])
    assert clip(infinite, (30, 50), convention=convention).isfinite().all()


def test_geometry_of_no_boxes_has_the_right_shapes() -> None:
    none = torch.zeros(0, 4)
    assert clip(none, (5, 5)).shape == (0, 4)
    assert area(none).shape == (0,)


# ------------------------------------------------------------------------------------------ non-maximum suppression


@pytest.fixture(params=["class by class", "in one call"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a test with both implementations of suppression, on the CPU."""
    monkeypatch.setattr(module, "SINGLE_CALL_DEVICES", {"cpu"} if request.param == "in one call" else set())


def looped(boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float) -> list[int]:
    """Apply torchvision's suppression to each class separately."""
    kept = []
    for label in labels.unique().tolist():
        members = torch.nonzero(labels == label).squeeze(1)
        kept += members[torchvision.ops.nms(boxes[members], scores[members], threshold)].tolist()
    return sorted(kept, key=lambda i: -scores[i].item())


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("classes", [1, 3, 80])
@pytest.mark.parametrize("extent", [10.0, 100.0, 20000.0])
@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.6, 1.0])
def test_suppression_is_torchvisions_in_every_class(classes: int, extent: float, threshold: float) -> None:
    boxes, scores, labels = random_boxes(300, extent=extent), torch.rand(300), torch.randint(classes, (300,))
    assert class_wise_nms(boxes, scores, labels, threshold).tolist() == looped(boxes, scores, labels, threshold)


@pytest.mark.usefixtures("path")
def test_inclusive_suppression_is_that_of_boxes_one_pixel_longer() -> None:
    boxes, scores, labels = random_boxes(300), torch.rand(300), torch.randint(3, (300,))
    expected = looped(boxes + torch.tensor([0.0, 0.0, 1.0, 1.0]), scores, labels, 0.5)
    assert class_wise_nms(boxes, scores, labels, 0.5, convention="inclusive").tolist() == expected


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("tenths", range(1, 10))
@pytest.mark.parametrize("label", [0, 79])
def test_an_overlap_of_exactly_the_threshold_stays(tenths: int, label: int) -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, tenths], [0.0, 0.0, 10.0, tenths + 0.01]])
    labels = torch.full((3,), label)
    scores = torch.tensor([0.9, 0.8, 0.7])
    assert class_wise_nms(boxes[:2], scores[:2], labels[:2], tenths / 10).tolist() == [0, 1]
    assert class_wise_nms(boxes[[0, 2]], scores[:2], labels[:2], tenths / 10).tolist() == [0]


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("far", [20000.1, 20000.3, 33333.337, 12345.678])
def test_a_far_box_of_another_class_does_not_change_what_is_exact(far: float) -> None:
    """An offset that separates the classes must not round the coordinates of small boxes."""
    far_box, labels = [far, far, far + 0.7, far + 0.3], torch.tensor([79, 79, 0])
    half = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 5.0], far_box])
    more = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 5.001], far_box])
    assert class_wise_nms(half, torch.tensor([0.9, 0.8, 0.7]), labels, 0.5).tolist() == [0, 1, 2]
    assert class_wise_nms(more, torch.tensor([0.9, 0.8, 0.7]), labels, 0.5).tolist() == [0, 2]


@pytest.mark.parametrize("threshold", [0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_both_ways_agree_on_whole_pixels(
    threshold: float, convention: BoxConvention, monkeypatch: pytest.MonkeyPatch
) -> None:
    boxes, scores = random_boxes(500, extent=12, whole=True), torch.rand(500).round(decimals=1)
    labels = torch.randint(80, (500,)) // 8 * 8
    by_class = class_wise_nms(boxes, scores, labels, threshold, convention=convention)
    monkeypatch.setattr(module, "SINGLE_CALL_DEVICES", {"cpu"})
    in_one_call = class_wise_nms(boxes, scores, labels, threshold, convention=convention)
    assert by_class.tolist() == in_one_call.tolist()


@pytest.mark.usefixtures("path")
def test_equal_boxes_of_different_classes_all_stay() -> None:
    boxes = torch.tensor([[-3.0, 5.0, 40000.0, 30000.0]]).repeat(80, 1)
    assert len(class_wise_nms(boxes, torch.rand(80), torch.arange(80), 0.01)) == 80


@pytest.mark.usefixtures("path")
def test_of_equal_scores_the_first_wins() -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]]).repeat(50, 1)
    labels = torch.tensor([1, 0]).repeat(25)
    assert class_wise_nms(boxes, torch.full((50,), 0.3), labels, 0.5).tolist() == [0, 1]


@pytest.mark.usefixtures("path")
def test_a_suppressed_box_suppresses_nothing() -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 4.0, 10.0, 14.0], [0.0, 8.0, 10.0, 18.0]])
    assert class_wise_nms(boxes, torch.tensor([0.9, 0.8, 0.7]), torch.zeros(3).long(), 0.3).tolist() == [0, 2]


@pytest.mark.usefixtures("path")
def test_no_boxes_give_no_indices() -> None:
    kept = class_wise_nms(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0).long(), 0.5)
    assert kept.shape == (0,)
    assert kept.dtype == torch.int64


@pytest.mark.parametrize("threshold", [0.0, -1.0])
def test_a_threshold_of_zero_suppresses_nothing_but_sorts(threshold: float) -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]]).repeat(3, 1)
    assert class_wise_nms(boxes, torch.tensor([0.2, 0.9, 0.2]), torch.zeros(3).long(), threshold).tolist() == [1, 0, 2]


# --------------------------------------------------------------------------------------------------- maximum number


@pytest.mark.parametrize("limit", [0, -1, 5, 6])
def test_no_limit_or_a_large_one_keeps_all(limit: int) -> None:
    assert limit_detections(torch.rand(5), limit).tolist() == [0, 1, 2, 3, 4]


def test_the_highest_scores_remain_in_their_order() -> None:
    assert limit_detections(torch.tensor([0.1, 0.9, 0.3, 0.8]), 2).tolist() == [1, 3]


def test_ties_with_the_last_stay_only_on_demand() -> None:
    scores = torch.tensor([0.5, 0.9, 0.5, 0.5, 0.4])
    assert limit_detections(scores, 2, keep_ties=True).tolist() == [0, 1, 2, 3]
    kept = limit_detections(scores, 2).tolist()
    assert len(kept) == 2
    assert 1 in kept


def test_a_limit_on_nothing() -> None:
    assert limit_detections(torch.zeros(0), 3).shape == (0,)
