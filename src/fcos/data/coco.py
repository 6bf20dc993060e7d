"""Reader for COCO JSON files."""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from .source import SPLIT_NAMES, Problem, Source, Split, SplitFiles, folder_with

_KIND_NAMES = {int: "an integer >= 0", str: "a string", list: "a list of four numbers"}
_Reporter = Callable[[str, str, str], None]


@contextmanager
def _paused_collector() -> Iterator[None]:
    """Pause garbage collection, whose repeated scans of the growing tree take half of the time for a large file."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def find(root: Path, split: Split) -> SplitFiles | None:
    """Find the JSON file of a split and the folders that may hold its images.

    Known layouts: SPLIT.json in DIR or DIR/annotations, optionally with prefix and year as in instances_SPLIT2017.json;
    DIR/SPLIT/_annotations.coco.json (Roboflow).

    Raises:
        DataError: several files match.
    """
    names = SPLIT_NAMES[split]
    pattern = re.compile(rf"(instances_)?({'|'.join(names)})(_?\d{{4}})?")
    paths = [p for folder in (root, root / "annotations") for p in folder.glob("*.json") if pattern.fullmatch(p.stem)]
    paths += [p for name in names for p in (root / name).glob("_annotations.coco.json")]
    if len(paths) > 1:
        raise DataError(
            f"{root}: found several files for {split}: {', '.join(sorted(str(p.relative_to(root)) for p in paths))};"
            f" choose one with data.{split}.annotations=FILE"
        )
    return SplitFiles(paths[0], image_folders(paths[0], split)) if paths else None


def image_folders(annotations: Path, split: Split) -> tuple[Path, ...]:
    """Return the folders that the file names in a JSON file may be relative to, most likely first.

    Args:
        annotations: JSON file. The folders are next to it (or to its folder `annotations`) and named after it or its
            split.
        split: split that the JSON file describes.
    """
    base = annotations.parent.parent if annotations.parent.name == "annotations" else annotations.parent
    stem = annotations.stem.removeprefix("instances_")
    subfolders = [
        s for name in dict.fromkeys((stem, *SPLIT_NAMES[split])) for s in (name, f"images/{name}", f"{name}/images")
    ]
    return tuple(base / subfolder for subfolder in (*subfolders, "images", "."))


@_paused_collector()
def read(files: SplitFiles, class_names: Sequence[str] | None) -> Source:
    """Read a JSON file. Images are sorted by id; classes keep the order of the file.

    `segmentation`, `iscrowd`, `area`, image size and annotation id are optional. A category without annotations that is
    only the supercategory of others is not a class.

    Raises:
        DataError: the entire file is unusable.
    """
    assert files.annotations is not None
    path = files.annotations
    images, annotations, categories = _load_lists(path)
    problems: list[Problem] = []

    def report(kind: str, where: str, message: str) -> None:
        problems.append(Problem(kind, str(path), where, message))

    images = _select_usable(images, "image", {"id": int, "file_name": str}, report)
    images.sort(key=lambda image: image["id"])
    schema = {"id": int, "image_id": int, "category_id": int, "bbox": list}
    annotations = _select_usable(_add_missing_ids(annotations), "annotation", schema, report)
    ids, names = _read_classes(path, categories, {a["category_id"] for a in annotations})

    image_of = _positions([a["image_id"] for a in annotations], [image["id"] for image in images])
    labels = _positions([a["category_id"] for a in annotations], ids)
    for position in np.flatnonzero(image_of < 0):
        a = annotations[position]
        report("unknown image", f"annotation {a['id']}", f"its image_id {a['image_id']} is not in the file")
    for position in np.flatnonzero((labels < 0) & (image_of >= 0)):
        a = annotations[position]
        report("unknown category", f"annotation {a['id']}", f"its category_id {a['category_id']} is not in the file")
    valid = np.flatnonzero((image_of >= 0) & (labels >= 0))
    annotations = [annotations[i] for i in valid]

    boxes = _read_boxes(annotations)
    with np.errstate(invalid="ignore"):  # infinite values are reported later
        boxes[:, 2:] += boxes[:, :2]
    file_names = [image["file_name"] for image in images]
    return Source(
        root=folder_with(files.images, file_names),
        file_names=file_names,
        image_ids=np.array([image["id"] for image in images], dtype=np.int64),
        sizes=np.array([_read_size(image) for image in images], dtype=np.int32).reshape(-1, 2),
        annotation_files=[path],
        unit="annotation",
        image_of=image_of[valid],
        boxes=boxes,
        labels=labels[valid],
        crowd=np.array([bool(a.get("iscrowd")) for a in annotations], dtype=bool),
        areas=np.array([_to_float(a.get("area")) for a in annotations], dtype=np.float64),
        numbers=np.array([a["id"] for a in annotations], dtype=np.int64),
        class_names=names,
        category_ids=ids,
        problems=problems,
    )


def _load_lists(path: Path) -> tuple[list[Any], list[Any], list[Any]]:
    try:
        tree = json.loads(path.read_bytes(), object_hook=_drop_segmentation)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON: {error}") from None
    keys = ("images", "annotations", "categories")
    if not isinstance(tree, dict) or not all(isinstance(tree.get(key), list) for key in keys):
        found = ", ".join(map(str, tree)) if isinstance(tree, dict) else type(tree).__name__
        raise DataError(
            f"{path}: expected a COCO file, an object with the lists {', '.join(keys)};"
            f" found {found or 'an empty object'}"
        )
    return tree["images"], tree["annotations"], tree["categories"]


def _drop_segmentation(entry: dict[str, Any]) -> dict[str, Any]:
    """Drop the unused segmentation of a JSON object during parsing. Segmentations make up most of a large file."""
    entry.pop("segmentation", None)
    return entry


def _select_usable(entries: list[Any], noun: str, schema: dict[str, type], report: _Reporter) -> list[dict[str, Any]]:
    """Return the entries that have all keys of the schema and a unique id; report the others."""
    usable, seen = [], set()
    for position, entry in enumerate(entries):
        flaw = _find_flaw(entry, schema)
        if flaw is not None:
            where = f"{noun} {entry.get('id')}" if isinstance(entry, dict) else f"{noun} at position {position}"
            report(f"broken {noun}", where, flaw)
        elif entry["id"] in seen:
            report(f"duplicated {noun} id", f"{noun} {entry['id']}", f"another {noun} has the same id")
        else:
            seen.add(entry["id"])
            usable.append(entry)
    return usable


def _is_id(value: object) -> bool:
    """Return True for an integer that the evaluation accepts and that fits into int64."""
    return type(value) is int and 0 <= value < 2**63


def _find_flaw(entry: Any, schema: dict[str, type]) -> str | None:
    if type(entry) is not dict:
        return f"expected an object, found {entry!r:.60}"
    for key, expected_type in schema.items():
        value: Any = entry.get(key)
        if type(value) is not expected_type or (expected_type is int and not _is_id(value)):
            found = f"found {value!r:.60}" if key in entry else "found none"
            return f"expected {key} ({_KIND_NAMES[expected_type]}), {found}"
    return None


def _add_missing_ids(annotations: list[Any]) -> list[Any]:
    """Give annotations without an id consecutive ids above the largest existing one."""
    without_id = [position for position, a in enumerate(annotations) if type(a) is dict and a.get("id") is None]
    if without_id:
        annotations = annotations.copy()
        used_ids = (a["id"] for a in annotations if type(a) is dict and type(a.get("id")) is int)
        for number, position in enumerate(without_id, start=1 + max(used_ids, default=0)):
            annotations[position] = {**annotations[position], "id": number}
    return annotations


def _read_classes(path: Path, categories: list[Any], used: set[int]) -> tuple[list[int], list[str]]:
    """Return the ids and names of the classes in the order of the file; `used` are the ids that have annotations."""
    for c in categories:
        if not isinstance(c, dict) or not _is_id(c.get("id")) or not isinstance(c.get("name"), str):
            raise DataError(f"{path}: every category needs an id (an integer >= 0) and a name, found {c!r:.80}")
    parents = {c.get("supercategory") for c in categories if c.get("supercategory") != c["name"]}
    classes = [c for c in categories if c["id"] in used or c["name"] not in parents]
    for key in ("id", "name"):
        values = [c[key] for c in classes]
        repeated = sorted({repr(v) for v in values if values.count(v) > 1})
        if repeated:
            raise DataError(f"{path}: categories with the same {key}: {', '.join(repeated)}")
    # JSON may hold lone surrogates (\udce9), which cannot be encoded.
    return [c["id"] for c in classes], [c["name"].encode("utf-8", "backslashreplace").decode() for c in classes]


def _positions(values: list[int], targets: list[int]) -> np.ndarray:
    """Return the position of each value in `targets`, -1 if absent: int64 [len(values)]."""
    position_of = {value: i for i, value in enumerate(targets)}
    return np.array([position_of.get(value, -1) for value in values], dtype=np.int64)


def _read_boxes(annotations: list[dict[str, Any]]) -> np.ndarray:
    """Return XYWH boxes, float64 [B, 4]; NaN for values that are not numbers."""
    try:
        boxes = np.array([a["bbox"] for a in annotations], dtype=np.float64)
        if boxes.shape == (len(annotations), 4):
            return boxes
    except (OverflowError, TypeError, ValueError):
        pass
    boxes = np.full((len(annotations), 4), np.nan)
    for row, annotation in zip(boxes, annotations, strict=True):
        box = annotation["bbox"]
        if len(box) == 4:
            row[:] = [_to_float(v) for v in box]
    return boxes


def _read_size(image: dict[str, Any]) -> tuple[int, int]:
    """Return (height, width) as annotated, or zeros if absent or invalid; the image file then gives the size."""
    height, width = image.get("height", 0), image.get("width", 0)
    is_valid = all(type(side) is int and abs(side) < 2**31 for side in (height, width))
    return (height, width) if is_valid else (0, 0)


def _to_float(value: Any) -> float:
    """Return a value as float; NaN if it is not a number or too large for a float."""
    try:
        return float(value) if isinstance(value, int | float) else np.nan
    except OverflowError:
        return np.nan
