"""What a reader of an annotation format gives: one split as its files say it, not yet checked against the images.

Shape letters: I images, B boxes.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from ..errors import DataError

Split = Literal["train", "val", "test"]
Severity = Literal["error", "warning"]

SPLIT_NAMES: dict[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""The splits, and what data sets call them."""


@dataclass(frozen=True)
class Problem:
    """Something in a data set that is wrong (`error`: it stops a run) or worth knowing (`warning`).

    Attributes:
        kind: a few words, the same for all problems of the kind ("empty box").
        file: the file to mend.
        id: the place in it ("annotation 17"), or "".
        message: what was found.
        severity: an error stops a run unless data.on_error=skip leaves the image or box out.
    """

    kind: str
    file: str
    id: str
    message: str
    severity: Severity = "error"

    def __str__(self) -> str:
        return f"{self.file}{', ' if self.id else ''}{self.id}: {self.message}"


def summary(problems: Iterable[Problem]) -> str:
    """Count problems by kind: `empty box (3), missing image`."""
    counts = Counter(p.kind for p in problems).most_common()
    return ", ".join(f"{kind} ({count})" if count > 1 else kind for kind, count in counts)


@dataclass(frozen=True)
class SplitFiles:
    """Where the files of one split are.

    Attributes:
        annotations: COCO: the JSON file. VOC: the folder of XML files. YOLO: the folder of label files, or None for
            labels beside the images (`/images/` -> `/labels/`).
        images: the folder that file names are relative to; COCO: several candidates, likeliest first.
        lists: text files naming the images (VOC and YOLO), or folders of images (YOLO); none: every image.
        class_names: the names that the layout declares apart from the annotations (YOLO's data.yaml).
    """

    annotations: Path | None
    images: tuple[Path, ...]
    lists: tuple[Path, ...] = ()
    class_names: tuple[str, ...] | None = None


@dataclass(eq=False)
class Source:
    """One split as read.

    Attributes:
        root: the folder that `file_names` are relative to.
        file_names: I names.
        image_ids: int64 [I].
        sizes: int32 [I, 2] (height, width) as annotated, 0 where not.
        annotation_files: one for all images, or I.
        unit: what the annotation file calls a box ("annotation", "object", "line").
        image_of: int64 [B], position of each box's image.
        boxes: float64 [B, 4] XYXY in pixels, or fractions of the image where `relative`.
        labels: int64 [B], positions in `class_names`.
        crowd: bool [B].
        areas: float64 [B], NaN where not given.
        numbers: int64 [B], id or number of the box in its file.
        class_names: K names.
        category_ids: their K ids.
        relative: whether `boxes` are fractions.
        problems: what could not be read; it is left out of everything above.
    """

    root: Path
    file_names: list[str]
    image_ids: np.ndarray
    sizes: np.ndarray
    annotation_files: list[Path]
    unit: str
    image_of: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray
    numbers: np.ndarray
    class_names: list[str]
    category_ids: list[int]
    relative: bool = False
    problems: list[Problem] = field(default_factory=list)

    def path(self, image: int) -> Path:
        """The file of an image."""
        return self.root / self.file_names[image]

    def annotation_file(self, image: int) -> str:
        """The file that annotates an image."""
        return str(self.annotation_files[image if len(self.annotation_files) > 1 else 0])

    def box_problem(self, box: int, kind: str, message: str, severity: Severity = "error") -> Problem:
        """A problem of one box."""
        file = self.annotation_file(int(self.image_of[box]))
        return Problem(kind, file, f"{self.unit} {self.numbers[box]}", message, severity)


def joined(sources: Sequence[Source]) -> Source:
    """Put the data sets of one split together: their images one after the other, their classes by name.

    Image ids and the numbers of boxes are those of their files; `checked` gives new ones where they repeat.
    """
    first = sources[0]
    if len(sources) == 1:
        return first
    root = Path(os.path.commonpath([os.path.abspath(source.root) for source in sources]))
    folders = [Path(os.path.relpath(source.root, root)) for source in sources]
    ids = _joined_classes(sources)
    labels = {name: label for label, name in enumerate(ids)}
    starts = np.cumsum([0, *(len(source.file_names) for source in sources)])

    def together(column: str) -> Any:
        return np.concatenate([getattr(source, column) for source in sources])

    return Source(
        root=root,
        file_names=[str(folder / name) for s, folder in zip(sources, folders, strict=True) for name in s.file_names],
        image_ids=together("image_ids"),
        sizes=together("sizes"),
        annotation_files=[file for s in sources for file in _one_for_each(s.annotation_files, len(s.file_names))],
        unit=first.unit,
        image_of=np.concatenate([s.image_of + start for s, start in zip(sources, starts, strict=False)]),
        boxes=together("boxes"),
        labels=np.concatenate([_mapped(s.labels, [labels[name] for name in s.class_names]) for s in sources]),
        crowd=together("crowd"),
        areas=together("areas"),
        numbers=together("numbers"),
        class_names=list(ids),
        category_ids=list(ids.values()),
        relative=first.relative,
        problems=[problem for source in sources for problem in source.problems],
    )


def _joined_classes(sources: Sequence[Source]) -> dict[str, int]:
    """The ids of all class names; a later name whose id is taken gets a free one."""
    ids: dict[str, int] = {}
    for source in sources:
        for name, category_id in zip(source.class_names, source.category_ids, strict=True):
            if name not in ids:
                ids[name] = category_id if category_id not in ids.values() else max(ids.values()) + 1
    return ids


def _one_for_each(files: list[Path], count: int) -> list[Path]:
    return files if len(files) == count else files * count


def _mapped(labels: np.ndarray, new_labels: Sequence[int]) -> np.ndarray:
    return np.array(new_labels, dtype=np.int64)[labels]


class Format(NamedTuple):
    """An annotation format.

    Attributes:
        find: (folder, split) -> its files, or None when the folder has no such split in this format.
        read: (files, class names in label order or None for the data's own) -> Source.
    """

    find: Callable[[Path, Split], SplitFiles | None]
    read: Callable[[SplitFiles, Sequence[str] | None], Source]


class Row(NamedTuple):
    """One box of a format with a file for each image."""

    image: int
    number: int
    label: int
    box: Sequence[float]
    crowd: bool = False


def source_from_rows(rows: Sequence[Row], **rest: Any) -> Source:
    """Make a Source from boxes collected one by one; `rest` are its other attributes."""
    count = len(rest["file_names"])
    return Source(
        image_ids=np.arange(1, count + 1, dtype=np.int64),
        image_of=np.array([row.image for row in rows], dtype=np.int64),
        boxes=np.array([row.box for row in rows], dtype=np.float64).reshape(-1, 4),
        labels=np.array([row.label for row in rows], dtype=np.int64),
        crowd=np.array([row.crowd for row in rows], dtype=bool),
        areas=np.full(len(rows), np.nan),
        numbers=np.array([row.number for row in rows], dtype=np.int64),
        **rest,
    )


def read_text(path: Path) -> str:
    """Read a small text file.

    Raises:
        DataError: it is missing or not text.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as text: {error}") from None


def folder_with(folders: Sequence[Path], names: Sequence[str]) -> Path:
    """The folder in which most of the first names exist; the last folder when none has any."""
    found = {folder: sum((folder / name).is_file() for name in names[:20]) for folder in folders}
    return max(folders, key=found.__getitem__) if any(found.values()) else folders[-1]
