"""From network outputs to detections, against plain loops; thresholds, limits, padding, empty results."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from fcos.boxes import clip
from fcos.choices import BoxConvention, RankedBy, Score
from fcos.models.anchors import AnchorGrid, BoxCoder, flatten_anchors
from fcos.models.candidates import anchor_candidates, candidates, decode, select_candidates
from fcos.models.points import locations
from fcos.models.postprocess import FCOSPostprocess, Postprocess, suppress
from fcos.structures import Instances

STRIDES = [8, 16, 32]
CONVENTIONS: list[BoxConvention] = ["continuous", "inclusive"]


class Outputs(NamedTuple):
    logits: list[Tensor]
    ltrb: list[Tensor]
    centerness: list[Tensor]

    def detect(self, *sizes: tuple[int, int], **chosen: Any) -> list[Instances]:
        """Return detections with the given options of `FCOSPostprocess`."""
        points = [locations((x.shape[2], x.shape[3]), stride) for x, stride in zip(self.logits, STRIDES, strict=False)]
        options = FCOSPostprocess(**chosen)
        return [suppress(found, options) for found in candidates(*self, points, sizes, options=options)]

    def image(self, index: int) -> Outputs:
        return Outputs(*([level[index : index + 1] for level in levels] for levels in self))


def random_outputs(
    images: int = 1, classes: int = 3, size: tuple[int, int] = (64, 96), *, bias: float = -1.0
) -> Outputs:
    outputs = Outputs([], [], [])
    for stride in STRIDES:
        shape = (math.ceil(size[0] / stride), math.ceil(size[1] / stride))
        outputs.logits.append(torch.randn(images, classes, *shape) * 2 + bias)
        outputs.ltrb.append(torch.rand(images, 4, *shape) * 3 * stride)
        outputs.centerness.append(torch.randn(images, 1, *shape))
    return outputs


def flat_outputs(*logits: list[float], ltrb: float = 4.0) -> Outputs:
    """Return one level with a row of locations at x = 4, 12, ..., their class logits, and 8-pixel boxes around them."""
    level = torch.tensor(logits)[None, :, None, :]
    width = level.shape[-1]
    return Outputs([level], [torch.full((1, 4, 1, width), ltrb)], [torch.full((1, 1, 1, width), 40.0)])


def overlap(a: list[float], b: list[float], extra: float) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0]) + extra
    height = min(a[3], b[3]) - max(a[1], b[1]) + extra
    inter = max(width, 0) * max(height, 0)
    sizes = [(box[2] - box[0] + extra) * (box[3] - box[1] + extra) for box in (a, b)]
    return inter / (sum(sizes) - inter)


def slow_detections(
    outputs: Outputs, size: tuple[int, int], *, threshold: float, top_k: int, nms: float, limit: int, inclusive: bool
) -> list[tuple[float, int, list[float]]]:
    """Compute (score, label, box) of one image with loops over locations and classes."""
    extra = 1.0 if inclusive else 0.0
    height, width = size
    found = []
    for logits, ltrb, centerness, stride in zip(*outputs, STRIDES, strict=True):
        level = []
        classes, sides, centers = logits[0].sigmoid().tolist(), ltrb[0].tolist(), centerness[0, 0].sigmoid().tolist()
        for row in range(logits.shape[2]):
            for column in range(logits.shape[3]):
                x, y = (column + 0.5) * stride, (row + 0.5) * stride
                if not inclusive and (x >= width or y >= height):
                    continue
                left, top, right, bottom = (side[row][column] for side in sides)
                box = [
                    min(max(corner, 0.0), side - extra)
                    for corner, side in zip(
                        (x - left, y - top, x + right, y + bottom), (width, height) * 2, strict=True
                    )
                ]
                for label, probabilities in enumerate(classes):
                    if probabilities[row][column] > threshold:
                        level.append((probabilities[row][column] * centers[row][column], label, box))
        found += sorted(level, key=lambda candidate: -candidate[0])[:top_k]
    if not inclusive:
        found = [f for f in found if f[2][2] > f[2][0] and f[2][3] > f[2][1]]
    kept: list[tuple[float, int, list[float]]] = []
    for candidate in sorted(found, key=lambda f: -f[0]):
        if all(k[1] != candidate[1] or overlap(k[2], candidate[2], extra) <= nms for k in kept):
            kept.append(candidate)
    return [(math.sqrt(score), label, box) for score, label, box in kept[:limit]]


# ------------------------------------------------------------------------------------------- against the definition


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("classes", [1, 4])
@pytest.mark.parametrize(
    "options",
    [
        {"threshold": 0.05, "top_k": 1000, "nms": 0.6, "limit": 100},
        {"threshold": 0.3, "top_k": 1000, "nms": 0.5, "limit": 5},
        {"threshold": 0.05, "top_k": 7, "nms": 0.6, "limit": 100},
        {"threshold": 0.0, "top_k": 40, "nms": 0.2, "limit": 1000},
        {"threshold": 0.05, "top_k": 1000, "nms": 1.0, "limit": 20},
    ],
)
def test_detections_match_the_reference_loops(convention: BoxConvention, classes: int, options: dict) -> None:
    outputs, sizes = random_outputs(2, classes, (48, 64)), [(48, 64), (37, 41)]
    found = outputs.detect(
        *sizes,
        score_threshold=options["threshold"],
        pre_nms_top_k=options["top_k"],
        nms_threshold=options["nms"],
        max_detections=options["limit"],
        box_convention=convention,
    )
    for i, (instances, size) in enumerate(zip(found, sizes, strict=True)):
        expected = slow_detections(outputs.image(i), size, inclusive=convention == "inclusive", **options)
        assert len(instances) == len(expected) > 0
        torch.testing.assert_close(instances.scores, torch.tensor([e[0] for e in expected]))
        assert instances.labels.tolist() == [e[1] for e in expected]
        torch.testing.assert_close(instances.boxes, torch.tensor([e[2] for e in expected]), rtol=1e-5, atol=1e-4)


def test_batched_detections_match_single_image_detections() -> None:
    outputs, sizes = random_outputs(3), [(64, 96), (40, 50), (64, 20)]
    for i, instances in enumerate(outputs.detect(*sizes)):
        (alone,) = outputs.image(i).detect(sizes[i])
        assert torch.equal(instances.boxes, alone.boxes)
        assert torch.equal(instances.scores, alone.scores)


def test_decode_turns_ltrb_distances_into_boxes() -> None:
    assert decode(torch.tensor([[10.0, 20.0]]), torch.tensor([[1.0, 2.0, 3.0, 4.0]])).tolist() == [[9, 18, 13, 24]]


# -------------------------------------------------------------------------------------------------------- image frame


def test_continuous_convention_discards_detections_in_padding() -> None:
    outputs = flat_outputs([5.0, 5.0, 5.0, 5.0])
    (instances,) = outputs.detect((8, 20))  # x = 4 and 12 are inside, 20 and 28 in the padding
    assert instances.boxes.tolist() == [[0, 0, 8, 8], [8, 0, 16, 8]]
    (original,) = outputs.detect((8, 20), box_convention="inclusive")
    assert original.boxes[:, 2].max() == 19
    assert len(original) == 4


def test_detect_in_padding_keeps_detections_in_padding() -> None:
    (instances,) = flat_outputs([5.0, 5.0, 5.0, 5.0], ltrb=9.0).detect((8, 20), detect_in_padding=True, nms_threshold=0)
    assert sorted(instances.boxes[:, 0].tolist()) == [0, 3, 11, 19]


def test_detections_do_not_depend_on_padding() -> None:
    outputs = random_outputs(size=(64, 64))
    padded = Outputs(
        *(
            [torch.nn.functional.pad(level, (0, 3, 0, 2), value=9.0) for level in levels]
            for levels in outputs
        )
    )  # fmt: skip
    (alone,), (beside,) = outputs.detect((64, 64)), padded.detect((64, 64))
    assert torch.equal(alone.boxes, beside.boxes)
    assert torch.equal(alone.scores, beside.scores)


@pytest.mark.parametrize(("convention", "end"), [("continuous", [96, 64]), ("inclusive", [95, 63])])
def test_boxes_are_clipped_to_the_image(convention: BoxConvention, end: list[int]) -> None:
    outputs = random_outputs()
    huge = Outputs(outputs.logits, [torch.full_like(x, 1e30) for x in outputs.ltrb], outputs.centerness)
    (instances,) = huge.detect((64, 96), box_convention=convention)
    assert len(instances) == 3  # one per class
    assert instances.boxes.tolist() == [[0, 0, *end]] * 3
    assert instances.size == (64, 96)


def test_continuous_convention_drops_empty_boxes() -> None:
    outputs = flat_outputs([5.0, 5.0], ltrb=0.0)
    assert len(outputs.detect((8, 16))[0]) == 0
    (original,) = outputs.detect((8, 16), box_convention="inclusive")
    assert original.boxes.tolist() == [[4, 4, 4, 4], [12, 4, 12, 4]]


def test_keep_empty_boxes_keeps_zero_size_boxes() -> None:
    (instances,) = flat_outputs([5.0, 5.0], ltrb=0.0).detect((8, 16), keep_empty_boxes=True)
    assert instances.boxes.tolist() == [[4, 4, 4, 4], [12, 4, 12, 4]]


def test_clip_after_nms_computes_overlaps_of_unclipped_boxes() -> None:
    outputs = flat_outputs([2.0, 1.0])
    outputs.ltrb[0][0, :, 0, 0] = torch.tensor([2.0, 4.0, 100.0, 4.0])
    outputs.ltrb[0][0, :, 0, 1] = torch.tensor([9.0, 4.0, 4.0, 4.0])
    (instances,) = outputs.detect((8, 16))
    assert instances.boxes.tolist() == [[2, 0, 16, 8]]
    (instances,) = outputs.detect((8, 16), clip_after_nms=True)
    assert instances.boxes.tolist() == [[2, 0, 16, 8], [3, 0, 16, 8]]


@pytest.mark.parametrize(("keep_empty_boxes", "count"), [(False, 1), (True, 2)])
def test_boxes_emptied_by_clip_after_nms_are_not_replaced(keep_empty_boxes: bool, count: int) -> None:
    outputs = flat_outputs([3.0, 4.0, 2.0])  # the best one is in the padding
    (instances,) = outputs.detect(
        (8, 8), max_detections=2, detect_in_padding=True, clip_after_nms=True, keep_empty_boxes=keep_empty_boxes
    )
    assert len(instances) == count


# --------------------------------------------------------------------------------------------- threshold, top-k, limit


@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.5, 0.9])
def test_probability_equal_to_the_threshold_is_discarded(threshold: float) -> None:
    logit = torch.tensor(threshold).logit()
    for _ in range(100):  # search the logit whose float32 probability equals the threshold
        difference = logit.sigmoid() - torch.tensor(threshold)
        if difference == 0:
            break
        logit = torch.nextafter(logit, torch.tensor(-math.inf if difference > 0 else math.inf))
    assert logit.sigmoid() == torch.tensor(threshold)
    above = logit
    while above.sigmoid() == torch.tensor(threshold):
        above = above + 1e-6
    (instances,) = flat_outputs([logit.item(), above.item()]).detect((8, 16), score_threshold=threshold)
    assert instances.boxes.tolist() == [[8, 0, 16, 8]]


def test_threshold_applies_to_class_probability_without_centerness() -> None:
    outputs = flat_outputs([1.0])
    outputs.centerness[0].fill_(-6.0)
    (instances,) = outputs.detect((8, 8), score_threshold=0.7)
    assert instances.scores.item() == pytest.approx(math.sqrt(0.731059 * 0.002473), rel=1e-3)


def test_threshold_on_score_applies_to_the_final_score() -> None:
    outputs = flat_outputs([1.0, 1.0, -1.2])  # probabilities 0.73, 0.73, 0.23; centerness 1, 0.002, 1
    outputs.centerness[0][..., 1] = -6.0
    (instances,) = outputs.detect((8, 24), score_threshold=0.45, threshold_on="score")
    assert instances.boxes[:, 0].tolist() == [0, 16]
    assert instances.scores.tolist() == pytest.approx([math.sqrt(0.731059), math.sqrt(0.231475)], rel=1e-5)


@pytest.mark.parametrize(("top_k_on", "left"), [("score", 8), ("class", 0)])
def test_top_k_on_selects_candidates_by_score_or_class(top_k_on: str, left: int) -> None:
    outputs = flat_outputs([2.0, 1.0])
    outputs.centerness[0][..., 0] = -6.0
    (instances,) = outputs.detect((8, 16), pre_nms_top_k=1, top_k_on=top_k_on)
    assert instances.boxes.tolist() == [[left, 0, left + 8, 8]]


def test_product_score_is_probability_times_centerness() -> None:
    outputs = flat_outputs([1.0, -1.2])  # probabilities 0.73, 0.23
    outputs.centerness[0][..., 0] = 0.0
    (instances,) = outputs.detect((8, 16), score="product")
    assert instances.scores.tolist() == pytest.approx([0.731059 / 2, 0.231475], rel=1e-5)
    (instances,) = outputs.detect((8, 16), score="product", threshold_on="score", score_threshold=0.3)
    assert instances.boxes.tolist() == [[0, 0, 8, 8]]


def test_pre_nms_top_k_limits_candidates_per_level() -> None:
    (instances,) = random_outputs(bias=3).detect((64, 96), pre_nms_top_k=2, nms_threshold=0)
    assert len(instances) == 2 * len(STRIDES)


def test_one_location_can_yield_several_classes() -> None:
    (instances,) = flat_outputs([1.0], [-9.0], [2.0]).detect((8, 8))
    assert instances.labels.tolist() == [2, 0]
    assert instances.boxes.tolist() == [[0, 0, 8, 8]] * 2


def test_detections_are_sorted_by_descending_score() -> None:
    (instances,) = random_outputs().detect((64, 96))
    assert (instances.scores.diff() <= 0).all()


@pytest.mark.parametrize(("convention", "count"), [("continuous", 2), ("inclusive", 4)])
def test_only_inclusive_convention_keeps_ties_beyond_max_detections(convention: BoxConvention, count: int) -> None:
    outputs = flat_outputs([3.0, 1.0, 1.0, 1.0, 0.0])
    (instances,) = outputs.detect((8, 40), max_detections=2, box_convention=convention)
    assert len(instances) == count
    assert instances.scores[0] > instances.scores[1]


@pytest.mark.parametrize("limit", [0, -1])
def test_max_detections_below_one_keeps_all_detections(limit: int) -> None:
    (instances,) = flat_outputs([1.0] * 150).detect((8, 1200), max_detections=limit)
    assert len(instances) == 150


# ------------------------------------------------------------------------------------------------------ empty results


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("classes", [1, 4])
def test_no_candidates_yield_empty_instances_with_correct_dtypes(convention: BoxConvention, classes: int) -> None:
    found = random_outputs(2, classes, bias=-100).detect((64, 96), (50, 60), box_convention=convention)
    for instances, size in zip(found, [(64, 96), (50, 60)], strict=True):
        assert len(instances) == 0
        assert instances.boxes.shape == (0, 4)
        assert instances.scores.shape == instances.labels.shape == (0,)
        assert (instances.boxes.dtype, instances.scores.dtype) == (torch.float32, torch.float32)
        assert instances.labels.dtype == torch.int64
        assert instances.size == size


def test_level_without_candidates_does_not_prevent_detections() -> None:
    outputs = random_outputs()
    outputs.logits[1].fill_(-100)
    assert len(outputs.detect((64, 96))[0]) > 0


def test_empty_batch_yields_no_results() -> None:
    assert random_outputs(0).detect() == []


def test_nan_outputs_are_never_detected() -> None:
    outputs = random_outputs()
    for levels in outputs:
        levels[0][..., 0] = math.nan
    outputs.logits[0][..., 1] = 5.0  # good candidates without a defined centerness
    outputs.centerness[0][..., 1] = math.nan
    (instances,) = outputs.detect((64, 96), pre_nms_top_k=30)
    assert len(instances) > 0
    assert instances.boxes.isfinite().all()
    assert instances.scores.isfinite().all()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("score", ["sqrt", "product"])
@pytest.mark.parametrize("threshold_on", ["class", "score"])
@pytest.mark.parametrize("top_k_on", ["class", "score"])
@pytest.mark.parametrize("classes", [1, 5])
def test_candidates_are_the_best_of_all_classes_and_locations(
    memory_format: torch.memory_format, score: Score, threshold_on: RankedBy, top_k_on: RankedBy, classes: int
) -> None:
    """Locations that cannot reach the best are left out early, which must not change the result."""
    options = FCOSPostprocess(
        score=score, threshold_on=threshold_on, top_k_on=top_k_on, score_threshold=0.05, pre_nms_top_k=50
    )
    logits, ltrb, centerness = (torch.randn(1, channels, 20, 30) for channels in (classes, 4, 1))
    logits[0, -1, 3, 4] = torch.nan  # excludes this class, not the others of the location
    logits[0, 1:2, 3, 4] = 4.0
    logits, ltrb, centerness = (x.contiguous(memory_format=memory_format) for x in (logits, ltrb, centerness))
    points = locations((20, 30), 8)
    found = select_candidates(logits[0], ltrb[0], centerness[0], points, image_size=(160, 200), options=options)

    probability = logits.sigmoid().flatten(2)[0]  # [K, 600]
    product = probability * centerness.sigmoid().flatten()
    scores = product.sqrt() if score == "sqrt" else product
    is_valid = ((probability if threshold_on == "class" else scores) > 0.05) & (points[:, 0] < 200)
    rank = (probability if top_k_on == "class" else product).where(is_valid, -1.0).flatten()
    best = rank.topk(50).indices
    assert is_valid.sum(1).amin() > 50
    assert found.labels.tolist() == (best // 600).tolist()
    assert found.locations.tolist() == (best % 600).tolist()
    assert (3 * 30 + 4 in found.locations.tolist()) == (classes > 1)
    torch.testing.assert_close(found.scores, scores.flatten()[best])


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("classes", [1, 5])
@pytest.mark.parametrize("width", [200, 240])
@pytest.mark.parametrize("top_k", [50, 10_000])
def test_candidates_are_the_best_of_all_classes_and_anchors(
    memory_format: torch.memory_format, classes: int, width: int, top_k: int
) -> None:
    grid = AnchorGrid(strides=[8], sizes=[[16.0, 32.0]], ratios=[0.5, 1.0, 2.0])
    (anchors,), (points,) = grid.levels([(20, 30)]), grid.locations([(20, 30)])
    # In float32, some scores would be equal, whose order is undefined.
    logits, offsets = (torch.randn(1, 6 * count, 20, 30, dtype=torch.float64) for count in (classes, 4))
    logits[0, 0, 3, 4] = torch.nan
    logits, offsets = (x.contiguous(memory_format=memory_format) for x in (logits, offsets))
    options = Postprocess(score_threshold=0.3, pre_nms_top_k=top_k, keep_empty_boxes=True)
    (found,) = anchor_candidates(
        [logits], [offsets], [anchors], [points], [(160, width)], coder=BoxCoder(), options=options
    )

    scores = flatten_anchors(logits, 6)[0].sigmoid()  # [3600, K]
    is_valid = (scores > 0.3) & (points[:, 0] < width).repeat_interleave(6)[:, None]
    rank, best = scores.where(is_valid, -1.0).flatten().topk(min(top_k, int(is_valid.sum())))
    assert torch.equal(found.scores, rank)
    assert found.labels.tolist() == (best % classes).tolist()
    rows = best // classes
    boxes = BoxCoder().decode(flatten_anchors(offsets, 6)[0][rows], anchors[rows])
    assert torch.equal(found.boxes, clip(boxes, (160, width)))
