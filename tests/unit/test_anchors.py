"""Anchors, their matching with objects, samples, and box offsets."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from fcos.boxes import intersection, iou
from fcos.choices import AnchorRounding, BoxConvention
from fcos.models.anchors import (
    AnchorGrid,
    AnchorMatcher,
    BoxCoder,
    Sampler,
    assign_anchors,
    match_anchors,
    match_by_iou,
    sample_balanced,
)
from fcos.models.points import BACKGROUND, IGNORED
from fcos.structures import Objects

ANCHORS = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 4], [5, 0, 15, 10], [20, 20, 30, 30], [20, 20, 40, 30]])


def objects(*boxes: list[float], crowd: tuple[int, ...] = ()) -> Objects:
    flags = torch.tensor([i in crowd for i in range(len(boxes))], dtype=torch.bool)
    return Objects(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), torch.arange(len(boxes)), flags)


def random_boxes(count: int, side: float = 100.0) -> Tensor:
    corner = torch.rand(count, 2) * side
    return torch.cat([corner, corner + 1 + torch.rand(count, 2) * side / 3], dim=1)


# ----------------------------------------------------------------------------------------------------------------- IoU


def test_iou_of_all_pairs_agrees_with_torchvision() -> None:
    a, b = random_boxes(20), random_boxes(30)
    torch.testing.assert_close(iou(a, b), box_iou(a, b))
    torch.testing.assert_close(iou(a, b, convention="inclusive"), box_iou(a + END, b + END))


END = torch.tensor([0.0, 0.0, 1.0, 1.0])


@pytest.mark.parametrize(
    ("convention", "shared", "union"), [("continuous", 5 * 2, 60 + 100 - 10), ("inclusive", 6 * 3, 77 + 121 - 18)]
)
def test_intersection_and_iou_of_a_pair(convention: BoxConvention, shared: int, union: int) -> None:
    a, b = torch.tensor([[0.0, 0, 10, 6]]), torch.tensor([[5.0, 4, 15, 14]])
    assert intersection(a, b, convention=convention).item() == shared
    assert iou(a, b, convention=convention).item() == pytest.approx(shared / union)


def test_iou_without_area_or_boxes_is_defined() -> None:
    point = torch.tensor([[3.0, 3, 3, 3]])
    assert iou(point, point).tolist() == [[0.0]]
    assert iou(point[:0], random_boxes(3)).shape == (0, 3)


# ------------------------------------------------------------------------------------------------------------- anchors


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [-4.0, -4.0, 12.0, 12.0]),
        ({"box_convention": "inclusive"}, [-4.0, -4.0, 11.0, 11.0]),
        ({"location": "corner"}, [-8.0, -8.0, 8.0, 8.0]),
        ({"ratios": [0.25]}, [-12.0, 0.0, 20.0, 8.0]),
        ({"ratios": [0.5]}, [4 - 8 * 2**0.5, 4 - 4 * 2**0.5, 4 + 8 * 2**0.5, 4 + 4 * 2**0.5]),
        ({"ratios": [0.5], "rounding": "corners"}, [-7.0, -2.0, 15.0, 10.0]),
        ({"ratios": [0.5], "rounding": "base"}, [-7.0, -2.0, 15.0, 10.0]),  # 11 x 6 pixels, doubled
    ],
    ids=str,
)
def test_anchor_of_a_cell_follows_the_conventions(options: dict, expected: list[float]) -> None:
    grid = AnchorGrid(**{"strides": [8], "sizes": [[16.0]], "ratios": [1.0], **options})
    torch.testing.assert_close(grid.cells()[0], torch.tensor([expected]))


@pytest.mark.parametrize("rounding", ["base", "corners", "none"])
@pytest.mark.parametrize("ratio", [0.01, 100.0])
def test_no_anchor_is_empty(rounding: AnchorRounding, ratio: float) -> None:
    (cells,) = AnchorGrid([4], [[0.5, 4.0]], [ratio], rounding=rounding).cells()
    assert (cells[:, 2:] > cells[:, :2]).all()


def test_anchors_of_corner_convention_are_those_of_torchvision() -> None:
    sizes, ratios = ((16.0, 20.0), (32.0, 40.0)), (0.5, 1.0, 2.0)
    images = torch.zeros(1, 3, 72, 100)
    maps = [(9, 12), (4, 6)]
    features = [torch.zeros(1, 8, *size) for size in maps]
    theirs = AnchorGenerator(sizes, (ratios,) * 2)(ImageList(images, [(72, 100)]), features)[0]
    grid = AnchorGrid([8, 16], sizes, ratios, location="corner", rounding="corners")
    assert torch.equal(torch.cat(grid.levels(maps)), theirs)


def test_anchors_of_a_location_are_together() -> None:
    grid = AnchorGrid([8], [[16.0]], [0.5, 2.0])
    (level,) = grid.levels([(2, 3)])
    steps = level.reshape(2, 3, 2, 4) - grid.cells()[0]
    expected = torch.tensor([[[0.0, 0], [8, 0], [16, 0]], [[0, 8], [8, 8], [16, 8]]]).repeat(1, 1, 2)
    torch.testing.assert_close(steps, expected[:, :, None].expand(2, 3, 2, 4))


# ------------------------------------------------------------------------------------------------------------ matching


@pytest.mark.parametrize(
    ("targets", "options", "expected"),
    [
        (objects([0, 0, 10, 10]), {}, [0, IGNORED, BACKGROUND, BACKGROUND, BACKGROUND]),
        (objects([0, 0, 10, 10]), {"background_iou": 0.3}, [0, IGNORED, IGNORED, BACKGROUND, BACKGROUND]),
        (objects([0, 0, 10, 10]), {"foreground_iou": 0.4}, [0, 0, BACKGROUND, BACKGROUND, BACKGROUND]),
        (objects([20, 20, 22, 22]), {}, [BACKGROUND] * 3 + [0, BACKGROUND]),  # a low-quality match
        (objects([20, 20, 22, 22]), {"low_quality_matches": False}, [BACKGROUND] * 5),
        (objects([5, 0, 10, 10]), {}, [0, BACKGROUND, 0, BACKGROUND, BACKGROUND]),  # both have its highest IoU
        (objects([60, 60, 70, 70]), {}, [BACKGROUND] * 5),  # no anchor overlaps with it
        (objects([3, 3, 3, 9], [0, 0, 10, 10]), {}, [1, IGNORED, BACKGROUND, BACKGROUND, BACKGROUND]),
        (objects([0, 0, 10, 10], [0, 0, 10, 10]), {}, [0, IGNORED, BACKGROUND, BACKGROUND, BACKGROUND]),
        (objects(), {}, [BACKGROUND] * 5),
        (objects([18, 18, 31, 31], crowd=(0,)), {}, [BACKGROUND] * 3 + [IGNORED, IGNORED]),
        (objects([0, 0, 10, 10], [0, 0, 10, 10], crowd=(0,)), {}, [1, IGNORED, IGNORED, BACKGROUND, BACKGROUND]),
        (objects([0, 0, 3, 10], crowd=(0,)), {}, [BACKGROUND] * 5),
    ],
)
def test_anchors_are_matched_by_iou(targets: Objects, options: dict, expected: list[int]) -> None:
    matched = match_anchors(ANCHORS, targets, AnchorMatcher(**{"background_iou": 0.4, **options}))
    assert matched.tolist() == expected


def test_many_pairs_are_matched_as_all_at_once() -> None:
    grid = torch.cat(AnchorGrid([8, 16], [[16.0, 20.0], [32.0, 40.0]]).levels([(24, 24), (12, 12)]))
    boxes = random_boxes(1500, side=192.0)
    overlaps, matcher = iou(boxes, grid), AnchorMatcher()
    assert overlaps.numel() > 2**22  # more than are compared at a time
    expected = match_by_iou(overlaps, overlaps.amax(1), matcher)
    matched = match_anchors(grid, Objects(boxes, torch.arange(len(boxes))), matcher)
    assert torch.equal(matched, expected)
    assert len(matched[matched >= 0].unique()) > 500


def test_assignment_of_a_batch_contains_labels_boxes_and_unassigned_objects() -> None:
    first, second = objects([20, 20, 30, 30], [60, 60, 70, 70], [0, 0, 10, 10]), objects()
    assignment = assign_anchors(ANCHORS, [second, first, first], AnchorMatcher())
    labels = [2, IGNORED, BACKGROUND, 0, 0]
    assert assignment.labels.tolist() == [[BACKGROUND] * 5, labels, labels]
    boxes = assignment.boxes[assignment.matched[assignment.labels >= 0]]
    assert boxes.tolist() == 2 * [[0, 0, 10, 10], [20, 20, 30, 30], [20, 20, 30, 30]]
    assert (assignment.num_unassigned.shape, int(assignment.num_unassigned)) == ((), 2)
    empty = assign_anchors(ANCHORS, [], AnchorMatcher())
    assert (empty.labels.shape, empty.boxes.shape, int(empty.num_unassigned)) == ((0, 5), (0, 4), 0)


# ------------------------------------------------------------------------------------------------------------- samples


def test_samples_depend_on_the_seed_but_not_on_ignored_anchors() -> None:
    labels = torch.randint(-1, 2, (1000,))
    samples = sample_balanced(labels, Sampler(100, 0.3), seed=5)
    assert samples.tolist() == sorted(set(samples.tolist()))
    assert ((labels[samples] >= 0).sum(), len(samples)) == (30, 100)
    assert torch.equal(samples, sample_balanced(labels, Sampler(100, 0.3), seed=5))
    assert not torch.equal(samples, sample_balanced(labels, Sampler(100, 0.3), seed=6))
    padded = torch.stack([torch.full_like(labels, IGNORED), labels], dim=1).flatten()
    assert torch.equal(2 * samples + 1, sample_balanced(padded, Sampler(100, 0.3), seed=5))


def test_all_anchors_are_drawn_equally_often() -> None:
    labels = torch.tensor([0] * 10 + [BACKGROUND] * 40)
    draws = torch.cat([sample_balanced(labels, Sampler(10, 0.5), seed=seed) for seed in range(2000)])
    counts = draws.bincount(minlength=50).float()
    # Means 1000 and 250, standard deviations 22 and 15; the seeds are fixed.
    assert (counts[:10] - 1000).abs().max() < 4 * 22
    assert (counts[10:] - 250).abs().max() < 4 * 15


# ------------------------------------------------------------------------------------------------------------- offsets


@pytest.mark.parametrize("convention", ["continuous", "inclusive"])
@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)])
def test_decoding_inverts_encoding(convention: BoxConvention, weights: tuple[float, float, float, float]) -> None:
    boxes, references = random_boxes(20).double(), random_boxes(20).double()
    coder = BoxCoder(weights, convention)
    offsets = coder.encode(boxes, references)
    torch.testing.assert_close(coder.decode(offsets, references), boxes)
    by_class = coder.decode(torch.cat([offsets, torch.zeros_like(offsets)], dim=1), references)
    torch.testing.assert_close(by_class, torch.cat([boxes, references], dim=1))


def test_offsets_are_shifts_and_logarithms_of_sides() -> None:
    reference, box = torch.tensor([[10.0, 20, 20, 40]]), torch.tensor([[15.0, 10, 35, 20]])
    expected = [[10.0 * (25 - 15) / 10, 10.0 * (15 - 30) / 20, 5 * math.log(2), 5 * math.log(0.5)]]
    torch.testing.assert_close(BoxCoder().encode(box, reference), torch.tensor(expected))


def test_large_sides_are_clipped_when_decoding() -> None:
    offsets = torch.tensor([[0.0, 0.0, 1e4, 1e4]])
    boxes = BoxCoder().decode(offsets, torch.tensor([[-8.0, -8, 8, 8]]))
    torch.testing.assert_close(boxes, torch.tensor([[-500.0, -500, 500, 500]]))
