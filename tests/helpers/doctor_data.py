"""Small COCO data set that tests of `fcos doctor` change, and the calls that check it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from typer.testing import CliRunner, Result

from fcos.cli import app

SIZE = (128, 96)  # width, height
CLASSES = ("red", "white", "plate")
SIDES = (20, 40, 8)  # usual, pixels
TRAIN, VAL = 24, 20


def scene(seed: int) -> Image.Image:
    """Return an image of smooth blobs that resembles a photograph."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(SIZE, Image.Resampling.BICUBIC)


def boxes_of(seed: int) -> list[list[float]]:
    """Return rows of (x, y, width, height, label): two red, a white and a plate box, of about the usual sizes."""
    generator = np.random.default_rng(1000 + seed)
    boxes = []
    for label, corner in ((0, (2, 2)), (0, (60, 2)), (1, (2, 45)), (2, (100, 70))):
        x, y = np.add(corner, generator.uniform(0, 6, 2)).tolist()
        boxes.append([x, y, *(SIDES[label] * generator.uniform(0.85, 1.15, 2)).tolist(), label])
    return boxes


class Folder:
    """COCO data set that tests can change before it is written."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.class_names: Sequence[str] = CLASSES
        self.boxes = {split: [boxes_of(k) for k in range(start, start + count)] for split, start, count in (
            ("train", 0, TRAIN), ("val", 100, VAL))}  # fmt: skip
        self.pictures = {"train": [scene(k) for k in range(TRAIN)], "val": [scene(100 + k) for k in range(VAL)]}

    def write(self) -> Path:
        (self.root / "images").mkdir(parents=True)
        for split, pictures in self.pictures.items():
            for k, picture in enumerate(pictures):
                picture.save(self.root / f"images/{split}{k}.png")
            rows = [(k, box) for k, image in enumerate(self.boxes[split]) for box in image]
            tree = {
                "images": [
                    {"id": k, "file_name": f"{split}{k}.png", "width": p.width, "height": p.height}
                    for k, p in enumerate(pictures)
                ],
                "annotations": [
                    {"id": i, "image_id": k, "category_id": int(box[4]) + 1, "bbox": box[:4]}
                    for i, (k, box) in enumerate(rows)
                ],
                "categories": [{"id": i, "name": name} for i, name in enumerate(self.class_names, start=1)],
            }
            (self.root / f"{split}.json").write_text(json.dumps(tree))
        return self.root


def doctor(root: Path, *words: str, out: Path | None = None) -> Result:
    options = () if out is None else ("--out", str(out))
    return CliRunner().invoke(app, ["doctor", *words, f"data={root}", *options])


def findings(root: Path, *words: str) -> dict[str, dict[str, Any]]:
    result = doctor(root, *words, out=root / "out")
    assert result.exit_code == 0, result.output
    report = json.loads((root / "out/doctor.json").read_text())
    return {finding["kind"]: finding for finding in report["findings"] if finding["kind"] != "level without boxes"}


def cases(finding: dict[str, Any]) -> list[list[tuple[str, list[int]]]]:
    """Return, for every case, a list of (file stem, annotation ids), one per image."""
    return [
        [(Path(p["file"]).stem, [box["annotation"] for box in p["boxes"]]) for p in case] for case in finding["cases"]
    ]
