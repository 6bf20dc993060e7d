"""Images that annotations or lists name in another way (other separators, other folders, without suffix) or twice."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from ..formatting import join_some, plural
from .files import list_images, read_text
from .folders import split_of
from .source import Problem, Source, select_images


def find_missing_images(source: Source, folders: Sequence[Path]) -> Source:
    """Find images that do not exist under the annotated name, see `find_missing_files`.

    Args:
        source: split as read from its files.
        folders: folders that may contain the images.

    Returns:
        The source with the names of existing files, and a warning that names an example. Other names stay the same.
    """
    where = source.annotation_files[0] if len(source.annotation_files) == 1 else source.root
    names, problems = find_missing_files(source.root, source.file_names, folders, where=where)
    return replace(source, file_names=names, problems=[*source.problems, *problems]) if problems else source


def find_missing_files(
    root: Path, names: Sequence[str], folders: Sequence[Path], *, where: Path, is_list: bool = False
) -> tuple[list[str], list[Problem]]:
    """Find image files that do not exist under their names.

    Tools write names with backslashes, without suffix, and relative to other folders than those of the data set. An
    image is found if exactly one file in the folders agrees best with the name, compared from its end. If the
    names contain several folders, the file must be in the same one, or directly in one of `folders`. Files in
    folders of other splits, files of other names, and files that fit several names are not used.

    Args:
        root: folder that the names are relative to.
        names: file names.
        folders: folders that may contain the images.
        where: file that contains the names, for messages.
        is_list: True for a list of images that the user chose. A name without folder may then be in a folder of any
            split.

    Returns:
        The names of existing files, and a warning that names an example. Other names stay the same.
    """
    missing = {name for name in names if not os.path.isfile(root / name)}
    if not missing:
        return list(names), []
    used = {os.path.realpath(root / name) for name in names if name not in missing}
    index = _index_images([folder for folder in (root, *folders) if folder.is_dir()], used)
    num_shared = _common_start([_parts(name)[:-1] for name in names])
    paths = {name: _best_match(name, index, num_shared, is_list=is_list) for name in missing}
    counts = Counter(path for path in paths.values() if path is not None)
    new_names = {
        name: os.path.relpath(path, root) for name, path in paths.items() if path is not None and counts[path] == 1
    }
    moved = [name for name in names if name in new_names]
    if not moved:
        return list(names), []
    message = (
        f"{plural(len(moved), 'file name')} found elsewhere, for example {moved[0]!r} as"
        f" {str(root / new_names[moved[0]])!r}"
    )
    problem = Problem("file name relative to another folder", str(where), "", message, "warning")
    return [new_names.get(name, name) for name in names], [problem]


class _Image(NamedTuple):
    """Image file.

    Attributes:
        path: path of the file.
        is_direct: True if it is directly in one of the folders that may contain the images.
        splits: splits that the folders between are named after.
    """

    path: Path
    is_direct: bool
    splits: frozenset[str]


def _index_images(folders: Sequence[Path], used: Collection[str]) -> dict[str, list[_Image]]:
    """Return all images in the folders by lower-case name, with and without suffix, except the real paths `used`."""
    index: dict[str, list[_Image]] = defaultdict(list)
    seen = set(used)
    paths = [(path, path.relative_to(folder).parts[:-1]) for folder in folders for path in list_images(folder)]
    for path, within in sorted(paths, key=lambda item: len(item[1])):  # folders may contain each other
        real = os.path.realpath(path)
        if real not in seen:
            seen.add(real)
            splits = frozenset(split for part in within if (split := split_of(part)))
            for key in {path.name.casefold(), path.stem.casefold()}:
                index[key].append(_Image(path, not within, splits))
    return index


def _best_match(name: str, index: dict[str, list[_Image]], num_shared: int, *, is_list: bool) -> Path | None:
    """Return the only file that agrees best with a name, or None.

    Args:
        name: annotated name.
        index: images by name.
        num_shared: number of folders at the start of all annotated names. The others tell images of the same name
            apart, so that a file in folders must agree with all of them.
        is_list: see `find_missing_files`.
    """
    *folders, base = _parts(name) or [""]
    lengths = {}
    splits = {split_of(folder) for folder in folders}
    is_free = is_list and not folders
    for image in index.get(base, []):
        if not (is_free or image.splits <= splits):
            continue
        length = _common_length(folders, _parts(str(image.path))[:-1])
        if image.is_direct or length >= len(folders) - num_shared:
            lengths[image.path] = length
    best = [path for path, length in lengths.items() if length == max(lengths.values())]
    return best[0] if len(best) == 1 else None


def _common_start(names: Sequence[list[str]]) -> int:
    """Return the number of equal items at the start of all sequences."""
    first, last = min(names), max(names)
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))


def _parts(name: str) -> list[str]:
    return [part for part in PurePosixPath(name.replace("\\", "/").casefold()).parts if part not in ("/", "..")]


def _common_length(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the number of equal items at the end of two sequences."""
    length = 0
    for a, b in zip(reversed(first), reversed(second), strict=False):
        if a != b:
            break
        length += 1
    return length


