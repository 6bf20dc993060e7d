"""`DetectionWorker`, the function from columns to columns that engines for large collections call."""

from __future__ import annotations

import io
import pickle
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from detectors import CATEGORY_IDS, NAMES, tiny_detector
from PIL import Image

from fcos import ConfigError, DataError
from fcos.inference.batch_worker import WORKER_COLUMNS, DetectionWorker
from fcos.inference.tiling import Tiling


def picture(width: int = 120, height: int = 80) -> Image.Image:
    return Image.radial_gradient("L").convert("RGB").resize((width, height))


def encode(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def column(*values: object) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


@pytest.fixture(scope="module")
def worker() -> DetectionWorker:
    return DetectionWorker(tiny_detector, threshold=0.0, threads=None)


def test_bytes_and_paths_give_the_results_of_the_detector(worker: DetectionWorker, tmp_path: Path) -> None:
    picture(64, 96).save(tmp_path / "b.png")
    found = worker(
        {"image": column(encode(picture()), str(tmp_path / "b.png")), "filename": column("a", "b"), "id": column(1, 2)}
    )
    assert tuple(found) == WORKER_COLUMNS
    expected = [worker.detector.predict(image, threshold=0) for image in (picture(), picture(64, 96))]
    assert len(expected[0])
    assert len(expected[1])
    assert found["filename"].tolist() == ["a"] * len(expected[0]) + ["b"] * len(expected[1])
    assert set(zip(found["filename"], found["image_width"], found["image_height"], strict=True)) == {
        ("a", 120, 80),
        ("b", 64, 96),
    }
    names = [name for each in expected for name in each.names]
    assert found["class"].tolist() == names
    assert found["category_id"].tolist() == [CATEGORY_IDS[NAMES.index(name)] for name in names]
    boxes = np.stack([found[side].astype(float) for side in ("xmin", "ymin", "xmax", "ymax")], axis=1)
    np.testing.assert_allclose(boxes, torch.cat([each.boxes for each in expected]).numpy(), atol=1e-3, rtol=0)
    scores = torch.cat([each.scores for each in expected]).numpy()
    np.testing.assert_allclose(found["score"].astype(float), scores, atol=1e-5, rtol=0)
    assert set(found["error"]) == {None}


def test_bad_pictures_are_rows_with_an_error(worker: DetectionWorker) -> None:
    images = column(b"no picture", "missing.png", encode(picture()), None, encode(picture())[:200])
    found = worker({"image": images})
    errors = [(name, error) for name, error in zip(found["filename"], found["error"], strict=True) if error]
    assert [name for name, _ in errors] == ["", "missing.png", "", ""]
    assert errors[0][1] == "image 0: not an image, or the start of the file is damaged"
    assert errors[1][1] == "missing.png: no such file"
    assert errors[2][1] == "image 3: expected an encoded image file or a path, found NoneType"
    assert errors[3][1].startswith("image 4: cannot be read")
    assert found["class"][0] is None
    assert sum(score is not None for score in found["score"]) == len(found["score"]) - 4 > 0


def test_a_picture_without_detections_is_a_row_without_box() -> None:
    found = DetectionWorker(tiny_detector, threshold=1.0, threads=None)({"image": column(encode(picture()))})
    assert (found["image_width"].tolist(), found["score"].tolist(), found["error"].tolist()) == ([120], [None], [None])


def test_an_empty_batch_has_all_columns(worker: DetectionWorker) -> None:
    assert {name: len(values) for name, values in worker({"image": column()}).items()} == dict.fromkeys(
        WORKER_COLUMNS, 0
    )


def test_a_name_that_is_no_unicode_is_escaped(worker: DetectionWorker) -> None:
    found = worker({"image": column("no\udcff.png")})
    assert found["filename"].tolist() == ["no\\udcff.png"]
    assert found["error"].tolist() == ["no\\udcff.png: no such file"]


def test_it_is_pickled_without_its_detector() -> None:
    worker = DetectionWorker(partial(tiny_detector), threshold={"cat": 0.0}, tiling=Tiling(64), threads=None)
    batch = {"image": column(encode(picture()))}
    expected = worker(batch)
    content = pickle.dumps(worker)
    assert len(content) < 1000
    found = pickle.loads(content)(batch)
    assert found["class"].tolist() == expected["class"].tolist()
    np.testing.assert_allclose(found["score"].astype(float), expected["score"].astype(float), atol=1e-5, rtol=0)


def test_a_process_uses_one_thread() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert DetectionWorker(tiny_detector).detector.is_trained
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_mistakes_are_reported(worker: DetectionWorker) -> None:
    with pytest.raises(DataError, match=r"expected a column image .*, found picture, label"):
        worker({"picture": column(), "label": column()})
    with pytest.raises(ConfigError, match="bird"):
        DetectionWorker(tiny_detector, threshold={"bird": 0.5}, threads=None)({"image": column()})
