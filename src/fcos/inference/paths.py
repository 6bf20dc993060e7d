"""Expansion of folders and globs to the pictures in them."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from itertools import pairwise, takewhile
from pathlib import Path

from ..data.files import IMAGE_SUFFIXES
from ..downloads import describe_other_scheme, is_url
from ..errors import DataError
from ..formatting import quote

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
PARQUET_SUFFIX = ".parquet"


def stands_for_several(source: str) -> bool:
    """Return whether a source is a folder or a glob, which `expand` expands to any number of pictures."""
    return not is_url(source) and (os.path.isdir(source) or (glob.has_magic(source) and not os.path.lexists(source)))


def expand(source: str, *, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> list[str]:
    """Expand a file name, folder, glob or URL to a sorted list of pictures.

    `**` in a glob matches any subfolders, each of which is entered once, so that links to a parent folder are harmless.
    Folders at the start of a glob that exist are taken literally.
    A folder stands for the files in it that have one of the suffixes, without hidden ones.

    Raises:
        DataError: nothing matches `source`.
    """
    if is_url(source):
        return [source]
    if os.path.isdir(source):
        return _list_folder(source, suffixes)
    if os.path.lexists(source):
        return [source]
    try:
        matches = [] if "\0" in source else _glob(_escape_existing(source))
    except RecursionError:  # thousands of folder levels
        matches = []
    files = sorted(path for path in dict.fromkeys(matches) if not os.path.isdir(path))
    if not files:
        reason = "no file matches" if glob.has_magic(source) else "no such file or folder"
        raise DataError(f"{source or quote(source)}: {describe_other_scheme(source) or reason}")
    return files


def _list_folder(folder: str, suffixes: tuple[str, ...]) -> list[str]:
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror}") from None
    paths = [os.path.join(folder, n) for n in names if not n.startswith(".") and n.lower().endswith(suffixes)]
    files = [path for path in paths if not os.path.isdir(path)]
    if not files:
        raise DataError(f"{folder}: no images in this folder; expected files with the suffixes {', '.join(suffixes)}")
    return files


def _escape_existing(pattern: str) -> str:
    """Escape the folders that a glob begins with as far as they exist, such as `photos [1]` in `photos [1]/*.jpg`."""
    parts = Path(pattern).parts
    folders = takewhile(os.path.isdir, (os.path.join(*parts[:i]) for i in range(1, len(parts))))
    existing = max(folders, key=len, default="")
    if not glob.has_magic(existing):
        return pattern
    return os.path.join(glob.escape(existing), *Path(pattern).relative_to(existing).parts)


def _glob(pattern: str) -> list[str]:
    """Return the matches of a glob like `glob.glob(pattern, recursive=True)`, which would follow links in circles."""
    parts = Path(pattern).parts
    if "**" not in parts:
        return glob.glob(pattern)
    position = parts.index("**")
    rest = [part for previous, part in pairwise(parts[position:]) if (previous, part) != ("**", "**")] or ["*"]
    starts = glob.glob(os.path.join(*parts[:position])) if position else ["."]
    folders = [folder for start in starts for folder in _walk(start)]
    matches = [match for folder in folders for match in _glob(os.path.join(glob.escape(folder), *rest))]
    return matches if position else [match.removeprefix(f".{os.sep}") for match in matches]


def _walk(start: str) -> Iterator[str]:
    """Yield a folder and all its subfolders, also linked ones, except hidden ones; each real folder once."""
    visited: set[str] = set()
    for folder, names, _ in os.walk(start, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:
            names.clear()
            continue
        visited.add(real)
        names[:] = sorted(name for name in names if not name.startswith("."))
        yield folder


def is_shard(path: str) -> bool:
    """Return whether the name of a file is that of a tar or Parquet file, which contains pictures."""
    return not is_url(path) and path.lower().endswith((*TAR_SUFFIXES, PARQUET_SUFFIX))
