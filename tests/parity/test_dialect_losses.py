"""Losses and gradients of AdelaiDet's models with centerness and with IoU, including real-time detectors.

`dialects` describes models and formats. The tolerances are those of the recordings: 1e-6 in float64, where their focal
loss, boxes and locations are still float32; 1e-5 in float32; 1e-4 with batch statistics.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from detectors import build_fcos
from dialects import Dialect, dialect, names, network_input, used_tensors
from golden import folder, load, numbered, parametrize_models, tensor
from ground_truth import objects_of

from fcos.checkpoint import load_weights
from fcos.models.fcos import FCOS, FCOSOutputs

TERMS = {
    "loss_fcos_cls": "loss_cls",
    "loss_fcos_loc": "loss_box",
    "loss_fcos_ctr": "loss_centerness",
    "loss_fcos_iou": "loss_iou_quality",
}


SLOW = {"test_losses_and_gradients_match_adelaidet": ("adelaidet__R_50_1x", "adelaidet__RT_MS_R_50_4x_syncbn")}
"""Models that only `make test-slow` runs, by test: the other two have the same backbone and the same losses."""


def has_adelaidet_losses(goldens: Path, name: str) -> bool:
    numbers = load(goldens / "dialects" / f"{name}.npz")
    return name.startswith("adelaidet") and any(key.startswith("f64/train") for key in numbers)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "model" in metafunc.fixturenames:
        found = [name for name in names(metafunc.config) if has_adelaidet_losses(folder(metafunc.config), name)]
        parametrize_models(metafunc, {name: name for name in found}, SLOW)


@pytest.fixture(scope="module")
def model(request: pytest.FixtureRequest) -> Dialect:
    return dialect(folder(request.config), request.param)


def build(model: Dialect, dtype: torch.dtype) -> FCOS:
    """Build the model with the recorded weights, in training mode, without pixel normalisation."""
    quality = "iou" if model.manifest["facts"]["quality"] == "iou" else "centerness"  # weights do not show it
    config = model.section.model_copy(update={"quality": quality, "channel_order": "rgb"})
    net = build_fcos(config, num_classes=len(model.checkpoint.category_ids))
    load_weights(net, model.checkpoint.model, where=model.name)
    net.pixel_mean.zero_()
    net.pixel_std.fill_(1.0)
    return net.to(dtype).train()


def raw_outputs(goldens: Path, model: Dialect, net: FCOS) -> FCOSOutputs:
    outputs = net(network_input(goldens, model).to(net.pixel_mean.dtype), tensor(model.numbers["image_sizes_hw"]))
    assert isinstance(outputs, FCOSOutputs)
    return outputs


def losses(model: Dialect, net: FCOS, outputs: FCOSOutputs, case: str) -> dict[str, torch.Tensor]:
    """Compute the loss terms of a recorded case, by their recorded names. All cases have the same images."""
    boxes, labels = (numbered(model.numbers, f"train{case}/{part}") for part in ("boxes", "labels"))
    terms = net.losses(outputs, objects_of(boxes, labels)).terms
    recorded = model.numbers[f"train{case}/loss_names"].tolist()
    assert list(terms) == [TERMS[name] for name in recorded]
    return dict(zip(recorded, terms.values(), strict=True))


def recorded_cases(model: Dialect, *, with_objects: bool) -> list[str]:
    """Return the recorded training cases with or without objects."""
    counts: dict[str, int] = {}
    for key, value in model.numbers.items():
        if match := re.fullmatch(r"train(\w+)/boxes\d+", key):
            counts[match[1]] = counts.get(match[1], 0) + value.size
    assert counts
    return [case for case, count in counts.items() if (count > 0) == with_objects]


def test_losses_and_gradients_match_adelaidet(goldens: Path, model: Dialect) -> None:
    net = build(model, torch.float64)
    outputs = raw_outputs(goldens, model, net)
    for case in recorded_cases(model, with_objects=True):
        assert_gradients_match(model, net, outputs, case)


def assert_gradients_match(model: Dialect, net: FCOS, outputs: FCOSOutputs, case: str) -> None:
    terms = torch.stack([term.double() for term in losses(model, net, outputs, case).values()])
    key = f"f64/train{case}"
    np.testing.assert_allclose(terms.detach().numpy(), model.numbers[f"{key}/losses"], rtol=1e-6)
    net.zero_grad()
    terms.sum().backward(retain_graph=True)
    parameters = dict(net.named_parameters())
    ours = dict(zip([row[0] for row in used_tensors(model)], model.checkpoint.model, strict=True))
    norms = dict(zip(model.numbers["param_names"].tolist(), model.numbers[f"{key}/grad_norm"], strict=True))
    learning = {name: norm for name, norm in norms.items() if name in ours and not np.isnan(norm)}
    assert len(learning) == sum(parameter.requires_grad for parameter in parameters.values())
    found = [grad.norm().item() for name in learning if (grad := parameters[ours[name]].grad) is not None]
    np.testing.assert_allclose(found, list(learning.values()), rtol=1e-6, atol=1e-8 * max(learning.values()))


def test_losses_without_objects_match_adelaidet(goldens: Path, model: Dialect) -> None:
    net = build(model, torch.float32)
    with torch.no_grad():
        outputs = raw_outputs(goldens, model, net)
    for case in recorded_cases(model, with_objects=False):
        found = losses(model, net, outputs, case)
        rtol = 1e-5 if model.section.backbone.norm == "frozen_bn" else 1e-4
        terms = [term.item() for term in found.values()]
        np.testing.assert_allclose(terms, model.numbers[f"train{case}/losses"], rtol=rtol)
