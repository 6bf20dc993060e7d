"""Proof of an exported file: what passes, and which faults are found."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from detectors import fcos_of
from exports import KEYPOINTS, MASKS, small_detector
from torch import Tensor

from fcos import Detector, ExportError
from fcos.export.graph import DetectionGraph, lower_precision
from fcos.export.metadata import FixedSizes
from fcos.export.proof import MIN_DETECTIONS, Prover, proof_batches, proof_images, vary
from fcos.models import DetectionModel


class Changed:
    """Runtime in PyTorch whose detector and outputs can be changed."""

    def __init__(self, model: DetectionModel, change: Callable[[dict[str, Tensor]], object] = dict):
        self.graph, self.change, self.metadata = DetectionGraph(model), change, {}

    @torch.inference_mode()
    def __call__(self, images: Tensor, sizes: Tensor, score_threshold: float | None = None) -> dict[str, Tensor]:
        outputs = self.graph(images, sizes, None if score_threshold is None else torch.tensor(score_threshold))
        self.change(outputs)
        return outputs


def prover_of(detector: Detector, *, num_images: int = 4, fixed: FixedSizes = FixedSizes()) -> Prover:  # noqa: B008
    images = proof_images(fixed)[:num_images]
    return Prover(detector.model, proof_batches(images, fixed, divisor=16))


def test_proof_compares_single_images_and_batches_and_images_without_detections() -> None:
    detector = small_detector(score_threshold=0.999)
    prover = prover_of(detector)
    proof = prover.prove(Changed(detector.model))
    assert proof.passed
    assert (proof.images, proof.without_detections) == (4 + 2 * 3 + 3, 3)
    assert proof.detections >= 10 * MIN_DETECTIONS
    assert proof.score_threshold is not None
    assert proof.score_threshold < 0.999  # lowered
    assert proof.differences.boxes == proof.differences.unmatched == 0
    assert proof.differences.scores < 1e-6
    assert any(side % 2 for images, sizes in prover.batches for side in sizes.flatten().tolist())


def test_file_is_also_compared_at_its_own_threshold() -> None:
    detector = small_detector(score_threshold=0.999)
    proof = prover_of(detector).check(Changed(detector.model))
    assert (proof.images, proof.detections, proof.without_detections) == (10, 0, 10)
    assert proof.score_threshold == 0.999
    other = small_detector(score_threshold=0.1)
    assert not prover_of(detector).check(Changed(other.model)).passed


def with_options(**options: Any) -> Callable[[DetectionModel], DetectionModel]:
    def change(model: DetectionModel) -> DetectionModel:
        assert model.postprocess is not None
        model.postprocess = replace(model.postprocess, **options)
        return model

    return change


FAULTS = {
    "NMS threshold": with_options(nms_threshold=0.61),
    "limit": with_options(max_detections=29),
    "not clipped": with_options(clip_after_nms=True, detect_in_padding=True),
    "padding": with_options(detect_in_padding=True),
    "candidates": with_options(pre_nms_top_k=12),
    "score": with_options(score="product"),
    "weights": lambda model: vary(model, 0, 1e-2),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_wrong_detector_fails(fault: str) -> None:
    changed = FAULTS[fault](small_detector().model)
    proof = prover_of(small_detector(), num_images=2).prove(Changed(changed))
    assert not proof.passed, proof.summary()


def move(outputs: dict[str, Tensor]) -> None:
    outputs["boxes"] += 0.02


def exchange_classes(outputs: dict[str, Tensor]) -> None:
    outputs["labels"][:, 0] = (outputs["labels"][:, 0] + 1) % 3


def drop_last(outputs: dict[str, Tensor]) -> None:
    outputs["counts"] = (outputs["counts"] - 1).clamp(min=0)


def shift_masks(outputs: dict[str, Tensor]) -> None:
    outputs["masks"] += 0.001


def move_keypoints(outputs: dict[str, Tensor]) -> None:
    outputs["keypoints"][..., 0] += 0.02


@pytest.mark.parametrize("change", [move, exchange_classes, drop_last, shift_masks, move_keypoints])
def test_wrong_outputs_fail(change: Callable[[dict[str, Tensor]], None]) -> None:
    detector = small_detector("rcnn", **MASKS, **KEYPOINTS)
    prover = prover_of(detector, num_images=1, fixed=FixedSizes(batch=1))
    assert prover.prove(Changed(detector.model)).passed
    proof = prover.prove(Changed(detector.model, change))
    assert not proof.passed, proof.summary()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1.0])
def test_wrong_raw_outputs_fail(value: float) -> None:
    detector = small_detector()
    images = proof_images(FixedSizes())[:1]
    prover = Prover(detector.model, proof_batches(images, FixedSizes(batch=1), divisor=16), content="raw")

    class Raw(Changed):
        def __init__(self, difference: float):
            super().__init__(detector.model, lambda outputs: outputs["logits_1"][0, 0, 0, 0].add_(difference))
            self.graph = DetectionGraph(detector.model, content="raw")

    assert prover.prove(Raw(0.0)).passed
    assert not prover.prove(Raw(value)).passed


def test_cancellation_of_half_precision_does_not_hide_wrong_raw_outputs() -> None:
    """The centerness is the small difference of two large values, so that rounding is a large fraction of it."""
    detector = small_detector()
    head = fcos_of(detector).get_submodule("head")
    with torch.no_grad():
        for module in head.modules():
            if isinstance(module, torch.nn.GroupNorm):
                module.weight.fill_(0.002)
                module.bias.fill_(1.0)
        kernel = head.get_parameter("centerness.weight")
        kernel[..., [0, 0, 0, 1, 1, 2, 2, 2], [0, 1, 2, 0, 2, 0, 1, 2]] = 0
        head.get_parameter("centerness.bias").copy_(-kernel.sum())
    images = proof_images(FixedSizes())[:1]
    batches = proof_batches(images, FixedSizes(batch=1), divisor=16)
    prover = Prover(detector.model, batches, content="raw", precision="float16")
    runtime = Changed(detector.model)
    runtime.graph = DetectionGraph(lower_precision(detector.model, torch.float16), content="raw")
    proof = prover.prove(runtime)
    assert proof.passed, proof.summary()
    assert proof.raw_undecided > 0.01
    assert re.search(r"of outputs \(limit 0\.01\); up to \S+ by rounding$", proof.summary())
    for name in ("logits_1", "ltrb_0"):
        runtime.change = lambda outputs, name=name: outputs[name].mul_(1.05)
        assert not prover.prove(runtime).passed


def test_decisions_of_rounding_do_not_fail() -> None:
    """Two detections have the same score, and only one of them is within the limit."""
    detector = small_detector(nms_threshold=0.0)
    model = fcos_of(detector)
    views = proof_batches(proof_images(FixedSizes())[:1], FixedSizes(batch=1), divisor=16)[0]
    with torch.inference_mode():
        logits = model(*views).logits[0][0].flatten(1)  # [K, H * W]
    best = int(logits[0].argmax())
    with torch.no_grad():
        model.get_parameter("head.logits.bias")[1] += logits[0, best] - logits[1, best]
    model.postprocess = replace(model.postprocess, max_detections=0)
    scores = model.detect(*views)[0].scores
    gaps = scores[:-1] - scores[1:]
    model.postprocess = replace(model.postprocess, max_detections=int(gaps[20:].argmin()) + 21)
    prover = Prover(model, [views])
    undecided = 0
    for seed in range(100, 106):  # not the variations of the proof
        proof = prover.prove(Changed(vary(model, seed, 2.0**-21)))
        assert proof.passed, proof.summary()
        undecided += proof.differences.undecided
    assert undecided > 0


def test_half_precision_passes_and_faults_fail() -> None:
    detector = small_detector()
    views = proof_batches(proof_images(FixedSizes())[:1], FixedSizes(batch=1), divisor=16)
    prover = Prover(detector.model, views, precision="float16")
    runtime = Changed(lower_precision(detector.model, torch.float16))
    proof = prover.prove(runtime)
    assert proof.passed, proof.summary()
    for fault in (shift_boxes, exchange_all_classes, halve_scores):
        runtime.change = fault
        assert not prover.prove(runtime).passed, fault.__name__
    changed = vary(detector.model, 0, 2.0**-4)
    assert not prover.prove(Changed(lower_precision(changed, torch.float16))).passed


def shift_boxes(outputs: dict[str, Tensor]) -> None:
    outputs["boxes"] += 3.0


def exchange_all_classes(outputs: dict[str, Tensor]) -> None:
    outputs["labels"] = (outputs["labels"] + 1) % 3


def halve_scores(outputs: dict[str, Tensor]) -> None:
    outputs["scores"] /= 2


def test_summary_states_differences_and_limits() -> None:
    detector = small_detector("rcnn", **MASKS, **KEYPOINTS)
    proof = prover_of(detector, num_images=1, fixed=FixedSizes(batch=1)).prove(Changed(detector.model, move))
    summary = proof.summary()
    assert "largest difference 0.02 px (limit 0.01)" in summary
    assert "in scores (limit 0.0001)" in summary
    assert "0 unmatched, 0 decided by rounding" in summary
    assert proof.to_dict()["differences"]["boxes"] == pytest.approx(0.02, abs=1e-4)


def test_proof_is_not_possible_if_an_image_has_too_few_detections() -> None:
    detector = small_detector(pre_nms_top_k=5)
    with pytest.raises(ExportError, match=r"finds \d+ objects in an image, and at least 20 are needed"):
        prover_of(detector).prove(Changed(detector.model))


def test_proof_does_not_change_the_detector() -> None:
    detector = small_detector()
    options = detector.model.postprocess
    assert options is not None
    before = replace(options)
    prover_of(detector, num_images=1, fixed=FixedSizes(batch=1)).prove(Changed(detector.model))
    assert detector.model.postprocess == before
