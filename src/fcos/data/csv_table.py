"""Reader for CSV: one row per box, with the columns of TensorFlow's tutorial, OpenImages or keras-retinanet."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import DataError
from .files import folder_with, read_text
from .folders import LABEL_FOLDERS, existing, image_folders, list_visible, read_start, split_of
from .label_table import LabelTable
from .source import Problem, Row, Source, Split, SplitFiles, source_from_rows
from .values import CROWD_FLAGS, parse_flag, parse_number, parse_size

_COLUMNS = {
    "image": ("filename", "file", "image", "imagepath", "imagename", "path", "filepath", "imageid", "img"),
    "class": ("class", "classname", "label", "labelname", "name", "category", "categoryname", "classid"),
    "x1": ("xmin", "x1", "left", "bboxxmin", "bboxx1"),
    "y1": ("ymin", "y1", "top", "bboxymin", "bboxy1"),
    "x2": ("xmax", "x2", "right", "bboxxmax", "bboxx2"),
    "y2": ("ymax", "y2", "bottom", "bboxymax", "bboxy2"),
    "x": ("x", "bboxx"),
    "y": ("y", "bboxy"),
    "w": ("w", "boxwidth", "bboxwidth", "bboxw"),
    "h": ("h", "boxheight", "bboxheight", "bboxh"),
    "width": ("width", "imagewidth", "imgwidth"),
    "height": ("height", "imageheight", "imgheight"),
    "crowd": CROWD_FLAGS,
    "split": ("split", "subset", "set"),
}
"""Columns, with the names that tools use for them. Case, spaces and underscores do not matter."""
_CORNERS, _EXTENT = ("x1", "y1", "x2", "y2"), ("x", "y", "w", "h")
_HEADERLESS = ("image", "x1", "y1", "x2", "y2", "class")  # keras-retinanet
_ROUNDING = 0.01  # tools write fractions that exceed the image by a rounding error


def find(root: Path, split: Split) -> SplitFiles | None:
    """Find the CSV of a split in DIR or DIR/annotations (train.csv, train_labels.csv), or one with a column `split`."""
    tables = _list_tables(root)
    named = [path for path in tables if split_of(path.stem) == split]
    if named:
        return SplitFiles(named[0], image_folders(named[0], split))
    if len(tables) == 1 and split in map(split_of, _read_column(tables[0], "split")):
        return SplitFiles(tables[0], image_folders(tables[0]), subset=split)
    return None


def recognize(path: Path) -> SplitFiles | None:
    """Recognise a CSV of boxes, or a folder with one.

    Raises:
        DataError: the folder contains several such files.
    """
    tables = ([path] if _is_table(path) else []) if path.is_file() else _list_tables(path)
    if len(tables) > 1:
        names = ", ".join(table.name for table in tables)
        raise DataError(f"{path}: found several CSV files of boxes: {names:.200}; choose one with data={tables[0]}")
    return SplitFiles(tables[0], image_folders(tables[0])) if tables else None


def read(files: SplitFiles, class_names: Sequence[str] | None) -> Source:
    """Read a CSV. A row without box is an image without objects.

    Boxes are corners (`xmin ymin xmax ymax`) or `x y w h`, in pixels, or in fractions of the image if no coordinate
    exceeds 1. Without `class_names`, the classes are the sorted names.

    Raises:
        DataError: the file is not a CSV with these columns.
    """
    assert files.annotations is not None
    path = files.annotations
    text = read_text(path)
    try:
        columns, table = _parse(text)
    except csv.Error as error:
        raise DataError(f"{path}: not valid CSV: {error}") from None
    if not _has_boxes(columns):
        raise DataError(
            f"{path}: expected the columns filename, class, xmin, ymin, xmax, ymax, or x, y, w, h for the box; found"
            f" {text.partition(chr(10))[0]!r:.200}. Without a header, the columns must be filename, x1, y1, x2, y2,"
            " class"
        )
    labels = LabelTable(class_names)
    images: dict[str, int] = {}
    sizes, rows, problems = [], [], []
    for line, values in table:
        row = dict(zip(columns, values, strict=False))
        name = row.get("image", "")
        if files.subset is not None and split_of(row.get("split", "")) != files.subset:
            continue
        if not name:
            problems.append(Problem("broken row", str(path), f"line {line}", "names no image"))
            continue
        if name not in images:
            images[name] = len(images)
            sizes.append(parse_size(row.get("height"), row.get("width")))
        try:
            rows += _read_box(row, images[name], line, labels)
        except ValueError as error:
            problems.append(Problem("broken row", str(path), f"line {line}", str(error)))
    rows = labels.sort(rows)
    return source_from_rows(
        rows,
        root=folder_with(files.images, list(images)),
        file_names=list(images),
        sizes=np.array(sizes, dtype=np.int32).reshape(-1, 2),
        annotation_files=[path],
        unit="CSV line",
        class_names=labels.names,
        category_ids=labels.ids,
        relative=_are_fractions(rows),
        problems=problems,
    )


def _list_tables(root: Path) -> list[Path]:
    folders = (root, *existing(root, LABEL_FOLDERS))
    return [path for folder in folders for path in list_visible(folder, (".csv", ".tsv")) if _is_table(path)]


def _is_table(path: Path) -> bool:
    if path.suffix.lower() not in (".csv", ".tsv"):
        return False
    try:
        return _has_boxes(_parse(read_start(path).partition("\n")[0])[0])
    except csv.Error:
        return False


def _has_boxes(columns: Sequence[str]) -> bool:
    return {"image", "class"} <= set(columns) and (set(_CORNERS) <= set(columns) or set(_EXTENT) <= set(columns))


def _parse(text: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Return the columns, and the line number and values of each row."""
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text), delimiter=delimiter)
    table = [(reader.line_num, [value.strip() for value in row]) for row in reader if any(map(str.strip, row))]
    if not table:
        return [], []
    header = table[0][1]
    if len(header) == len(_HEADERLESS) and all(re.fullmatch(r"-?[\d.]*", value) for value in header[1:5]):
        return list(_HEADERLESS), table
    return _name_columns(header), table[1:]


