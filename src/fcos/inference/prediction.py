"""Detections of a picture together with the picture, so that they can be drawn, shown and saved."""

from __future__ import annotations

import io
import logging
import sys
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageShow

from ..errors import DataError
from ..structures import Instances
from .draw import draw
from .inputs import Picture
from .output import save_picture

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, repr=False)
class Prediction(Instances):
    """Detections of one picture, see `Instances`, which also know the picture. A notebook displays them on it.

    Attributes:
        image: path of the picture, which is read again when the detections are drawn, or an RGB copy of the picture
            if it was downloaded or is not a file. None: unknown.
        source: path or URL of the picture; empty for a picture in memory.
    """

    image: Picture | None = None
    source: str = ""

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

        Returns:
            `path` as a `Path`.

        Raises:
            DataError: the picture can no longer be read, or the file cannot be written.
        """
        save_picture(self.plot(), Path(path))
        return Path(path)

    def show(self) -> None:
        """Display the picture with its detections: in the notebook, or else with the image viewer of the system.

        Raises:
            DataError: the picture can no longer be read.
        """
        picture = self.plot()
        if "ipykernel" in sys.modules:
            from IPython.display import display  # pyright: ignore[reportMissingImports] (part of a notebook)

            display(picture)
        elif not ImageShow.show(picture):
            log.warning("no image viewer is installed; write the picture to a file with save(PATH)")

    def _repr_png_(self) -> bytes | None:
        """Return the picture with its detections as PNG, which notebooks display."""
        if self.image is None:
            return None
        file = io.BytesIO()
        self.plot().save(file, "PNG")
        return file.getvalue()
