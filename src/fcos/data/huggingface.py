"""Reader for Hugging Face's ImageFolder: metadata.jsonl, one JSON object with the boxes per image."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .files import read_text
from .folders import list_visible, read_start, split_folders, split_of
from .label_table import LabelTable
from .rows import Row, source_from_rows
from .source import Problem, Source, Split, SplitFiles
from .subsets import check_subsets
from .values import CROWD_FLAGS, parse_flag, parse_number, parse_size

_NAME = "metadata.jsonl"
_BOX_KEYS = ("bbox", "bboxes", "boxes")
_ID_KEYS = ("category_ids", "category_id", "class_ids", "class_id", "label_ids", "label_id")
_CLASS_KEYS = (
    *("categories", "category", "labels", "label", "classes", "class"),
    *("category_names", "category_name", "class_names", "class_name", "label_names", "label_name"),
)


def find(root: Path, split: Split) -> SplitFiles | None:
    """Find metadata.jsonl in data/SPLIT, or one in DIR whose images are in folders named after the splits."""
    for folder in split_folders(root / "data", split):
        if _is_metadata(folder / _NAME):
            return SplitFiles(folder / _NAME, (folder,))
    file = root if root.is_file() else root / _NAME
    if not _is_metadata(file):
        return None
    folders = re.findall(r'"file_name"\s*:\s*"(?:\./)?([^"/]+)/', read_text(file))
    return (
        SplitFiles(file, (file.parent,), subset=split) if split in {split_of(name) for name in set(folders)} else None
    )


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
    entries, problems = _parse_lines(path)
    if files.subset is not None:
        problems += check_subsets(path, files.subset, [(f"line {n}", _first_folder(name)) for n, _, name in entries])
        entries = [entry for entry in entries if split_of(_first_folder(entry[2])) == files.subset]
    labels = LabelTable(class_names)
    file_names, sizes, rows = [], [], []
    for number, entry, name in entries:
        try:
            rows += list(_read_objects(entry.get("objects") or {}, len(file_names), number, labels))
        except ValueError as error:
            problems.append(Problem("broken objects", str(path), f"line {number}", str(error)))
            continue
        file_names.append(name)
        sizes.append(parse_size(entry.get("height"), entry.get("width")))
    rows = labels.sort(rows)
    return source_from_rows(
        rows,
        root=files.images[0],
        file_names=file_names,
        sizes=sizes,
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


def _parse_lines(path: Path) -> tuple[list[tuple[int, dict[str, Any], str]], list[Problem]]:
    """Return the number, object and file name of each line, and problems of the other lines."""
    entries, problems = [], []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            problems.append(Problem("broken line", str(path), f"line {number}", f"not valid JSON: {error}"))
            continue
        name = entry.get("file_name") if isinstance(entry, dict) else None
        if isinstance(name, str) and name.strip():
            entries.append((number, entry, name))
        else:
            message = f"expected an object with file_name, found {line!r:.60}"
            problems.append(Problem("broken line", str(path), f"line {number}", message))
    return entries, problems


def _first_folder(name: str) -> str:
    """Return the first folder of a file name, empty for a file without folder."""
    return name.removeprefix("./").rpartition("/")[0].partition("/")[0]


def _read_objects(objects: Any, image: int, number: int, labels: LabelTable) -> Iterator[Row]:
    """Yield the boxes of an image.

    Raises:
        ValueError: the objects are not boxes with categories.
    """
    if isinstance(objects, list):  # a list of objects instead of an object of lists
        keys = {key for entry in objects if isinstance(entry, dict) for key in entry}
        objects = {key: [entry.get(key) for entry in objects if isinstance(entry, dict)] for key in keys}
    boxes = _select_list(objects, _BOX_KEYS)
    classes, ids = _read_classes(objects)
    flags = [_select_list(objects, [key]) for key in CROWD_FLAGS if objects.get(key)]
    for noun, values in (("classes (categories)", classes), *(("flags of ignore regions", flag) for flag in flags)):
        if len(values) != len(boxes):
            raise ValueError(f"found {len(boxes)} boxes (bbox) and {len(values)} {noun}; expected one per box")
    for box, name, category_id, *crowd in zip(boxes, classes, ids or [None] * len(boxes), *flags, strict=True):
        if type(name) is not int and not (isinstance(name, str) and name.strip()):
            raise ValueError(f"expected a class name or number, found {name!r:.60}")
        try:
            x, y, w, h = (parse_number(value) for value in box)
            is_crowd = any(map(parse_flag, crowd))
        except (TypeError, ValueError):
            raise ValueError(f"expected bbox [x, y, width, height], found {box!r:.80}") from None
        yield Row(image, number, labels.label(name, category_id), (x, y, x + w, y + h), is_crowd)


def _read_classes(objects: Any) -> tuple[list[Any], list[Any]]:
    """Return the classes of the boxes, and their ids if the classes are names; the ids may be empty.

    Raises:
        ValueError: several lists name the classes, or the lists differ in length.
    """
    keys = [key for key in _CLASS_KEYS if key in objects]
    id_keys = [key for key in _ID_KEYS if key in objects]
    with_text = [key for key in keys if any(isinstance(value, str) for value in _select_list(objects, [key]))]
    if with_text:  # beside names, numbers are ids
        id_keys += [key for key in keys if key not in with_text]
        keys = with_text
    if not keys:
        keys, id_keys = id_keys, []
    classes, ids = _select_list(objects, keys), _select_list(objects, id_keys)
    if ids and len(ids) != len(classes):
        raise ValueError(
            f"found {len(classes)} classes ({keys[0]}) and {len(ids)} ids ({id_keys[0]}); expected one per box"
        )
    return classes, ids


def _select_list(objects: Any, keys: Sequence[str]) -> list[Any]:
    """Return the list at one of several keys with the same meaning, empty if there is none.

    Raises:
        ValueError: the value is not a list, or the lists at several keys differ.
    """
    lists: list[list[Any]] = []
    for key in keys:
        if not isinstance(objects, dict) or not isinstance(objects.get(key, []), list):
            raise ValueError(f"expected objects with the lists bbox and categories, found {objects!r:.80}")
        if key in objects:
            lists.append(objects[key])
    if any(values != lists[0] for values in lists):
        raise ValueError(f"expected one of the lists {', '.join(keys)}, found several that differ")
    return lists[0] if lists else []
