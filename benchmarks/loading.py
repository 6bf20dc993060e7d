"""Measure the loading of training images on one core: read, decode, resize, flip and collate.

    python benchmarks/loading.py [--images 16] [--rounds 3]

Generated JPEG photographs (quality 90, 4:2:0) are loaded as float batches of 4, as users of both libraries get it:
torchvision's tensor pipeline (`decode_jpeg` and transforms.v2), and fcos, whose training and loader workers keep freed
memory, with `data.resize=pillow`, `data.resize=torch`, and the latter with `data.decode=fast` or `data.cache`. Settings
of the allocator belong to a process, so that every row has processes of its own, which take turns, with one thread. Two
passes over the images are not counted; the first fills the caches. The lower limit of `data.resize=torch` is the
decoding and resizing of JPEG files in memory with freed memory kept, and nothing else.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from common import in_fresh_process, machine, markdown, times, write
from PIL import Image
from simplejpeg import decode_jpeg as decode_simplejpeg
from torchvision.io import ImageReadMode, decode_jpeg, read_file
from torchvision.transforms import v2

import fcos
from fcos.allocator import keep_freed_memory
from fcos.choices import Cache
from fcos.data import build_train_loader, load_annotations
from fcos.data.cache import CacheFiles
from fcos.data.geometry import resize_image, resize_size
from fcos.data.images import size_of

BATCH_SIZE = 4
REFERENCE = "torchvision"


class Case(NamedTuple):
    """Photographs of (height, width), the sides to resize them to, and the passes over them in every process."""

    size: tuple[int, int]
    short_side: int
    max_side: int
    passes: int


CASES = {
    "640x480 to 320": Case((480, 640), 320, 512, 20),
    "640x480 to 800": Case((480, 640), 800, 1333, 10),
    "4000x3000 to 800": Case((3000, 4000), 800, 1333, 3),
}


def make_data(folder: Path, size: tuple[int, int], count: int) -> None:
    """Write photographs without objects: smooth shapes with grain, so that they compress like real ones."""
    height, width = size
    generator = np.random.default_rng(0)
    for i in range(count):
        coarse = generator.integers(0, 256, (height // 20, width // 20, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
        pixels = (smooth + generator.integers(-6, 7, smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.jpg", quality=90, subsampling=2)
    images = [{"id": i, "file_name": f"{i}.jpg", "height": height, "width": width} for i in range(count)]
    boxes = [{"id": i, "image_id": i, "category_id": 1, "bbox": [10, 10, 99, 99]} for i in range(count)]
    tree = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "object"}]}
    (folder / "train.json").write_text(json.dumps(tree), encoding="utf-8")


def ours(folder: Path, case: Case, *chosen: str, cache: Cache | None = None) -> Iterator[object]:
    """Yield endless float batches of our loader with the chosen options."""
    keep_freed_memory(torch.device("cpu"))
    options = [f"data={folder}", *chosen, "data.workers=0", f"train.batch_size={BATCH_SIZE}"]
    sizes = [f"data.short_side={case.short_side}", f"data.max_side={case.max_side}", "train.iterations=99999"]
    config = fcos.load_config("fcos_r50_fpn_1x", [*options, *sizes])
    annotations = load_annotations(config.data, "train")
    assert annotations is not None
    files = None if cache is None else CacheFiles(cache, [annotations.sizes])  # open as long as batches are read
    if files is not None:
        annotations = replace(annotations, cache=files.caches[0])
    for batch in build_train_loader(config, annotations):
        yield batch.images.float()


def theirs(folder: Path, case: Case, *, keep: bool = False) -> Iterator[object]:
    """Yield endless float batches of torchvision's tensor pipeline."""
    if keep:
        keep_freed_memory(torch.device("cpu"))
    transform = v2.Compose(
        [v2.Resize(case.short_side, max_size=case.max_side, antialias=True), v2.RandomHorizontalFlip()]
    )
    files = cycle(sorted(folder.glob("*.jpg")))
    while True:
        images = [transform(decode_jpeg(read_file(str(next(files))), ImageReadMode.RGB)) for _ in range(BATCH_SIZE)]
        yield torch.stack(images).float()


