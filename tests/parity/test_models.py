"""Whole models against the recorded numbers: outputs, losses, gradients, optimiser steps, detections.

The float64 numbers are the strict test; float32 tolerances are those of the recordings' README. Centerness targets are
float32 in both cases, as in the original. They use MKL's square root, which differs by one unit in the last place
between processor vendors (goldens/README.md). Results that depend on it agree to `STRICT_BOX`, all others to `STRICT`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import Model, folder, model_entries, sample, tensor
from ground_truth import objects_of
from torch import Tensor

from fcos.models.fcos import FCOS, FCOSOutputs
from fcos.models.inference_copy import InferenceCopy
from fcos.structures import Objects
from fcos.training.optim import build_optimizer, learning_rate_factor, set_learning_rate

STRICT = 1e-7
STRICT_BOX = 5e-7
LOSSES = ("loss_cls", "loss_box", "loss_centerness")
BOTH = (torch.float32, torch.float64)
SLOW = {
    "fcos_R_50_FPN_1x": BOTH,  # MobileNetV2 has the same losses, imprv_R_50 the same backbone
    "fcos_imprv_R_50_FPN_1x": (torch.float32,),
    "fcos_imprv_dcnv2_R_50_FPN_1x": BOTH,
    "fcos_imprv_X_101_32x8d_FPN_2x": BOTH,
}
"""Models that are trained only by `make test-slow`, and the types of their weights."""
ONE_STEP = "fcos_imprv_dcnv2_R_50_FPN_1x"
"""Model of which `make test` compares one case and one step, in float64: deformable convolutions take long."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "model" not in metafunc.fixturenames:
        return
    entries = model_entries(metafunc.config)
    if "dtype" not in metafunc.fixturenames:
        metafunc.parametrize("model", entries, ids=[e["file"] for e in entries], indirect=True, scope="module")
        return
    cases = [
        pytest.param(
            entry,
            dtype,
            False,
            id=f"{entry['file']}-{str(dtype).removeprefix('torch.')}",
            marks=[pytest.mark.slow] if dtype in SLOW.get(Path(entry["file"]).stem, ()) else [],
        )
        for entry in entries
        for dtype in BOTH
    ]
    cases += [
        pytest.param(entry, torch.float64, True, id=f"{entry['file']}-one step")
        for entry in entries
        if Path(entry["file"]).stem == ONE_STEP
    ]
    metafunc.parametrize(("model", "dtype", "is_short"), cases, indirect=["model"], scope="module")


@pytest.fixture(scope="module")
def model(request: pytest.FixtureRequest) -> Model:
    return Model(folder(request.config), request.param)


@pytest.fixture(scope="module")
def evaluated(model: Model) -> FCOS:
    """Return the model in evaluation mode; it expects normalised images."""
    return model.build().eval()


@pytest.fixture(scope="module")
def outputs(model: Model, evaluated: FCOS) -> dict[str, Tensor]:
    """Compute backbone, pyramid and head outputs in evaluation mode, by their recorded names."""
    net = evaluated
    sizes = tensor(model.inputs["image_sizes_hw"])
    with torch.inference_mode():
        features = net.backbone(net.normalize(tensor(model.inputs["tensor"]), sizes))
        pyramid = net.fpn([features[name] for name in net.backbone_levels])
        head = net.head(pyramid)
    named = {f"body{i}": x for i, x in enumerate(features.values())}
    named |= {f"fpn{i}": x for i, x in enumerate(pyramid)}
    for key, levels in zip(("cls", "reg", "ctr"), head, strict=True):
        named |= {f"{key}{i}": x for i, x in enumerate(levels)}
    return named


def targets_of(model: Model, case: str) -> list[Objects]:
    images = range(len(model.inputs["image_sizes_hw"]))
    return objects_of(
        [tensor(model.inputs[f"case{case}/boxes{i}"]).reshape(-1, 4) for i in images],
        [tensor(model.inputs[f"case{case}/labels{i}"]) - 1 for i in images],
    )


def raw_outputs(model: Model, net: FCOS) -> FCOSOutputs:
    outputs = net(tensor(model.inputs["tensor"]).to(net.pixel_mean.dtype), tensor(model.inputs["image_sizes_hw"]))
    assert isinstance(outputs, FCOSOutputs)
    return outputs


def recorded_cases(model: Model, prefix: str) -> list[str]:
    found = [re.fullmatch(rf"{prefix}train(\w+)/losses", key) for key in model.numbers]
    return sorted(match[1] for match in found if match)


def case_with_steps(model: Model, prefix: str) -> str:
    """Return the case whose losses are those before the recorded optimizer steps, up to rounding."""
    losses = model.numbers[f"{prefix}steps/losses"][0]
    return min(
        recorded_cases(model, prefix),
        key=lambda case: np.abs(model.numbers[f"{prefix}train{case}/losses"] - losses).max(),
    )


