"""Pictures from URLs in all common formats, and every way in which a download can fail."""

from __future__ import annotations

import gzip
import io
import re
import socket
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image
from raw_server import raw_server, response

from fcos import DataError, WeightsError
from fcos.inference.inputs import fetch, to_picture
from fcos.inference.paths import expand
from fcos.interop.checkpoints import load_checkpoint

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def direct_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")


def encode(image_format: str, mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(file, image_format)
    return file.getvalue()


@pytest.mark.parametrize(
    ("image_format", "mode"),
    [
        ("JPEG", "RGB"),
        ("JPEG", "L"),
        ("JPEG", "CMYK"),
        ("PNG", "RGB"),
        ("PNG", "P"),
        ("PNG", "RGBA"),
        ("WEBP", "RGB"),
        ("GIF", "RGB"),
        ("BMP", "RGB"),
        ("TIFF", "RGB"),
        ("PPM", "RGB"),
    ],
)
def test_a_picture_from_a_url_has_the_pixels_of_the_file(image_format: str, mode: str) -> None:
    content = encode(image_format, mode)
    with raw_server({"/photo": response(content)}) as address:
        downloaded = to_picture(f"{address}/photo")
    with Image.open(io.BytesIO(content)) as image:
        expected = image.convert("RGB")
    np.testing.assert_array_equal(np.asarray(downloaded), np.asarray(expected))


def test_an_image_that_pillow_has_opened_but_not_read_is_decoded(tmp_path) -> None:
    (tmp_path / "a.jpg").write_bytes(encode("JPEG"))
    with Image.open(tmp_path / "a.jpg") as image:
        decoded = to_picture(image)
    assert np.asarray(decoded).shape == (24, 32, 3)


def test_a_truncated_image_that_pillow_has_opened_is_a_data_error() -> None:
    image = Image.open(io.BytesIO(encode("JPEG")[:-300]))
    with pytest.raises(DataError, match=r"^image: cannot be read: .*truncated"):
        to_picture(image)


def test_a_closed_image_is_a_data_error(tmp_path) -> None:
    (tmp_path / "a.jpg").write_bytes(encode("JPEG"))
    with Image.open(tmp_path / "a.jpg") as image:
        pass
    with pytest.raises(DataError, match=r"^image: cannot be read"):
        to_picture(image)


def test_spaces_and_umlauts_in_a_url_are_encoded() -> None:
    with raw_server({"/a%20b/%C3%BC.jpg?q=%20": response(encode("JPEG"))}) as address:
        assert fetch(f"{address}/a b/ü.jpg?q= ").size == (32, 24)


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (response(encode("JPEG"), length=100_000), r"the connection ended after \d+ of 100000 bytes"),
        (response(encode("JPEG")[:-300]), r"cannot be read: .*truncated"),
        (response(b"<p>Hello", header="Content-Type: text/html"), r"not an image.* \(text/html, 8 bytes\)"),
        (response(b""), r"not an image.* \(image/jpeg, 0 bytes\)"),
        (b"", "closed connection without response"),
        (b"ABC/9 never\r\n\r\n", "ABC/9"),
        (b"HTTP/1.1 abc OK\r\n\r\n", "abc"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n", "100 headers"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000 + b"\r\n\r\n", "65536 bytes"),
        (CHUNKED + b"zz\r\nabc", "cannot be downloaded: "),
        (CHUNKED + b"100\r\nabc", "cannot be downloaded: "),
        (CHUNKED + b"3\r\nabc\r\n", "cannot be downloaded: "),
        (
            b"HTTP/1.1 302 Found\r\nLocation: /photo.jpg\r\nContent-Length: 0\r\n\r\n",
            "redirects in a loop, or too often$",
        ),
        (
            b"HTTP/1.1 302 Found\r\nLocation: file:///etc/hostname\r\nContent-Length: 0\r\n\r\n",
            r"not an http\(s\) URL$",
        ),
        (response(encode("PNG"), header="Content-Encoding: br"), "compressed with br, which is not supported"),
        (response(encode("PNG"), header="Content-Encoding: gzip"), "not valid gzip"),
        (response(gzip.compress(encode("PNG"), mtime=0)[:-9], header="Content-Encoding: gzip"), "incomplete gzip file"),
        (b"HTTP/1.1 404 No \x1b[31m\r\nContent-Length: 0\r\n\r\n", "responded with 404"),
        (b"HTTP/1.1 500 Broken\r\n\r\n", "responded with 500 Broken"),
    ],
)
def test_a_failing_download_is_a_data_error_with_the_url(content: bytes, message: str) -> None:
    with raw_server({"/photo.jpg": content}) as address, pytest.raises(DataError, match=message) as error:
        fetch(f"{address}/photo.jpg")
    assert str(error.value).startswith(f"{address}/photo.jpg: ")


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "deflate", "utf-8"])
def test_compressed_responses_are_decompressed(encoding: str) -> None:
    compress = {"deflate": zlib.compress, "utf-8": bytes}.get(encoding, gzip.compress)
    content = response(compress(encode("PNG")), header=f"Content-Encoding: {encoding}")
    with raw_server({"/photo": content}) as address:
        np.testing.assert_array_equal(np.asarray(fetch(f"{address}/photo")), PIXELS)


