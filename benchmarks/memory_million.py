"""Measure start-up time and memory with a million annotations, compared with torchvision's CocoDetection.

    python benchmarks/memory_million.py [--images 118000] [--annotations 1000000] [--share 1]

The data is synthetic: a COCO file with a polygon of ten corners for every box, and hard links to a few small pictures
as images. The parent process reads it, and four loader workers load an epoch. The memory of every process is read from
the kernel before, during and after the epoch. A forked worker shares its parent's memory until one of them writes to
it, and CPython writes to every object that it accesses (reference counts). A data set of Python objects is therefore
gradually copied into every worker.

Both sides run in separate processes. Linux only.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
import timeit
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from common import machine, markdown, write
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import CocoDetection
from torchvision.transforms import v2

import fcos
from fcos.data import build_train_loader, load_annotations
from fcos.data.samplers import seeded_batches

WORKERS, BATCH_SIZE, CLASSES = 4, 16, 80
SIDES = (64, 48), (48, 64), (64, 40), (56, 56)  # width and height of the pictures
PICTURES = 32  # files; a file system allows about 65000 hard links to each
SHARES = (0.25, 0.5, 0.75, 1.0)  # of the measured batches, after which memory is read
RESUME_AT = 500_000
Start = Callable[[], tuple[int, Iterable[Any]]]


def make_data(folder: Path, images: int, annotations: int) -> None:
    """Write train.json and the pictures; the number of boxes per image has a geometric distribution."""
    generator = np.random.default_rng(0)
    for k in range(PICTURES):
        width, height = SIDES[k % len(SIDES)]
        Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / f"{k}.jpg")
    (folder / "images").mkdir()
    names = [f"{i:012}.jpg" for i in range(images)]
    for i, name in enumerate(names):
        os.link(folder / f"{i % PICTURES}.jpg", folder / "images" / name)
    sizes = np.array(SIDES)[np.arange(images) % PICTURES % len(SIDES)]  # [I, 2]
    image_of = np.sort(generator.choice(images, annotations, p=generator.dirichlet(np.ones(images))))
    extents = sizes[image_of] * generator.uniform(0.05, 0.3, (annotations, 2))  # [B, 2]
    corners = (sizes[image_of] - extents) * generator.random((annotations, 2))
    polygons = corners[:, None] + extents[:, None] * generator.random((annotations, 10, 2))  # [B, 10, 2]
    columns = (image_of + 1, corners, extents, extents.prod(axis=1), polygons.reshape(annotations, 20))
    tree = {
        "images": [
            {"id": i + 1, "file_name": name, "width": width, "height": height}
            for i, (name, (width, height)) in enumerate(zip(names, sizes.tolist(), strict=True))
        ],
        "annotations": [
            {
                "segmentation": [polygon],
                "area": area,
                "iscrowd": 0,
                "image_id": image,
                "bbox": corner + extent,
                "category_id": k % CLASSES + 1,
                "id": k + 1,
            }
            for k, (image, corner, extent, area, polygon) in enumerate(
                zip(*(column.round(2).tolist() for column in columns), strict=True)
            )
        ],
        "categories": [{"id": k + 1, "name": f"class {k + 1}"} for k in range(CLASSES)],
    }
    (folder / "train.json").write_text(json.dumps(tree), encoding="utf-8")


def memory(process: int | str = "self") -> dict[str, float]:
    """Read the memory of a process in MiB: resident, private, and proportional share of memory not backed by files.

    The share counts a page that n processes have in common as 1/n.
    """
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
    size = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines}
    return {
        "resident": size["Rss"],
        "own": size["Private_Clean"] + size["Private_Dirty"],
        "share": size["Pss_Anon"] + size["Pss_Shmem"],
    }


def ours(folder: Path) -> tuple[int, Iterable[Any]]:
    """Start our side: `load_annotations` with its checks, and the training loader."""
    options = ["data.short_side=32", "data.max_side=64", f"data.workers={WORKERS}", f"train.batch_size={BATCH_SIZE}"]
    config = fcos.load_config("fcos_mnv2_small", [f"data={folder}", *options])
    annotations = load_annotations(config.data, "train")
    assert annotations is not None
    return len(annotations), build_train_loader(config, annotations)


def torchvisions(folder: Path) -> tuple[int, Iterable[Any]]:
    """Start torchvision's side: `CocoDetection` keeps the dicts and lists of the file and checks no pictures."""
    data = CocoDetection(folder / "images", str(folder / "train.json"), transform=v2.Resize(32))
    return len(data), DataLoader(data, BATCH_SIZE, shuffle=True, num_workers=WORKERS, collate_fn=list)


