"""Outputs with weights of AdelaiDet, detectron2 and mmdetection against the outputs of these projects.

goldens/README.md describes formats and tolerances.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectors import build_fcos
from dialects import Dialect, dialect, names, network_input, used_tensors
from fill_dialects import head_outputs
from golden import folder, load, parametrize_models, postprocess_of, tensor
from torch import Tensor

from fcos.checkpoint import load_weights
from fcos.config import FCOSConfig
from fcos.interop.torchvision import COCO_CLASSES
from fcos.models.candidates import candidates
from fcos.models.fcos import FCOS
from fcos.models.points import locations
from fcos.models.postprocess import suppress
from fcos.structures import Instances

SLOW = {"test_detections_match_the_source_project": ("adelaidet__MS_X_101_32x8d_2x_dcnv2",)}
"""Models that only `make test-slow` runs, by test: its head outputs are compared and decoded like the others."""


def post_cases(config: pytest.Config) -> list[tuple[str, str]]:
    """Return (project, key) of the recorded decodings."""
    found = []
    for file in sorted((folder(config) / "dialects").glob("*__units.npz")):
        with np.load(file) as numbers:
            keys = [key.removesuffix("/params") for key in numbers.files if key.endswith("/params")]
        found += [(file.stem.removesuffix("__units"), key) for key in keys]
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "model" in metafunc.fixturenames:
        parametrize_models(metafunc, {name: name for name in names(metafunc.config)}, SLOW)
    if "post_case" in metafunc.fixturenames:
        metafunc.parametrize("post_case", post_cases(metafunc.config), ids="-".join)


@pytest.fixture(scope="module")
def model(request: pytest.FixtureRequest) -> Dialect:
    return dialect(folder(request.config), request.param)


@pytest.fixture(scope="module")
def net(model: Dialect) -> FCOS:
    built = build_fcos(model.section, num_classes=len(model.checkpoint.category_ids))
    load_weights(built, model.checkpoint.model, where=model.name)
    return built.eval()


@pytest.fixture(scope="module")
def images(request: pytest.FixtureRequest, model: Dialect) -> tuple[Tensor, Tensor]:
    """Return the recorded network input as RGB pixels, and the image sizes without padding."""
    facts, sizes = model.manifest["facts"], tensor(model.numbers["image_sizes_hw"])
    mean, std = (torch.tensor(facts[key])[:, None, None] for key in ("pixel_mean", "pixel_std"))
    recorded = network_input(folder(request.config), model)
    pixels = torch.zeros(recorded.shape, dtype=torch.uint8)
    for i, (height, width) in enumerate(sizes.tolist()):
        values = recorded[i, :, :height, :width] * std + mean
        torch.testing.assert_close(values, values.round(), rtol=0, atol=1e-3)
        pixels[i, :, :height, :width] = values.round().to(torch.uint8)
    return pixels.flip(1) if facts["channel_order"] == "BGR" else pixels, sizes


# --------------------------------------------------------------------------------------------------- tensors, settings


def test_converted_tensors_cover_the_whole_state_dict(model: Dialect, net: FCOS) -> None:
    ours = {name: tuple(t.shape) for name, t in net.state_dict().items() if not name.startswith("pixel_")}
    taken = {name: tuple(t.shape) for name, t in model.checkpoint.model.items()}
    assert len(taken) == len(used_tensors(model))
    counters = {name for name in taken if name.endswith(".num_batches_tracked")}
    assert {name: shape for name, shape in taken.items() if name not in counters - ours.keys()} == ours


def test_trainable_parameters_match_the_source_project(model: Dialect, net: FCOS) -> None:
    learning = {name: parameter.requires_grad for name, parameter in net.named_parameters()}
    ours = zip(model.checkpoint.model, used_tensors(model), strict=True)
    # Batch norm with fixed statistics has no trainable factors here; in some models of mmdetection it has.
    assert learning == {name: trained for name, (*_, trained) in ours if name in learning}


def test_converted_settings_match_the_source_project(model: Dialect) -> None:
    facts, ours, data = model.manifest["facts"], model.section, model.config.data
    assert model.checkpoint.project == model.manifest["dialect"]
    assert (ours.strides, ours.channel_order.upper()) == (facts["strides"], facts["channel_order"])
    assert ours.pixel_mean == pytest.approx(facts["pixel_mean"])
    assert ours.pixel_std == pytest.approx(facts["pixel_std"])
    assert (ours.score_threshold, ours.nms_threshold) == (facts["score_threshold"], facts["nms_iou"])
    assert (ours.pre_nms_top_k, ours.max_detections) == (facts["topk_per_level"], facts["max_detections"])
    assert [low for low, _ in ours.size_ranges][1:] == [low for low, _ in facts["size_ranges"]][1:]
    sides = [data.detection_short_side, data.detection_max_side]
    assert sides == sorted(sides_of(facts["resize_config"]))


def sides_of(config: dict[str, Any]) -> list[int]:
    return [side for value in config.values() for side in (value if isinstance(value, list) else [value]) if side > 1]


def test_class_names_and_category_ids_match_coco(model: Dialect) -> None:
    assert dict(zip(model.checkpoint.category_ids, model.checkpoint.class_names, strict=True)) == COCO_CLASSES
    assert model.manifest.get("classes", list(COCO_CLASSES.values())) == list(COCO_CLASSES.values())


# ------------------------------------------------------------------------------------------------------------- outputs


def test_normalised_input_matches_the_source_project(
    request: pytest.FixtureRequest, model: Dialect, net: FCOS, images: tuple[Tensor, Tensor]
) -> None:
    recorded = network_input(folder(request.config), model)
    torch.testing.assert_close(net.normalize(*images), recorded, rtol=0, atol=2e-5)


@pytest.fixture(scope="module")
def outputs(model: Dialect, net: FCOS, images: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """Compute backbone, pyramid and head outputs by their recorded names, with distances as in the project's head."""
    with torch.inference_mode():
        features = net.backbone(net.normalize(*images))
        pyramid = net.fpn([features[name] for name in net.backbone_levels])
        head = net.head(pyramid)
    named = {f"body{i}": features[name] for i, name in enumerate(net.backbone_levels)}
    named |= {f"fpn{i}": x for i, x in enumerate(pyramid)}
    in_strides = model.manifest["dialect"] != "mmdetection"
    for i, stride in enumerate(net.assigner.strides):
        named |= {f"cls{i}": head.logits[i], f"ctr{i}": head.centerness[i]}
        named[f"reg{i}"] = head.ltrb[i] / stride if in_strides else head.ltrb[i]
    return named


