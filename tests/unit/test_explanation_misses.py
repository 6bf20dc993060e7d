"""Reasons why objects were missed: one constructed case for each, through the real post-processing and assignment."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from exports import small_detector
from PIL import Image

from fcos import Detector
from fcos.explanation.assignment import find_obstacles
from fcos.explanation.explain import Explanation, explain_image
from fcos.models.fcos import FCOSOutputs
from fcos.models.points import Assigner, locations
from fcos.structures import Objects

NAMES = ("cat", "dog", "owl")
CAT, DOG = 0, 1
STRIDES = (8, 16)
SIDE = 64
FIRST, SECOND = (8, 8, 40, 40), (12, 8, 44, 40)  # their IoU is 0.78
APART = (8, 40, 40, 60)


class Prediction(NamedTuple):
    """Prediction of the location of stride 8 that is at (x, y); all other scores are 0."""

    x: int
    y: int
    box: Sequence[float]
    probabilities: dict[int, float]


@pytest.fixture(scope="module")
def detector() -> Detector:
    """Detector of images of 64 x 64 pixels, which it does not resize, with thresholds of 0.5."""
    return small_detector(data={"short_side": SIDE, "max_side": SIDE})


def explain(
    detector: Detector,
    objects: Sequence[tuple[Sequence[float], int]],
    predictions: Sequence[Prediction],
    *,
    threshold: float = 0.5,
    is_crowd: Sequence[bool] | None = None,
    **options: Any,
) -> Explanation:
    """Explain an image for which the head makes these predictions; `options` are those of detection."""
    outputs = FCOSOutputs([], [], [])
    for stride in STRIDES:
        side = SIDE // stride
        outputs.logits.append(torch.full((1, len(NAMES), side, side), -30.0))
        outputs.ltrb.append(torch.ones(1, 4, side, side))
        outputs.centerness.append(torch.full((1, 1, side, side), 30.0))
    for x, y, (x1, y1, x2, y2), probabilities in predictions:
        row, column = y // 8, x // 8
        assert (x, y) == (8 * column + 4, 8 * row + 4)
        outputs.ltrb[0][0, :, row, column] = torch.tensor([x - x1, y - y1, x2 - x, y2 - y])
        for label, probability in probabilities.items():
            outputs.logits[0][0, label, row, column] = torch.tensor(probability).logit()
    model = copy.copy(detector.model)
    assert model.postprocess is not None
    model.postprocess = replace(model.postprocess, **options)
    vars(model)["forward"] = lambda *_: outputs
    return explain_image(
        model,
        detector.config,
        Image.new("RGB", (SIDE, SIDE)),
        thresholds=torch.full((len(NAMES),), threshold, dtype=torch.float64),
        class_names=NAMES,
        objects=Objects(
            torch.tensor([box for box, _ in objects], dtype=torch.float32),
            torch.tensor([label for _, label in objects]),
            None if is_crowd is None else torch.tensor(is_crowd),  # pyright: ignore[reportArgumentType]
        ),
    )


EXACT = Prediction(20, 20, FIRST, {CAT: 0.9})
CASES: dict[str, tuple[list[tuple[Sequence[float], int]], list[Prediction], dict[str, Any], list[str]]] = {
    "low score": (
        [(FIRST, CAT)],
        [Prediction(20, 20, FIRST, {CAT: 0.16})],
        {},
        ["the best score for its class is 0.400, too low for threshold 0.500 (stride 8, IoU of the box 1.00)"],
    ),
    "suppressed": (
        [(FIRST, CAT), (SECOND, CAT)],
        [EXACT, Prediction(28, 20, SECOND, {CAT: 0.64})],
        {},
        ["with score 0.80", "suppressed by cat 0.95, the detection of another object: their IoU 0.78 exceeds nms"],
    ),
    "limit of detections": (
        [(FIRST, CAT), (APART, DOG)],
        [EXACT, Prediction(20, 52, APART, {DOG: 0.64})],
        {"max_detections": 1},
        ["with score 0.80", "not among the max_detections=1 best of the image"],
    ),
    "limit of candidates": (
        [(FIRST, CAT), (APART, DOG)],
        [EXACT, Prediction(20, 52, APART, {DOG: 0.64})],
        {"pre_nms_top_k": 1},
        ["with score 0.80", "not among the pre_nms_top_k=1 best of its level"],
    ),
    "matched to another object": (
        [(FIRST, CAT), (SECOND, CAT)],
        [EXACT],
        {},
        ["the only box of its class that fits is the detection of another object, cat 0.95"],
    ),
    "no location": (
        [(FIRST, CAT), ((45, 45, 51, 51), CAT)],
        [EXACT],
        {},
        ["it lies between the locations of its level, which are 8 pixels apart (6x6 pixels"],
    ),
    "wrong class": (
        [(FIRST, CAT)],
        [Prediction(20, 20, FIRST, {DOG: 0.9, CAT: 0.09})],
        {},
        ["detected as dog 0.95 (IoU 1.00); its own class scores 0.30 there"],
    ),
    "poor localization": (
        [(FIRST, CAT)],
        [Prediction(20, 20, (8, 8, 40, 20), {CAT: 0.9})],
        {},
        ["the best box of its class, with score 0.95, has IoU 0.38; a match needs 0.5"],
    ),
}


@pytest.mark.parametrize("reason", CASES)
def test_missed_object_gets_the_reason_with_its_figures(detector: Detector, reason: str) -> None:
    objects, predictions, options, texts = CASES[reason]
    explanation = explain(detector, objects, predictions, **options)
    (miss,) = explanation.misses
    assert (miss.reason, miss.index) == (reason, len(objects) - 1)
    assert all(text in miss.text for text in texts)
    if reason in ("suppressed", "matched to another object"):
        assert miss.other == explanation.trace.detections[0]
    if reason != "no location":
        x, y = explanation.points[miss.location].tolist()
        assert (x, y) == (predictions[-1].x, predictions[-1].y)
        assert miss.box == pytest.approx(predictions[-1].box)


def test_detected_objects_and_crowds_are_not_missed(detector: Detector) -> None:
    explanation = explain(detector, [(FIRST, CAT), (APART, DOG)], [EXACT], is_crowd=[False, True])
    assert explanation.misses == []
    assert explanation.detection_of == [0, -1]


def test_object_whose_detection_is_below_the_threshold_is_missed(detector: Detector) -> None:
    explanation = explain(detector, [(FIRST, CAT)], [EXACT], threshold=0.97)
    assert explanation.detection_of == [0]
    assert len(explanation.detections) == 0
    assert explanation.misses[0].reason == "low score"
    assert "0.949, too low for threshold 0.970" in explanation.misses[0].text


def test_low_score_names_the_threshold_of_candidates_if_it_is_the_reason(detector: Detector) -> None:
    weak = Prediction(20, 20, FIRST, {CAT: 0.04})  # a score of 0.2, but `score_threshold` applies to the probability
    (miss,) = explain(detector, [(FIRST, CAT)], [weak], threshold=0.1).misses
    assert "0.200, too low for score_threshold=0.05" in miss.text


def test_suppressed_box_below_the_threshold_is_not_the_reason(detector: Detector) -> None:
    weak = Prediction(28, 20, SECOND, {CAT: 0.16})
    (miss,) = explain(detector, [(FIRST, CAT), (SECOND, CAT)], [EXACT, weak]).misses
    assert miss.reason == "matched to another object"


def test_detection_of_another_object_does_not_explain_a_wrong_class(detector: Detector) -> None:
    shared = Prediction(20, 20, FIRST, {DOG: 0.9, CAT: 0.01})
    (miss,) = explain(detector, [(FIRST, DOG), ((12, 8, 52, 40), CAT)], [shared]).misses
    assert (miss.index, miss.reason) == (1, "low score")


ASSIGNER = Assigner(strides=STRIDES, size_ranges=((-1, 16), (16, 24)))
OBSTACLES: list[tuple[list[Sequence[float]], float, str]] = [
    ([(8, 8, 24, 24)], 0.0, ""),
    ([(8, 8, 16, 16), (7, 7, 17, 17)], 0.0, "other objects, which are not larger, take its only location"),
    ([(2, 2, 16, 6)], 0.3, "no location inside it is within the center sampling radius, 0.3 strides around its centre"),
    ([(2, 2, 16, 6)], 0.0, ""),
    ([(0, 0, 64, 60)], 0.0, "the size range of no level contains it (64x60 pixels in the resized image)"),
    ([(5, 5, 11, 11)], 0.0, "it lies between the locations of its level, which are 8 pixels apart (6x6 pixels"),
]


@pytest.mark.parametrize(("boxes", "radius", "obstacle"), OBSTACLES)
def test_object_without_a_location_is_explained(boxes: list[Sequence[float]], radius: float, obstacle: str) -> None:
    objects = Objects(torch.tensor(boxes, dtype=torch.float32), torch.zeros(len(boxes), dtype=torch.int64))
    points = [locations((SIDE // stride, SIDE // stride), stride) for stride in STRIDES]
    found = find_obstacles(points, objects, replace(ASSIGNER, center_sampling_radius=radius))
    assert found[:-1] == [""] * (len(boxes) - 1)
    assert found[-1].startswith(obstacle) if obstacle else not found[-1]


def test_object_that_the_inclusive_convention_drops_is_explained() -> None:
    inclusive = small_detector(data={"short_side": SIDE, "max_side": SIDE}, box_convention="inclusive")
    misses = explain(inclusive, [((20, 20, 21, 40), CAT), (FIRST, CAT)], [], threshold=0.5).misses
    assert [miss.reason for miss in misses] == ["no location", "low score"]
    assert "a pixel or less, which the inclusive convention drops" in misses[0].text