def measure(start: Start, share: float) -> dict[str, Any]:
    """Start one side, load a share of an epoch, and read the memory of all processes in between."""
    multiprocessing.set_start_method("fork", force=True)  # for the workers; this process was spawned
    before, began = memory(), time.perf_counter()
    images, batches = start()
    found: dict[str, Any] = {
        "start_seconds": time.perf_counter() - began,
        "start_mib": {"before": before, "after": memory(), "peak": _peak()},
        "epoch": [],
    }
    count = int(images * share / BATCH_SIZE)
    marks = [WORKERS, *(int(part * count) for part in SHARES)]  # the first mark: every worker has returned a batch
    began = time.perf_counter()
    for done, _ in enumerate(islice(batches, count), start=1):
        if done in marks:
            workers = [memory(child.pid) for child in multiprocessing.active_children() if child.pid]
            assert len(workers) == WORKERS
            seconds = time.perf_counter() - began
            found["epoch"].append({"images": done * BATCH_SIZE, "seconds": seconds, "mib": [memory(), *workers]})
    return found


def _peak() -> float:
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


def resume_seconds(images: int) -> float:
    """Return the seconds until the sampler yields its first batch when a run resumes at RESUME_AT, best of five."""
    groups = np.arange(images) % 3 // 2
    return min(
        timeit.repeat(
            lambda: next(seeded_batches(images, groups, BATCH_SIZE, seed=0, start_iteration=RESUME_AT)),
            number=1,
            repeat=5,
        )
    )


def rows_of(found: dict[str, Any]) -> dict[str, str]:
    """Format the figures of one side for the table; the parent is the first in every list of processes."""
    start, epoch = found["start_mib"], found["epoch"]

    def worker(entry: dict[str, Any]) -> float:
        return sum(process["own"] for process in entry["mib"][1:]) / WORKERS

    return {
        "start, seconds": f"{found['start_seconds']:.1f}",
        "parent before it reads anything, resident MiB": f"{start['before']['resident']:.0f}",
        "parent at its peak": f"{start['peak']:.0f}",
        "parent when the data is read": f"{start['after']['resident']:.0f}",
        **{
            f"parent after {entry['images']} images": f"{entry['mib'][0]['resident']:.0f}"
            for entry in (epoch[0], epoch[-1])
        },
        **{f"a worker's own MiB after {entry['images']} images": f"{worker(entry):.0f}" for entry in epoch},
        **{
            f"all five processes together, MiB, after {entry['images']} images": (
                f"{sum(process['share'] for process in entry['mib']):.0f}"
            )
            for entry in (epoch[0], epoch[-1])
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=118_000)
    parser.add_argument("--annotations", type=int, default=1_000_000)
    parser.add_argument("--share", type=float, default=1.0, help="of an epoch that is watched, at most 1")
    options = parser.parse_args()
    facts = {**machine(), "workers": WORKERS, **vars(options)}
    print(facts)
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_data(folder, options.images, options.annotations)
        facts["file_mb"] = round((folder / "train.json").stat().st_size / 1e6)
        for side, start in (("fcos", ours), ("torchvision CocoDetection", torchvisions)):
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
                found[side] = process.submit(measure, partial(start, folder), options.share).result()
    columns = {side: rows_of(entry) for side, entry in found.items()}
    rows = [[what, *(column[what] for column in columns.values())] for what in columns["fcos"]]
    resumed = {f"{images} images": resume_seconds(images) for images in (options.images, 1_000_000)}
    rows += [
        [f"continue at iteration {RESUME_AT} of {images}, seconds", f"{seconds:.1f}", "-"]
        for images, seconds in resumed.items()
    ]
    write(
        "memory_million",
        f"Start-up and memory with {options.annotations} annotations",
        facts,
        markdown(["what", *columns], rows),
        {"results": found, "resume_seconds": resumed},
    )


if __name__ == "__main__":
    main()
