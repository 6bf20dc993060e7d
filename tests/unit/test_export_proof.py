"""Comparison of the detections of an exported file with those of PyTorch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from exports import small_detector

from fcos import Detector, ExportError, Instances
from fcos.export.graph import DetectionGraph
from fcos.export.metadata import FixedSizes
from fcos.export.proof import MIN_DETECTIONS, compare, proof_images, prove


def instances(*rows: tuple[list[float], float, int]) -> Instances:
    boxes = torch.tensor([row[0] for row in rows]).reshape(-1, 4)
    labels = torch.tensor([row[2] for row in rows], dtype=torch.int64)
    return Instances(boxes, labels, torch.tensor([row[1] for row in rows]), (100, 100))


A, B, C = ([0.0, 0.0, 10.0, 10.0], 0.9, 0), ([20.0, 20.0, 40.0, 40.0], 0.8, 1), ([50.0, 50.0, 90.0, 90.0], 0.7, 0)


def test_detections_are_matched_by_overlap_and_label_not_by_order() -> None:
    assert compare(instances(A, B, C), instances(C, A, B), limit=0) == (0.0, 0.0, 0)


def test_differences_of_boxes_and_scores_are_the_largest_of_matched_detections() -> None:
    moved = ([20.0, 20.0, 40.0, 40.5], 0.75, 1)
    box, score, unmatched = compare(instances(A, B, C), instances(A, moved, C), limit=0)
    assert (box, unmatched) == (0.5, 0)
    assert score == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("found", "unmatched"),
    [((A, B), 1), ((A, B, C, ([0.0, 50.0, 10.0, 60.0], 0.5, 0)), 1), ((A, B, (C[0], C[1], 1)), 2), ((), 3)],
    ids=["missing", "additional", "other label", "none"],
)
def test_detections_without_counterpart_are_counted(found: tuple, unmatched: int) -> None:
    assert compare(instances(A, B, C), instances(*found), limit=0)[2] == unmatched


def test_only_detections_that_tie_with_the_last_one_may_differ_at_the_limit() -> None:
    other = ([60.0, 0.0, 90.0, 20.0], 0.70001, 1)
    assert compare(instances(A, B, C), instances(A, B, other), limit=3)[2] == 0
    assert compare(instances(A, B, C), instances(A, B, other), limit=0)[2] == 2
    assert compare(instances(A, B, C), instances(A, C, other), limit=3)[2] == 1  # B


def test_equal_boxes_are_matched_by_score() -> None:
    duplicate = (A[0], 0.3, 0)
    assert compare(instances(A, duplicate), instances(duplicate, A), limit=0) == (0.0, 0.0, 0)


def test_boxes_without_area_are_matched() -> None:
    empty = ([5.0, 5.0, 5.0, 9.0], 0.5, 0)
    assert compare(instances(empty), instances(empty), limit=0) == (0.0, 0.0, 0)


class Changed:
    """Runtime in PyTorch whose detections can be changed."""

    def __init__(self, detector: Detector, scale: float):
        self.graph, self.scale, self.metadata = DetectionGraph(detector.model), scale, {}

    @torch.inference_mode()
    def __call__(
        self, images: torch.Tensor, sizes: torch.Tensor, score_threshold: float | None = None
    ) -> tuple[torch.Tensor, ...]:
        threshold = None if score_threshold is None else torch.tensor(score_threshold)
        boxes, *others = self.graph(images, sizes, threshold)
        return (boxes * self.scale, *others)


def test_proof_compares_single_images_and_batches_and_images_without_detections() -> None:
    detector = small_detector(score_threshold=0.999)
    images = proof_images(FixedSizes())
    proof = prove(detector.model, Changed(detector, 1.0), images=images, fixed=FixedSizes(), divisor=16, nms=True)
    assert proof.passed
    assert (proof.images, proof.without_detections) == (4 + 2 * 3 + 3, 3)
    assert proof.detections >= 10 * MIN_DETECTIONS
    assert proof.score_threshold is not None
    assert proof.score_threshold < 0.999  # lowered
    assert proof.largest_box_difference == proof.largest_score_difference == 0.0
    assert any(side % 2 for image in images for side in image.shape[1:])


def test_proof_fails_if_boxes_differ_by_more_than_the_tolerance() -> None:
    detector = small_detector()
    images = proof_images(FixedSizes())[:2]
    proof = prove(detector.model, Changed(detector, 1.001), images=images, fixed=FixedSizes(), divisor=16, nms=True)
    assert not proof.passed
    assert 0.01 < proof.largest_box_difference < 1.0
    assert "limit 0.01" in proof.summary()


def test_proof_is_not_possible_if_an_image_has_too_few_detections() -> None:
    detector = small_detector(pre_nms_top_k=5)
    with pytest.raises(ExportError, match=r"finds \d+ objects in an image, and at least 20 are needed"):
        prove(
            detector.model,
            Changed(detector, 1.0),
            images=proof_images(FixedSizes()),
            fixed=FixedSizes(),
            divisor=16,
            nms=True,
        )


def test_proof_does_not_change_the_detector() -> None:
    detector = small_detector()
    options = detector.model.postprocess
    assert options is not None
    before = replace(options)
    prove(
        detector.model,
        Changed(detector, 1.0),
        images=proof_images(FixedSizes())[:1],
        fixed=FixedSizes(batch=1),
        divisor=16,
        nms=True,
    )
    assert detector.model.postprocess == before
