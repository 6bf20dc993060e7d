"""Conversion of a data set in any layout to COCO files, one per split.

Shape letters: B boxes.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..config import DataConfig
from ..errors import DataError
from ..files import explain_write_errors, replaced, write_text
from ..formatting import join_some, plural, printable
from ..progress import progress_bar
from .coco_shapes import to_segmentation
from .dataset import Annotations
from .layouts import SPLITS, locate
from .source import Split, merge_classes
from .splits import has_split, load_annotations

logger = logging.getLogger(__name__)

_MAX_DECIMALS = 16


def convert(
    config: DataConfig, out: Path, *, copy_images: bool = False, overwrite: bool = False
) -> dict[Path, Annotations]:
    """Write every split of a data set to OUT/SPLIT.json, a COCO file that `data=OUT` reads with the same result.

    Masks and keypoints are converted if there are any, unless data.masks=false or data.keypoints=false is given.
    Boxes, polygons and keypoints keep the numbers of their files, without rounding. Images, classes and annotations
    keep their ids if the data has any. All splits have the same categories.

    Args:
        config: data options, including the location of the data.
        out: output folder, created if needed.
        copy_images: copy the images to OUT/images/SPLIT; otherwise, the files name the existing ones relative to OUT.
        overwrite: replace existing files, and remove those of splits that the data does not have.

    Returns:
        The annotations of each written file.

    Raises:
        DataError: the data cannot be used (see `load_annotations`), a file exists and `overwrite` is False, or OUT
            holds data in another layout.
        WriteError: the disk is full or not writable.
    """
    files: dict[Split, Path] = {split: out / f"{split}.json" for split in SPLITS}
    if not overwrite:
        _require_new(list(files.values()))
    stale = [file for split, file in files.items() if not has_split(config, split)]
    _require_readable(config, out, list(files.values()), stale)
    with _created(out):  # fails before the check of the images, which takes long
        written = _write(config, files, out, copy_images=copy_images, overwrite=overwrite)
        for file in filter(os.path.lexists, stale):
            with explain_write_errors(file):
                file.unlink()
            logger.info("%s: removed, as the data has no such split", printable(str(file)))
    return written


def _write(
    config: DataConfig, files: Mapping[Split, Path], out: Path, *, copy_images: bool, overwrite: bool
) -> dict[Path, Annotations]:
    """Write the files of the splits that the data has, and return the annotations of each."""
    loaded: dict[Split, Annotations | None] = {split: load_annotations(config, split, lossless=True) for split in files}
    parts: dict[Split, Annotations] = {split: part for split, part in loaded.items() if part is not None}
    ids = merge_classes([(part.class_names, part.category_ids) for part in parts.values()])
    if not ids:
        raise DataError(f"{config.root}: expected annotations with at least one class, found none")
    parts = {split: _with_classes(part, ids) for split, part in parts.items()}
    if copy_images:
        names = {split: _names_in_copy(part) for split, part in parts.items()}
        copies = {
            out / "images" / split / name: part.path(i)
            for split, part in parts.items()
            for i, name in enumerate(names[split])
        }
        _copy(copies, overwrite=overwrite)
    else:
        names = {split: [_relative_name(part, i, out) for i in range(len(part))] for split, part in parts.items()}
    for split, part in parts.items():
        write_text(files[split], json.dumps(_to_tree(part, names[split])))
    return {files[split]: part for split, part in parts.items()}


def describe(annotations: Annotations) -> str:
    """Return the numbers of images, objects, masks and so on as text."""
    masks, keypoints = annotations.masks, annotations.keypoints
    num_crowds = int(annotations.crowd.sum())
    num_with_keypoints = 0 if keypoints is None else int(keypoints.values.any(axis=(1, 2)).sum())
    counts = [
        f"{plural(len(annotations), 'image')}, {plural(len(annotations.class_names), 'class')}",
        plural(len(annotations.crowd) - num_crowds, "object"),
        f"{plural(num_crowds, 'ignore region')}" if num_crowds else "",
        "" if masks is None else plural(int((np.diff(masks.object_offsets) > 0).sum()), "mask"),
        f"{num_with_keypoints} with keypoints" if num_with_keypoints else "",
    ]
    return ", ".join(filter(None, counts))


def _require_new(files: Sequence[Path]) -> None:
    existing = [str(file) for file in files if os.path.lexists(file)]
    if existing:
        raise DataError(f"{join_some(existing)}: exists already; choose another folder, or replace it with --overwrite")


def _require_readable(config: DataConfig, out: Path, files: Sequence[Path], stale: Sequence[Path]) -> None:
    """Check that `data=OUT` will read the new files only, and that no file of the source would be removed.

    Args:
        config: data options of the source.
        out: output folder.
        files: files that a conversion may write.
        stale: files among them that this conversion removes.

    Raises:
        DataError: OUT is the folder of a data set with other files, or the source has one of the files to remove.
    """
    own = {os.path.realpath(file) for file in files}
    for form, file in _files_of(DataConfig(root=out)) if out.is_dir() else []:
        if form != "coco" or os.path.realpath(file) not in own:
            raise DataError(
                f"{out}: holds a data set already ({form}: {file}), which data={out} would no longer read; choose"
                f" another folder, such as {out / 'coco'}"
            )
    sources = {os.path.realpath(file) for _, file in _files_of(config)}
    used = [str(file) for file in stale if os.path.realpath(file) in sources]
    if used:
        raise DataError(f"{join_some(used)}: is read by this conversion under another name; choose another folder")


def _files_of(config: DataConfig) -> list[tuple[str, Path]]:
    """Return the format and the annotations of every data set of every split, as far as they are found."""
    found: list[tuple[str, Path]] = []
    for split in SPLITS:
        with suppress(DataError):
            found += [(form, files.annotations or files.images[0]) for form, files in locate(config, split) or []]
    return found


@contextmanager
def _created(folder: Path) -> Iterator[None]:
    """Create a folder. After an error, remove it and its parents again, as far as they are new and empty."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        with explain_write_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        with suppress(OSError):
            for path in new:
                path.rmdir()
        raise


