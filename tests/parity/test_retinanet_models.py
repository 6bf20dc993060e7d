"""Whole RetinaNet models against the recorded numbers: features, outputs, losses, gradients, detections.

The tolerances are those of the recordings' README for `rcnn/`.
"""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from golden import RetinaNetModel, folder, retinanet_entries, sample, tensor
from ground_truth import objects_of
from torch import Tensor

from fcos.models.retinanet import RetinaNet

STRICT = 5e-7


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "model" in metafunc.fixturenames:
        entries = retinanet_entries(metafunc.config)
        metafunc.parametrize("model", entries, ids=[e["file"] for e in entries], indirect=True, scope="module")


@pytest.fixture(scope="module")
def model(request: pytest.FixtureRequest) -> RetinaNetModel:
    return RetinaNetModel(folder(request.config), request.param)


def test_normalised_input_matches_the_original(model: RetinaNetModel) -> None:
    images = torch.zeros(model.tensor.shape, dtype=torch.uint8)
    for i, (height, width) in enumerate(model.sizes.tolist()):
        images[i, :, :height, :width] = tensor(model.inputs[f"image{i}"]).permute(2, 0, 1)
    # The original divides by 255 and multiplies again: one rounding error of values up to 255.
    normalized = model.build(normalise=True).normalize(images, model.sizes)
    torch.testing.assert_close(normalized, model.tensor, rtol=0, atol=3e-5)


def test_features_and_head_outputs_match_the_original(model: RetinaNetModel) -> None:
    net = model.build().eval()
    with torch.inference_mode():
        features = net.features(model.tensor, model.sizes)
        outputs = net.head(features)
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


def runs(model: RetinaNetModel) -> list[tuple[str, str]]:
    """Return the recorded training runs: the prefix of their keys, and that of their ground truth."""
    names = [re.fullmatch(r"(?:f64/)?train(\w*)/losses", key) for key in model.numbers]
    found = [(match[0].removesuffix("/losses"), f"case{match[1]}/" if match[1] else "") for match in names if match]
    assert found
    return found


def train_losses(model: RetinaNetModel, net: RetinaNet, case: str) -> dict[str, Tensor]:
    images = range(model.num_images)
    targets = objects_of(
        [tensor(model.inputs[f"{case}boxes{i}"]).reshape(-1, 4) for i in images],
        [tensor(model.inputs[f"{case}labels{i}"]).reshape(-1).long() - 1 for i in images],
    )
    return net(model.tensor.to(net.pixel_mean.dtype), model.sizes, targets).terms


def test_losses_and_gradients_match_the_original(model: RetinaNetModel) -> None:
    for key, case in runs(model):
        strict = key.startswith("f64/")
        net = model.build(dtype=torch.float64 if strict else torch.float32).train()
        terms = train_losses(model, net, case)
        recorded = [float(loss) for loss in model.numbers[f"{key}/losses"]]
        assert [term.item() for term in terms.values()] == pytest.approx(recorded, rel=STRICT if strict else 1e-5)
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


def test_detections_match_the_original(model: RetinaNetModel) -> None:
    for i, instances in enumerate(model.build().eval().detect(model.tensor, model.sizes)):
        recorded = {key: model.numbers[f"det{i}/{key}"] for key in ("boxes", "scores", "labels")}
        assert len(instances) == len(recorded["scores"])
        np.testing.assert_allclose(instances.scores, recorded["scores"], rtol=0, atol=1e-4)
        remaining = list(range(len(instances)))
        for box, score, label in zip(*recorded.values(), strict=True):  # similar scores may come in any order
            match = next(
                j
                for j in remaining
                if abs(float(instances.scores[j]) - score) <= 1e-4
                and int(instances.labels[j]) + 1 == label
                and np.abs(instances.boxes[j].numpy() - box).max() <= 1e-2
            )
            remaining.remove(match)
