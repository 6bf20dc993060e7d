"""Reader for COCO JSON files."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import DataError
from ..files import open_file
from ..formatting import join_some, quote
from ..keypoints import UNNAMED
from .coco_shapes import (
    KEYPOINTS,
    SEGMENTATION,
    drop_segmentation,
    keypoint_layout,
    masks_of,
    pack_segmentation,
    parse_keypoints,
    parse_segmentation,
    stack_keypoints,
)
from .files import folder_with, match_names, read_json
from .folders import LABEL_FOLDERS, existing, image_folders, list_visible, read_start, split_of
from .labelme import is_labelme
from .source import SPLIT_NAMES, Keypoints, Problem, Source, Split, SplitFiles, unused_ids
from .values import CROWD_FLAGS, encodable, parse_flag, parse_integer, parse_number

_Reporter = Callable[[str, str, str], None]
_LIST = re.compile(rb'"(images|annotations)"\s*:\s*\[')
_CHUNK, _OVERLAP = 1 << 20, 100  # bytes; a match may extend over two chunks


def find(root: Path, split: Split) -> SplitFiles | None:
    """Find the JSON file of a split and the folders that may hold its images.

    It is named after the split, in DIR or DIR/annotations: SPLIT.json, instances_SPLIT2017.json, SPLIT_labels.json.

    Raises:
        DataError: several files match.
    """
    paths = [p for p in _list_json_files(root) if split_of(p.stem) == split]
    exact = [p for p in paths if re.fullmatch(rf"(instances_)?({'|'.join(SPLIT_NAMES[split])})(_?\d{{4}})?", p.stem)]
    paths = exact or [p for p in paths if is_coco(p)]
    if len(paths) > 1:
        raise DataError(
            f"{root}: found several files for {split}: {', '.join(sorted(str(p.relative_to(root)) for p in paths))};"
            f" choose one with data.{split}.annotations=FILE"
        )
    return SplitFiles(paths[0], image_folders(paths[0], split)) if paths else None


def recognize(path: Path) -> SplitFiles | None:
    """Recognise a COCO file, or a folder with a single one: result.json, _annotations.coco.json, or any other name.

    Raises:
        DataError: the folder contains several COCO files.
    """
    paths = [p for p in ([path] if path.is_file() else _list_json_files(path)) if is_coco(p)]
    if len(paths) > 1:
        names = join_some([str(p.relative_to(path)) for p in paths])
        raise DataError(f"{path}: found several COCO files: {names}; choose one with data={paths[0]}")
    return SplitFiles(paths[0], image_folders(paths[0])) if paths else None


def is_coco(path: Path) -> bool:
    """Return whether a JSON file contains COCO's list of images or of annotations.

    Other keys may come first (a long `info`, many categories), therefore the whole file is searched unless its start
    is that of another format.
    """
    start = read_start(path) if path.suffix.lower() == ".json" else ""
    if _LIST.search(start.encode()):
        return True
    return start.lstrip().startswith("{") and not is_labelme(path) and _contains_list(path)


def _contains_list(path: Path) -> bool:
    end = b""
    try:
        with open_file(path) as file:
            while chunk := file.read(_CHUNK):
                if _LIST.search(end + chunk):
                    return True
                end = chunk[-_OVERLAP:]
    except OSError:
        return False
    return False


def _list_json_files(root: Path) -> list[Path]:
    return [p for folder in (root, *existing(root, LABEL_FOLDERS)) for p in list_visible(folder, (".json",))]


def read(files: SplitFiles, class_names: Sequence[str] | None, *, all_categories: bool = False) -> Source:
    """Read a JSON file. Images are sorted by id; classes keep the order of the file.

    `segmentation`, `keypoints`, `iscrowd`, `area`, image size and annotation id are optional. Annotations with one of
    `CROWD_FLAGS` become crowd. A category without annotations that is only the supercategory of others is not a class,
    unless `all_categories` is set.

    Raises:
        DataError: the entire file is unusable.
    """
    assert files.annotations is not None
    path = files.annotations
    images, annotations, categories = _load_lists(path, masks=files.masks)
    problems: list[Problem] = []

    def report(kind: str, where: str, message: str) -> None:
        problems.append(Problem(kind, str(path), where, message))

    images = _select_usable(images, "image", _IMAGE_KEYS, report)
    images.sort(key=lambda image: image["id"])
    keys = _ANNOTATION_KEYS | (_MASK_KEYS if files.masks else {}) | (_KEYPOINT_KEYS if files.keypoints else {})
    names = {image["id"]: image["file_name"] for image in images}
    annotations = _select_usable(annotations, "annotation", keys, report, image_names=names)
    _add_missing_ids(annotations)
    used = {a["category_id"] for a in annotations}
    ids, classes = _read_classes(path, categories, used, all_categories=all_categories)
    annotations = _select_known(annotations, "image", {image["id"] for image in images}, report)
    annotations = _select_known(annotations, "category", set(ids), report)
    layout = keypoint_layout(annotations, categories, where=str(path)) if files.keypoints else UNNAMED
    _add_missing_sizes(images, annotations)
    annotations = _select_fitting(annotations, images, layout.names, report)
    boxes = np.array([a["bbox"] for a in annotations], dtype=np.float64).reshape(-1, 4)
    with np.errstate(over="ignore", invalid="ignore"):  # infinite values are reported later
        boxes[:, 2:] += boxes[:, :2]
    file_names = [image["file_name"] for image in images]
    root = folder_with(files.images, file_names)
    return Source(
        root=root,
        file_names=match_names(root, file_names),
        image_ids=np.array([image["id"] for image in images], dtype=np.int64),
        sizes=np.array([(i.get("height") or 0, i.get("width") or 0) for i in images], dtype=np.int32).reshape(-1, 2),
        annotation_files=[path],
        unit="annotation",
        image_of=_positions([a["image_id"] for a in annotations], [image["id"] for image in images]),
        boxes=boxes,
        labels=_positions([a["category_id"] for a in annotations], ids),
        crowd=np.array([any(a.get(flag) for flag in CROWD_FLAGS) for a in annotations], dtype=bool),
        areas=np.array([a.get("area") for a in annotations], dtype=np.float64),
        numbers=np.array([a["id"] for a in annotations], dtype=np.int64),
        class_names=classes,
        category_ids=ids,
        problems=problems,
        masks=masks_of(annotations) if files.masks else None,
        keypoints=Keypoints(stack_keypoints(annotations, len(layout.names)), layout) if layout.names else None,
    )


def _load_lists(path: Path, *, masks: bool) -> tuple[list[Any], list[Any], list[Any]]:
    tree = read_json(path, object_hook=pack_segmentation if masks else drop_segmentation)
    keys = ("images", "annotations", "categories")
    if not isinstance(tree, dict) or not all(isinstance(tree.get(key), list) for key in keys):
        found = join_some(list(tree)) if isinstance(tree, dict) else type(tree).__name__
        null = [key for key in keys if isinstance(tree, dict) and key in tree and tree[key] is None]
        if null:
            raise DataError(f"{path}: {' and '.join(null)}: expected a list, found null; for no entries, write []")
        raise DataError(
            f"{path}: expected a COCO file, an object with the lists {', '.join(keys)};"
            f" found {found or 'an empty object':.200}"
        )
    return tree["images"], tree["annotations"], tree["categories"]


class _Key(NamedTuple):
    """Key of an image or annotation: function that reads its value, and the expected value for messages."""

    parse: Callable[[Any], Any]
    expected: str
    required: bool = False


def _parse_id(value: Any) -> int:
    number = value if type(value) is int else parse_integer(value)
    if not 0 <= number < 2**63:  # the evaluation accepts no others
        raise ValueError
    return number


def _parse_side(value: Any) -> int:
    side = parse_integer(value)
    if not 0 <= side < 2**31:
        raise ValueError
    return side


def _parse_text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError
    return value


def _parse_box(value: Any) -> list[float]:
    if not isinstance(value, list) or len(value) != 4:
        raise ValueError
    return [number if type(number) is float else parse_number(number) for number in value]


_ID = _Key(_parse_id, "an integer >= 0", required=True)
_SIDE = _Key(_parse_side, "an integer >= 0")
_FLAG = _Key(parse_flag, "0 or 1")
_NAME = _Key(_parse_text, "a string", required=True)
_CATEGORY_KEYS = {"id": _ID, "name": _NAME}
_IMAGE_KEYS = {"id": _ID, "file_name": _NAME, "height": _SIDE, "width": _SIDE}
_ANNOTATION_KEYS = {
    "id": _ID._replace(required=False),
    "image_id": _ID,
    "category_id": _ID,
    "bbox": _Key(_parse_box, "a list of four finite numbers", required=True),
    "area": _Key(parse_number, "a number"),
    **dict.fromkeys(CROWD_FLAGS, _FLAG),
}
_MASK_KEYS = {"segmentation": _Key(parse_segmentation, SEGMENTATION)}
_KEYPOINT_KEYS = {"keypoints": _Key(parse_keypoints, KEYPOINTS)}


def _select_usable(
    entries: list[Any],
    noun: str,
    keys: dict[str, _Key],
    report: _Reporter,
    *,
    image_names: Mapping[int, str] | None = None,
) -> list[dict[str, Any]]:
    """Return the entries that have the expected values and a unique id, with all values parsed; report the others.

    Args:
        entries: images or annotations.
        noun: `image` or `annotation`.
        keys: keys of an entry.
        report: function that receives the problems.
        image_names: file names by image id, for messages about annotations.
    """
    usable, seen = [], set()
    for position, entry in enumerate(entries):
        written_id = entry.get("id") if isinstance(entry, dict) else None
        flaw = _parse_values(entry, keys)
        if flaw is not None:
            kind, message = _SHAPES.get(flaw[0], f"broken {noun}"), flaw[1]
            has_id = isinstance(written_id, int | float | str) and written_id != ""
            where = f"{noun} {written_id!s:.40}" if has_id else f"{noun} at position {position}"
            image = entry.get("image_id") if image_names and isinstance(entry, dict) else None
            name = image_names.get(image) if image_names and isinstance(image, int) else None
            report(kind, where, message if name is None else f"{message} (image {name})")
        elif entry.get("id") in seen:
            report(f"duplicated {noun} id", f"{noun} {entry['id']}", f"another {noun} has the same id")
        else:
            if entry.get("id") is not None:
                seen.add(entry["id"])
            usable.append(entry)
    return usable


_SHAPES = {"segmentation": "broken mask", "keypoints": "broken keypoints"}
"""Kinds of errors of keys whose values are long, so that messages also contain the reason."""


def _plain(value: Any) -> Any:
    """Return a value as it is in the file; the numbers of polygons are read as arrays."""
    return (
        [item.tolist() if isinstance(item, np.ndarray) else item for item in value]
        if isinstance(value, list)
        else value
    )


def _parse_values(entry: Any, keys: dict[str, _Key]) -> tuple[str, str] | None:
    """Replace the values of an entry by the parsed ones.

    Returns:
        The key and a message if a value is invalid, or missing if required.
    """
    if not isinstance(entry, dict):
        return "", f"expected an object, found {quote(entry)}"
    for key, (parse, expected, required) in keys.items():
        value = entry.get(key)
        if value is None and not required:
            continue
        try:
            entry[key] = parse(value)
        except ValueError as error:
            found = quote(_plain(value)) if key in entry else "none"
            reason = f": {error}" if key in _SHAPES else ""
            return key, f"expected {key} ({expected}), found {found}{reason}"
    return None


def _select_known(
    annotations: list[dict[str, Any]], noun: str, ids: Collection[int], report: _Reporter
) -> list[dict[str, Any]]:
    """Return the annotations whose image or category (`noun`) has one of these ids; report the others."""
    key = f"{noun}_id"
    for a in annotations:
        if a[key] not in ids:
            report(
                f"unknown {noun}",
                f"annotation {a['id']}",
                f"its {key} {a[key]} is not the id of any {noun} in the file",
            )
    return [a for a in annotations if a[key] in ids]


def _select_fitting(
    annotations: list[dict[str, Any]], images: list[dict[str, Any]], keypoints: Sequence[str], report: _Reporter
) -> list[dict[str, Any]]:
    """Return the annotations whose mask has the size of the image and whose keypoints have names; report others."""
    sizes = {image["id"]: (image.get("height") or 0, image.get("width") or 0) for image in images}
    fitting = []
    for a in annotations:
        where, mask, (height, width) = f"annotation {a['id']}", a.get("segmentation"), sizes[a["image_id"]]
        count = len(a["keypoints"]) if keypoints and a.get("keypoints") is not None else None
        if mask is not None and mask.size is not None and 0 not in (height, width) and mask.size != (height, width):
            message = f"its mask is {mask.size[1]}x{mask.size[0]}, but its image {width}x{height}"
            report("wrong mask size", where, message)
        elif count not in (None, len(keypoints)):
            expected = f"{len(keypoints)} keypoints ({', '.join(keypoints):.100})"
            report("wrong number of keypoints", where, f"expected {expected}, found {count}")
        else:
            fitting.append(a)
    return fitting


def _add_missing_sizes(images: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> None:
    """Give images without a size that of the frame of their RLEs, so that it is compared with the image file."""
    frames = {a["image_id"]: mask.size for a in annotations if (mask := a.get("segmentation")) and mask.size}
    for image in images:
        if image["id"] in frames and not (image.get("height") and image.get("width")):
            image["height"], image["width"] = frames[image["id"]]


def _add_missing_ids(annotations: list[dict[str, Any]]) -> None:
    """Give annotations without an id consecutive unused ids."""
    without_id = [annotation for annotation in annotations if annotation.get("id") is None]
    used = [annotation["id"] for annotation in annotations if annotation.get("id") is not None]
    for annotation, new_id in zip(without_id, unused_ids(used, len(without_id)), strict=True):
        annotation["id"] = new_id


def _read_classes(
    path: Path, categories: list[Any], used: set[int], *, all_categories: bool
) -> tuple[list[int], list[str]]:
    """Return the ids and names of the classes in the order of the file; `used` are the ids that have annotations."""
    for category in categories:
        flaw = _parse_values(category, _CATEGORY_KEYS)
        if flaw is not None:
            raise DataError(f"{path}: every category needs an id and a name, found {quote(category)}: {flaw[1]}")
    parents = Counter(c["supercategory"] for c in categories if isinstance(c.get("supercategory"), str))
    classes = [c for c in categories if c["id"] in used or not _is_parent(c, parents)]
    if all_categories:  # an unused one may have the name of a class
        used_names = [c["name"] for c in categories if c["id"] in used]
        classes = [
            {**c, "name": f"{c['name']} ({c['id']})"} if c["id"] not in used and c["name"] in used_names else c
            for c in categories
        ]
    for key in ("id", "name"):
        repeated = [value for value, count in Counter(c[key] for c in classes).items() if count > 1]
        if repeated:
            values = join_some([repr(value) for value in repeated])
            raise DataError(f"{path}: expected a different {key} for every category, found the same {key}: {values}")
    return [c["id"] for c in classes], [encodable(c["name"]) for c in classes]


def _is_parent(category: dict[str, Any], parents: Counter[str]) -> bool:
    """Return whether another category names this one as its supercategory; `parents` counts all supercategories."""
    return parents[category["name"]] > (category.get("supercategory") == category["name"])


def _positions(values: list[int], targets: list[int]) -> np.ndarray:
    """Return the position of each value in `targets`: int64 [len(values)]."""
    position_of = {value: i for i, value in enumerate(targets)}
    return np.array([position_of[value] for value in values], dtype=np.int64)
