"""A data set does not hold Python objects per annotation, because forked workers would copy them one by one.

benchmarks/memory_million.py measures a million annotations.
"""

from __future__ import annotations

import gc
import os
import pickle
import tracemalloc
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pytest
from PIL import Image
from tiny_data import config, write_json

from fcos.config import Config
from fcos.data import build_train_loader, load_annotations
from fcos.data.coco import read
from fcos.data.source import SplitFiles

IMAGES, FEW, MANY = 200, 500, 20_000
BYTES_OF_A_BOX = 4 * 4 + 8 + 1 + 4 + 8
"""Bytes of a box: corners, label, crowd, area, annotation id."""


def reader(folder: Path, annotations: int, *, images: int = IMAGES) -> Any:
    """Return the object that the loader passes to its workers."""
    folder.mkdir()
    Image.new("RGB", (40, 30)).save(folder / "one.png")
    for i in range(images):
        os.link(folder / "one.png", folder / f"{i:08}.png")
    tree = {
        "images": [{"id": i, "file_name": f"{i:08}.png", "width": 40, "height": 30} for i in range(images)],
        "annotations": [
            {"id": k, "image_id": k % images, "category_id": 1, "bbox": [1.5, 2, 3 + k % 20, 4]}
            for k in range(annotations)
        ],
        "categories": [{"id": 1, "name": "thing"}],
    }
    write_json(folder / "train.json", tree)
    settings = Config(data=config(folder))
    loaded = load_annotations(settings.data, "train")
    assert loaded is not None
    assert len(loaded.boxes) == annotations
    return build_train_loader(settings, loaded)._reader


def count_objects(root: object) -> int:
    """Count the objects reachable from `root`, without code."""
    seen, waiting = {id(root)}, [root]
    while waiting:
        for found in gc.get_referents(waiting.pop()):
            if id(found) not in seen and not isinstance(found, type | ModuleType | FunctionType):
                seen.add(id(found))
                waiting.append(found)
    return len(seen)


def test_python_object_count_does_not_grow_with_the_dataset(tmp_path: Path) -> None:
    few = reader(tmp_path / "few", FEW)
    assert count_objects(few) < 200
    assert count_objects(reader(tmp_path / "many", MANY)) == count_objects(few)
    assert count_objects(reader(tmp_path / "images", FEW, images=2 * IMAGES)) == count_objects(few)


def test_spawned_worker_receives_few_bytes_per_box(tmp_path: Path) -> None:
    few, many = (len(pickle.dumps(reader(tmp_path / str(count), count))) for count in (FEW, MANY))
    # One per cent: the size of pickle's array headers depends on the array's length.
    assert many - few == pytest.approx((MANY - FEW) * BYTES_OF_A_BOX, rel=0.01)


def test_cpu_memory_stays_bounded_for_polygons(tmp_path: Path) -> None:
    polygon = [float(k) / 7 for k in range(100)]
    tree = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "annotations": [
            {"id": k, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "segmentation": [polygon]}
            for k in range(500)
        ],
        "categories": [{"id": 1, "name": "thing"}],
    }
    file = write_json(tmp_path / "train.json", tree)
    tracemalloc.start()
    try:
        source = read(SplitFiles(file, (tmp_path,)), None)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(source.boxes) == 500
    assert peak < 2.5 * file.stat().st_size  # the file as bytes and as text; numbers would double it
