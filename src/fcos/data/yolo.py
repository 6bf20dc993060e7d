"""Reader for YOLO: data.yaml, and one text file per image, `class cx cy width height` in fractions of the image.

Rows may also be polygons, or boxes followed by keypoints, a confidence or a track id (see `yolo_rows`).
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from ..config.yaml_text import parse_yaml
from ..errors import ConfigError, DataError
from ..formatting import join_some, plural, quote
from ..keypoints import COCO_PERSON, KeypointLayout, flip_order
from .file_names import find_missing_files
from .files import find_outputs, folder_with, list_images, match_names, read_text
from .folders import (
    IMAGE_FOLDERS,
    LABEL_FOLDERS,
    existing,
    first_images,
    list_visible,
    read_start,
    split_folders,
)
from .rows import source_from_rows
from .source import SPLIT_NAMES, WITHOUT_KEYPOINTS, Pose, Problem, Source, Split, SplitFiles
from .yolo_labels import LabelFinder, is_label_file
from .yolo_rows import LabelRow, parse_row, read_poses, read_rows

_DATA_FILES = ("data.yaml", "data.yml", "dataset.yaml")
_NAME_FILES = ("classes.txt", "obj.names", "_darknet.labels", "predefined_classes.txt")
_MAX_CLASSES = 1_000_000
_MAX_KEYPOINTS = 10_000
_NOT_A_BOX = (
    "expected a box of four numbers, or a polygon of at least three points in 0 to 1, found {}; if the first four"
    " numbers are the box, set data.yolo_rows=boxes"
)
_NUM_PROBED = 50  # images whose label files are looked for, to recognise a folder


def find(root: Path, split: Split) -> SplitFiles | None:
    """Find a split: in data.yaml, in obj.data (darknet, CVAT), or in the folders images/SPLIT and labels/SPLIT.

    `root` is the folder of these files or the file itself. Both files name a list file, a folder of images, or several
    of these. Paths are relative to the key `path`, which is relative to the folder of the file (the default).

    Raises:
        DataError: the file is broken, or names a folder or list that does not exist. A missing folder of the test split
            is no error, because Roboflow names it even if the split is empty.
    """
    file = _find_file(root)
    if file is None:
        return _find_split_folders(root, split)
    tree = _read_darknet(file) if file.suffix == ".data" else _read_yaml(file)
    entries = next((tree[name] for name in SPLIT_NAMES[split] if tree.get(name)), None)
    if entries is None:
        return None
    base = file.parent / _to_text(tree.get("path") or ".", f"{file}: path")
    base = base if os.path.isdir(base) else file.parent
    entries = [_to_text(e, f"{file}: {split}") for e in (entries if isinstance(entries, list) else [entries])]
    if split == "test" and not any(_holds_images(base, entry) for entry in entries):
        return None
    labels_folder = file.parent / "labels"
    return SplitFiles(
        annotations=labels_folder if labels_folder.is_dir() else None,
        images=(base,),
        lists=tuple(_resolve_entry(base, entry, file) for entry in entries),
        class_names=_read_class_names(tree, file),
        yolo_rows="boxes" if tree.get("kpt_shape") else "auto",
        pose=_read_pose(tree, file),
    )


def recognize(path: Path) -> SplitFiles | None:
    """Recognise a folder with images and label files, next to each other or in the folders images and labels.

    Class names are taken from classes.txt (LabelImg, Label Studio), obj.names or _darknet.labels, if there is one.
    """
    if not path.is_dir():
        return None
    labels = next(iter(existing(path, LABEL_FOLDERS)), None)
    images = next((folder for folder in existing(path, IMAGE_FOLDERS) if first_images(folder, 1)), path)
    if not _have_labels(first_images(images, _NUM_PROBED), images, labels):
        return None
    return SplitFiles(labels, (images,), class_names=_read_name_file(path, path.parent))


def read(files: SplitFiles, class_names: Sequence[str] | None) -> Source:
    """Read the label files of a split.

    Polygons are converted to their bounding boxes. An image without a label file has no objects.

    Raises:
        DataError: class names are missing, a list file is missing, no image has a label file, or it is not clear
            whether the rows are polygons.
    """
    names = files.class_names or class_names
    if not names:
        where = files.annotations or files.images[0]
        raise DataError(f"{where}: label files contain no class names; set data.classes=[NAME,NAME] in label order")
    if files.annotations is not None and not os.path.isdir(files.annotations):
        raise DataError(f"{files.annotations}: expected a folder of YOLO label files, found a file")
    root = files.images[0]
    images, problems = _list_images(files)
    finder = LabelFinder(root, files.annotations)
    matched = {image: finder.find(image) for image in images}
    if images and not any(map(os.path.isfile, images)):
        where = files.lists[0] if files.lists else root
        raise DataError(f"{where}: no image exists; expected files such as {images[0]}")
    if images and not any(matched.values()):
        expected = finder.expected_path(images[0])
        raise DataError(
            f"{root}: none of the {plural(len(images), 'image')} has a label file; expected names such as {expected}"
        )
    problems += finder.check(matched)
    pose = files.pose if files.keypoints else None
    if isinstance(pose, DataError):
        raise pose
    label_files, label_rows, label_problems = _read_label_files(
        matched, len(names), with_points=files.masks or pose is not None
    )
    kept_files = [file or finder.expected_path(image) for image, file in label_files.items()]
    if pose is not None:
        rows, broken_rows = read_poses(label_rows, len(pose.layout.names), pose.length)
    else:
        rows, unread_rows = read_rows(label_rows, files.yolo_rows, where=str(files.annotations or root))
        broken_rows = [(row, _NOT_A_BOX.format(repr(row.text))) for row in unread_rows]
    problems += label_problems
    problems += [
        Problem("broken line", str(kept_files[row.image]), f"line {row.number}", message)
        for row, message in broken_rows
    ]
    return source_from_rows(
        rows,
        with_masks=files.masks,
        keypoint_layout=None if pose is None else pose.layout,
        root=root,
        file_names=[(i.relative_to(root) if i.is_relative_to(root) else i).as_posix() for i in label_files],
        sizes=[(0, 0)] * len(label_files),
        annotation_files=kept_files,
        unit="line",
        class_names=list(names),
        category_ids=list(range(len(names))),
        relative=True,
        problems=problems,
    )


def _find_file(root: Path) -> Path | None:
    if root.is_file():
        return root if root.suffix.lower() in (".yaml", ".yml", ".data") else None
    usual = next((p for name in _DATA_FILES if (p := root / name).is_file()), None)
    others = (p for p in list_visible(root, (".yaml", ".yml")) if _names_train_and_classes(read_start(p)))
    return usual or next(others, None) or next(iter(list_visible(root, (".data",))), None)


def _names_train_and_classes(text: str) -> bool:
    return all(re.search(rf"^{key}\s*:", text, re.MULTILINE) for key in ("train", "names"))


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        tree = parse_yaml(read_text(file), where=str(file), is_text=_is_text)
    except ConfigError as error:
        raise DataError(str(error)) from None
    if not isinstance(tree, dict):
        raise DataError(f"{file}: expected a mapping with the keys train, val and names, found {quote(tree)}")
    return {key.lower() if isinstance(key, str) else key: value for key, value in tree.items()}


def _read_darknet(file: Path) -> dict[str, Any]:
    """Read obj.data, lines `key = value`, and the file of class names that it mentions."""
    pairs = [line.partition("=") for line in read_text(file).splitlines() if "=" in line]
    tree: dict[str, Any] = {key.strip().lower(): value.strip() for key, _, value in pairs}
    names = _find_entry(file.parent, tree.get("names") or "obj.names")
    if names is None or not names.is_file():
        raise DataError(f"{file}: expected the file of class names, `names = obj.names`, in {file.parent}")
    tree["names"] = _read_lines(names)
    return tree


def _read_name_file(*folders: Path) -> tuple[str, ...] | None:
    """Read the class names from the first file with a usual name, one per line; None if there is none."""
    places = [place for folder in folders for place in (folder, *existing(folder, (*LABEL_FOLDERS, *IMAGE_FOLDERS)))]
    file = next((p for place in places for name in _NAME_FILES if (p := place / name).is_file()), None)
    if file is None:
        return None
    names = _read_lines(file)
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise DataError(
            f"{file}: expected unique class names, one per line; found several times: {join_some(repeated)}"
        )
    return tuple(names)


def _read_lines(file: Path) -> list[str]:
    return [line.strip() for line in read_text(file).splitlines() if line.strip()]


def _find_split_folders(root: Path, split: Split) -> SplitFiles | None:
    """Find a split in images/SPLIT and labels/SPLIT, or images/SPLIT with the label files in it."""
    labels = next(iter(existing(root, LABEL_FOLDERS)), None)
    for images in existing(root, IMAGE_FOLDERS):
        for folder in split_folders(images, split):
            if _have_labels(first_images(folder, _NUM_PROBED), images, labels):
                return SplitFiles(labels, (images,), (folder,), class_names=_read_name_file(root))
    return None


def _have_labels(images: Sequence[Path], root: Path, labels: Path | None) -> bool:
    finder = LabelFinder(root, labels)
    return any(is_label_file(file) for image in images if (file := finder.find(image)))


def find_broken_row(root: Path) -> str | None:
    """Return a message about the first row of text files with the names of images that is no row of a label file."""
    finder = LabelFinder(root, next(iter(existing(root, LABEL_FOLDERS)), None))
    files = filter(None, map(finder.find, first_images(root, _NUM_PROBED)))
    for file in files:
        for number, line in enumerate(read_start(file).splitlines(), start=1):
            if line.strip():
                try:
                    parse_row(line, image=0, number=number, num_classes=_MAX_CLASSES)
                except ValueError as error:
                    return f"{file}, line {number}: {error}"
    return None


def _to_text(value: Any, where: str) -> str:
    if not isinstance(value, str | int | float | date):
        raise DataError(f"{where}: expected a path, found {quote(value)}")
    return str(value)


def _resolve_entry(base: Path, entry: str, file: Path) -> Path:
    path = _find_entry(base, entry)
    if path is None:
        raise DataError(f"{file}: {entry!r:.300} does not exist (looked in {base})")
    return path


def _find_entry(base: Path, entry: str) -> Path | None:
    # Roboflow writes ../train/images although the folder is next to data.yaml; CVAT writes data/train.txt likewise.
    posix = entry.replace("\\", "/")  # written on Windows
    candidates = (entry, posix, posix.removeprefix("../"), posix.removeprefix("data/"))
    return next((path for candidate in candidates if os.path.exists(path := base / candidate)), None)


def _holds_images(base: Path, entry: str) -> bool:
    path = _find_entry(base, entry)
    return path is not None and (bool(first_images(path, 1)) if path.is_dir() else bool(read_text(path).strip()))


def _is_text(path: Sequence[str], is_null: bool) -> bool:
    """Return whether a value in data.yaml is a path or class name, which is text even if it looks like a number."""
    key = path[0].lower() if path else ""
    if key == "names":
        return len(path) == 2  # also `null` and `no`
    return not is_null and (key == "path" or any(key in names for names in SPLIT_NAMES.values()))


def _read_class_names(tree: dict[str, Any], yaml_file: Path) -> tuple[str, ...] | None:
    """Return the class names in label order, None if data.yaml contains none."""
    names = tree.get("names")
    if not names:
        return None
    items = list(names.items()) if isinstance(names, dict) else []
    if items and all(key.isdecimal() and len(key) < 9 for key, _ in items):
        by_label = {int(key): name for key, name in items}
        names = [by_label[label] for label in range(len(items)) if label in by_label]
    is_valid = isinstance(names, list) and all(isinstance(name, str) and name for name in names)
    if not is_valid or len(set(names)) != len(names) or (items and len(names) != len(items)):
        raise DataError(
            f"{yaml_file}: names must list unique class names, or map 0, 1, ... to them; found {quote(tree['names'])}"
        )
    return tuple(names)


def _read_pose(tree: dict[str, Any], yaml_file: Path) -> Pose | DataError | None:
    """Return the keypoints of the rows: `kpt_shape` is [number, 2 or 3], `flip_idx` the order in a flipped image.

    A mistake is returned, not raised, as it does not matter if the keypoints are not read. Keypoints that change places
    as COCO's 17 are taken for these; others have numbers as names.
    """
    shape, order = tree.get("kpt_shape"), tree.get("flip_idx")
    if shape is None:
        return None
    is_shape = isinstance(shape, list) and len(shape) == 2 and all(type(side) is int for side in shape)
    if not is_shape or not 1 <= shape[0] <= _MAX_KEYPOINTS or shape[1] not in (2, 3):
        return DataError(
            f"{yaml_file}: kpt_shape: expected [number of keypoints, 2 or 3], found {quote(shape)}{WITHOUT_KEYPOINTS}"
        )
    positions = range(shape[0])
    is_order = isinstance(order, list) and all(type(i) is int for i in order) and sorted(order) == list(positions)
    if order is not None and not (is_order and all(order[order[i]] == i for i in positions)):
        return DataError(
            f"{yaml_file}: flip_idx: expected the position, 0 to {shape[0] - 1}, that every keypoint takes in a flipped"
            f" image, in pairs that change places, found {quote(order)}{WITHOUT_KEYPOINTS}"
        )
    if order == list(flip_order(COCO_PERSON.names)):
        return Pose(COCO_PERSON, shape[1])
    pairs = None if order is None else tuple((i, order[i]) for i in positions if i < order[i])
    return Pose(KeypointLayout(tuple(map(str, positions)), pairs=pairs), shape[1])


def _list_images(files: SplitFiles) -> tuple[list[Path], list[Problem]]:
    """Return the images in the lists and folders of the split, or all images if it has none, and the problems."""
    images: list[Path] = []
    problems: list[Problem] = []
    for path in files.lists or files.images:
        if path.is_dir():
            images += list_images(path)
            outputs = [str(folder) for folder in find_outputs(path)]
            if outputs:
                message = f"folders of runs and predictions are not read as data: {join_some(outputs)}"
                problems.append(Problem("folder of results", str(path), "", message, "warning"))
        else:
            listed, moved = _read_list(path, files.images[0])
            images += listed
            problems += moved
    repeated = [image for image, count in Counter(images).items() if count > 1]
    message = f"is listed twice in {join_some([str(path) for path in files.lists])}; remove one of the entries"
    return images, [*problems, *(Problem("duplicated image", str(image), "", message) for image in repeated)]


def _read_list(path: Path, root: Path) -> tuple[list[Path], list[Problem]]:
    """Return the images that a text file lists relative to its folder or to `root`, and a warning about moved ones."""
    folders, lines = (path.parent, root), _read_lines(path)
    names = [line if any(os.path.isfile(f / line) for f in folders) else line.replace("\\", "/") for line in lines]
    if names and not any(os.path.isfile(folder / names[0]) for folder in folders):
        names = [name.removeprefix("data/") for name in names]  # written by CVAT
    folder = folder_with(folders, names)
    names, problems = find_missing_files(folder, match_names(folder, names), (root,), where=path, is_list=True)
    return [folder / name for name in names], problems


def _read_label_files(
    matched: Mapping[Path, Path | None], num_classes: int, *, with_points: bool
) -> tuple[dict[Path, Path | None], list[LabelRow], list[Problem]]:
    """Return the images with readable label files or without one, their rows, and the problems.

    Args:
        matched: label file of each image, None if it has none.
        num_classes: number of classes.
        with_points: keep the values of polygons and poses.
    """
    readable: dict[Path, Path | None] = {}
    rows: list[LabelRow] = []
    problems: list[Problem] = []
    for image, label_file in matched.items():
        if label_file is not None:
            try:
                text = read_text(label_file)
            except DataError as error:
                message = str(error).removeprefix(f"{label_file}: ")
                problems.append(Problem("broken label file", str(label_file), "", message))
                continue
            new_rows, new_problems = _parse_lines(text, label_file, len(readable), num_classes, with_points=with_points)
            rows += new_rows
            problems += new_problems
        readable[image] = label_file
    return readable, rows, problems


def _parse_lines(
    text: str, file: Path, image: int, num_classes: int, *, with_points: bool
) -> tuple[list[LabelRow], list[Problem]]:
    rows, problems = [], []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                row = parse_row(line, image=image, number=number, num_classes=num_classes, with_points=with_points)
                rows.append(row)
            except ValueError as error:
                problems.append(Problem("broken line", str(file), f"line {number}", str(error)))
    return rows, problems
