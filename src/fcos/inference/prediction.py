"""Detections of a picture together with the picture, so that they can be drawn, shown and saved."""

from __future__ import annotations

import io
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageShow

from ..config.arguments import check_source
from ..errors import DataError, FCOSError
from ..structures import Instances
from .draw import draw
from .inputs import Picture
from .output import save_picture


def _has_display() -> bool:
    """Return whether the system can show windows. On Linux, image viewers start without a display, and fail later."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


@dataclass(frozen=True, eq=False, repr=False)
class Prediction(Instances):
    """Detections of one picture, see `Instances`, which also know the picture. A notebook displays them on it.

    Attributes:
        image: path of the picture, which is read again when the detections are drawn, or an RGB copy of the picture
            if it was downloaded or is not a file. None: unknown.
        source: path or URL of the picture; empty for a picture in memory.
        num_below: number of detections that were left out because of scores below their threshold.
        best_below: highest score of those detections; 0 if there are none.
        frame: position of the frame in the video, from 0; None for a picture.
        time: seconds since the start of the video; None for a picture.
    """

    image: Picture | None = None
    source: str = ""
    num_below: int = 0
    best_below: float = 0.0
    frame: int | None = None
    time: float | None = None

    def plot(self, *, scores: bool = True, scale: int | None = None) -> Image.Image:
        """Draw the detections onto a copy of the picture.

        Args:
            scores: write the score after the name.
            scale: whole-number factor by which the picture is enlarged first, see `fcos.draw`.

        Returns:
            RGB picture.

        Raises:
            DataError: the picture can no longer be read, or is unknown.
        """
        if self.image is None:
            raise DataError("the picture of these detections is unknown; use fcos.draw(PICTURE, detections)")
        return draw(self.image, self, scores=scores, scale=scale)

    def save(self, path: str | Path) -> Path:
        """Write the picture with its detections to a file in the format of its suffix, such as .jpg or .png.

        Args:
            path: path of the file; missing folders are created.

        Returns:
            `path` as a `Path`.

        Raises:
            ConfigError: `path` is not a path.
            DataError: `path` is the picture itself, the picture can no longer be read, or the suffix is not that of a
                supported format.
            WriteError: the file cannot be written.
        """
        path = Path(check_source(path, name="path"))
        if isinstance(self.image, str | Path) and os.path.realpath(path) == os.path.realpath(self.image):
            raise DataError(f"{path}: this is the picture itself, which would be overwritten; give another name")
        save_picture(self.plot(), path)
        return path

    def show(self) -> None:
        """Display the picture with its detections: in the notebook, or else with the image viewer of the system.

        Raises:
            DataError: the picture can no longer be read.
            FCOSError: this machine has no image viewer, or no display.
        """
        picture = self.plot()
        if "ipykernel" in sys.modules:
            from IPython.display import display  # pyright: ignore[reportMissingImports] (part of a notebook)

            display(picture)
        elif not (_has_display() and ImageShow.show(picture)):
            raise FCOSError("show: this machine has no display or no image viewer; write the picture with save(PATH)")

    def _repr_png_(self) -> bytes | None:
        """Return the picture with its detections as PNG, which notebooks display."""
        if self.image is None:
            return None
        file = io.BytesIO()
        self.plot().save(file, "PNG")
        return file.getvalue()