def lower_limit(folder: Path, case: Case) -> Iterator[object]:
    """Yield endless batches of pixels that are decoded and resized as ours, but neither checked, flipped nor joined."""
    keep_freed_memory(torch.device("cpu"))
    contents = cycle([file.read_bytes() for file in sorted(folder.glob("*.jpg"))])
    while True:
        pixels = [torch.from_numpy(decode_simplejpeg(next(contents))).permute(2, 0, 1) for _ in range(BATCH_SIZE)]
        size = resize_size(*size_of(pixels[0]), case.short_side, case.max_side)
        yield [resize_image(image, size, method="torch") for image in pixels]


PILLOW, TORCH = "data.resize=pillow", "data.resize=torch"
SIDES: dict[str, Callable[[Path, Case], Iterator[object]]] = {
    REFERENCE: theirs,
    f"{REFERENCE}, freed memory kept": partial(theirs, keep=True),
    f"fcos, {PILLOW}": lambda folder, case: ours(folder, case, PILLOW),
    f"fcos, {TORCH}": lambda folder, case: ours(folder, case, TORCH),
    f"fcos, {TORCH}, data.decode=fast": lambda folder, case: ours(folder, case, TORCH, "data.decode=fast"),
    "lower limit: decode and resize": lower_limit,
    f"fcos, {TORCH}, data.cache=ram": lambda folder, case: ours(folder, case, TORCH, cache="ram"),
    f"fcos, {TORCH}, data.cache=disk": lambda folder, case: ours(folder, case, TORCH, cache="disk"),
}


def measure(batches: Iterator[object], images: int, passes: int) -> list[float]:
    """Return the milliseconds per image of every pass over the images but the first two."""

    def run() -> None:
        for _ in range(images // BATCH_SIZE):
            next(batches)

    return [seconds / images * 1e3 for seconds in times(run, passes)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", choices=list(CASES), default=list(CASES), help="print these, without writing results"
    )
    parser.add_argument("--images", type=int, default=16, help="of every size, a multiple of 4")
    parser.add_argument("--rounds", type=int, default=3, help="processes of every side, which take turns")
    parser.add_argument("--side", nargs=2, metavar=("NAME", "DIR"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.images < 1 or options.images % BATCH_SIZE or options.rounds < 1:
        parser.error(f"--images must be a multiple of {BATCH_SIZE}, and --rounds at least 1")
    torch.set_num_threads(1)
    if options.side:
        (side, folder), case = options.side, CASES[options.only[0]]
        print(json.dumps(measure(SIDES[side](Path(folder), case), options.images, case.passes)))
        return
    rows, results = [], {}
    for name in options.only:
        found: dict[str, list[list[float]]] = {side: [] for side in SIDES}
        with tempfile.TemporaryDirectory() as folder:
            make_data(Path(folder), CASES[name].size, options.images)
            for _ in range(options.rounds):
                for side in SIDES:
                    choice = ["--only", name, "--images", str(options.images), "--side", side, folder]
                    found[side].append(in_fresh_process(__file__, *choice))
        medians = {side: [statistics.median(one) for one in each] for side, each in found.items()}
        reference = statistics.median(medians[REFERENCE])
        for side, each in medians.items():
            median = statistics.median(each)
            cells = [f"{x:.2f}" for x in (median, min(each), max(each), reference / median)]
            rows.append([f"{name}: {side}", *cells])
            print(rows[-1], flush=True)
        results[name] = found
    if options.only != list(CASES):
        return  # the committed results have all cases
    write(
        "loading",
        "Loading of training images on one core (milliseconds per image; a ratio above 1: faster than the first row)",
        {**machine(), "images": options.images, "rounds": options.rounds},
        markdown(["what", "median", "fastest process", "slowest", "ratio"], rows),
        {"milliseconds": results},
    )


if __name__ == "__main__":
    main()
