"""Conversion of pictures in any form (file, URL, PIL image, array, tensor) to RGB images."""

from __future__ import annotations

from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data.images import describe_failure, load_rgb, open_rgb, to_rgb
from ..data.opening import MAX_PIXELS, read_image
from ..downloads import describe_other_scheme, is_url, read_url
from ..errors import DataError

Picture: TypeAlias = str | Path | Image.Image | np.ndarray | Tensor
"""A path, an http(s) URL, a PIL image, an array ([H, W, 3] RGB, [H, W, 4] RGBA or [H, W] grey) or a tensor ([3, H, W]
RGB, [4, H, W] RGBA or [1, H, W] grey). Arrays and tensors are uint8 or float in 0..1."""

MAX_DOWNLOAD_BYTES = 256 << 20
"""Largest size of a downloaded picture."""
MAX_DOWNLOAD_SECONDS = 60.0
"""Longest duration of the download of a picture."""


def to_picture(
    image: Picture, *, where: str = "image", bit_depth: int = 16, max_pixels: int | None = MAX_PIXELS
) -> Image.Image:
    """Convert a picture in any form to an RGB image.

    Args:
        image: a path, URL, PIL image, array or tensor, see `Picture`.
        where: name used in error messages for a picture without a path or URL.
        bit_depth: number of bits used in images with 16 bits per pixel, see `to_rgb`.
        max_pixels: largest number of pixels of a file; None: no limit.

    Raises:
        DataError: `image` is not a picture, or cannot be read.
    """
    if isinstance(image, str | Path):
        if is_url(str(image)):
            return fetch(str(image), bit_depth=bit_depth, max_pixels=max_pixels)
        if (reason := describe_other_scheme(str(image))) and not Path(image).exists():
            raise DataError(f"{image}: {reason}")
        return open_rgb(image, bit_depth=bit_depth, max_pixels=max_pixels)
    if isinstance(image, Tensor):
        image = _from_tensor(image, where)
    if isinstance(image, np.ndarray):
        image = _from_array(image, where)
    if not isinstance(image, Image.Image):
        raise DataError(f"{where}: expected a path, PIL image, array or tensor, found {type(image).__name__}")
    return _load(image, where, bit_depth)


def _from_array(image: np.ndarray, where: str) -> Image.Image:
    shape = image.shape
    is_float = np.issubdtype(image.dtype, np.floating)
    is_picture = (image.ndim == 2 or shape[2:] in ((1,), (3,), (4,))) and 0 not in shape
    if not is_picture or not (is_float or image.dtype == np.uint8):
        raise DataError(
            f"{where}: expected an array [H, W, 3] (RGB), [H, W, 4] (RGBA) or [H, W] (grey) of uint8 (0..255) or floats"
            f" (0..1), found {list(shape)} of {image.dtype}"
        )
    if is_float:
        image = _to_uint8(image, where, "array")
    return Image.fromarray(np.ascontiguousarray(image[..., 0] if shape[2:] == (1,) else image))


def _from_tensor(image: Tensor, where: str) -> np.ndarray:
    if image.ndim != 3 or image.shape[0] not in (1, 3, 4):
        raise DataError(
            f"{where}: expected a tensor [3, H, W] (RGB), [4, H, W] (RGBA) or [1, H, W] (grey), found"
            f" {list(image.shape)}"
        )
    if not image.is_floating_point() and image.dtype != torch.uint8:
        raise DataError(f"{where}: expected a tensor of uint8 (0..255) or floats (0..1), found {image.dtype}")
    image = image.detach().cpu().permute(1, 2, 0)
    return _to_uint8(image.float().numpy(), where, "tensor") if image.is_floating_point() else image.numpy()


def _to_uint8(image: np.ndarray, where: str, kind: str) -> np.ndarray:
    """Convert floats 0..1 to 0..255."""
    if not ((image >= 0) & (image <= 1)).all():  # also False for NaN
        found = f"{image.min():g}..{image.max():g}"
        raise DataError(f"{where}: expected a float {kind} in 0..1, found {found}; for 0..255, use uint8")
    return (image * 255).round().astype(np.uint8)


def fetch(
    url: str,
    *,
    max_bytes: int = MAX_DOWNLOAD_BYTES,
    max_seconds: float = MAX_DOWNLOAD_SECONDS,
    bit_depth: int = 16,
    max_pixels: int | None = MAX_PIXELS,
) -> Image.Image:
    """Download a picture and convert it to an RGB image.

    Args:
        url: http(s) URL.
        max_bytes: largest size of the file.
        max_seconds: longest duration of the download.
        bit_depth: number of bits used in images with 16 bits per pixel, see `to_rgb`.

    Raises:
        DataError: the download fails or exceeds a limit, or the file is not a picture.
    """
    try:
        content, content_type = read_url(url, max_bytes=max_bytes, max_seconds=max_seconds)
    except OSError as error:
        raise DataError(f"{url}: {error}") from None
    try:
        return read_image(BytesIO(content), partial(load_rgb, bit_depth=bit_depth), max_pixels=max_pixels)
    except Exception as error:  # Pillow can raise almost any exception for a damaged file
        raise DataError(f"{url}: {describe_failure(error)} ({content_type}, {len(content)} bytes)") from None


def _load(image: Image.Image, where: str, bit_depth: int) -> Image.Image:
    """Decode the pixels of an image, which Pillow opens without reading them, and convert it to RGB."""
    try:
        image.load()
        return to_rgb(image, bit_depth=bit_depth)
    except Exception as error:  # as in `open_rgb`
        raise DataError(f"{where}: {describe_failure(error)}") from None
