"""Images that a data set contains twice, and annotation files that belong to several images."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_data import SIZES, coco_tree, config, write_coco, write_images, write_json, write_voc, write_yolo
from tool_exports import hugging_face_lines, labelme, labelme_tree

from fcos.data import load_annotations
from fcos.errors import DataError


def coco(root: Path) -> None:
    tree = coco_tree()
    tree["images"][1] = {**tree["images"][0], "id": 20}
    write_coco(root, tree)


def coco_with_another_path(root: Path) -> None:
    tree = coco_tree()
    tree["images"][1] = {**tree["images"][0], "id": 20, "file_name": "./a.png"}
    write_coco(root, tree)


def two_labelme_files(root: Path) -> None:
    labelme(root)
    write_json(root / "copy.json", labelme_tree("a.png", "a.png"))


def one_line_per_box(root: Path) -> None:
    write_images(root)
    (root / "metadata.jsonl").write_text(2 * hugging_face_lines(["a.png"]))


def label_file_of_two_images(root: Path) -> None:
    shutil.copy(write_yolo(root) / "images/train/a.png", root / "images/train/a.bmp")


def label_file_of_two_folders(root: Path) -> None:
    write_yolo(root)
    for side in ("left", "right"):
        write_images(root / "images/train" / side, {"d.png": SIZES["a.png"]})
    (root / "labels/d.txt").write_text("0 .5 .5 .1 .1\n")


def image_with_two_ids_without_annotations(root: Path) -> None:
    tree = coco_tree()
    tree["images"].append({**tree["images"][2], "id": 40})
    write_coco(root, tree)


REPEATED: dict[Callable[[Path], None], tuple[str, int]] = {
    coco: (r"train\.json, image 20: a\.png is also the file of image 10; expected one entry", 3),
    coco_with_another_path: (r"train\.json, image 20: \./a\.png is also the file of image 10", 3),
    image_with_two_ids_without_annotations: (r"train\.json, image 40: c\.png is also the file of image 30", 4),
    two_labelme_files: (r"copy\.json: a\.png is also the file of .*a\.json; expected", 4),
    one_line_per_box: (r"metadata\.jsonl: a\.png is also the file of an earlier entry", 2),
    label_file_of_two_images: (r"labels/train/a\.txt: belongs to .*a\.bmp and .*a\.png; expected one image", 4),
    label_file_of_two_folders: (r"labels/d\.txt: belongs to .*left/d\.png and .*right/d\.png", 5),
}
"""Functions that write a data set, with the message and the number of entries."""


@pytest.mark.parametrize("write", REPEATED)
def test_repeated_image_is_an_error_and_stays_with_skip(write: Callable[[Path], None], tmp_path: Path) -> None:
    write(tmp_path)
    message, count = REPEATED[write]
    with pytest.raises(DataError, match=message):
        load_annotations(config(tmp_path), "train")
    annotations = load_annotations(config(tmp_path, on_error="skip"), "train")
    assert annotations is not None
    assert len(annotations) == count


def test_data_sets_of_one_split_may_share_images(tmp_path: Path) -> None:
    root = write_coco(tmp_path)
    paths = {"annotations": [root / "train.json"] * 2, "images": root / "images"}
    annotations = load_annotations(config(train=paths), "train")
    assert annotations is not None
    assert len(annotations) == 2 * len(SIZES)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.bmp", "a.bmp"),
        ("a.png", "a.png"),
        ("a.PNG", "a.png"),
        (r"C:\photos\a.bmp", "a.bmp"),
        ("photos/a.png", "a.png"),
        ("other.png", None),
    ],
)
def test_voc_file_of_two_images_must_name_one(name: str, expected: str | None, tmp_path: Path) -> None:
    root = write_voc(tmp_path)
    shutil.copy(root / "JPEGImages/a.png", root / "JPEGImages/a.bmp")
    file = root / "Annotations/a.xml"
    file.write_text(file.read_text().replace("a.png", name))
    data = config(root)
    if expected is None:
        with pytest.raises(DataError, match=r"a\.xml: belongs to a\.bmp and a\.png; .*<filename>, found 'other\.png'"):
            load_annotations(data, "train")
        return
    annotations = load_annotations(data, "train")
    assert annotations is not None
    assert annotations.file_name(0) == expected


def test_message_tells_that_skipping_keeps_both_entries(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    coco(tmp_path)
    with pytest.raises(DataError, match=r"\nFix it, or set data\.on_error=skip to use them as they are\.$"):
        load_annotations(config(tmp_path), "train")
    assert load_annotations(config(tmp_path, on_error="skip"), "train") is not None
    assert "problems that remain in the train split: repeated image" in caplog.text
    assert "skipped" not in caplog.text
    caplog.clear()
    (tmp_path / "images/b.png").write_bytes(b"damaged")
    tree = coco_tree()
    tree["images"].append({**tree["images"][0], "id": 40})
    write_json(tmp_path / "train.json", tree)
    with pytest.raises(DataError, match="=skip to skip unusable images and boxes and use the others as they are"):
        load_annotations(config(tmp_path), "train")
    assert load_annotations(config(tmp_path, on_error="skip"), "train") is not None
    assert "skipped in the train split: unreadable image" in caplog.text
    assert "problems that remain in the train split: repeated image" in caplog.text
