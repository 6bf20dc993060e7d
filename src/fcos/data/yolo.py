"""Reader for YOLO: data.yaml, and one text file per image, `class cx cy width height` in fractions of the image.

Rows may also be polygons, or boxes followed by keypoints, a confidence or a track id (see `yolo_rows`).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from ..config.text import parse_yaml
from ..errors import ConfigError, DataError
from ..formatting import quote
from .files import folder_with, list_images, match_names, read_text, walk_files
from .source import SPLIT_NAMES, Problem, Source, Split, SplitFiles, source_from_rows
from .yolo_labels import LabelFinder
from .yolo_rows import LabelRow, parse_row, read_rows


def find(root: Path, split: Split) -> SplitFiles | None:
    """Find a split in data.yaml: a list file, a folder of images, or several of these.

    `root` is the folder of data.yaml or the file itself. Paths are relative to the key `path`, which is relative to the
    folder of data.yaml (the default).

    Raises:
        DataError: data.yaml is broken, or names a folder or list that does not exist.
    """
    yaml_file = _find_yaml(root)
    if yaml_file is None:
        return None
    try:
        tree = parse_yaml(read_text(yaml_file), where=str(yaml_file))
    except ConfigError as error:
        raise DataError(str(error)) from None
    if not isinstance(tree, dict):
        raise DataError(f"{yaml_file}: expected a mapping with the keys train, val and names")
    entries = next((tree[name] for name in SPLIT_NAMES[split] if tree.get(name)), None)
    if entries is None:
        return None
    base = yaml_file.parent / _to_text(tree.get("path") or ".", f"{yaml_file}: path")
    base = base if os.path.isdir(base) else yaml_file.parent
    paths = [
        _resolve_entry(base, _to_text(entry, f"{yaml_file}: {split}"), yaml_file)
        for entry in (entries if isinstance(entries, list) else [entries])
    ]
    labels_folder = yaml_file.parent / "labels"
    return SplitFiles(
        annotations=labels_folder if labels_folder.is_dir() else None,
        images=(base,),
        lists=tuple(paths),
        class_names=_read_class_names(tree, yaml_file),
        yolo_rows="boxes" if tree.get("kpt_shape") else "auto",
    )


def accepts(path: Path) -> bool:
    """Return True for a folder that contains text files."""
    return os.path.isdir(path) and any(file.suffix.lower() == ".txt" for file in walk_files(path))


def read(files: SplitFiles, class_names: Sequence[str] | None) -> Source:
    """Read the label files of a split.

    Polygons are converted to their bounding boxes. An image without a label file has no objects.

    Raises:
        DataError: class names are missing, a list file is missing, no image has a label file, or it is not clear
            whether the rows are polygons.
    """
    names = files.class_names or class_names
    if not names:
        raise DataError(f"{files.annotations}: the label files contain no class names; give data.classes=[a, b, ...]")
    if files.annotations is not None and not os.path.isdir(files.annotations):
        raise DataError(f"{files.annotations}: expected a folder of YOLO label files")
    root, images = files.images[0], _list_images(files)
    finder = LabelFinder(root, files.annotations)
    matched = {image: finder.find(image) for image in images}
    if images and not any(matched.values()):
        expected = finder.expected_path(images[0])
        raise DataError(f"{root}: no label file found for any of {len(images)} images; looked for {expected}")
    problems = finder.check(matched)
    problems += [
        Problem("duplicated image", str(image), "", "is listed twice")
        for image, count in Counter(images).items()
        if count > 1
    ]
    file_names, kept_files = [], []
    label_rows: list[LabelRow] = []
    for image, label_file in matched.items():
        if label_file is not None:
            try:
                text = read_text(label_file)
            except DataError as error:
                message = str(error).removeprefix(f"{label_file}: ")
                problems.append(Problem("broken label file", str(label_file), "", message))
                continue
            new_rows, new_problems = _parse_lines(text, label_file, len(file_names), len(names))
            label_rows += new_rows
            problems += new_problems
        file_names.append(image.relative_to(root).as_posix() if image.is_relative_to(root) else str(image))
        kept_files.append(label_file or finder.expected_path(image))
    rows, broken_rows = read_rows(label_rows, files.yolo_rows, where=str(files.annotations or root))
    problems += [_broken_row(row, kept_files[row.image]) for row in broken_rows]
    return source_from_rows(
        rows,
        root=root,
        file_names=file_names,
        sizes=np.zeros((len(file_names), 2), dtype=np.int32),
        annotation_files=kept_files,
        unit="line",
        class_names=list(names),
        category_ids=list(range(len(names))),
        relative=True,
        problems=problems,
    )


def _find_yaml(root: Path) -> Path | None:
    if root.is_file():
        return root if root.suffix.lower() in (".yaml", ".yml") else None
    return next((p for name in ("data.yaml", "data.yml", "dataset.yaml") if (p := root / name).is_file()), None)


def _to_text(value: Any, where: str) -> str:
    if not isinstance(value, str | int | float | date):
        raise DataError(f"{where}: expected a path, found {quote(value)}")
    return str(value)


def _resolve_entry(base: Path, entry: str, yaml_file: Path) -> Path:
    # Roboflow writes ../train/images although the folder is next to data.yaml.
    for path in (base / entry, base / entry.removeprefix("../")):
        if os.path.exists(path):
            return path
    raise DataError(f"{yaml_file}: {entry!r:.300} does not exist (looked in {base})")


def _read_class_names(tree: dict[str, Any], yaml_file: Path) -> tuple[str, ...] | None:
    """Return the class names in label order, None if data.yaml contains none."""
    names = tree.get("names")
    if isinstance(names, dict) and all(isinstance(label, int | str) for label in names):
        by_label = {str(label): name for label, name in names.items()}
        labels = [str(label) for label in range(len(names))]
        names = [by_label[label] for label in labels] if by_label.keys() == set(labels) else names
    is_list = isinstance(names, list) and all(isinstance(name, str | int | float | date) for name in names)
    if names is not None and (not is_list or len({str(name) for name in names}) != len(names)):
        raise DataError(
            f"{yaml_file}: names must list unique class names, or map 0, 1, ... to them; found {quote(names)}"
        )
    return tuple(str(name) for name in names) if names else None


def _list_images(files: SplitFiles) -> list[Path]:
    """Return the images in the lists and folders of the split, or all images if it has none."""
    images: list[Path] = []
    root = files.images[0]
    for path in files.lists or (root,):
        if path.is_dir():
            images += list_images(path)
        else:
            names = [line.strip() for line in read_text(path).splitlines() if line.strip()]
            folder = folder_with((path.parent, root), names)
            images += [folder / name for name in match_names(folder, names)]
    return images


def _parse_lines(text: str, file: Path, image: int, num_classes: int) -> tuple[list[LabelRow], list[Problem]]:
    rows, problems = [], []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                rows.append(parse_row(line, image=image, number=number, num_classes=num_classes))
            except ValueError as error:
                problems.append(Problem("broken line", str(file), f"line {number}", str(error)))
    return rows, problems


def _broken_row(row: LabelRow, file: Path) -> Problem:
    message = (
        f"expected a box of four numbers, or a polygon of at least three points in 0 to 1, found {row.text!r};"
        " if the first four numbers are the box, set data.yolo_rows=boxes"
    )
    return Problem("broken line", str(file), f"line {row.number}", message)
