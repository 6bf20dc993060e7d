"""Files of data sets: listing, reading, and matching names that differ in Unicode form or case of the suffix."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import DataError
from ..files import open_file

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".jp2", ".avif")
_SYSTEM_FOLDERS = ("__MACOSX", "@eaDir")  # written by macOS into archives, and by network storage


def read_text(path: Path) -> str:
    """Read a small text file.

    Raises:
        DataError: the file is missing or not UTF-8 text.
    """
    try:
        with open_file(path) as file:
            return file.read().decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as text: {error}") from None


def is_hidden(name: str) -> bool:
    """Return True for files and folders that are not part of a data set, such as `.ipynb_checkpoints` and `._a.png`."""
    return name.startswith(".") or name in _SYSTEM_FOLDERS


def walk_files(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder and its subfolders, without hidden ones.

    Links to folders are followed; each folder is visited once.

    Raises:
        DataError: a folder cannot be read.
    """

    def stop(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}")

    visited: set[tuple[int, int]] = set()
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=stop):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in visited:
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        yield from (Path(parent, name) for name in sorted(names) if not is_hidden(name))


def list_images(folder: Path) -> list[Path]:
    """Return the image files of a folder and its subfolders, sorted and without hidden ones.

    Raises:
        DataError: a folder cannot be read.
    """
    return sorted(file for file in walk_files(folder) if file.suffix.lower() in IMAGE_SUFFIXES)


def match_key(name: str) -> str:
    """Return the form of a relative path that is compared: composed Unicode, and a lower-case suffix."""
    stem, suffix = os.path.splitext(os.path.normpath(name))
    return unicodedata.normalize("NFC", stem) + suffix.lower()


def match_names(root: Path, names: Sequence[str]) -> list[str]:
    """Replace the names of missing files by the names of files with the same `match_key`, if there are any.

    Args:
        root: folder that the names are relative to.
        names: file names from an annotation file or list.

    Raises:
        DataError: a folder cannot be read.
    """
    missing = {name for name in names if not os.path.isfile(os.path.join(root, name))}
    if not missing or not os.path.isdir(root):
        return list(names)
    relative_paths = [file.relative_to(root).as_posix() for file in walk_files(root)]
    existing = {match_key(path): path for path in relative_paths}
    return [existing.get(match_key(name), name) if name in missing else name for name in names]


def folder_with(folders: Sequence[Path], names: Sequence[str]) -> Path:
    """Return the folder that contains most of the first 20 names, or the last folder if none contains any.

    Only if no folder contains any of the names exactly, they are compared as in `match_names`.
    """
    names = names[:20]
    num_files = {folder: sum(os.path.isfile(folder / name) for name in names) for folder in folders}
    if any(num_files.values()):
        return max(folders, key=num_files.__getitem__)
    return next((folder for folder in folders if match_names(folder, names) != list(names)), folders[-1])
