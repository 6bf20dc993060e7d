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
from fcos.models.backbones.pretrained import imagenet_weights
from fcos.recipes import load_config


def read_coco(pipe: Path) -> object:
    root = tiny_data.write_coco(pipe.parent / "coco")
    os.replace(pipe, root / "train.json")
    return load_annotations(tiny_data.config(root), "train")


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


@pytest.mark.parametrize("function", [read_coco, read_voc, read_image])
def test_a_pipe_in_a_data_set_is_an_error(tmp_path: Path, function: Callable[[Path], object]) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FCOSError, match="not a regular file"):
        function(tmp_path / "pipe")
