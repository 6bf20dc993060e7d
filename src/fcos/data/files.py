"""Files of data sets: listing, reading, and matching names that differ in Unicode form or case of the suffix."""

from __future__ import annotations

import codecs
import json
import os
import re
import stat
import unicodedata
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from ..errors import DataError
from ..files import open_file

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".jp2", ".avif")
PREDICTIONS_MARK = ".fcos-predictions"
"""Hidden file in a folder that `fcos predict` created. The pictures in such a folder are not data."""
_WEIGHTS = ("last.pt", "best.pt")  # in the folder `weights` of a run
_SYSTEM_FOLDERS = ("__MACOSX", "@eaDir")  # written by macOS into archives, and by network storage


def read_text(path: Path) -> str:
    """Read a small text file, in UTF-8 or in UTF-16 with a byte order mark.

    Raises:
        DataError: the file is missing, cannot be read, or is in another encoding.
    """
    data = _read_bytes(path)
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    name = "UTF-16" if encoding == "utf-16" else "UTF-8"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not {name} text (at byte {error.start}); save the file as UTF-8") from None
    if "\0" in text:
        raise DataError(f"{path}: not {name} text (it contains NUL characters); save the file as UTF-8")
    return text


def read_json(path: Path, *, object_hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """Parse a JSON file; `object_hook` replaces every object, see `json.loads`.

    Raises:
        DataError: the file is missing, cannot be read, or is not JSON.
    """
    try:
        return json.loads(_read_bytes(path), object_hook=object_hook)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON: {error}") from None


def read_xml(path: Path) -> Element:
    """Parse an XML file, and return its root element.

    Raises:
        DataError: the file is missing, cannot be read, or is not XML in a known encoding.
    """
    data = _read_bytes(path)
    try:
        return _parse_xml(data)
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # LookupError: unknown encoding
        raise DataError(f"{path}: not valid XML: {error}") from None


def _parse_xml(data: bytes) -> Element:
    try:
        return ElementTree.fromstring(data)
    except ValueError:  # a multi-byte encoding such as GBK, which Python decodes but the parser does not
        encoding = re.match(rb"<\?xml[^>]*\sencoding=[\"']([\w.-]+)", data)
        if encoding is None:
            raise
        return ElementTree.fromstring(data.decode(encoding[1].decode()))


def _read_bytes(path: Path) -> bytes:
    try:
        with open_file(path) as file:
            return file.read()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        reason = error.strerror if isinstance(error, OSError) else None
        raise DataError(f"{path}: cannot be read: {reason or error}") from None


def is_hidden(name: str) -> bool:
    """Return True for files and folders that are not part of a data set, such as `.ipynb_checkpoints` and `._a.png`."""
    return name.startswith(".") or name in _SYSTEM_FOLDERS


def is_file_or_dead_link(path: str | Path) -> bool:
    """Return True for a regular file, and for a link without target, which is an error when it is read.

    Pipes, sockets and devices are not part of a data set.
    """
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return True


def walk_folders(folder: Path, *, max_depth: int | None = None) -> Iterator[tuple[Path, list[Path]]]:
    """Yield a folder and its subfolders, each with its files, without hidden ones, pipes, sockets and devices.

    Links to folders are followed; each folder is visited once. Subfolders that this project wrote are left out, see
    `find_outputs`.

    Args:
        folder: folder to start with.
        max_depth: number of levels of subfolders; None: all.

    Raises:
        DataError: a folder cannot be read.
    """
    return ((parent, files) for parent, files in _walk(folder, max_depth) if files is not None)


def find_outputs(folder: Path) -> list[Path]:
    """Return the subfolders that are run folders or contain predictions. Their pictures are not data.

    Raises:
        DataError: a folder cannot be read.
    """
    return [parent for parent, files in _walk(folder) if files is None]


def _walk(folder: Path, max_depth: int | None = None) -> Iterator[tuple[Path, list[Path] | None]]:
    """Yield a folder and its subfolders as `walk_folders` does; None instead of the files of an output folder."""
    visited: set[tuple[int, int]] = set()
    pending = [(folder, 0)]
    while pending:
        parent, depth = pending.pop()
        try:
            status = os.stat(parent)
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            with os.scandir(parent) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError as error:
            raise DataError(f"{parent}: cannot be read: {error.strerror}") from None
        if depth and _is_output(parent, {entry.name for entry in entries}):
            yield parent, None
            continue
        visible = [entry for entry in entries if not is_hidden(entry.name)]
        subfolders = [entry for entry in visible if _is_folder(entry)]
        files = [e for e in visible if e.is_file(follow_symlinks=False) or is_file_or_dead_link(e.path)]
        yield parent, [parent / entry.name for entry in files]
        if max_depth is None or depth < max_depth:
            pending += [(parent / entry.name, depth + 1) for entry in reversed(subfolders)]


def _is_output(folder: Path, names: Collection[str]) -> bool:
    """Return whether a folder with entries of these names is a run folder, or contains predictions with their list."""
    if PREDICTIONS_MARK in names:
        return True
    if "predictions.json" in names:
        with suppress(OSError), open_file(folder / "predictions.json") as file:
            return re.match(rb'\[\s*\{"file":', file.read(100)) is not None
    has_weights = "weights" in names and any(os.path.isfile(folder / "weights" / name) for name in _WEIGHTS)
    return "config.yaml" in names and ("environment.json" in names or has_weights)


def walk_files(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder and its subfolders, see `walk_folders`.

    Raises:
        DataError: a folder cannot be read.
    """
    for _, files in walk_folders(folder):
        yield from files


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads back to itself
        return False


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
