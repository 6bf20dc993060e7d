"""Measure training and inference of FCOS R-50 at 800x1344 on one GPU, beside torchvision's FCOS.

    python benchmarks/gpu_speed.py [--batch 16] [--compile] [--contiguous] [--profile]

Both have the same architecture, random weights, input and memory format, and alternate in one process. For ours, the
number of times that a training step and a detection wait for the GPU is counted, too. In float16, the loss is scaled.
The results of `--contiguous`, where both are not in channels-last, have a file of their own.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from typing import Any

import torch
import torchvision_detectors
from common import CLASSES, Job, fcos_section, machine, markdown, write

import fcos
from fcos.inference.detect import detect_on_originals
from fcos.models import build_model
from fcos.models.fcos import FCOS
from fcos.models.folding import fold_frozen_stages
from fcos.models.inference_copy import InferenceCopy, compile_modules
from fcos.structures import Objects, View

HEIGHT, WIDTH = 800, 1344
OBJECTS = 10  # per training image


def training_job(model: torch.nn.Module, batch: int, dtype: torch.dtype, *, is_ours: bool) -> Job:
    """Return the job of a training step: transfer of uint8 images, forward, backward, SGD step, one wait."""
    images = torch.randint(0, 256, (batch, 3, HEIGHT, WIDTH), dtype=torch.uint8).pin_memory()
    corner = torch.rand(batch, OBJECTS, 2) * torch.tensor([WIDTH, HEIGHT]) * 0.7
    boxes = torch.cat([corner, corner + torch.rand(batch, OBJECTS, 2) * 300 + 8], 2).cuda()
    labels = torch.randint(0, CLASSES, (batch, OBJECTS)).cuda()
    targets = [Objects(*columns) for columns in zip(boxes, labels, strict=True)]
    rows = [{"boxes": b, "labels": k} for b, k in zip(boxes, labels, strict=True)]
    sizes = torch.tensor([(HEIGHT, WIDTH)] * batch).cuda()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-6, momentum=0.9)
    scaler = torch.amp.GradScaler("cuda", enabled=dtype == torch.float16)

    def run() -> float:
        model.train()
        optimizer.zero_grad()
        x = images.cuda(non_blocking=True)
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            terms = model(x, sizes, targets).terms if is_ours else model(list(x.float() / 255), rows)
        loss = torch.stack(list(terms.values())).sum()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss.item()

    return run


def inference_job(model: Any, batch: int, dtype: torch.dtype, *, is_ours: bool) -> Job:
    """Return the job of a detection: transfer of uint8 images, network, post-processing, detections on the CPU."""
    images = torch.randint(0, 256, (batch, 3, HEIGHT, WIDTH), dtype=torch.uint8).pin_memory()
    sizes = torch.tensor([(HEIGHT, WIDTH)] * batch)

    @torch.inference_mode()
    def run() -> object:
        model.eval()
        x = images.cuda(non_blocking=True)
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            if is_ours:
                return detect_on_originals(model, [View(x, sizes.cuda())], [(HEIGHT, WIDTH)] * batch)
            return [{key: value.cpu() for key, value in image.items()} for image in model(list(x.float() / 255))]

    return run


def for_inference(model: FCOS, dtype: torch.dtype, *, compiled: bool = False) -> FCOS:
    """Return a detector as `fcos predict` runs it."""
    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        return InferenceCopy(compiled=compiled)(model.eval())


def compiled_for_training(model: FCOS) -> FCOS:
    """Return a detector as `fcos train` runs it with `train.compile`."""
    model = fold_frozen_stages(model)
    compile_modules(model)
    return model


def measure(jobs: tuple[Job, ...], repeats: int) -> list[tuple[float, float]]:
    """Return the median seconds and the peak memory in GiB of each job; the jobs alternate."""
    times: list[list[float]] = [[] for _ in jobs]
    memory = [0.0 for _ in jobs]
    for number in range(repeats + 2):
        for index, job in enumerate(jobs):
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
            start = time.perf_counter()
            job()
            torch.cuda.synchronize()
            if number >= 2:  # the first two warm up
                times[index].append(time.perf_counter() - start)
            memory[index] = torch.cuda.max_memory_allocated() / 2**30
    return [(statistics.median(seconds), peak) for seconds, peak in zip(times, memory, strict=True)]


def count_waits(job: Job) -> int:
    """Return the number of times that a job waits for the GPU."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        job()
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--batch", type=int, default=16, help="images of a training step and of the large inference batch"
    )
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--compile", action="store_true", help="also measure ours with train.compile")
    parser.add_argument("--contiguous", action="store_true", help="measure both without channels-last")
    parser.add_argument("--profile", action="store_true", help="print the kernels that take most of a training step")
    options = parser.parse_args()
    ours = build_model(fcos_section(fcos.Config()), num_classes=CLASSES, pretrained=False)
    assert isinstance(ours, FCOS)
    theirs = torchvision_detectors.fcos_resnet50(CLASSES)
    for model in (ours, theirs):
        model.cuda().to(memory_format=torch.contiguous_format if options.contiguous else torch.channels_last)
    head: Any = theirs.head.classification_head
    # About one of 2,000 random scores of ours exceeds the threshold, as in crowded images.
    for module in (ours.head.logits, head.cls_logits):
        torch.nn.init.normal_(module.weight, std=0.015)
    gpu = torch.cuda.get_device_properties(0).name
    facts = {**machine(), "gpu": gpu, "cuda": torch.version.cuda, "image": f"{HEIGHT}x{WIDTH}"}
    print(facts, flush=True)
    rows: list[list[object]] = []
    results: dict[str, Any] = {}

    def add(name: str, batch: int, jobs: tuple[Job, ...]) -> None:
        measured = measure(jobs, options.repeats)
        waits = count_waits(jobs[0])
        rates = [batch / seconds for seconds, _ in measured]
        results[name] = {"images_per_second": rates, "gib": [peak for _, peak in measured], "waits": waits}
        cells = [f"{rate:.1f}" for rate in rates] + ["-"] * (2 - len(rates))
        ratio = f"{rates[0] / rates[1]:.2f}" if len(rates) > 1 else "-"
        rows.append([name, *cells, ratio, " / ".join(f"{peak:.1f}" for _, peak in measured), waits])
        print(rows[-1], flush=True)

    large = options.batch
    for dtype, label in ((torch.float32, "TF32"), (torch.float16, "float16"), (torch.bfloat16, "bfloat16")):
        pair = (for_inference(ours, dtype), True), (theirs, False)
        for batch in (1, large):
            jobs = tuple(inference_job(model, batch, dtype, is_ours=is_ours) for model, is_ours in pair)
            add(f"inference, {label}, batch {batch}", batch, jobs)
        pair = (fold_frozen_stages(ours), True), (theirs, False)
        jobs = tuple(training_job(model, large, dtype, is_ours=is_ours) for model, is_ours in pair)
        add(f"training, {label}, batch {large}", large, jobs)
    if options.compile:
        for batch in (1, large):
            job = inference_job(for_inference(ours, torch.bfloat16, compiled=True), batch, torch.bfloat16, is_ours=True)
            add(f"inference, bfloat16, batch {batch}, compiled", batch, (job,))
        job = training_job(compiled_for_training(ours), large, torch.bfloat16, is_ours=True)
        add(f"training, bfloat16, batch {large}, compiled", large, (job,))
    if options.profile:
        with torch.profiler.profile() as profile:
            job()
        print(profile.key_averages().table(sort_by="self_device_time_total", row_limit=30, max_name_column_width=120))
    columns = ["what", "fcos images/s", "torchvision images/s", "ratio", "GiB", "waits of fcos"]
    name = "gpu_speed_contiguous" if options.contiguous else "gpu_speed"
    write(name, "FCOS R-50 on one GPU", facts, markdown(columns, rows), {"results": results})


if __name__ == "__main__":
    main()
