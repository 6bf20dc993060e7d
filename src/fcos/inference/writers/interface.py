"""Interface of the outputs of `fcos predict`, and the names of the files that they write."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol
from urllib.parse import unquote, urlsplit

from ...files import MAX_NAME_BYTES
from ...formatting import UNPRINTABLE
from ...keypoints import KeypointLayout
from ..frames import Frame
from ..stream import Detected
from ..video import is_remote

if TYPE_CHECKING:
    from ..predictor import Detector


class Classes(NamedTuple):
    """Classes of a detector.

    Attributes:
        names: [K] names.
        ids: [K] category ids.
        keypoint_layout: names and skeleton of the keypoints.
        num_keypoints: number of keypoints that the detector predicts; 0: none.
    """

    names: Sequence[str]
    ids: Sequence[int]
    keypoint_layout: KeypointLayout
    num_keypoints: int = 0

    @classmethod
    def of(cls, detector: Detector) -> Classes:
        """Return the classes of a detector; unnamed ones are called by their numbers."""
        return cls(
            detector.label_names,
            detector.category_ids,
            detector.keypoint_layout,
            detector.config.model.num_predicted_keypoints,
        )


class OpenFiles(NamedTuple):
    """Files that are open during a whole run. They replace earlier ones only if all of them could be opened.

    Attributes:
        completion: functions that complete the files. All are called at the end, also after an error, except after an
            error before the first picture.
        cleanup: contexts of the files, which are left after that, or if an output cannot be opened.
    """

    completion: ExitStack
    cleanup: ExitStack


class Writer(Protocol):
    """Output of detections. Pictures that failed have no detections.

    Raises:
        ConfigError: a package is not installed.
        WriteError: a file cannot be created.
    """

    def __init__(self, out: Path, classes: Classes, files: OpenFiles) -> None: ...

    def write(self, detected: Detected) -> Path | None:
        """Write the detections of a picture, and return the path of its annotated copy if this is one.

        Raises:
            DataError: the picture cannot be written. The next ones are tried nevertheless.
            WriteError: a file cannot be written.
        """
        ...


class Names:
    """Different file names for the pictures of all sources. Upper and lower case are the same.

    Args:
        by_stem: names must differ in more than their suffixes.
    """

    def __init__(self, *, by_stem: bool = False) -> None:
        self._by_stem = by_stem
        self._used: set[str] = set()

    def unique(self, stem: str, suffix: str) -> str:
        """Return a name that was not returned before and that is not too long: with a number if it is taken."""
        number = 1
        while True:
            end = (f"_{number}" if number > 1 else "") + suffix
            stem = shorten(stem, end)
            key = (stem + end).lower().removesuffix(suffix.lower() if self._by_stem else "")
            if key not in self._used:
                self._used.add(key)
                return stem + end
            number += 1


def refuse_folder(path: Path) -> None:
    """Raise `OSError` if there is a folder where a file shall be written, which would fail at the end of the run."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))


def shorten(stem: str, end: str) -> str:
    """Cut off the end of a stem until a file can have the name `stem + end`."""
    while len(os.fsencode(stem + end)) > MAX_NAME_BYTES:
        stem = stem[:-8]
    return stem


def split_name(frame: Frame) -> tuple[str, str]:
    """Return stem and suffix of the file name of a picture; a frame of a video has its number in the stem."""
    if frame.source.isdecimal() and frame.index is not None:
        path = Path(f"camera_{frame.source}")
    else:
        path = Path(unquote(urlsplit(frame.source).path) if is_remote(frame.source) else frame.source)
    stem = UNPRINTABLE.sub("_", path.stem) or "picture"
    return (stem, path.suffix) if frame.index is None else (f"{stem}_{frame.index:06}", ".jpg")


def video_stem(frame: Frame) -> str:
    """Return the stem of the file name of a video."""
    return split_name(frame)[0].rpartition("_")[0]


def class_folder(name: str) -> str:
    """Return a name for the folder of a class: without characters that file systems reserve, never hidden."""
    safe = UNPRINTABLE.sub("_", name)
    for character in '/\\:*?"<>|':
        safe = safe.replace(character, "_")
    return shorten(safe.strip(". ") or "_", "")
