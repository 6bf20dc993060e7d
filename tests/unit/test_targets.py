"""Assignment of targets to locations, against plain loops over locations and boxes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import pytest
import torch
from ground_truth import objects_of
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from fcos.choices import BoxConvention
from fcos.models.points import (
    BACKGROUND,
    IGNORED,
    Assigner,
    Assignment,
    assign_targets,
    centerness_targets,
    locations,
)
from fcos.structures import Objects

Range = tuple[float, float | None]


class Pyramid(NamedTuple):
    """Pyramid levels of a small image, with half the usual size ranges so that small boxes reach every level."""

    strides: list[int]
    size_ranges: list[Range]
    size: tuple[int, int] = (72, 104)

    @property
    def points(self) -> list[Tensor]:
        height, width = self.size
        return [locations((math.ceil(height / s), math.ceil(width / s)), s) for s in self.strides]

    def assign(
        self, targets: list[Objects], *, radius: float = 0.0, convention: BoxConvention = "continuous"
    ) -> Assignment:
        assigner = Assigner(self.strides, self.size_ranges, center_sampling_radius=radius, box_convention=convention)
        return assign_targets(self.points, targets, assigner)


PYRAMIDS = {
    "five": Pyramid([8, 16, 32, 64, 128], [(-1, 12), (12, 24), (24, 48), (48, 96), (96, None)]),
    "one": Pyramid([8], [(-1, None)]),
    "three from 4": Pyramid([4, 8, 16], [(-1, 16), (16, 32), (32, None)]),
    "seven": Pyramid(
        [4, 8, 16, 32, 64, 128, 256], [(-1, 8), (8, 16), (16, 24), (24, 32), (32, 48), (48, 64), (64, None)]
    ),
}
ONE = PYRAMIDS["one"]


def slow_assignment(
    pyramid: Pyramid, boxes: Sequence[Sequence[float]], labels: Sequence[int], crowd: Sequence[bool], *,
    radius: float, convention: BoxConvention,
) -> tuple[list[int], list[int]]:  # fmt: skip
    """Compute label and box of every location by the paper's definition, with loops over locations and boxes."""
    extra = 1 if convention == "inclusive" else 0
    found_labels, found_boxes = [], []
    for points, stride, (low, high) in zip(pyramid.points, pyramid.strides, pyramid.size_ranges, strict=True):
        for x, y in points.tolist():
            best, smallest = -1, math.inf
            for index, (x1, y1, x2, y2) in enumerate(boxes):
                distances = (x - x1, y - y1, x2 - x, y2 - y)
                near = min(distances) > 0
                if radius > 0:
                    center_x, center_y = (x1 + x2) / 2, (y1 + y2) / 2
                    reach = radius * stride
                    near = near and abs(x - center_x) < reach and abs(y - center_y) < reach
                fits = max(distances) >= low and (high is None or max(distances) <= high)
                size = (x2 - x1 + extra) * (y2 - y1 + extra)
                if labels[index] >= 0 and not crowd[index] and near and fits and size < smallest:
                    best, smallest = index, size
            in_crowd = any(
                is_crowd and x1 < x < x2 and y1 < y < y2
                for (x1, y1, x2, y2), is_crowd in zip(boxes, crowd, strict=True)
            )
            found_boxes.append(best)
            found_labels.append(labels[best] if best >= 0 else IGNORED if in_crowd else BACKGROUND)
    return found_labels, found_boxes