def test_normalised_input_matches_the_original(model: Model) -> None:
    net = model.build(normalise=True)
    recorded = tensor(model.inputs["tensor"])
    images = torch.zeros(recorded.shape, dtype=torch.uint8)
    sizes = tensor(model.inputs["image_sizes_hw"])
    for i, (height, width) in enumerate(sizes.tolist()):
        images[i, :, :height, :width] = tensor(model.inputs[f"image{i}"]).permute(2, 0, 1)
    # The original divides by 255 and multiplies again: one rounding error of values up to 255.
    torch.testing.assert_close(net.normalize(images, sizes), recorded, rtol=0, atol=3e-5)


@pytest.mark.parametrize("part", ["body", "fpn", "cls", "reg", "ctr"])
def test_features_and_head_outputs_match_the_original(model: Model, outputs: dict[str, Tensor], part: str) -> None:
    levels = [key for key in model.numbers if key.startswith(f"eval/{part}") and "/" not in key[5:]]
    assert levels
    for key in levels:
        ours, expected = outputs[key[5:]], model.numbers[key]
        assert list(ours.shape) == model.numbers[f"{key}/shape"].tolist()
        full = part in ("reg", "ctr") or (part == "cls" and model.head_outputs_full)
        step = 1 if full else model.head_stride if part == "cls" else model.feature_stride
        flat = ours.reshape(-1)[::step].numpy()
        largest = float(np.abs(expected).max())
        rtol, atol = (2e-5, 2e-4) if part == "reg" else (0.0, max(1e-4, 1e-5 * largest))
        np.testing.assert_allclose(flat, expected.reshape(-1), rtol=rtol, atol=atol, err_msg=key)
        stats = [
            ours.double().mean(),
            ours.double().std(correction=0),
            ours.double().abs().sum(),
            ours.min(),
            ours.max(),
        ]
        np.testing.assert_allclose([float(s) for s in stats], model.numbers[f"{key}/stats"], rtol=1e-4, atol=1e-4)


def test_losses_gradients_and_optimizer_steps_match_the_original(
    model: Model, dtype: torch.dtype, is_short: bool
) -> None:
    """All cases share the outputs, because they have the same images. The case with the steps comes last."""
    strict = dtype == torch.float64
    prefix = "f64/" if strict else ""
    net = model.build(dtype=dtype).train()
    outputs = raw_outputs(model, net)
    last = case_with_steps(model, prefix)
    others = [] if is_short else [case for case in recorded_cases(model, prefix) if case != last]
    for case in [*others, last]:
        key = f"{prefix}train{case}"
        named = net.losses(outputs, targets_of(model, case)).terms
        before_steps = [model.numbers[f"{prefix}steps/losses"][0]] if case == last else []
        for numbers in [model.numbers[f"{key}/losses"], *before_steps]:
            check_losses(named, numbers, rtol=(STRICT, STRICT_BOX) if strict else (1e-5, 1e-5))
        if f"{key}/grad_norm" in model.numbers:
            net.zero_grad()
            total(named).backward(retain_graph=case != last)
            check_gradients(model, net, key, dtype)
    check_steps(model, net, last, steps=1 if is_short else 3, strict=strict)


