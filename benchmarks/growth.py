"""Measure how the cost of training, post-processing and evaluation grows with the input; draw one plot per quantity.

    OMP_NUM_THREADS=1 python benchmarks/growth.py [--repeats 3]

Every curve is relative to its first point, and the dotted line is linear growth. Only one quantity changes at a time.
The time is that of the processor, so that other work on the machine hardly matters. The plots are written to docs/.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import Job, machine, markdown, write

import fcos
from fcos.evaluation.coco_metrics import coco_metrics
from fcos.models import build_model
from fcos.models.candidates import candidates
from fcos.models.points import Assigner, assign_targets
from fcos.models.postprocess import FCOSPostprocess, suppress
from fcos.plotting import import_matplotlib
from fcos.structures import Objects

DOCS = Path(__file__).parents[1] / "docs"
SIZE = (256, 256)
STRIDES = (8, 16, 32, 64, 128)
RANGES = ((-1, 64), (64, 128), (128, 256), (256, 512), (512, None))
COLORS = {"training": "C0", "target assignment": "C1", "post-processing": "C2", "evaluation": "C3"}
Growth = dict[str, tuple[list[int], Callable[[int], Job]]]


def objects(images: int, boxes: int, size: tuple[int, int], classes: int = 80) -> list[Objects]:
    """Draw the ground truth of images of (height, width) `size`."""
    sides = torch.tensor([size[1], size[0]])
    corner = torch.rand(images, boxes, 2) * sides * 0.7
    corners = torch.cat([corner, corner + torch.rand(images, boxes, 2) * sides * 0.25 + 8], 2)
    return [Objects(b, k) for b, k in zip(corners, torch.randint(0, classes, (images, boxes)), strict=True)]


def training(
    *, images: int = 1, size: tuple[int, int] = SIZE, boxes: int = 10, classes: int = 80, levels: int = 5
) -> Job:
    """Return a job of the losses of the small recipe and their gradients."""
    section = fcos.load_config("fcos_mnv2_small", ["model.backbone.weights=null"]).model
    options: dict[str, Any] = {"strides": list(STRIDES[:levels]), "size_ranges": [list(r) for r in RANGES[:levels]]}
    options["size_ranges"][-1][1] = None
    model = build_model(section.model_copy(update=options), num_classes=classes, pretrained=False)
    model = model.to(memory_format=torch.channels_last).train()
    pixels, targets = (
        torch.randint(0, 256, (images, 3, *size), dtype=torch.uint8),
        objects(images, boxes, size, classes),
    )
    sizes = torch.tensor([size] * images)

    def run() -> None:
        model.zero_grad()
        torch.stack(list(model(pixels, sizes, targets).terms.values())).sum().backward()

    return run


def assignment(*, images: int = 1, size: tuple[int, int] = (800, 1216), boxes: int = 10, levels: int = 5) -> Job:
    """Return a job of the target assignment."""
    assigner = Assigner(strides=STRIDES[:levels], size_ranges=RANGES[:levels])
    points, targets = assigner.locations(assigner.maps(size)), objects(images, boxes, size)
    return lambda: assign_targets(points, targets, assigner)


def postprocessing(*, images: int = 1, size: tuple[int, int] = (800, 1216), classes: int = 80, levels: int = 5) -> Job:
    """Return a job from the outputs of the head to detections; one of 10,000 scores exceeds the threshold."""
    assigner, options = Assigner(strides=STRIDES[:levels], size_ranges=RANGES[:levels]), FCOSPostprocess()
    maps = assigner.maps(size)

    def maps_of(channels: int, scale: float, mean: float) -> list[torch.Tensor]:
        outputs = [torch.randn(images, channels, *grid) * scale + mean for grid in maps]
        return [x.contiguous(memory_format=torch.channels_last) for x in outputs]

    ltrb = [x.abs() for x in maps_of(4, 40.0, 0.0)]
    inputs = maps_of(classes, 1.5, -8.5), ltrb, maps_of(1, 1.0, 0.0), assigner.locations(maps), [size] * images
    return lambda: [suppress(each, options) for each in candidates(*inputs, options=options)]


def evaluation(*, images: int = 50, boxes: int = 10, classes: int = 80) -> Job:
    """Return a job of the COCO metrics, with ten detections per object."""
    targets = objects(images, boxes, SIZE, classes)
    rows, found = [], []
    for image, each in enumerate(targets):
        for (x1, y1, x2, y2), label in zip(each.boxes.tolist(), each.labels.tolist(), strict=True):
            box, category = [x1, y1, x2 - x1, y2 - y1], label + 1
            row = {"image_id": image + 1, "category_id": category, "bbox": box}
            rows.append({**row, "id": len(rows) + 1, "area": box[2] * box[3], "iscrowd": 0})
            found += [{**row, "score": float(torch.rand(()))} for _ in range(10)]
    height, width = SIZE
    truth = {
        "images": [{"id": i + 1, "height": height, "width": width} for i in range(images)],
        "categories": [{"id": k + 1, "name": str(k)} for k in range(classes)],
        "annotations": rows,
    }
    return lambda: coco_metrics(truth, found)


PLOTS: dict[str, Growth] = {
    "images": {
        "training": ([1, 2, 4, 8], lambda n: training(images=n)),
        "target assignment": ([1, 2, 4, 8, 16], lambda n: assignment(images=n)),
        "post-processing": ([1, 2, 4, 8], lambda n: postprocessing(images=n)),
        "evaluation": ([50, 100, 200, 400], lambda n: evaluation(images=n)),
    },
    "pixels": {
        "training": ([n * n for n in (128, 256, 384, 512)], lambda n: training(size=(round(n**0.5),) * 2)),
        "target assignment": ([n * n for n in (256, 512, 1024)], lambda n: assignment(size=(round(n**0.5),) * 2)),
        "post-processing": ([n * n for n in (256, 512, 1024)], lambda n: postprocessing(size=(round(n**0.5),) * 2)),
    },
    "boxes": {
        "training": ([10, 100, 1000], lambda n: training(boxes=n)),
        "target assignment": ([10, 100, 1000, 4000], lambda n: assignment(boxes=n)),
        "evaluation": ([10, 40, 160], lambda n: evaluation(boxes=n)),
    },
    "classes": {
        "training": ([80, 300, 1200], lambda n: training(classes=n)),
        "post-processing": ([80, 300, 1200], lambda n: postprocessing(classes=n)),
        "evaluation": ([80, 300, 1200], lambda n: evaluation(classes=n)),
    },
    "levels": {
        "training": ([3, 4, 5], lambda n: training(levels=n)),
        "target assignment": ([3, 4, 5], lambda n: assignment(levels=n)),
        "post-processing": ([3, 4, 5], lambda n: postprocessing(levels=n)),
    },
}


def milliseconds(job: Job, repeats: int) -> float:
    """Return the processor time of the fastest of several runs, after one that is not counted."""
    job()
    found = []
    for _ in range(repeats):
        start = time.process_time()
        job()
        found.append((time.process_time() - start) * 1e3)
    return min(found)


def draw(quantity: str, curves: dict[str, tuple[list[int], list[float]]]) -> None:
    """Write the plot of one quantity to docs/."""
    mpl: Any = import_matplotlib()
    mpl.rcParams |= {"svg.hashsalt": quantity, "svg.fonttype": "none"}  # equal data, equal file; small files
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2, 3.2), layout="constrained")
    axes = figure.subplots()
    longest = max(values[-1] / values[0] for values, _ in curves.values())
    axes.plot([1, longest], [1, longest], ":", color="grey", label="linear")
    for name, (values, times) in curves.items():
        relative = [x / values[0] for x in values], [y / times[0] for y in times]
        axes.plot(*relative, "o-", color=COLORS[name], markersize=4, label=name)
    scale = "log" if longest > 2 else "linear"
    axes.set(xscale=scale, yscale=scale, xlabel=f"{quantity}, relative", ylabel="time, relative")
    axes.legend(fontsize=8)
    figure.savefig(DOCS / f"growth_{quantity}.svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="of every measurement")
    options = parser.parse_args()
    torch.manual_seed(0)
    facts = {**machine(), "repeats": options.repeats}
    rows, results = [], {}
    for quantity, growth in PLOTS.items():
        curves = {}
        for name, (values, build) in growth.items():
            times = [milliseconds(build(value), options.repeats) for value in values]
            curves[name] = values, times
            pairs = ", ".join(f"{value:,}: {each:.1f}" for value, each in zip(values, times, strict=True))
            rows.append([quantity, name, pairs, f"{values[-1] / values[0]:.1f}", f"{times[-1] / times[0]:.1f}"])
            print(rows[-1], flush=True)
        draw(quantity, curves)
        results[quantity] = curves
    write(
        "growth",
        "Growth of the cost (processor time in milliseconds)",
        facts,
        markdown(["quantity", "what", "milliseconds", "input grows", "time grows"], rows),
        {"results": results},
    )


if __name__ == "__main__":
    main()
