"""Downloads into the torch hub cache, from a local server."""

from __future__ import annotations

import hashlib
import logging
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from fcos import downloads
from fcos.downloads import WebFile, hub_file, warn_about_licence
from fcos.errors import WeightsError
from fcos.interop.torchvision import WEIGHTS
from fcos.models.backbones.pretrained import CATALOG

DATA = bytes(range(256)) * 40
FILE = f"net-{hashlib.sha256(DATA).hexdigest()[:8]}.pth"
OTHER = DATA[::-1]


class Server(ThreadingHTTPServer):
    """Server that returns one file for every path; requests for /gone/... fail."""

    daemon_threads = True
    data = DATA
    version = "1"
    ranges = True
    announce = True
    """True to send the Content-Length header."""
    limit: int | None = None
    """Number of bytes after which every response is cut off."""
    rest: tuple[str, bytes] | None = None
    """Wrong Content-Range and content for responses to Range requests."""
    then: tuple[bytes, str] | None = None
    """Data and version after the first response."""
    release: threading.Event | None = None
    """Event that responses wait for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[str] = []
        """First bytes of the requested ranges; an empty string for the whole file."""

    def handle_error(self, *_: object) -> None:
        """Ignore errors: clients may close the connection."""

    def url(self, path: str = FILE) -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"


class _Handler(BaseHTTPRequestHandler):
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        server = self.server
        if server.release:
            server.release.wait(10)
        if self.path.startswith("/gone/"):
            self.send_error(404)
            return
        asked = re.sub(r"\D", "", self.headers.get("Range", ""))
        server.asked.append(asked)
        start = int(asked or 0) if server.ranges else 0
        range_sent, content = f"bytes {start}-{len(server.data) - 1}/{len(server.data)}", server.data[start:]
        if start and server.rest:
            range_sent, content = server.rest
            server.limit = None
        self.send_response(206 if start else 200)
        if server.announce:
            self.send_header("Content-Length", str(len(content)))
        if start:
            self.send_header("Content-Range", range_sent)
        self.send_header("ETag", server.version)
        self.end_headers()
        if server.then:
            server.data, server.version = server.then
        self.wfile.write(content[: server.limit])

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Server() as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield http
        http.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


def fetch(source: str | WebFile) -> Path:
    return hub_file(source, "weights", otherwise="do without")


def failure(source: str | WebFile) -> str:
    with pytest.raises(WeightsError) as caught:
        fetch(source)
    return str(caught.value)


def files(cache: Path) -> list[str]:
    return [path.name for path in cache.iterdir() if not path.name.startswith(".")]


# ------------------------------------------------------------------------------------------------------------ the cache


def test_file_is_downloaded_once(server: Server, cache: Path) -> None:
    assert fetch(server.url()) == cache / FILE
    assert fetch(server.url()).read_bytes() == DATA
    assert server.asked == [""]
    assert files(cache) == [FILE]


def test_concurrent_calls_download_once(server: Server) -> None:
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(fetch, [server.url()] * 4))
    assert {path.read_bytes() for path in paths} == {DATA}
    assert server.asked == [""]


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://a.org/models/net-0676ba61.pth", "net-0676ba61.pth"),
        ("https://a.org/net-0676ba61.pth?download=true", "net-0676ba61.pth"),
        ("https://a.org/s/xtix/download#net-ecbe2b5.pth", "net-ecbe2b5.pth"),
        ("https://a.org/net-20240101.pth", "a.org_net-20240101.pth"),
        ("https://a.org/MSRA/R-50.pkl", "a.org_MSRA_R-50.pkl"),
        ("https://b.org/R-50.pkl", "b.org_R-50.pkl"),
        ("https://a.org/download?id=5", "a.org_download_id_5"),
        ("https://a.org/x#../../.bashrc", "bashrc"),
    ],
)
def test_url_gives_unique_and_safe_cache_file_name(url: str, name: str) -> None:
    assert WebFile((url,)).name == name


def test_unwritable_cache_is_reported(server: Server, cache: Path) -> None:
    cache.parent.mkdir()
    cache.write_text("in the way")
    assert f"weights: could not download to {cache} (" in failure(server.url())


# ------------------------------------------------------------------------------------------------ interrupted downloads


def test_interrupted_download_resumes(server: Server, cache: Path) -> None:
    server.limit = 4000
    assert fetch(server.url()).read_bytes() == DATA
    assert server.asked == ["", "4000", "8000"]
    assert files(cache) == [FILE]


def test_next_attempt_resumes_an_interrupted_download(server: Server, cache: Path) -> None:
    server.limit, server.ranges = 4000, False
    assert "interrupted after 4000 of 10240 bytes; the next attempt resumes from there" in failure(server.url())
    server.limit, server.ranges, server.asked = None, True, []
    assert fetch(server.url()).read_bytes() == DATA
    assert server.asked == ["", "4000"]
    assert files(cache) == [FILE]


def test_server_without_range_support_sends_the_whole_file_again(server: Server) -> None:
    server.limit, server.ranges = 4000, False
    failure(server.url())
    server.limit = None
    assert fetch(server.url()).read_bytes() == DATA


def test_complete_partial_file_needs_no_second_request(server: Server, cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / f"{FILE}.{FILE[4:12]}.part").write_bytes(DATA)
    assert fetch(server.url()).read_bytes() == DATA
    assert server.asked == [""]


@pytest.mark.parametrize("size", [len(DATA), len(DATA) + 1])
def test_partial_file_of_another_file_is_discarded(server: Server, cache: Path, size: int) -> None:
    cache.mkdir(parents=True)
    (cache / f"{FILE}.{FILE[4:12]}.part").write_bytes(bytes(size))
    if size == len(DATA):
        assert "wrong file" in failure(server.url())
    assert fetch(server.url()).read_bytes() == DATA


def test_partial_file_without_hash_is_discarded_for_a_new_version(server: Server, cache: Path) -> None:
    url = server.url("net.pkl#net.pkl")
    server.limit, server.ranges = 4000, False
    failure(url)
    server.limit, server.ranges, server.data, server.version = None, True, OTHER, "2"
    assert fetch(url).read_bytes() == OTHER
    assert files(cache) == ["net.pkl"]


def test_download_without_hash_resumes_the_same_version(server: Server) -> None:
    url = server.url("net.pkl#net.pkl")
    server.limit = 6000
    assert fetch(url).read_bytes() == DATA
    assert server.asked == ["", "6000"]


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("then", [(OTHER, "2"), (DATA + OTHER, "1")])
def test_file_changed_between_responses_is_not_mixed(
    server: Server, cache: Path, ranges: bool, then: tuple[bytes, str]
) -> None:
    url = server.url("net.pkl#net.pkl")
    server.limit, server.ranges, server.then = 4000, ranges, then
    assert "interrupted after 4000 of 10240 bytes, then the server sent a different file" in failure(url)
    assert files(cache) == []
    server.limit = None
    assert fetch(url).read_bytes() == then[0]


@pytest.mark.parametrize(
    "rest",
    [
        ("bytes 0-6239/10240", DATA[:6240]),
        ("bytes 4000-10239/10240", DATA),  # too many bytes
        ("bytes 4000-20479/20480", DATA[4000:]),
    ],
)
def test_wrong_range_response_is_discarded(server: Server, cache: Path, rest: tuple[str, bytes]) -> None:
    url = server.url("net.pkl#net.pkl")
    server.limit, server.rest = 4000, rest
    assert "then the server sent a different file or range" in failure(url)
    assert server.asked == ["", "4000"]
    assert files(cache) == []


def test_server_may_omit_content_length(server: Server) -> None:
    server.announce = False
    assert fetch(server.url()).read_bytes() == DATA


# ---------------------------------------------------------------------------------------------------------- wrong files


def test_file_with_wrong_hash_is_discarded(server: Server, cache: Path) -> None:
    server.data = OTHER
    text = failure(server.url())
    found = hashlib.sha256(OTHER).hexdigest()[:8]
    assert f"wrong file: its SHA-256 begins with {found}, expected {FILE[4:12]}" in text
    assert files(cache) == []


def test_url_fragment_overrides_a_name_mistaken_for_a_hash(server: Server, cache: Path) -> None:
    url = server.url("net-facade1.pth")
    assert failure(url).count(f"; if this is not a hash, set another file name: {url}#NAME)") == 1
    assert fetch(f"{url}#net.pth") == cache / "net.pth"


def test_no_other_file_name_is_suggested_for_known_weights(server: Server) -> None:
    assert "#NAME" not in failure(WebFile((server.url("net-facade1.pth"),), licence="MIT"))


def test_date_in_file_name_is_not_a_hash(server: Server) -> None:
    assert fetch(server.url("net-20240101.pth")).read_bytes() == DATA


@pytest.mark.parametrize("announce", [True, False])
def test_empty_file_is_discarded(server: Server, cache: Path, announce: bool) -> None:
    server.data, server.announce = b"", announce
    assert "net.pth (the file is empty)" in failure(server.url("net.pth"))
    assert files(cache) == []


def test_mirrors_are_tried_in_turn(server: Server, cache: Path) -> None:
    nobody = "http://127.0.0.1:9/x#" + FILE
    assert fetch(WebFile((nobody, server.url("gone/x"), server.url("download")))) == cache / FILE
    assert (cache / FILE).read_bytes() == DATA


def test_mirror_resumes_a_download_from_another_mirror(server: Server) -> None:
    with Server() as other:
        other.limit, other.ranges = 4000, False
        thread = threading.Thread(target=other.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        assert fetch(WebFile((other.url(), server.url()))).read_bytes() == DATA
        other.shutdown()
        thread.join()
    assert server.asked == ["", "4000"]


def test_network_error_names_every_url_and_the_cache_path(server: Server, cache: Path) -> None:
    urls = (server.url("gone/" + FILE), "http://127.0.0.1:9/" + FILE)
    text = failure(WebFile(urls))
    assert text.startswith(
        f"weights: could not download {urls[0]} (the server responded with 404 Not Found),\n  {urls[1]} ("
    )
    assert "refused" in text
    assert text.endswith(f"; download it on another machine and copy it to {cache / FILE}, or do without")


def test_unresponsive_server_times_out(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    open_soon = downloads.urlopen
    monkeypatch.setattr(downloads, "urlopen", lambda request, timeout: open_soon(request, timeout=timeout / 100))
    server.release = threading.Event()
    assert "(timed out)" in failure(server.url())
    server.release.set()


@pytest.mark.parametrize("url", ["http://[/x", "http://127.0.0.1:port/x", "http://a b/x"])
def test_malformed_url_is_rejected(url: str) -> None:
    assert f"could not download {url} (" in failure(url)


# ------------------------------------------------------------------------------------------------------------- licences


@pytest.mark.parametrize(("licence", "told"), [("MIT", " (licence: MIT)"), (None, "")])
def test_download_message_states_the_licence(
    server: Server, cache: Path, licence: str | None, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch(WebFile((server.url(),), licence=licence))
    assert capsys.readouterr().err == f"downloading {server.url()} to {cache / FILE}{told}\n"


def test_licence_warning_is_not_repeated_for_a_file_or_its_derivatives(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for _ in range(2):
        warn_about_licence("CC BY-NC 4.0", "a.pth")
        warn_about_licence("CC BY-NC 4.0", "runs/a/weights/best.pt", derived=True)
        warn_about_licence("CC BY-NC 4.0", "b.pth")
        warn_about_licence("GPL", "runs/c/weights/best.pt", derived=True)
    told = (("a.pth", "CC BY-NC 4.0"), ("b.pth", "CC BY-NC 4.0"), ("runs/c/weights/best.pt", "GPL"))
    assert caplog.messages == [
        f"{where}: the licence of these weights may restrict their use: {licence}" for where, licence in told
    ]


@pytest.mark.parametrize("restricted", [True, False])
def test_restrictive_licence_warns_once(server: Server, caplog: pytest.LogCaptureFixture, restricted: bool) -> None:
    file = WebFile((server.url(),), licence="CC BY-NC 4.0", restricted=restricted)
    with caplog.at_level(logging.INFO, logger="fcos"):
        fetch(file)
        fetch(file)
    told = ["weights: the licence of these weights may restrict their use: CC BY-NC 4.0"]
    assert caplog.messages == (told if restricted else [])


def test_restrictive_licence_warns_for_manually_copied_file(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache.mkdir(parents=True)
    (cache / FILE).write_bytes(DATA)
    fetch(WebFile((f"http://127.0.0.1:9/{FILE}",), licence="none is stated", restricted=True))
    assert caplog.messages == ["weights: the licence of these weights may restrict their use: none is stated"]


# --------------------------------------------------------------------------------------------------- limits and hashes


@pytest.mark.parametrize("announce", [True, False])
def test_a_file_above_the_size_limit_is_not_kept(server: Server, cache: Path, announce: bool) -> None:
    server.announce = announce
    with pytest.raises(WeightsError, match=r"net\.pth \(larger than 0\.00390625 MiB\)"):
        hub_file(server.url("net.pth"), "weights", otherwise="do without", max_bytes=4096)
    assert files(cache) == []


def test_an_endless_file_of_a_server_that_resumes_is_not_kept(server: Server, cache: Path) -> None:
    server.limit = 3000
    with pytest.raises(WeightsError, match="larger than"):
        hub_file(server.url("net.pth"), "weights", otherwise="do without", max_bytes=4096)
    assert files(cache) == []


def test_a_known_file_must_have_its_full_hash(server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(downloads.FULL_HASHES, FILE, FILE[4:12] + "0" * 56)  # the name contains only eight digits
    text = failure(server.url())
    assert f"its SHA-256 begins with {hashlib.sha256(DATA).hexdigest()}, expected {FILE[4:12]}0000" in text
    assert "#NAME" not in text
    assert files(cache) == []
    monkeypatch.setitem(downloads.FULL_HASHES, FILE, hashlib.sha384(DATA).hexdigest())
    assert fetch(server.url()).read_bytes() == DATA


def test_full_hashes_are_complete_and_agree_with_the_names() -> None:
    for name, digest in downloads.FULL_HASHES.items():
        assert re.fullmatch(r"[0-9a-f]{64}|[0-9a-f]{96}", digest)
        assert len(digest) == 96 or f"-{digest[:8]}." in name


def test_named_weights_come_by_https_or_have_a_full_hash() -> None:
    for entry in [*(row.file for row in CATALOG.values()), *WEIGHTS.values()]:
        assert all(url.startswith("https://") for url in entry.urls) or entry.name in downloads.FULL_HASHES
        assert entry.urls[0].startswith("https://")


def test_control_characters_of_a_licence_and_a_url_do_not_reach_the_terminal(
    server: Server, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch(WebFile((server.url("a.pth"),), licence="a\x1b]0;b\x07\nc", restricted=True))
    warn_about_licence("\x9b31m", "x\x1b[2J.pt")
    assert not set("\x1b\x07\x9b") & set(caplog.text + capsys.readouterr().err)
    assert r"a\x1b]0;b\x07\nc" in caplog.text
