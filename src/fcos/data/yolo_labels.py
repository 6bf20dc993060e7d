"""Search for the label files of images in YOLO data sets."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from ..formatting import join_some, plural
from .files import list_images, match_key, walk_files
from .folders import LABEL_FOLDERS, read_start
from .source import Problem


class _Folder(NamedTuple):
    """Relative paths of the label files in a folder, and these paths by `match_key` of the path without `.txt`."""

    paths: set[str]
    by_key: dict[str, str]


class LabelFinder:
    """Label files by image. A folder is listed once, when it is first needed.

    Args:
        root: folder of the images.
        labels: folder of the label files, or None.
    """

    def __init__(self, root: Path, labels: Path | None) -> None:
        self._root, self._labels = root, labels
        self._folders: dict[Path, _Folder] = {}

    def find(self, image: Path) -> Path | None:
        """Return the label file of an image, `x.txt` or `x.jpg.txt`, in the first usual folder that has one.

        Unicode form and case of the suffixes do not matter, but an exact match is preferred.
        """
        for folder, relative_path in self._candidates(image):
            files = self._list(folder)
            stem = os.path.splitext(relative_path)[0]
            if f"{stem}.txt" in files.paths:
                return folder / f"{stem}.txt"
            for key in (match_key(stem), match_key(relative_path)):
                if key in files.by_key:
                    return folder / files.by_key[key]
        return None

    def expected_path(self, image: Path) -> Path:
        """Return the path at which the label file of an image is searched first."""
        folder, relative_path = next(self._candidates(image))
        return (folder / relative_path).with_suffix(".txt")

    def check(self, matched: Mapping[Path, Path | None]) -> list[Problem]:
        """Report label files of several images or of none, and images without a label file if most images have one.

        Args:
            matched: label file of each image of the split, None if it has none.
        """
        problems = []
        without_label = [str(image) for image, label in matched.items() if label is None]
        if 0 < 2 * len(without_label) < len(matched):
            message = f"{plural(len(without_label), 'image')} without a label file, used as background"
            problems.append(_problem("image without label file", self._root, message, without_label))
        folders = {(label or self.expected_path(image)).parent for image, label in matched.items()}
        unmatched = {folder / path for folder, files in self._folders.items() for path in files.paths}
        unmatched = {file for file in unmatched if file.parent in folders} - set(matched.values())
        if unmatched:  # they may belong to images of other splits
            image_folders = {self._root, *(image.parent for image in matched if not image.is_relative_to(self._root))}
            others = {self.find(image) for folder in image_folders for image in list_images(folder)}
            used = {os.path.realpath(file) for file in (*others, *matched.values()) if file}
            unmatched = {file for file in unmatched if os.path.realpath(file) not in used}
        unused = sorted(str(file) for file in unmatched if is_label_file(file))
        if unused:
            message = f"{plural(len(unused), 'label file')} without an image, not used"
            problems.append(_problem("label file without image", self._labels or self._root, message, unused))
        return [*problems, *_find_shared(matched)]

    def _candidates(self, image: Path) -> Iterator[tuple[Path, str]]:
        """Yield the folders to search, each with the path to look up there, which still has the image's suffix."""
        parts = image.parts[:-1]
        if "images" in parts:
            last = len(parts) - 1 - parts[::-1].index("images")
            yield Path(*parts[:last], "labels"), "/".join(image.parts[last + 1 :])
        relative_path = image.relative_to(self._root).as_posix() if image.is_relative_to(self._root) else None
        if self._labels is not None:
            yield self._labels, relative_path or image.name
            yield self._labels, image.name
        yield (image.parent, image.name) if relative_path is None else (self._root, relative_path)

    def _list(self, folder: Path) -> _Folder:
        if folder not in self._folders:
            files = walk_files(folder) if os.path.isdir(folder) else ()
            paths = [file.relative_to(folder).as_posix() for file in files if file.suffix.lower() == ".txt"]
            self._folders[folder] = _Folder(set(paths), {match_key(path[: -len(".txt")]): path for path in paths})
        return self._folders[folder]


def is_label_file(file: Path) -> bool:
    """Return whether the start of a text file contains a row of a label file, or is empty in a folder of labels."""
    lines = read_start(file, 1 << 12).split("\n")
    if lines == [""]:
        return file.parent.name in LABEL_FOLDERS
    return any(map(_is_row, lines))


def _is_row(line: str) -> bool:
    try:
        return len([float(word) for word in line.split()]) >= 5
    except ValueError:
        return False


def _find_shared(matched: Mapping[Path, Path | None]) -> list[Problem]:
    """Report label files that belong to several images, such as a.txt of a.jpg and a.png."""
    images_of: dict[Path, list[str]] = defaultdict(list)
    for image, label in matched.items():
        if label is not None:
            images_of[label].append(str(image))
    message = (
        "belongs to {}; expected one image per label file. Remove or rename the other images (data.on_error=skip uses"
        " the boxes for each of them)"
    )
    return [
        Problem("label file of several images", str(label), "", message.format(join_some(images, " and ")))
        for label, images in images_of.items()
        if len(images) > 1
    ]


def _problem(kind: str, folder: Path, message: str, files: list[str]) -> Problem:
    return Problem(kind, str(folder), "", f"{message}: {join_some(files)}", "warning")