def total(losses: Mapping[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


def check_losses(
    named: Mapping[str, Tensor], recorded: np.ndarray, *, rtol: tuple[float, float], atol: float = 0.0
) -> None:
    """Compare the losses. `rtol` is for classification and for the others; zero losses without positives are exact."""
    for name, expected in zip(LOSSES, recorded, strict=True):
        tolerance = rtol[0] if name == "loss_cls" else rtol[1]
        assert named[name].item() == pytest.approx(float(expected), rel=tolerance, abs=atol), name


def check_gradients(model: Model, net: FCOS, key: str, dtype: torch.dtype) -> None:
    expected = model.numbers[f"{key}/grad_norm"]
    parameters = model.parameters(net)
    assert [p.requires_grad for p in parameters] == (~np.isnan(expected)).tolist()
    learning = ~np.isnan(expected)
    norms = np.array([p.grad.double().norm().item() if p.grad is not None else 0.0 for p in parameters])
    expected = np.maximum(expected, 0)  # -1: no gradient in the original; ours is zero
    largest = np.nanmax(expected)
    if dtype == torch.float64:
        noise = 1e-12 * largest  # gradients of biases before batch norm are only rounding noise
        tolerance = (strict_rtol(model) * expected + noise)[learning]
        assert (np.abs(norms - expected)[learning] <= tolerance).all(), key
    elif model.section.backbone.norm in ("bn", "sync_bn"):
        np.testing.assert_allclose(norms[learning], expected[learning], rtol=0.02, atol=5e-3 * largest, err_msg=key)
    else:
        big = learning & (expected > 1e-4 * largest)
        np.testing.assert_allclose(norms[big], expected[big], rtol=1e-3, err_msg=key)
    if f"{key}/grad_samples" in model.numbers and dtype == torch.float64:
        samples = np.stack([sample(p.grad) if p.grad is not None else np.full(5, np.nan) for p in parameters])
        recorded = model.numbers[f"{key}/grad_samples"]
        # For entries that nearly cancel, the error is relative to a typical entry of their tensor.
        typical = expected / np.sqrt([p.numel() for p in parameters])
        real = learning & (expected > 1e-9 * largest)  # the others are rounding noise, bounded above
        error = np.abs(samples - recorded)[real] / (np.abs(recorded) + typical[:, None])[real]
        assert (np.nan_to_num(error).max(axis=1) < strict_rtol(model)[real]).all(), key


def strict_rtol(model: Model) -> np.ndarray:
    """Return the tolerance per parameter: `STRICT` if only the classification loss reaches it, else `STRICT_BOX`."""
    alone = "cls_logits", *(["cls_tower"] if model.section.head.centerness_on == "box" else [])
    names = model.numbers["param_names"].tolist()
    return np.array([STRICT if any(part in name for part in alone) else STRICT_BOX for name in names])


def check_steps(model: Model, net: FCOS, case: str, *, steps: int, strict: bool) -> None:
    """Compare up to three optimizer steps on a case, whose gradients `net` has, and the losses after each of them."""
    prefix = "f64/" if strict else ""
    batch_norm = model.section.backbone.norm in ("bn", "sync_bn")
    start = [p.detach().clone() for p in model.parameters(net)]
    optimizer = build_optimizer(net, model.config.train)
    iterations = model.config.train.iterations
    assert iterations is not None
    recorded = model.numbers[f"{prefix}steps/losses"]
    # After the first step every loss depends on weights that the box loss has changed.
    rtol, atol = (STRICT_BOX, 0.0) if strict else (1e-5, 0.1 if batch_norm else 3e-3)
    for step in range(steps):
        set_learning_rate(optimizer, learning_rate_factor(step, iterations, model.config.train))
        if "steps/lr" in model.numbers:
            rates = model.numbers["steps/lr"][step]
            used = sorted({g["lr"] for g in optimizer.param_groups})
            assert used == pytest.approx(sorted(rates[~np.isnan(rates)]), rel=1e-12)
        optimizer.step()
        if step in (0, 2):
            check_weights(model, net, start, f"{prefix}step{step + 1}", strict=strict, chaotic=batch_norm)
        with torch.set_grad_enabled(step + 1 < steps):
            named = net.losses(raw_outputs(model, net), targets_of(model, case)).terms
        check_losses(named, recorded[step + 1], rtol=(rtol, rtol), atol=atol)
        if step + 1 < steps:
            optimizer.zero_grad()
            total(named).backward()


def check_weights(model: Model, net: FCOS, start: list[Tensor], key: str, *, strict: bool, chaotic: bool) -> None:
    parameters, recorded = model.parameters(net), model.numbers
    norms = np.array([p.detach().double().norm().item() for p in parameters])
    moved = np.array([(p.detach() - s).double().norm().item() for p, s in zip(parameters, start, strict=True)])
    expected = recorded[f"{key}/delta_norm"]
    rtol = STRICT if strict else 0.02 if chaotic else 1e-6
    # The weights before the steps are equal, so the rounding errors of float32 are relative to the steps.
    atol = 0.0 if strict or chaotic else 5e-3 * expected
    assert (np.abs(norms - recorded[f"{key}/param_norm"]) <= atol + rtol * norms).all(), key
    if strict:
        np.testing.assert_allclose(moved, expected, rtol=STRICT_BOX, atol=1e-13)
        samples = np.stack([sample(p) for p in parameters])
        # In single entries, weight and step partly cancel.
        np.testing.assert_allclose(samples, recorded[f"{key}/param_samples"], rtol=2 * STRICT_BOX, atol=1e-10)
    elif not chaotic:
        big = expected > 1e-3 * expected.max()
        np.testing.assert_allclose(moved[big], expected[big], rtol=5e-3)
    buffers = [b.double().norm().item() for b in model.buffers(net)]
    np.testing.assert_allclose(buffers, recorded[f"{key}/buffer_norm"], rtol=rtol)


def test_detections_match_the_original(model: Model, evaluated: FCOS) -> None:
    folded = InferenceCopy()(evaluated)  # what evaluation and prediction run
    found = folded.detect(tensor(model.inputs["tensor"]), tensor(model.inputs["image_sizes_hw"]))
    for i, instances in enumerate(found):
        assert list(instances.size) == model.numbers[f"det{i}/size_wh"].tolist()[::-1]
        assert len(instances) == len(model.numbers[f"det{i}/scores"])
        np.testing.assert_allclose(instances.scores, model.numbers[f"det{i}/scores"], rtol=0, atol=1e-5)
        remaining = list(range(len(instances)))
        for box, score, label in zip(
            *(model.numbers[f"det{i}/{key}"] for key in ("boxes", "scores", "labels")), strict=True
        ):  # equal scores may come in any order
            match = next(
                j
                for j in remaining
                if abs(float(instances.scores[j]) - score) <= 1e-5
                and int(instances.labels[j]) + 1 == label
                and np.abs(instances.boxes[j].numpy() - box).max() <= 2e-3
            )
            remaining.remove(match)


def test_recorded_scores_keep_a_margin_to_the_threshold(model: Model) -> None:
    """No recorded score is so close to the threshold that float32 noise could change the decisions above."""
    assert float(model.numbers["margin/score_threshold"]) > 1e-6
