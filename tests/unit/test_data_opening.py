"""Images that exceed limits of Pillow: many pixels, long texts and colour profiles."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_data import config, write_json

from fcos.data import load_annotations
from fcos.data.images import check_image, open_rgb
from fcos.errors import DataError
from fcos.inference.inputs import to_picture

_MEGABYTE = 1 << 20


def _png(chunk: bytes, data: bytes, *, after_pixels: bool = False) -> bytes:
    """Return a PNG of 4x3 red pixels with an additional chunk."""
    buffer = BytesIO()
    Image.new("RGB", (4, 3), "red").save(buffer, "PNG")
    content = buffer.getvalue()
    position = content.index(b"IEND" if after_pixels else b"IDAT") - 4
    extra = struct.pack(">I", len(data)) + chunk + data + struct.pack(">I", zlib.crc32(chunk + data))
    return content[:position] + extra + content[position:]


def _noise(length: int) -> bytes:
    return np.random.default_rng(0).integers(32, 127, length, dtype=np.uint8).tobytes()


_LONG_CHUNKS = {
    "profile": (b"iCCP", b"name\0\0" + zlib.compress(_noise(2 * _MEGABYTE))),
    "repetitive profile": (b"iCCP", b"name\0\0" + zlib.compress(bytes(4 * _MEGABYTE))),
    "compressed text": (b"zTXt", b"name\0\0" + zlib.compress(_noise(2 * _MEGABYTE))),
    "international text": (b"iTXt", b"name\0\1\0\0\0" + zlib.compress(_noise(2 * _MEGABYTE))),
}


@pytest.mark.parametrize("decode", [False, True])
@pytest.mark.parametrize("after_pixels", [False, True])
@pytest.mark.parametrize("name", _LONG_CHUNKS)
def test_long_texts_and_profiles_of_png_files_are_ignored(
    name: str, after_pixels: bool, decode: bool, tmp_path: Path
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(_png(*_LONG_CHUNKS[name], after_pixels=after_pixels))
    check = check_image(path, decode=decode)
    assert (check.size, check.problem) == ((3, 4), None)
    assert open_rgb(path).getpixel((0, 0)) == (255, 0, 0)
    assert to_picture(path).size == (4, 3)


def test_long_plain_text_is_ignored(tmp_path: Path) -> None:
    """Pillow limits the sum of all texts to 64 MiB."""
    path = tmp_path / "a.png"
    path.write_bytes(_png(b"tEXt", b"name\0" + b"x" * (65 * _MEGABYTE)))
    assert open_rgb(path).getpixel((0, 0)) == (255, 0, 0)


def test_short_texts_are_kept(tmp_path: Path) -> None:
    """The orientation may be in a text of the same file."""
    image = Image.new("RGB", (4, 3))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.png", exif=exif)
    content = (tmp_path / "a.png").read_bytes()
    data = _LONG_CHUNKS["profile"][1]
    extra = struct.pack(">I", len(data)) + b"iCCP" + data + struct.pack(">I", zlib.crc32(b"iCCP" + data))
    position = content.index(b"IDAT") - 4
    (tmp_path / "a.png").write_bytes(content[:position] + extra + content[position:])
    assert open_rgb(tmp_path / "a.png").size == (3, 4)


def _large_png(path: Path, width: int, height: int) -> Path:
    """Write a black 1-bit PNG whose pixels take a few kilobytes."""
    rows = zlib.compressobj(9)
    data = b"".join(rows.compress(bytes(1 + width // 8)) for _ in range(height)) + rows.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", data), (b"IEND", b"")]
    content = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    return path


@pytest.mark.parametrize(("width", "height"), [(10000, 10000), (20000, 10000)])
def test_size_of_large_images_is_read_without_warning(width: int, height: int, tmp_path: Path) -> None:
    path = _large_png(tmp_path / "a.png", width, height)
    check = check_image(path, decode=False, max_pixels=None)
    assert (check.size, check.problem) == ((height, width), None)


def test_image_with_too_many_pixels_names_the_option(tmp_path: Path) -> None:
    _large_png(tmp_path / "images/a.png", 800, 1000)
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 30, 30]}
    image = {"id": 1, "file_name": "a.png"}
    write_json(
        tmp_path / "train.json", {"images": [image], "annotations": [box], "categories": [{"id": 1, "name": "cat"}]}
    )
    with pytest.raises(DataError, match=r"a\.png.*has 800x1000 = 800000 pixels, more than data\.max_pixels=700000"):
        load_annotations(config(tmp_path, max_pixels=700_000), "train")
    annotations = load_annotations(config(tmp_path, max_pixels=800_000), "train")
    assert annotations is not None
    assert annotations.sizes.tolist() == [[1000, 800]]


def test_limit_of_the_detector_holds_for_pictures(tmp_path: Path) -> None:
    path = _large_png(tmp_path / "a.png", 800, 1000)
    with pytest.raises(DataError, match=r"a\.png: has 800x1000 .* data\.max_pixels=1000"):
        to_picture(path, max_pixels=1000)
    assert to_picture(path, max_pixels=800_000).size == (800, 1000)


def test_default_limit_rejects_decompression_bombs(tmp_path: Path) -> None:
    path = _large_png(tmp_path / "a.png", 20000, 10000)
    with pytest.raises(DataError, match=r"has 20000x10000 = 200000000 pixels, more than data\.max_pixels=178956970"):
        to_picture(path)
    assert "data.max_pixels=178956970" in (check_image(path, decode=False).problem or "")
