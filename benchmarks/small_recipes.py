"""Measure the small recipes beside one another: operations, detection of one image and training step.

    python benchmarks/small_recipes.py [RECIPE ...] [--rounds 7] [--cpu-time]

All recipes take turns in one process with one thread. Weights are random, images have 320x320 pixels (detection) and
320x448 pixels (training, ten boxes per image). The training step is that of the recipe: batch size, frozen stages,
optimizer, clipping of gradients and weight average, but no data loading. The first recipe is the reference of the
ratios, which include the effect of different batch sizes. `--cpu-time` measures the time that the process has run
instead of the wall-clock time, on a machine that has other work to do.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from common import machine, markdown, write
from torch.utils.flop_counter import FlopCounterMode

import fcos
from fcos.allocator import keep_freed_memory
from fcos.models import build_model
from fcos.models.folding import fold_frozen_stages
from fcos.structures import Objects
from fcos.training.optim import WeightAverage, build_optimizer

RECIPES = ("fcos_mnv2_small", "fcos_mnv2_nano")
CLASSES, BOXES = 3, 10
Job = Callable[[], object]


class Jobs(NamedTuple):
    """Facts and jobs of a recipe."""

    parameters: int
    operations: int  # of the detection
    batch: int  # images of a training step
    detect: Job
    step: Job


def jobs_of(recipe: str, options: list[str]) -> Jobs:
    options = ["model.backbone.weights=null", *options]
    detector = fcos.load(recipe, f"model.num_classes={CLASSES}", *options, device="cpu")
    detector.is_trained = True  # detectors with random weights refuse to detect
    image = torch.randint(0, 256, (3, 320, 320), dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter:
        detector.predict(image)
    parameters = sum(parameter.numel() for parameter in detector.model.parameters())
    config = fcos.load_config(recipe, options)
    operations, batch = counter.get_total_flops(), config.train.batch_size
    return Jobs(parameters, operations, batch, lambda: detector.predict(image), training_step(config))


def training_step(config: fcos.Config) -> Job:
    model = build_model(config.model, num_classes=CLASSES, pretrained=False)
    model = model.to(memory_format=torch.channels_last).train()
    trained = fold_frozen_stages(model) if config.train.fold_frozen else model
    optimizer = build_optimizer(model, config.train)
    average = WeightAverage(model, config.train.ema or 0.998, statistics=config.train.ema_statistics)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    batch = config.train.batch_size
    images = torch.randint(0, 256, (batch, 3, 320, 448), dtype=torch.uint8)
    images = images.contiguous(memory_format=torch.channels_last)
    corners = torch.rand(batch, BOXES, 2) * torch.tensor([448, 320]) * 0.7
    sides = torch.rand(batch, BOXES, 2) * torch.tensor([448, 320]) * 0.25 + 8
    targets = [
        Objects(boxes, torch.randint(0, CLASSES, (BOXES,))) for boxes in torch.cat([corners, corners + sides], 2)
    ]
    sizes = torch.tensor([[320, 448]] * batch)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        losses = trained(images, sizes, targets)
        torch.stack(list(losses.terms.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(parameters, config.train.clip_norm or float("inf"))
        optimizer.step()
        average.update(model)

    return step


def median_seconds(jobs: list[Job], rounds: int, clock: Callable[[], float]) -> list[float]:
    """Return the median seconds of jobs that take turns, after a round of warm-up."""
    times: list[list[float]] = [[] for _ in jobs]
    for number in range(rounds + 1):
        for job, found in zip(jobs, times, strict=True):
            start = clock()
            job()
            if number:
                found.append(clock() - start)
    return [statistics.median(found) for found in times]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=RECIPES)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cpu-time", action="store_true", help="measure the time of the process, not of the clock")
    parser.add_argument("--overrides", nargs="*", default=[], help="key=value for all recipes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    keep_freed_memory(torch.device("cpu"))
    clock = time.process_time if options.cpu_time else time.perf_counter
    facts = {**machine(), "rounds": options.rounds, "time": "CPU time" if options.cpu_time else "wall clock"}
    print(facts)
    measured = [jobs_of(recipe, options.overrides) for recipe in options.recipes]
    detect = median_seconds([jobs.detect for jobs in measured], options.rounds, clock)
    step = median_seconds([jobs.step for jobs in measured], options.rounds, clock)
    speeds = [jobs.batch / seconds for jobs, seconds in zip(measured, step, strict=True)]
    rows, results = [], {}
    for recipe, jobs, seconds, speed in zip(options.recipes, measured, detect, speeds, strict=True):
        rows.append(
            [
                *(recipe, f"{jobs.parameters / 1e6:.2f}", f"{jobs.operations / 1e9:.2f}"),
                *(f"{seconds * 1e3:.1f}", f"{detect[0] / seconds:.2f}"),
                *(jobs.batch, f"{speed:.2f}", f"{speed / speeds[0]:.2f}"),
            ]
        )
        results[recipe] = {"operations": jobs.operations, "detect_seconds": seconds, "images_per_second": speed}
    head = ["recipe", "M parameters", "GFLOP at 320x320", "predict, ms", "ratio", "batch", "trained images/s", "ratio"]
    write("small_recipes", "Small recipes on one core", facts, markdown(head, rows), {"results": results})


if __name__ == "__main__":
    main()
