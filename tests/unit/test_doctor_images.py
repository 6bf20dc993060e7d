"""Images that the detector cannot process well are reported with the option that helps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from PIL import Image
from tiny_data import config, write_json

from fcos.config import Config
from fcos.data import load_annotations
from fcos.data.images import open_rgb
from fcos.doctor.check import check
from fcos.doctor.findings import Finding, Report


def write(root: Path, images: dict[str, np.ndarray], boxes: int = 2) -> Path:
    """Write a training split with `boxes` boxes per image."""
    (root / "images").mkdir(parents=True)
    for name, pixels in images.items():
        Image.fromarray(pixels).save(root / "images" / name)
    rows = [(i, [5 * (k % 10), 5 * (k // 10), 4, 4]) for i in range(len(images)) for k in range(boxes)]
    tree = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(images)],
        "annotations": [{"id": k, "image_id": i, "category_id": 1, "bbox": box} for k, (i, box) in enumerate(rows)],
        "categories": [{"id": 1, "name": "cell"}],
    }
    write_json(root / "train.json", tree)
    return root


def finding(
    root: Path, kind: str, *, model: Mapping[str, object] = MappingProxyType({}), **options: object
) -> Finding | None:
    report: Report = check(Config.model_validate({"data": {**config(root).model_dump(), **options}, "model": model}))
    return next((finding for finding in report.findings if finding.kind == kind), None)


def noise(*shape: int, high: int = 256) -> np.ndarray:
    dtype = np.uint8 if high <= 256 else np.uint16
    return np.random.default_rng(0).integers(0, high, shape, dtype=dtype)


def test_images_that_shrink_to_a_row_of_locations_are_reported(tmp_path: Path) -> None:
    write(tmp_path, {"long.png": noise(50, 4000, 3), "high.png": noise(3000, 60, 3), "usual.png": noise(60, 80, 3)})
    found = finding(tmp_path, "very long image", max_side=256)
    assert found is not None
    assert [place.note for case in found.cases for place in case] == [
        "4000 x 50 pixels, 240 x 3 after resizing",
        "60 x 3000 pixels, 5 x 250 after resizing",
    ]
    assert "data.max_side=256: at most one row of locations" in found.message
    assert finding(tmp_path, "very long image", max_side=4000) is None


def test_images_with_more_objects_than_detections_are_reported(tmp_path: Path) -> None:
    write(tmp_path, {"a.png": noise(60, 80, 3)}, boxes=30)
    for model, option in (
        ({"max_detections": 20}, "max_detections"),
        ({"name": "rcnn", "max_detections": 20}, "max_detections"),
        ({"name": "rpn", "proposals": {"max_proposals": 20}}, "proposals.max_proposals"),
    ):
        found = finding(tmp_path, "more objects than detections", model=model)
        assert found is not None
        assert f"1 image with more objects than model.{option}=20, up to 30" in found.message
        assert f"Set model.{option}=30" in found.remedy
    for limit in (30, 100, -1):
        assert finding(tmp_path, "more objects than detections", model={"max_detections": limit}) is None


@pytest.mark.parametrize(("bits", "levels"), [(10, 4), (12, 16), (14, 64)])
def test_16_bit_images_with_few_grey_levels_are_reported_with_their_bit_depth(
    bits: int, levels: int, tmp_path: Path
) -> None:
    bright, dark = noise(60, 80, high=2**bits), noise(60, 80, high=2 ** (bits - 1))
    bright[0, 0] = 2**bits - 1
    write(tmp_path, {"a.png": bright, "b.png": dark, "c.png": noise(60, 80, 3)})
    found = finding(tmp_path, "16-bit images with few grey levels")
    assert found is not None
    assert found.message.startswith(f"2 16-bit images with values up to {2**bits - 1} of 65535: {levels} of 256")
    assert f"data.bit_depth={bits}," in found.remedy
    assert finding(tmp_path, "16-bit images with few grey levels", bit_depth=bits) is None


def test_dark_images_of_8_bits_and_16_bit_images_of_the_full_range_are_not_reported(tmp_path: Path) -> None:
    write(tmp_path, {"a.png": noise(60, 80, 3, high=9), "b.png": noise(60, 80, high=65536), "c.png": noise(9, 9)})
    assert finding(tmp_path, "16-bit images with few grey levels") is None


def test_a_dark_16_bit_image_among_bright_ones_is_not_reported(tmp_path: Path) -> None:
    write(tmp_path, {"a.png": noise(60, 80, high=2000), "b.png": noise(60, 80, high=65536)})
    assert finding(tmp_path, "16-bit images with few grey levels") is None


def test_the_bit_depth_scales_16_bit_images_and_no_others(tmp_path: Path) -> None:
    values = np.array([[0, 15, 16, 2048, 4095, 5000]], dtype=np.uint16)
    root = write(tmp_path, {"a.png": values.repeat(60, axis=0), "b.png": noise(60, 80, 3)}, boxes=1)
    annotations = load_annotations(config(root, bit_depth=12), "train")
    assert annotations is not None
    assert np.asarray(annotations.open(0))[0, :, 0].tolist() == [0, 0, 1, 128, 255, 255]
    assert annotations.open(1) == open_rgb(tmp_path / "images/b.png")
    assert np.asarray(open_rgb(tmp_path / "images/a.png"))[0, :, 0].tolist() == [0, 0, 0, 8, 15, 19]


def test_the_bit_depth_applies_to_decoded_images_of_the_check_and_to_the_digest(tmp_path: Path) -> None:
    values = noise(60, 80, high=4096)
    root = write(tmp_path, {"a.png": values})
    brightest, digests = {}, {}
    for bit_depth in (8, 12, 16):
        annotations = load_annotations(
            config(root, bit_depth=bit_depth),
            "train",
            on_image=lambda _, image, depth=bit_depth: brightest.update({depth: np.asarray(image).max()}),
        )
        assert annotations is not None
        digests[bit_depth] = annotations.digest()
    assert brightest == {8: 255, 12: values.max() // 16, 16: values.max() // 256}
    assert len(set(digests.values())) == 3
