"""Validation pictures of a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_data import coco_tree, write_coco

from fcos.config import Config
from fcos.data import load_annotations
from fcos.training.pictures import save_pictures


def test_pictures_leave_out_what_cannot_be_read_any_more(
    configure: Callable[..., Config], data: Path, tmp_path: Path
) -> None:
    annotations = load_annotations(configure().data, "val")
    assert annotations is not None
    (data / "images/b.png").unlink()
    save_pictures(tmp_path / "pictures", annotations, [], {})
    assert sorted(p.name for p in (tmp_path / "pictures").iterdir()) == ["a.jpg", "c.jpg"]


def test_pictures_of_images_with_absolute_names_stay_in_their_folder(
    configure: Callable[..., Config], data: Path, tmp_path: Path
) -> None:
    tree = coco_tree()
    for image in tree["images"]:
        image["file_name"] = str(data / "images" / image["file_name"])
    write_coco(data, tree, split="val")
    annotations = load_annotations(configure().data, "val")
    assert annotations is not None
    save_pictures(tmp_path / "pictures", annotations, [], {})
    names = [p.name for p in (tmp_path / "pictures").iterdir()]
    assert len(names) == 3
    assert all(name.endswith(("_images_a.jpg", "_images_b.jpg", "_images_c.jpg")) for name in names)


def test_a_picture_that_cannot_be_written_does_not_end_a_run(
    configure: Callable[..., Config], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    annotations = load_annotations(configure().data, "val")
    assert annotations is not None
    (tmp_path / "pictures/a.jpg").mkdir(parents=True)
    save_pictures(tmp_path / "pictures", annotations, [], {})
    assert "no picture of" in caplog.text
    assert (tmp_path / "pictures/b.jpg").is_file()
