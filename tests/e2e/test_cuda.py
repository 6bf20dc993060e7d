"""Detectors and training on a CUDA device, compared with the CPU: `make test-gpu`."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from detectors import NAMES, fcos_of, tiny_config, tiny_detector, tiny_model, tiny_retinanet
from ground_truth import objects_of
from torch.nn.parallel import DistributedDataParallel

import fcos
from fcos import Detector, distributed
from fcos.boxes import class_wise_nms
from fcos.config import Config
from fcos.config.detectors import DETECTORS
from fcos.errors import TrainingError
from fcos.interop.checkpoints import load_checkpoint
from fcos.models import DetectionModel, build_model
from fcos.models.layers import SyncBatchNorm, group_norm, with_gpu_batch_norm
from fcos.structures import Batch, Objects
from fcos.training import loop, step
from fcos.training.loop import TrainResult, train

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _full_float32() -> Iterator[None]:
    """Compare in full float32: TF32, the default of convolutions, has a mantissa of only 10 bits."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


CUDA = torch.device("cuda")
SIDE = 96


def images_and_targets(images: int = 3) -> tuple[torch.Tensor, torch.Tensor, list[Objects]]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (images, 3, 128, 160), generator=generator, dtype=torch.uint8)
    boxes = [
        torch.tensor([[4.0, 6, 60 + 3 * i, 90], [30, 10, 150, 40 + 4 * i], [0, 0, 50, 50]])[: 3 - i % 3]
        for i in range(images)
    ]
    labels = [torch.tensor([0, 2, 1])[: len(rows)] for rows in boxes]
    crowds = [torch.tensor([False, False, True])[: len(rows)] for rows in boxes]
    return pixels, torch.tensor([[128, 160]] * images), objects_of(boxes, labels, crowds)


def build(name: str) -> DetectionModel:
    torch.manual_seed(0)
    backbone = {"name": "mobilenet_v2", "weights": None, "norm": "frozen_bn"}
    return build_model(tiny_config(name=name, backbone=backbone).model, num_classes=3, pretrained=False)


def losses_and_gradients(
    model: DetectionModel, device: torch.device
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    images, sizes, targets = images_and_targets()
    model = model.to(device)
    model.zero_grad()
    losses = model(images.to(device), sizes.to(device), [objects.to(device) for objects in targets])
    torch.stack(list(losses.terms.values())).sum().backward()
    gradients = {name: p.grad.cpu().clone() for name, p in model.named_parameters() if p.grad is not None}
    return {name: value.item() for name, value in losses.terms.items()}, gradients


@pytest.mark.parametrize("name", DETECTORS)
def test_losses_and_gradients_equal_those_of_the_cpu(name: str) -> None:
    model = build(name)
    expected, expected_gradients = losses_and_gradients(model, torch.device("cpu"))
    losses, gradients = losses_and_gradients(model, CUDA)
    assert losses == pytest.approx(expected, rel=1e-4)
    assert gradients.keys() == expected_gradients.keys()
    largest = max(gradient.norm() for gradient in expected_gradients.values())
    for parameter, gradient in gradients.items():
        torch.testing.assert_close(
            gradient, expected_gradients[parameter], rtol=1e-2, atol=1e-3 * largest.item(), msg=parameter
        )


def test_detections_equal_those_of_the_cpu() -> None:
    detector = tiny_detector()
    image = torch.randint(0, 256, (3, 90, 130), dtype=torch.uint8)
    expected = detector.predict(image, threshold=0.0)
    found = detector.to("cuda").predict(image, threshold=0.0)
    assert len(expected) == len(found) > 5
    assert found.boxes.device.type == "cpu"
    assert found.labels.tolist() == expected.labels.tolist()
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.boxes, expected.boxes, rtol=0, atol=0.05)


def build_detector(name: str = "fcos", **options: Any) -> Detector:
    """Build a detector on the GPU with options of `eval`."""
    torch.manual_seed(0)
    config = tiny_config(name=name)
    config = config.model_copy(update={"eval": config.eval.model_copy(update=options)})
    model = tiny_model(config) if name == "fcos" else tiny_retinanet(config)
    return Detector(model, config, class_names=NAMES).to("cuda")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["fcos", "retinanet"])
