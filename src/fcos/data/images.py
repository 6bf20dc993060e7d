"""Decoding of image files to RGB pixels, and a check that finds unreadable files before a run needs them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import BinaryIO, NamedTuple

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch import Tensor

from ..errors import DataError
from ..files import open_file
from .opening import MAX_PIXELS, read_image
from .orientation import apply_orientation, orient_pixels, read_orientation, swaps_sides

OnImage = Callable[[Path, Image.Image], None]
"""Callback with the path and the decoded RGB image; may be called from any thread."""


def open_rgb(path: str | Path, *, bit_depth: int = 16, max_pixels: int | None = None) -> Image.Image:
    """Read an image file as an RGB image, with its EXIF orientation applied.

    Args:
        path: image file.
        bit_depth: number of bits used in images with 16 bits per pixel, see `to_rgb`.
        max_pixels: largest number of pixels of the image; None: no limit, for files that were checked before.

    Raises:
        DataError: the file is missing, truncated, not an image, or too large.
    """
    try:
        # Passes an open file, because Pillow memory-maps rotated TIFFs wrongly if it gets a path.
        with open_file(path) as file:
            return read_image(file, partial(load_rgb, bit_depth=bit_depth), max_pixels=max_pixels)
    except Exception as error:  # Pillow may raise almost any exception for a damaged file
        raise DataError(f"{path}: {describe_failure(error)}") from None


def read_pixels(path: str | Path, *, bit_depth: int = 16, reduction: int | None = None) -> Tensor:
    """Read the pixels of an image file; they equal those of `open_rgb`, but most JPEG files are decoded faster.

    Args:
        path: image file that was checked before.
        bit_depth: see `open_rgb`.
        reduction: 1, 2, 4 or 8: decode JPEG files approximately, with their sides divided by this number, of which
            they are multiples; None: exactly.

    Returns:
        uint8 [3, H, W], a channels-last view; at full size if the file cannot be reduced.

    Raises:
        DataError: see `open_rgb`.
    """

    def decode(image: Image.Image) -> Tensor:
        if image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L"):
            try:
                pixels = _decode_jpeg(content, image.size, reduction)
            except ValueError:  # Pillow decodes some damaged files, and describes the others better
                pass
            else:
                return torch.from_numpy(orient_pixels(pixels, read_orientation(image))).permute(2, 0, 1)
        return image_to_tensor(load_rgb(image, bit_depth=bit_depth))

    try:
        with open_file(path) as file:
            content = file.read()
        return read_image(BytesIO(content), decode)
    except Exception as error:  # any exception, as in open_rgb
        raise DataError(f"{path}: {describe_failure(error)}") from None


def _decode_jpeg(content: bytes, size: tuple[int, int], reduction: int | None) -> np.ndarray:
    """Decode a JPEG file of (width, height), see `read_pixels`; raise a ValueError if it is damaged."""
    if reduction is None:
        return simplejpeg.decode_jpeg(content, "RGB")
    width, height = (side // reduction for side in size)
    return simplejpeg.decode_jpeg(content, "RGB", fastdct=True, fastupsample=True, min_height=height, min_width=width)


def size_of(image: Image.Image | Tensor) -> tuple[int, int]:
    """Return (height, width) of an image or of its pixels [3, H, W]."""
    return (image.shape[1], image.shape[2]) if isinstance(image, Tensor) else (image.height, image.width)


def load_rgb(image: Image.Image, *, bit_depth: int = 16) -> Image.Image:
    """Decode an open image file to RGB, see `to_rgb`."""
    image.load()
    return to_rgb(image, bit_depth=bit_depth)


def to_rgb(image: Image.Image, *, bit_depth: int = 16) -> Image.Image:
    """Convert an image of any mode to RGB, as a viewer would show it.

    The EXIF orientation is applied. 16-bit values are scaled by 1/256 instead of being clipped. Transparent pixels are
    blended onto white. Pillow converts grey, palette, CMYK and the other modes. Only the first frame is used.

    Args:
        image: image of any mode.
        bit_depth: number of bits used in images with 16 bits per pixel, 8 to 16: with 12, as in the files of many
            cameras and scanners, 4095 is white, and larger values are too.

    Raises:
        DataError: the image has floating-point pixels, whose range is unknown.
    """
    image = apply_orientation(image)
    if image.mode == "F":
        raise DataError("the range of floating-point pixels is unknown; convert the image to 8 or 16 bits")
    if image.mode.startswith("I"):  # I;16, I;16B, ...: 16 bits; I: 32 bits, also used by Pillow for 16-bit files
        values = np.asarray(image).clip(0, 2**bit_depth - 1)
        image = Image.fromarray((values // 2 ** (bit_depth - 8)).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def largest_value(path: str | Path) -> int | None:
    """Return the largest value of an image with 16 bits per pixel; None for other images and unreadable files."""
    try:
        with open_file(path) as file:
            return read_image(file, lambda image: int(np.asarray(image).max()) if image.mode.startswith("I") else None)
    except Exception:  # any exception, as in open_rgb
        return None


def image_to_tensor(image: Image.Image) -> Tensor:
    """Return the pixels of an RGB image, uint8 [3, H, W], a channels-last view."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def tensor_to_image(pixels: Tensor) -> Image.Image:
    """Return the image of pixels, uint8 [3, H, W] RGB."""
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def describe_failure(error: Exception) -> str:
    """Return a short reason why an image could not be read."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, DataError):
        return str(error)
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image, or the start of the file is damaged"
    reason = error.strerror if isinstance(error, OSError) else None  # without the path, which the message contains
    return f"cannot be read: {reason or error or type(error).__name__}"


_CHUNK = 16  # images that a thread checks at once; few, so that progress is reported for large images, too
_FAST = 0.5e-3  # seconds, the median of a chunk; a file that is not decoded takes 0.1e-3, one on a network much longer


class ImageCheck(NamedTuple):
    """Result of `check_image`.

    Attributes:
        size: (height, width) as displayed, (0, 0) if there is a problem.
        orientation: EXIF orientation, 1 to 8.
        problem: reason why the image cannot be read, or None.
    """

    size: tuple[int, int]
    orientation: int = 1
    problem: str | None = None


def check_image(
    path: str | Path,
    *,
    decode: bool,
    on_image: OnImage | None = None,
    max_pixels: int | None = MAX_PIXELS,
    bit_depth: int = 16,
) -> ImageCheck:
    """Read the size of an image and check that the file is complete.

    Args:
        path: image file.
        decode: decode every image. If False, JPEG and PNG files with a valid start and end marker are accepted without
            decoding, which is many times faster and still finds every truncated file. Other files are decoded.
        on_image: callback for the RGB image, called if the file is decoded.
        max_pixels: largest number of pixels of the image; None: no limit.
        bit_depth: number of bits used in images with 16 bits per pixel, see `to_rgb`.
    """

    def check(image: Image.Image) -> ImageCheck:
        orientation = _read_orientation(image, file)
        width, height = reversed(image.size) if swaps_sides(orientation) else image.size
        if decode or not _has_end_marker(image, file):
            rgb = load_rgb(image, bit_depth=bit_depth)
            width, height = rgb.size  # on loading, Pillow applies the EXIF rotation to TIFFs only
            if on_image is not None:
                on_image(Path(path), rgb)
        return ImageCheck((height, width), orientation)

    try:
        with open_file(path) as file:  # open file as in open_rgb
            return read_image(file, check, max_pixels=max_pixels)
    except Exception as error:  # any exception, as in open_rgb
        return ImageCheck((0, 0), problem=describe_failure(error))


def check_images(
    paths: Sequence[Path],
    *,
    decode: bool,
    on_image: OnImage | None = None,
    max_pixels: int | None = MAX_PIXELS,
    bit_depth: int = 16,
) -> Iterator[ImageCheck]:
    """Check many files; yield the results in order. The options are passed to `check_image`.

    Threads decode files at the same time, or wait for a network at the same time. As long as files need neither, they
    are checked without threads, which is faster because nearly all of the work is done by the interpreter.
    """
    check = partial(check_image, decode=decode, on_image=on_image, max_pixels=max_pixels, bit_depth=bit_depth)
    chunks = [paths[i : i + _CHUNK] for i in range(0, len(paths), _CHUNK)]
    num_checked = 0
    for chunk in [] if decode else chunks:
        durations = []
        for path in chunk:
            started = perf_counter()
            result = check(path)
            durations.append(perf_counter() - started)
            yield result
        num_checked += 1
        if median(durations) > _FAST:
            break

    def check_chunk(chunk: Sequence[Path]) -> list[ImageCheck]:
        return list(map(check, chunk))

    with ThreadPoolExecutor(max_workers=min(16, 2 * (os.cpu_count() or 1))) as pool:
        for checks in pool.map(check_chunk, chunks[num_checked:]):
            yield from checks


def _read_orientation(image: Image.Image, file: BinaryIO) -> int:
    # A PNG may store it after the pixels. To find it, Pillow would decode the pixels of every file.
    if image.format == "PNG" and not any("exif" in str(key).lower() or "xmp" in str(key).lower() for key in image.info):
        end = _read_end(file, 1 << 16)
        if not any(keyword in end for keyword in (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")):
            return 1
        image.load()
    return read_orientation(image)


def _has_end_marker(image: Image.Image, file: BinaryIO) -> bool:
    marker = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}.get(image.format or "")
    return marker is not None and _read_end(file, len(marker)) == marker


def _read_end(file: BinaryIO, length: int) -> bytes:
    """Return the last `length` bytes of a file, and leave its position as it is."""
    position = file.tell()
    file.seek(-min(length, file.seek(0, os.SEEK_END)), os.SEEK_END)
    end = file.read()
    file.seek(position)
    return end
