"""Downloads: weights files (mirrors, cache, resumed downloads, hashes, licences), and small files into memory."""

from __future__ import annotations

import hashlib
import logging
import re
import string
import sys
import threading
import time
import zlib
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from ssl import SSLError
from typing import TypeVar
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit
from urllib.request import HTTPRedirectHandler, Request, urlopen

import torch
from filelock import FileLock

from .errors import WeightsError
from .formatting import printable
from .progress import progress_bar

log = logging.getLogger(__name__)

MAX_WEIGHTS_BYTES = 8 << 30
"""Largest size of a downloaded weights file."""
FULL_HASHES = {
    "dla34-ba72cf86.pth": "38c035736538b6c67f2539bf1ca1cc1349c3691f41321bd5"
    "8de9e97aa9eb83ea6f52c4aeef7c4cd54c92b6f8c3f3e89b",  # Open Model Zoo, models/public/dla-34/model.yml
    "fcos_resnet50_fpn_coco-99b0c9b7.pth": "99b0c9b7cfb1527d782db86b91d207f00547c792fb4103fc612b651d0a07b9e7",
    "mobilenet_v2-b0353104.pth": "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
    "resnet101-63fe2227.pth": "63fe2227b86e8f1f2063f43a75c84d195911b6a0eace650907dd3dc62dd49a0a",
    "resnet50-0676ba61.pth": "0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a",
}
"""SHA-256, or SHA-384 with 96 digits, of files whose names contain only the first eight digits of it."""

_TIMEOUT = 10.0  # timeout in seconds for the response and for each read
_CHUNK_SIZE = 1 << 20
_MAX_NAME_LENGTH = 200
_CONNECTION_ERRORS = (TimeoutError, ConnectionError, SSLError, HTTPException)
_FAILURES = (OSError, HTTPException, ValueError, OverflowError)
"""Errors of a download. ValueError: not a URL; OverflowError: a port that no system has, after a redirect."""
_COMPRESSIONS = ("br", "compress", "deflate", "gzip", "zstd")
_TOO_LARGE = "larger than {:g} MiB"
_NOT_COMPLETE = "not complete after {:g} s"
_warned: set[tuple[str, str]] = set()  # (licence, weights) of warnings already logged


@dataclass(frozen=True)
class WebFile:
    """Weights file that can be downloaded.

    Attributes:
        urls: URLs in the order in which they are tried. `#NAME` at the end of the first sets the name in the cache.
        licence: licence of the weights; None: unknown (URL given by the user).
        restricted: True if the licence forbids commercial use or is not stated anywhere. The first use logs a warning.
    """

    urls: tuple[str, ...]
    licence: str | None = None
    restricted: bool = False

    @property
    def name(self) -> str:
        """File name in the cache. Without `#NAME` or a hash it is the whole URL, as many files are called R-50.pkl."""
        address, _, name = self.urls[0].partition("#")
        if not name:
            last = address.partition("?")[0].rpartition("/")[2]
            name = last if _parse_hash(last) else address.partition("://")[2]
        return re.sub(r"[^\w.-]+", "_", name).strip("._")[-_MAX_NAME_LENGTH:]


def is_url(source: str) -> bool:
    """Return whether `source` is an http(s) URL."""
    return source.lower().startswith(("http://", "https://"))


def describe_other_scheme(source: str) -> str:
    """Return a message about a source that is a URL of another scheme, such as file: or s3:, otherwise empty text."""
    scheme = re.match(r"([a-z][a-z0-9+.-]+)://|(data):", source, re.IGNORECASE)
    if not scheme:
        return ""
    name = scheme[1] or scheme[2]
    hint = f"; give the path without {name}://" if name.lower() == "file" else ""
    return f"URLs that start with {name}: are not supported; expected a path or an http(s) URL{hint}"


