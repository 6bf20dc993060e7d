"""Validation images with detections that a run saves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_data import coco_tree, write_coco

from fcos.config import Config
from fcos.data import load_annotations
from fcos.training import validation
from fcos.training import validation_pictures as pictures
from fcos.training.loop import train
from fcos.training.validation_pictures import save_pictures


def test_unreadable_images_are_left_out(configure: Callable[..., Config], data: Path, tmp_path: Path) -> None:
    annotations = load_annotations(configure().data, "val")
    assert annotations is not None
    (data / "images/b.png").unlink()
    save_pictures(tmp_path / "pictures", annotations, [], {}, default_threshold=0.5)
    assert sorted(p.name for p in (tmp_path / "pictures").iterdir()) == ["a.jpg", "c.jpg"]


def test_images_with_absolute_paths_are_saved_in_the_output_folder(
    configure: Callable[..., Config], data: Path, tmp_path: Path
) -> None:
    tree = coco_tree()
    for image in tree["images"]:
        image["file_name"] = str(data / "images" / image["file_name"])
    write_coco(data, tree, split="val")
    annotations = load_annotations(configure().data, "val")
    assert annotations is not None
    save_pictures(tmp_path / "pictures", annotations, [], {}, default_threshold=0.5)
    names = [p.name for p in (tmp_path / "pictures").iterdir()]
    assert len(names) == 3
    assert all(name.endswith(("_images_a.jpg", "_images_b.jpg", "_images_c.jpg")) for name in names)


def test_unwritable_image_warns_and_the_others_are_saved(
    configure: Callable[..., Config], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    annotations = load_annotations(configure().data, "val")
    assert annotations is not None
    (tmp_path / "pictures/a.jpg").mkdir(parents=True)
    save_pictures(tmp_path / "pictures", annotations, [], {}, default_threshold=0.5)
    assert "no picture of" in caplog.text
    assert (tmp_path / "pictures/b.jpg").is_file()


def test_images_show_detections_above_their_class_threshold(
    configure: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    annotations = load_annotations(configure().data, "val")
    assert annotations is not None
    ids, names = annotations.category_ids, annotations.class_names
    found = [
        {"image_id": int(annotations.image_ids[0]), "category_id": ids[k], "bbox": [2, 2, 9, 9], "score": score}
        for k, score in ((0, 0.3), (0, 0.2), (1, 0.6), (1, 0.3))
    ]
    drawn: list[list[float]] = []
    monkeypatch.setattr(
        pictures,
        "draw_pair",
        lambda image, predictions, _, **__: drawn.append(predictions.scores.tolist()) or image,
    )
    save_pictures(tmp_path / "pictures", annotations, found, {names[1]: 0.5}, default_threshold=0.25)
    assert drawn[0] == pytest.approx([0.3, 0.6])


def test_product_score_lowers_default_threshold_of_saved_images(
    configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []
    monkeypatch.setattr(
        validation, "save_pictures", lambda *_, default_threshold, **__: asked.append(default_threshold)
    )
    train(configure(model={"score": "product"}))
    assert asked == [0.25]
