"""Catalog of the data sets that the original refers to in DATASETS.TRAIN and DATASETS.TEST, with their paths.

Paths are relative to the folder `datasets`, or to that in the environment variable FCOS_DATASETS. Names and paths are
facts about the original project.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from .text import suggest

log = logging.getLogger(__name__)

ROOT_VARIABLE = "FCOS_DATASETS"


class _Paths(NamedTuple):
    """Paths of a data set, relative to the root folder."""

    annotations: str
    images: str
    image_list: str | None = None


def _coco_paths(images: str, annotations: str) -> _Paths:
    return _Paths(f"coco/annotations/{annotations}.json", f"coco/{images}")


def _voc_paths(year: int, split: str) -> _Paths:
    folder = f"voc/VOC{year}"
    return _Paths(f"{folder}/Annotations", f"{folder}/JPEGImages", f"{folder}/ImageSets/Main/{split}.txt")


def _voc_coco_paths(year: int, split: str) -> _Paths:
    return _Paths(f"voc/VOC{year}/Annotations/pascal_{split}{year}.json", f"voc/VOC{year}/JPEGImages")


_COCO_2014 = {"train": "train2014", "val": "val2014", "minival": "val2014", "valminusminival": "val2014"}
_VOC_SPLITS = [(2007, "train"), (2007, "val"), (2007, "test"), (2012, "train"), (2012, "val"), (2012, "test")]
CATALOG: dict[str, _Paths] = {
    "coco_2017_train": _coco_paths("train2017", "instances_train2017"),
    "coco_2017_val": _coco_paths("val2017", "instances_val2017"),
    "coco_2017_test_dev": _coco_paths("test2017", "image_info_test-dev2017"),
    **{f"coco_2014_{s}": _coco_paths(images, f"instances_{s}2014") for s, images in _COCO_2014.items()},
    **{
        f"keypoints_coco_2014_{s}": _coco_paths(images, f"person_keypoints_{s}2014") for s, images in _COCO_2014.items()
    },
    **{f"voc_{year}_{split}": _voc_paths(year, split) for year, split in _VOC_SPLITS},
    **{f"voc_{year}_{s}_cocostyle": _voc_coco_paths(year, s) for year, s in _VOC_SPLITS if (year, s) != (2012, "test")},
    **{
        f"cityscapes_fine_instanceonly_seg_{split}_cocostyle": _Paths(
            f"cityscapes/annotations/instancesonly_filtered_gtFine_{split}.json", "cityscapes/images"
        )
        for split in ("train", "val", "test")
    },
}


def build_split_section(names: Sequence[str], *, key: str) -> dict[str, Sequence[str | None]]:
    """Build the section `data.train` or `data.val` from names of data sets.

    The section is empty if there are no names, or if a name is not in this catalog. In the latter case a warning says
    how to give other data.

    Args:
        names: names of data sets in the catalog.
        key: option of the original that contains the names, for messages.
    """
    unknown = [name for name in names if name not in CATALOG]
    if unknown:
        hint = suggest(unknown[0], list(CATALOG))
        option = "data.train" if key.endswith("TRAIN") else "data.val"
        log.warning(
            "%s: %s is not a data set of the original%s; give data=DIR, or %s.annotations=FILE and %s.images=DIR",
            *(key, ", ".join(unknown), hint, option, option),
        )
    if unknown or not names:
        return {}
    root = _root()
    entries = [CATALOG[name] for name in names]
    lists = [str(root / entry.image_list) if entry.image_list else None for entry in entries]
    paths: dict[str, Sequence[str | None]] = {
        "annotations": [str(root / entry.annotations) for entry in entries],
        "images": [str(root / entry.images) for entry in entries],
    }
    return {**paths, "image_list": lists} if any(lists) else paths


def has_voc(names: Sequence[str]) -> bool:
    """Return whether one of the data sets in the catalog is read from the XML files of Pascal VOC."""
    return any(CATALOG[name].image_list for name in names if name in CATALOG)


def place_hint(path: Path) -> str:
    """Return advice about a missing file or folder of the catalog for messages; empty for other paths."""
    root = _root()
    if not any(path == root / file for entry in CATALOG.values() for file in entry if file):
        return ""
    return (
        f"; put the data set there, or set the environment variable {ROOT_VARIABLE} to another folder than {root}, or"
        " give data=DIR"
    )


def _root() -> Path:
    return Path(os.environ.get(ROOT_VARIABLE, "datasets"))
