"""A named pipe in place of a file is an error: opening it would block forever."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_data

from fcos import FCOSError
from fcos.checkpoint import read
from fcos.data import load_annotations
from fcos.data.images import largest_value
from fcos.models.backbones.pretrained import imagenet_weights
from fcos.recipes import load_config


def read_file(annotations: Path, name: str, images: Path) -> object:
    options = {"annotations": annotations, "images": images}
    return load_annotations(tiny_data.config(format=name, train=options), "train")


def read_cvat(pipe: Path) -> object:
    os.replace(pipe, pipe.parent / "pipe.xml")
    return read_file(pipe.parent / "pipe.xml", "cvat", pipe.parent)


def read_labelme(pipe: Path) -> object:
    os.replace(pipe, pipe.parent / "pipe.json")
    return read_file(pipe.parent / "pipe.json", "labelme", pipe.parent)


def read_coco(pipe: Path) -> object:
    root = tiny_data.write_coco(pipe.parent / "coco")
    os.replace(pipe, root / "train.json")
    return read_file(root / "train.json", "coco", root / "images")


def read_voc(pipe: Path) -> object:
    root = tiny_data.write_voc(pipe.parent / "voc")
    os.replace(pipe, root / "Annotations" / "b.xml")
    return load_annotations(tiny_data.config(root), "train")


def read_image(pipe: Path) -> object:
    root = tiny_data.write_coco(pipe.parent / "coco")
    os.replace(pipe, root / "images" / "b.png")
    return load_annotations(tiny_data.config(root), "train")


def read_backbone(path: Path) -> object:
    return imagenet_weights("resnet50", str(path))


@pytest.mark.parametrize(
    ("function", "suffix"),
    [(load_config, "yaml"), (read, "pt"), (read_backbone, "pth"), (read_backbone, "pkl")],
)
def test_a_pipe_is_an_error(tmp_path: Path, function: Callable[[Path], object], suffix: str) -> None:
    os.mkfifo(tmp_path / f"pipe.{suffix}")
    with pytest.raises(FCOSError, match=f"pipe.{suffix}: "):
        function(tmp_path / f"pipe.{suffix}")


@pytest.mark.parametrize("function", [read_coco, read_voc, read_image, read_cvat, read_labelme])
def test_a_pipe_in_a_data_set_is_an_error(tmp_path: Path, function: Callable[[Path], object]) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FCOSError, match="not a regular file"):
        function(tmp_path / "pipe")


def test_pipes_beside_the_data_are_ignored(tmp_path: Path) -> None:
    root = tiny_data.write_yolo(tmp_path)
    for path in ("labels/train/stray.txt", "images/train/stray.png", "stray.json", "stray.xml", "stray.csv"):
        os.mkfifo(root / path)
    annotations = load_annotations(tiny_data.config(root), "train")
    assert annotations is not None
    assert len(annotations) == 3


def test_pipe_has_no_largest_value(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    assert largest_value(tmp_path / "pipe.png") is None


def test_link_without_target_is_an_error(tmp_path: Path) -> None:
    root = tiny_data.write_yolo(tmp_path)
    (root / "images/train/lost.png").symlink_to(tmp_path / "missing.png")
    with pytest.raises(FCOSError, match=r"lost.png, image 4: no such file"):
        load_annotations(tiny_data.config(root), "train")
