from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from doctor_data import Folder
from PIL import Image

CLASSES = {"red": (220, 40, 40), "blue": (40, 60, 220)}
SIDE = 96


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data set of twelve grey, noisy images with a red and a blue rectangle each, used for train and val."""
    root = tmp_path_factory.mktemp("rectangles")
    (root / "images").mkdir()
    generator = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(12):
        pixels = generator.integers(100, 150, (SIDE, SIDE, 3), dtype=np.uint8)
        for k, color in enumerate(CLASSES.values()):
            width, height = generator.integers(24, 40, 2).tolist()
            x, y = int(generator.integers(0, SIDE - width)), int(generator.integers(48 * k, 48 * k + 49 - height))
            pixels[y : y + height, x : x + width] = color
            box = {"bbox": [x, y, width, height], "category_id": 10 * (k + 1)}
            annotations.append({"id": len(annotations) + 1, "image_id": i, **box})
        Image.fromarray(pixels).save(root / "images" / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "width": SIDE, "height": SIDE})
    categories = [{"id": 10 * (k + 1), "name": name} for k, name in enumerate(CLASSES)]
    tree = json.dumps({"images": images, "annotations": annotations, "categories": categories})
    for split in ("train", "val"):
        (root / f"{split}.json").write_text(tree)
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "data")
