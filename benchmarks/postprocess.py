"""Measure the post-processing of torchvision's FCOS and ours, from the outputs of the head to detections.

    OMP_NUM_THREADS=1 python benchmarks/postprocess.py [--repeats 15] [--classes 1 20 80 1200] [--size 800 1216]

Both get the same random outputs and must find the same detections. Their runs alternate in one process.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from common import machine, markdown, write
from torch import Tensor
from torchvision.models.detection import FCOS as TorchvisionFCOS
from torchvision.models.detection._utils import BoxLinearCoder
from torchvision.ops import batched_nms

from fcos.models.candidates import candidates
from fcos.models.points import Assigner
from fcos.models.postprocess import FCOSPostprocess, suppress
from fcos.structures import Instances

OPTIONS = FCOSPostprocess(threshold_on="score", detect_in_padding=True, keep_empty_boxes=True)  # as in torchvision
DENSITIES = {"few": 1e-4, "crowded": 1e-2, "half": 0.5}
"""Approximate shares of the scores above the threshold. Trained detectors have few."""
Job = Callable[[], Tensor]  # returns the scores of the detections, best first


def random_boxes(centers: Tensor, *, scattered: bool) -> Tensor:
    """Draw a box in pixels for every center [P, 2]: of the nearest of 50 objects, or of its own with `scattered`."""
    if scattered:
        return torch.cat([centers - torch.rand(len(centers), 2) * 40, centers + torch.rand(len(centers), 2) * 40], 1)
    corners = torch.rand(50, 2) * centers.amax(0) * 0.9
    objects = torch.cat([corners, corners + 20 + torch.rand(50, 2) * 200], 1)
    nearest = torch.cdist(centers, (objects[:, :2] + objects[:, 2:]) / 2).argmin(dim=1)
    return objects[nearest] + torch.randn(len(centers), 4) * 3


def postprocessing(classes: int, density: float, size: tuple[int, int], *, scattered: bool) -> tuple[Job, Job, int]:
    """Return the jobs for the outputs for one image of (height, width) `size`, and the number of candidates.

    Ours gets maps [1, C, H, W] in channels-last memory format, torchvision the same memory as [1, H * W, C], which is
    what the heads return.
    """
    assigner = Assigner()
    maps = assigner.maps(size)
    points = assigner.locations(maps)
    boxes = [random_boxes(level, scattered=scattered) for level in points]
    mean = -5.3 - 1.5 * float(torch.special.ndtri(torch.tensor(1 - density)))  # at -5.3, half of the scores exceed 0.05
    logits = [torch.randn(1, len(level), classes) * 1.5 + mean for level in points]
    centerness = [torch.randn(1, len(level), 1) for level in points]
    ltrb = [torch.cat([p - b[:, :2], b[:, 2:] - p], 1)[None] for p, b in zip(points, boxes, strict=True)]
    strides = assigner.strides
    theirs = {
        "cls_logits": logits,
        "bbox_regression": [distances / stride for distances, stride in zip(ltrb, strides, strict=True)],
        "bbox_ctrness": centerness,
    }
    anchors = [torch.cat([p - s / 2, p + s / 2], 1) for p, s in zip(points, strides, strict=True)]
    detector: Any = SimpleNamespace(
        score_thresh=OPTIONS.score_threshold,
        topk_candidates=OPTIONS.pre_nms_top_k,
        nms_thresh=OPTIONS.nms_threshold,
        detections_per_img=OPTIONS.max_detections,
        box_coder=BoxLinearCoder(normalize_by_size=True),
    )

    def columns(levels: list[Tensor]) -> list[Tensor]:
        return [x.transpose(1, 2).unflatten(2, grid) for x, grid in zip(levels, maps, strict=True)]

    ours = columns(logits), columns(ltrb), columns(centerness), points, [size]

    def run() -> Tensor:
        return suppress(candidates(*ours, options=OPTIONS)[0], OPTIONS).scores

    def run_theirs() -> Tensor:
        return TorchvisionFCOS.postprocess_detections(detector, theirs, [anchors], [size])[0]["scores"]

    return run, run_theirs, len(candidates(*ours, options=OPTIONS)[0])


def suppression(classes: int, count: int, size: tuple[int, int], *, scattered: bool) -> tuple[Job, Job, int]:
    """Return the jobs that select the best 100 of `count` random boxes, and the number of boxes."""
    centers = torch.rand(count, 2) * torch.tensor([float(size[1]), float(size[0])])
    boxes, labels, scores = (
        random_boxes(centers, scattered=scattered),
        torch.randint(classes, (count,)),
        torch.rand(count),
    )
    found = Instances(boxes, labels, scores, size)

    def theirs() -> Tensor:
        kept = batched_nms(boxes, scores, labels, OPTIONS.nms_threshold)
        return scores[kept[: OPTIONS.max_detections]]

    return lambda: suppress(found, OPTIONS).scores, theirs, count


def times(ours: Job, theirs: Job, repeats: int) -> tuple[list[float], list[float]]:
    """Return the milliseconds of all runs of both jobs, which alternate, in ascending order."""
    found: tuple[list[float], list[float]] = ([], [])
    torch.testing.assert_close(ours(), theirs())  # also warms up
    for _ in range(repeats):
        for job, seconds in zip((ours, theirs), found, strict=True):
            start = time.perf_counter()
            job()
            seconds.append((time.perf_counter() - start) * 1e3)
    return sorted(found[0]), sorted(found[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15, help="of every measurement")
    parser.add_argument("--classes", type=int, nargs="+", default=[1, 20, 80, 1200])
    parser.add_argument("--size", type=int, nargs=2, default=[800, 1216], metavar=("HEIGHT", "WIDTH"))
    options = parser.parse_args()
    height, width = options.size
    facts = {**machine(), "size": f"{height}x{width}", "repeats": options.repeats}
    print(facts)
    rows, results = [], {}

    def measure(what: str, classes: int, scattered: bool, jobs: tuple[Job, Job, int]) -> None:
        ours, theirs, count = jobs
        both = times(ours, theirs, options.repeats)
        medians = [statistics.median(found) for found in both]
        spreads = [f"{found[len(found) // 4]:.2f}-{found[-1 - len(found) // 4]:.2f}" for found in both]
        boxes = "scattered" if scattered else "50 objects"
        rows.append(
            [
                f"{what}, {boxes}",
                classes,
                count,
                *(f"{m:.2f} ({s})" for m, s in zip(medians, spreads, strict=True)),
                f"{medians[1] / medians[0]:.2f}",
            ]
        )
        results[f"{what}, {boxes}, {classes} classes"] = {"ours_ms": both[0], "torchvision_ms": both[1]}
        print(rows[-1], flush=True)

    for classes in options.classes:
        for scattered in (True, False):
            for name, density in DENSITIES.items():
                torch.manual_seed(0)
                jobs = postprocessing(classes, density, (height, width), scattered=scattered)
                measure(f"post-processing, {name}", classes, scattered, jobs)
            for count in (1000, 4000, 16000):
                torch.manual_seed(0)
                jobs = suppression(classes, count, (height, width), scattered=scattered)
                measure("suppression alone", classes, scattered, jobs)
    write(
        "postprocess",
        "Post-processing beside torchvision's FCOS (median ms, middle half of the runs; above 1: ours is faster)",
        facts,
        markdown(["what", "classes", "candidates", "fcos", "torchvision", "ratio"], rows),
        {"results": results},
    )


if __name__ == "__main__":
    main()
