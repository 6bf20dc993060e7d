"""Opening of image files that exceed limits of Pillow: large images, and PNG files with long texts or colour profiles.

Pillow's limits are global variables, which a library must not change for the program that uses it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
from PIL import Image

from ..errors import DataError
from ..files import open_file

T = TypeVar("T")

MAX_PIXELS = 178_956_970
"""Default of data.max_pixels, the limit of Pillow: a small malicious file may decode to gigabytes."""
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
_LONG = 1000  # bytes; shorter compressed data cannot exceed Pillow's limit of a megabyte


def read_image(file: BinaryIO, read: Callable[[Image.Image], T], *, max_pixels: int | None = None) -> T:
    """Open an image file and return `read(image)`.

    Long texts and colour profiles of PNG files are ignored if they exceed Pillow's limits.

    Args:
        file: image file, open for reading.
        read: function of the open image, which may decode it. It is called again if it fails because of such a text.
        max_pixels: largest number of pixels of an image; None: no limit.

    Raises:
        DataError: the image has more pixels.
        Exception: whatever Pillow raises for a damaged file.
    """
    try:
        with _open(file, max_pixels) as image:
            return read(image)
    except ValueError as error:
        if "MAX_TEXT" not in str(error):
            raise
    with _open(_without_long_text(file), max_pixels) as image:
        return read(image)


def read_annotation_image(file: Path, convert: Callable[[Image.Image], np.ndarray] = np.asarray) -> np.ndarray:
    """Return the pixels of an image that is part of the annotations, such as numbers of instances.

    Args:
        file: image file with at most `MAX_PIXELS` pixels.
        convert: function from the open image to its pixels.

    Raises:
        DataError: the file cannot be read. The message starts with its path.
    """
    try:
        with open_file(file) as opened:
            return read_image(opened, convert, max_pixels=MAX_PIXELS)
    except Exception as error:  # Pillow may raise almost any exception for a damaged file
        raise DataError(f"{file}: cannot be read: {str(error) or type(error).__name__}") from None


def _open(file: BinaryIO, max_pixels: int | None) -> Image.Image:
    """Open an image as `PIL.Image.open` does, but with another limit of its size."""
    Image.preinit()  # the common formats first, because others read each file to find out whether they support it
    Image.init()
    file.seek(0)
    prefix = file.read(16)
    for factory, accept in (Image.OPEN[name] for name in Image.ID):
        try:
            is_accepted = accept is None or accept(prefix)
            if not is_accepted or isinstance(is_accepted, str):  # text: why Pillow cannot read this kind of file
                continue
            file.seek(0)
            image = factory(file, "")
        except (SyntaxError, IndexError, TypeError, struct.error):  # another format
            continue
        if max_pixels is not None and image.width * image.height > max_pixels:
            raise DataError(
                f"has {image.width}x{image.height} = {image.width * image.height} pixels, more than"
                f" data.max_pixels={max_pixels}; if the file can be trusted, increase this option"
            )
        return image
    raise Image.UnidentifiedImageError


def _without_long_text(file: BinaryIO) -> BytesIO:
    """Copy a PNG file without long texts and colour profiles."""
    file.seek(0)
    copy = BytesIO()
    copy.write(file.read(len(_PNG_SIGNATURE)))
    while len(header := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", header)
        if kind in _TEXT_CHUNKS and length > _LONG:
            file.seek(length + 4, 1)  # data and checksum
        else:
            copy.write(header + file.read(length + 4))
    copy.seek(0)
    return copy
