"""Stray files in data folders, and file names that differ from the annotated ones."""

from __future__ import annotations

import errno
import os
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny_data import SIZES, WRITERS, coco_tree, config, write_coco, write_voc, write_yolo

from fcos.data import Annotations
from fcos.data.files import match_names, walk_files
from fcos.data.source import Problem
from fcos.data.splits import read_split
from fcos.errors import DataError

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "Bär 1é") for form in ("NFC", "NFD"))
PIXELS = Image.new("RGB", (8, 8))


def read(root: Path, **options: object) -> tuple[Annotations, list[Problem]]:
    loaded = read_split(config(root, **options), "train", class_names=None, decode=False)
    assert loaded is not None
    return loaded


def names(annotations: Annotations) -> list[str]:
    return [Path(annotations.file_name(i)).name for i in range(len(annotations))]


def kinds(problems: list[Problem]) -> set[str]:
    """Return the kinds of problems, except those of the background image of `tiny_data`."""
    return {p.kind for p in problems} - {"image without boxes", "image without label file"}


@pytest.mark.parametrize("folder", [".ipynb_checkpoints", "__MACOSX", ".Trash/a", "@eaDir/a.png", "a/.cache"])
def test_images_in_hidden_folders_are_not_used(folder: str, tmp_path: Path) -> None:
    images = write_yolo(tmp_path) / "images/train"
    (images / folder).mkdir(parents=True)
    PIXELS.save(images / folder / "a-checkpoint.png")
    (images / folder / "a-checkpoint.txt").write_text("0 .5 .5 .2 .2")
    assert names(read(tmp_path)[0]) == list(SIZES)


@pytest.mark.parametrize("form", WRITERS)
def test_hidden_files_are_not_used(form: str, tmp_path: Path) -> None:
    WRITERS[form](tmp_path)
    for path in [*tmp_path.rglob("a.*"), *tmp_path.rglob("*.json")]:
        path.with_name(f"._{path.name}").write_bytes(b"\x00\x05\x16\x07")
    annotations, problems = read(tmp_path)
    assert names(annotations) == list(SIZES)
    assert len(annotations.boxes) == 3
    assert not {p for p in problems if p.severity == "error"}


def test_a_voc_folder_without_lists_has_no_hidden_xml_files(tmp_path: Path) -> None:
    write_voc(tmp_path)
    (tmp_path / "Annotations/._a.xml").write_bytes(b"\x00")
    data = {"annotations": tmp_path / "Annotations", "images": tmp_path / "JPEGImages"}
    annotations, problems = read(None, train=data)  # pyright: ignore[reportArgumentType]
    assert names(annotations) == list(SIZES)
    assert not kinds(problems)


def test_a_data_set_may_be_in_a_hidden_folder(tmp_path: Path) -> None:
    assert len(read(write_yolo(tmp_path / ".cache/cells"))[0]) == len(SIZES)


def test_linked_subfolders_are_read(tmp_path: Path) -> None:
    root = write_yolo(tmp_path / "data")
    for kind in ("images", "labels"):
        (root / kind / "train").rename(tmp_path / kind)
        (root / kind / "train").mkdir()
        (root / kind / "train/part").symlink_to(tmp_path / kind)
    annotations, problems = read(root)
    assert [annotations.file_name(i) for i in range(3)] == [f"images/train/part/{name}" for name in SIZES]
    assert len(annotations.boxes) == 3
    assert not kinds(problems)


def test_links_without_a_target_are_reported(tmp_path: Path) -> None:
    root = write_yolo(tmp_path)
    for image in (root / "images/train").iterdir():
        image.unlink()
        image.symlink_to(root / "nowhere.png")
    with pytest.raises(DataError, match=r"images/train: no image exists; expected files such as .*images/train/a\.png"):
        read(root)


def test_links_to_a_parent_folder_end(tmp_path: Path) -> None:
    images = write_yolo(tmp_path) / "images/train"
    (images / "up").symlink_to(tmp_path)
    (images / "self").symlink_to(images)
    assert names(read(tmp_path)[0]) == list(SIZES)