def _with_classes(annotations: Annotations, ids: Mapping[str, int]) -> Annotations:
    """Return annotations whose classes are all those of `ids`, the category ids by name."""
    label_of = {name: label for label, name in enumerate(ids)}
    labels = np.array([label_of[name] for name in annotations.class_names], dtype=np.int64)
    return replace(
        annotations, labels=labels[annotations.labels], class_names=tuple(ids), category_ids=tuple(ids.values())
    )


def _relative_name(annotations: Annotations, image: int, folder: Path) -> str:
    """Return the path of an image relative to a folder, or its absolute path on another drive."""
    path = os.path.join(os.path.realpath(annotations.root), annotations.file_name(image))
    try:
        return os.path.relpath(path, os.path.realpath(folder)).replace(os.sep, "/")
    except ValueError:
        return path


def _names_in_copy(annotations: Annotations) -> list[str]:
    """Return the names of the images relative to the deepest folder that contains all of them."""
    paths = [os.path.abspath(annotations.path(i)) for i in range(len(annotations))]
    folder = os.path.commonpath([os.path.dirname(path) for path in paths]) if paths else ""
    return [os.path.relpath(path, folder).replace(os.sep, "/") for path in paths]


def _copy(sources: Mapping[Path, Path], *, overwrite: bool) -> None:
    """Copy files; `sources` are the paths to copy from by the paths to write."""
    if not overwrite:
        _require_new(list(sources))
    with progress_bar("copying images") as update:
        for number, (target, source) in enumerate(sources.items(), start=1):
            with explain_write_errors(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                if not (target.exists() and target.samefile(source)):
                    with replaced(target) as temporary:
                        shutil.copyfile(source, temporary)
            update(number, len(sources))


def _to_tree(annotations: Annotations, file_names: Sequence[str]) -> dict[str, Any]:
    """Return the content of a COCO file.

    Args:
        annotations: annotations that were read with `lossless`.
        file_names: file name of each image.
    """
    tree = replace(annotations, masks=None).to_coco()
    for image, name in zip(tree["images"], file_names, strict=True):
        image["file_name"] = name
    for annotation, box in zip(tree["annotations"], _to_xywh(annotations).tolist(), strict=True):
        annotation.update(bbox=_plain(box), area=_plain([annotation["area"]])[0])
        if "keypoints" in annotation:
            annotation["keypoints"] = _plain(annotation["keypoints"])
    if annotations.masks is not None:
        sizes = annotations.sizes[annotations.image_of].tolist()
        rows = zip(tree["annotations"], annotations.masks.polygons(), sizes, strict=True)
        for annotation, rings, (height, width) in rows:
            shape = to_segmentation(rings, (height, width))
            annotation["segmentation"] = shape if isinstance(shape, dict) else [_plain(ring) for ring in shape]
    return tree


def _to_xywh(annotations: Annotations) -> np.ndarray:
    """Return the boxes as x, y, width, height, float64 [B, 4].

    Width and height have the fewest decimals with which the sums x + width and y + height are exact, usually those of
    the file. For some boxes that start left of or above the image there is no such number; these are clipped, as when
    they are read.
    """
    boxes = annotations.boxes
    sides = boxes[:, 2:] - boxes[:, :2]
    shortest, is_exact = sides.copy(), np.zeros(sides.shape, dtype=bool)
    for decimals in range(_MAX_DECIMALS):
        rounded = sides.round(decimals)
        fits = ~is_exact & (boxes[:, :2] + rounded == boxes[:, 2:])
        shortest[fits] = rounded[fits]
        is_exact |= fits
    is_exact |= boxes[:, :2] + sides == boxes[:, 2:]
    xywh = np.concatenate([boxes[:, :2], shortest], axis=1)
    inexact = ~is_exact.all(axis=1)
    frames = annotations.sizes[annotations.image_of[inexact]][:, [1, 0, 1, 0]]
    clipped = np.clip(boxes[inexact], 0, frames).astype(np.float32).astype(np.float64)
    clipped[:, 2:] -= clipped[:, :2]  # exact enough to restore the float32 values
    xywh[inexact] = clipped
    return xywh


def _plain(values: Sequence[float]) -> list[float]:
    """Return whole numbers as integers, as they are usually written; -0.0 stays, as its sign would be lost."""
    return [
        int(value) if value.is_integer() and (value or math.copysign(1, value) > 0) else value
        for value in map(float, values)
    ]
