"""Images for a benchmark: the user's, or generated ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ..data.images import open_rgb
from ..downloads import is_url
from ..errors import ConfigError
from ..inference.paths import expand

MAX_IMAGES = 64
"""Largest number of different images."""
_NUM_GENERATED = 8


def find_images(sources: Sequence[str | Path], *, bit_depth: int, max_pixels: int | None) -> list[Path]:
    """Return the first `MAX_IMAGES` images that files, folders and globs stand for.

    Raises:
        ConfigError: a source is a URL.
        DataError: nothing matches a source, or an image cannot be read.
    """
    for source in sources:
        if is_url(str(source)):
            raise ConfigError(f"{source}: expected image files, folders or globs; download the image first")
    files = [Path(file) for source in sources for file in expand(str(source))][:MAX_IMAGES]
    for file in files:
        open_rgb(file, bit_depth=bit_depth, max_pixels=max_pixels)
    return files


def generate_images(folder: Path, size: tuple[int, int]) -> list[Path]:
    """Write JPEG files of (height, width) `size` with coarse colours and fine noise, the same in every call."""
    height, width = size
    generator = np.random.default_rng(0)
    files = [folder / f"{number}.jpg" for number in range(_NUM_GENERATED)]
    for file in files:
        coarse = Image.fromarray(generator.integers(0, 256, (9, 12, 3), dtype=np.uint8))
        pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
        noisy = (pixels + generator.integers(-12, 13, (height, width, 1), dtype=np.int16)).clip(0, 255)
        Image.fromarray(noisy.astype(np.uint8)).save(file, quality=90)
    return files
