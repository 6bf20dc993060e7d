"""Message about a folder or file whose layout is not recognised: its contents, and the options to type."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from ..formatting import join_some, plural, printable
from .csv_table import describe_header
from .files import IMAGE_SUFFIXES, walk_folders
from .folders import list_visible

_ANNOTATION_SUFFIXES = (".json", ".xml", ".csv", ".tsv", ".jsonl", ".txt")
_MAX_DEPTH, _MAX_FOLDERS, _MAX_LINES = 3, 200, 8


def describe(path: Path) -> str:
    """Return the kind of a file, with the columns of a CSV, or the contents of a folder."""
    if not path.is_dir():
        return f"a {path.suffix} file{describe_header(path)}" if path.suffix else "a file"
    return join_some([printable(entry.name) for entry in list_visible(path)]) or "an empty folder"


def describe_unrecognized(
    root: Path, layouts: Sequence[str], recognized: Sequence[Path], broken_row: str | None = None
) -> str:
    """Return the message for data that is not recognised.

    Args:
        root: folder or file given as data.
        layouts: files that identify the formats that were tried.
        recognized: subfolders of `root` that are recognised.
        broken_row: description of a row because of which text files are not YOLO labels.
    """
    reason = f" Text files of the images are not YOLO labels: {printable(broken_row)}." if broken_row else ""
    expected = f"{root}: no data set recognised.{reason} Expected {'; '.join(layouts)}"
    if not root.is_dir():
        return f"{expected}; found {describe(root)}"
    lines = [f"{expected}. See docs/data.md."]
    contents = list(islice(walk_folders(root, max_depth=_MAX_DEPTH), _MAX_FOLDERS))
    lines += ["Found:", *_describe_contents(root, contents)]
    if recognized:
        options = " or ".join(f"data={folder}" for folder in recognized[:3])
        lines.append(f"A subfolder is a data set: {options}")
    lines.append(f"Or name the files: {_guess_options(contents)}")
    return "\n  ".join(lines)


_Contents = list[tuple[Path, list[Path]]]


def _describe_contents(root: Path, contents: _Contents) -> list[str]:
    lines = []
    for folder, files in contents:
        first = {path.suffix.lower(): path for path in reversed(files)}
        texts = [
            (printable(first[suffix].name) if count == 1 else f"{count} {suffix or 'no suffix'} files")
            + describe_header(first[suffix])
            for suffix, count in Counter(path.suffix.lower() for path in files).most_common()
        ]
        if texts:
            name = "" if folder == root else f"{printable(str(folder.relative_to(root)))}: "
            lines.append(f"- {name}{join_some(texts)}")
    if len(lines) > _MAX_LINES:
        lines[_MAX_LINES:] = [f"- {plural(len(lines) - _MAX_LINES, 'more folder')}"]
    return lines or ["- an empty folder"]


def _guess_options(contents: _Contents) -> str:
    """Return the options with the likely annotations and images, or with placeholders."""
    num_images = {folder: _count(files, IMAGE_SUFFIXES) for folder, files in contents}
    images = max(num_images, key=num_images.__getitem__, default=None)
    annotations = None
    for suffix in _ANNOTATION_SUFFIXES:
        folder, files = max(contents, key=lambda item: _count(item[1], (suffix,)))
        matches = [path for path in files if path.suffix.lower() == suffix]
        if len(matches) > (suffix == ".txt"):  # a single text file is rarely a label file
            annotations = matches[0] if len(matches) == 1 else folder
            break
    images_text = images if images is not None and num_images[images] else "FOLDER"
    return f"data.train.annotations={annotations or 'FILE'} data.train.images={images_text}"


def _count(files: Sequence[Path], suffixes: Sequence[str]) -> int:
    return sum(path.suffix.lower() in suffixes for path in files)
