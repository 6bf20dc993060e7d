"""Reader for CVAT's own XML format, "CVAT for images 1.1": one file with all images and their shapes."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from ..errors import DataError
from ..files import open_file
from ..formatting import plural
from .files import folder_with, read_xml
from .folders import image_folders, list_visible, read_start, split_of
from .label_table import LabelTable
from .source import Problem, Row, Source, Split, SplitFiles, source_from_rows
from .subsets import check_subsets
from .values import CROWD_FLAGS, parse_flag, parse_size

_WITHOUT_AREA = ("polyline", "points", "skeleton", "cuboid")
_SHAPES = ("box", "polygon", "ellipse", "mask", *_WITHOUT_AREA)


def find(root: Path, split: Split) -> SplitFiles | None:
    """Find the file of a project whose tasks belong to subsets, such as Train and Validation."""
    files = recognize(root)
    if files is None or files.annotations is None or split not in map(split_of, _read_subsets(files.annotations)):
        return None
    return SplitFiles(files.annotations, files.images, subset=split)


def recognize(path: Path) -> SplitFiles | None:
    """Recognise an XML file of CVAT, or a folder that contains one, usually named annotations.xml."""
    for file in [path] if path.is_file() else list_visible(path, (".xml",)):
        if file.suffix.lower() == ".xml" and re.search(r"<annotations[\s>]", read_start(file)):
            return SplitFiles(file, image_folders(file))
    return None


def read(files: SplitFiles, class_names: Sequence[str] | None) -> Source:
    """Read the images of a subset, or all images.

    Boxes, polygons, ellipses and masks become their bounding boxes; other shapes are left out, with a warning. Shapes
    with an attribute of `CROWD_FLAGS` that is true become crowd. Without `class_names`, the classes are the labels in
    the order of the project.

    Raises:
        DataError: the file cannot be read, is not valid XML, or describes a video.
    """
    assert files.annotations is not None
    path = files.annotations
    tree = _parse(path)
    labels = LabelTable(class_names if class_names is not None else _read_labels(tree))
    images = list(tree.iter("image"))
    subsets = [(f"image {image.get('name', '')}", image.get("subset", "")) for image in images]
    problems = check_subsets(path, files.subset, subsets)
    images = [e for e in images if files.subset is None or split_of(e.get("subset", "")) == files.subset]
    folders = [folder for folder in files.images if folder.is_dir()]
    file_names, rows = [], []
    num_shapes = num_left_out = 0
    for image, element in enumerate(images):
        name = element.get("name", "")
        file_names.append(_image_name(element, folders))
        for shape in element:
            if shape.tag not in _SHAPES:
                continue
            num_shapes += 1
            if shape.tag in _WITHOUT_AREA:
                num_left_out += 1
                continue
            try:
                rows.append(_read_shape(shape, image, num_shapes, labels))
            except ValueError as error:
                problems.append(Problem("broken shape", str(path), f"image {name}, shape {num_shapes}", str(error)))
    if num_left_out:
        message = f"{plural(num_left_out, 'shape')} without area left out ({', '.join(_WITHOUT_AREA)})"
        problems.append(Problem("shape without area", str(path), "", message, "warning"))
    rows = labels.sort(rows)
    return source_from_rows(
        rows,
        with_masks=files.masks,
        root=folder_with(files.images, file_names),
        file_names=file_names,
        sizes=np.array([parse_size(e.get("height"), e.get("width")) for e in images], dtype=np.int32).reshape(-1, 2),
        annotation_files=[path],
        unit="shape",
        class_names=labels.names,
        category_ids=labels.ids,
        problems=problems,
    )


def _parse(path: Path) -> Element:
    tree = read_xml(path)
    if tree.tag != "annotations":
        raise DataError(f"{path}: expected CVAT's root element <annotations>, found <{tree.tag:.60}>")
    if tree.find("track") is not None and tree.find("image") is None:
        raise DataError(
            f"{path}: contains tracks of a video, which do not name image files. Export the task from CVAT as"
            ' "CVAT for images 1.1" with "Save images"'
        )
    return tree


def _read_subsets(path: Path) -> set[str]:
    """Return the subsets of the images, without parsing the whole file."""
    try:
        with open_file(path) as file:
            text = file.read()
    except OSError:
        return set()
    return {subset.decode(errors="replace") for subset in re.findall(rb'<image [^>]*\bsubset="([^"]*)"', text)}


def _read_labels(tree: Element) -> list[str]:
    names = [(label.findtext("name") or "").strip() for label in tree.findall("meta/*/labels/label")]
    return [name for name in dict.fromkeys(names) if name]


def _image_name(image: Element, folders: Sequence[Path]) -> str:
    """Return the file name of an image. In the export of a project, it is in a folder named after its subset."""
    name, subset = image.get("name", ""), image.get("subset")
    in_subset = f"{subset}/{name}"
    return in_subset if subset and any(os.path.isfile(folder / in_subset) for folder in folders) else name


def _read_shape(shape: Element, image: int, number: int, labels: LabelTable) -> Row:
    """Read a shape with an area.

    Raises:
        ValueError: the shape has no label or no valid coordinates.
    """
    name = shape.get("label", "").strip()
    if not name:
        raise ValueError("has no label")
    try:
        box = _BOX_READERS[shape.tag](shape)
    except (KeyError, ValueError):
        raise ValueError(
            f"invalid coordinates of a {shape.tag}: expected numbers, found {shape.attrib!s:.100}"
        ) from None
    flags = {e.get("name", "").casefold(): (e.text or "") for e in shape.findall("attribute")}
    crowd = False
    for key in CROWD_FLAGS:
        try:
            crowd = crowd or parse_flag(flags.get(key))
        except ValueError:
            raise ValueError(f"attribute {key}: expected true or false, found {flags[key]!r:.60}") from None
    return Row(image, number, labels.label(name), box, crowd, _polygon_of(shape))


def _polygon_of(shape: Element) -> list[float]:
    """Return the points of a polygon, x1, y1, x2, y2, ...; other shapes have no mask."""
    if shape.tag != "polygon" or float(shape.get("rotation", 0)):
        return []
    values = [float(value) for point in shape.attrib["points"].split(";") for value in point.split(",")]
    return values if len(values) >= 6 else []


_Box = tuple[float, float, float, float]


def _read_box(shape: Element) -> _Box:
    x1, y1, x2, y2 = (float(shape.attrib[key]) for key in ("xtl", "ytl", "xbr", "ybr"))
    corners = [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]
    return _bounding_box(corners, shape, center=((x1 + x2) / 2, (y1 + y2) / 2))


def _read_polygon(shape: Element) -> _Box:
    points = [tuple(map(float, point.split(","))) for point in shape.attrib["points"].split(";")]
    return _bounding_box([(x, y) for x, y in points], shape)


def _read_ellipse(shape: Element) -> _Box:
    cx, cy, rx, ry = (float(shape.attrib[key]) for key in ("cx", "cy", "rx", "ry"))
    angle = math.radians(float(shape.get("rotation", 0)))
    width = math.hypot(rx * math.cos(angle), ry * math.sin(angle))
    height = math.hypot(rx * math.sin(angle), ry * math.cos(angle))
    return cx - width, cy - height, cx + width, cy + height


def _read_mask(shape: Element) -> _Box:
    left, top, width, height = (float(shape.attrib[key]) for key in ("left", "top", "width", "height"))
    return left, top, left + width, top + height


def _bounding_box(
    points: Sequence[tuple[float, float]], shape: Element, center: tuple[float, float] = (0.0, 0.0)
) -> _Box:
    """Return the bounding box of points that are rotated around `center` by the shape's rotation, in degrees."""
    angle = math.radians(float(shape.get("rotation", 0)))
    if angle:
        (cx, cy), cos, sin = center, math.cos(angle), math.sin(angle)
        points = [(cx + (x - cx) * cos - (y - cy) * sin, cy + (x - cx) * sin + (y - cy) * cos) for x, y in points]
    xs, ys = zip(*points, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


_BOX_READERS = {"box": _read_box, "polygon": _read_polygon, "ellipse": _read_ellipse, "mask": _read_mask}
