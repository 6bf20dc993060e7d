"""Boxes that a pyramid can learn, against plain loops over boxes and locations."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from detectors import fcos_section
from flat_annotations import annotations_of, setting_of
from torch import Tensor

from fcos.config import Config
from fcos.data.dataset import Annotations
from fcos.doctor.coverage import BETWEEN, DROPPED, FATES, LEARNED, NO_LEVEL, OFF_CENTER, TAKEN, Coverage, cover
from fcos.doctor.matching import Boxes, match
from fcos.doctor.setting import Setting
from fcos.models.points import Assigner, assign_targets
from fcos.recipes import load_config, recipe_names
from fcos.structures import Objects

SIZES = [(64, 80), (70, 50), (40, 40), (64, 80)]  # height, width; the third has no boxes
RANGES = {"all": setting_of().size_ranges, "gap": ((-1, 6), (8, 16), (16, 20))}


def random_annotations(seed: int) -> Annotations:
    generator = np.random.default_rng(seed)
    boxes: list[list[tuple[float, ...]]] = []
    for i, (height, width) in enumerate(SIZES):
        image = []
        for _ in range(0 if i == 2 else 12):
            scale = generator.choice([3, 12, 80])
            x, y = generator.uniform(0, width - 2), generator.uniform(0, height - 2)
            w, h = generator.uniform(0.5, scale, 2)
            crowd = float(generator.random() < 0.15)
            image.append((x, y, min(x + w, width), min(y + h, height), float(generator.integers(3)), crowd))
        if image:
            image.append((*image[0][:4], 2.0, 0.0))  # a duplicate
        boxes.append(image)
    return annotations_of(boxes, SIZES)


# ---------------------------------------------------------------------------------------------------------- plain loops


class Slow(NamedTuple):
    fates: list[int]
    positives: list[int]
    ambiguous: list[int]
    ambiguous_classes: list[int]


def slow_cover(annotations: Annotations, setting: Setting) -> Slow:
    """Compute coverage with a loop over locations and boxes."""
    inclusive = setting.box_convention == "inclusive"
    levels = len(setting.strides)
    fates, positives, ambiguous, classes = [], [0] * levels, [0] * levels, [0] * levels
    for i, size in enumerate(annotations.sizes.tolist()):
        new = setting.resized(*size)
        boxes = {}
        span = annotations.span(i)
        for k in range(span.start, span.stop):
            x1, y1, x2, y2 = annotations.boxes[k].tolist()
            if inclusive:  # the last pixel belongs to the box; boxes without width are then dropped
                x2, y2 = max(x2 - 1, x1), max(y2 - 1, y1)
                x1, x2, y1, y2 = min(x1, size[1] - 1), min(x2, size[1] - 1), min(y1, size[0] - 1), min(y2, size[0] - 1)
                if x2 - x1 <= 1e-3 or y2 - y1 <= 1e-3:
                    continue
            down, across = new[0] / size[0], new[1] / size[1]
            boxes[k] = tuple(float(np.float32(v)) for v in (x1 * across, y1 * down, x2 * across, y2 * down))
        objects = [k for k in boxes if not annotations.crowd[k]]
        learned, wanted = set(), Counter()
        side = setting.size_divisor
        height, width = (math.ceil(v / side) * side for v in new)
        for level, stride in enumerate(setting.strides):
            for row in range(math.ceil(height / stride)):
                for column in range(math.ceil(width / stride)):
                    x, y = (column + 0.5) * stride, (row + 0.5) * stride
                    wanting = [k for k in objects if _wants(boxes[k], x, y, level, setting)]
                    wanted.update(wanting)
                    if wanting:
                        extra = 1 if inclusive else 0
                        sides = [
                            (boxes[k][2] - boxes[k][0] + extra, boxes[k][3] - boxes[k][1] + extra) for k in wanting
                        ]
                        areas = np.array(sides, dtype=np.float32).prod(axis=1)
                        learned.add(wanting[int(areas.argmin())])
                        positives[level] += 1
                        ambiguous[level] += len(wanting) > 1
                        classes[level] += len({int(annotations.labels[k]) for k in wanting}) > 1
        for k in range(span.start, span.stop):
            if not annotations.crowd[k]:
                fates.append(_fate(boxes.get(k), k in learned, wanted[k] > 0, (height, width), setting))
    return Slow(fates, positives, ambiguous, classes)


def _wants(box: tuple[float, ...], x: float, y: float, level: int, setting: Setting) -> bool:
    x1, y1, x2, y2 = box
    distances = (x - x1, y - y1, x2 - x, y2 - y)
    low, high = setting.size_ranges[level]
    reach = setting.center_sampling_radius * setting.strides[level]
    near = not reach or max(abs(x - (x1 + x2) / 2), abs(y - (y1 + y2) / 2)) < reach
    return min(distances) > 0 and near and max(distances) >= low and (high is None or max(distances) <= high)


def _fate(box: tuple[float, ...] | None, learned: bool, wanted: bool, padded: tuple[int, int], setting: Setting) -> int:
    if box is None:
        return DROPPED
    if wanted:
        return LEARNED if learned else TAKEN
    longest = max(box[2] - box[0], box[3] - box[1])
    some = np.linspace(longest / 2, longest, 10_001)[:-1]  # possible distances from an inner point to its farthest side
    if not any(
        ((some >= low) & (some <= (np.inf if high is None else high))).any() for low, high in setting.size_ranges
    ):
        return NO_LEVEL
    everywhere = Setting(**{**setting.__dict__, "center_sampling_radius": 0.0})
    for level, stride in enumerate(setting.strides):
        for row in range(math.ceil(padded[0] / stride)):
            for column in range(math.ceil(padded[1] / stride)):
                if _wants(box, (column + 0.5) * stride, (row + 0.5) * stride, level, everywhere):
                    return OFF_CENTER
    return BETWEEN


@pytest.mark.parametrize("ranges", RANGES)
@pytest.mark.parametrize("convention", ["continuous", "inclusive"])
@pytest.mark.parametrize("radius", [0.0, 0.4, 1.5])
def test_coverage_matches_plain_loops(radius: float, convention: str, ranges: str) -> None:
    setting = setting_of(center_sampling_radius=radius, box_convention=convention, size_ranges=RANGES[ranges])
    annotations = random_annotations(seed=3)
    found, expected = cover(annotations, setting), slow_cover(annotations, setting)
    assert found.fates.tolist() == expected.fates
    assert found.positives.tolist() == expected.positives
    assert found.ambiguous.tolist() == expected.ambiguous
    assert found.ambiguous_classes.tolist() == expected.ambiguous_classes
    assert radius == 0.4 or ranges == "gap" or sum(expected.ambiguous_classes) > 0


def test_random_annotations_produce_every_fate() -> None:
    settings = [
        setting_of(center_sampling_radius=0.4, box_convention="inclusive", size_ranges=RANGES["gap"]),
        setting_of(size_ranges=RANGES["gap"]),
    ]
    met = {fate for setting in settings for seed in (3, 4) for fate in cover(random_annotations(seed), setting).fates}
    assert met == set(FATES)


# ----------------------------------------------------------------------------------------------------------- properties


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("convention", ["continuous", "inclusive"])
def test_counts_by_fate_and_size_sum_to_all_boxes(seed: int, convention: str) -> None:
    annotations = random_annotations(seed)
    found = cover(annotations, setting_of(box_convention=convention))
    total = int((~annotations.crowd).sum())
    assert len(found.boxes) == total
    assert sum(int((found.fates == fate).sum()) for fate in FATES) == total
    assert sum(boxes for boxes, _ in found.by_size().values()) == total
    learned = int((found.fates == LEARNED).sum())
    assert sum(learned for _, learned in found.by_size().values()) == learned
    assert found.recall == learned / total
    assert (found.learned_on.any(axis=1) == (found.fates == LEARNED)).all()
    assert (found.ambiguous <= found.positives).all()
    assert (found.ambiguous_classes <= found.ambiguous).all()


def test_recall_only_gives_the_same_recall() -> None:
    annotations = random_annotations(seed=1)
    setting = setting_of(center_sampling_radius=1.5)
    assert cover(annotations, setting, recall_only=True).recall == cover(annotations, setting).recall


def test_subset_of_images_gives_the_same_fates() -> None:
    annotations = random_annotations(seed=2)
    whole, part = cover(annotations, setting_of()), cover(annotations, setting_of(), images=np.array([1, 3]))
    assert part.images == 2
    chosen = np.isin(whole.boxes, part.boxes)
    assert (whole.fates[chosen] == part.fates).all()
    first, last = annotations.span(1), annotations.span(3)
    expected = [*range(first.start, first.stop), *range(last.start, last.stop)]
    assert part.boxes.tolist() == [i for i in expected if not annotations.crowd[i]]


@pytest.mark.parametrize("radius", [0.0, 1.5])
@pytest.mark.parametrize("location", ["center", "corner"])
@pytest.mark.parametrize("convention", ["continuous", "inclusive"])
@pytest.mark.parametrize("num_boxes", [0, 1, 40, 3000])
def test_matches_are_those_of_the_target_assignment(
    radius: float, location: Any, convention: Any, num_boxes: int
) -> None:
    """3000 boxes have more pairs than are computed at once."""
    assigner = Assigner((4, 8, 16), ((-1, 30), (20, 60), (61, None)), radius, location, convention)
    points = assigner.locations(assigner.maps((100, 132)))
    images = [random_objects(num_boxes, seed=num_boxes), random_objects(20, seed=1), random_objects(0, seed=0)]
    assigned, has_match, several, classes = dense_matches(points, images, assigner)
    assert torch.equal(assigned, assign_targets(points, images, assigner).boxes)
    examined = range(min(num_boxes, 40))
    alone = [assign_targets(points, [images[0][i : i + 1]], assigner).boxes[0] >= 0 for i in examined]
    assert [bool(mask.any()) for mask in alone] == has_match[0][: len(examined)].tolist()
    if num_boxes == len(examined) > 1:
        is_match = torch.stack(alone)  # [M, R]
        assert torch.equal(several[0], is_match.sum(dim=0) > 1)
        per_class = torch.stack([is_match[images[0].labels == label].any(dim=0) for label in range(3)])
        assert torch.equal(classes[0], per_class.sum(dim=0) > 1)


def random_objects(num_boxes: int, *, seed: int) -> Objects:
    generator = torch.Generator().manual_seed(seed)
    corners = (torch.rand(num_boxes, 4, generator=generator) * 128).round(decimals=1)
    corners[::3] = corners[::3].round()  # edges on locations, and equal areas
    boxes = torch.cat(
        [torch.minimum(corners[:, :2], corners[:, 2:]), torch.maximum(corners[:, :2], corners[:, 2:]) + 1], 1
    )
    labels = torch.randint(3, (num_boxes,), generator=generator)
    return Objects(boxes, labels, torch.rand(num_boxes, generator=generator) < 0.1)


def dense_matches(
    points: list[Tensor], images: list[Objects], assigner: Assigner
) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
    """Return the result of `match` for all locations: assigned [N, R], has_match [M] each, several and classes."""
    positions = [torch.nonzero(~objects.is_crowd).squeeze(1) for objects in images]
    kept = [objects[rows] for objects, rows in zip(images, positions, strict=True)]
    numbers = np.repeat(np.arange(len(images)), [len(objects) for objects in kept])
    boxes = Boxes(
        torch.cat([objects.boxes for objects in kept]).numpy(),
        torch.cat([objects.labels for objects in kept]).numpy(),
        numbers,
    )
    position_of = torch.cat(positions)
    shape = (len(images), sum(map(len, points)))
    assigned = torch.full(shape, -1)
    several, classes = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    has_match = [torch.zeros(len(objects), dtype=torch.bool) for objects in images]
    starts = np.cumsum([0, *map(len, points)])
    for found in match(points, boxes, assigner):
        image, location = np.divmod(found.location, len(points[found.level]))
        where = (torch.from_numpy(image), torch.from_numpy(location + starts[found.level]))
        assert (assigned[where] == -1).all()  # every location is yielded once
        assigned[where] = position_of[found.box]
        several[where], classes[where] = torch.from_numpy(found.several), torch.from_numpy(found.classes)
        for box in np.unique(found.matched).tolist():
            has_match[numbers[box]][position_of[box]] = True
    return assigned, has_match, several, classes


def test_coverage_of_many_boxes_is_that_of_single_images() -> None:
    """More boxes than are computed at once, in images with and without boxes."""
    generator = np.random.default_rng(0)
    boxes = [
        [
            (x, y, x + 1 + 20 * w, y + 1 + 20 * h, float(i % 3))
            for i, (x, y, w, h) in enumerate(generator.random((m, 4)))
        ]
        for m in (700, 0, 3, 900, 5, 0)
    ]
    annotations = annotations_of(boxes, [(64, 80)] * len(boxes))
    whole = cover(annotations, setting_of(center_sampling_radius=0.4))
    parts = [
        cover(annotations, setting_of(center_sampling_radius=0.4), images=np.array([i])) for i in range(len(boxes))
    ]
    for name in ("boxes", "labels", "fates", "extents", "learned_on"):
        assert np.array_equal(getattr(whole, name), np.concatenate([getattr(part, name) for part in parts])), name
    for name in ("positives", "ambiguous", "ambiguous_classes"):
        assert np.array_equal(getattr(whole, name), sum(getattr(part, name) for part in parts)), name


def test_padding_does_not_change_the_coverage() -> None:
    annotations = random_annotations(seed=3)
    whole = cover(annotations, setting_of())
    part = cover(annotations, setting_of(size_divisor=2560))
    assert (part.fates == whole.fates).all()
    assert part.ambiguous_classes.tolist() == whole.ambiguous_classes.tolist()


def test_progress_counts_all_images() -> None:
    told: list[tuple[int, int]] = []
    cover(random_annotations(seed=0), setting_of(), progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 4), (3, 4), (4, 4)]  # two images have the same padded size


# ----------------------------------------------------------------------------------------------- edge cases of the data


def one_box(*box: float, **options: object) -> Coverage:
    setting = setting_of(short_side=64, max_side=64, **options)
    return cover(annotations_of([[(*box, 0)]], [(64, 64)]), setting)


def test_one_pixel_box_between_locations_is_not_learned() -> None:
    assert FATES[int(one_box(3, 3, 4, 4).fates[0])].startswith("they lie between")
    assert one_box(5.5, 5.5, 6.5, 6.5).recall == 1


def test_box_above_all_size_ranges_has_no_level() -> None:
    assert one_box(0, 0, 64, 64, size_ranges=((-1, 8), (8, 16), (16, 30))).fates.tolist() == [NO_LEVEL]
    assert one_box(0, 0, 64, 64).fates.tolist() == [LEARNED]


def test_expected_level_depends_on_half_the_longer_side() -> None:
    assert one_box(0, 0, 30, 10).expected_level.tolist() == [1]
    assert one_box(0, 0, 33, 10).expected_level.tolist() == [2]
    assert one_box(0, 0, 31, 10, box_convention="inclusive").expected_level.tolist() == [1]
    assert one_box(0, 0, 12, 12, size_ranges=((-1, 5), (8, 16), (16, None))).expected_level.tolist() == [-1]


def test_recall_without_boxes_is_nan() -> None:
    found = cover(annotations_of([[], []], [(64, 64), (32, 40)]), setting_of())
    assert math.isnan(found.recall)
    assert [level[1:] for level in found.by_level()] == [(0, 0, 0, 0, 0)] * 3
    assert found.by_size() == {"small": (0, 0), "medium": (0, 0), "large": (0, 0)}


def test_coverage_respects_corner_locations() -> None:
    box = (7.5, 7.5, 8.5, 8.5)
    assert one_box(*box, location="corner").recall == 1
    assert one_box(*box).recall == 0


# -------------------------------------------------------------------------------------------------------------- setting


def setting_for(config: Config) -> Setting:
    return Setting.of(fcos_section(config), config.data)


@pytest.mark.parametrize(
    ("sides", "middle"),
    [
        ({"short_side": [640, 672, 704, 736]}, 672),
        ({"short_side_range": (640, 800)}, 720),
        ({"short_side": [600]}, 600),
    ],
)
def test_setting_uses_the_middle_training_size(sides: dict[str, Any], middle: int) -> None:
    setting = setting_for(Config.model_validate({"data": {**sides, "max_side": 1000}}))
    assert setting.middle_side == middle
    assert setting.resized(100, 200) == ((500, 1000) if middle > 500 else (middle, 2 * middle))


def test_setting_lists_only_effective_options() -> None:
    config = Config.model_validate(
        {"data": {"short_side": [300], "short_side_range": (640, 800), "test_max_side": 900}}
    )
    assert setting_for(config).options == [
        "data.short_side_range=[640,800]",
        "data.max_side=1333",
        "data.test_max_side=900",
        "model.strides=[8,16,32,64,128]",
        "model.size_ranges=[[-1,64],[64,128],[128,256],[256,512],[512,null]]",
        "model.center_sampling_radius=0",
        "model.location=center",
        "model.box_convention=continuous",
        "data.size_divisor=32",
    ]


@pytest.mark.parametrize("scale", [1.0, 1.5])
@pytest.mark.parametrize("recipe", [name for name in recipe_names() if name.startswith("fcos_")])
def test_options_of_an_enlarged_setting_reproduce_it(recipe: str, scale: float) -> None:
    before = load_config(recipe)
    setting = setting_for(before).enlarged(scale, longest=4 / 3)
    after = load_config(recipe, setting.options)
    assert setting_for(after) == setting
    for side in ("largest_short_side", "detection_short_side", "detection_max_side"):
        old, new = (getattr(config.data, side) for config in (before, after))
        assert scale * old <= new < scale * old + 32 or (side == "detection_max_side" and new == old), side


def test_enlarging_keeps_max_side_if_it_still_fits() -> None:
    setting = setting_of(short_side=100, max_side=201, test_short_side=140, test_max_side=300)
    larger = setting.enlarged(1.2, longest=1.5)
    assert (larger.short_sides, larger.max_side, larger.test_short_side, larger.test_max_side) == (
        (128,),
        256,
        192,
        300,
    )
