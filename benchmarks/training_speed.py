"""Measure the training step as users of fcos and of torchvision get it, in fresh processes that take turns.

    python benchmarks/training_speed.py [--only resnet mobilenet] [--rounds 3] [--repeats 5]

Both have the same layers (random weights), images, frozen stages, optimiser and weight average. `fcos` is the step of
`fcos train`: channels-last, freed memory kept, loss and gradient norm read after every step. `torchvision` is its FCOS
as built. Settings of the allocator belong to a process, so that every row has processes of its own. The lower limit is
the operations of our convolutions, forwards and backwards, divided by the rate of a large one in the same run. The peak
memory is that of the whole process beyond its memory before the first step. On processors without bfloat16
instructions, bfloat16 is not measured. Linux only.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torchvision_detectors
from common import (
    CLASSES,
    Job,
    fcos_section,
    in_fresh_process,
    machine,
    markdown,
    measure_limits,
    precision_of,
    times,
    write,
)
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fcos
from fcos.allocator import keep_freed_memory
from fcos.config import TrainConfig
from fcos.models import build_model
from fcos.precision import has_instructions
from fcos.structures import Batch, Objects
from fcos.training.run import Run
from fcos.training.step import train_step, wrap_model

OBJECTS = 10  # per image
REFERENCE = "torchvision, float32"


class Case(NamedTuple):
    """Detector of a recipe with batches of images of one size."""

    recipe: str
    batch_size: int
    size: tuple[int, int]


CASES = {"resnet": Case("fcos_r50_fpn_1x", 2, (384, 512)), "mobilenet": Case("fcos_mnv2_small", 8, (320, 320))}


def batch(case: Case) -> Batch:
    """Draw images and boxes."""
    count, (height, width) = case.batch_size, case.size
    images = torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8)
    sides = torch.tensor([width, height])
    corner = torch.rand(count, OBJECTS, 2) * sides * 0.7
    boxes = torch.cat([corner, corner + torch.rand(count, OBJECTS, 2) * sides * 0.25 + 8], 2)
    labels = torch.randint(0, CLASSES, (count, OBJECTS))
    targets = [Objects(*columns) for columns in zip(boxes, labels, strict=True)]
    return Batch(images, torch.tensor([case.size] * count), targets, torch.arange(count))


def load_config(case: Case, *options: str) -> fcos.Config:
    """Return the config of a case; its learning rate is so small that the random weights stay as they are."""
    return fcos.load_config(case.recipe, ["model.backbone.weights=null", "train.lr=1e-9", *options])


def ours(case: Case, *, precision: str = "float32") -> Job:
    """Return the job of our training step."""
    device, config = torch.device("cpu"), load_config(case, f"train.precision={precision}")
    keep_freed_memory(device)
    model = build_model(config.model, num_classes=CLASSES, pretrained=False)
    model = model.to(memory_format=torch.channels_last).train()
    data: Any = SimpleNamespace(class_names=[], category_ids=[], keypoint_layout=None)
    run = Run(Path(), config, model=model, train_data=data, val_data=None, elapsed=lambda: 0.0)
    batch_, undisturbed = batch(case), SimpleNamespace(requested=False)
    wrapped = wrap_model(run)
    return lambda: train_step(wrapped, batch_, run, undisturbed, micro_batches=1)  # pyright: ignore[reportArgumentType]


def theirs(case: Case, *, precision: str = "float32", channels_last: bool = False, keep: bool = False) -> Job:
    """Return the job of the same training step with torchvision's network."""
    if keep:
        keep_freed_memory(torch.device("cpu"))
    config = load_config(case)
    section, settings = fcos_section(config), config.train
    frozen = nn.ModuleList()
    if case.recipe == "fcos_mnv2_small":
        channels, num_convs = section.fpn.channels, section.head.num_convs
        model = torchvision_detectors.fcos(CLASSES, channels=channels, num_convs=num_convs, pretrained=False)
        body: Any = model.backbone.body
        frozen.extend(list(body.children())[:4])  # stem and C2, as in our recipe
    else:
        model = torchvision_detectors.fcos_resnet50(CLASSES)  # freezes them itself
    frozen.requires_grad_(False)
    if channels_last:
        model.to(memory_format=torch.channels_last)
    model.train()
    frozen.eval()  # keeps the statistics of the batch norms
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = build_optimizer(parameters, settings)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(settings.ema)) if settings.ema else None
    images, _, objects, *_ = batch(case)
    assert objects is not None
    targets = [{"boxes": each.boxes, "labels": each.labels} for each in objects]

    def run() -> float:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            losses: dict[str, Tensor] = model(list(images.float() / 255), targets)
        loss = torch.stack(list(losses.values())).sum()
        loss.backward()
        if settings.clip_norm:
            nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
        optimizer.step()
        if average:
            average.update_parameters(model)
        return loss.item()

    return run


