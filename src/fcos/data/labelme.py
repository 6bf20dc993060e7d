"""Reader for LabelMe: one JSON file per image, which names the image and lists its shapes."""

from __future__ import annotations

import base64
import math
import os
import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from ..formatting import quote
from ..masks import ellipse, outline
from .file_names import find_missing_images
from .files import IMAGE_SUFFIXES, read_json
from .folders import IMAGE_FOLDERS, LABEL_FOLDERS, existing, list_visible, read_start
from .label_table import LabelTable
from .opening import MAX_PIXELS, read_image
from .rows import Row, source_from_rows
from .source import Problem, Source, SplitFiles, select_images
from .values import CROWD_FLAGS, parse_flag, parse_number, parse_size

_MAX_RADIUS = 1e6  # pixels; a larger radius is no circle in an image
_WITHOUT_AREA = ("point", "points", "line", "linestrip")


def recognize(path: Path) -> SplitFiles | None:
    """Recognise a LabelMe file, or a folder of them: next to the images, or in a folder such as labels."""
    if path.is_file():
        return SplitFiles(path, (path.parent,)) if is_labelme(path) else None
    for folder in (path, *existing(path, LABEL_FOLDERS), *existing(path, IMAGE_FOLDERS)):
        if any(is_labelme(file) for file in list_visible(folder, (".json",))):
            return SplitFiles(folder, (path,))
    return None


def is_labelme(path: Path) -> bool:
    """Return whether the start of a JSON file contains a key of LabelMe."""
    start = read_start(path) if path.suffix.lower() == ".json" else ""
    return re.search(r'"(shapes"\s*:\s*\[|imagePath"\s*:|imageData"\s*:)', start) is not None


def read(files: SplitFiles, class_names: Sequence[str] | None) -> Source:
    """Read the JSON files of a folder.

    Rectangles, polygons, circles and masks become boxes, with masks if they are read; points and lines are left out,
    with a warning.
    Shapes with one of `CROWD_FLAGS` become crowd. Without `class_names`, the classes are the sorted labels. Other
    JSON files in the folder are skipped.

    Raises:
        DataError: a folder is missing.
    """
    assert files.annotations is not None
    path, root = files.annotations, files.images[0]
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    labels = LabelTable(class_names)
    file_names, sizes, json_files, rows, problems = [], [], [], [], []
    embedded = set()
    for json_file in list_visible(path, (".json",)) if path.is_dir() else [path]:
        try:
            tree = read_json(json_file)
        except DataError as error:
            problems.append(Problem("broken JSON", str(json_file), "", str(error).removeprefix(f"{json_file}: ")))
            continue
        shapes = tree.get("shapes") if isinstance(tree, dict) else None
        if not isinstance(shapes, list):
            problems.append(
                Problem("not a LabelMe file", str(json_file), "", "has no list `shapes`; not used", "warning")
            )
            continue
        shape_rows, shape_problems = _read_shapes(json_file, shapes, len(file_names), labels)
        rows += shape_rows
        problems += shape_problems
        if tree.get("imageData"):
            embedded.add(len(file_names))
        file_names.append(_image_name(json_file, tree.get("imagePath"), root))
        sizes.append(parse_size(tree.get("imageHeight"), tree.get("imageWidth")))
        json_files.append(json_file)
    rows = labels.sort(rows)
    source = source_from_rows(
        rows,
        with_masks=files.masks,
        root=root,
        file_names=file_names,
        sizes=sizes,
        annotation_files=json_files,
        unit="shape",
        class_names=labels.names,
        category_ids=labels.ids,
        problems=problems,
    )
    return _report_embedded(find_missing_images(source, files.images), embedded)


def _read_shapes(
    json_file: Path, shapes: Sequence[Any], image: int, labels: LabelTable
) -> tuple[list[Row], list[Problem]]:
    rows, problems = [], []
    for number, shape in enumerate(shapes, start=1):
        try:
            row = _read_shape(shape, image, number, labels)
        except ValueError as error:
            problems.append(Problem("broken shape", str(json_file), f"shape {number}", str(error)))
            continue
        if row is None:
            message = f"{shape['shape_type']} has no area; left out"
            problems.append(Problem("shape without area", str(json_file), f"shape {number}", message, "warning"))
        else:
            rows.append(row)
    return rows, problems


