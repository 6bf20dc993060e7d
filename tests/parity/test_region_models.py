"""RetinaNet and R-CNN models against the recorded numbers: features, outputs, proposals, losses, gradients, detections.

The tolerances are those of the recordings' README for `rcnn/`.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from golden import RegionModel, folder, parametrize_models, region_entries, sample, tensor
from torch import Tensor

from fcos.models import DetectionModel
from fcos.models.inference_copy import InferenceCopy
from fcos.models.rcnn import RCNN
from fcos.models.retinanet import RetinaNet
from fcos.models.rpn import RPNDetector
from fcos.structures import Instances

STRICT = 5e-7
ORIGINAL_NAMES = {
    "loss_rpn_box": "loss_rpn_box_reg",
    "loss_cls": "loss_classifier",
    "loss_box": "loss_box_reg",
    "loss_keypoints": "loss_kp",
}
"""The original's names of the losses of R-CNN."""


SLOW = {
    "test_detections_match_the_original": ("e2e_keypoint_rcnn_R_50_FPN_1x",),
    "test_losses_and_gradients_match_the_original": ("e2e_faster_rcnn_R_50_C4_1x",),
}
"""Models whose head is expensive, by the test that only `make test-slow` runs for them."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "model" in metafunc.fixturenames:
        parametrize_models(metafunc, {entry["file"]: entry for entry in region_entries(metafunc.config)}, SLOW)


@pytest.fixture(scope="module")
def model(request: pytest.FixtureRequest) -> RegionModel:
    return RegionModel(folder(request.config), request.param)


@pytest.fixture(scope="module")
def net(model: RegionModel) -> DetectionModel:
    """Return the model in evaluation mode; it expects normalised images."""
    return model.build().eval()


def test_normalised_input_matches_the_original(model: RegionModel) -> None:
    images = torch.zeros(model.tensor.shape, dtype=torch.uint8)
    for i, (height, width) in enumerate(model.sizes.tolist()):
        images[i, :, :height, :width] = tensor(model.inputs[f"image{i}"]).permute(2, 0, 1)
    # The original divides by 255 and multiplies again: one rounding error of values up to 255.
    normalized = model.build(normalise=True).normalize(images, model.sizes)
    torch.testing.assert_close(normalized, model.tensor, rtol=0, atol=3e-5)


def test_features_and_head_outputs_match_the_original(model: RegionModel, net: DetectionModel) -> None:
    assert isinstance(net, RetinaNet | RPNDetector | RCNN)
    with torch.inference_mode():
        features = net.features(model.tensor, model.sizes)
        outputs = (net if isinstance(net, RetinaNet) else net.proposals).head(features)
    levels = {"feat": features, "rpn_cls": outputs.logits, "rpn_reg": outputs.offsets}
    named = {f"eval/{kind}{i}": x for kind, tensors in levels.items() for i, x in enumerate(tensors)}
    recorded = [key for key in model.numbers if key.startswith(tuple(f"eval/{kind}" for kind in levels))]
    assert {key for key in recorded if key.count("/") == 1} == named.keys()
    for key, ours in named.items():
        expected = model.numbers[key]
        assert list(ours.shape) == model.numbers.get(f"{key}/shape", np.array(expected.shape)).tolist()
        # The smallest stride of the recorded length; features have a common one.
        stride = model.index["feature_stride"] if "feat" in key else math.ceil(ours.numel() / expected.size)
        atol = max(1e-4, 1e-5 * float(np.abs(expected).max()))
        np.testing.assert_allclose(ours.flatten()[::stride], expected.reshape(-1), rtol=0, atol=atol, err_msg=key)


def runs(model: RegionModel) -> list[tuple[str, str]]:
    """Return the recorded training runs: the prefix of their keys, and that of their ground truth."""
    names = [re.fullmatch(r"(?:f64/)?train(\w*)/losses", key) for key in model.numbers]
    found = [(match[0].removesuffix("/losses"), f"case{match[1]}/" if match[1] else "") for match in names if match]
    assert found
    return found


def train_losses(model: RegionModel, net: DetectionModel, case: str) -> dict[str, Tensor]:
    return net(model.tensor.to(net.pixel_mean.dtype), model.sizes, model.targets(case)).terms


def test_losses_and_gradients_match_the_original(model: RegionModel) -> None:
    nets: dict[bool, DetectionModel] = {}
    for key, case in runs(model):
        strict = key.startswith("f64/")
        if strict not in nets:
            nets[strict] = model.build(dtype=torch.float64 if strict else torch.float32).train()
        net = nets[strict]
        net.zero_grad()
        terms = train_losses(model, net, case)
        names = model.numbers.get(f"{key}/loss_names", model.numbers["train/loss_names"]).tolist()
        recorded = dict(zip(names, model.numbers[f"{key}/losses"].tolist(), strict=True))
        ours = {ORIGINAL_NAMES.get(name, name): term.item() for name, term in terms.items()}
        if isinstance(net, RetinaNet):
            ours = dict(zip(names, [term.item() for term in terms.values()], strict=True))
        assert ours == pytest.approx(recorded, rel=STRICT if strict else 1e-5)
        if f"{key}/grad_norm" not in model.numbers:
            continue
        torch.stack(list(terms.values())).sum().backward()
        expected, parameters = model.numbers[f"{key}/grad_norm"], model.parameters(net)
        learning = ~np.isnan(expected)
        assert [p.requires_grad for p in parameters] == learning.tolist()
        norms = np.array([0.0 if p.grad is None else p.grad.double().norm().item() for p in parameters])
        big = learning & (expected > 1e-4 * np.nanmax(expected))
        np.testing.assert_allclose(norms[big], expected[big], rtol=STRICT if strict else 1e-3, err_msg=key)
        samples = np.stack(
            [sample(p.grad) for p, is_big in zip(parameters, big, strict=True) if is_big and p.grad is not None]
        )
        scale = expected[big] / np.sqrt([p.numel() for p, is_big in zip(parameters, big, strict=True) if is_big])
        error = np.abs(samples - model.numbers[f"{key}/grad_samples"][big]) / scale[:, None]
        assert np.nanmax(error) < (1e-5 if strict else 1e-2), key


def image_batches(model: RegionModel) -> list[tuple[Tensor, Tensor]]:
    """Return the batches of the recorded test: both images, or one by one for keypoints, as the original requires."""
    if "det0/keypoints" not in model.numbers:
        return [(model.tensor, model.sizes)]
    return [
        (model.tensor[i : i + 1, :, :h, :w], model.sizes[i : i + 1]) for i, (h, w) in enumerate(model.sizes.tolist())
    ]


@torch.inference_mode()
def test_proposals_match_the_original(model: RegionModel, net: DetectionModel) -> None:
    if isinstance(net, RetinaNet):
        return
    assert isinstance(net, RPNDetector | RCNN)
    outputs = net.proposals.head(net.features(model.tensor, model.sizes))
    proposals = net.proposals.propose(outputs, model.sizes, training=False)
    for i, image in enumerate(proposals):
        boxes, scores = (model.numbers[f"eval/proposals{i}/{key}"] for key in ("boxes", "scores"))
        ours = replace(image, labels=torch.zeros_like(image.labels))  # labels are levels
        assert_same_detections(ours, boxes, scores, np.zeros(len(scores)), tolerances(model))


def tolerances(model: RegionModel) -> tuple[float, float]:
    """Return the tolerances of boxes in pixels and of scores; FBNet has more layers."""
    return (0.1, 2e-4) if model.config.model.backbone.name == "fbnet" else (1e-2, 1e-4)


def assert_same_detections(
    ours: Instances, boxes: np.ndarray, scores: np.ndarray, labels: Any, tolerances: tuple[float, float]
) -> list[int]:
    """Compare detections as sets of similar scores; return the index of ours for each recorded one."""
    box_tolerance, score_tolerance = tolerances
    assert len(ours) == len(scores)
    np.testing.assert_allclose(ours.scores, np.sort(scores)[::-1], rtol=0, atol=score_tolerance)
    remaining, order = list(range(len(ours))), []
    for box, score, label in zip(boxes, scores, labels, strict=True):  # similar scores may come in any order
        match = next(
            j
            for j in remaining
            if abs(float(ours.scores[j]) - score) <= score_tolerance
            and int(ours.labels[j]) == int(label)
            and np.abs(ours.boxes[j].numpy() - box).max() <= box_tolerance
        )
        remaining.remove(match)
        order.append(match)
    return order


def test_detections_match_the_original(model: RegionModel, net: DetectionModel) -> None:
    folded = InferenceCopy()(net)  # what evaluation and prediction run
    detections = [image for batch in image_batches(model) for image in folded.detect(*batch)]
    for i, image in enumerate(detections):
        boxes, scores = (model.numbers[f"det{i}/{key}"] for key in ("boxes", "scores"))
        labels = model.numbers.get(f"det{i}/labels", np.ones(len(scores)))  # proposals have none
        order = assert_same_detections(image, boxes, scores, labels - 1, tolerances(model))
        if f"det{i}/mask_prob" in model.numbers:
            assert_same_masks(model, i, image[order])
        if f"det{i}/keypoints" in model.numbers:
            assert_same_keypoints(model, i, image[order])


def assert_same_masks(model: RegionModel, i: int, ours: Instances) -> None:
    masks = ours.to_continuous(model.config.model.box_convention).masks
    assert masks is not None
    assert ours.mask_grids is not None
    grids = model.numbers[f"det{i}/mask_prob"][:, 0]
    # A probability changes by at most a quarter of the change of its logit.
    np.testing.assert_allclose(ours.mask_grids[: len(grids)], grids, rtol=0, atol=1e-3)
    means = ours.mask_grids.mean(dim=(1, 2))
    np.testing.assert_allclose(means, model.numbers[f"det{i}/mask_mean"], rtol=0, atol=1e-4)
    count, _, height, width = model.numbers[f"det{i}/pasted_shape"]
    pasted = np.unpackbits(model.numbers[f"det{i}/pasted"])[: count * height * width].reshape(count, height, width)
    differing = masks[:count].numpy() != pasted.astype(bool)
    assert differing.mean() < 1e-4  # pixels whose probability is 0.5, up to noise


def assert_same_keypoints(model: RegionModel, i: int, ours: Instances) -> None:
    assert ours.keypoints is not None
    recorded, logits = model.numbers[f"det{i}/keypoints"], model.numbers[f"det{i}/keypoint_logits"]
    np.testing.assert_allclose(ours.keypoints[..., 2], logits, rtol=0, atol=1e-3 * np.abs(logits).max())
    # Two cells of a heat map may have nearly equal logits.
    differing = np.abs(ours.keypoints[..., :2].numpy() - recorded[..., :2]).max(axis=2) > 2e-2
    assert differing.mean() < 1e-2
