"""Text files that list the images of a split."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tiny_data import BOXES, CLASSES, SIZES, config, contents, write_annotated, write_coco, write_voc, write_yolo
from tool_exports import labelme

from fcos.config import DataConfig
from fcos.data import load_annotations
from fcos.data.dataset import Annotations
from fcos.data.source import Split
from fcos.errors import DataError


def load(data: DataConfig, split: Split = "train") -> Annotations:
    annotations = load_annotations(data, split)
    assert annotations is not None
    return annotations


def names(annotations: Annotations) -> list[str]:
    return [annotations.path(i).name for i in range(len(annotations))]


def write_list(root: Path, lines: Sequence[str], file: str = "list.txt") -> dict[str, Path]:
    """Write a list and return the section of its split."""
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text("\n".join(lines))
    return {"image_list": root / file}


def test_image_list_selects_images_of_any_format(tmp_path: Path) -> None:
    labelme(tmp_path / "pets")
    train = write_list(tmp_path, ["b.png"], "train.txt")
    data = config(tmp_path / "pets", train=train, val=write_list(tmp_path, [str(tmp_path / "pets/a.png")], "val.txt"))
    assert contents(load(data)) == {BOXES[2]}
    assert contents(load(data, "val")) == set(BOXES[:2])


@pytest.mark.parametrize("suffix", ["", ".jpg ./Annotations/{}.xml"])
def test_voc_lists_next_to_the_annotations_are_used(suffix: str, tmp_path: Path) -> None:
    root = write_voc(tmp_path)
    (root / "ImageSets/Main/train.txt").unlink()
    write_list(root, ["b" + suffix.format("b")], "train.txt")
    write_list(root, ["a" + suffix.format("a")], "val.txt")
    assert contents(load(config(root))) == {BOXES[2]}
    assert contents(load(config(root), "val")) == set(BOXES[:2])


def test_image_list_with_unknown_image_is_rejected(tmp_path: Path) -> None:
    data = config(write_coco(tmp_path), train=write_list(tmp_path, ["a.png", "z.png"]))
    with pytest.raises(DataError, match=r"list\.txt, z\.png: the annotations do not contain this image"):
        load_annotations(data, "train")


WRITERS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "coco": (write_coco, "images"),
    "voc": (write_voc, "JPEGImages"),
    "yolo": (write_yolo, "images/train"),
}
"""Functions that write a data set, and its folder of images."""


@pytest.mark.parametrize(
    "line",
    [
        *("{folder}/a.png", "./{folder}/a.png", "{root}/{folder}/a.png", "/home/me/cells/{folder}/a.png", "a.png"),
        *("./a.png", "a", "{folder}/a"),
    ],
)
@pytest.mark.parametrize("separator", ["/", "\\"])
@pytest.mark.parametrize("file", ["list.txt", "lists/train.txt"])
@pytest.mark.parametrize("form", WRITERS)
def test_listed_path_selects_an_image(form: str, file: str, separator: str, line: str, tmp_path: Path) -> None:
    write, folder = WRITERS[form]
    write(tmp_path)
    line = line.format(root=tmp_path, folder=folder).replace("/", separator)
    data = config(tmp_path, classes=CLASSES, train=write_list(tmp_path, [line], file))
    assert contents(load(data)) == set(BOXES[:2])


@pytest.mark.parametrize("line", ["C:\\cells\\{folder}\\a.png", "Annotations/a.xml", "{folder}/a.png 1", "a -1"])
def test_other_lines_of_lists_select_an_image(line: str, tmp_path: Path) -> None:
    forms = WRITERS if line.startswith("C:") else ["voc"]
    for form in forms:
        write, folder = WRITERS[form]
        write(tmp_path / form)
        data = config(tmp_path / form, train=write_list(tmp_path, [line.format(folder=folder)]))
        assert contents(load(data)) == set(BOXES[:2])


@pytest.mark.parametrize("form", ["coco", "yolo"])
@pytest.mark.parametrize("line", ["val/a.png", "images/val/a.png", "/home/me/cells/images/val/a.png"])
def test_listed_image_of_another_split_is_not_replaced(line: str, form: str, tmp_path: Path) -> None:
    if form == "yolo":
        write_yolo(tmp_path)
    else:
        write_annotated(tmp_path, ["train/a.png"], ["train/a.png"])
    with pytest.raises(DataError, match=r"no image exists; expected files such as|do not contain this image"):
        load_annotations(config(tmp_path, train=write_list(tmp_path, [line])), "train")


def test_list_with_absolute_paths_causes_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The label files of images that are not listed are used by other splits."""
    root = write_yolo(tmp_path / "cells")
    (tmp_path / "link").symlink_to(root)
    for project in (tmp_path / "project", tmp_path / "link"):
        write_list(project, [f"{root}/images/train/a.png"], "train.txt")
        (project / "data.yaml").write_text("train: train.txt\nnames: [cat, dog]\n")
        with caplog.at_level(logging.INFO, logger="fcos"):
            assert names(load(config(project))) == ["a.png"]
    assert "without an image" not in caplog.text


