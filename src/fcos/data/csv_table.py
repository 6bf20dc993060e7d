"""Reader for CSV: one row per box, with the columns of TensorFlow's tutorial, OpenImages or keras-retinanet."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from ..errors import DataError
from ..formatting import join_some, printable
from .csv_boxes import CORNERS, EXTENT, LISTS, require_same_boxes, split_lists
from .files import folder_with, read_text
from .folders import LABEL_FOLDERS, existing, image_folders, list_visible, read_start, split_of
from .label_table import LabelTable
from .rows import Row, source_from_rows
from .source import Problem, Source, Split, SplitFiles
from .subsets import check_subsets
from .values import CROWD_FLAGS, parse_flag, parse_number, parse_size

_COLUMNS = {
    "image": ("filename", "file", "image", "imagepath", "imagename", "path", "filepath", "img"),
    "image id": ("imageid",),
    "class": ("class", "classname", "label", "labelname", "name", "category", "categoryname"),
    "class id": ("classid", "labelid", "categoryid"),
    "x1": ("xmin", "x1", "left", "bboxxmin", "bboxx1"),
    "y1": ("ymin", "y1", "top", "bboxymin", "bboxy1"),
    "x2": ("xmax", "x2", "right", "bboxxmax", "bboxx2"),
    "y2": ("ymax", "y2", "bottom", "bboxymax", "bboxy2"),
    "x": ("x", "bboxx"),
    "y": ("y", "bboxy"),
    "w": ("w", "boxwidth", "bboxwidth", "bboxw"),
    "h": ("h", "boxheight", "bboxheight", "bboxh"),
    "image width": ("imagewidth", "imgwidth"),
    "image height": ("imageheight", "imgheight"),
    "box": ("bbox", "box", "boundingbox"),
    "corners": ("bboxxyxy", "boxxyxy"),
    "extent": ("bboxxywh", "boxxywh"),
    "split": ("split", "subset", "set"),
    **{flag: (flag,) for flag in CROWD_FLAGS},
}
"""Columns, with the names that tools use for them. Case, spaces and underscores do not matter."""
_EXPECTED = "expected the columns filename, class, xmin, ymin, xmax, ymax, or x, y, w, h for the box"
"""Description of the columns that a CSV needs, for messages."""
_SUFFIXES = (".csv", ".tsv")
_HEADERLESS = ("image", "x1", "y1", "x2", "y2", "class")  # keras-retinanet
_ROUNDING = 0.01  # tools write fractions that exceed the image by a rounding error


def find(root: Path, split: Split) -> SplitFiles | None:
    """Find the CSV of a split in DIR or DIR/annotations (train.csv, train_labels.csv), or one with a column `split`."""
    tables = _list_tables(root)
    named = [path for path in tables if root.is_dir() and split_of(path.stem) == split]
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
    tables = _list_tables(path)
    if len(tables) > 1:
        names = ", ".join(table.name for table in tables)
        raise DataError(f"{path}: found several CSV files of boxes: {names:.200}; choose one with data={tables[0]}")
    return SplitFiles(tables[0], image_folders(tables[0])) if tables else None


def read(files: SplitFiles, class_names: Sequence[str] | None) -> Source:
    """Read a CSV. A row without box is an image without objects.

    Boxes are corners (`xmin ymin xmax ymax`) or `x y w h`, in pixels, or in fractions of the image if no coordinate
    exceeds 1. They may be lists in a column `bbox`, see `csv_boxes`. Without `class_names`, the classes are the sorted
    names. Ids of named classes are kept.

    Raises:
        DataError: the file is not a CSV with these columns, or two columns with the same meaning differ.
    """
    assert files.annotations is not None
    path = files.annotations
    columns, table, problems = _read_table(path)
    labels = LabelTable(class_names)
    images: dict[str, int] = {}
    sizes, rows = [], []
    if "split" in columns:
        problems += check_subsets(path, files.subset, [(f"line {line}", row.get("split", "")) for line, row in table])
    if files.subset is not None:
        problems += _check_splits(path, table, files.subset)
    for line, row in table:
        name = row.get("image", "")
        if files.subset is not None and split_of(row.get("split", "")) != files.subset:
            continue
        if not name:
            problems.append(Problem("broken row", str(path), f"line {line}", "names no image"))
            continue
        if name not in images:
            images[name] = len(images)
            sizes.append(parse_size(row.get("image height"), row.get("image width")))
        try:
            rows += _read_box(row, images[name], line, labels)
        except ValueError as error:
            problems.append(Problem("broken row", str(path), f"line {line}", str(error)))
    rows = labels.sort(rows)
    return source_from_rows(
        rows,
        root=folder_with(files.images, list(images)),
        file_names=list(images),
        sizes=sizes,
        annotation_files=[path],
        unit="CSV line",
        class_names=labels.names,
        category_ids=labels.ids,
        relative=_are_fractions(rows),
        problems=problems,
    )


def _check_splits(path: Path, table: Sequence[tuple[int, dict[str, str]]], subset: Split) -> list[Problem]:
    """Report the images of a split whose other rows belong to another split, where the boxes would be background."""
    splits: dict[str, set[Split]] = {}
    for _, row in table:
        if (split := split_of(row.get("split", ""))) is not None:
            splits.setdefault(row.get("image", ""), set()).add(split)
    return [
        Problem("image in several splits", str(path), name, f"its rows belong to {' and '.join(sorted(names))}")
        for name, names in splits.items()
        if subset in names and len(names) > 1
    ]


def _list_tables(root: Path) -> list[Path]:
    if root.is_file():
        return [root] if _is_table(root) else []
    folders = (root, *existing(root, LABEL_FOLDERS))
    return [path for folder in folders for path in list_visible(folder, _SUFFIXES) if _is_table(path)]


def _is_table(path: Path) -> bool:
    return not _missing_columns(_name_columns(_read_header(path)))


def _read_header(path: Path) -> list[str]:
    """Return the titles of the columns of a CSV file; empty for other files."""
    if path.suffix.lower() not in _SUFFIXES:
        return []
    try:
        return _parse(read_start(path).partition("\n")[0])[0]
    except csv.Error:
        return []


def describe_header(path: Path) -> str:
    """Return the columns of a CSV file, and those of a CSV of boxes, as text for messages; empty for other files."""
    titles = _read_header(path)
    return f" ({_EXPECTED}; found {', '.join(map(printable, titles)):.200})" if len(titles) > 1 else ""


def _missing_columns(columns: Sequence[str]) -> list[str]:
    """Return the usual titles of the columns that are missing."""
    missing = [title for name, title in (("image", "filename"), ("class", "class")) if name not in columns]
    if not any(set(keys) <= set(columns) for keys in (CORNERS, EXTENT, *LISTS)):
        missing += ["xmin, ymin, xmax, ymax (or x, y, w, h)"]
    return missing


def _read_table(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]], list[Problem]]:
    """Return our names of the columns, the line number of each row with its values by column, and warnings.

    Raises:
        DataError: the file is not a CSV, a column is missing, two columns with the same meaning differ, lists of
            numbers may be boxes in two formats, or they are not the boxes in other columns.
    """
    try:
        titles, table = _parse(read_text(path))
    except csv.Error as error:
        raise DataError(f"{path}: not valid CSV: {error}") from None
    columns = _separate_class_ids(_name_columns(titles), table)
    missing = _missing_columns(columns)
    if missing:
        raise DataError(
            f"{path}: {_EXPECTED}; found {','.join(titles)!r:.200}, without {', '.join(missing)}. Without a"
            " header, the columns must be filename, x1, y1, x2, y2, class"
        )
    rows = [values for _, values in table]
    columns, unused = _drop_row_numbers(columns, titles, rows)
    columns = _drop_repeated(path, titles, columns, rows)
    message = f"{join_some(unused)}: not used, because the values number the rows"
    problems = [Problem("row numbers", str(path), "", message, "warning")] if unused else []
    named = [(line, dict(zip(columns, values, strict=False))) for line, values in table]
    if not set(CORNERS) <= set(columns) and not set(EXTENT) <= set(columns):
        column = next(name for (name,) in LISTS if name in columns)
        keys = split_lists(path, column, titles[columns.index(column)], [row for _, row in named])
        return [*columns, *keys], named, problems
    keys = CORNERS if set(CORNERS) <= set(columns) else EXTENT
    for (column,) in LISTS:
        if column in columns:
            require_same_boxes(path, column, titles[columns.index(column)], keys, named)
    return columns, named, problems


def _drop_row_numbers(
    columns: Sequence[str], titles: Sequence[str], rows: Sequence[Sequence[str]]
) -> tuple[list[str], list[str]]:
    """Drop columns of an image or of class ids that only number the rows, and return their titles, too.

    Their values are 0, 1, 2, ... or 1, 2, 3, ..., although another column shows that the images or classes repeat.
    """

    def repeats(name: str, skipped: int) -> bool:
        positions = [i for i, column in enumerate(columns) if column == name and i != skipped]
        return any(len({row[i] for row in rows if i < len(row)}) < len(rows) for i in positions)

    numbers = [[str(start + i) for i in range(len(rows))] for start in (0, 1)]
    unused = [
        i
        for i, name in enumerate(columns)
        if name in ("image", "class id")
        and [row[i] if i < len(row) else "" for row in rows] in numbers
        and repeats("image" if name == "image" else "class", i)
    ]
    return ["" if i in unused else name for i, name in enumerate(columns)], [repr(titles[i]) for i in unused]


def _drop_repeated(
    path: Path, titles: Sequence[str], columns: Sequence[str], rows: Sequence[Sequence[str]]
) -> list[str]:
    """Return the columns with an empty name for those that only repeat another one.

    Of several columns for the image, such as `filename` and `path`, the one with the most folders is kept.

    Raises:
        DataError: the values of two columns with the same meaning differ.
    """
    columns = list(columns)
    for name in _COLUMNS:
        same = [i for i, column in enumerate(columns) if column == name]
        values = [[row[i].replace("\\", "/") if i < len(row) else "" for row in rows] for i in same]
        if name == "image":
            kept = max(same, key=lambda i: sum(text.count("/") for text in values[same.index(i)]), default=None)
            values = [[PurePosixPath(text).name for text in column] for column in values]
        else:
            kept = same[0] if same else None
        if any(column != values[0] for column in values):
            texts = " and ".join(f"{titles[i]!r:.60}" for i in same)
            raise DataError(
                f"{path}: expected one column for the {name}, found {texts} with different values; remove or rename"
                " the others"
            )
        columns = ["" if i in same and i != kept else column for i, column in enumerate(columns)]
    return columns


def _parse(text: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Return the titles of the columns, and the line number and values of each row."""
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text), delimiter=delimiter)
    table = [(reader.line_num, [value.strip() for value in row]) for row in reader if any(map(str.strip, row))]
    if not table:
        return [], []
    header = table[0][1]
    if len(header) == len(_HEADERLESS) and all(re.fullmatch(r"-?[\d.,]*", value) for value in header[1:5]):
        return list(_HEADERLESS), table
    return header, table[1:]