def random_targets(count: int, size: tuple[int, int], *, whole: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return boxes of all sizes inside the image. With `whole`, corners are multiples of 4 and many areas are equal."""
    height, width = size
    ends = torch.rand(count, 2, 2) * torch.tensor([width, height])
    if whole:
        ends = (ends / 4).round() * 4
    boxes = torch.cat([ends.amin(1), ends.amax(1)], dim=1)
    return boxes, torch.randint(5, (count,)), torch.rand(count) < 0.2


def one_image(
    *boxes: Sequence[float], labels: Sequence[int] | None = None, crowd: Sequence[bool] | None = None
) -> list[Objects]:
    labels = range(len(boxes)) if labels is None else labels
    flags = None if crowd is None else [torch.tensor(crowd, dtype=torch.bool)]
    return objects_of([torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)], [torch.tensor(list(labels))], flags)


def work_like_a_gpu(monkeypatch: pytest.MonkeyPatch, *, max_pairs: int = 2**24) -> None:
    """Assign all images at once, as on a GPU, and compare at most `max_pairs` pairs of location and box at a time."""
    monkeypatch.setattr("fcos.models.points.GPU_TYPES", {"cpu"})
    monkeypatch.setattr("fcos.models.points._MAX_GPU_PAIRS", max_pairs)


# --------------------------------------------------------------------------------------------- against the definition


@pytest.mark.parametrize("device", ["CPU", "GPU"])
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("convention", ["continuous", "inclusive"])
@pytest.mark.parametrize("radius", [0.0, 1.5])
@pytest.mark.parametrize("name", PYRAMIDS)
def test_assignment_matches_the_reference_loops(  # noqa: PLR0917
    name: str, radius: float, convention: BoxConvention, whole: bool, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device == "GPU":
        work_like_a_gpu(monkeypatch, max_pairs=500)
    pyramid = PYRAMIDS[name]
    images = [random_targets(count, pyramid.size, whole=whole) for count in (6, 0, 9)]
    targets = objects_of(*zip(*images, strict=True))
    assignment = pyramid.assign(targets, radius=radius, convention=convention)
    for i, (boxes, labels, crowd) in enumerate(images):
        expected = slow_assignment(
            pyramid, boxes.tolist(), labels.tolist(), crowd.tolist(), radius=radius, convention=convention
        )
        assert assignment.labels[i].tolist() == expected[0]
        assert assignment.boxes[i].tolist() == expected[1]


def test_ltrb_targets_reach_the_sides_of_the_assigned_box() -> None:
    boxes, labels, _ = random_targets(9, ONE.size, whole=False)
    assignment = ONE.assign(objects_of([boxes], [labels]))
    positive = assignment.boxes[0] >= 0
    points, ltrb = ONE.points[0][positive], assignment.ltrb[0][positive]
    matched = boxes[assignment.boxes[0][positive]]
    torch.testing.assert_close(torch.cat([points - ltrb[:, :2], points + ltrb[:, 2:]], dim=1), matched)
    assert (ltrb > 0).all()


def test_batched_assignment_matches_single_image_assignment() -> None:
    images = [random_targets(count, ONE.size, whole=False) for count in (1, 7, 0)]
    together = ONE.assign(objects_of(*zip(*images, strict=True)), radius=1.5)
    for i, image in enumerate(images):
        alone = ONE.assign(objects_of(*([part] for part in image)), radius=1.5)
        assert torch.equal(together.labels[i], alone.labels[0])
        assert torch.equal(together.boxes[i], alone.boxes[0])


def test_boxes_of_different_precision_are_not_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, all images share a tensor."""
    boxes = torch.tensor([[10.26, 3.31, 90.77, 60.13]])
    targets = [Objects(boxes.to(dtype), torch.tensor([0])) for dtype in (torch.float16, torch.float32)]
    expected = ONE.assign(targets)
    work_like_a_gpu(monkeypatch)
    found = ONE.assign(targets)
    positive = expected.boxes >= 0
    assert positive[1].any()
    assert torch.equal(found.boxes, expected.boxes)
    assert torch.equal(found.ltrb[positive], expected.ltrb[positive])


def test_gpu_compares_the_boxes_of_all_images_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """More images add no operations but the copies of their boxes, labels and crowd flags to the padded tensors."""
    work_like_a_gpu(monkeypatch)
    images = [random_targets(count, ONE.size, whole=False) for count in (5, 0, 9, 2, 1, 4, 7, 3)]
    counts = []
    for number in (4, 8):
        with profile(activities=[ProfilerActivity.CPU]) as recorded:
            ONE.assign(objects_of(*zip(*images[:number], strict=True)), radius=1.5)
        counts.append({event.key: event.count for event in recorded.key_averages()})
    added = {name: counts[1][name] - counts[0].get(name, 0) for name in counts[1]}
    copies = {
        "aten::to",
        "aten::copy_",
        "aten::narrow",
        "aten::slice",
        "aten::select",
        "aten::as_strided",
        "aten::expand",
    }
    assert {name for name, count in added.items() if count} <= copies


# -------------------------------------------------------------------------------------------------------- size ranges


def test_size_ranges_include_both_ends() -> None:
    """For the location (4, 4) and a box from 0 to 24, the largest distance is 20."""
    cases: list[tuple[Range, int]] = [((0, 20), 0), ((20, 30), 0), ((0, 19.99), -1), ((20.01, None), -1)]
    for size_range, expected in cases:
        pyramid = Pyramid([8], [size_range])
        assert pyramid.assign(one_image([0, 0, 24, 24])).boxes[0, 0] == expected, size_range


def test_box_at_a_shared_range_end_is_assigned_on_both_levels() -> None:
    pyramid = Pyramid([4, 8], [(-1, 20), (20, None)], size=(24, 24))
    assignment = pyramid.assign(one_image([0, 0, 24, 24]))
    fine, coarse = assignment.boxes[0].split([36, 9])
    # Fine level: the largest distance is at most 18 if x and y are among 6, 10, 14 and 18; x = 2 has 22.
    assert (fine.view(6, 6) >= 0).nonzero().tolist() == [[r, c] for r in (1, 2, 3, 4) for c in (1, 2, 3, 4)]
    # Coarse level: x = 4 and 20 have exactly 20, x = 12 only if y is 4 or 20.
    assert (coarse.view(3, 3) >= 0).tolist() == [[True, True, True], [True, False, True], [True, True, True]]
    shared = Pyramid([8, 16], [(-1, 20), (20, None)], size=(16, 16)).assign(one_image([0, 0, 24, 24])).boxes[0]
    assert shared.tolist() == [0, 0, 0, 0, -1]


def test_center_sampling_compares_size_range_with_the_whole_box() -> None:
    pyramid = Pyramid([8], [(-1, 30)])
    assert (pyramid.assign(one_image([0, 0, 64, 64]), radius=1.5).boxes == -1).all()


# --------------------------------------------------------------------------------------------- locations inside boxes


def test_location_on_a_box_side_is_not_inside() -> None:
    assert (ONE.assign(one_image([4, 0, 12, 16])).boxes == -1).all()
    assert (ONE.assign(one_image([3.99, 0, 12, 16])).boxes >= 0).sum() == 2


def test_location_exactly_at_the_sampling_radius_is_excluded() -> None:
    # The centre is (28, 28). A radius of one stride reaches exactly the locations at 20 and 36.
    assert (ONE.assign(one_image([0, 0, 56, 56]), radius=1.0).boxes >= 0).sum() == 1
    assert (ONE.assign(one_image([0, 0, 56, 56]), radius=1.001).boxes >= 0).sum() == 9


def test_inverted_and_empty_boxes_are_never_assigned() -> None:
    targets = one_image([40, 40, 8, 8], [20, 20, 20, 20], [8, 20, 64, 20])
    for radius in (0.0, 1.5):
        assignment = ONE.assign(targets, radius=radius)
        assert (assignment.labels == BACKGROUND).all()
        assert assignment.num_unassigned == 3


# ------------------------------------------------------------------------------------------------------------ ambiguity


@pytest.mark.parametrize("radius", [0.0, 1.5])
def test_smallest_box_wins_in_any_order(radius: float) -> None:
    large, small = [0, 0, 64, 64], [16, 16, 40, 40]
    first = ONE.assign(one_image(large, small), radius=radius)
    second = ONE.assign(one_image(small, large, labels=[1, 0]), radius=radius)
    assert torch.equal(first.labels, second.labels)
    center = int(ONE.points[0].tolist().index([28.0, 28.0]))
    assert first.labels[0, center] == 1


@pytest.mark.parametrize("convention", ["continuous", "inclusive"])
def test_first_box_wins_among_equal_areas(convention: BoxConvention) -> None:
    boxes = ([8, 0, 24, 32], [0, 8, 32, 24], [8, 8, 24, 40])
    assignment = ONE.assign(one_image(*boxes), convention=convention)
    both = int(ONE.points[0].tolist().index([12.0, 12.0]))
    assert assignment.boxes[0, both] == 0
    turned = ONE.assign(one_image(*boxes[::-1], labels=[2, 1, 0]), convention=convention)
    assert turned.boxes[0, both] == 0
    assert turned.labels[0, both] == 2


def test_box_convention_decides_between_similar_areas() -> None:
    flat, square = [0, 10, 40, 15], [6, 6, 20, 20.3]  # areas 200 and 200.2; inclusive 246 and 229.5
    at = int(ONE.points[0].tolist().index([12.0, 12.0]))
    assert ONE.assign(one_image(flat, square)).boxes[0, at] == 0
    assert ONE.assign(one_image(flat, square), convention="inclusive").boxes[0, at] == 1


# --------------------------------------------------------------------------------------------------------------- crowd


def test_locations_in_a_crowd_are_ignored_and_never_positive() -> None:
    targets = one_image([0, 0, 40, 40], crowd=[True])
    assignment = ONE.assign(targets)
    inside = (ONE.points[0] < 40).all(dim=1)
    assert (assignment.labels[0][inside] == IGNORED).all()
    assert (assignment.labels[0][~inside] == BACKGROUND).all()
    assert (assignment.boxes == -1).all()


def test_objects_inside_a_crowd_are_still_assigned() -> None:
    assignment = ONE.assign(one_image([0, 0, 64, 64], [16, 16, 40, 40], labels=[3, 4], crowd=[True, False]))
    labels = assignment.labels[0][(ONE.points[0] < 64).all(dim=1)]
    assert sorted(set(labels.tolist())) == [IGNORED, 4]
    assert (labels == 4).sum() == 9


def test_small_crowd_takes_no_locations_from_a_larger_object() -> None:
    assignment = ONE.assign(one_image([0, 0, 64, 64], [16, 16, 40, 40], labels=[3, 4], crowd=[False, True]))
    assert (assignment.labels[0][(ONE.points[0] < 64).all(dim=1)] == 3).all()


def test_crowd_is_ignored_on_every_level() -> None:
    pyramid = PYRAMIDS["five"]
    assignment = pyramid.assign(one_image([0, 0, 500, 500], crowd=[True]))
    assert (assignment.labels == IGNORED).all()


# ------------------------------------------------------------------------------------------- empty images and padding


@pytest.mark.parametrize("radius", [0.0, 1.5])
def test_images_without_boxes_are_background(radius: float) -> None:
    targets = objects_of([torch.zeros(0, 4)] * 2, [torch.zeros(0).long()] * 2)
    assignment = PYRAMIDS["five"].assign(targets, radius=radius)
    assert assignment.labels.shape == assignment.boxes.shape == (2, sum(len(p) for p in PYRAMIDS["five"].points))
    assert assignment.ltrb.shape == (*assignment.labels.shape, 4)
    assert (assignment.labels == BACKGROUND).all()
    assert (assignment.boxes == -1).all()
    assert assignment.num_unassigned == 0


@pytest.mark.parametrize("convention", ["continuous", "inclusive"])
def test_image_with_fewer_boxes_is_assigned_only_its_boxes(convention: BoxConvention) -> None:
    targets = one_image([0, 0, 80, 80], labels=[2]) + one_image([0, 0, 80, 80], [8, 8, 30, 30], [0, 0, 16, 16])
    assignment = ONE.assign(targets, convention=convention)
    assert set(assignment.boxes[0].unique().tolist()) == {-1, 0}
    assert set(assignment.labels[0].unique().tolist()) == {BACKGROUND, 2}
    assert set(assignment.boxes[1].unique().tolist()) == {-1, 0, 1, 2}
    assert assignment.num_unassigned == 0


@pytest.mark.parametrize("more", [0, 5, 9])
def test_assignment_does_not_depend_on_other_images(more: int) -> None:
    image, other = (random_targets(count, ONE.size, whole=False) for count in (5, more))
    alone, together = objects_of(*([part] for part in image)), objects_of(*zip(image, other, strict=True))
    assert torch.equal(ONE.assign(alone).labels[0], ONE.assign(together).labels[0])


# ----------------------------------------------------------------------------------------------- unassigned boxes


def test_one_pixel_box_between_locations_counts_as_unassigned() -> None:
    targets = one_image([8, 8, 9, 9], [3.5, 3.5, 4.5, 4.5], [30, 30, 60, 60])
    assert ONE.assign(targets).num_unassigned == 1


def test_box_covered_by_a_smaller_box_counts_as_unassigned() -> None:
    targets = one_image([0, 0, 16, 16], [0, 0, 15.9, 15.9])
    assert ONE.assign(targets).num_unassigned == 1


def test_num_unassigned_sums_over_images_and_excludes_crowds() -> None:
    tiny = torch.tensor([[8.0, 8.0, 9.0, 9.0]])
    targets = objects_of(
        [tiny.repeat(3, 1), tiny, torch.zeros(0, 4)],
        [torch.zeros(3).long(), torch.zeros(1).long(), torch.zeros(0).long()],
        [torch.tensor([True, False, False]), torch.tensor([False]), torch.zeros(0, dtype=torch.bool)],
    )
    unassigned = ONE.assign(targets).num_unassigned
    assert unassigned.shape == ()
    assert unassigned.dtype == torch.int64
    assert unassigned == 3


# -------------------------------------------------------------------------------------------- locations and centerness


def test_locations_are_cell_centers_in_row_major_order() -> None:
    assert locations((2, 3), 8).tolist() == [[4, 4], [12, 4], [20, 4], [4, 12], [12, 12], [20, 12]]


def test_locations_support_corner_offset_and_anisotropic_strides() -> None:
    assert locations((2, 2), (8, 6), offset=0.0).tolist() == [[0, 0], [6, 0], [0, 8], [6, 8]]


def test_centerness_matches_values_computed_by_hand() -> None:
    ltrb = torch.tensor([[5.0, 5.0, 5.0, 5.0], [1.0, 2.0, 4.0, 8.0], [1.0, 3.0, 100.0, 3.0]])
    torch.testing.assert_close(centerness_targets(ltrb), torch.tensor([1.0, 0.25, 0.1]))


def test_centerness_stays_between_zero_and_one() -> None:
    centerness = centerness_targets(torch.rand(1000, 4) * 500 + 1e-4)
    assert (centerness > 0).all()
    assert (centerness <= 1).all()


def test_centerness_of_no_locations_is_empty() -> None:
    assert centerness_targets(torch.zeros(0, 4)).shape == (0,)
