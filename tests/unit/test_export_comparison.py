"""Comparison of the detections of an exported file with those of PyTorch, image by image."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from fcos import Instances
from fcos.export.comparison import TOLERANCES, Differences, compare

LIMITS = TOLERANCES["float32"]
Row = tuple[list[float], float, int]
A, B, C = ([0.0, 0.0, 10.0, 10.0], 0.9, 0), ([20.0, 20.0, 40.0, 40.0], 0.8, 1), ([50.0, 50.0, 90.0, 90.0], 0.7, 0)
NEAR_B = ([21.0, 20.0, 41.0, 40.0], 0.8, 1)


def instances(*rows: Row) -> Instances:
    boxes = torch.tensor([row[0] for row in rows]).reshape(-1, 4)
    labels = torch.tensor([row[2] for row in rows], dtype=torch.int64)
    return Instances(boxes, labels, torch.tensor([row[1] for row in rows]), (100, 100))


def test_detections_are_matched_by_box_and_label_not_by_order() -> None:
    assert compare(instances(A, B, C), instances(C, A, B), LIMITS) == Differences()


def test_differences_of_boxes_and_scores_are_the_largest_of_matched_detections() -> None:
    moved = ([20.0, 20.0, 40.0, 40.5], 0.75, 1)
    differences = compare(instances(A, B, C), instances(A, moved, C), LIMITS)
    assert (differences.boxes, differences.unmatched) == (0.5, 0)
    assert differences.scores == pytest.approx(0.05)
    assert not differences.within(LIMITS)


@pytest.mark.parametrize(
    ("found", "unmatched"),
    [
        ((A, B), 1),
        ((A, B, C, ([0.0, 50.0, 10.0, 60.0], 0.5, 0)), 1),
        ((A, A, B, B, C), 2),
        ((A, B, (C[0], C[1], 1)), 2),
        ((), 3),
    ],
    ids=["missing", "additional", "repeated", "other label", "none"],
)
def test_detections_without_counterpart_are_counted(found: tuple[Row, ...], unmatched: int) -> None:
    differences = compare(instances(A, B, C), instances(*found), LIMITS, lambda: [instances(A, B, C)])
    assert (differences.unmatched, differences.undecided) == (unmatched, 0)


def test_equal_boxes_are_matched_by_score() -> None:
    duplicate = (A[0], 0.3, 0)
    assert compare(instances(A, duplicate), instances(duplicate, A), LIMITS) == Differences()


def test_boxes_without_area_are_matched() -> None:
    empty = ([5.0, 5.0, 5.0, 9.0], 0.5, 0)
    assert compare(instances(empty), instances(empty), LIMITS) == Differences()


def test_close_detections_are_matched_before_overlapping_ones() -> None:
    """Otherwise B takes the partner of the next detection, which has none left."""
    other = ([22.0, 20.0, 42.0, 40.0], 0.7, 1)
    differences = compare(instances(B, NEAR_B), instances(NEAR_B, other), LIMITS)
    assert (differences.boxes, differences.unmatched) == (2.0, 0)


@pytest.mark.parametrize(
    ("variations", "passed"),
    [
        ([instances(A, B)], False),
        ([instances(A)], False),  # B may be missing, but its neighbour may not be there
        ([instances(A, NEAR_B)], True),
        ([instances(A, B), instances(A, NEAR_B)], True),
        ([instances(A, B, NEAR_B)], False),  # B is always there
        ([instances(A, B, NEAR_B), instances(A)], True),
    ],
)
def test_detection_may_differ_if_a_variation_misses_the_one_and_has_the_other(
    variations: list[Instances], passed: bool
) -> None:
    differences = compare(instances(A, B), instances(A, NEAR_B), LIMITS, lambda: variations)
    assert differences.within(LIMITS) == passed
    assert differences.boxes == (0.0 if passed else 1.0)
    assert differences.undecided == 2 or not passed


def random_row(place: int, *, score: float = 0.1) -> Row:
    return [10.0 * place, 50.0, 10.0 * place + 5, 60.0], score, 0


def one_random_row_each() -> list[Instances]:
    return [instances(A, random_row(seed)) for seed in range(4)]


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize(("num_random", "passed"), [(1, True), (3, False)])
def test_in_half_precision_detections_may_differ_in_as_many_as_variations_do(
    precision: Any, num_random: int, passed: bool
) -> None:
    """Every variation has another detection, which depends on rounding."""
    found = instances(A, *[random_row(10 + i) for i in range(num_random)])
    differences = compare(instances(A), found, TOLERANCES[precision], one_random_row_each)
    passed &= precision == "float16"
    assert differences.unmatched == (0 if passed else num_random)
    assert differences.undecided == (num_random if passed else 0)


@pytest.mark.parametrize(
    ("found", "unmatched"),
    [((A, random_row(10, score=0.3)), 1), ((A, A), 1), (((A[0], A[1], 1),), 2)],
    ids=["additional", "repeated", "other label"],
)
def test_in_half_precision_better_detections_may_not_differ(found: tuple[Row, ...], unmatched: int) -> None:
    differences = compare(instances(A), instances(*found), TOLERANCES["float16"], one_random_row_each)
    assert (differences.unmatched, differences.undecided) == (unmatched, 0)


def test_variations_are_not_computed_if_all_detections_match() -> None:
    def fail() -> list[Instances]:
        raise AssertionError

    assert compare(instances(A, B), instances(B, A), LIMITS, fail) == Differences()


def test_masks_and_keypoints_are_compared() -> None:
    expected = replace(instances(A, B), mask_grids=torch.full((2, 4, 4), 0.5), keypoints=torch.ones(2, 3, 3))
    masks, keypoints = torch.full((2, 4, 4), 0.5), torch.ones(2, 3, 3)
    masks[1, 2, 2] = 0.75
    keypoints[0, 1] = torch.tensor([4.0, 1.0, 1.5])
    found = replace(expected, mask_grids=masks, keypoints=keypoints)
    differences = compare(expected, found, LIMITS)
    assert differences == Differences(masks=0.25, keypoints=3.0, logits=0.5)
    assert not differences.within(LIMITS)


def test_keypoint_may_differ_if_a_variation_has_it_there() -> None:
    """The maximum of a heat map may be in one of two cells."""
    expected = replace(instances(A, B), keypoints=torch.ones(2, 3, 3))
    keypoints = torch.ones(2, 3, 3)
    keypoints[0, 1, 0] = 4.0
    found = replace(expected, keypoints=keypoints)
    assert compare(expected, found, LIMITS, lambda: [expected]).keypoints == 3.0
    differences = compare(expected, found, LIMITS, lambda: [expected, found[[1, 0]]])
    assert differences == Differences(undecided=1)


@pytest.mark.parametrize("name", ["masks", "keypoints", "logits"])
def test_nan_is_an_infinite_difference(name: str) -> None:
    expected = replace(instances(A, B), mask_grids=torch.full((2, 4, 4), 0.5), keypoints=torch.ones(2, 3, 3))
    masks, keypoints = torch.full((2, 4, 4), 0.5), torch.ones(2, 3, 3)
    {"masks": masks[1], "keypoints": keypoints[1, :, 1], "logits": keypoints[1, :, 2]}[name][0] = torch.nan
    differences = compare(expected, replace(expected, mask_grids=masks, keypoints=keypoints), LIMITS)
    assert getattr(differences, name) == torch.inf
    assert not (Differences() | differences).within(LIMITS)