def _report_embedded(source: Source, embedded: Collection[int]) -> Source:
    """Report the images that exist only inside their JSON files, and remove them.

    Args:
        source: annotations of all images.
        embedded: positions of the images that their JSON files contain.
    """
    mask = np.ones(len(source.file_names), dtype=bool)
    for i in embedded:
        mask[i] = os.path.isfile(source.path(i))
    if mask.all():
        return source
    problems = [
        Problem(
            "embedded image",
            file,
            "",
            f"the image exists only inside this file (imageData); write it to {Path(file).with_suffix('.jpg')}, see"
            " LabelMe in docs/data.md for a script",
        )
        for file in (source.annotation_file(i) for i in np.flatnonzero(~mask).tolist())
    ]
    return replace(select_images(source, mask), problems=[*source.problems, *problems])


def _image_name(json_file: Path, image_path: object, root: Path) -> str:
    """Return the path of the image relative to `root`: as written, or else the image with the name of the JSON file."""
    folder = json_file.parent
    written = image_path if isinstance(image_path, str) and image_path.strip() else json_file.with_suffix(".jpg").name
    names = [written, written.replace("\\", "/")]
    names += [
        json_file.with_suffix(suffix.upper() if upper else suffix).name for suffix in IMAGE_SUFFIXES for upper in (0, 1)
    ]
    name = next((name for name in names if os.path.isfile(folder / name)), written)
    return os.path.relpath(folder / name, root)


def _read_shape(shape: Any, image: int, number: int, labels: LabelTable) -> Row | None:
    """Read one shape; None if it has no area.

    Raises:
        ValueError: the shape has no label, one that is neither text nor an integer, or no valid points.
    """
    label = shape.get("label") if isinstance(shape, dict) else None
    if label is None or not str(label).strip():
        raise ValueError("has no label")
    if type(label) not in (str, int):  # a boolean is an integer, too
        raise ValueError(f"expected text as label, found {quote(label)}")
    kind = shape.get("shape_type") or "polygon"  # missing in old versions
    if kind in _WITHOUT_AREA:
        return None
    try:
        points = np.array([[parse_number(v) for v in point] for point in shape["points"]], dtype=np.float64)
    except (KeyError, TypeError, ValueError):
        points = np.zeros((0, 0))
    if points.ndim != 2 or points.shape[1:] != (2,) or len(points) < 2:
        raise ValueError(f"{kind}: expected points [[x, y], ...], found {shape.get('points')!s:.60}")
    ring = points
    if kind == "circle":  # centre and a point of the circle
        radius = math.dist(points[0], points[1])
        if math.isfinite(radius) and radius < _MAX_RADIUS:
            ring = ellipse((points[0, 0], points[0, 1]), (radius, radius))
        points = np.stack([points[0] - radius, points[0] + radius])
    elif kind == "mask" and shape.get("mask") is not None:  # the last pixels are included in the points
        bitmap, corner = _read_mask(shape["mask"], points), points.min(axis=0)
        ring = outline(bitmap) + corner
        points = np.stack([corner, corner + bitmap.shape[::-1]])
    elif kind == "rectangle" and len(points) == 2:
        (x1, y1), (x2, y2) = points
        ring = np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]])
    flags = shape.get("flags")
    try:
        places = (shape, flags if isinstance(flags, dict) else {})
        crowd = any(parse_flag(values.get(key)) for values in places for key in CROWD_FLAGS)
    except ValueError:
        raise ValueError(f"expected true or false as value of {', '.join(CROWD_FLAGS)}") from None
    box = (*points.min(axis=0).tolist(), *points.max(axis=0).tolist())
    polygon = ring.reshape(-1).tolist() if len(ring) >= 3 and np.isfinite(ring).all() else ()
    return Row(image, number, labels.label(label), box, crowd, polygon)


def _read_mask(text: object, points: np.ndarray) -> np.ndarray:
    """Return the bitmap of a mask, bool [H, W], a PNG in base64 for the pixels between two points.

    Raises:
        ValueError: the text is no such image, or the image has another size.
    """
    try:
        content = base64.b64decode(text if isinstance(text, str) else "", validate=True)
        image = read_image(BytesIO(content), lambda opened: opened.convert("L"), max_pixels=MAX_PIXELS)
    except Exception:  # Pillow may raise almost any exception for a damaged file
        raise ValueError(f"mask: expected a PNG image in base64, found {quote(text)}") from None
    bitmap = np.asarray(image) > 0
    width, height = np.abs(points[1] - points[0]) + 1
    if np.abs(np.array([width, height]) - bitmap.shape[::-1]).max() >= 1:
        found = f"{bitmap.shape[1]}x{bitmap.shape[0]}"
        raise ValueError(f"mask: expected an image of {width:g}x{height:g} pixels between its points, found {found}")
    return bitmap
