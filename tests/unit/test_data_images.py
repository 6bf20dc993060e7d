from __future__ import annotations

import math
import re
import threading
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fcos.data import images
from fcos.data.images import ImageCheck, check_image, check_images, image_to_tensor, open_rgb, read_pixels, to_rgb
from fcos.errors import DataError

PIXELS = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[10, 20, 30], [128, 128, 128], [255, 255, 255]]], np.uint8)


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def _read(path: Path) -> Tensor:
    return image_to_tensor(open_rgb(path))


def test_rgb_pixels_are_read_exactly(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "x.png")
    pixels = _read(tmp_path / "x.png")
    assert pixels.dtype == torch.uint8
    assert np.array_equal(pixels.permute(1, 2, 0).numpy(), PIXELS)


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr", "HSV", "LA", "RGBA", "RGBX", "I;16", "I"])
def test_every_image_mode_converts_to_rgb(mode: str) -> None:
    assert to_rgb(Image.new(mode, (5, 4))).mode == "RGB"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int, tmp_path: Path) -> None:
    image = Image.fromarray(np.kron(PIXELS, np.ones((16, 16, 1), np.uint8)))
    image.save(tmp_path / "x.jpg", exif=_exif(orientation), quality=95)
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    upright = image.transpose(undo[orientation]) if orientation in undo else image
    pixels = _read(tmp_path / "x.jpg").permute(1, 2, 0).numpy().astype(int)
    assert pixels.shape == np.asarray(upright).shape
    assert np.abs(pixels - np.asarray(upright)).mean() < 8  # JPEG with subsampled colour
    assert check_image(tmp_path / "x.jpg", decode=False) == (pixels.shape[:2], orientation, None)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pixels_equal_those_of_rotated_jpegs(orientation: int, tmp_path: Path) -> None:
    image = Image.fromarray(np.random.default_rng(orientation).integers(0, 256, (21, 34, 3), dtype=np.uint8))
    image.save(tmp_path / "x.jpg", exif=_exif(orientation))
    assert torch.equal(read_pixels(tmp_path / "x.jpg"), _read(tmp_path / "x.jpg"))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{"progressive": True}, {"quality": 20}, {"restart_marker_rows": 1}, {}])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_pixels_equal_those_of_every_kind_of_jpeg(
    mode: str, options: dict[str, Any], subsampling: int, tmp_path: Path
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((75, 53), Image.Resampling.BICUBIC).convert(mode)
    arguments: dict[str, Any] = options if mode == "L" else {**options, "subsampling": subsampling}
    image.save(tmp_path / "x.jpg", **arguments)
    assert torch.equal(read_pixels(tmp_path / "x.jpg"), _read(tmp_path / "x.jpg"))


@pytest.mark.parametrize("name", ["x.png", "x.webp", "x.bmp", "x.gif", "x.tif"])
def test_pixels_equal_those_of_other_formats(name: str, tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / name)
    assert torch.equal(read_pixels(tmp_path / name), _read(tmp_path / name))


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("reduction", [1, 2, 4, 8])
def test_reduced_pixels_resemble_those_of_the_whole_image(reduction: int, orientation: int, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(64, 192, (10, 14, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((336, 256), Image.Resampling.BICUBIC)
    image.save(tmp_path / "x.jpg", exif=_exif(orientation), quality=95)
    pixels = read_pixels(tmp_path / "x.jpg", reduction=reduction)
    whole = open_rgb(tmp_path / "x.jpg")
    size = whole.width // reduction, whole.height // reduction
    assert tuple(pixels.shape[:0:-1]) == size
    expected = whole.resize(size, Image.Resampling.BOX)  # pixels of both cover the same area
    assert np.abs(pixels.permute(1, 2, 0).numpy().astype(int) - np.asarray(expected)).mean() < 2


@pytest.mark.parametrize(("name", "mode"), [("x.png", "RGB"), ("x.jpg", "CMYK")])
def test_files_that_cannot_be_reduced_are_read_at_full_size(name: str, mode: str, tmp_path: Path) -> None:
    Image.fromarray(PIXELS).resize((60, 40)).convert(mode).save(tmp_path / name)
    assert torch.equal(read_pixels(tmp_path / name, reduction=2), _read(tmp_path / name))


@pytest.mark.parametrize("change", ["truncated", "damaged", "extended", "text", "missing"])
def test_pixels_of_damaged_jpegs_equal_those_of_pillow(change: str, tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(path)
    content = bytearray(path.read_bytes())
    if change == "damaged":
        content[len(content) // 2 : len(content) // 2 + 4] = b"\xff\x00\x12\x34"
    variants = {"truncated": content[:-400], "extended": content + b"more", "text": b"no image"}
    path.write_bytes(variants.get(change, content))
    if change == "missing":
        path.unlink()
    try:
        expected = _read(path)
    except DataError as error:
        with pytest.raises(DataError, match=re.escape(str(error))):
            read_pixels(path)
    else:
        assert torch.equal(read_pixels(path), expected)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_rotated_tiff_matches_the_equivalent_png(mode: str, orientation: int, compression: str, tmp_path: Path) -> None:
    """TIFF is the only format that Pillow rotates while it reads."""
    image = Image.fromarray(np.kron(PIXELS, np.ones((8, 8, 1), np.uint8)))
    image = image.convert("I").convert(mode) if mode == "I;16" else image.convert(mode)
    image.save(tmp_path / "x.tif", exif=_exif(orientation), compression=compression)
    to_rgb(image).save(tmp_path / "x.png", exif=_exif(orientation))
    pixels = _read(tmp_path / "x.png")
    assert torch.equal(_read(tmp_path / "x.tif"), pixels)
    for decode in (False, True):
        assert check_image(tmp_path / "x.tif", decode=decode) == (pixels.shape[1:], orientation, None)


def test_16_bit_pixels_are_scaled_not_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 300, 32768, 65535]], np.uint16)).save(tmp_path / "x.png")
    assert _read(tmp_path / "x.png")[0].tolist() == [[0, 1, 128, 255]]


def test_transparent_pixels_become_white() -> None:
    rgba = Image.new("RGBA", (2, 1), (100, 0, 0, 255))
    rgba.putpixel((1, 0), (100, 0, 0, 0))
    assert [to_rgb(rgba).getpixel((x, 0)) for x in (0, 1)] == [(100, 0, 0), (255, 255, 255)]


def test_transparent_palette_colour_becomes_white(tmp_path: Path) -> None:
    image = Image.fromarray(PIXELS).quantize(6)
    image.save(tmp_path / "x.png", transparency=image.getpixel((0, 0)))
    pixels = _read(tmp_path / "x.png")
    assert pixels[:, 0, 0].tolist() == [255, 255, 255]
    assert pixels[:, 0, 1].tolist() == [0, 255, 0]


def test_cmyk_jpeg_keeps_its_colours(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), (200, 30, 60)).convert("CMYK").save(tmp_path / "x.jpg", quality=95)
    assert _read(tmp_path / "x.jpg")[:, 8, 8].tolist() == pytest.approx([200, 30, 60], abs=4)


def test_to_rgb_does_not_modify_its_argument() -> None:
    image = Image.fromarray(PIXELS)
    image.getexif()[0x0112] = 6
    turned = to_rgb(image)
    assert turned.size == (2, 3)
    assert image.size == (3, 2)


def test_png_orientation_after_the_pixel_data_is_applied(tmp_path: Path) -> None:
    """The standard allows an eXIf chunk after the pixels; Pillow writes it before them."""
    Image.fromarray(PIXELS).save(tmp_path / "x.png", exif=_exif(6))
    content = (tmp_path / "x.png").read_bytes()
    start = content.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(content[start : start + 4])
    chunk, rest = content[start:end], content[:start] + content[end:]
    (tmp_path / "x.png").write_bytes(rest[:-12] + chunk + rest[-12:])
    assert check_image(tmp_path / "x.png", decode=False) == ((3, 2), 6, None)
    assert _read(tmp_path / "x.png").shape == (3, 3, 2)


def test_floating_point_pixels_are_rejected(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(DataError, match=r"x\.tif: .*range .* is unknown"):
        _read(tmp_path / "x.tif")


def test_missing_file_is_named_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jpg: no such file"):
        _read(tmp_path / "none.jpg")


@pytest.mark.parametrize("name", ["x.jpg", "x.png", "x.bmp", "x.webp", "x.gif", "x.tif"])
@pytest.mark.parametrize("decode", [False, True])
def test_truncated_files_are_detected_even_without_decoding(name: str, decode: bool, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    assert check_image(tmp_path / name, decode=decode) == ((64, 64), 1, None)
    (tmp_path / name).write_bytes(whole[: len(whole) * 3 // 4])
    assert check_image(tmp_path / name, decode=decode).problem is not None
    with pytest.raises(DataError, match=name):
        _read(tmp_path / name)


@pytest.mark.parametrize("content", [b"", b"not an image", b"\xff\xd8\xff\xd9", b"\x89PNG\r\n\x1a\n"])
def test_non_image_files_are_reported_as_problems(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(content)
    assert check_image(tmp_path / "x.jpg", decode=False).problem is not None


def test_jpeg_with_trailing_bytes_is_accepted(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "x.jpg")
    with open(tmp_path / "x.jpg", "ab") as file:
        file.write(b"camera trailer")
    assert check_image(tmp_path / "x.jpg", decode=False).problem is None


def test_decoding_detects_damage_inside_a_png(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "x.png")
    content = bytearray((tmp_path / "x.png").read_bytes())
    content[len(content) // 2] ^= 255
    (tmp_path / "x.png").write_bytes(content)
    assert check_image(tmp_path / "x.png", decode=True).problem is not None


@pytest.mark.parametrize("are_fast", [True, False])
def test_check_images_uses_threads_for_slow_files_and_keeps_the_order(
    are_fast: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = []
    for width in range(1, 131):
        paths.append(tmp_path / f"{width}.png")
        Image.new("L", (width, 2)).save(paths[-1])
    threads = set()

    def check(path: Path, **options: Any) -> ImageCheck:
        threads.add(threading.current_thread())
        return check_image(path, **options)

    monkeypatch.setattr(images, "check_image", check)
    monkeypatch.setattr(images, "_FAST", math.inf if are_fast else 0.0)
    assert [check.size for check in check_images(paths, decode=False)] == [(2, width) for width in range(1, 131)]
    assert (threads == {threading.current_thread()}) == are_fast


@pytest.mark.parametrize(("length", "end"), [(3, b"def"), (9, b"abcdef")])
def test_end_of_a_file_is_read_without_moving_its_position(length: int, end: bytes) -> None:
    file = BytesIO(b"abcdef")
    file.seek(2)
    assert images._read_end(file, length) == end
    assert file.tell() == 2


def test_check_images_accepts_no_images() -> None:
    assert list(check_images([], decode=False)) == []


def test_on_image_receives_upright_rgb_images(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).convert("L").save(tmp_path / "x.jpg", exif=_exif(6))
    seen: dict[Path, tuple[str, tuple[int, int]]] = {}

    def look(path: Path, image: Image.Image) -> None:
        seen[path] = image.mode, image.size

    (check,) = check_images([tmp_path / "x.jpg"], decode=True, on_image=look)
    assert check.problem is None
    assert seen == {tmp_path / "x.jpg": ("RGB", (2, 3))}


@pytest.mark.parametrize("decode", [False, True])
def test_image_not_convertible_to_rgb_is_reported_as_a_problem(decode: bool, tmp_path: Path) -> None:
    Image.new("F", (4, 4)).save(tmp_path / "x.tif")
    check = check_image(tmp_path / "x.tif", decode=decode)
    assert check.problem is not None
    assert "the range of floating-point pixels is unknown" in check.problem
