"""Downloads into the torch hub cache, from a server on this machine."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from fcos.errors import WeightsError
from fcos.models.weights import hub_file

DATA = b"weights of a small network"
FILE = f"net-{hashlib.sha256(DATA).hexdigest()[:8]}.pth"


class _Handler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """The folder of a server, and its address."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "server"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=str(folder))) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield folder, f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


def test_a_file_is_downloaded_once(server: tuple[Path, str], cache: Path) -> None:
    folder, address = server
    (folder / FILE).write_bytes(DATA)
    assert hub_file(f"{address}/{FILE}", "weights", otherwise="do without") == cache / FILE
    (folder / FILE).unlink()
    assert hub_file(f"{address}/{FILE}", "weights", otherwise="do without").read_bytes() == DATA
    assert [p.name for p in cache.iterdir()] == [FILE]


@pytest.mark.parametrize(("data", "reason"), [(b"another file", "invalid hash value"), (None, "404")])
def test_what_is_not_the_file_is_not_kept(
    server: tuple[Path, str], cache: Path, data: bytes | None, reason: str
) -> None:
    folder, address = server
    if data is not None:
        (folder / FILE).write_bytes(data)
    with pytest.raises(WeightsError, match=f"weights: could not download .*{reason}.*, or do without") as caught:
        hub_file(f"{address}/{FILE}", "weights", otherwise="do without")
    assert f"{address}/{FILE}" in str(caught.value)
    assert str(cache / FILE) in str(caught.value)
    assert list(cache.iterdir()) == []