def test_replayed_graphs_detect_the_same(name: str, precision: str) -> None:
    detector = build_detector(name, precision=precision)
    images = torch.randint(0, 256, (4, 3, 90, 130), dtype=torch.uint8)
    handle = detector.model.get_submodule("head.logits").register_forward_hook(lambda *_: None)  # prevents replay
    expected = detector.predict(list(images), threshold=0.0, batch_size=1)
    handle.remove()
    detector.predict([images[0]] * 2, threshold=0.0, batch_size=1)  # warm up, capture
    found = detector.predict(list(images), threshold=0.0, batch_size=1)
    graphs = detector._inference_copy._kept.cuda_graphs
    assert graphs is not None
    assert len(graphs._graphs) == 1
    for a, b in zip(found, expected, strict=True):
        assert len(a) == len(b) > 5
        assert a.labels.tolist() == b.labels.tolist()
        torch.testing.assert_close(a.scores, b.scores, rtol=0, atol=1e-4)
        torch.testing.assert_close(a.boxes, b.boxes, rtol=0, atol=0.05)
    assert not torch.equal(found[0].scores, found[1].scores)


def test_graphs_follow_options_shapes_and_weights() -> None:
    detector = tiny_detector().to("cuda")
    images = [torch.randint(0, 256, (3, side, 130), dtype=torch.uint8) for side in (90, 130)]
    before = [detector.predict(images, threshold=0.0, batch_size=1) for _ in range(3)]
    assert [len(each) for each in before[0]] == [len(each) for each in before[2]]
    assert all(len(each) <= 3 for _ in range(3) for each in detector.predict(images, threshold=0.0, max_detections=3))
    with torch.no_grad():
        detector.model.get_parameter("head.logits.bias").sub_(2)
    after = [detector.predict(images, threshold=0.0, batch_size=1) for _ in range(3)]
    assert all(a.scores.max() < b.scores.max() for a, b in zip(after[2], before[2], strict=True))
    for a, b in zip(after[0], after[2], strict=True):
        torch.testing.assert_close(a.scores, b.scores, rtol=0, atol=1e-4)


class WaitingBackbone(torch.nn.Module):
    """Backbone that waits for the GPU, which a CUDA graph cannot contain."""

    def __init__(self, backbone: torch.nn.Module):
        super().__init__()
        self.backbone = backbone
        self.strides = backbone.strides

    def forward(self, x: torch.Tensor) -> Any:
        assert x.max().item() < 1e6
        return self.backbone(x)


def test_network_that_waits_for_the_gpu_is_not_captured() -> None:
    detector = tiny_detector().to("cuda")
    image = torch.randint(0, 256, (3, 90, 130), dtype=torch.uint8)
    expected = detector.predict(image, threshold=0.0)
    detector.model.backbone = WaitingBackbone(detector.model.get_submodule("backbone"))
    stream = torch.cuda.current_stream()
    for _ in range(4):
        found = detector.predict(image, threshold=0.0)
        torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-4)
    assert torch.cuda.current_stream() == stream
    losses, gradients = losses_and_gradients(detector.model.train(), CUDA)  # the GPU still works
    assert losses
    assert gradients


@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")  # inside torch
def test_compiled_detector_detects_the_same() -> None:
    detector = build_detector()
    compiled = build_detector(compile=True)
    for side in (90, 130):
        image = torch.randint(0, 256, (3, side, 130), dtype=torch.uint8)
        expected = detector.predict(image, threshold=0.0)
        for _ in range(3):
            found = compiled.predict(image, threshold=0.0)
            assert len(found) == len(expected)
            torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-3)


