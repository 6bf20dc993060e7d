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
from ..formatting import plural, quote
from ..keypoints import KeypointLayout
from ..masks import ellipse, outline
from .files import folder_with, read_xml
from .folders import image_folders, list_visible, read_start, split_of
from .label_table import LabelTable
from .opening import MAX_PIXELS
from .rows import Row, source_from_rows
from .source import WITHOUT_KEYPOINTS, Problem, Source, Split, SplitFiles
from .subsets import check_subsets
from .values import CROWD_FLAGS, parse_flag, parse_size

_MAX_COORDINATE = 1e6  # pixels
_WITHOUT_AREA = ("polyline", "points", "cuboid")
_SHAPES = ("box", "polygon", "ellipse", "mask", "skeleton", *_WITHOUT_AREA)


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

    Boxes, polygons, ellipses and masks become boxes, with masks if they are read, and skeletons become boxes around
    their points; other shapes are left out, with a warning. A skeleton whose points are all outside is no object.
    Shapes with an attribute of `CROWD_FLAGS` that is true become crowd. Without `class_names`, the classes are the
    labels in the order of the project.

    Raises:
        DataError: the file cannot be read, is not valid XML, or describes a video, or its skeletons have different
            points.
    """
    assert files.annotations is not None
    path = files.annotations
    tree = _parse(path)
    labels = LabelTable(class_names if class_names is not None else _read_labels(tree))
    layout = _read_skeletons(tree, path) if files.keypoints else None
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
            if shape.tag in _WITHOUT_AREA or _is_outside(shape):
                continue
            kind = "broken shape"
            try:
                row = _read_shape(shape, image, num_shapes, labels)
                if files.masks:
                    kind = "broken mask"
                    row = row._replace(polygon=_polygon_of(shape))
                if layout is not None and shape.tag == "skeleton":
                    kind = "broken keypoints"
                    row = row._replace(keypoints=_keypoints_of(shape, layout.names))
                rows.append(row)
            except ValueError as error:
                problems.append(Problem(kind, str(path), f"image {name}, shape {num_shapes}", str(error)))
    if num_left_out:
        message = f"{plural(num_left_out, 'shape')} without area left out ({', '.join(_WITHOUT_AREA)})"
        problems.append(Problem("shape without area", str(path), "", message, "warning"))
    rows = labels.sort(rows)
    return source_from_rows(
        rows,
        with_masks=files.masks,
        keypoint_layout=layout,
        root=folder_with(files.images, file_names),
        file_names=file_names,
        sizes=[parse_size(e.get("height"), e.get("width")) for e in images],
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
    """Return the class names in the order of the project, without the labels of the points of skeletons."""
    labels = [label for label in tree.findall("meta/*/labels/label") if not label.findtext("parent")]
    names = [(label.findtext("name") or "").strip() for label in labels]
    return [name for name in dict.fromkeys(names) if name]


def _read_skeletons(tree: Element, path: Path) -> KeypointLayout | None:
    """Return the names and connections of the points of the skeletons; None if there are none.

    Without a description in `meta`, the names are the labels of the points, in their order.

    Raises:
        DataError: two skeletons have different points.
    """
    layouts: dict[str, KeypointLayout] = {}
    labels = tree.findall("meta/*/labels/label")
    for label in labels:
        name = (label.findtext("name") or "").strip()
        points = [(p.findtext("name") or "").strip() for p in labels if (p.findtext("parent") or "").strip() == name]
        if not points:
            continue
        svg = label.findtext("svg") or ""
        nodes = {node: points.index(point) for node, point in _nodes(svg) if point in points}
        edges = re.findall(r'data-node-from="(\d+)"[^>]*data-node-to="(\d+)"', svg)
        skeleton = tuple((nodes[a], nodes[b]) for a, b in edges if a in nodes and b in nodes)
        layouts[name] = KeypointLayout(tuple(points), skeleton)
    undescribed: dict[str, dict[str, None]] = {}
    for shape in tree.iter("skeleton"):
        name = shape.get("label", "").strip()
        if name not in layouts:
            undescribed.setdefault(name, {}).update((point.get("label", ""), None) for point in shape.iter("points"))
    layouts |= {name: KeypointLayout(tuple(points)) for name, points in undescribed.items() if points}
    if len({layout.names for layout in layouts.values()}) > 1:
        counts = ", ".join(f"{name} ({len(layout.names)})" for name, layout in layouts.items())
        raise DataError(f"{path}: all skeletons need the same points, found {counts:.300}{WITHOUT_KEYPOINTS}")
    return next(iter(layouts.values()), None)


def _nodes(svg: str) -> list[tuple[str, str]]:
    """Return the number and the label of every node in the drawing of a skeleton."""
    circles = re.findall(r"<circle[^>]*>", svg)
    pairs = [[re.search(rf'data-{key}="([^"]*)"', circle) for key in ("node-id", "label-name")] for circle in circles]
    return [(node[1], name[1]) for node, name in pairs if node and name]


def _keypoints_of(skeleton: Element, names: Sequence[str]) -> list[float]:
    """Return x, y and visibility of every point; occluded points are hidden, those outside are not annotated.

    Raises:
        ValueError: a point has an unknown label.
    """
    values = dict.fromkeys(names, (0.0, 0.0, 0.0))
    for point in _inside(skeleton):
        name = point.get("label", "")
        if name not in values:
            raise ValueError(f"a point has the unknown label {name!r:.60}; expected one of {', '.join(names):.200}")
        values[name] = (*_position(point), 1.0 if point.get("occluded") == "1" else 2.0)
    return [value for name in names for value in values[name]]


def _inside(skeleton: Element) -> list[Element]:
    """Return the points of a skeleton that are annotated; the others are outside the image and may lack a position."""
    return [point for point in skeleton.findall("points") if point.get("outside", "0") != "1"]


def _is_outside(shape: Element) -> bool:
    return shape.tag == "skeleton" and shape.find("points") is not None and not _inside(shape)


def _position(point: Element) -> tuple[float, float]:
    """Return the position of a point of a skeleton.

    Raises:
        ValueError: it is not two numbers.
    """
    try:
        x, y = map(_parse_finite, point.get("points", "").split(","))
    except ValueError:
        found = quote(point.get("points"))
        raise ValueError(
            f"invalid coordinates of a skeleton: point {point.get('label', '')}: expected x,y in numbers, found {found}"
        ) from None
    return x, y


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
    box = _BOX_READERS[shape.tag](shape)
    flags = {e.get("name", "").casefold(): (e.text or "") for e in shape.findall("attribute")}
    crowd = False
    for key in CROWD_FLAGS:
        try:
            crowd = crowd or parse_flag(flags.get(key))
        except ValueError:
            raise ValueError(f"attribute {key}: expected true or false, found {flags[key]!r:.60}") from None
    return Row(image, number, labels.label(name), box, crowd)


def _polygon_of(shape: Element) -> list[float]:
    """Return the mask of a shape as one ring, x1, y1, x2, y2, ...; skeletons and lines have none.

    Raises:
        ValueError: the runs of a mask do not fill its box.
    """
    if shape.tag == "ellipse":
        cx, cy, rx, ry = _numbers(shape, "cx", "cy", "rx", "ry")
        if max(map(abs, (cx, cy, rx, ry))) < _MAX_COORDINATE:
            return ellipse((cx, cy), (rx, ry), angle=_angle(shape)).reshape(-1).tolist()
    if shape.tag == "mask" and "rle" in shape.attrib:
        return _read_runs(shape).reshape(-1).tolist()
    points = _corners(shape) if shape.tag in ("box", "polygon") else []
    return [value for point in points for value in point] if len(points) >= 3 else []


def _read_runs(shape: Element) -> np.ndarray:
    """Return the outline of a mask, [T, 2]. Its runs go along the rows of its box, first the pixels outside."""
    left, top, width, height = _numbers(shape, "left", "top", "width", "height")
    try:
        runs = [int(run) for run in shape.attrib["rle"].split(",")]
    except ValueError:
        runs = []
    is_image = width.is_integer() and height.is_integer() and min(width, height) > 0 and width * height <= MAX_PIXELS
    if not is_image or min(runs, default=-1) < 0 or sum(runs) != width * height:
        raise ValueError(
            f"invalid mask: expected an rle whose runs fill its box of {width:g}x{height:g} pixels, found"
            f" {shape.attrib['rle']!r:.60}"
        )
    bitmap = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(int(height), int(width))
    return outline(bitmap) + np.array([left, top])


_Box = tuple[float, float, float, float]


def _read_corners(shape: Element) -> _Box:
    return _bounding_box(_corners(shape))


def _corners(shape: Element) -> list[tuple[float, float]]:
    """Return the points of a box or polygon. A box is rotated around its centre, a polygon around the origin."""
    if shape.tag == "polygon":
        try:
            pairs = [tuple(map(_parse_finite, point.split(","))) for point in shape.get("points", "").split(";")]
            points = [(x, y) for x, y in pairs]
        except ValueError:
            raise _wrong_coordinates(shape) from None
        return _rotate(points, _angle(shape), center=(0.0, 0.0))
    x1, y1, x2, y2 = _numbers(shape, "xtl", "ytl", "xbr", "ybr")
    corners = [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]
    return _rotate(corners, _angle(shape), center=((x1 + x2) / 2, (y1 + y2) / 2))


def _angle(shape: Element) -> float:
    return math.radians(_numbers(shape, "rotation")[0]) if "rotation" in shape.attrib else 0.0


def _numbers(shape: Element, *keys: str) -> list[float]:
    """Return the values of attributes.

    Raises:
        ValueError: one is missing, or not a finite number.
    """
    try:
        return [_parse_finite(shape.attrib[key]) for key in keys]
    except (KeyError, ValueError):
        raise _wrong_coordinates(shape) from None


def _parse_finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("expected a finite number")
    return number


def _wrong_coordinates(shape: Element) -> ValueError:
    attributes = " ".join(f'{key}="{value}"' for key, value in shape.attrib.items())
    return ValueError(f"invalid coordinates of a {shape.tag}: expected numbers, found {attributes:.100}")


def _read_ellipse(shape: Element) -> _Box:
    cx, cy, rx, ry = _numbers(shape, "cx", "cy", "rx", "ry")
    angle = _angle(shape)
    width = math.hypot(rx * math.cos(angle), ry * math.sin(angle))
    height = math.hypot(rx * math.sin(angle), ry * math.cos(angle))
    return cx - width, cy - height, cx + width, cy + height


def _read_mask(shape: Element) -> _Box:
    left, top, width, height = _numbers(shape, "left", "top", "width", "height")
    return left, top, left + width, top + height


def _read_skeleton(shape: Element) -> _Box:
    """Return the box around the annotated points."""
    positions = [_position(point) for point in _inside(shape)]
    if not positions:
        raise ValueError("has no points")
    return _bounding_box(positions)


def _rotate(
    points: list[tuple[float, float]], angle: float, *, center: tuple[float, float]
) -> list[tuple[float, float]]:
    if not angle:
        return points
    (cx, cy), cos, sin = center, math.cos(angle), math.sin(angle)
    return [(cx + (x - cx) * cos - (y - cy) * sin, cy + (x - cx) * sin + (y - cy) * cos) for x, y in points]


def _bounding_box(points: Sequence[tuple[float, float]]) -> _Box:
    xs, ys = zip(*points, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


_BOX_READERS = {
    "box": _read_corners,
    "polygon": _read_corners,
    "ellipse": _read_ellipse,
    "mask": _read_mask,
    "skeleton": _read_skeleton,
}
