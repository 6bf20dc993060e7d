"""Training steps hardly wait for the GPU, however many images and boxes a batch has."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from detectors import tiny_config
from device_waits import DeviceWaits
from ground_truth import objects_of

from fcos.models import DetectionModel, build_model
from fcos.structures import Batch, Losses
from fcos.training.run import Run
from fcos.training.step import train_step, wrap_model


def test_waits_are_counted() -> None:
    x = torch.arange(4.0)
    with DeviceWaits() as waits:
        torch.nonzero(x)
        x[x > 1]
        x[[0, 1]] = 3.0
        x[x > 2] = torch.tensor([7.0, 8.0, 9.0])
        float(x.sum())
        (x + 1).clamp(min=2).gather(0, torch.tensor([1]))
    assert waits.names == ["aten::nonzero", "aten::index", "aten::index_put_", "aten::_local_scalar_dense"]


@pytest.mark.parametrize("num_images", [1, 5])
@pytest.mark.parametrize("options", [{"center_sampling_radius": 1.5}, {"name": "retinanet"}], ids=str)
def test_losses_wait_once(options: dict[str, Any], num_images: int) -> None:
    """They wait for the number of positive locations or anchors."""
    model = build_model(tiny_config(**options).model, num_classes=3, pretrained=False)
    images = torch.randint(0, 256, (num_images, 3, 64, 96), dtype=torch.uint8)
    sizes = torch.tensor([[64, 96]] * num_images)
    boxes = torch.tensor([[4.0, 6, 60, 50], [30, 10, 90, 40], [0, 0, 50, 50]])
    crowds = torch.tensor([False, False, True])
    targets = objects_of([boxes] * num_images, [torch.tensor([0, 2, 1])] * num_images, [crowds] * num_images)
    with DeviceWaits() as waits:
        losses: Losses = model(images, sizes, targets)
        torch.stack(list(losses.terms.values())).sum().backward()
    assert waits.names == ["aten::nonzero"]


OPTIONS = [
    {},
    {"score": "product", "threshold_on": "score", "top_k_on": "class", "pre_nms_top_k": 50},
    {"threshold_on": "score", "clip_after_nms": True},
    {"box_convention": "inclusive", "pre_nms_top_k": 100_000},
    {"detect_in_padding": True, "keep_empty_boxes": True, "score_threshold": 0.4},
    {"score_threshold": 0.9999},
    {"name": "retinanet"},
    {"name": "retinanet", "box_convention": "inclusive", "pre_nms_top_k": 70},
    {"name": "retinanet", "detect_in_padding": True, "anchor_ratios": [0.3, 1.7], "score_threshold": 0.5},
]
SIZES = torch.tensor([[96, 128], [60, 128], [96, 41]])


def detector_and_outputs(options: dict[str, Any]) -> tuple[DetectionModel, Any]:
    """Return a detector and random outputs of its head for images of `SIZES`; a few logits are NaN."""
    model = build_model(tiny_config(**options).model, num_classes=3, pretrained=False)
    outputs = model(torch.zeros(3, 3, 96, 128, dtype=torch.uint8), SIZES)
    generator = torch.Generator().manual_seed(0)
    for name, levels in outputs._asdict().items():
        scale = 30.0 if name == "ltrb" else 2.0 if name == "logits" else 0.5
        for level, tensor in enumerate(levels):
            values = torch.randn(tensor.shape, generator=generator) * scale
            levels[level] = values.abs() if name == "ltrb" else values
    outputs.logits[0][0, 0, 0, :3] = torch.nan
    return model, outputs


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_candidates_of_fixed_size_are_the_same(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The selection for GPUs gives the candidates of the selection for CPUs."""
    model, outputs = detector_and_outputs(options)
    expected = model.decode(outputs, SIZES)  # pyright: ignore[reportCallIssue]
    monkeypatch.setattr(f"fcos.models.{options.get('name', 'fcos')}.GPU_TYPES", {"cpu"})
    found = model.decode(outputs, SIZES)  # pyright: ignore[reportCallIssue]
    assert (sum(map(len, expected)) > 100) == (options.get("score_threshold", 0) < 0.9)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.size == theirs.size
        torch.testing.assert_close(ours.scores, theirs.scores)
        assert torch.equal(ours.labels, theirs.labels)
        torch.testing.assert_close(ours.boxes, theirs.boxes)


