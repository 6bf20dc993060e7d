"""Path of predictions through post-processing, against the functions that detection uses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fcos.boxes import clip, iou
from fcos.explanation.trace import Stage, Trace, trace_predictions
from fcos.models.candidates import candidates, decode
from fcos.models.points import locations
from fcos.models.postprocess import FCOSPostprocess, suppress

SIZE = (60, 90)  # of the image; the maps cover 64 x 96 pixels
STRIDES = (8, 16)
OPTIONS: list[dict[str, Any]] = [
    {},
    {"pre_nms_top_k": 5},
    {"max_detections": 3},
    {"max_detections": 0},
    {"nms_threshold": 0.0},
    {"box_convention": "inclusive", "max_detections": 4},
    {"clip_after_nms": True},
    {"keep_empty_boxes": True},
    {"detect_in_padding": True},
    {"score": "product"},
    {"threshold_on": "score", "top_k_on": "class", "pre_nms_top_k": 7},
    {"score_threshold": 0.999},
]


Maps = tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]


def random_maps() -> Maps:
    """Return logits of two classes, distances, centerness and points of two levels; some scores are equal."""
    shapes = [(64 // stride, 96 // stride) for stride in STRIDES]
    logits = [(torch.randn(2, *shape) * 4).round() / 2 for shape in shapes]
    ltrb = [torch.rand(4, *shape) * 3 * stride for shape, stride in zip(shapes, STRIDES, strict=True)]
    centerness = [torch.zeros(1, *shape) for shape in shapes]
    return logits, ltrb, centerness, [locations(shape, stride) for shape, stride in zip(shapes, STRIDES, strict=True)]


def trace(maps: Maps, options: FCOSPostprocess) -> Trace:
    return trace_predictions(*maps, SIZE, options=options)


@pytest.mark.parametrize("chosen", OPTIONS, ids=str)
def test_traced_detections_are_those_of_detection(chosen: dict[str, Any]) -> None:
    maps, options = random_maps(), FCOSPostprocess(**chosen)
    logits, ltrb, centerness, points = maps
    logits, ltrb, centerness = ([level[None] for level in levels] for levels in (logits, ltrb, centerness))
    expected = suppress(candidates(logits, ltrb, centerness, points, [SIZE], options=options)[0], options)
    traced = trace(maps, options)
    found = traced.detections
    assert torch.equal(traced.boxes[found], expected.boxes)
    assert torch.equal(traced.scores[found], expected.scores)
    assert torch.equal(traced.labels[found], expected.labels)
    assert sorted(found.tolist()) == torch.nonzero(traced.stages == Stage.DETECTED).squeeze(1).tolist()


def test_every_prediction_has_its_location_and_class() -> None:
    logits, ltrb, centerness, points = maps = random_maps()
    traced = trace(maps, FCOSPostprocess(keep_empty_boxes=True))
    flat = [torch.cat([level.flatten(1).T for level in levels]) for levels in (logits, ltrb, centerness)]
    boxes = clip(decode(torch.cat(points), flat[1])[traced.locations], SIZE)
    assert torch.equal(traced.boxes, boxes)
    probability = flat[0][traced.locations, traced.labels].sigmoid()
    torch.testing.assert_close(traced.scores, (probability * flat[2][traced.locations, 0].sigmoid()).sqrt())
    assert (probability > 0.05).all()


def test_stages_count_what_every_option_drops() -> None:
    maps = random_maps()
    options = FCOSPostprocess(pre_nms_top_k=20, max_detections=6)
    traced = trace(maps, options)
    unlimited = trace(maps, replace(options, pre_nms_top_k=1000))
    assert len(traced.scores) == len(unlimited.scores)
    counts = {stage: int((traced.stages == stage).sum()) for stage in Stage}
    assert counts[Stage.TOP_K] == len(traced.scores) - 2 * 20  # two levels
    assert counts[Stage.DETECTED] == 6
    assert counts[Stage.NMS] > 0
    assert counts[Stage.LIMIT] > 0
    assert not (unlimited.stages == Stage.TOP_K).any()


def test_suppressor_is_the_best_kept_box_of_the_class_that_overlaps_too_much() -> None:
    traced = trace(random_maps(), FCOSPostprocess(max_detections=5))
    suppressed = torch.nonzero(traced.stages == Stage.NMS).squeeze(1).tolist()
    kept = torch.nonzero(traced.stages >= Stage.LIMIT).squeeze(1)
    overlaps = iou(traced.boxes, traced.boxes)
    assert len(suppressed) > 10
    for i in suppressed:
        rivals = [
            j
            for j in kept.tolist()
            if traced.labels[j] == traced.labels[i] and overlaps[i, j] > 0.6 and traced.scores[j] >= traced.scores[i]
        ]
        assert traced.scores[traced.suppressors[i]] == max(traced.scores[j] for j in rivals)
        assert traced.overlaps[i] == overlaps[i, traced.suppressors[i]]
    others = traced.stages != Stage.NMS
    assert (traced.suppressors[others] == -1).all()


def test_image_without_candidates_has_an_empty_trace() -> None:
    logits, ltrb, centerness, points = random_maps()
    nothing = [torch.full_like(level, -20.0) for level in logits]
    traced = trace((nothing, ltrb, centerness, points), FCOSPostprocess())
    assert len(traced.scores) == len(traced.detections) == 0
