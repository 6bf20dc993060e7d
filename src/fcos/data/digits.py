"""Sample data without a download: real handwritten digits on real photographs, in COCO layout.

The digits are scikit-learn's 1797 scans (UCI "Optical Recognition of Handwritten Digits", 8x8 pixels). The photographs
are included in scikit-learn and scikit-image. Training and validation images share neither a scan nor a photograph. The
same arguments give the same bytes (with the same version of Pillow).

Shape letters: S side of a scene, H W size of a drawn digit, all in pixels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageColor, ImageOps

from ..errors import DataError
from ..files import explain_write_errors, write_text
from ..masks import encode

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

# (package, file in it). The licences are public domain, CC0 or CC BY; see NOTICE.
PHOTOGRAPHS = {
    "train": (
        ("sklearn", "datasets/images/china.jpg"),
        ("skimage", "data/coffee.png"),
        ("skimage", "data/hubble_deep_field.jpg"),
        ("skimage", "data/brick.png"),
        ("skimage", "data/ihc.png"),
    ),
    "val": (
        ("sklearn", "datasets/images/flower.jpg"),
        ("skimage", "data/chelsea.png"),
        ("skimage", "data/rocket.jpg"),
    ),
}
PALETTE = (  # upper colour, lower colour, rim
    ("#ff4d6d", "#c9184a", "#ffffff"),
    ("#ff8c42", "#f3470f", "#ffffff"),
    ("#2ec45a", "#0b7a3b", "#ffffff"),
    ("#22b8e0", "#0068ad", "#ffffff"),
    ("#5577ff", "#3411b0", "#ffffff"),
    ("#b05cff", "#6a0dad", "#ffffff"),
    ("#ffe14d", "#ff9e00", "#1b1530"),
    ("#8dffe0", "#35b6e0", "#1b1530"),
    ("#ffb3cf", "#ff6fa8", "#1b1530"),
    ("#ffffff", "#cfd6e4", "#1b1530"),
)
DIGITS_PER_IMAGE = (4, 7)  # inclusive range
DIGIT_SIDE = (0.20, 0.42)  # as a fraction of the scene's side, before rotation
MAX_COVERED = 0.10  # largest fraction of a digit's pixels that later digits may cover
MAX_ROTATION = 20.0  # degrees; a 6 must not become a 9


def make_digits(
    folder: Path,
    *,
    train_images: int = 600,
    val_images: int = 100,
    size: int = 192,
    seed: int = 0,
    classes: int = 10,
    masks: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write `train.json` and `val.json` (COCO), and `images/*.jpg`.

    Args:
        folder: output folder. It is created if missing and must be empty.
        train_images: number of training scenes.
        val_images: number of validation scenes.
        size: side of the square scenes in pixels, 64..4096.
        seed: random seed. The same seed gives the same files.
        classes: number of classes, 1..10. The digits 0..classes-1 are used.
        masks: add the mask of the visible pixels of every digit, as compressed RLE, and their number as area.
        progress: callback, called as progress(scenes done, total scenes).

    Raises:
        DataError: an argument is out of range, the folder is not empty, or a package is not installed.
        WriteError: the folder or a file in it cannot be written.
    """
    for name, value, low, high in (
        ("train_images", train_images, 1, 1_000_000),
        ("val_images", val_images, 1, 1_000_000),
        ("size", size, 64, 4096),
        ("seed", seed, 0, 2**63 - 1),
        ("classes", classes, 1, len(NAMES)),
    ):
        if not low <= value <= high:
            raise DataError(f"samples digits: {name} must be {low}..{high}, found {value}")
    with explain_write_errors(folder):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise DataError(f"samples digits: {folder} already exists; give a new or empty folder")
        photographs, scans = _read_photographs(), _read_scans(classes)
        (folder / "images").mkdir(parents=True)
        done, total = 0, train_images + val_images
        for split, count in (("train", train_images), ("val", val_images)):
            images: list[dict[str, Any]] = []
            annotations: list[dict[str, Any]] = []
            for index in range(count):
                rng = np.random.default_rng([seed, split == "val", index])
                scene, objects, visible_digit = _draw_scene(photographs[split], scans[split], size, rng)
                name = f"{split}_{index:04}.jpg"
                scene.save(folder / "images" / name, quality=92)
                images.append({"id": index + 1, "file_name": f"images/{name}", "width": size, "height": size})
                for position, (label, box) in enumerate(objects):
                    shape = _describe_shape(box, visible_digit == position if masks else None)
                    ids = {"id": len(annotations) + 1, "image_id": index + 1, "category_id": label}
                    annotations.append(ids | shape)
                done += 1
                if progress is not None:
                    progress(done, total)
            categories = [{"id": label, "name": NAMES[label]} for label in range(classes)]
            coco = {"images": images, "annotations": annotations, "categories": categories}
            write_text(folder / f"{split}.json", json.dumps(coco, indent=1))


def _describe_shape(box: tuple[int, int, int, int], mask: np.ndarray | None) -> dict[str, Any]:
    """Return the box and the area of a COCO annotation, with the mask, bool [S, S], if there is one."""
    x1, y1, x2, y2 = box
    shape: dict[str, Any] = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
    return shape if mask is None else shape | {"area": int(mask.sum()), "segmentation": encode(mask)}


