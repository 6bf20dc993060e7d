"""Measure the speed of torchvision's FCOS and ours: inference, post-processing, training step, data loading.

    python benchmarks/speed_vs_torchvision.py [--repeats 7] [--only mobilenet resnet loading]

Both have the same architecture (random weights), input and memory format, and run in one process. Their runs alternate,
so that other load on the machine slows both; the table shows medians.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
import torchvision_detectors
from common import fcos_section, machine, markdown, write
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
from torchvision.models.detection import FCOS as TorchvisionFCOS
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from torchvision.transforms import v2

import fcos
from fcos.config import FCOSConfig
from fcos.data import build_train_loader, load_annotations
from fcos.data.digits import make_digits
from fcos.models import build_model
from fcos.models.fcos import FCOS, FCOSOutputs
from fcos.models.postprocess import candidates, suppress
from fcos.structures import Objects

CLASSES = 80
OBJECTS = 10  # per training image
Job = Callable[[], object]


class Pair(NamedTuple):
    """Two detectors of the same architecture, ours and torchvision's, and the input for the measurements."""

    ours: FCOS
    theirs: TorchvisionFCOS
    size: tuple[int, int]
    batch_size: int  # of the training step


def mobilenet() -> Pair:
    # All layers are trained, as in torchvision's.
    config = fcos_section(fcos.load_config("fcos_mnv2_small", ["model.backbone.frozen_stages=0"]))
    ours = _build(config)
    theirs = torchvision_detectors.fcos(
        CLASSES, channels=config.fpn.channels, num_convs=config.head.num_convs, pretrained=False
    )
    return Pair(_channels_last(ours), _channels_last(theirs), size=(320, 320), batch_size=4)


def resnet() -> Pair:
    backbone = resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256)
    )
    theirs = torchvision_detectors.without_resize(TorchvisionFCOS(backbone, CLASSES, score_thresh=0.05, nms_thresh=0.6))
    ours = _build(fcos_section(fcos.Config()))
    return Pair(_channels_last(ours), _channels_last(theirs), size=(800, 1216), batch_size=2)


def _build(config: FCOSConfig) -> FCOS:
    model = build_model(config, num_classes=CLASSES, pretrained=False)
    assert isinstance(model, FCOS)
    return model


M = TypeVar("M", bound=nn.Module)


def _channels_last(model: M) -> M:
    """Convert a model to channels-last memory format, which ours always uses; it makes torchvision's a fifth faster."""
    return model.to(memory_format=torch.channels_last)


def inference(pair: Pair) -> tuple[Job, Job]:
    """Return the inference jobs for one image; untrained networks yield no detections, as all scores are low."""
    image = torch.randint(0, 256, (3, *pair.size), dtype=torch.uint8)
    pair.ours.eval()
    pair.theirs.eval()

    @torch.inference_mode()
    def theirs() -> None:
        pair.theirs([image.float() / 255])

    return lambda: pair.ours.detect(image[None], torch.tensor([pair.size])), theirs


def postprocessing(pair: Pair) -> tuple[Job, Job]:
    """Return the post-processing jobs for crowded outputs: thousands of candidates per large level, all box sizes."""
    generator = torch.Generator().manual_seed(0)
    height, width = pair.size
    strides = pair.ours.assigner.strides
    grids = pair.ours.assigner.maps((height, width))
    logits = [torch.randn(1, CLASSES, *grid, generator=generator) * 1.5 - 5 for grid in grids]
    distances = [torch.rand(1, 4, *grid, generator=generator) * 4 for grid in grids]  # in strides
    centerness = [torch.randn(1, 1, *grid, generator=generator) for grid in grids]
    ltrb = [d * stride for d, stride in zip(distances, strides, strict=True)]
    points = pair.ours.locations(FCOSOutputs(logits, ltrb, centerness))

    options = pair.ours.postprocess

    def ours() -> object:
        found = candidates(logits, ltrb, centerness, points, [pair.size], options=options)
        return [suppress(each, options) for each in found]

    def rows(levels: list[Tensor]) -> list[Tensor]:  # layout of torchvision: [N, H * W, C]
        return [level.flatten(2).transpose(1, 2).contiguous() for level in levels]

    outputs = {"cls_logits": rows(logits), "bbox_regression": rows(distances), "bbox_ctrness": rows(centerness)}
    anchors = [torch.cat([p - s / 2, p + s / 2], 1) for p, s in zip(points, strides, strict=True)]
    return ours, lambda: pair.theirs.postprocess_detections(outputs, [anchors], [pair.size])


