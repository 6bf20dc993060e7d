"""Images that annotations or lists name in another way: other separators, other folders, without suffix."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np

from ..formatting import plural
from .files import list_images, read_text
from .folders import split_of
from .source import Problem, Source, select_images


def find_missing_images(source: Source, folders: Sequence[Path]) -> Source:
    """Find images that do not exist under the annotated name.

    Tools write names with backslashes, without suffix, and relative to other folders than those of the data set. An
    image is found if exactly one file in the folders agrees best with the name, compared from its end. Files in folders
    of other splits are not considered.

    Args:
        source: split as read from its files.
        folders: folders that may contain the images.

    Returns:
        The source with the names of existing files, and a warning that names an example. Other names stay the same.
    """
    missing = [i for i in range(len(source.file_names)) if not os.path.isfile(source.path(i))]
    if not missing:
        return source
    index = _index_images([folder for folder in (source.root, *folders) if folder.is_dir()])
    names = list(source.file_names)
    for i in missing:
        path = _best_match(names[i], index)
        if path is not None:
            names[i] = os.path.relpath(path, source.root)
    found = [i for i in missing if names[i] != source.file_names[i]]
    if not found:
        return source
    message = (
        f"{plural(len(found), 'file name')} found elsewhere, for example {source.file_names[found[0]]!r} as"
        f" {str(source.root / names[found[0]])!r}"
    )
    where = str(source.annotation_files[0]) if len(source.annotation_files) == 1 else str(source.root)
    problem = Problem("file name relative to another folder", where, "", message, "warning")
    return replace(source, file_names=names, problems=[*source.problems, problem])


def _index_images(folders: Sequence[Path]) -> dict[str, list[Path]]:
    """Return all images in the folders by lower-case name, with and without suffix."""
    index: dict[str, list[Path]] = defaultdict(list)
    seen: set[str] = set()
    for folder in folders:
        for path in list_images(folder):
            real = os.path.realpath(path)
            within = path.relative_to(folder).parts[:-1]
            if real not in seen and not any(split_of(part) for part in within):
                seen.add(real)
                for key in {path.name.casefold(), path.stem.casefold()}:
                    index[key].append(path)
    return index


def _best_match(name: str, index: dict[str, list[Path]]) -> Path | None:
    parts = _parts(name)
    candidates = index.get(parts[-1], []) if parts else []
    lengths = [_common_length(parts[:-1], _parts(str(path))[:-1]) for path in candidates]
    best = [path for path, length in zip(candidates, lengths, strict=True) if length == max(lengths)]
    return best[0] if len(best) == 1 else None


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
    """Select the images that text files list, one per line: the annotated name, a path, or the name without folder."""
    lines = {line.strip(): path for path in lists for line in read_text(path).splitlines() if line.strip()}
    position_of: dict[str, int] = {}
    for i, name in reversed(list(enumerate(source.file_names))):
        path = PurePosixPath(name.replace("\\", "/"))
        position_of |= {path.name: i, path.stem: i}
    for i, name in enumerate(source.file_names):
        position_of |= {name: i, os.path.abspath(source.path(i)): i}
    mask = np.zeros(len(source.file_names), dtype=bool)
    problems = list(source.problems)
    for line, path in lines.items():
        names = (line, line.removeprefix("./"), os.path.abspath(path.parent / line))
        position = next((position_of[name] for name in names if name in position_of), None)
        if position is None:
            problems.append(Problem("unknown image", str(path), line, "the annotations do not contain this image"))
        else:
            mask[position] = True
    return select_images(replace(source, problems=problems), mask)