def read_url(url: str, *, max_bytes: int, max_seconds: float) -> tuple[bytes, str]:
    """Download a small file into memory.

    Args:
        url: http(s) URL; spaces and non-ASCII characters are percent-encoded.
        max_bytes: largest size of the file.
        max_seconds: longest duration of the download, from connecting to the last byte.

    Returns:
        Content and media type.

    Raises:
        ConnectionError: the URL is invalid, the server does not respond or responds with an error, the connection ends
            before the end of the file, or the file exceeds a limit.
    """

    def read() -> tuple[bytes, str]:
        end = time.monotonic() + max_seconds
        with closing(_open_url(url)) as response:
            expected = response.length
            content, too_large = bytearray(), (expected or 0) > max_bytes
            while not too_large and (chunk := response.read1(_CHUNK_SIZE)):
                content += chunk
                too_large = len(content) > max_bytes
                if time.monotonic() > end:
                    raise TimeoutError(_NOT_COMPLETE.format(max_seconds))
            if too_large:
                raise ConnectionError(_TOO_LARGE.format(max_bytes / (1 << 20)))
            if expected is not None and len(content) < expected:
                raise ConnectionError(f"the connection ended after {len(content)} of {expected} bytes")
            return _decompress(bytes(content), _compression(response), max_bytes), response.headers.get_content_type()

    try:
        return _finish_within(max_seconds, read)
    except HTTPError as error:
        raise ConnectionError(_describe_failure(error)) from None
    except _FAILURES as error:
        raise ConnectionError(f"cannot be downloaded: {_describe_failure(error)}") from None


def media_type(url: str, *, max_seconds: float) -> str:
    """Return the media type of a URL, such as `image/jpeg`, in lower case; empty if there is no response in time."""

    def read() -> str:
        with closing(_open_url(url)) as response:
            return response.headers.get_content_type()

    try:
        return _finish_within(max_seconds, read)
    except _FAILURES:
        return ""


def _compression(response: HTTPResponse) -> str:
    """Return the compression of a response; empty if it has none, or only a name that browsers ignore, too."""
    encoding = response.headers.get("Content-Encoding", "").strip().lower().removeprefix("x-")
    return encoding if encoding in _COMPRESSIONS else ""


def _decompress(content: bytes, compression: str, max_bytes: int) -> bytes:
    """Decompress a response, which may be compressed although the request does not allow it."""
    if not compression:
        return content
    if compression not in ("gzip", "deflate"):
        raise ConnectionError(f"the server sent the file compressed with {compression}, which is not supported")
    decompressor = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # recognises the headers of gzip and zlib
    try:
        decompressed = decompressor.decompress(content, max_bytes + 1)
    except zlib.error:
        raise ConnectionError(f"the file is not valid {compression}, although the server states so") from None
    if len(decompressed) > max_bytes:
        raise ConnectionError(_TOO_LARGE.format(max_bytes / (1 << 20)))
    if not decompressor.eof:
        raise ConnectionError(f"the server sent an incomplete {compression} file")
    return decompressed


Result = TypeVar("Result")


def _finish_within(seconds: float, function: Callable[[], Result]) -> Result:
    """Call a function in a thread and return its result or raise its error.

    The timeout of a socket applies to each read only, so a server that sends a byte of its header now and then would
    never cause one.

    Raises:
        TimeoutError: the function takes longer. The thread is abandoned and does not keep the process alive.
    """
    outcome: list[Result | Exception] = []

    def run() -> None:
        try:
            outcome.append(function())
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise TimeoutError(_NOT_COMPLETE.format(seconds))
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]


def _describe_failure(error: Exception) -> str:
    if isinstance(error, HTTPError):
        if str(error.reason).startswith(HTTPRedirectHandler.inf_msg):
            return "the server redirects in a loop, or too often"
        if "Redirection to url" in str(error.reason):
            return "the server redirects to an address that is not an http(s) URL"
        return f"the server responded with {error.code} {error.reason}"
    reason = error.reason if type(error) is URLError else error
    return str(reason).partition("\n")[0] or type(reason).__name__