def _name_columns(titles: Sequence[str]) -> list[str]:
    """Return our name of every column, or its title in lower case if we do not know it.

    Ids of images and classes are their names if there are no others. `width` and `height` are those of the box if it
    has no others, or else those of the image.
    """
    names = {alias: name for name, aliases in _COLUMNS.items() for alias in aliases}
    words = [re.sub(r"[\W_]", "", title).casefold() for title in titles]
    columns = [names.get(word, word) for word in words]
    known = set(columns)
    renamed = {f"{name} id": name for name in ("image", "class") if name not in known}
    if {"x", "y", "width", "height"} <= known and not {"w", "x2"} & known:
        renamed |= {"width": "w", "height": "h"}
    elif "image width" not in known:
        renamed |= {"width": "image width", "height": "image height"}
    return [renamed.get(name, name) for name in columns]


def _separate_class_ids(columns: list[str], table: Sequence[tuple[int, Sequence[str]]]) -> list[str]:
    """Rename a column for the class that contains only integers to `class id`, if another one contains the names."""
    positions = [i for i, name in enumerate(columns) if name == "class"]
    numeric = [i for i in positions if all(values[i].isdecimal() for _, values in table if values[i:] and values[i])]
    if len(numeric) == 1 < len(positions) and "class id" not in columns:
        columns[numeric[0]] = "class id"
    return columns