def test_decompression_is_limited() -> None:
    content = response(gzip.compress(bytes(3 << 20)), header="Content-Encoding: gzip")
    with raw_server({"/a": content}) as address, pytest.raises(DataError, match="larger than 2 MiB"):
        fetch(f"{address}/a", max_bytes=2 << 20)


@pytest.mark.parametrize(
    "url", ["file:///photo.jpg", "ftp://host/photo.jpg", "s3://bucket/a.jpg", "data:image/png;base64,AA"]
)
def test_urls_of_other_schemes_are_a_user_error(url: str) -> None:
    message = f"{re.escape(url)}: URLs that start with .* are not supported; expected a path or an http\\(s\\) URL"
    for call in (to_picture, expand):
        with pytest.raises(DataError, match=message):
            call(url)
    with pytest.raises(WeightsError, match=message):
        load_checkpoint(url)


@pytest.mark.parametrize("port", ["99999", "0", "x"])
def test_an_impossible_port_is_a_data_error(port: str) -> None:
    with pytest.raises(DataError, match=r"the port in the URL is not a number from 1 to 65535$"):
        to_picture(f"http://127.0.0.1:{port}/a.jpg")


@pytest.mark.parametrize(
    "url", ["http://", "http://[::1", "http://127.0.0.1:port/a.jpg", "http://127.0.0.1:99999/a.jpg", "http://a b/c.jpg"]
)
def test_an_invalid_url_is_a_data_error(url: str) -> None:
    with pytest.raises(DataError, match="cannot be downloaded: "):
        to_picture(url)


def test_a_download_above_the_size_limit_stops() -> None:
    endless = b"HTTP/1.1 200 OK\r\n\r\n" + bytes(3 << 20)
    with raw_server({"/a": endless, "/b": response(b"", length=1 << 40)}) as address:
        for path in "ab":
            with pytest.raises(DataError, match="cannot be downloaded: larger than 2 MiB"):
                fetch(f"{address}/{path}", max_bytes=2 << 20)


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Return a port that accepts connections and never sends anything."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_a_download_above_the_time_limit_stops(start: bytes) -> None:
    with (
        raw_server({"/a.jpg": start}, drip=0.02) as address,
        pytest.raises(DataError, match=r"cannot be downloaded: not complete after 0\.3 s"),
    ):
        fetch(f"{address}/a.jpg", max_seconds=0.3)


def test_a_silent_server_is_given_up(silent_port: int) -> None:
    with pytest.raises(DataError, match=r"not complete after 0\.3 s"):
        fetch(f"http://127.0.0.1:{silent_port}/a.jpg", max_seconds=0.3)
