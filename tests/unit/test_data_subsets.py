"""Splits that an annotation file names itself: a CSV column, subsets of CVAT, folders of metadata.jsonl."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tiny_data import SIZES, config, write_images
from tool_exports import cvat_image, cvat_xml, hugging_face_lines, tensorflow_csv

from fcos.data import load_annotations
from fcos.data.layouts import SPLITS
from fcos.data.source import Split
from fcos.errors import DataError

Write = Callable[[Path, Sequence[str]], Path]


def write_csv(root: Path, splits: Sequence[str]) -> Path:
    write_images(root)
    header, *lines = tensorflow_csv(["a.png", "b.png"]).splitlines()[:1] + [
        f"{name},,,cat,2,3,12,23,{split}" for name, split in zip(SIZES, splits, strict=True)
    ]
    (root / "boxes.csv").write_text("\n".join([f"{header},split", *lines]))
    return root / "boxes.csv"


def write_cvat(root: Path, splits: Sequence[str]) -> Path:
    write_images(root)
    images = [cvat_image(name, i, subset=split) for i, (name, split) in enumerate(zip(SIZES, splits, strict=True))]
    (root / "annotations.xml").write_text(cvat_xml(images))
    return root / "annotations.xml"


def write_hugging_face(root: Path, splits: Sequence[str]) -> Path:
    lines = ""
    for name, split in zip(SIZES, splits, strict=True):
        write_images(root / split, {name: SIZES[name]})
        lines += hugging_face_lines([name], prefix=f"{split}/" if split else "")
    (root / "metadata.jsonl").write_text(lines)
    return root / "metadata.jsonl"


WRITERS: dict[str, tuple[Write, str]] = {
    "csv": (write_csv, r"boxes\.csv, line 4"),
    "cvat": (write_cvat, r"annotations\.xml, image c\.png"),
    "hugging face": (write_hugging_face, r"metadata\.jsonl, line 3"),
}
NAMES = [
    ("train", "val", "test"),
    ("training", "valid", "testing"),
    ("TRAIN", "validation", "TEST"),
    ("Training", "validate", "Testing"),
    ("TRAIN", "VALIDATE", "TEST"),
]


def num_images(path: Path, split: Split, **options: object) -> int:
    annotations = load_annotations(config(path, **options), split, class_names=("cat", "dog"))
    return 0 if annotations is None else len(annotations)


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize("as_file", [False, True])
@pytest.mark.parametrize("names", NAMES)
def test_splits_have_several_names(form: str, as_file: bool, names: Sequence[str], tmp_path: Path) -> None:
    file = WRITERS[form][0](tmp_path, names)
    path = file if as_file else tmp_path
    assert [num_images(path, split) for split in SPLITS] == [1, 1, 1]


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize("name", ["trian", "val_2", "0", "xval"])
def test_unknown_split_is_an_error(form: str, name: str, tmp_path: Path) -> None:
    write, place = WRITERS[form]
    write(tmp_path, ("train", "val", name))
    expected = r"expected train \(training\), val \(valid, validation, validate\), test \(testing\)"
    with pytest.raises(DataError, match=rf"{place}: unknown split '{name}'; {expected}"):
        load_annotations(config(tmp_path), "train")
    assert num_images(tmp_path, "train", on_error="skip") == 1


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize("name", ["holdout", "Extra"])
def test_one_other_word_beside_splits_is_left_out_with_a_warning(
    form: str, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write, place = WRITERS[form]
    write(tmp_path, ("train", "val", name))
    with caplog.at_level(logging.INFO, logger="fcos"):
        assert [num_images(tmp_path, split) for split in SPLITS] == [1, 1, 0]
    assert caplog.text.count(f"{name!r} is not a split; left out") == 2
    assert place.replace("\\", "") in caplog.text


def test_several_unknown_splits_are_errors(tmp_path: Path) -> None:
    """They may be folds, so it is not clear that their rows are to be left out."""
    rows = "".join(f"{name}.png,cat,1,1,9,9,{split}\n" for name, split in zip("abc", ("train", "k", "m"), strict=True))
    write_images(tmp_path)
    (tmp_path / "boxes.csv").write_text(f"filename,class,xmin,ymin,xmax,ymax,split\n{rows}")
    with pytest.raises(DataError, match="unknown split 'k'; expected"):
        load_annotations(config(tmp_path), "train")


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize("name", ["", "UNASSIGNED", "default"])
def test_image_without_split_is_left_out_with_a_warning(
    form: str, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write, place = WRITERS[form]
    write(tmp_path, ("train", "val", name))
    with caplog.at_level(logging.INFO, logger="fcos"):
        assert [num_images(tmp_path, split) for split in SPLITS] == [1, 1, 0]
    assert caplog.text.count("without a split; left out") == 2
    assert place.replace("\\", "") in caplog.text


def test_csv_row_that_ends_before_its_split_is_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = write_csv(tmp_path, ("train", "val", "val"))
    file.write_text(file.read_text().removesuffix(",val"))
    with caplog.at_level(logging.INFO, logger="fcos"):
        assert num_images(tmp_path, "val") == 1
    assert "boxes.csv, line 4: without a split; left out" in caplog.text


@pytest.mark.parametrize(("form", "splits"), [("csv", ("a", "b", "b")), ("cvat", ("Day", "Night", "Night"))])
def test_splits_that_are_not_used_are_named(
    form: str, splits: Sequence[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    WRITERS[form][0](tmp_path, splits)
    with caplog.at_level(logging.INFO, logger="fcos"):
        assert num_images(tmp_path, "train") == 3
    assert f"the splits that the file names ('{splits[0]}', '{splits[1]}') are not used" in caplog.text


@pytest.mark.parametrize("form", WRITERS)
def test_file_given_for_two_splits_is_divided(form: str, tmp_path: Path) -> None:
    file = WRITERS[form][0](tmp_path, ("train", "val", "val"))
    paths = {split: {"annotations": file, "images": tmp_path} for split in ("train", "val")}
    loaded = [load_annotations(config(None, **paths), split, class_names=("cat", "dog")) for split in ("train", "val")]
    assert [annotations and len(annotations) for annotations in loaded] == [1, 2]


def test_image_whose_rows_name_several_splits_is_an_error(tmp_path: Path) -> None:
    path = write_csv(tmp_path, ("train", "val", "val"))
    path.write_text(f"{path.read_text()}\n{next(iter(SIZES))},,,cat,2,3,12,23,val\n")
    for split in ("train", "val"):
        with pytest.raises(DataError, match=r"boxes\.csv, a\.png: its rows belong to train and val"):
            load_annotations(config(path), split)