def hub_file(source: str | WebFile, name: str, *, otherwise: str, max_bytes: int = MAX_WEIGHTS_BYTES) -> Path:
    """Return the path of a file in the torch hub cache, after downloading it if it is missing.

    An interrupted download is resumed by the next call. If several processes call this, only one downloads.

    Args:
        source: http(s) URL, or a `WebFile`. The hash of the download must be that in `FULL_HASHES`. If this lacks the
            file and the name in the cache is NAME-HASH.EXTENSION (HASH: at least seven hexadecimal digits, not only
            0-9), the SHA-256 of the download must begin with HASH.
        name: name of the weights, for messages.
        otherwise: alternative for a user without network access, for the error message.
        max_bytes: largest size of the file.

    Raises:
        WeightsError: every URL failed; the message gives the reason for each, and the path for a manual download.
    """
    file = WebFile((source,)) if isinstance(source, str) else source
    path = Path(torch.hub.get_dir()) / "checkpoints" / file.name
    if not path.is_file():
        _download_to(file, path, name, otherwise=otherwise, max_bytes=max_bytes)
    if file.restricted:
        warn_about_licence(file.licence, name)
    return path


def warn_about_licence(licence: str | None, where: str, *, derived: bool = False) -> None:
    """Log one warning about a licence that may restrict the use of weights.

    Args:
        licence: licence of the weights; None or empty: no restriction is known.
        where: path or name of the weights, for the message.
        derived: True if the weights inherit the licence of the weights they were trained or converted from. No warning
            is logged if there was already one about this licence.
    """
    if not licence or (licence, where) in _warned or (derived and any(licence == warned for warned, _ in _warned)):
        return
    _warned.add((licence, where))
    log.warning("%s: the licence of these weights may restrict their use: %s", printable(where), printable(licence))


def _download_to(file: WebFile, path: Path, name: str, *, otherwise: str, max_bytes: int) -> None:
    """Download a file to `path`, trying all its URLs. Raises `WeightsError` as `hub_file` does."""
    failures = []
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock")):
            if path.is_file():  # downloaded by another process in the meantime
                return
            for source in file.urls:
                url = source.partition("#")[0]
                failure = _download(file, url, path, max_bytes=max_bytes)
                if failure is None:
                    return
                failures.append(f"{url} ({failure})")
    except OSError as error:  # the cache folder is not writable
        failures = [f"to {path.parent} ({error})"]
    reasons = ",\n  ".join(failures)
    raise WeightsError(
        f"{name}: could not download {reasons}; download it on another machine and copy it to {path}, or {otherwise}"
    )


def _parse_hash(name: str) -> str:
    """Return the SHA-256 prefix in a file name, empty if there is none. Digits 0-9 alone may be a date."""
    match = re.search(r"-(?=\d*[a-f])([0-9a-f]{7,64})\.", name)
    return match[1] if match else ""


def _download(file: WebFile, url: str, path: Path, *, max_bytes: int) -> str | None:
    """Download a file from one URL to `path`. Return None on success, else the reason for the failure."""
    licence = f" (licence: {file.licence})" if file.licence else ""
    print(printable(f"downloading {url} to {path}{licence}"), file=sys.stderr)
    expected = FULL_HASHES.get(path.name) or _parse_hash(path.name)
    algorithm = "sha384" if len(expected) == 96 else "sha256"
    try:
        part = _download_part(url, path, expected, max_bytes=max_bytes)
        with part.open("rb") as content:
            digest = hashlib.file_digest(content, algorithm).hexdigest()
    except _FAILURES as error:
        return _describe_failure(error)
    if not part.stat().st_size:
        part.unlink()
        return "the file is empty"
    if not digest.startswith(expected):
        part.unlink()
        hint = (
            ""
            if file.licence or path.name in FULL_HASHES
            else f"; if this is not a hash, set another file name: {url}#NAME"
        )
        name = f"SHA-{algorithm.removeprefix('sha')}"
        return f"wrong file: its {name} begins with {digest[: len(expected)]}, expected {expected}{hint}"
    part.replace(path)
    for leftover in path.parent.glob(f"{path.name}.*.part"):
        leftover.unlink(missing_ok=True)
    return None