def select_listed(source: Source, lists: Sequence[Path]) -> Source:
    """Select the images that text files list, one per line: the annotated name, a path, or the name without folder.

    A name must be that of one image only if it lacks the suffix or leading folders. Folders may be separated by `/` or
    by a backslash.
    """
    lines = {line.strip(): path for path in lists for line in read_text(path).splitlines() if line.strip()}
    paths = [os.path.abspath(source.path(i)).replace("\\", "/") for i in range(len(source.file_names))]
    exact: dict[str, int] = {}
    by_name: dict[str, list[int]] = defaultdict(list)
    for i, (name, path) in enumerate(zip(source.file_names, paths, strict=True)):
        exact |= {name.replace("\\", "/"): i, path: i}
        for key in {PurePosixPath(path).name, PurePosixPath(path).stem}:
            by_name[key].append(i)
    mask = np.zeros(len(paths), dtype=bool)
    problems = list(source.problems)
    for line, file in lines.items():
        name = line.replace("\\", "/").removeprefix("./")
        key = next((key for key in (name, os.path.abspath(file.parent / name)) if key in exact), None)
        matches = [exact[key]] if key is not None else _best_listed(name, by_name[PurePosixPath(name).name], paths)
        if len(matches) == 1:
            mask[matches] = True
        elif matches:
            names = join_some(sorted(source.file_names[i] for i in matches))
            message = f"{plural(len(matches), 'image')} have this name: {names}; list them with their folder"
            problems.append(Problem("ambiguous name", str(file), line, message))
        else:
            problems.append(Problem("unknown image", str(file), line, "the annotations do not contain this image"))
    return select_images(replace(source, problems=problems), mask)


def _best_listed(name: str, images: Sequence[int], paths: Sequence[str]) -> list[int]:
    """Return the images that agree best with a listed name, compared from its end.

    Args:
        name: listed name. If it is relative, all its folders must agree. If it is absolute, it may be from another
            machine, so that only the folders of splits must agree.
        images: positions of the images with its last part.
        paths: absolute paths of all images.
    """
    folders = list(PurePosixPath(name).parts[:-1])
    is_absolute = re.match(r"/|[a-zA-Z]:", name) is not None
    lengths = {}
    for i in images:
        parents = PurePosixPath(paths[i]).parts[:-1]
        length = _common_length(folders, parents)
        splits = {split_of(folder) for folder in parents[-2:]} - {None}
        if length == len(folders) or (is_absolute and splits <= {split_of(folder) for folder in folders}):
            lengths[i] = length
    return [i for i, length in lengths.items() if length == max(lengths.values())]


def find_repeated_images(source: Source) -> list[Problem]:
    """Report images that a data set contains twice: the boxes of each entry would be missing in the other one."""
    first: dict[str, int] = {}
    problems = []
    for i, name in enumerate(source.file_names):
        earlier = first.setdefault(os.path.normpath(name), i)
        if earlier != i:
            has_ids = source.unit == "annotation"
            entries = [f"image {source.image_ids[k]}" if has_ids else source.annotation_file(k) for k in (earlier, i)]
            other = entries[0] if entries[0] != entries[1] else "an earlier entry"
            message = (
                f"{name} is also the file of {other}; expected one entry with all boxes of the image. Merge them"
                " (data.on_error=skip uses each as it is, without the boxes of the other)"
            )
            where = entries[1] if has_ids else ""
            problems.append(Problem("repeated image", source.annotation_file(i), where, message))
    return problems
