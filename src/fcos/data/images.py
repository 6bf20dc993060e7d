"""Image files to RGB pixels, and the check that finds files which cannot be read before a run needs them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from ..errors import DataError

OnImage = Callable[[Path, Image.Image], None]
"""Is shown the path and the decoded pixels of an image, in any thread."""
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".jp2", ".avif")


def open_rgb(path: str | Path) -> Image.Image:
    """Read an image file as an RGB image, rotated as its EXIF orientation says.

    Raises:
        DataError: the file is missing, truncated or no image.
    """
    try:
        with open(path, "rb") as file, Image.open(file) as image:  # of a path, Pillow maps turned TIFFs wrongly
            image.load()
            return to_rgb(image)
    except Exception as error:  # Pillow lets almost any exception escape from a damaged file
        raise DataError(f"{path}: {describe_failure(error)}") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB, as a viewer would show it.

    The EXIF orientation is applied. 16-bit values are scaled by 1/256, not clipped. Transparent pixels are laid on
    white. Grey, palette, CMYK and the other modes are converted by Pillow; of several frames the first is taken.

    Raises:
        DataError: floating-point images, whose range is unknown.
    """
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise DataError("floating-point pixels have no known range; convert the image to 8 or 16 bits")
    if image.mode.startswith("I"):  # I;16, I;16B, ...: 16 bits; I: 32 bits, which Pillow uses for 16-bit files, too
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 256).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def image_to_tensor(image: Image.Image) -> Tensor:
    """The pixels of an RGB image as uint8 [3, H, W] (a channels-last view, made contiguous where it is copied next)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def describe_failure(error: Exception) -> str:
    """Why an image could not be read, in a few words."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image, or damaged at the start"
    return f"cannot be read: {error or type(error).__name__}"


class ImageCheck(NamedTuple):
    """What `check_image` found: (height, width) as displayed, whether EXIF turns it by 90 degrees, or a problem."""

    size: tuple[int, int]
    turned: bool = False
    problem: str | None = None


def check_image(path: str | Path, *, decode: bool, on_image: OnImage | None = None) -> ImageCheck:
    """Read an image's size and see whether the file is whole.

    Args:
        path: the file.
        decode: decode every pixel. Otherwise JPEG and PNG files that begin and end as they must are believed, which
            is many times faster and finds every truncated file; what does not end so, and other formats, are
            decoded, too.
        on_image: is shown the image as RGB; only with `decode`.
    """
    try:
        with open(path, "rb") as file, Image.open(file) as image:  # as in open_rgb
            turned = _orientation(image, path) in (5, 6, 7, 8)
            width, height = reversed(image.size) if turned else image.size
            if decode or not _ends_well(image, path):
                image.load()
                shown = to_rgb(image)
                width, height = shown.size  # Pillow turns a TIFF itself, and others not
                if on_image is not None:
                    on_image(Path(path), shown)
    except Exception as error:  # as in open_rgb
        return ImageCheck((0, 0), problem=describe_failure(error))
    return ImageCheck((height, width), turned)


def check_images(paths: Sequence[Path], *, decode: bool, on_image: OnImage | None = None) -> Iterator[ImageCheck]:
    """Check many files in threads, in order; arguments as for `check_image`."""

    def check_some(some: Sequence[Path]) -> list[ImageCheck]:
        return [check_image(path, decode=decode, on_image=on_image) for path in some]

    with ThreadPoolExecutor(max_workers=min(16, 2 * (os.cpu_count() or 1))) as pool:
        for checks in pool.map(check_some, [paths[i : i + 64] for i in range(0, len(paths), 64)]):
            yield from checks


def _orientation(image: Image.Image, path: str | Path) -> int:
    # In a PNG it may stand behind the pixels: Pillow would decode every file in search of it.
    if image.format == "PNG" and not any("exif" in str(key).lower() or "xmp" in str(key).lower() for key in image.info):
        end = _end(path, 1 << 16)
        if b"eXIf" not in end and b"XML:com.adobe.xmp" not in end:
            return 1
    return image.getexif().get(ExifTags.Base.Orientation, 1)


def _ends_well(image: Image.Image, path: str | Path) -> bool:
    marker = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}.get(image.format or "")
    return marker is not None and _end(path, len(marker)) == marker


def _end(path: str | Path, length: int) -> bytes:
    """The last bytes of a file."""
    with open(path, "rb") as file:
        file.seek(-min(length, file.seek(0, os.SEEK_END)), os.SEEK_END)
        return file.read()
