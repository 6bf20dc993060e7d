"""Reading and checking the splits of a data set: from a DataConfig to Annotations."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..config import DataConfig
from ..errors import DataError
from ..formatting import join_some, plural, printable
from . import fcos_core
from .checks import check_split
from .dataset import Annotations
from .file_names import find_missing_images, find_repeated_images, select_listed
from .holdout import describe_cuts, hold_out
from .images import OnImage
from .layouts import FORMATS, SPLITS, locate
from .source import Problem, Source, Split, SplitFiles, join_sources, select_images, summarize

logger = logging.getLogger(__name__)

_MAX_SHOWN = 20
_KEPT = ("repeated image", "wrong box format")
"""Kinds of errors whose images and boxes data.on_error=skip uses as they are."""
_SHAPE_ERRORS = {
    "masks": ("broken mask", "wrong mask size", "mask of another object", "mask without object"),
    "keypoints": ("broken keypoints", "wrong number of keypoints"),
}
"""Kinds of errors of objects whose boxes may be correct, by the option that reads masks or keypoints."""


def load_annotations(
    config: DataConfig,
    split: Split,
    *,
    class_names: Sequence[str] | None = None,
    category_ids: Sequence[int] | None = None,
    one_class: bool = False,
    on_image: OnImage | None = None,
    lossless: bool = False,
) -> Annotations | None:
    """Read and check one split.

    Args:
        config: data options, including the location of the data.
        split: `train`, `val` or `test`.
        class_names: classes in label order, for example those of a checkpoint or of the training split; None:
            `config.classes`, or else the classes in the data.
        category_ids: ids of `class_names`, used for classes that this split does not contain.
        one_class: for detectors that do not distinguish classes: all objects are of the class `object`. The previous
            two arguments are not used.
        on_image: callback for every image, which are all decoded then.
        lossless: read all that a conversion keeps: masks and keypoints if there are any, unless `config.masks` and
            `config.keypoints` are False explicitly, and values as in the files, see `check_split`.

    Returns:
        The annotations, or None if the data has no such split.

    Raises:
        DataError: no data is configured or found, the split cannot be read, no image is usable, or the data has errors
            and `config.on_error` is `stop`. The message lists the errors.
    """
    loaded = read_split(
        config,
        split,
        class_names=None if one_class else class_names,
        category_ids=None if one_class else category_ids,
        decode=on_image is not None,
        on_image=on_image,
        lossless=lossless,
    )
    if loaded is None:
        return None
    annotations, problems = loaded
    errors = [p for p in problems if p.severity == "error"]
    if errors and (config.on_error == "stop" or not len(annotations)):
        skip = f", or set data.on_error=skip {_describe_skipping(errors)}" if len(annotations) else ""
        without = _options_without(errors, config) if lossless else []
        leave_out = f", or leave out what is broken with {' '.join(without)}" if without else ""
        remedy = f"Fix {'it' if len(errors) == 1 else 'them'}{skip}{leave_out}."
        if split != "train" and not lossless and any(p.kind == "no mask" for p in errors):
            remedy += " `fcos val` with data.masks=false evaluates only the boxes."
        raise DataError(f"{_format_problems(f'problems in the {split} split', errors)}\n{remedy}")
    kept = [p for p in errors if p.kind in _KEPT]
    skipped = [p for p in errors if p.kind not in _KEPT]
    for title, group in (("skipped in", skipped), ("problems that remain in", kept)):
        if group:
            logger.warning("%s", _format_problems(f"{title} the {split} split", group))
    warnings = [p for p in problems if p.severity == "warning"]
    for kind in dict.fromkeys(p.kind for p in warnings):
        same_kind = [p for p in warnings if p.kind == kind]
        example = f"{summarize(same_kind)}, for example " if len(same_kind) > 1 else ""
        logger.info("%s split: %s%s", split, example, same_kind[0])
    return annotations.as_one_class() if one_class else annotations


def read_split(
    config: DataConfig,
    split: Split,
    *,
    class_names: Sequence[str] | None,
    category_ids: Sequence[int] | None = None,
    decode: bool,
    on_image: OnImage | None = None,
    lossless: bool = False,
) -> tuple[Annotations, list[Problem]] | None:
    """Read and check one split; return its annotations and all problems, or None if the data has no such split.

    Args:
        config: data options, including the location of the data.
        split: `train`, `val` or `test`.
        class_names: classes in label order; None: `config.classes`, or else the classes in the data.
        category_ids: ids of `class_names`, used for classes that this split does not contain.
        decode: decode every image. This also finds damage that does not truncate the file.
        on_image: callback for every decoded image.
        lossless: see `load_annotations`.

    Raises:
        DataError: no data is configured or found, or the entire split cannot be read.
    """
    if split not in SPLITS:
        raise DataError(f"unknown split {split!r}; expected {', '.join(SPLITS)}")
    is_divided = config.val_fraction is not None and split != "test"
    if is_divided:
        check_division(config)
    located = locate(config, "train" if is_divided else split)
    if located is None:
        return None
    names = class_names if class_names is not None else config.classes
    if names is not None and len(set(names)) != len(names):
        raise DataError(f"class names must be unique, found {', '.join(names):.200}")
    shapes = [name for name in ("masks", "keypoints") if name not in config.model_fields_set]
    reading = config.model_copy(update=dict.fromkeys(shapes, True)) if lossless else config
    sources = [_read_source(reading, *data_set, names, split, is_divided=is_divided) for data_set in located]
    if split == "train" or is_divided:
        sources = _without_listed(sources, config, names)
    if is_divided:
        sources = _select_part(sources, split, config.val_fraction or 0.0)
        if split == "train":
            sources = [_select_trained(part, config, name) for part, (name, _) in zip(sources, located, strict=True)]
    source = join_sources(sources)
    if is_divided and not source.file_names:
        source.problems.append(_empty_split(source.root, split))
    annotations, problems = check_split(
        source,
        class_names=names,
        category_ids=category_ids,
        decode=decode,
        on_image=on_image,
        bit_depth=config.bit_depth,
        max_pixels=config.max_pixels,
        masks=config.masks,
        keypoints=config.keypoints,
        boxes_of_masks=config.boxes == "masks",
        lossless=lossless,
    )
    return (annotations if reading.masks else replace(annotations, masks=None)), problems


def check_division(config: DataConfig) -> None:
    """Raise DataError if `data.val_fraction` is set for data that has a val split."""
    if config.val_fraction is not None and locate(config, "val") is not None:
        raise DataError("data.val_fraction: the data has a val split already; remove this option to use it")


def has_split(config: DataConfig, split: Split) -> bool:
    """Return whether the data has a split; with data.val_fraction, it has a split val."""
    return locate(config, "train" if split == "val" and config.val_fraction is not None else split) is not None


def _without_listed(sources: list[Source], config: DataConfig, class_names: Sequence[str] | None) -> list[Source]:
    """Leave out the images that lists or folders without annotations select for val and test.

    Nothing is left out if data.train.image_list is given, or if data.train.images has no other images.
    """
    if config.train.image_list:
        return sources
    for split in ("val", "test"):
        section = getattr(config, split)
        if not any(image_list or annotations is None for annotations, _, image_list in section.data_sets):
            continue
        try:
            located = locate(config, split) or []
            others = [_read_source(config, *data_set, class_names, split, is_divided=False) for data_set in located]
        except DataError as error:
            if split == "val":
                raise
            message = f"cannot be read, so its images are not left out of training: {error}"
            sources[0].problems.append(Problem("unreadable split", "data.test", "", message, "warning"))
            continue
        listed = {os.path.realpath(other.path(i)) for other in others for i in range(len(other.file_names))}
        masks = [
            np.array(
                [os.path.realpath(source.path(i)) not in listed for i in range(len(source.file_names))], dtype=bool
            )
            for source in sources
        ]
        num_images, num_left = (sum(map(len, masks)), sum(int(mask.sum()) for mask in masks))
        if num_left == num_images:
            continue
        option = f"data.{split}.{'image_list' if section.image_list else 'images'}"
        message = (
            f"{num_images - num_left} of {plural(num_images, 'image')} are in {option} and are not used for training,"
            f" which leaves {num_left}; data.train.image_list=FILE chooses other training images"
        )
        severity = "warning" if num_left else "error"
        if not num_left and config.train.images:  # the user names the same images twice, for example to overfit them
            message = f"train has the same {plural(num_images, 'image')}, so the metrics are not those of new images"
            severity = "warning"
        else:
            sources = [select_images(source, mask) for source, mask in zip(sources, masks, strict=True)]
        sources[0].problems.append(Problem("image of another split", option, "", message, severity))
    return sources


def _select_part(sources: Sequence[Source], split: Split, val_fraction: float) -> list[Source]:
    """Select the images of train or val from sources without validation split; val has no problems of its own.

    Both parts must be selected from the same sources, before any rule that applies to training only.
    """
    joined = join_sources(sources)
    mask = hold_out(joined.file_names, joined.image_of, joined.labels, joined.class_names, fraction=val_fraction)
    masks = np.split(mask, np.cumsum([len(source.file_names) for source in sources])[:-1])
    if split == "train":
        return [select_images(source, ~part) for source, part in zip(sources, masks, strict=True)]
    in_val = mask[joined.image_of]
    counts = [
        f"{int((labels & in_val).sum())} of {int(labels.sum())} {printable(name)}"
        for label, name in enumerate(joined.class_names)
        if (labels := joined.labels == label).any()
    ]
    logger.info(
        "data.val_fraction=%g: %d of %d images held out for validation; boxes: %s",
        val_fraction,
        int(mask.sum()),
        len(mask),
        join_some(counts),
    )
    if note := describe_cuts(joined.file_names, mask):
        logger.info("data.val_fraction: %s", note)
    return [replace(select_images(source, part), problems=[]) for source, part in zip(sources, masks, strict=True)]


@contextmanager
def _paused_collector() -> Iterator[None]:
    """Pause garbage collection, whose repeated scans of millions of new objects take up to half of the time."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