@pytest.mark.parametrize("name", ["fcos", "retinanet"])
def test_candidates_wait_once_for_the_whole_batch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They wait once more, for the number of candidates of every image (`tolist`)."""
    monkeypatch.setattr(f"fcos.models.{name}.GPU_TYPES", {"cpu"})
    model, outputs = detector_and_outputs({"name": name})
    with DeviceWaits() as waits:
        model.decode(outputs, SIZES)  # pyright: ignore[reportCallIssue]
    assert waits.names == ["aten::nonzero"]


@pytest.mark.parametrize("name", ["fcos", "retinanet"])
def test_cuda_graphs_can_contain_the_network_and_the_candidates(name: str) -> None:
    """A graph can contain no waits, and no copies from the CPU."""
    model = build_model(tiny_config(name=name, score_threshold=0.001).model, num_classes=3, pretrained=False).eval()
    assert model.has_fixed_sizes
    images = torch.randint(0, 256, (3, 3, 96, 128), dtype=torch.uint8)
    with DeviceWaits() as waits, torch.no_grad():
        found = model._padded_candidates(images, SIZES)
    assert found.valid.any()
    assert (waits.names, waits.num_constants) == ([], 0)


@pytest.mark.parametrize("num_images", [2, 6])
def test_suppression_waits_once_for_the_whole_batch(num_images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits once more, for the number of detections of every image (`tolist`)."""
    for module in ("boxes", "models.postprocess"):
        monkeypatch.setattr(f"fcos.{module}.GPU_TYPES", {"cpu"})
    model, outputs = detector_and_outputs({})
    candidates = (model.decode(outputs, SIZES) * 2)[:num_images]  # pyright: ignore[reportCallIssue]
    with DeviceWaits() as waits:
        found = model.suppress_images(candidates)
    assert min(map(len, found)) > 10
    assert waits.names == ["torchvision::nms"]


@pytest.mark.parametrize("num_images", [1, 5])
@pytest.mark.parametrize("name", ["fcos", "retinanet"])
def test_training_step_waits_once_for_the_losses(name: str, num_images: int) -> None:
    """It waits once more, for the values of the losses and the gradient norm (`tolist`)."""
    config = tiny_config(name=name)
    config = config.model_copy(update={"train": config.train.model_copy(update={"clip_norm": 10.0, "ema": 0.998})})
    model = build_model(config.model, num_classes=3, pretrained=False)
    data: Any = SimpleNamespace(class_names=[], category_ids=[], keypoint_layout=None)
    run = Run(Path(), config, model=model, train_data=data, val_data=None, elapsed=lambda: 0.0)
    boxes, labels = torch.tensor([[4.0, 6, 60, 50], [30, 10, 90, 40]]), torch.tensor([0, 2])
    targets = objects_of([boxes] * num_images, [labels] * num_images)
    images = torch.randint(0, 256, (num_images, 3, 64, 96), dtype=torch.uint8)
    batch = Batch(images, torch.tensor([[64, 96]] * num_images), targets, torch.arange(num_images))
    stop_request: Any = SimpleNamespace(requested=False)
    with DeviceWaits() as waits:
        train_step(wrap_model(run), batch, run, stop_request, micro_batches=1)
    of_box_counts = waits.names[:num_images]  # before the batch is copied to the GPU, so that they do not wait
    assert of_box_counts == ["aten::_local_scalar_dense"] * num_images
    assert waits.names[num_images:] == ["aten::nonzero"]