def _download_part(url: str, path: Path, expected: str, *, max_bytes: int) -> Path:
    """Download a complete file, resuming if possible, and return its path, which ends in `.part`.

    The name contains the expected hash or the version, so that parts of different files or versions are never mixed.
    """
    with closing(_open_url(url)) as response:
        if compression := _compression(response):
            raise ConnectionError(f"the server compresses the file with {compression}; expected an uncompressed file")
        length, version = response.headers.get("Content-Length"), _version_id(response)
        total = None if length is None else int(length)
        part = path.with_name(f"{path.name}.{expected or hashlib.sha256(version.encode()).hexdigest()[:8]}.part")
        if (total or 0) > max_bytes:
            raise ConnectionError(_TOO_LARGE.format(max_bytes / (1 << 20)))
        if total is None or not 0 < _file_size(part) <= total:
            _save_response(response, part, total, max_bytes=max_bytes)
    while total is not None and (start := _file_size(part)) < total:
        with closing(_open_url(url, start=start)) as response:
            is_partial = response.status == 206  # 200: the server sends the whole file again
            range_prefix = f"bytes {start}-" if is_partial else ""
            is_same_file = _version_id(response) == version and response.headers.get("Content-Range", "").startswith(
                range_prefix
            )
            if is_same_file:
                _save_response(response, part, total, max_bytes=max_bytes, append=is_partial)
        if not is_same_file or _file_size(part) > total:
            part.unlink()
            problem = "then the server sent a different file or range; the next attempt starts over"
            raise ConnectionError(f"interrupted after {start} of {total} bytes, {problem}")
        if _file_size(part) <= start:
            raise ConnectionError(f"interrupted after {start} of {total} bytes; the next attempt resumes from there")
    return part


def _version_id(response: HTTPResponse) -> str:
    """Return a string that identifies the version of a file under its URL: ETag or Last-Modified, and size."""
    size = response.headers.get("Content-Range", "").rpartition("/")[2] or response.headers.get("Content-Length")
    return f"{response.headers.get('ETag') or response.headers.get('Last-Modified')} {size}"


def _open_url(url: str, *, start: int = 0) -> HTTPResponse:
    headers = {"User-Agent": "fcos"} | ({"Range": f"bytes={start}-"} if start else {})
    parts = urlsplit(url)
    if not parts.hostname:
        raise ValueError("the URL has no host name")
    try:
        is_port = parts.port != 0
    except ValueError:
        is_port = False
    if not is_port:
        raise ValueError("the port in the URL is not a number from 1 to 65535")
    path, query = (quote(text, safe=string.punctuation) for text in (parts.path, parts.query))
    try:
        return urlopen(Request(parts._replace(path=path, query=query).geturl(), headers=headers), timeout=_TIMEOUT)
    except HTTPError as error:
        error.close()  # closes the connection
        raise


def _save_response(
    response: HTTPResponse, part: Path, total: int | None, *, max_bytes: int, append: bool = False
) -> None:
    """Write a response to a partial file, which is removed if it becomes larger than `max_bytes`.

    A lost connection raises an error only if the total size is unknown; otherwise the caller sees it from the size.
    """
    name = part.name.partition(".")[0]
    with part.open("ab" if append else "wb") as file, progress_bar(name, in_bytes=True) as update:
        try:
            while chunk := response.read(_CHUNK_SIZE):
                file.write(chunk)
                update(file.tell(), total)
                if file.tell() > max_bytes:
                    break
        except _CONNECTION_ERRORS:
            if total is None:
                raise
    if _file_size(part) > max_bytes:
        part.unlink()
        raise ConnectionError(_TOO_LARGE.format(max_bytes / (1 << 20)))


def _file_size(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0