def _read_photographs() -> dict[str, list[Image.Image]]:
    missing = [name for name in ("sklearn", "skimage") if find_spec(name) is None]
    if missing:
        raise DataError(f"samples digits needs {' and '.join(missing)}: pip install scikit-learn scikit-image")
    photographs: dict[str, list[Image.Image]] = {}
    for split, files in PHOTOGRAPHS.items():
        photographs[split] = []
        for package, file in files:
            spec = find_spec(package)
            assert spec is not None
            assert spec.origin is not None
            photographs[split].append(Image.open(Path(spec.origin).parent / file).convert("RGB"))
    return photographs


def _read_scans(classes: int) -> dict[str, list[tuple[np.ndarray, int]]]:
    """Return scans, float32 [8, 8] in 0..1, with their labels; every fifth scan of a class is used for validation."""
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    scans: dict[str, list[tuple[np.ndarray, int]]] = {"train": [], "val": []}
    for label in range(classes):
        for i, scan in enumerate(bunch.images[bunch.target == label]):
            scans["val" if i % 5 == 0 else "train"].append(((scan / 16).astype(np.float32), label))
    return scans


def _draw_scene(
    photographs: Sequence[Image.Image], scans: Sequence[tuple[np.ndarray, int]], size: int, rng: np.random.Generator
) -> tuple[Image.Image, list[tuple[int, tuple[int, int, int, int]]], np.ndarray]:
    """Draw one scene; return it with (label, (x1, y1, x2, y2)) of every digit, in integer pixels.

    The third value is the position of the digit that is visible in every pixel, [S, S]; -1: none.
    """
    scene = _crop_background(photographs[int(rng.integers(len(photographs)))], size, rng)
    visible_digit = np.full((size, size), -1)  # [S, S] index of the visible digit, -1: photograph
    pixels: list[int] = []  # number of opaque pixels of every digit
    objects: list[tuple[int, tuple[int, int, int, int]]] = []
    for _ in range(rng.integers(*DIGITS_PER_IMAGE, endpoint=True)):
        scan, label = scans[int(rng.integers(len(scans)))]
        side = round(size * rng.uniform(*DIGIT_SIDE))
        digit = _draw_digit(scan, side, angle=rng.uniform(-MAX_ROTATION, MAX_ROTATION), rng=rng)
        opaque = np.asarray(digit.getchannel("A")) >= 128
        height, width = opaque.shape
        for _ in range(20):  # attempts; a digit that does not fit is skipped
            x, y = int(rng.integers(size - width + 1)), int(rng.integers(size - height + 1))
            candidate = visible_digit.copy()
            candidate[y : y + height, x : x + width][opaque] = len(pixels)
            visible = np.bincount(candidate[candidate >= 0], minlength=len(pixels) + 1)
            if all(visible[k] >= (1 - MAX_COVERED) * count for k, count in enumerate(pixels)):
                scene.paste(digit, (x, y), digit)
                visible_digit = candidate
                pixels.append(int(opaque.sum()))
                objects.append((label, (x, y, x + width, y + height)))
                break
    return scene, objects, visible_digit


def _crop_background(photograph: Image.Image, size: int, rng: np.random.Generator) -> Image.Image:
    """Return a random square of the photograph, 40-100% of its shorter side, flipped with probability 0.5."""
    side = int(rng.uniform(0.4, 1.0) * min(photograph.size))
    x, y = int(rng.integers(photograph.width - side + 1)), int(rng.integers(photograph.height - side + 1))
    square = photograph.resize((size, size), Image.Resampling.LANCZOS, box=(x, y, x + side, y + side))
    return ImageOps.mirror(square) if rng.random() < 0.5 else square


def _draw_digit(scan: np.ndarray, side: int, *, angle: float, rng: np.random.Generator) -> Image.Image:
    """Enlarge a scan [8, 8] to about `side` pixels, rotate it (degrees) and colour it.

    Returns:
        RGBA image, cropped to the digit.
    """
    padded = Image.fromarray(np.pad(scan, 2))  # leaves room for the rotation
    large = padded.resize((side * 12 // 8, side * 12 // 8), Image.Resampling.BICUBIC)
    ink = np.asarray(large.rotate(float(angle), Image.Resampling.BICUBIC))  # [H, W]
    shape, stroke = _smoothstep(ink, 0.16, 0.30), _smoothstep(ink, 0.40, 0.54)  # the rim is between these contours
    rows, columns = np.flatnonzero((shape >= 0.5).any(axis=1)), np.flatnonzero((shape >= 0.5).any(axis=0))

    upper, lower, rim = (np.array(ImageColor.getrgb(name)) for name in PALETTE[int(rng.integers(len(PALETTE)))])
    fade = np.linspace(0, 1, len(ink))[:, None, None]  # [H, 1, 1] from the upper to the lower colour
    colour = rim + stroke[..., None] * (upper + fade * (lower - upper) - rim)  # [H, W, 3]
    pixels = np.concatenate([colour, 255 * shape[..., None]], axis=2)[
        rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1
    ]
    return Image.fromarray(pixels.round().astype(np.uint8), mode="RGBA")


def _smoothstep(values: np.ndarray, low: float, high: float) -> np.ndarray:
    t = np.clip((values - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)
