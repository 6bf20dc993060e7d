"""Labels that are suspicious by their geometry are reported, and no others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from flat_annotations import annotations_of
from torchvision.ops import box_iou

from fcos.data.dataset import Annotations
from fcos.doctor.findings import Finding
from fcos.doctor.labels import double_boxes, label_findings

Box = Sequence[float]
SIDE = 200
LARGE, SMALL, LONG = 0, 1, 2  # classes


def usual_boxes() -> list[list[Box]]:
    """Return thirty images with two large boxes, a small and a long one each, none of them suspicious."""
    generator = np.random.default_rng(0)
    images: list[list[Box]] = []
    for _ in range(30):
        image: list[Box] = []
        for left, top, label, width, height in (
            (0, 0, LARGE, 60, 60),
            (100, 0, LARGE, 60, 60),
            (0, 100, SMALL, 15, 15),
            (60, 120, LONG, 120, 8),
        ):
            x, y = left + generator.uniform(1, 20), top + generator.uniform(1, 20)
            w, h = np.array([width, height]) * generator.uniform(0.8, 1.25, 2)
            image.append((x, y, x + w, y + h, label))
        images.append(image)
    return images


def of(*images: Sequence[Box]) -> Annotations:
    return annotations_of(images, [(SIDE, SIDE)] * len(images))


def found(train: Annotations, **others: Annotations) -> dict[str, Finding]:
    return {finding.kind: finding for finding in label_findings({"train": train, **others})}


def boxes_of(finding: Finding) -> list[tuple[str, int, tuple[int, ...]]]:
    return [(place.split, place.image, place.boxes) for case in finding.cases for place in case]


def test_normal_labels_have_no_findings() -> None:
    assert found(of(*usual_boxes())) == {}


def test_empty_datasets_have_no_findings() -> None:
    assert label_findings({}) == []
    assert found(of()) == {}
    assert found(of([], [])) == {}


def test_duplicate_box_is_reported() -> None:
    images = usual_boxes()
    x1, y1, x2, y2, label = images[4][1]
    images[4].append((x1 + 1, y1, x2 + 1, y2, label))
    (finding,) = found(of(*images)).values()
    assert finding.kind == "duplicate box"
    assert boxes_of(finding) == [("train", 4, (17, 20))]
    assert "1 pair of boxes of the same class" in finding.message


def test_the_worst_double_comes_first_and_of_three_of_a_kind_two_repeat_the_first() -> None:
    box = [10.0, 10.0, 110.0, 110.0, LARGE]
    images: list[list[Box]] = [[box, [12, 10, 110, 110, LARGE]], [box, box, box]]
    cases = found(of(*images))["duplicate box"].cases
    assert [case[0].image for case in cases] == [1, 1, 0]
    assert [case[0].boxes for case in cases] == [(2, 3), (2, 4), (0, 1)]
    assert cases[0][0].note == "IoU 1.00"


def test_box_with_two_classes_is_reported() -> None:
    images = usual_boxes()
    images[2].append((*images[2][0][:4], LONG))
    assert boxes_of(found(of(*images))["box with two classes"]) == [("train", 2, (8, 12))]


def test_overlap_below_the_duplicate_threshold_is_not_reported() -> None:
    images: list[list[Box]] = [[(0, 0, 100, 100, LARGE), (0, 0, 100, 89, LARGE)]]
    assert found(of(*images)) == {}


def test_crowd_is_not_a_duplicate() -> None:
    images: list[list[Box]] = [[(0, 0, 100, 100, LARGE), (0, 0, 100, 100, LARGE, 1)]]
    assert found(of(*images)) == {}


def test_duplicates_are_found_across_chunks() -> None:
    """This many boxes are compared in chunks; pairs are within a chunk, across two, and at the end of the last one."""
    boxes: list[Box] = [(10.0 * i, 0, 10.0 * i + 8, 8, LARGE) for i in range(2500)]
    pairs = [(1, 5), (2, 1030), (1023, 1024), (1500, 2400), (2498, 2499)]
    for first, second in pairs:
        boxes[second] = boxes[first]
    assert sorted(boxes_of(found(of(boxes))["duplicate box"])) == [("train", 0, pair) for pair in pairs]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("noise", [0.0, 0.1, 1.0])
def test_double_boxes_are_those_of_all_pairs(seed: int, noise: float) -> None:
    generator = np.random.default_rng(seed)
    corners = generator.uniform(0, 80, (8, 2))
    base = np.concatenate([corners, corners + generator.uniform(12, 90, (8, 2))], axis=1)
    boxes = base[generator.integers(8, size=60)] + generator.normal(0, noise, (60, 4))
    labels = generator.integers(3, size=60)
    annotations = of([(*box, label) for box, label in zip(boxes.tolist(), labels.tolist(), strict=True)])
    all_boxes = torch.from_numpy(annotations.boxes)
    iou = np.tril(box_iou(all_boxes, all_boxes).numpy(), k=-1)  # [later, earlier]
    is_same = labels[:, None] == labels
    for doubles, mask in zip(double_boxes(annotations), (is_same, ~is_same), strict=True):
        best = (iou * mask).max(axis=1)
        later = np.flatnonzero(best > 0.9)
        assert doubles.later.tolist() == later.tolist()
        assert doubles.earlier.tolist() == (iou * mask).argmax(axis=1)[later].tolist()
        assert doubles.iou.tolist() == best[later].tolist()


def test_small_box_of_a_large_class_is_reported_with_fitting_class() -> None:
    """Like the platelet in BCCD that is labelled as a white cell."""
    images = usual_boxes()
    images[7][0] = (5, 5, 20, 20, LARGE)
    finding = found(of(*images))["unusual size for its class"]
    assert boxes_of(finding) == [("train", 7, (28,))]
    assert finding.cases[0][0].note.endswith("; size fits b")


def test_large_box_of_a_small_class_is_reported_in_another_split() -> None:
    finding = found(of(*usual_boxes()), test=of([(5, 5, 65, 66, SMALL)]))["unusual size for its class"]
    assert boxes_of(finding) == [("test", 0, (0,))]
    assert finding.cases[0][0].note.startswith("60 pixels, median of b: 1")


def test_size_is_not_checked_for_classes_with_few_boxes() -> None:
    assert found(of(*([(0, 0, 5.0 * i, 5.0 * i, LARGE)] for i in range(1, 19)))) == {}


def test_unusually_elongated_box_is_reported() -> None:
    images = usual_boxes()
    images[9][1] = (100, 10, 199, 19, LARGE)
    finding = found(of(*images))["extreme aspect ratio"]
    assert boxes_of(finding) == [("train", 9, (37,))]
    assert finding.cases[0][0].note == "99 x 9"


def test_box_around_the_whole_image_is_reported() -> None:
    images = usual_boxes()
    images[3] = [(2, 1, 199, 199, LONG)]
    finding = found(of(*images))["box around the whole image"]
    assert boxes_of(finding) == [("train", 3, (12,))]
    assert finding.cases[0][0].note == "98% of the image"
    assert finding.severity == "note"


def test_images_with_unusual_box_counts_are_reported() -> None:
    many: list[Box] = [(4.0 * i, 0, 4.0 * i + 3, 3, LARGE) for i in range(40)]
    some: list[list[Box]] = [many[: 9 + i % 3] for i in range(30)]
    kinds = found(of(*some, many[:1], many), val=of([]))
    assert boxes_of(kinds["image with few boxes"]) == [("val", 0, ()), ("train", 30, ())]
    assert boxes_of(kinds["image with many boxes"]) == [("train", 31, ())]
    assert kinds["image with few boxes"].cases[1][0].note == "1 box"
    assert "than usual (median 10)" in kinds["image with many boxes"].message


def test_images_without_boxes_are_not_reported_if_boxes_are_rare() -> None:
    assert found(of(*([(0, 0, 9, 9, LARGE)] if i % 2 else [] for i in range(40)))) == {}


def test_all_objects_of_an_image_seen_from_far_away_are_small() -> None:
    """Like a photograph from a drone at 300 m among photographs from 50 m."""
    images = usual_boxes()
    images[11] = [(x1 / 10, y1 / 10, x2 / 10, y2 / 10, label) for x1, y1, x2, y2, label in images[11]]
    assert found(of(*images)) == {}


def test_a_box_unlike_the_others_of_an_image_seen_from_far_away() -> None:
    images = usual_boxes()
    images[11] = [(x1 / 10, y1 / 10, x2 / 10, y2 / 10, label) for x1, y1, x2, y2, label in images[11]]
    images[11].append((20, 30, 20.5, 30.5, LARGE))
    finding = found(of(*images))["unusual size for its class"]
    assert boxes_of(finding) == [("train", 11, (48,))]


def test_the_same_scene_in_more_pixels_is_not_unusual() -> None:
    images: list[list[Box]] = [[(10, 10, 50 + i, 50, LARGE)] for i in range(30)]
    large: list[list[Box]] = [[(100, 100, 500, 500, LARGE)]]
    sizes = [(SIDE, SIDE)] * len(images) + [(10 * SIDE, 10 * SIDE)]
    assert label_findings({"train": annotations_of([*images, *large], sizes)}) == []
    kinds = {finding.kind for finding in label_findings({"train": of(*images, [(5, 5, 7, 7, LARGE)])})}
    assert kinds == {"unusual size for its class"}


def test_thousands_of_boxes_on_one_place_have_a_pair_each() -> None:
    count = 5000
    boxes: list[Box] = [(10.0, 10, 110 + i / 1000, 110, LARGE if i % 2 else LONG) for i in range(count)]
    kinds = found(of(boxes))
    assert len(kinds["duplicate box"].cases) == count - 2
    assert len(kinds["box with two classes"].cases) == count - 1