def load_listed(root: Path, annotated: Sequence[str], lines: Sequence[str]) -> list[str]:
    write_annotated(root, annotated, annotated)
    annotations = load(config(root, train=write_list(root, lines)))
    return [annotations.file_name(i) for i in range(len(annotations))]


@pytest.mark.parametrize(
    ("annotated", "lines", "listed"),
    [
        (["v1/0001.png", "v2/0001.png", "v2/0002.png"], ["v2/0001.png", "0002"], ["v2/0001.png", "v2/0002.png"]),
        (["v1/0001.png", "v2/0002.png"], ["./0001.png"], ["v1/0001.png"]),
        (["0001.png", "v1/0001.png"], ["0001.png"], ["0001.png"]),
        (["v1/0001.png", "v2/0001.png"], ["/data/v2/0001.png"], ["v2/0001.png"]),
    ],
)
def test_listed_name_selects_one_image(
    annotated: Sequence[str], lines: Sequence[str], listed: Sequence[str], tmp_path: Path
) -> None:
    assert load_listed(tmp_path, annotated, lines) == listed


@pytest.mark.parametrize("line", ["0001", "0001.png", "./0001.png"])
def test_listed_name_of_several_images_is_ambiguous(line: str, tmp_path: Path) -> None:
    message = r"list\.txt, (\./)?0001(\.png)?: 2 images have this name: v1/0001\.png, v2/0001\.png; list them with"
    with pytest.raises(DataError, match=message):
        load_listed(tmp_path, ["v1/0001.png", "v2/0001.png", "v2/0002.png"], [line, "0002"])


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize("form", WRITERS)
def test_listed_images_of_other_splits_are_not_trained_on(
    form: str, split: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write, folder = WRITERS[form]
    root = write(tmp_path)
    section = write_list(root, [f"{folder}/a.png"])
    data = config(root, **{split: section})
    with caplog.at_level(logging.INFO, logger="fcos"):
        assert names(load(data)) == ["b.png", "c.png"]
    assert f"1 of 3 images are in data.{split}.image_list and are not used for training, which leaves 2;" in caplog.text
    assert names(load(config(root, **{split: section, "train": section}))) == ["a.png"]


def test_listed_images_of_the_same_annotation_file_are_not_trained_on(tmp_path: Path) -> None:
    root = write_coco(tmp_path)
    paths = {"annotations": root / "train.json", "images": root / "images"}
    data = config(train=paths, val={**paths, **write_list(root, ["a.png", "b.png"])})
    assert names(load(data)) == ["c.png"]


def test_images_in_the_folder_of_another_split_are_not_trained_on(tmp_path: Path) -> None:
    root = write_yolo(tmp_path)
    for folder, name in (("images/train", "b.png"), ("labels/train", "b.txt")):
        (root / folder / "more").mkdir()
        (root / folder / name).rename(root / folder / "more" / name)
    data = config(root, val={"images": root / "images/train/more"})
    assert (names(load(data)), names(load(data, "val"))) == (["a.png", "c.png"], ["b.png"])


def test_same_images_given_for_both_splits_are_trained_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_yolo(tmp_path)
    images = {"images": root / "images/train"}
    data = config(train=images, val=images, classes=["cat", "dog"])
    with caplog.at_level(logging.INFO, logger="fcos"):
        assert names(load(data)) == names(load(data, "val")) == list(SIZES)
    assert "train has the same 3 images, so the metrics are not those of new images" in caplog.text


def test_listed_test_images_are_not_held_out_for_validation(tmp_path: Path) -> None:
    data = config(write_coco(tmp_path), val_fraction=0.5, test=write_list(tmp_path, ["a.png"]))
    assert sorted(names(load(data)) + names(load(data, "val"))) == ["b.png", "c.png"]


def test_list_of_all_images_leaves_none_for_training(tmp_path: Path) -> None:
    data = config(write_coco(tmp_path), val=write_list(tmp_path, list(SIZES)))
    with pytest.raises(
        DataError, match=r"3 of 3 images are in data\.val\.image_list .* leaves 0; data\.train\.image_list"
    ):
        load_annotations(data, "train")


def test_a_broken_test_list_does_not_stop_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_coco(tmp_path)
    data = config(tmp_path, test={"image_list": tmp_path / "none.txt"})
    with caplog.at_level(logging.INFO, logger="fcos"):
        assert len(load(data)) == len(SIZES)
    assert (
        f"data.test: cannot be read, so its images are not left out of training: data.test: {tmp_path}" in caplog.text
    )
    with pytest.raises(DataError, match=r"none\.txt does not exist"):
        load(data, "test")
    with pytest.raises(DataError, match=r"data\.val: .*none\.txt does not exist"):
        load(config(tmp_path, val={"image_list": tmp_path / "none.txt"}))