@pytest.mark.parametrize("part", ["body", "fpn", "cls", "reg", "ctr"])
def test_features_and_head_outputs_match_the_source_project(
    model: Dialect, outputs: dict[str, Tensor], part: str
) -> None:
    strides = model.manifest["strides"]
    levels = [key for key in model.numbers if key.startswith(f"eval/{part}") and "/" not in key[5:]]
    assert levels
    for key in levels:
        ours, expected = outputs[key[5:]], model.numbers[key]
        if model.manifest["dialect"] == "detectron2" and part == "reg":
            expected = np.maximum(expected, 0)  # detectron2 applies relu when it decodes
        if f"{key}/shape" not in model.numbers:
            assert ours.shape == expected.shape
            rtol = 2e-5 if part == "reg" else 0.0
            np.testing.assert_allclose(ours.numpy(), expected, rtol=rtol, atol=1e-4, err_msg=key)
            continue
        assert list(ours.shape) == model.numbers[f"{key}/shape"].tolist()
        flat = ours.reshape(-1)[:: strides["cls" if part == "cls" else "body_fpn"]].numpy()
        np.testing.assert_allclose(flat, expected, rtol=0, atol=1e-4, err_msg=key)
        exact = ours.double()
        stats = [exact.mean(), exact.std(correction=0), exact.abs().sum(), exact.min(), exact.max()]
        np.testing.assert_allclose([float(s) for s in stats], model.numbers[f"{key}/stats"], rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------------------------------------------- detections


def check(
    found: Instances, numbers: dict[str, np.ndarray], key: str, *, score: float = 1e-5, box: float = 2e-3
) -> None:
    """Check that detections are the same; those with equal scores, within the tolerance, may come in any order."""
    case, _, prefix = key.rpartition("/")
    expected = [numbers[f"{case}/{prefix}{part}"] for part in ("boxes", "scores", "labels")]
    assert len(found) == len(expected[1])
    np.testing.assert_allclose(found.scores, np.sort(expected[1])[::-1], rtol=0, atol=score)
    remaining = list(range(len(found)))
    for its_box, its_score, its_label in zip(*expected, strict=True):
        match = next(
            j
            for j in remaining
            if abs(float(found.scores[j]) - its_score) <= score
            and int(found.labels[j]) == its_label
            and np.abs(found.boxes[j].numpy() - its_box).max() <= box
        )
        remaining.remove(match)


@pytest.mark.parametrize("alone", [False, True], ids=["batch", "single"])
def test_detections_match_the_source_project(
    model: Dialect, net: FCOS, images: tuple[Tensor, Tensor], alone: bool
) -> None:
    original = [(height, width) for height, width in model.numbers["orig_sizes_hw"].tolist()]
    batch = one_image_batches(model, *images) if alone else [images]
    found = [instances for one in batch for instances in net.candidates(*one)]
    for i, instances in enumerate(found):
        case = f"{'single' if alone else 'det'}{i}"
        raw = suppress(instances, replace(net.postprocess, clip_after_nms=False))
        check(raw, model.numbers, f"{case}/net_")
        check(net.suppress(instances).resize_to(original[i]), model.numbers, f"{case}/")


def one_image_batches(model: Dialect, pixels: Tensor, sizes: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return the images one by one, padded as the project pads a single image."""
    shapes = [model.numbers[f"single{i}/tensor_shape"].tolist() for i in range(len(sizes))]
    return [(pixels[i : i + 1, :, : s[2], : s[3]], sizes[i : i + 1]) for i, s in enumerate(shapes)]


# --------------------------------------------------------------------------------------------- synthetic head outputs


def test_locations_match_the_source_project(goldens: Path, post_case: tuple[str, str]) -> None:
    numbers = load(goldens / "dialects" / f"{post_case[0]}__units.npz")
    for i, grid in enumerate(numbers["grids"].tolist()):
        points = locations((grid[0], grid[1]), 8 * 2**i)
        assert points[[0, 1, -1]].tolist() == numbers[f"locations/level{i}_first_last"].tolist()


def unit_settings(goldens: Path, project: str, *, regression: str, num_levels: int) -> FCOSConfig:
    """Return the settings of the recorded models of a project with this activation of the distances."""
    files = sorted((goldens / "dialects").glob(f"{project}__*.json"))
    sections = [dialect(goldens, file.stem, filled=False).section for file in files]
    found = [s for s in sections if (s.head.regression, len(s.strides)) == (regression, num_levels)]
    used = [(postprocess_of(section), section.strides) for section in found]
    assert all(settings == used[0] for settings in used)  # so it does not matter which of them decodes the outputs
    return found[0]


def test_decoding_of_synthetic_outputs_matches_the_source_project(goldens: Path, post_case: tuple[str, str]) -> None:
    project, case = post_case
    numbers = load(goldens / "dialects" / f"{project}__units.npz")
    regression = "exp" if case.startswith("post_exp/") else "relu_stride"
    settings = unit_settings(goldens, project, regression=regression, num_levels=len(numbers["grids"]))
    if case.endswith("_thresh_with_ctr"):  # AdelaiDet's option thresholds the product; ours its root
        settings = settings.model_copy(update={"threshold_on": "score", "score_threshold": 0.05**0.5})
    if case.endswith("_no_nms"):
        settings = settings.model_copy(update={"nms_threshold": 0.0})
    grids, params = numbers["grids"].tolist(), numbers[f"{case}/params"].tolist()
    levels = [[tensor(x) for x in level] for level in head_outputs(grids, int(numbers["seed"]), params[:7])]
    logits, ltrb, centerness = (list(parts) for parts in zip(*levels, strict=True))
    if settings.head.regression == "exp":
        ltrb = [x.exp() for x in ltrb]
    else:
        ltrb = [F.relu(x) * stride for x, stride in zip(ltrb, settings.strides, strict=True)]
    points = [locations((grid[0], grid[1]), s) for grid, s in zip(grids, settings.strides, strict=True)]
    size, original = ((int(h), int(w)) for h, w in (numbers["net_hw"], numbers["orig_hw"]))
    options = postprocess_of(settings)
    (found,) = candidates(logits, ltrb, centerness, points, [size], options=options)
    raw = suppress(found, replace(options, clip_after_nms=False))
    check(raw, numbers, f"{case}/net_", score=1e-6, box=1e-4)
    check(suppress(found, options).resize_to(original), numbers, f"{case}/", score=1e-6, box=1e-4)
