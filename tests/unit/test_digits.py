"""Sample images of digits, written by `fcos samples digits`."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hotcoco import mask as coco_mask
from PIL import Image

from fcos.config import DataConfig
from fcos.data import digits as sample_digits
from fcos.data import load_annotations
from fcos.data.digits import NAMES, PHOTOGRAPHS, make_digits
from fcos.errors import DataError


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples") / "digits"
    make_digits(folder, train_images=12, val_images=4, size=160, seed=3)
    return folder


def read(folder: Path, split: str) -> dict:
    return json.loads((folder / f"{split}.json").read_text())


def test_make_digits_writes_coco_layout(digits: Path) -> None:
    coco = read(digits, "train")
    assert [c["name"] for c in coco["categories"]] == list(NAMES)
    assert len(coco["images"]) == 12
    for image in coco["images"]:
        with Image.open(digits / image["file_name"]) as picture:
            assert picture.size == (image["width"], image["height"]) == (160, 160)


def test_boxes_are_inside_the_image_and_within_the_size_range(digits: Path) -> None:
    annotations = read(digits, "train")["annotations"] + read(digits, "val")["annotations"]
    boxes = np.array([a["bbox"] for a in annotations])
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= 160).all()
    longer_side = boxes[:, 2:].max(axis=1)
    assert longer_side.min() >= 0.15 * 160
    assert longer_side.max() <= 0.6 * 160


def test_every_image_has_at_least_three_digits(digits: Path) -> None:
    ids = [a["image_id"] for a in read(digits, "train")["annotations"]]
    assert np.bincount(ids)[1:].min() >= 3


def test_boxes_are_tight_around_the_drawn_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_digits, "PALETTE", (("#ff0000", "#ff0000", "#ff0000"),))
    monkeypatch.setattr(sample_digits, "DIGITS_PER_IMAGE", (1, 1))
    scan = sample_digits._read_scans(4)["train"][200]
    scene, objects, _ = sample_digits._draw_scene([Image.new("RGB", (64, 64))], [scan], 128, np.random.default_rng(0))
    rows, columns = np.nonzero(np.asarray(scene)[..., 0] >= 128)
    assert objects == [(scan[1], (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))]


def test_same_seed_gives_identical_files(digits: Path, tmp_path: Path) -> None:
    make_digits(tmp_path / "again", train_images=12, val_images=4, size=160, seed=3)
    files = sorted(p.relative_to(digits) for p in digits.rglob("*") if p.is_file())
    assert len(files) == 12 + 4 + 2
    assert all((digits / f).read_bytes() == (tmp_path / "again" / f).read_bytes() for f in files)


def test_different_seed_gives_different_images(digits: Path, tmp_path: Path) -> None:
    make_digits(tmp_path / "other", train_images=1, val_images=1, size=160, seed=4)
    name = Path("images/train_0000.jpg")
    assert (digits / name).read_bytes() != (tmp_path / "other" / name).read_bytes()


def test_train_and_val_share_no_scans_or_photographs() -> None:
    scans = sample_digits._read_scans(10)
    train, val = ({scan.tobytes() for scan, _ in scans[split]} for split in ("train", "val"))
    assert not train & val
    assert len(scans["train"]) + len(scans["val"]) == 1797
    assert not set(PHOTOGRAPHS["train"]) & set(PHOTOGRAPHS["val"])


def test_fewer_classes_use_the_first_digits(tmp_path: Path) -> None:
    make_digits(tmp_path / "d", train_images=6, val_images=1, size=96, classes=3)
    coco = read(tmp_path / "d", "train")
    assert [c["name"] for c in coco["categories"]] == ["zero", "one", "two"]
    assert {a["category_id"] for a in coco["annotations"]} == {0, 1, 2}


def test_make_digits_reports_progress(tmp_path: Path) -> None:
    calls = []
    make_digits(tmp_path / "d", train_images=2, val_images=1, size=64, progress=lambda *count: calls.append(count))
    assert calls == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": 11}, "classes must be 1..10, found 11"),
        ({"size": 10}, "size must be 64..4096, found 10"),
        ({"train_images": 0}, "train_images must be 1..1000000, found 0"),
        ({"seed": -1}, "seed must be 0.."),
    ],
)
def test_out_of_range_argument_raises(tmp_path: Path, options: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        make_digits(tmp_path / "d", **options)


def test_non_empty_folder_raises_and_keeps_its_files(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(DataError, match="already exists; give a new or empty folder"):
        make_digits(tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_error_names_the_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(sample_digits, "find_spec", lambda name: None if name == "skimage" else find(name))
    with pytest.raises(DataError, match=r"needs skimage: pip install scikit-learn scikit-image"):
        make_digits(tmp_path / "d")


def test_masks_are_the_visible_pixels_of_every_digit(digits: Path, tmp_path: Path) -> None:
    make_digits(tmp_path / "masks", train_images=12, val_images=4, size=160, seed=3, masks=True)
    plain, tree = read(digits, "train"), read(tmp_path / "masks", "train")
    assert [a["bbox"] for a in tree["annotations"]] == [a["bbox"] for a in plain["annotations"]]
    image = "images/train_0000.jpg"
    assert (tmp_path / "masks" / image).read_bytes() == (digits / image).read_bytes()
    covered = np.zeros((13, 160, 160), dtype=int)
    for annotation in tree["annotations"]:
        mask = coco_mask.decode(annotation["segmentation"])
        covered[annotation["image_id"]] += mask
        x, y, width, height = annotation["bbox"]
        assert mask.sum() == mask[y : y + height, x : x + width].sum() == annotation["area"]
        assert annotation["area"] > 0.15 * width * height
    assert covered.max() == 1  # no pixel shows two digits


def test_detectors_read_the_masks(tmp_path: Path) -> None:
    make_digits(tmp_path / "masks", train_images=2, val_images=1, size=96, masks=True)
    annotations = load_annotations(DataConfig.model_validate({"root": tmp_path / "masks", "masks": True}), "train")
    assert annotations is not None
    assert annotations.masks is not None
    pixels = annotations.masks[annotations.span(0)].to_bitmaps((96, 96)).sum(dim=(1, 2))
    assert pixels.tolist() == annotations.areas[annotations.span(0)].tolist()