def training_step(pair: Pair) -> tuple[Job, Job]:
    """Return the jobs for a training step: forward, backward and SGD step."""
    height, width = pair.size
    count = pair.batch_size
    images = torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8)
    corner = torch.rand(count, OBJECTS, 2) * torch.tensor([width, height]) * 0.7
    boxes = torch.cat([corner, corner + torch.rand(count, OBJECTS, 2) * torch.tensor([width, height]) * 0.25 + 8], 2)
    labels = torch.randint(0, CLASSES, (count, OBJECTS))
    targets = [Objects(*columns) for columns in zip(boxes, labels, strict=True)]
    sizes = torch.tensor([pair.size] * count)

    def step(model: nn.Module, losses: Callable[[], dict[str, Tensor]]) -> Job:
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-6, momentum=0.9)

        def run() -> None:
            model.train()
            optimizer.zero_grad()
            torch.stack(list(losses().values())).sum().backward()
            optimizer.step()

        return run

    def theirs() -> dict[str, Tensor]:
        floats = list(images.float() / 255)
        return pair.theirs(floats, [{"boxes": b, "labels": k} for b, k in zip(boxes, labels, strict=True)])

    return step(pair.ours, lambda: pair.ours(images, sizes, targets).terms), step(pair.theirs, theirs)


def loading(data: Path, workers: int) -> tuple[Job, Job]:
    """Return the jobs that load 50 training batches of 4 images: decode, resize, flip, collate; no worker start-up."""
    config = fcos.load_config(
        "fcos_mnv2_small",
        [
            f"data={data}",
            f"data.workers={workers}",
            "data.short_side=320",
            "data.zoom=[1,1]",
            "data.color_jitter=0",
            "train.batch_size=4",
            "train.iterations=99999",
        ],
    )
    annotations = load_annotations(config.data, "train")
    assert annotations is not None
    transform = v2.Compose(
        [
            v2.ToImage(),
            v2.RandomShortestSize(config.data.short_side, config.data.max_side),
            v2.RandomHorizontalFlip(),
            v2.SanitizeBoundingBoxes(),
        ]
    )
    files: Any = wrap_dataset_for_transforms_v2(
        CocoDetection(data, str(data / "train.json"), transforms=transform), target_keys=("boxes", "labels")
    )
    loader = DataLoader(files, 4, shuffle=True, num_workers=workers, collate_fn=list, persistent_workers=workers > 0)

    def endless() -> Iterator[object]:
        while True:
            yield from loader

    def take(batches: Iterator[object]) -> Job:
        next(batches)
        return lambda: [next(batches) for _ in range(50)]

    return take(iter(build_train_loader(config, annotations))), take(endless())


def median_times(ours: Job, theirs: Job, repeats: int) -> tuple[float, float]:
    """Return the median seconds of both jobs, which alternate."""
    times: tuple[list[float], list[float]] = ([], [])
    for job in (ours, theirs):
        job()  # warm-up
    for _ in range(repeats):
        for job, found in zip((ours, theirs), times, strict=True):
            start = time.perf_counter()
            job()
            found.append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="of every measurement (R-50 training: at most 5)")
    parser.add_argument("--only", nargs="+", choices=["mobilenet", "resnet", "loading"], help="leave out the others")
    parser.add_argument("--workers", type=int, default=2, help="loader processes")
    options = parser.parse_args()
    chosen = options.only or ["mobilenet", "resnet", "loading"]
    facts = {**machine(), "repeats": options.repeats}
    print(facts)
    torch.manual_seed(0)
    rows, results = [], {}

    def measure(name: str, jobs: tuple[Job, Job], repeats: int = options.repeats) -> None:
        ours, theirs = median_times(*jobs, repeats)
        results[name] = {"ours_seconds": ours, "torchvision_seconds": theirs}
        rows.append([name, f"{ours * 1e3:.1f}", f"{theirs * 1e3:.1f}", f"{theirs / ours:.2f}"])
        print(rows[-1], flush=True)

    for name, build in (("mobilenet", mobilenet), ("resnet", resnet)):
        if name in chosen:
            pair = build()
            at = f"{name} {pair.size[0]}x{pair.size[1]}"
            measure(f"{at}: inference, 1 image", inference(pair))
            measure(f"{at}: post-processing, crowded", postprocessing(pair))
            repeats = min(options.repeats, 5) if name == "resnet" else options.repeats
            measure(f"{at}: training step, {pair.batch_size} images", training_step(pair), repeats)
    if "loading" in chosen:
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder) / "digits"
            make_digits(data, train_images=100, val_images=1, size=640)
            measure("data loading, 200 images 640x640 to 320x320", loading(data, options.workers))
    write(
        "speed_vs_torchvision",
        "Speed beside torchvision (median milliseconds; a ratio above 1: ours is faster)",
        facts,
        markdown(["what", "fcos", "torchvision", "ratio"], rows),
        {"results": results},
    )


if __name__ == "__main__":
    main()