@_paused_collector()
def _read_source(
    config: DataConfig,
    format_name: str,
    files: SplitFiles,
    class_names: Sequence[str] | None,
    split: Split,
    *,
    is_divided: bool,
) -> Source:
    """Read one data set of a split; if it will be divided, with the images and boxes of both parts."""
    if config.yolo_rows != "auto":
        files = replace(files, yolo_rows=config.yolo_rows)
    files = replace(files, masks=config.masks or config.boxes == "masks", keypoints=config.keypoints)
    if config.convention == "fcos_core" and format_name in fcos_core.CONVENTIONS:
        source = fcos_core.CONVENTIONS[format_name].read(files, class_names)
    else:
        source = FORMATS[format_name].read(files, class_names)
    if split == "train" and not is_divided:
        source = _select_trained(source, config, format_name)
    source = find_missing_images(source, files.images)
    source.problems.extend(find_repeated_images(source))
    if files.lists and not FORMATS[format_name].reads_lists:
        source = select_listed(source, files.lists)
    if not source.file_names:
        source.problems.append(
            _empty_split(files.lists[0] if files.lists else files.annotations or files.images[0], split)
        )
    return source


def _select_trained(source: Source, config: DataConfig, format_name: str) -> Source:
    """Select the images and boxes of a source that are trained on."""
    if config.convention == "fcos_core" and format_name in fcos_core.CONVENTIONS:
        return fcos_core.CONVENTIONS[format_name].select_trained(source)
    return source


