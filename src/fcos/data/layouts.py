"""Layouts of data sets: recognising the format of a folder or file, and finding the files of each split."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import get_args

from ..config import DataConfig, expand_user
from ..config.catalog import place_hint
from ..errors import DataError
from . import cityscapes, coco, csv_table, cvat, huggingface, labelme, voc, yolo
from .files import walk_files
from .folders import first_images, has_images, image_folders, list_visible, split_folders, suggest_sibling
from .source import Format, Split, SplitFiles
from .unrecognized import describe, describe_unrecognized

FORMATS: dict[str, Format] = {
    "coco": Format(
        layout="train.json, annotations/instances_train2017.json or result.json (COCO)",
        annotations="a COCO JSON file",
        find=coco.find,
        recognize=coco.recognize,
        read=coco.read,
    ),
    "yolo": Format(
        layout="data.yaml, obj.data, or images and labels (YOLO)",
        annotations="a folder of YOLO label files (.txt)",
        find=yolo.find,
        recognize=yolo.recognize,
        read=yolo.read,
        reads_lists=True,
    ),
    "voc": Format(
        layout="Annotations/*.xml, or *.xml next to the images (VOC)",
        annotations="a folder of VOC XML files",
        find=voc.find,
        recognize=voc.recognize,
        read=voc.read,
        reads_lists=True,
    ),
    "labelme": Format(
        layout="*.json next to the images (LabelMe)",
        annotations="a folder of LabelMe JSON files",
        find=lambda root, split: None,
        recognize=labelme.recognize,
        read=labelme.read,
    ),
    "cvat": Format(
        layout="annotations.xml (CVAT)",
        annotations="a CVAT XML file",
        find=cvat.find,
        recognize=cvat.recognize,
        read=cvat.read,
    ),
    "csv": Format(
        layout="a CSV of boxes",
        annotations="a CSV of boxes",
        find=csv_table.find,
        recognize=csv_table.recognize,
        read=csv_table.read,
    ),
    "huggingface": Format(
        layout="metadata.jsonl (Hugging Face)",
        annotations="a metadata.jsonl of Hugging Face",
        find=huggingface.find,
        recognize=huggingface.recognize,
        read=huggingface.read,
    ),
    "cityscapes": Format(
        layout="leftImg8bit and gtFine (Cityscapes)",
        annotations="a folder of Cityscapes polygon files",
        find=cityscapes.find,
        recognize=cityscapes.recognize,
        read=cityscapes.read,
    ),
}
"""Annotation formats by name. If a folder matches several formats, the first one is used."""

SPLITS: tuple[Split, ...] = get_args(Split)
_FORMAT_OF_SUFFIX = {".json": "coco", ".csv": "csv", ".tsv": "csv", ".xml": "cvat", ".jsonl": "huggingface"}
_NAMING_SPLITS = {"csv", "cvat", "huggingface"}  # formats whose file may name the splits of its images
_FRACTIONS = {"yolo", "csv"}  # formats whose boxes are or may be fractions of the image size
_MAX_SUBFOLDERS = 20  # subfolders that are searched for a data set, for the message


def locate(config: DataConfig, split: Split) -> list[tuple[str, SplitFiles]] | None:
    """Find the formats and the files of a split, from the root folder, the options of the split, or both.

    Args:
        config: data options, including the location of the data.
        split: `train`, `val` or `test`.

    Returns:
        The name of the format and the files of each data set of the split, or None if the data has no such split. YOLO
        and CSV cannot be combined with other formats.

    Raises:
        DataError: no data is configured or found.
    """
    data_sets = getattr(config, split).data_sets
    if config.root is None:
        if not any(getattr(config, s).data_sets for s in SPLITS):
            raise DataError("no data is given; set data=DIR, or data.train.annotations and data.train.images")
        name, files = config.format, None
    else:
        name, find = _recognize(expand_user(config.root), config.format)
        files = find(split)
        if files is None and data_sets and all(annotations is None for annotations, _, _ in data_sets):
            files = find("train")  # image lists divide a data set without splits
        if files and files.mask_lists and (config.masks or config.boxes == "masks"):
            files = replace(files, lists=files.mask_lists)
    if not data_sets:
        return None if files is None else [(name, files)]
    located = [_apply_paths(name, files or SplitFiles(None, ()), paths, split) for paths in data_sets]
    names = sorted({form for form, _ in located})
    if len(names) > 1 and not _FRACTIONS.isdisjoint(names):
        raise DataError(
            f"data.{split}: {' and '.join(names)} annotations cannot be combined; convert them to one format"
        )
    return located


def _recognize(root: Path, data_format: str) -> tuple[str, Callable[[Split], SplitFiles | None]]:
    """Return the format of a folder or file, and a function that finds the files of a split.

    In order of preference: the files name the splits; folders are named after the splits; everything is one data set,
    which becomes the training split.
    """
    if not os.path.exists(root):
        raise DataError(f"{root}: no such data folder{suggest_sibling(root)}")
    forms = {name: form for name, form in FORMATS.items() if data_format in ("auto", name)}
    try:
        for find in _FINDERS:
            for name, form in forms.items():
                if any(find(form, root, split) is not None for split in SPLITS):
                    return name, partial(find, form, root)
        subfolders = [folder for folder in list_visible(root)[:_MAX_SUBFOLDERS] if folder.is_dir()]
        recognized = [
            f
            for f in subfolders
            if first_images(f, 1) and any(find(form, f, "train") for find in _FINDERS for form in forms.values())
        ]
    except PermissionError as error:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from None
    broken_row = yolo.find_broken_row(root) if "yolo" in forms and root.is_dir() else None
    raise DataError(describe_unrecognized(root, [form.layout for form in forms.values()], recognized, broken_row))


def _find_named(form: Format, root: Path, split: Split) -> SplitFiles | None:
    return form.find(root, split)


def _find_in_folder(form: Format, root: Path, split: Split) -> SplitFiles | None:
    return next((files for folder in split_folders(root, split) if (files := form.recognize(folder))), None)


def _find_single(form: Format, root: Path, split: Split) -> SplitFiles | None:
    return form.recognize(root) if split == "train" else None


_FINDERS = (_find_named, _find_in_folder, _find_single)


def _apply_paths(
    name: str, files: SplitFiles, paths: tuple[Path | None, Path | None, Path | None], split: Split
) -> tuple[str, SplitFiles]:
    """Return the format and files of a data set, with the paths given in the options replacing those in `files`."""
    annotations, images, image_list = paths
    for path in paths:
        if path is not None and not os.path.exists(path):
            raise DataError(f"data.{split}: {path} does not exist{place_hint(path) or suggest_sibling(path)}")
    if annotations is not None:
        name, recognized = _recognize_annotations(name, annotations, split)
        files = replace(recognized, images=files.images or recognized.images, class_names=files.class_names)
    elif name == "auto":
        name, files = _recognize_images(images, split)
    if images is not None:
        lists = tuple(path for path in files.lists if not path.is_dir())  # YOLO lists image folders, too
        files = replace(files, images=(images,), lists=lists)
    if image_list is not None:
        files = replace(files, lists=(image_list,))
    if name != "yolo" and files.annotations is None:
        raise DataError(
            f"data.{split}: no annotations are given; set data.{split}.annotations to {FORMATS[name].annotations}"
        )
    if images and not images.is_dir():
        raise DataError(f"data.{split}.images={images}: expected the folder of the images, found a file")
    if not files.images:
        raise DataError(f"data.{split}: expected the folder of the images; set data.{split}.images=FOLDER")
    return name, files


def _recognize_images(images: Path | None, split: Split) -> tuple[str, SplitFiles]:
    """Return the format and files of a folder of images whose annotations are not given, but next to the images.

    Raises:
        DataError: they are not.
    """
    files_by_format = {name: form.recognize(images) for name, form in FORMATS.items()} if images else {}
    recognized = next(((name, files) for name, files in files_by_format.items() if files), None)
    if recognized is None:
        where = (
            f"data.{split}.images={images}: no annotations next to the images" if images else f"data.{split}: no data"
        )
        raise DataError(
            f"{where}; set data.{split}.annotations=FILE (COCO, CVAT, CSV, Hugging Face) or"
            f" data.{split}.annotations=FOLDER (VOC, YOLO, LabelMe, Cityscapes), or data=DIR for a folder with both"
        )
    return recognized


def _recognize_annotations(name: str, path: Path, split: Split) -> tuple[str, SplitFiles]:
    """Return the format and files of annotations without folder of images.

    Args:
        name: format, or `auto`.
        path: annotation file or folder.
        split: split that the annotations belong to.

    Raises:
        DataError: the annotations are in no known format.
    """
    forms = {key: form for key, form in FORMATS.items() if name in ("auto", key)}
    recognized = next(((key, files) for key, form in forms.items() if (files := form.recognize(path))), None)
    if recognized is None:
        name, files = _guess_format(path, split) if name == "auto" else name, SplitFiles(path, ())
    else:
        name, files = recognized
        if path.is_file() and name in _NAMING_SPLITS:
            files = FORMATS[name].find(path, split) or files
    if path.is_file():
        return name, replace(files, images=(path.parent,) if name == "labelme" else image_folders(path, split))
    return name, files if any(map(has_images, files.images)) else replace(files, images=())


def _guess_format(path: Path, split: Split) -> str:
    """Return the format that the suffix suggests; its reader then says what is wrong with the contents."""
    if not path.is_dir():
        name = _FORMAT_OF_SUFFIX.get(path.suffix.lower())
    else:
        suffixes = {entry.suffix.lower() for entry in walk_files(path)}
        name = next((name for suffix, name in (("xml", "voc"), ("txt", "yolo")) if f".{suffix}" in suffixes), None)
    if name is None:
        expected = " or ".join(form.annotations for form in FORMATS.values())
        raise DataError(f"data.{split}.annotations={path}: expected {expected}, found {describe(path)}")
    return name
