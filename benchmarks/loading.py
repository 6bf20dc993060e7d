"""Measure the loading of training images on one core: decode, resize, flip and collate.

    python benchmarks/loading.py [--images 40] [--rounds 5]

Generated JPEG photographs (quality 90, 4:2:0) are loaded as float batches of 4 by `data.resize=pillow`, by
`data.resize=torch`, the same with `data.decode=fast` and with `data.cache`, and torchvision's tensor pipeline
(`decode_jpeg` and transforms.v2), in turns, with one thread. The caches are full when the measurement starts. The lower
limit of `data.resize=torch` is the decoding and resizing of JPEG files in memory, and nothing else.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from common import machine, markdown, write
from PIL import Image
from simplejpeg import decode_jpeg as decode_simplejpeg
from torchvision.io import ImageReadMode, decode_jpeg, read_file
from torchvision.transforms import v2

import fcos
from fcos.choices import Cache
from fcos.data import build_train_loader, load_annotations
from fcos.data.cache import CacheFiles
from fcos.data.geometry import resize_image, resize_size
from fcos.data.images import size_of

CASES = {
    "640x480 to 320": ((480, 640), 320, 512),
    "640x480 to 800": ((480, 640), 800, 1333),
    "4000x3000 to 800": ((3000, 4000), 800, 1333),
}
BATCH_SIZE = 4


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


def ours(folder: Path, short_side: int, max_side: int, *chosen: str, cache: Cache | None = None) -> Iterator[object]:
    """Yield endless float batches of our loader with the chosen options."""
    options = [f"data={folder}", *chosen, "data.workers=0", f"train.batch_size={BATCH_SIZE}"]
    sizes = [f"data.short_side={short_side}", f"data.max_side={max_side}", "train.iterations=99999"]
    config = fcos.load_config("fcos_r50_fpn_1x", [*options, *sizes])
    annotations = load_annotations(config.data, "train")
    assert annotations is not None
    files = None if cache is None else CacheFiles(cache, [annotations.sizes])  # open as long as batches are read
    if files is not None:
        annotations = replace(annotations, cache=files.caches[0])
    for batch in build_train_loader(config, annotations):
        yield batch.images.float()


def theirs(folder: Path, short_side: int, max_side: int) -> Iterator[object]:
    """Yield endless float batches of torchvision's tensor pipeline."""
    transform = v2.Compose([v2.Resize(short_side, max_size=max_side, antialias=True), v2.RandomHorizontalFlip()])
    files = sorted(folder.glob("*.jpg"))
    while True:
        for start in range(0, len(files), BATCH_SIZE):
            chunk = files[start : start + BATCH_SIZE]
            images = [transform(decode_jpeg(read_file(str(file)), ImageReadMode.RGB)) for file in chunk]
            yield torch.stack(images).float()


def lower_limit(folder: Path, short_side: int, max_side: int) -> Iterator[object]:
    """Yield endless batches of pixels that are decoded and resized as ours, but neither checked, flipped nor joined."""
    contents = [file.read_bytes() for file in sorted(folder.glob("*.jpg"))]
    while True:
        for start in range(0, len(contents), BATCH_SIZE):
            pixels = [
                torch.from_numpy(decode_simplejpeg(c)).permute(2, 0, 1) for c in contents[start : start + BATCH_SIZE]
            ]
            size = resize_size(*size_of(pixels[0]), short_side, max_side)
            yield [resize_image(image, size, method="torch") for image in pixels]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=40, help="of every size, a multiple of 4")
    parser.add_argument("--rounds", type=int, default=5, help="passes over the images, which take turns")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows, results = [], {}
    for name, (size, short_side, max_side) in CASES.items():
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            make_data(folder, size, options.images)
            sides: dict[str, Iterator[object]] = {"torchvision": theirs(folder, short_side, max_side)}
            pillow, torch_resize, fast = "data.resize=pillow", "data.resize=torch", "data.decode=fast"
            for chosen in ((pillow,), (torch_resize,), (torch_resize, fast)):
                sides[f"fcos, {', '.join(chosen)}"] = ours(folder, short_side, max_side, *chosen)
            sides["lower limit: decode and resize"] = lower_limit(folder, short_side, max_side)
            for cache in ("ram", "disk"):
                loader = ours(folder, short_side, max_side, torch_resize, cache=cache)
                sides[f"fcos, {torch_resize}, data.cache={cache}"] = loader
            milliseconds = measure(sides, options.images, options.rounds)
        reference = statistics.median(milliseconds["torchvision"])
        for side, times in milliseconds.items():
            median = statistics.median(times)
            cells = [f"{median:.2f}", f"{min(times):.2f}", f"{max(times):.2f}", f"{reference / median:.2f}"]
            rows.append([f"{name}: {side}", *cells])
        results[name] = milliseconds
    write(
        "loading",
        "Loading of training images on one core (milliseconds per image)",
        {**machine(), "images": options.images, "rounds": options.rounds},
        markdown(["what", "median", "fastest round", "slowest", "ratio"], rows),
        {"milliseconds": results},
    )


def measure(sides: dict[str, Iterator[object]], images: int, rounds: int) -> dict[str, list[float]]:
    """Return the milliseconds per image of every round."""
    found: dict[str, list[float]] = {side: [] for side in sides}

    def take(batches: Iterator[object]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(images // BATCH_SIZE):
                next(batches)

        return run

    jobs = {side: take(batches) for side, batches in sides.items()}
    for job in jobs.values():
        job()  # the files are in memory afterwards
    for _ in range(rounds):
        for side, job in jobs.items():
            start = time.perf_counter()
            job()
            found[side].append((time.perf_counter() - start) / images * 1e3)
    return found


if __name__ == "__main__":
    main()
