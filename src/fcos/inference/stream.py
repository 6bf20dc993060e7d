"""Detection on the pictures of a stream: the next ones are read meanwhile, and only a few are in memory."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from PIL import Image

from ..errors import DataError
from .draw import draw
from .frames import Frame
from .prediction import Prediction
from .read_ahead import ReadAhead
from .resized import Resized

Detect = Callable[[Sequence[Frame]], list[Prediction]]
"""Function from pictures to their detections."""


@dataclass(eq=False)
class Detected:
    """A picture with its detections.

    Attributes:
        frame: the picture, or the reason why it could not be read.
        instances: its detections in pixels of the picture; None if it could not be read or processed.
        error: reason for the failure of the picture or of one of its outputs; None: no failure.
        picture: path of the annotated copy; None: there is none.
    """

    frame: Frame
    instances: Prediction | None = None
    error: str | None = None
    picture: Path | None = None

    @property
    def source(self) -> str:
        """Path or URL of the picture or video."""
        return self.frame.source

    @cached_property
    def drawn(self) -> Image.Image:
        """Annotated copy of a picture that has detections."""
        assert self.frame.image is not None
        assert self.instances is not None
        return draw(self.frame.image, self.instances)


def detect_stream(
    detect: Detect,
    frames: Iterator[Frame],
    *,
    batch_size: int,
    resize: Callable[[Image.Image], Resized] | None = None,
) -> Generator[Detected | None]:
    """Detect objects in the pictures of a stream, in order. The frames are read and resized in a thread.

    A batch consists of the pictures that have been read, so that no picture waits for the next one.

    Args:
        detect: function that detects objects.
        frames: pictures. It is closed at the end.
        batch_size: largest number of pictures that are processed at a time, and of those that wait.
        resize: function that resizes a picture for the detector; None: `detect` does it.

    Yields:
        The result of each picture. None: the next picture has not been read, so that waiting may take long.
    """
    ahead = ReadAhead(
        frames if resize is None else _resize_each(frames, resize), batch_size, may_drop=lambda frame: frame.is_live
    )
    try:
        while True:
            if not ahead.is_ready():
                yield None
            batch = ahead.take(batch_size)
            if not batch:
                return
            results = iter(_detect(detect, [frame for frame in batch if frame.image is not None]))
            while batch:  # releases each picture
                frame = batch.pop(0)
                if frame.image is None:
                    yield Detected(frame, error=frame.error)
                    continue
                result = next(results)
                if isinstance(result, str):
                    yield Detected(frame, error=f"{frame.where}: {result}")
                else:
                    yield Detected(replace(frame, resized=None), result)
    finally:
        ahead.close()


def _resize_each(frames: Iterator[Frame], resize: Callable[[Image.Image], Resized]) -> Iterator[Frame]:
    for frame in frames:
        try:
            yield frame if frame.image is None else replace(frame, resized=resize(frame.image))
        except (MemoryError, RuntimeError):
            yield frame  # `detect` resizes it, and reports the error


def _detect(detect: Detect, frames: Sequence[Frame]) -> list[Prediction | str]:
    """Return the detections of every picture, or the reason why a picture cannot be processed."""
    try:
        return [*detect(frames)] if frames else []
    # An exported file of fixed size may be too small; torch raises RuntimeError if it is out of memory.
    except (DataError, MemoryError, RuntimeError) as error:
        image = frames[0].image
        if len(frames) == 1 and image is not None:
            reason = str(error).partition("\n")[0] or "out of memory"
            return [f"cannot be processed ({image.width}x{image.height} pixels): {reason}"]
    return [result for frame in frames for result in _detect(detect, [frame])]
