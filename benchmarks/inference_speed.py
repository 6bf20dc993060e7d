"""Measure the time of detection as users of fcos and of torchvision get it, in fresh processes that take turns.

    python benchmarks/inference_speed.py [--only mobilenet resnet] [--rounds 3] [--repeats 7] [--name inference_speed]

Both have the same layers (random weights), one uint8 image and two threads at most. `fcos` is `fcos.load(RECIPE)`:
batch norms folded, channels-last, freed memory kept. `torchvision` is its FCOS as built, in float32. The other rows
show where the difference comes from. Settings of the allocator belong to a process, so that every row has processes of
its own.

Two lower limits stand beside each figure: the operations of all convolutions divided by the rate of a large one, and
the bytes that they read and write divided by the bandwidth of a copy, both measured in the same run. On processors
without bfloat16 instructions, bfloat16 is not measured.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
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
from torch.utils.flop_counter import FlopCounterMode

import fcos
from fcos.allocator import keep_freed_memory
from fcos.inference.resized import Resized
from fcos.inference.selection import Selection
from fcos.models.inference_copy import InferenceCopy
from fcos.precision import has_instructions

REFERENCE = "torchvision, float32"


class Case(NamedTuple):
    """Detector of a recipe at one image size."""

    recipe: str
    size: tuple[int, int]


CASES = {"mobilenet": Case("fcos_mnv2_small", (320, 320)), "resnet": Case("fcos_r50_fpn_1x", (800, 1216))}


def ours(case: Case, *, precision: str = "float32", folded: bool = True) -> tuple[nn.Module, Job]:
    """Return our network, and the job that detects objects in one resized image."""
    options = [f"model.num_classes={CLASSES}", "model.backbone.weights=null", f"eval.precision={precision}"]
    detector = fcos.load(case.recipe, *options, device="cpu")
    if not folded:
        assert isinstance(detector._inference_copy, InferenceCopy)
        setattr(detector, "_inference_copy", lambda model: model)  # noqa: B010 (of another type)
    image = torch.randint(0, 256, (3, *case.size), dtype=torch.uint8)
    picture = Resized([image] * len(detector.resize.transforms), (case.size,), case.size)
    return detector.model, lambda: detector.detect_resized([picture], [Selection()])


def theirs(case: Case, *, precision: str = "float32", channels_last: bool = False, keep: bool = False) -> Any:
    """Return torchvision's network, and the job that detects objects in one image of the same size."""
    if keep:
        keep_freed_memory(torch.device("cpu"))
    if case.recipe == "fcos_mnv2_small":
        section = fcos_section(fcos.load_config(case.recipe))
        channels, num_convs = section.fpn.channels, section.head.num_convs
        model = torchvision_detectors.fcos(CLASSES, channels=channels, num_convs=num_convs, pretrained=False)
    else:
        model = torchvision_detectors.fcos_resnet50(CLASSES)
    model.eval()
    if channels_last:
        model.to(memory_format=torch.channels_last)
    image = torch.randint(0, 256, (3, *case.size), dtype=torch.uint8)

    @torch.inference_mode()
    def run() -> None:
        with nullcontext() if precision == "float32" else torch.autocast("cpu", torch.bfloat16):
            model([image.float() / 255])

    return model, run


SIDES: dict[str, Callable[[Case], tuple[nn.Module, Job]]] = {
    REFERENCE: theirs,
    "torchvision, float32, channels-last": partial(theirs, channels_last=True),
    "torchvision, float32, channels-last, freed memory kept": partial(theirs, channels_last=True, keep=True),
    "torchvision, autocast to bfloat16": partial(theirs, precision="bfloat16"),
    "fcos, float32, batch norms not folded": partial(ours, folded=False),
    "fcos, float32": ours,
    "fcos, bfloat16, batch norms not folded": partial(ours, precision="bfloat16", folded=False),
    "fcos, bfloat16": partial(ours, precision="bfloat16"),
}


def work(model: nn.Module, run: Job) -> tuple[int, int]:
    """Return the operations (two per multiplication and addition) and the values moved by the convolutions of a job."""
    moved = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal moved
        moved += inputs[0].numel() + output.numel() + sum(p.numel() for p in module.parameters(recurse=False))

    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, nn.Conv2d)]
    with FlopCounterMode(display=False) as counter:
        run()
    for hook in hooks:
        hook.remove()
    return counter.get_total_flops(), moved


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES), help="leave out the others")
    parser.add_argument("--rounds", type=int, default=3, help="processes of every side, which take turns")
    parser.add_argument("--repeats", type=int, default=7, help="detections in every process")
    parser.add_argument("--name", default="inference_speed", help="of the files with the results")
    parser.add_argument("--side", choices=list(SIDES), help="print the seconds of one side, in this process")
    options = parser.parse_args()
    torch.manual_seed(0)
    if options.side:
        print(json.dumps(times(SIDES[options.side](CASES[options.only[0]])[1], options.repeats)))
        return
    facts = {**machine(), "rounds": options.rounds, "repeats": options.repeats}
    sides = [side for side in SIDES if has_instructions(precision_of(side))]
    rates = measure_limits()
    print(facts, rates)
    rows, results = [], {}
    for name in options.only:
        operations, moved = work(*ours(CASES[name], folded=False))
        seconds: dict[str, list[list[float]]] = {side: [] for side in sides}
        for _ in range(options.rounds):
            for side in sides:
                choice = ["--only", name, "--repeats", str(options.repeats), "--side", side]
                seconds[side].append(in_fresh_process(__file__, *choice))
                print(f"{name}: {side}: {statistics.median(seconds[side][-1]) * 1e3:.1f} ms", flush=True)
        medians = {side: [statistics.median(each) for each in found] for side, found in seconds.items()}
        reference = statistics.median(medians[REFERENCE])
        for side, found in medians.items():
            dtype = precision_of(side)
            median = statistics.median(found)
            compute, traffic = operations / rates[dtype], moved * getattr(torch, dtype).itemsize / rates["bandwidth"]
            cells = (median, min(found), max(found), compute, traffic)
            height, width = CASES[name].size
            rows.append(
                [f"{name} {height}x{width}: {side}", *(f"{x * 1e3:.1f}" for x in cells), f"{reference / median:.2f}"]
            )
        results[name] = {"operations": operations, "values_moved": moved, "seconds": seconds}
    write(
        options.name,
        "Detection of one image in fresh processes that take turns (milliseconds)",
        facts,
        markdown(["what", "median", "fastest process", "slowest", "limit: operations", "limit: bytes", "ratio"], rows),
        {"rates_per_second": rates, "results": results},
    )


if __name__ == "__main__":
    main()
