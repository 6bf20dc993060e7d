"""Finding, reading and checking the splits of a data set: from a DataConfig to Annotations."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from ..config import DataConfig, expand_user
from ..config.catalog import place_hint
from ..errors import DataError
from ..formatting import join_some
from . import coco, fcos_core, voc, yolo
from .checks import check_source
from .dataset import Annotations
from .images import OnImage
from .source import Format, Problem, Source, Split, SplitFiles, join_sources, summarize

logger = logging.getLogger(__name__)

FORMATS: dict[str, Format] = {
    "coco": Format(
        layout="train.json or annotations/instances_train2017.json (COCO)",
        annotations="a COCO JSON file",
        find=coco.find,
        accepts=coco.accepts,
        read=coco.read,
    ),
    "yolo": Format(
        layout="data.yaml (YOLO)",
        annotations="a folder of YOLO label files (.txt)",
        find=yolo.find,
        accepts=yolo.accepts,
        read=yolo.read,
    ),
    "voc": Format(
        layout="Annotations and ImageSets/Main (VOC)",
        annotations="a folder of VOC XML files",
        find=voc.find,
        accepts=voc.accepts,
        read=voc.read,
    ),
}
"""Annotation formats by name. If a folder matches several formats, the first one is used."""

SPLITS: tuple[Split, ...] = get_args(Split)
_MAX_SHOWN = 20


def load_annotations(
    config: DataConfig,
    split: Split,
    *,
    class_names: Sequence[str] | None = None,
    category_ids: Sequence[int] | None = None,
) -> Annotations | None:
    """Read and check one split.

    Args:
        config: data options, including the location of the data.
        split: `train`, `val` or `test`.
        class_names: classes in label order, for example those of a checkpoint or of the training split; None:
            `config.classes`, or else the classes in the data.
        category_ids: ids of `class_names`, used for classes that this split does not contain.

    Returns:
        The annotations, or None if the data has no such split.

    Raises:
        DataError: no data is configured or found, the split cannot be read, no image is usable, or the data has errors
            and `config.on_error` is `stop`. The message lists the errors.
    """
    loaded = read_split(config, split, class_names=class_names, category_ids=category_ids, decode=False)
    if loaded is None:
        return None
    annotations, problems = loaded
    errors = [p for p in problems if p.severity == "error"]
    if errors and (config.on_error == "stop" or not len(annotations)):
        skip = ", or set data.on_error=skip to skip unusable images and boxes" if len(annotations) else ""
        remedy = f"Fix {'it' if len(errors) == 1 else 'them'}{skip}."
        raise DataError(f"{_format_problems(f'problems in the {split} split', errors)}\n{remedy}")
    if errors:
        logger.warning("%s", _format_problems(f"skipped in the {split} split", errors))
    warnings = [p for p in problems if p.severity == "warning"]
    for kind in dict.fromkeys(p.kind for p in warnings):
        same_kind = [p for p in warnings if p.kind == kind]
        logger.info("%s split: %s", split, same_kind[0] if len(same_kind) == 1 else summarize(same_kind))
    return annotations


def read_split(
    config: DataConfig,
    split: Split,
    *,
    class_names: Sequence[str] | None,
    category_ids: Sequence[int] | None = None,
    decode: bool,
    on_image: OnImage | None = None,
) -> tuple[Annotations, list[Problem]] | None:
    """Read and check one split; return its annotations and all problems, or None if the data has no such split.

    Args:
        config: data options, including the location of the data.
        split: `train`, `val` or `test`.
        class_names: classes in label order; None: `config.classes`, or else the classes in the data.
        category_ids: ids of `class_names`, used for classes that this split does not contain.
        decode: decode every image. This also finds damage that does not truncate the file.
        on_image: callback for every decoded image.

    Raises:
        DataError: no data is configured or found, or the entire split cannot be read.
    """
    if split not in SPLITS:
        raise DataError(f"unknown split {split!r}; expected {', '.join(SPLITS)}")
    located = locate(config, split)
    if located is None:
        return None
    names = class_names if class_names is not None else config.classes
    if names is not None and len(set(names)) != len(names):
        raise DataError(f"class names must be unique, found {', '.join(names):.200}")
    source = join_sources([_read_source(config, *data_set, names, split) for data_set in located])
    return check_source(
        source,
        class_names=names,
        category_ids=category_ids,
        decode=decode,
        on_image=on_image,
        bit_depth=config.bit_depth,
    )


def _read_source(
    config: DataConfig, format_name: str, files: SplitFiles, class_names: Sequence[str] | None, split: Split
) -> Source:
    if config.yolo_rows != "auto":
        files = replace(files, yolo_rows=config.yolo_rows)
    if config.convention == "fcos_core" and format_name in fcos_core.READERS:
        source = fcos_core.READERS[format_name](files, class_names, split)
    else:
        source = FORMATS[format_name].read(files, class_names)
    if not source.file_names:
        where = files.lists[0] if files.lists else files.annotations or files.images[0]
        source.problems.append(Problem("empty split", str(where), "", f"contains no usable image for {split}"))
    return source


def locate(config: DataConfig, split: Split) -> list[tuple[str, SplitFiles]] | None:
    """Find the formats and the files of a split, from the root folder, the options of the split, or both.

    Args:
        config: data options, including the location of the data.
        split: `train`, `val` or `test`.

    Returns:
        The name of the format and the files of each data set of the split, or None if the data has no such split. COCO
        and VOC data sets can be combined.

    Raises:
        DataError: no data is configured or found.
    """
    data_sets = getattr(config, split).data_sets
    if config.root is None:
        if not any(getattr(config, s).data_sets for s in SPLITS):
            raise DataError("no data: give data=DIR, or data.train.annotations=... and data.train.images=...")
        format_name, files = config.format, None
    else:
        root = expand_user(config.root)
        format_name = _detect_format(root, config.format)
        files = FORMATS[format_name].find(root, split)
    if not data_sets:
        return None if files is None else [(format_name, files)]
    located = [_apply_paths(format_name, files or SplitFiles(None, ()), paths, split) for paths in data_sets]
    names = sorted({form for form, _ in located})
    if len(names) > 1 and "yolo" in names:  # its boxes are fractions of the image size
        raise DataError(
            f"data.{split}: {' and '.join(names)} annotations cannot be combined; convert them to one format"
        )
    return located


def _detect_format(root: Path, data_format: str) -> str:
    if not os.path.exists(root):
        raise DataError(f"{root}: no such data folder")
    for name, form in FORMATS.items():
        if data_format in ("auto", name) and any(form.find(root, split) is not None for split in SPLITS):
            return name
    layouts = ", or ".join(form.layout for form in FORMATS.values())
    raise DataError(
        f"{root}: no {'data set' if data_format == 'auto' else data_format + ' data'} recognised. Expected {layouts},"
        f" found {_describe(root)}. Other layouts: data.train.annotations=... data.train.images=..."
    )


def _recognise(annotations: Path, split: Split) -> str:
    """Return the format of annotations that were given as an option."""
    for name in reversed(FORMATS):  # VOC before YOLO, because folders of XML files may also contain text files
        if FORMATS[name].accepts(annotations):
            return name
    expected = " or ".join(form.annotations for form in FORMATS.values())
    raise DataError(f"data.{split}.annotations={annotations}: expected {expected}, found {_describe(annotations)}")


def _describe(path: Path) -> str:
    """Return the kind of a file, or the contents of a folder."""
    if not path.is_dir():
        return f"a {path.suffix} file" if path.suffix else "a file"
    return join_some(sorted(p.name for p in path.iterdir())) or "an empty folder"


def _apply_paths(
    name: str, files: SplitFiles, paths: tuple[Path | None, Path | None, Path | None], split: Split
) -> tuple[str, SplitFiles]:
    """Return the format and files of a data set, with the paths given in the options replacing those in `files`."""
    annotations, images, image_list = paths
    for path in paths:
        if path is not None and not os.path.exists(path):
            raise DataError(f"data.{split}: {path} does not exist{place_hint(path)}")
    if annotations is not None:
        files = replace(files, annotations=annotations)
        if name == "auto":
            name = _recognise(annotations, split)
        if name == "coco" and images is None:
            files = replace(files, images=coco.image_folders(annotations, split))
    name = "yolo" if name == "auto" else name
    if images is not None:
        files = replace(files, images=(images,))
    if image_list is not None:
        files = replace(files, lists=(image_list,))
    if name == "coco" and files.lists:
        raise DataError(f"data.{split}.image_list: not supported for COCO, whose JSON file already lists the images")
    if name != "yolo" and files.annotations is None:
        raise DataError(f"data.{split}.annotations: expected the {name} annotations of the split, found none")
    if not files.images or (images and not images.is_dir()):
        raise DataError(f"data.{split}.images={images or ''}: expected the image folder")
    return name, files


def _format_problems(title: str, problems: Sequence[Problem]) -> str:
    lines = [f"{title}: {summarize(problems)}", *(str(p) for p in problems[:_MAX_SHOWN])]
    if len(problems) > _MAX_SHOWN:
        lines.append(f"... and {len(problems) - _MAX_SHOWN} more; `fcos doctor --out DIR` lists all")
    return "\n  ".join(lines)
