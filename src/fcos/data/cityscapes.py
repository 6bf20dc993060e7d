"""Reader for Cityscapes: the instances of leftImg8bit/SPLIT/CITY and gtFine/SPLIT/CITY.

An image has a file of polygons (gtFine_polygons.json), and usually one of instance ids (gtFine_instanceIds.png), the
official instances: class id * 1000 + number, or the class id alone for a group that was not divided. Without it, the
polygons are drawn in their order, as the official ids were made: later objects cover earlier ones.

Source: Cordts et al., The Cityscapes Dataset for Semantic Urban Scene Understanding, CVPR 2016.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ..errors import DataError
from ..formatting import quote
from ..masks import outline
from ..progress import progress_bar
from .files import read_json, walk_files
from .folders import split_folders
from .opening import MAX_PIXELS, read_annotation_image
from .rows import Row, source_from_rows
from .source import Problem, Source, Split, SplitFiles
from .values import parse_number, parse_size

CLASSES = {
    **{"person": 24, "rider": 25, "car": 26, "truck": 27, "bus": 28, "train": 31, "motorcycle": 32, "bicycle": 33},
}
"""Ids of the classes with instances that the official evaluation counts."""
_UNCOUNTED = {"caravan": 29, "trailer": 30}
_IDS = CLASSES | _UNCOUNTED
_LABELS = {class_id: label for label, class_id in enumerate(CLASSES.values())}
_PER_CLASS = 1000  # instance ids from class id * 1000 on
_WITHOUT_PIXELS = ("license plate",)  # part of the car in the official ids
_MAX_COORDINATE = 1e6
_MAX_ID = 34 * _PER_CLASS  # larger ids are none
_PROGRESS_BAR_MIN = 1000  # number of images from which a progress bar is shown
_IMAGES, _ANNOTATIONS = "leftImg8bit", ("gtFine", "gtCoarse")
_POLYGONS = re.compile(r"(?P<name>.+)_(?P<kind>gtFine|gtCoarse)_polygons\.json")


def find(root: Path, split: Split) -> SplitFiles | None:
    """Find the folders gtFine/SPLIT (or gtCoarse/SPLIT) and leftImg8bit/SPLIT."""
    for folder in (root / name for name in _ANNOTATIONS):
        for polygons in split_folders(folder, split):
            images = root / _IMAGES / polygons.name
            if images.is_dir() and _first_file(polygons):
                return SplitFiles(polygons, (images,))
    return None


def recognize(path: Path) -> SplitFiles | None:
    """Recognise a folder of polygon files, with subfolders by city; the images may be next to the files."""
    if not path.is_dir() or _first_file(path) is None:
        return None
    images = path.parent.parent / _IMAGES / path.name
    return SplitFiles(path, (images if path.parent.name in _ANNOTATIONS and images.is_dir() else path,))


def _first_file(folder: Path) -> Path | None:
    return next((file for file in walk_files(folder) if _POLYGONS.fullmatch(file.name)), None)


def read(files: SplitFiles, class_names: Sequence[str] | None) -> Source:
    """Read the instances of a split, with the official class ids as category ids.

    Masks and boxes are those of the visible pixels. Groups become crowd, one for all groups of a class in an image.
    Caravans and trailers are left out, since the official evaluation does not count them.

    Raises:
        DataError: the folder is missing.
    """
    assert files.annotations is not None
    folder, root = files.annotations, files.images[0]
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of Cityscapes annotations")
    polygon_files = sorted(file for file in walk_files(folder) if _POLYGONS.fullmatch(file.name))
    file_names, sizes, json_files = [], [], []
    rows: list[Row] = []
    problems: list[Problem] = []
    num_left_out: Counter[str] = Counter()
    with progress_bar("reading instances", shown=len(polygon_files) >= _PROGRESS_BAR_MIN) as update:
        for number, file in enumerate(polygon_files, start=1):
            update(number, len(polygon_files))
            try:
                instances, object_problems = _read_instances(file)
            except DataError as error:
                name, _, message = str(error).partition(": ")
                problems.append(Problem("broken annotation file", name, "", message))
                continue
            problems += object_problems
            rows += _to_rows(instances, len(file_names), num_left_out, with_masks=files.masks)
            file_names.append(_image_name(file, folder))
            sizes.append(instances.shape)
            json_files.append(file)
    if num_left_out:
        counts = ", ".join(f"{count} {name}" for name, count in num_left_out.items())
        message = f"classes that the official evaluation does not count are left out: {counts}"
        problems.append(Problem("uncounted class", str(folder), "", message, "warning"))
    return source_from_rows(
        rows,
        with_masks=files.masks,
        root=root,
        file_names=file_names,
        sizes=sizes,
        annotation_files=json_files,
        unit="instance",
        class_names=list(CLASSES),
        category_ids=list(CLASSES.values()),
        problems=problems,
    )


def _image_name(file: Path, folder: Path) -> str:
    """Return the name of the image of a polygon file, relative to the folder of the images: `CITY/NAME.png`."""
    match = _POLYGONS.fullmatch(file.name)
    assert match is not None
    return (file.parent.relative_to(folder) / f"{match['name']}_{_IMAGES}.png").as_posix()


def _read_instances(file: Path) -> tuple[np.ndarray, list[Problem]]:
    """Return the instance id of every pixel, int64 [H, W], and the problems of objects.

    Raises:
        DataError: the polygon file or the file of instance ids cannot be read. The message starts with its path.
    """
    tree = read_json(file)
    size = parse_size(tree.get("imgHeight"), tree.get("imgWidth")) if isinstance(tree, dict) else (0, 0)
    if 0 in size or size[0] * size[1] > MAX_PIXELS or not isinstance(tree.get("objects"), list):
        raise DataError(f"{file}: expected imgHeight, imgWidth and the list objects, found {quote(tree)}")
    ids_file = file.with_name(file.name.replace("_polygons.json", "_instanceIds.png"))
    if not ids_file.exists():
        return _draw(tree["objects"], size, file)
    instances = read_annotation_image(ids_file)
    if instances.shape != size or not np.issubdtype(instances.dtype, np.integer):
        kind = "a colour image" if instances.ndim == 3 else str(instances.dtype)
        found = f"{kind} of {'x'.join(map(str, instances.shape[1::-1]))} pixels"
        raise DataError(f"{ids_file}: expected ids of {size[1]}x{size[0]} pixels, as in {file.name}, found {found}")
    return instances.astype(np.int64), []


def _draw(objects: Sequence[Any], size: tuple[int, int], file: Path) -> tuple[np.ndarray, list[Problem]]:
    """Draw polygons in their order; return the instance id of every pixel, int64 [H, W], 0 for other objects."""
    canvas = Image.new("I", (size[1], size[0]))
    pen = ImageDraw.Draw(canvas)
    counts: Counter[str] = Counter()
    problems = []
    for number, entry in enumerate(objects, start=1):
        try:
            name, polygon = _parse_object(entry)
        except ValueError as error:
            problems.append(Problem("broken object", str(file), f"object {number}", str(error)))
            continue
        if name in _WITHOUT_PIXELS or entry.get("deleted"):
            continue
        instance_id = _IDS.get(name.removesuffix("group"), 0)
        if name in _IDS:
            instance_id = instance_id * _PER_CLASS + counts[name]
            counts[name] += 1
        pen.polygon(polygon, fill=instance_id)
    return np.asarray(canvas).astype(np.int64), problems


def _parse_object(entry: Any) -> tuple[str, list[tuple[float, float]]]:
    """Return the class and the points of an object.

    Raises:
        ValueError: it has no label, or no polygon.
    """
    name = entry.get("label") if isinstance(entry, dict) else None
    if not isinstance(name, str):
        raise ValueError(f"expected label (text) and polygon, found {quote(entry)}")
    try:
        polygon = [(parse_number(x), parse_number(y)) for x, y in entry["polygon"]]
    except (KeyError, TypeError, ValueError):
        polygon = []
    if len(polygon) < 3 or not all(abs(value) <= _MAX_COORDINATE for point in polygon for value in point):
        raise ValueError(
            f"{name}: expected a polygon [[x, y], ...] of three points or more, found {quote(entry.get('polygon'))}"
        )
    return name, polygon


def _to_rows(instances: np.ndarray, image: int, num_left_out: Counter[str], *, with_masks: bool) -> Iterator[Row]:
    """Yield the objects of an image; those of classes that are not counted are added to `num_left_out`."""
    for instance_id in np.flatnonzero(np.bincount(instances.reshape(-1).clip(0, _MAX_ID))).tolist():
        is_group = instance_id < _PER_CLASS
        class_id = instance_id if is_group else instance_id // _PER_CLASS
        if class_id in _UNCOUNTED.values():
            num_left_out[next(name for name, number in _UNCOUNTED.items() if number == class_id)] += 1
        if class_id not in _LABELS:
            continue
        bitmap = instances == instance_id
        rows, columns = (np.flatnonzero(bitmap.any(axis=axis)) for axis in (1, 0))
        x1, y1, x2, y2 = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
        ring = (outline(bitmap[y1:y2, x1:x2]) + np.array([x1, y1])).reshape(-1).tolist() if with_masks else ()
        yield Row(image, instance_id, _LABELS[class_id], (x1, y1, x2, y2), is_group, ring)
