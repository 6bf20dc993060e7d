"""Writing of pictures in all common formats."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from ..errors import DataError, WriteError
from ..files import explain_write_errors, replaced
from ..formatting import quote

_FORMATS = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".png": "PNG",
    ".bmp": "BMP",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
"""Pillow's names of the picture formats that are written, by suffix."""
_LARGEST_SIDES = {"JPEG": 65500, "WEBP": 16383}
"""Largest side in pixels, for formats with a limit that pictures reach."""


def is_writable(suffix: str, size: tuple[int, int]) -> bool:
    """Return whether pictures with this suffix are written and can have this (width, height)."""
    image_format = _FORMATS.get(suffix.lower())
    return image_format is not None and max(size) <= _LARGEST_SIDES.get(image_format, max(size))


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture in the format of the file's suffix, in a folder that is created if it is missing.

    Raises:
        DataError: the suffix is not that of a supported format, the picture is too large for the format, or its writer
            fails.
        WriteError: the file or its folder cannot be written.
    """
    image_format = _FORMATS.get(path.suffix.lower())
    if image_format is None:
        raise DataError(f"{path}: expected a file name that ends in {', '.join(_FORMATS)}, found {quote(path.suffix)}")
    if not is_writable(path.suffix, picture.size):
        raise DataError(
            f"{path}: {image_format} pictures have at most {_LARGEST_SIDES[image_format]} pixels per side, this one has"
            f" {picture.width}x{picture.height}; use a name that ends in .png"
        )
    try:
        with explain_write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with replaced(path) as temporary, temporary.open("xb") as file:
                picture.save(file, image_format, quality=92)
    except WriteError:
        raise
    except Exception as error:  # Pillow's writers raise many kinds
        raise DataError(f"{path}: cannot be written: {error}") from None
