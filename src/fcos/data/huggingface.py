"""Reader for Hugging Face's ImageFolder: metadata.jsonl, one JSON object with the boxes per image."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .files import read_text
from .folders import list_visible, read_start, split_folders, split_of
from .label_table import LabelTable
from .source import Problem, Row, Source, Split, SplitFiles, source_from_rows
from .values import CROWD_FLAGS, parse_flag, parse_number, parse_size

_NAME = "metadata.jsonl"
_BOX_KEYS = ("bbox", "bboxes", "boxes")
_CLASS_KEYS = ("categories", "category", "labels", "label", "classes", "class", "category_id")


def find(root: Path, split: Split) -> SplitFiles | None:
    """Find metadata.jsonl in data/SPLIT, or one in DIR whose images are in folders named after the splits."""
    for folder in split_folders(root / "data", split):
        if _is_metadata(folder / _NAME):
            return SplitFiles(folder / _NAME, (folder,))
    file = root / _NAME
    if not _is_metadata(file):
        return None
    folders = re.findall(r'"file_name"\s*:\s*"(?:\./)?([^"/]+)/', read_text(file))
    return SplitFiles(file, (root,), subset=split) if split in {split_of(name) for name in set(folders)} else None


def recognize(path: Path) -> SplitFiles | None:
    """Recognise a JSON Lines file with objects, or a folder with metadata.jsonl."""
    files = [path] if path.is_file() else [p for p in list_visible(path, (".jsonl",)) if p.name == _NAME]
    return SplitFiles(files[0], (files[0].parent,)) if files and _is_metadata(files[0]) else None


def read(files: SplitFiles, class_names: Sequence[str] | None) -> Source:
    """Read the lines `{"file_name": ..., "objects": {"bbox": [[x, y, w, h], ...], "categories": [...]}}`.

    Boxes are XYWH in pixels. Categories are names, or numbers from 0, which are positions in `class_names`. Without
    `class_names`, the classes are the sorted names or numbers.

    Raises:
        DataError: the file cannot be read.
    """
    assert files.annotations is not None
    path = files.annotations
    labels = LabelTable(class_names)
    file_names, sizes, rows, problems = [], [], [], []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        where = f"line {number}"
        if not line.strip():
            continue
        try:
            entry, name = _parse_line(line)
        except ValueError as error:
            problems.append(Problem("broken line", str(path), where, str(error)))
            continue
        if files.subset is not None and split_of(name.removeprefix("./").partition("/")[0]) != files.subset:
            continue
        try:
            rows += list(_read_objects(entry.get("objects") or {}, len(file_names), number, labels))
        except ValueError as error:
            problems.append(Problem("broken objects", str(path), where, str(error)))
            continue
        file_names.append(name)
        sizes.append(parse_size(entry.get("height"), entry.get("width")))
    rows = labels.sort(rows)
    return source_from_rows(
        rows,
        root=files.images[0],
        file_names=file_names,
        sizes=np.array(sizes, dtype=np.int32).reshape(-1, 2),
        annotation_files=[path],
        unit="JSON line",
        class_names=labels.names,
        category_ids=labels.ids,
        problems=problems,
    )


def _is_metadata(path: Path) -> bool:
    return path.suffix.lower() == ".jsonl" and {'"file_name"', '"objects"'} <= set(
        re.findall(r'"file_name"|"objects"', read_start(path))
    )


def _parse_line(line: str) -> tuple[dict[str, Any], str]:
    """Parse a line; return it with its file name.

    Raises:
        ValueError: it is not a JSON object with a file name.
    """
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not valid JSON: {error}") from None
    name = entry.get("file_name") if isinstance(entry, dict) else None
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"expected an object with file_name, found {line!r:.60}")
    return entry, name


def _read_objects(objects: Any, image: int, number: int, labels: LabelTable) -> Iterator[Row]:
    """Yield the boxes of an image.

    Raises:
        ValueError: the objects are not boxes with categories.
    """
    if isinstance(objects, list):  # a list of objects instead of an object of lists
        keys = {key for entry in objects if isinstance(entry, dict) for key in entry}
        objects = {key: [entry.get(key) for entry in objects if isinstance(entry, dict)] for key in keys}
    boxes, classes = (_first(objects, keys) for keys in (_BOX_KEYS, _CLASS_KEYS))
    flags = [_first(objects, [key]) for key in CROWD_FLAGS if objects.get(key)]
    if any(len(values) != len(boxes) for values in (classes, *flags)):
        raise ValueError(f"found {len(boxes)} boxes (bbox) and {len(classes)} classes (categories)")
    for box, name, *crowd in zip(boxes, classes, *flags, strict=True):
        if type(name) is not int and not (isinstance(name, str) and name.strip()):
            raise ValueError(f"expected a class name or number, found {name!r:.60}")
        try:
            x, y, w, h = (parse_number(value) for value in box)
            is_crowd = any(map(parse_flag, crowd))
        except (TypeError, ValueError):
            raise ValueError(f"expected bbox [x, y, width, height], found {box!r:.80}") from None
        yield Row(image, number, labels.label(name), (x, y, x + w, y + h), is_crowd)


def _first(objects: Any, keys: Sequence[str]) -> list[Any]:
    value = next((objects[key] for key in keys if key in objects), []) if isinstance(objects, dict) else None
    if not isinstance(value, list):
        raise ValueError(f"expected objects with the lists bbox and categories, found {objects!r:.80}")
    return value
