"""Writing of result files: formats of pictures, and files that appear under their name only when they are complete."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from PIL import Image

from ..errors import DataError

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
    """Write a picture in the format of the file's suffix.

    Raises:
        DataError: the suffix is not that of a supported format, the picture is too large for the format, or the file
            cannot be written.
    """
    if not is_writable(path.suffix, picture.size):
        expected = f"one of the suffixes {', '.join(_FORMATS)}"
        if path.suffix.lower() in _FORMATS:
            expected = ".png: the format has no pictures as large as this one"
        raise DataError(f"{path}: expected {expected}; this one has {picture.width}x{picture.height} pixels")
    try:
        with replaced(path) as temporary, temporary.open("xb") as file:
            picture.save(file, _FORMATS[path.suffix.lower()], quality=92)
    except Exception as error:  # Pillow's writers raise many kinds
        raise _write_error(path, error) from None


def save_text(text: str, path: Path) -> None:
    """Write a UTF-8 text file.

    Raises:
        DataError: the file cannot be written.
    """
    try:
        with replaced(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise _write_error(path, error) from None


def _write_error(path: Path, error: Exception) -> DataError:
    reason = isinstance(error, OSError) and error.strerror  # without the name of the temporary file
    return DataError(f"{path}: cannot be written: {reason or error}")


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file, which replaces `path` at the end if there was no error.

    A link at `path` is replaced, too, so nothing is written to the file that it points to.
    """
    temporary = path.with_name(f".{uuid4().hex}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