def _read_column(path: Path, column: str) -> set[str]:
    try:
        titles, table = _parse(read_text(path))
    except csv.Error:  # reported when the file is read
        return set()
    columns = _name_columns(titles)
    if column not in columns:
        return set()
    position = columns.index(column)
    return {values[position] for _, values in table if position < len(values)}


def _read_box(row: dict[str, str], image: int, line: int, labels: LabelTable) -> list[Row]:
    """Return the box of a row, none if its fields are empty.

    Raises:
        ValueError: a value is missing or invalid.
    """
    keys = CORNERS if "x1" in row else EXTENT
    # A program with decimal commas separates values by semicolons.
    texts = [re.sub(r"^(-?\d+),(\d+)$", r"\1.\2", row.get(key, "")) for key in keys]
    if not any(texts):
        return []
    try:
        a, b, c, d = (parse_number(text) for text in texts)
    except ValueError:
        raise ValueError(f"expected four numbers as box, found {', '.join(filter(None, texts)):.80}") from None
    if not row.get("class"):
        raise ValueError("has no class")
    box = (a, b, c, d) if keys == CORNERS else (a, b, a + c, b + d)
    flags = {flag: row[flag] for flag in CROWD_FLAGS if flag in row}
    try:
        crowd = any(parse_flag(value) for value in flags.values())
    except ValueError:
        texts = ", ".join(f"{flag} {value!r:.60}" for flag, value in flags.items())
        raise ValueError(f"expected 0 or 1 as flag, found {texts}") from None
    return [Row(image, line, labels.label(row["class"], row.get("class id")), box, crowd)]


def _are_fractions(rows: Sequence[Row]) -> bool:
    values = np.array([row.box for row in rows], dtype=np.float64)
    return bool(values.size) and bool(values.max() <= 1 + _ROUNDING) and not bool((values == values.round()).all())
