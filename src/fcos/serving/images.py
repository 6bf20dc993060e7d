"""Decoding of images that clients send, and encoding of annotated images."""

from __future__ import annotations

from io import BytesIO
from typing import Literal

from PIL import Image

from ..data.images import describe_failure, load_rgb
from ..data.opening import read_image
from ..inference.output import is_writable
from .problems import Problem

FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""Formats that are decoded. Pillow knows others, of which some start programs (EPS) or are rarely tested."""
Form = Literal["png", "jpeg"]


def decode(data: bytes, *, where: str, bit_depth: int, max_pixels: int) -> Image.Image:
    """Decode an image file to RGB, as `fcos predict` does.

    Args:
        data: content of the file.
        where: name of the image for messages.
        bit_depth: number of bits used in images with 16 bits per pixel, see `to_rgb`.
        max_pixels: largest number of pixels.

    Raises:
        Problem: the format is not accepted (415), the image has too many pixels (413), is damaged (422), or needs too
            much memory (503).
    """

    def read(image: Image.Image) -> Image.Image:
        if image.format not in FORMATS:
            raise Problem(415, f"{where}: {image.format} files are not accepted; send {', '.join(FORMATS)}")
        if image.width * image.height > max_pixels:
            raise Problem(
                413, f"{where}: has {image.width}x{image.height} pixels; this server accepts at most {max_pixels:,}"
            )
        return load_rgb(image, bit_depth=bit_depth)

    try:
        return read_image(BytesIO(data), read)
    except Problem:
        raise
    except MemoryError:
        raise Problem(503, f"{where}: not enough memory at the moment", {"Retry-After": "5"}) from None
    except Exception as error:  # Pillow can raise almost any exception for a damaged file
        raise Problem(422, f"{where}: {describe_failure(error)}") from None


def encode(picture: Image.Image, form: Form) -> bytes:
    """Encode an image.

    Raises:
        Problem: JPEG files cannot have so many pixels per side (422).
    """
    if not is_writable(f".{form}", picture.size):
        raise Problem(422, f"format: {picture.width}x{picture.height} pixels are too many for {form}; use png")
    file = BytesIO()
    picture.save(file, form.upper(), quality=92)
    return file.getvalue()