def _empty_split(where: Path, split: Split) -> Problem:
    return Problem("empty split", str(where), "", f"contains no usable image for {split}")


def _describe_skipping(errors: Sequence[Problem]) -> str:
    """Return the effect of data.on_error=skip on images and boxes with errors."""
    kinds = {problem.kind for problem in errors}
    if kinds <= set(_KEPT):
        return "to use them as they are"
    return "to skip unusable images and boxes" + (" and use the others as they are" if kinds & set(_KEPT) else "")


def _options_without(errors: Sequence[Problem], config: DataConfig) -> list[str]:
    """Return the options that leave out masks or keypoints with errors."""
    kinds = {problem.kind for problem in errors}
    broken = [name for name, kinds_of_shape in _SHAPE_ERRORS.items() if kinds & set(kinds_of_shape)]
    return [f"data.{name}=false" for name in broken if not getattr(config, name)]


def _format_problems(title: str, problems: Sequence[Problem]) -> str:
    lines = [f"{title}: {summarize(problems)}", *(str(p) for p in problems[:_MAX_SHOWN])]
    if len(problems) > _MAX_SHOWN:
        lines.append(f"... and {len(problems) - _MAX_SHOWN} more; `fcos doctor --out DIR` lists all")
    return "\n  ".join(lines)