def build_optimizer(parameters: list[nn.Parameter], settings: TrainConfig) -> torch.optim.Optimizer:
    """Build the optimiser of a recipe with one rate for all parameters."""
    decay = settings.weight_decay
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=decay, fused=True)
    return torch.optim.SGD(parameters, lr=settings.lr, momentum=settings.momentum, weight_decay=decay, fused=True)


SIDES: dict[str, Callable[[Case], Job]] = {
    REFERENCE: theirs,
    "torchvision, float32, channels-last": partial(theirs, channels_last=True),
    "torchvision, float32, channels-last, freed memory kept": partial(theirs, channels_last=True, keep=True),
    "torchvision, autocast to bfloat16": partial(theirs, precision="bfloat16"),
    "fcos, float32": ours,
    "fcos, bfloat16": partial(ours, precision="bfloat16"),
}


def count_operations(job: Job) -> int:
    """Return the operations of all convolutions in a training step: forwards, and for the gradients that they need."""
    operations = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal operations
        if isinstance(module, nn.Conv2d):
            passes = 1 + module.weight.requires_grad + inputs[0].requires_grad
            operations += 2 * passes * output.numel() * module.weight[0].numel()

    handle = register_module_forward_hook(count)
    job()
    handle.remove()
    return operations


def memory(name: str) -> float:
    """Return a value of this process in MiB: `VmRSS`, its current memory, or `VmHWM`, its largest."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def measure(job: Job, repeats: int) -> dict[str, Any]:
    """Return the seconds of all steps but the first two, and the peak memory in MiB."""
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets VmHWM
    return {"seconds": times(job, repeats), "peak": memory("VmHWM") - before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES), help="leave out the others")
    parser.add_argument("--rounds", type=int, default=3, help="processes of every side, which take turns")
    parser.add_argument("--repeats", type=int, default=5, help="steps in every process")
    parser.add_argument("--side", choices=list(SIDES), help="print the measurement of one side, in this process")
    options = parser.parse_args()
    torch.manual_seed(0)
    if options.side:
        print(json.dumps(measure(SIDES[options.side](CASES[options.only[0]]), options.repeats)))
        return
    facts = {**machine(), "rounds": options.rounds, "repeats": options.repeats}
    sides = [side for side in SIDES if has_instructions(precision_of(side))]
    rates = measure_limits()
    print(facts, rates)
    rows, results = [], {}
    for name in options.only:
        operations = count_operations(ours(CASES[name]))
        found: dict[str, list[Any]] = {side: [] for side in sides}
        for _ in range(options.rounds):
            for side in sides:
                choice = ["--only", name, "--repeats", str(options.repeats), "--side", side]
                found[side].append(in_fresh_process(__file__, *choice))
                print(f"{name}: {side}: {statistics.median(found[side][-1]['seconds']) * 1e3:.0f} ms", flush=True)
        medians = {side: [statistics.median(one["seconds"]) for one in each] for side, each in found.items()}
        reference = statistics.median(medians[REFERENCE])
        count, (height, width) = CASES[name].batch_size, CASES[name].size
        for side, each in medians.items():
            median, peak = statistics.median(each), statistics.median(one["peak"] for one in found[side])
            limit = operations / rates[precision_of(side)]
            cells = (f"{x * 1e3:.0f}" for x in (median, min(each), max(each), limit))
            rows.append(
                [f"{name} {count}x{height}x{width}: {side}", *cells, f"{peak:.0f}", f"{reference / median:.2f}"]
            )
        results[name] = {"operations": operations, "sides": found}
    write(
        "training_speed",
        "Training step in fresh processes that take turns (milliseconds; a ratio above 1: faster than the first row)",
        facts,
        markdown(
            ["what", "median", "fastest process", "slowest", "limit: operations", "peak memory (MiB)", "ratio"], rows
        ),
        {"rates_per_second": rates, "results": results},
    )


if __name__ == "__main__":
    main()