def _name_columns(header: Sequence[str]) -> list[str]:
    """Return our name of every column, or its own name if we do not know it."""
    names = {alias: name for name, aliases in _COLUMNS.items() for alias in aliases}
    columns = [names.get(re.sub(r"[\W_]", "", title).casefold(), title) for title in header]
    if {"x", "y", "width", "height"} <= set(columns) and not {"w", "x2"} & set(columns):  # the size of the box
        columns = [{"width": "w", "height": "h"}.get(name, name) for name in columns]
    return columns


def _read_column(path: Path, column: str) -> set[str]:
    try:
        columns, table = _parse(read_text(path))
    except csv.Error:  # reported when the file is read
        return set()
    if column not in columns:
        return set()
    position = columns.index(column)
    return {values[position] for _, values in table if position < len(values)}


def _read_box(row: dict[str, str], image: int, line: int, labels: LabelTable) -> list[Row]:
    """Return the box of a row, none if its fields are empty.

    Raises:
        ValueError: a value is missing or invalid.
    """
    keys = _CORNERS if "x1" in row else _EXTENT
    texts = [row.get(key, "") for key in keys]
    if not any(texts):
        return []
    try:
        a, b, c, d = (parse_number(text) for text in texts)
    except ValueError:
        raise ValueError(f"expected four numbers as box, found {', '.join(texts):.80}") from None
    if not row.get("class"):
        raise ValueError("has no class")
    box = (a, b, c, d) if keys == _CORNERS else (a, b, a + c, b + d)
    try:
        crowd = parse_flag(row.get("crowd"))
    except ValueError:
        raise ValueError(f"expected 0 or 1 as flag, found {row['crowd']!r:.60}") from None
    return [Row(image, line, labels.label(row["class"]), box, crowd)]


def _are_fractions(rows: Sequence[Row]) -> bool:
    values = np.array([row.box for row in rows], dtype=np.float64)
    return bool(values.size) and bool(values.max() <= 1 + _ROUNDING) and not bool((values == values.round()).all())
