"""Folders and file names of data sets: visible files, names of splits, and folders that may hold the images."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from ..errors import DataError
from ..files import open_file
from ..formatting import printable
from .files import IMAGE_SUFFIXES, is_file_or_dead_link, is_hidden, walk_files
from .source import SPLIT_NAMES, Split

_SPLIT_OF_WORD: dict[str, Split] = {word: split for split, words in SPLIT_NAMES.items() for word in words}  # type: ignore[misc]
_AFFIXES = {"instances", "annotations", "annotation", "labels", "label", "coco", "boxes", "bbox"}
_YEAR = re.compile(r"(?<=[a-z])\d{4}$")
IMAGE_FOLDERS = ("JPEGImages", "images", "Images", "imgs", "img")
"""Usual names of the folder with the images."""
LABEL_FOLDERS = ("Annotations", "annotations", "labels", "Labels", "xmls", "annots")
"""Usual names of the folder with the annotations."""


def split_of(name: str) -> Split | None:
    """Return the split that a file or folder is named after, None if there is none.

    Case, a year and usual affixes are ignored: `Train`, `instances_val2017`, `train_labels`, `_annotations_test`.
    """
    words = [word for word in re.split(r"[\W_]+", name.casefold()) if word]
    words = [_YEAR.sub("", word) for word in words if word not in _AFFIXES and not re.fullmatch(r"\d{4}", word)]
    return _SPLIT_OF_WORD.get(words[0]) if len(words) == 1 else None


def list_visible(folder: Path, suffixes: Sequence[str] | None = None) -> list[Path]:
    """Return the entries of a folder that are not hidden, sorted; with `suffixes`, only files with one of them.

    The list is empty if there is no such folder.

    Raises:
        DataError: the folder cannot be read.
    """
    if not os.path.isdir(folder):
        return []
    try:
        entries = sorted(path for path in folder.iterdir() if not is_hidden(path.name))
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror}") from None
    if suffixes is None:
        return entries
    return [path for path in entries if path.suffix.lower() in suffixes and is_file_or_dead_link(path)]


def split_folders(root: Path, split: Split) -> list[Path]:
    """Return the folders in `root` that are named exactly like the split, in any case."""
    return [p for p in list_visible(root) if p.name.casefold() in SPLIT_NAMES[split] and p.is_dir()]


def existing(root: Path, names: Sequence[str]) -> list[Path]:
    """Return the folders in `root` with one of these names, without those that are the same folder."""
    folders: dict[tuple[int, int], Path] = {}  # file systems may ignore the case of names
    for name in names:
        path = root / name
        if path.is_dir():
            status = path.stat()
            folders.setdefault((status.st_dev, status.st_ino), path)
    return list(folders.values())


def suggest_sibling(path: Path) -> str:
    """Return a hint with the file or folder beside a missing one whose name is the most similar; empty without one."""
    try:
        names = [entry.name for entry in list_visible(path.parent)]
    except DataError:
        return ""
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.7)
    return f", did you mean {printable(str(path.with_name(close[0])))}?" if close else ""


def has_images(folder: Path) -> bool:
    """Return whether a folder directly contains an image."""
    return bool(list_visible(folder, IMAGE_SUFFIXES))


def first_images(folder: Path, count: int) -> list[Path]:
    """Return up to `count` images in a folder and its subfolders."""
    images = (path for path in walk_files(folder) if path.suffix.lower() in IMAGE_SUFFIXES)
    return list(islice(images, count))


def image_folders(annotations: Path, split: Split | None = None) -> tuple[Path, ...]:
    """Return the folders that the file names in an annotation file may be relative to, most likely first.

    Args:
        annotations: annotation file. The folders are next to it (or to its folder `annotations`) and named after it or
            its split.
        split: split that the file describes; None: its name tells.
    """
    in_subfolder = annotations.parent.name in LABEL_FOLDERS
    base = annotations.parent.parent if in_subfolder else annotations.parent
    stem = re.sub(r"^instances_", "", annotations.stem)
    named = split or split_of(stem)
    names = dict.fromkeys((stem, *(SPLIT_NAMES[named] if named else ())))
    subfolders = [subfolder for name in names for subfolder in (name, f"images/{name}", f"{name}/images")]
    return tuple(base / subfolder for subfolder in (*subfolders, *IMAGE_FOLDERS, "."))


def read_start(path: Path, length: int = 1 << 16) -> str:
    """Return the start of a file as text; empty if it cannot be read. It is for recognising formats only."""
    try:
        with open_file(path) as file:
            return file.read(length).decode("utf-8-sig", errors="replace").replace("\0", "")  # UTF-16 becomes readable
    except (OSError, ValueError):
        return ""
