"""Detection as a function of columns, for Ray, Spark, Daft and other engines that process tables in parallel."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..config import DataConfig
from ..data.images import describe_failure, load_rgb
from ..data.opening import read_image
from ..errors import DataError
from .frames import Frame, to_frame
from .stream import Detected
from .tiling import Tiling
from .writers import Classes
from .writers.tables import PARQUET_COLUMNS, to_rows, to_unicode

if TYPE_CHECKING:
    from .predictor import Detector

WORKER_COLUMNS = (*PARQUET_COLUMNS, "error")
"""Columns that `DetectionWorker` returns: those of `fcos predict --save parquet`, and the reason of a failure."""


class DetectionWorker:
    """Function from a column of pictures to columns of detections.

    Objects can be pickled. Each loads its detector at the first call, once in each process that receives it:

        worker = DetectionWorker(partial(fcos.load, "runs/cells/weights/best.pt"), threshold=0.4)
        columns = worker({"image": np.array([b"...", b"..."], dtype=object)})

    Args:
        load: function that returns the detector. It is pickled with this object, so that a function in a module or a
            `functools.partial` of one is suitable.
        threshold: score threshold in 0..1, or thresholds by class name; None uses the per-class thresholds, see
            `Detector.predict`.
        tiling: tiles of large pictures; None: no tiles.
        threads: threads of torch in a process; None: torch decides. One is best where a process runs per core.
    """

    def __init__(
        self,
        load: Callable[[], Detector],
        *,
        threshold: float | Mapping[str, float] | None = None,
        tiling: Tiling | None = None,
        threads: int | None = 1,
    ) -> None:
        self._load = load
        self.threshold = threshold
        self._tiling = tiling
        self._threads = threads

    def __getstate__(self) -> dict[str, Any]:
        """Return the attributes without the detector, which another process loads itself."""
        return {name: value for name, value in vars(self).items() if name != "detector"}

    @property
    def options(self) -> dict[str, Any]:
        """Options that change the result, for comparison with those of another run."""
        tiling = self._tiling
        return {"threshold": self.threshold, "tiling": None if tiling is None else [tiling.size, tiling.overlap]}

    @cached_property
    def detector(self) -> Detector:
        """The detector, loaded at the first use."""
        if self._threads is not None:
            torch.set_num_threads(self._threads)
        return self._load()

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Detect objects in a batch of pictures. A picture that cannot be read does not stop the others.

        Args:
            batch: column `image`, [N] objects: encoded image files (bytes), paths or URLs (str). Optional column
                `filename`, [N] str: names in the result; default: the paths, and empty for bytes. Other columns are
                ignored.

        Returns:
            `WORKER_COLUMNS`, [M] objects each, where None means that there is no value: a row for every detection in
            the order of the pictures, a row without box for a picture without detections, and a row with `error` for a
            picture that cannot be read or processed. Boxes are continuous pixels of the picture.

        Raises:
            DataError: there is no column `image`.
            ConfigError: the threshold is out of range, or a class is unknown.
            WeightsError: the detector is untrained.
        """
        if "image" not in batch:
            raise DataError(f"expected a column image (encoded image files or paths), found {', '.join(batch)}")
        detector, images = self.detector, batch["image"]
        names = batch.get("filename", [None] * len(images))
        results = detector.detect_stream(
            _read(images, names, detector.config.data), threshold=self.threshold, tiling=self._tiling
        )
        classes = Classes.of(detector)
        rows = [row for result in results if result is not None for row in _to_error_rows(result, classes)]
        return {column: _to_array([row[column] for row in rows]) for column in WORKER_COLUMNS}


def _read(images: Sequence[Any] | np.ndarray, names: Sequence[Any] | np.ndarray, data: DataConfig) -> Iterator[Frame]:
    for number, (image, name) in enumerate(zip(images, names, strict=True)):
        if isinstance(image, str):
            frame = to_frame(image, data, where=image)
            # Its file could be read again under its path only, which the result need not contain.
            yield frame if name is None else Frame(str(name), frame.image, frame.error)
        else:
            yield _decode(image, "" if name is None else str(name), data, where=f"image {number}")


def _decode(content: Any, name: str, data: DataConfig, *, where: str) -> Frame:
    try:
        if not isinstance(content, bytes | bytearray | memoryview):
            raise DataError(f"expected an encoded image file or a path, found {type(content).__name__}")
        read = partial(load_rgb, bit_depth=data.bit_depth)
        return Frame(name, read_image(BytesIO(content), read, max_pixels=data.max_pixels))
    except Exception as error:  # Pillow can raise almost any exception for a damaged file
        return Frame(name, error=f"{name or where}: {describe_failure(error)}")


def _to_error_rows(detected: Detected, classes: Classes) -> Iterator[dict[str, Any]]:
    """Yield the rows of a picture with a column `error`, also for one that failed."""
    blank = dict.fromkeys(WORKER_COLUMNS)
    error = None if detected.error is None else to_unicode(detected.error)
    for row in list(to_rows(detected, classes)) or [{"filename": detected.source}]:
        yield blank | row | {"filename": to_unicode(row["filename"]), "error": error}


def _to_array(values: list[Any]) -> np.ndarray:
    """Return an array of objects; numpy would make a matrix of keypoints."""
    array = np.empty(len(values), dtype=object)
    for i, value in enumerate(values):
        array[i] = value
    return array
