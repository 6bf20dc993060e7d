"""Odd sources of `fcos predict`: each ends in a picture or one clean message, and never costs the other results."""

from __future__ import annotations

import io
import json
import os
import socket
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fuzzing import ODD_TEXTS, check_message, damaged_bytes, examples, fuzz, limits
from hypothesis import strategies as st
from PIL import Image

from fcos import Detector
from fcos.inference.sources import predict_files
from fcos.inference.stream import Detected


def encoded(form: str) -> bytes:
    file = io.BytesIO()
    Image.radial_gradient("L").resize((24, 16)).convert("RGB").save(file, form)
    return file.getvalue()


class Server(socketserver.ThreadingTCPServer):
    """Server that answers every request with the same bytes and closes the connection."""

    daemon_threads = True
    allow_reuse_address = True
    response = b""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, *_: object) -> None:
        """Ignore errors: clients may close the connection."""


class _Handler(socketserver.BaseRequestHandler):
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def handle(self) -> None:
        self.request.recv(65536)
        self.request.sendall(self.server.response)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch, Server() as tcp:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            patch.delenv(name, raising=False)
        thread = threading.Thread(target=tcp.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield tcp
        tcp.shutdown()
        thread.join()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Return a folder with a picture and with entries that are no regular files, as the working directory."""
    folder = tmp_path / "in"
    (folder / "folder.png").mkdir(parents=True)
    (folder / "good.jpg").write_bytes(encoded("JPEG"))
    (folder / "empty.png").touch()
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "up").symlink_to("..")
    (folder / "gone.png").symlink_to("nothing")
    os.mkfifo(folder / "fifo.png")
    with socket.socket(socket.AF_UNIX) as listener, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        listener.bind("socket.png")
        yield folder


@pytest.fixture
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an output folder that no source leads to."""
    return tmp_path_factory.mktemp("elsewhere") / "out"


def check_sources(detector: Detector, sources: list[str], out: Path) -> None:
    """Run prediction on sources, of which the last is a good picture, and check the outcome of all."""
    results: list[Detected] = []
    with limits():
        success = predict_files(detector, sources, out, save=("images", "json"), report=results.append)
    assert success == all(result.error is None for result in results)
    for result in results:
        if result.error is not None:
            check_message(result.error)
        else:
            assert result.picture is not None
            assert result.picture.is_file()
            assert result.picture.parent == out
    assert any(result.source.endswith("good.jpg") and result.error is None for result in results)
    predictions = json.loads((out / "predictions.json").read_text())
    assert len(predictions) == len(results)


@examples(60)
def test_odd_paths_never_cost_the_other_results(count: int, detector: Detector, folder: Path, out: Path) -> None:
    names = (
        *(p.name for p in folder.iterdir()),
        ".",
        "**",
        "**/*.png",
        "*.png",
        "[",
        "~",
        "-",
        "http://",
        "https:///x",
    )
    urls = (
        *("http://127.0.0.1:bad/x.png", "http://[::1", "http://127.0.0.1:1/a b.png", "http://127.0.0.1:99999/x.png"),
        *("HTTP://127.0.0.1:1/x.png", "http://127.0.0.1:1/é?q=\n#x", "http://127.0.0.1:1/..png", "http://:1/"),
    )
    source = st.sampled_from([*names, *urls, *ODD_TEXTS])

    def check(sources: list[str]) -> None:
        check_sources(detector, [*sources, "good.jpg"], out)

    fuzz(check, st.lists(source, min_size=1, max_size=3), count)


@examples(60)
def test_odd_responses_never_cost_the_other_results(
    count: int, detector: Detector, folder: Path, server: Server, out: Path
) -> None:
    body = encoded("JPEG")
    length, chunk = f"Content-Length: {len(body)}\r\n".encode(), f"{len(body):x}\r\n".encode()
    responses = [
        b"HTTP/1.1 200 OK\r\n" + length + b"\r\n" + body,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk + body + b"\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999\r\n\r\n" + body,
        b"HTTP/1.1 302 Found\r\nLocation: /again\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n",
        b"HTTP/1.1 404 \x1b[31mnot found\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X-Y: z\r\n" * 200 + b"\r\n" + body,
    ]

    def check(response: bytes) -> None:
        server.response = response
        url = f"http://127.0.0.1:{server.server_address[1]}/photo.jpg"
        check_sources(detector, [url, "good.jpg"], out)

    fuzz(check, st.one_of(st.sampled_from(responses), damaged_bytes(responses)), count)