@pytest.mark.parametrize("limit", [0, 3, 20])
def test_detections_of_a_batch_are_those_of_its_images(limit: int) -> None:
    detector = build_detector()
    images = list(torch.randint(0, 256, (5, 3, 90, 130), dtype=torch.uint8))
    detector.model.postprocess = replace(fcos_of(detector).postprocess, max_detections=limit)
    expected = [detector.predict(image, threshold=0.0) for image in images]
    for a, b in zip(detector.predict(images, threshold=0.0, batch_size=5), expected, strict=True):
        assert len(a) == len(b) > 0
        assert a.labels.tolist() == b.labels.tolist()
        torch.testing.assert_close(a.scores, b.scores, rtol=0, atol=1e-4)
        torch.testing.assert_close(a.boxes, b.boxes, rtol=0, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_group_norms_keep_the_data_type(dtype: torch.dtype) -> None:
    norm = group_norm(64)
    torch.nn.init.normal_(norm.weight)
    x = (torch.randn(2, 64, 9, 13) * 3 + 5).to(dtype)
    expected = norm(x.float())
    with torch.autocast("cuda", torch.bfloat16):
        found = norm.cuda()(x.cuda())
    assert found.dtype == dtype
    torch.testing.assert_close(found.float().cpu(), expected, rtol=0, atol=1e-4 if dtype == torch.float32 else 0.05)


@pytest.mark.parametrize("convention", ["continuous", "inclusive"])
def test_nms_in_one_call_equals_nms_class_by_class(convention: Any) -> None:
    corner, side = torch.rand(3000, 2) * 300, torch.rand(3000, 2) * 60 + 1
    boxes, scores, labels = torch.cat([corner, corner + side], 1), torch.rand(3000), torch.randint(0, 40, (3000,))
    expected = class_wise_nms(boxes, scores, labels, 0.5, convention=convention)
    found = class_wise_nms(boxes.cuda(), scores.cuda(), labels.cuda(), 0.5, convention=convention)
    assert 0 < len(expected) < 3000
    assert found.tolist() == expected.tolist()


# ------------------------------------------------------------------------------------------------------------- training


@pytest.fixture
def configure(data: Path, tmp_path: Path) -> Callable[..., Config]:
    """Return a function that builds a config of 100 iterations on the GPU; keywords are options of `train`."""

    def build(**settings: Any) -> Config:
        return Config.model_validate(
            {
                "model": {
                    "backbone": {"name": "mobilenet_v2", "weights": None},
                    "fpn": {"channels": 64},
                    "strides": [8, 16, 32],
                    "head": {"num_convs": 1, "regression": "relu_stride"},
                    "center_sampling_radius": 1.5,
                    "size_ranges": [[-1, 64], [64, 128], [128, None]],
                },
                "data": {"root": data, "short_side": SIDE, "max_side": SIDE, "workers": 2},
                "train": {
                    "iterations": 100,
                    "batch_size": 4,
                    "optimizer": "adamw",
                    "lr": 2e-3,
                    "bias_lr_factor": 1.0,
                    "schedule": "cosine",
                    "warmup": "linear",
                    "warmup_iterations": 5,
                    "clip_norm": 10.0,
                    "ema": 0.9,
                    "log_every": 10,
                    **settings,
                },
                "output_dir": tmp_path / "run",
                "device": "cuda",
            }
        )

    return build


def rows_of(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch.compile
@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")  # inside torch
@pytest.mark.parametrize(
    "options", [{}, {"precision": "bfloat16"}, {"precision": "float16"}, {"compile": True}, {"micro_batch": 1}], ids=str
)
def test_training_reaches_ap50_above_0_8(configure: Callable[..., Config], options: dict[str, Any]) -> None:
    result: TrainResult = train(configure(**options))
    assert result.metrics["AP50"] > 0.8
    assert float(rows_of(result.run)[0]["memory_mb"]) > 10
    again = fcos.evaluate(result.run / "weights/best.pt")  # device=auto
    assert again.metrics == pytest.approx(result.metrics, abs=5e-3, nan_ok=True)


def test_float16_adapts_its_loss_scale(configure: Callable[..., Config]) -> None:
    run = train(configure(precision="float16", iterations=12)).run
    state = load_checkpoint(run / "weights/last.pt").training
    assert state is not None
    scale = state["scaler"]["scale"]
    assert 1 <= scale <= 65536


@pytest.fixture
def deterministic() -> Iterator[None]:
    """Let the order of additions in CUDA kernels be the same in every run."""
    torch.backends.cudnn.deterministic = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = False


@pytest.mark.usefixtures("deterministic")
@pytest.mark.filterwarnings("ignore:.*deterministic:UserWarning")
def test_resumed_run_equals_an_uninterrupted_one(
    configure: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(configure(iterations=12)).run
    config = configure(iterations=12, checkpoint_every=6).model_copy(update={"output_dir": tmp_path / "resumed"})

    def stop_at_seventh(*args: Any, **options: Any) -> step.StepResult:
        if args[2].state.iteration == 6:
            raise TrainingError("stopped")
        return step.train_step(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", stop_at_seventh)
        with pytest.raises(TrainingError, match="stopped"):
            train(config)
    torch.cuda.manual_seed(99)
    resumed = fcos.train(f"{tmp_path}/resumed/config.yaml", "train.resume=true").run
    expected, found = (load_checkpoint(run / "weights/last.pt") for run in (whole, resumed))
    assert found.iteration == expected.iteration == 12
    assert expected.training is not None
    assert found.training is not None
    assert torch.equal(found.training["cuda_rng"], expected.training["cuda_rng"])
    assert all(torch.equal(found.model[name], tensor) for name, tensor in expected.model.items())


def test_auto_micro_batch_is_halved_until_it_fits(configure: Callable[..., Config]) -> None:
    config = configure(batch_size=32, micro_batch="auto")
    big = config.model_copy(update={"data": config.data.model_copy(update={"short_side": [640], "max_side": 640})})
    model = build_model(config.model, num_classes=2, pretrained=False).to(CUDA)
    assert step.count_micro_batches(model, big, most_boxes=10) == 1
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(1.5 * 2**30 / total)
    try:
        count = step.count_micro_batches(model, big, most_boxes=10)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert 2 <= count <= 16
    assert all(p.grad is None for p in model.parameters())


# ----------------------------------------------------------------------------------------------------------------- nccl


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    """Join an nccl group of this process alone; nccl needs a GPU for each further process."""
    torch.cuda.set_device(0)
    meeting = f"file://{tmp_path}/processes"
    dist.init_process_group("nccl", init_method=meeting, rank=0, world_size=1, device_id=torch.device("cuda", 0))
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_collectives_with_nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 2)  # one process skips the collectives
    assert distributed.mean_over_processes(torch.tensor([1.0, 4.0], device=CUDA)).tolist() == [0.5, 2.0]
    assert distributed.sum_over_processes(torch.tensor(3.0, device=CUDA)).item() == 3.0
    assert distributed.broadcast({"path": Path("x")}) == {"path": Path("x")}
    assert distributed.all_gather("value") == ["value"] * 2
    assert distributed.on_rank_zero(lambda: 7) == 7
    distributed.barrier()
    distributed.broadcast_buffers(build("fcos").to(CUDA))


@pytest.mark.usefixtures("process_group")
def test_ddp_with_nccl_has_the_losses_of_the_bare_model() -> None:
    model = build("fcos").to(CUDA)
    images, sizes, targets = images_and_targets()
    batch = Batch(images, sizes, targets, torch.arange(3)).to(CUDA)
    expected = model(*batch[:3]).terms
    found = DistributedDataParallel(model)(*batch[:3])
    torch.stack(list(found.terms.values())).sum().backward()
    assert {name: x.item() for name, x in found.terms.items()} == pytest.approx(
        {name: x.item() for name, x in expected.items()}, rel=1e-5
    )


@pytest.mark.usefixtures("process_group")
def test_sync_batch_norm_on_the_gpu_equals_ours_on_the_cpu() -> None:
    norm = SyncBatchNorm(8)
    on_gpu = with_gpu_batch_norm(torch.nn.Sequential(SyncBatchNorm(8))).to(CUDA)
    assert isinstance(on_gpu[0], torch.nn.SyncBatchNorm)  # pyright: ignore[reportIndexIssue]
    x = torch.randn(4, 8, 5, 6)
    torch.testing.assert_close(on_gpu(x.cuda()).cpu(), norm(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(on_gpu[0].running_var.cpu(), norm.running_var, rtol=1e-4, atol=1e-5)  # pyright: ignore[reportIndexIssue]
