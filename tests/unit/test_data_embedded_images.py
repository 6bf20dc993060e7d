"""LabelMe files that embed their image."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import pytest
from tiny_data import BOXES, SIZES, config, contents, write_images, write_json
from tool_exports import labelme, labelme_tree

from fcos.data import load_annotations
from fcos.errors import DataError


def write_embedded(root: Path, names: list[str]) -> None:
    """Write LabelMe files, and embed the images of these names instead of writing them."""
    labelme(root)
    for name in names:
        data = base64.b64encode((root / name).read_bytes()).decode()
        write_json(root / f"{Path(name).stem}.json", {**labelme_tree(name, name), "imageData": data})
        (root / name).unlink()


def test_image_that_exists_only_in_its_json_file_is_reported(tmp_path: Path) -> None:
    write_embedded(tmp_path, ["a.png", "c.png"])
    with pytest.raises(DataError) as raised:
        load_annotations(config(tmp_path), "train")
    for name in ("a", "c"):
        expected = f"{tmp_path / name}.json: the image exists only inside this file (imageData); write it to"
        assert f"{expected} {tmp_path / name}.jpg" in str(raised.value)
    assert "embedded image (2)" in str(raised.value)
    assert "no such file" not in str(raised.value)


def test_other_images_are_used_if_errors_are_skipped(tmp_path: Path) -> None:
    write_embedded(tmp_path, ["a.png"])
    annotations = load_annotations(config(tmp_path, on_error="skip"), "train")
    assert annotations is not None
    assert contents(annotations) == {BOXES[2]}


def test_file_elsewhere_is_preferred_to_the_embedded_image(tmp_path: Path) -> None:
    write_embedded(tmp_path, ["a.png"])
    write_images(tmp_path / "photos", {"a.png": SIZES["a.png"]})
    annotations = load_annotations(config(tmp_path), "train")
    assert annotations is not None
    assert contents(annotations) == set(BOXES)


def test_documented_script_writes_the_embedded_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_embedded(tmp_path, list(SIZES))
    page = (Path(__file__).parents[2] / "docs/data.md").read_text()
    (script,) = re.findall(r"```python\n(.*?imageData.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(script.replace('"DIR"', '"."'), {})
    annotations = load_annotations(config(tmp_path), "train")
    assert annotations is not None
    assert len(annotations.boxes) == len(BOXES)
    assert json.loads((tmp_path / "a.json").read_text())["imageData"]
