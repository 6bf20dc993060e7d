"""Images whose annotated name differs from their path."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from tiny_data import BOXES, SIZES, coco_tree, config, contents, write_annotated, write_images, write_json, write_voc

from fcos.data import load_annotations
from fcos.data.dataset import Annotations
from fcos.errors import DataError


def _load(root: Path) -> Annotations:
    annotations = load_annotations(config(root), "train")
    assert annotations is not None
    return annotations


def _write(root: Path, prefix: str, images: str) -> None:
    tree = coco_tree()
    for image in tree["images"]:
        image["file_name"] = prefix + image["file_name"]
    write_json(root / "train.json", tree)
    write_images(root / images)


@pytest.mark.parametrize(
    ("prefix", "images"),
    [
        ("images\\", "images"),
        ("C:\\Users\\me\\photos\\", "images"),
        ("/home/me/photos/", "train"),
        ("pets/images/", "images"),
        ("../pets/images/", "photos/2026"),
        ("", "photos/2026/may"),
    ],
)
def test_name_relative_to_another_folder_is_found(
    prefix: str, images: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _write(tmp_path, prefix, images)
    with caplog.at_level(logging.INFO, logger="fcos"):
        assert contents(_load(tmp_path)) == set(BOXES)
    assert "3 file names found elsewhere, for example" in caplog.text


@pytest.mark.skipif(sys.platform == "win32", reason="a backslash separates folders")
def test_backslash_in_the_name_of_a_file_is_kept(tmp_path: Path) -> None:
    _write(tmp_path, "x\\", "images")
    for name in SIZES:
        (tmp_path / "images" / name).rename(tmp_path / "images" / f"x\\{name}")
    assert _load(tmp_path).file_name(0) == "x\\a.png"


def test_folders_agree_best_from_their_end(tmp_path: Path) -> None:
    _write(tmp_path, "left/", "cameras/left")
    write_images(tmp_path / "cameras/right", dict.fromkeys(SIZES, (8, 8)))
    assert contents(_load(tmp_path)) == set(BOXES)


def test_ambiguous_name_is_missing(tmp_path: Path) -> None:
    _write(tmp_path, "", "cameras/left")
    write_images(tmp_path / "cameras/right")
    with pytest.raises(DataError, match=r"a\.png, image 10: no such file"):
        load_annotations(config(tmp_path), "train")


def test_image_of_another_split_is_not_used(tmp_path: Path) -> None:
    _write(tmp_path, "", "images/val")
    with pytest.raises(DataError, match=r"a\.png, image 10: no such file"):
        load_annotations(config(tmp_path), "train")


def test_voc_image_outside_the_image_folder_is_found(tmp_path: Path) -> None:
    write_voc(tmp_path)
    (tmp_path / "JPEGImages").rename(tmp_path / "photos")
    assert contents(_load(tmp_path)) == set(BOXES)


def _file_names(annotations: Annotations) -> list[str]:
    return [annotations.file_name(i) for i in range(len(annotations))]


@pytest.mark.parametrize(
    ("names", "existing", "missing"),
    [
        (["vid1/0001.png", "vid2/0001.png"], ["vid2/0001.png"], "vid1/0001.png"),
        (["vid1/0001.png", "vid2/0002.png"], ["vid2/0002.png", "vid3/0001.png"], "vid1/0001.png"),
        (["vid1/rgb/0001.png", "vid2/rgb/0002.png"], ["vid2/rgb/0002.png", "vid3/rgb/0001.png"], "vid1/rgb/0001.png"),
        (["old/0001.png", "images/0001.png"], ["images/0001.png"], "old/0001.png"),
        (["0001.png", "0001.jpg", "0002.png"], ["0002.png", "photos/0001.jpeg"], "0001.png"),
        (["vid1/0001.png", "vid2/0001.png", "0002.png"], ["0002.png", "0001.png"], "vid1/0001.png"),
    ],
)
def test_missing_image_is_not_replaced_by_that_of_another_name(
    names: Sequence[str], existing: Sequence[str], missing: str, tmp_path: Path
) -> None:
    root = write_annotated(tmp_path, names, existing)
    with pytest.raises(DataError, match=rf"missing image.*\n.*{missing}, image 0: no such file"):
        load_annotations(config(root), "train")


@pytest.mark.parametrize(
    ("names", "existing"),
    [
        (["/home/me/vid1/0001.png", "/home/me/vid2/0001.png"], ["photos/vid1/0001.png", "photos/vid2/0001.png"]),
        (["vid1\\0001.png", "vid2\\0002.png"], ["vid1/0001.png", "vid2/0002.png"]),
        (["vid1/0001.png", "vid2/0002.png"], ["0001.png", "0002.png"]),
        (["me/0001.png", "me/0002.png"], ["photos/may/0001.png", "photos/june/0002.png"]),
    ],
)
def test_names_in_several_folders_are_found(names: Sequence[str], existing: Sequence[str], tmp_path: Path) -> None:
    root = write_annotated(tmp_path, names, existing)
    assert [path.resolve() for path in map(root.joinpath, _file_names(_load(root)))] == [root / e for e in existing]
