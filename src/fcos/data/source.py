"""Output of the readers of annotation formats: one split as read from its files, not yet checked against the images.

Shape letters: I images, B boxes.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from ..choices import YoloRows
from ..errors import DataError
from ..formatting import printable
from ..keypoints import KeypointLayout
from ..masks import Masks

Split = Literal["train", "val", "test"]
Severity = Literal["error", "warning"]

SPLIT_NAMES: dict[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "validate"),
    "test": ("test", "testing"),
}
"""Splits, with the names that data sets use for them."""
WITHOUT_KEYPOINTS = "; data.keypoints=false reads the data without keypoints"
"""Remedy for keypoints that cannot be read."""


@dataclass(frozen=True)
class Problem:
    """Error or warning about a data set.

    Attributes:
        kind: short name of the kind of problem ("empty box").
        file: file to fix.
        id: position in the file ("annotation 17"), or "".
        message: description of the problem.
        severity: `error` stops a run, unless data.on_error=skip skips the image or box; `warning` does not.
    """

    kind: str
    file: str
    id: str
    message: str
    severity: Severity = "error"

    def __str__(self) -> str:
        return printable(f"{self.file}{', ' if self.id else ''}{self.id}: {self.message}")


def summarize(problems: Iterable[Problem]) -> str:
    """Return the number of problems of each kind as text: `empty box (3), missing image`."""
    counts = Counter(p.kind for p in problems).most_common()
    return ", ".join(f"{kind} ({count})" if count > 1 else kind for kind, count in counts)


class Pose(NamedTuple):
    """Keypoints of the rows of YOLO label files.

    Attributes:
        layout: names and flip pairs of the keypoints.
        length: numbers per keypoint: 2 for x and y, 3 if a visibility follows.
    """

    layout: KeypointLayout
    length: int


@dataclass(frozen=True)
class SplitFiles:
    """Paths of the files of one split.

    Attributes:
        annotations: file (COCO, CVAT, CSV, Hugging Face) or folder of files (VOC, LabelMe, YOLO). YOLO: None for labels
            next to the images (`/images/` -> `/labels/`).
        images: folder that file names are relative to. COCO: several candidates, most likely first.
        lists: text files that list the images (VOC and YOLO), or folders of images (YOLO); empty: all images.
        mask_lists: text files that list the images with masks (VOC); empty: the same as `lists`.
        class_names: class names that are stored apart from the annotations (YOLO's data.yaml).
        yolo_rows: meaning of the rows of YOLO label files (see `yolo_rows.read_rows`).
        subset: split to read from a file that contains several (CVAT, CSV, Hugging Face); None: the whole file.
        masks: True to read the masks of objects.
        keypoints: True to read the keypoints of objects.
        pose: keypoints of the rows of YOLO label files (data.yaml), or the error to raise if they are read; None: the
            rows have none.
    """

    annotations: Path | None
    images: tuple[Path, ...]
    lists: tuple[Path, ...] = ()
    mask_lists: tuple[Path, ...] = ()
    class_names: tuple[str, ...] | None = None
    yolo_rows: YoloRows = "auto"
    subset: Split | None = None
    masks: bool = False
    keypoints: bool = False
    pose: Pose | DataError | None = None


@dataclass(frozen=True, eq=False)
class Keypoints:
    """Keypoints of all boxes of a split.

    Attributes:
        values: float64 [B, P, 3], x, y and visibility (0: not annotated, 1: hidden, 2: visible), in the unit of the
            boxes.
        layout: names of the P keypoints, skeleton and flip pairs.
    """

    values: np.ndarray
    layout: KeypointLayout

    @property
    def names(self) -> tuple[str, ...]:
        """P names."""
        return self.layout.names

    def __getitem__(self, index: Any) -> Keypoints:
        """Select boxes by a mask, indices or a slice."""
        return replace(self, values=self.values[index])


@dataclass(eq=False)
class Source:
    """One split as read from its files.

    Attributes:
        root: folder that `file_names` are relative to.
        file_names: I file names.
        image_ids: int64 [I], image ids.
        sizes: int32 [I, 2] (height, width) as annotated, 0 if not annotated.
        annotation_files: one file for all images, or I files.
        unit: term for a box in the annotation file ("annotation", "object", "line").
        image_of: int64 [B], position of each box's image.
        boxes: float64 [B, 4] XYXY in pixels, or in fractions of the image if `relative`.
        labels: int64 [B], positions in `class_names`.
        crowd: bool [B], True for ignore regions.
        areas: float64 [B], annotated areas, NaN if not annotated.
        numbers: int64 [B], id or number of the box in its file.
        class_names: K class names.
        category_ids: K ids of the classes.
        relative: True if `boxes` are fractions of the image size.
        problems: problems of images and boxes that could not be read. The other attributes do not contain these.
        masks: masks of the boxes, in their unit; None if the format has none, or if they are not asked for.
        keypoints: keypoints of the boxes; None likewise.
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
    masks: Masks | None = None
    keypoints: Keypoints | None = None

    def path(self, image: int) -> Path:
        """Return the path of an image."""
        return self.root / self.file_names[image]

    def annotation_file(self, image: int) -> str:
        """Return the annotation file of an image."""
        return str(self.annotation_files[image if len(self.annotation_files) > 1 else 0])

    def box_problem(self, box: int, kind: str, message: str, severity: Severity = "error") -> Problem:
        """Build the Problem of one box."""
        file = self.annotation_file(int(self.image_of[box]))
        return Problem(kind, file, f"{self.unit} {self.numbers[box]}", message, severity)


def select_boxes(source: Source, index: np.ndarray) -> Source:
    """Return a source with the boxes of an index (mask bool [B], or positions) only."""
    return replace(
        source,
        image_of=source.image_of[index],
        boxes=source.boxes[index],
        labels=source.labels[index],
        crowd=source.crowd[index],
        areas=source.areas[index],
        numbers=source.numbers[index],
        masks=None if source.masks is None else source.masks[index],
        keypoints=None if source.keypoints is None else source.keypoints[index],
    )


def select_images(source: Source, mask: np.ndarray) -> Source:
    """Return the images of a source in `mask`, bool [I], and their boxes; all problems are kept."""
    positions = np.flatnonzero(mask)
    new_position = np.cumsum(mask) - 1
    boxes = np.flatnonzero(mask[source.image_of]) if len(source.image_of) else np.zeros(0, dtype=np.int64)
    files, selected = source.annotation_files, select_boxes(source, boxes)
    return replace(
        selected,
        file_names=[source.file_names[i] for i in positions],
        image_ids=source.image_ids[positions],
        sizes=source.sizes[positions],
        annotation_files=[files[i] for i in positions] if len(files) > 1 else files,
        image_of=new_position[selected.image_of],
    )


def join_sources(sources: Sequence[Source]) -> Source:
    """Concatenate the data sets of one split; classes with the same name are merged.

    Image ids and box numbers stay as in the files; `check_split` replaces repeated ones.

    Raises:
        DataError: the boxes of some data sets are in pixels, those of others in fractions of the image, or their
            keypoints differ.
    """
    first = sources[0]
    if len(sources) == 1:
        return first
    root = Path(os.path.commonpath([os.path.abspath(source.root) for source in sources]))
    folders = [Path(os.path.relpath(source.root, root)) for source in sources]
    ids = merge_classes([(source.class_names, source.category_ids) for source in sources])
    labels = {name: label for label, name in enumerate(ids)}
    starts = np.cumsum([0, *(len(source.file_names) for source in sources)])

    def concatenate(column: str) -> Any:
        return np.concatenate([getattr(source, column) for source in sources])

    return Source(
        root=root,
        file_names=[str(folder / name) for s, folder in zip(sources, folders, strict=True) for name in s.file_names],
        image_ids=concatenate("image_ids"),
        sizes=concatenate("sizes"),
        annotation_files=[file for s in sources for file in _repeat_file(s.annotation_files, len(s.file_names))],
        unit=first.unit if len({source.unit for source in sources}) == 1 else "object",
        image_of=np.concatenate([s.image_of + start for s, start in zip(sources, starts, strict=False)]),
        boxes=concatenate("boxes"),
        labels=np.concatenate([_relabel(s.labels, [labels[name] for name in s.class_names]) for s in sources]),
        crowd=concatenate("crowd"),
        areas=concatenate("areas"),
        numbers=concatenate("numbers"),
        class_names=list(ids),
        category_ids=list(ids.values()),
        relative=_common_unit(sources),
        problems=[problem for source in sources for problem in source.problems],
        masks=_join_masks(sources),
        keypoints=_join_keypoints(sources),
    )


def _join_masks(sources: Sequence[Source]) -> Masks | None:
    if all(source.masks is None for source in sources):
        return None
    return Masks.concatenate(
        [Masks.empty(len(source.boxes)) if source.masks is None else source.masks for source in sources]
    )


def _join_keypoints(sources: Sequence[Source]) -> Keypoints | None:
    """Concatenate the keypoints; boxes of data sets without keypoints get zeros.

    Raises:
        DataError: the names of the keypoints differ.
    """
    given = {source.annotation_file(0): source.keypoints for source in sources if source.keypoints is not None}
    if not given:
        return None
    (first_file, first), *others = given.items()
    for file, other in others:
        if other.names != first.names:
            raise DataError(
                f"data sets that are combined must have the same keypoints, but {first_file} has {len(first.names)}"
                f" ({', '.join(first.names):.200}) and {file} {len(other.names)} ({', '.join(other.names):.200})"
                f"{WITHOUT_KEYPOINTS}"
            )
    rows = [
        source.keypoints.values
        if source.keypoints is not None
        else np.zeros((len(source.boxes), *first.values.shape[1:]))
        for source in sources
    ]
    return replace(first, values=np.concatenate(rows))


def _common_unit(sources: Sequence[Source]) -> bool:
    """Return True if the boxes of all data sets are in fractions of the image, False if they are in pixels.

    A data set without boxes has no unit.

    Raises:
        DataError: the units differ.
    """
    files = {source.relative: source.annotation_file(0) for source in sources if len(source.boxes)}
    if len(files) == 2:
        raise DataError(
            f"the boxes of {files[False]} are in pixels, but those of {files[True]} in fractions of the image size."
            " Data sets that are combined must have the same unit; convert one of the files"
        )
    return next(iter(files), False)


def merge_classes(classes: Iterable[tuple[Sequence[str], Sequence[int]]]) -> dict[str, int]:
    """Return the ids of the class names of several data sets, given the names and ids of each.

    If the id of a later name is taken, the name gets an unused one.
    """
    ids: dict[str, int] = {}
    for names, category_ids in classes:
        for name, category_id in zip(names, category_ids, strict=True):
            if name not in ids:
                is_used = category_id in ids.values()
                ids[name] = unused_ids(ids.values(), 1)[0] if is_used else category_id
    return ids


def unused_ids(used: Collection[int], count: int) -> list[int]:
    """Return `count` ids above the largest used one, or the smallest unused ids if those would exceed int64."""
    first = max(used, default=0) + 1
    if first + count <= 2**63:
        return list(range(first, first + count))
    taken = set(used)
    return list(itertools.islice((i for i in itertools.count(1) if i not in taken), count))


def _repeat_file(files: list[Path], num_images: int) -> list[Path]:
    return files if len(files) == num_images else files * num_images


def _relabel(labels: np.ndarray, new_labels: Sequence[int]) -> np.ndarray:
    return np.array(new_labels, dtype=np.int64)[labels]


class Format(NamedTuple):
    """Annotation format.

    Attributes:
        layout: files that identify data in this format, for messages.
        annotations: annotations of one split in this format, for messages.
        find: function (folder, split) -> SplitFiles, or None if the folder has no such split in this format. The
            files or folders in it name the splits.
        recognize: function (path) -> SplitFiles of a file or folder that is a single data set, or None if it is not in
            this format.
        read: function (files, class names in label order, or None for the names in the data) -> Source.
        reads_lists: True if `read` reads only the images in `SplitFiles.lists`. Otherwise they are selected afterwards.
    """

    layout: str
    annotations: str
    find: Callable[[Path, Split], SplitFiles | None]
    recognize: Callable[[Path], SplitFiles | None]
    read: Callable[[SplitFiles, Sequence[str] | None], Source]
    reads_lists: bool = False