def test_a_folder_that_cannot_be_read_is_reported(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: cannot be read: No such file"):
        list(walk_files(tmp_path / "nowhere"))


RENAMED: dict[str, Callable[[str], str]] = {
    "suffix": lambda stem: f"{stem}.TXT",
    "image suffix": lambda stem: f"{stem}.png.txt",
    "upper-case image suffix": lambda stem: f"{stem}.PNG.txt",
    "both": lambda stem: f"{stem}.png.TXT",
    "decomposed": lambda stem: unicodedata.normalize("NFD", f"{stem}.txt"),
    "composed": lambda stem: unicodedata.normalize("NFC", f"{stem}.txt"),
}


@pytest.mark.parametrize("renamed", RENAMED)
@pytest.mark.parametrize("place", ["labels/train", "labels", "images/train"])
@pytest.mark.parametrize("stem", ["a", COMPOSED, DECOMPOSED, "v1.2"])
def test_label_files_are_found_under_similar_names(renamed: str, place: str, stem: str, tmp_path: Path) -> None:
    root = write_yolo(tmp_path)
    (root / "images/train/a.png").rename(root / f"images/train/{stem}.png")
    (root / "labels/train/a.txt").rename(root / place / RENAMED[renamed](stem))
    annotations, problems = read(root)
    assert len(annotations.boxes) == 3
    assert not kinds(problems)


def test_label_folders_are_found_in_another_unicode_form(tmp_path: Path) -> None:
    root = write_yolo(tmp_path)
    (root / "images/train").rename(root / "images" / COMPOSED)
    (root / "labels/train").rename(root / "labels" / DECOMPOSED)
    (root / "data.yaml").write_text("train: images\nnames: [cat, dog]\n")
    assert len(read(root)[0].boxes) == 3


def test_an_exact_label_file_is_preferred(tmp_path: Path) -> None:
    root = write_yolo(tmp_path)
    for name in ("a.TXT", "a.png.txt"):
        (root / "labels/train" / name).write_text("0 .5 .5 .1 .1")
    annotations, problems = read(root)
    assert len(annotations.boxes) == 3
    (problem,) = [p for p in problems if p.kind == "label file without image"]
    assert problem.severity == "warning"
    assert problem.message.startswith("2 label files without an image, not used: ")
    assert all(str(root / "labels/train" / name) in problem.message for name in ("a.TXT", "a.png.txt"))


def test_label_files_without_an_image_are_reported_with_examples(tmp_path: Path) -> None:
    root = write_yolo(tmp_path)
    for number in range(8):
        (root / f"labels/train/other_{number}.txt").write_text("0 .5 .5 .1 .1")
    (root / "labels/train/classes.txt").write_text("cat\ndog\n")
    (root / "labels/train/train.txt").write_text("images/train/a.png\n")
    (problem,) = [p for p in read(root)[1] if p.kind == "label file without image"]
    assert problem.severity == "warning"
    assert problem.message.startswith("8 label files without an image, not used: ")
    assert str(root / "labels/train/other_0.txt") in problem.message
    assert "and 3 more" in problem.message


@pytest.mark.parametrize("labels", ["labels/{}", "labels"])
def test_label_files_of_other_splits_are_not_reported(labels: str, tmp_path: Path) -> None:
    root = write_yolo(tmp_path)
    (root / "images/val").mkdir()
    PIXELS.save(root / "images/val/d.png")
    for split, stem in (("train", "a"), ("train", "b"), ("val", "d")):
        path = root / labels.format(split) / f"{stem}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("0 .5 .5 .1 .1")
    assert not kinds(read(root)[1])


def test_label_files_of_unlisted_images_are_not_reported(tmp_path: Path) -> None:
    root = write_yolo(tmp_path)
    (root / "fold.txt").write_text("images/train/a.png\n")
    assert not kinds(read(root, train={"image_list": root / "fold.txt"})[1])


def test_images_without_a_label_file_are_reported_if_most_have_one(tmp_path: Path) -> None:
    root = write_yolo(tmp_path)
    (problem,) = [p for p in read(root)[1] if p.kind == "image without label file"]
    assert problem.severity == "warning"
    assert problem.message == f"1 image without a label file, used as background: {root / 'images/train/c.png'}"


def test_images_without_a_label_file_are_background_if_most_have_none(tmp_path: Path) -> None:
    root = write_yolo(tmp_path)
    (root / "labels/train/b.txt").unlink()
    assert {p.kind for p in read(root)[1]} == {"image without boxes"}


def test_voc_images_without_an_xml_file_are_reported_if_most_have_one(tmp_path: Path) -> None:
    root = write_voc(tmp_path)
    (root / "Annotations/c.xml").unlink()
    data = {"annotations": root / "Annotations", "images": root / "JPEGImages"}
    (problem,) = [p for p in read(None, train=data)[1] if p.severity == "warning"]  # pyright: ignore[reportArgumentType]
    assert problem.message == f"1 image without an XML file, not used: {root / 'JPEGImages/c.png'}"


@pytest.mark.parametrize("annotated", [COMPOSED, DECOMPOSED])
@pytest.mark.parametrize("stored", [f"{COMPOSED}.png", f"{DECOMPOSED}.png", f"{COMPOSED}.PNG"])
def test_coco_images_are_found_under_similar_names(annotated: str, stored: str, tmp_path: Path) -> None:
    tree = coco_tree()
    tree["images"][0]["file_name"] = f"{annotated}.png"
    write_coco(tmp_path, tree)
    (tmp_path / "images/a.png").rename(tmp_path / "images" / stored)
    assert names(read(tmp_path)[0])[0] == stored


def test_the_image_folder_is_found_although_all_names_differ(tmp_path: Path) -> None:
    tree = coco_tree()
    for image in tree["images"]:
        image["file_name"] = image["file_name"].replace(".png", ".PNG")
    assert names(read(write_coco(tmp_path, tree))[0]) == list(SIZES)


@pytest.mark.parametrize("xml", [f"{DECOMPOSED}.xml", f"{COMPOSED}.XML", f"{COMPOSED}.png.xml"])
@pytest.mark.parametrize("listed", [COMPOSED, DECOMPOSED, f"{COMPOSED}.png"])
def test_voc_files_are_found_under_similar_names(xml: str, listed: str, tmp_path: Path) -> None:
    root = write_voc(tmp_path)
    (root / "Annotations/a.xml").rename(root / "Annotations" / xml)
    (root / "JPEGImages/a.png").rename(root / f"JPEGImages/{COMPOSED}.PNG")
    (root / "ImageSets/Main/train.txt").write_text(f"{listed}\nb\n")
    annotations, problems = read(root)
    assert names(annotations) == [f"{COMPOSED}.PNG", "b.png"]
    assert annotations.class_names == ("cat", "dog")
    assert not problems


def test_listed_yolo_images_are_found_under_similar_names(tmp_path: Path) -> None:
    root = write_yolo(tmp_path)
    (root / "images/train/a.png").rename(root / f"images/train/{DECOMPOSED}.PNG")
    (root / "labels/train/a.txt").rename(root / f"labels/train/{DECOMPOSED}.txt")
    (root / "fold.txt").write_text(f"./images/train/{COMPOSED}.png\nimages/train/b.png\n")
    annotations, _ = read(root, train={"image_list": root / "fold.txt"})
    assert names(annotations) == [f"{DECOMPOSED}.PNG", "b.png"]
    assert len(annotations.boxes) == 3


def test_a_list_next_to_its_images_is_read_although_all_names_differ(tmp_path: Path) -> None:
    root = write_yolo(tmp_path)
    (root / "images/train/list.txt").write_text("a.PNG\nb.PNG\n")
    annotations, _ = read(root, train={"image_list": root / "images/train/list.txt"})
    assert [annotations.file_name(i) for i in range(2)] == ["images/train/a.png", "images/train/b.png"]


def test_names_without_a_similar_file_stay_as_they_are(tmp_path: Path) -> None:
    write_coco(tmp_path)
    listed = ["a.png", "A.png", "../a.PNG", "/a.PNG", "b.jpg", ""]
    assert match_names(tmp_path / "images", listed) == listed
    assert match_names(tmp_path / "nowhere", listed) == listed


def test_yolo_labels_are_found_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_yolo(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert len(read(Path(os.curdir))[0].boxes) == 3


def test_unrecognised_folder_with_links_is_described_once(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.doc").touch()
        (tmp_path / name / "up").symlink_to(tmp_path)
    with pytest.raises(DataError) as error:
        read(tmp_path)
    assert str(error.value).count("notes.doc") == 3


def test_subfolder_without_permission_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "locked").mkdir()
    scandir = os.scandir

    def deny(path: Any) -> Any:  # permissions do not stop root, who runs the tests in containers
        if Path(path).name == "locked":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    with monkeypatch.context() as patch:  # pytest uses the function to remove the folder
        patch.setattr(os, "scandir", deny)
        with pytest.raises(DataError, match=r"locked: cannot be read: Permission denied"):
            read(tmp_path)
