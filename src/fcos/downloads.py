"""Download of weights files: mirrors, cache, resumed downloads, hashes, licences."""

from __future__ import annotations

import hashlib
import logging
import re
import sys
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from ssl import SSLError
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import torch
from filelock import FileLock

from .errors import WeightsError
from .progress import progress_bar

log = logging.getLogger(__name__)

_PATIENCE = 10.0  # timeout in seconds for the response and for each read
_CHUNK = 1 << 20
_LONGEST_NAME = 200
_BROKEN_OFF = (TimeoutError, ConnectionError, SSLError, HTTPException)
_told: set[tuple[str, str]] = set()  # (licence, weights) of warnings already logged


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
            name = last if _hash_in(last) else address.partition("://")[2]
        return re.sub(r"[^\w.-]+", "_", name).strip("._")[-_LONGEST_NAME:]


def is_url(source: str) -> bool:
    """Return whether `source` is an http(s) URL."""
    return source.startswith(("http://", "https://"))


def hub_file(source: str | WebFile, name: str, *, otherwise: str) -> Path:
    """Return the path of a file in the torch hub cache, after downloading it if it is missing.

    An interrupted download is resumed by the next call. If several processes call this, only one downloads.

    Args:
        source: http(s) URL, or a `WebFile`. If the name in the cache is NAME-HASH.EXTENSION (HASH: at least seven
            hexadecimal digits, not only 0-9), the SHA-256 of the download must begin with HASH.
        name: name of the weights, for messages.
        otherwise: alternative for a user without network access, for the error message.

    Raises:
        WeightsError: every URL failed; the message gives the reason for each, and the path for a manual download.
    """
    file = WebFile((source,)) if isinstance(source, str) else source
    path = Path(torch.hub.get_dir()) / "checkpoints" / file.name
    if not path.is_file():
        _fetch(file, path, name, otherwise=otherwise)
    if file.restricted:
        tell_licence(file.licence, name)
    return path


def tell_licence(licence: str | None, where: str, *, derived: bool = False) -> None:
    """Log one warning about a licence that may restrict the use of weights.

    Args:
        licence: licence of the weights; None or empty: no restriction is known.
        where: path or name of the weights, for the message.
        derived: True if the weights inherit the licence of the weights they were trained or converted from. No warning
            is logged if there was already one about this licence.
    """
    if not licence or (licence, where) in _told or (derived and any(licence == told for told, _ in _told)):
        return
    _told.add((licence, where))
    log.warning("%s: mind the licence of these weights: %s", where, licence)


def _fetch(file: WebFile, path: Path, name: str, *, otherwise: str) -> None:
    """Download a file to `path`, trying all its URLs. Raises `WeightsError` as `hub_file` does."""
    failures = []
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock")):
            if path.is_file():  # downloaded by another process in the meantime
                return
            for address in file.urls:
                url = address.partition("#")[0]
                failure = _download(file, url, path)
                if failure is None:
                    return
                failures.append(f"{url} ({failure})")
    except OSError as error:  # the cache folder is not writable
        failures = [f"to {path.parent} ({error})"]
    reasons = ",\n  ".join(failures)
    raise WeightsError(
        f"{name}: could not download {reasons}; fetch the file elsewhere and put it at {path}, or {otherwise}"
    )


def _hash_in(name: str) -> str:
    """Return the SHA-256 prefix in a file name, empty if there is none. Digits 0-9 alone may be a date."""
    found = re.search(r"-(?=\d*[a-f])([0-9a-f]{7,64})\.", name)
    return found[1] if found else ""


def _download(file: WebFile, url: str, path: Path) -> str | None:
    """Download a file from one URL to `path`. Return None on success, else the reason for the failure."""
    licence = f" (licence: {file.licence})" if file.licence else ""
    print(f"downloading {url} to {path}{licence}", file=sys.stderr)
    expected = _hash_in(path.name)
    try:
        part = _receive(url, path, expected)
        with part.open("rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
    except (OSError, HTTPException, ValueError) as error:  # ValueError: not a URL
        reason = error.reason if type(error) is URLError else error
        return str(reason) or type(reason).__name__
    if not part.stat().st_size:
        part.unlink()
        return "an empty file"
    if not found.startswith(expected):
        part.unlink()
        other = "" if file.licence else f"; if that is no hash, name the file otherwise: {url}#NAME"
        return f"another file: its SHA-256 begins with {found[: len(expected)]}, expected {expected}{other}"
    part.replace(path)
    for left in path.parent.glob(f"{path.name}.*.part"):
        left.unlink(missing_ok=True)
    return None


def _receive(url: str, path: Path, expected: str) -> Path:
    """Download a complete file, resuming if possible, and return its path, which ends in `.part`.

    The name contains the expected hash or the version, so that parts of different files or versions are never mixed.
    """
    with closing(_open(url)) as answer:
        length, version = answer.headers.get("Content-Length"), _version(answer)
        total = None if length is None else int(length)
        part = path.with_name(f"{path.name}.{expected or hashlib.sha256(version.encode()).hexdigest()[:8]}.part")
        if total is None or not 0 < _size(part) <= total:
            _save(answer, part, total)
    while total is not None and (before := _size(part)) < total:
        with closing(_open(url, start=before)) as answer:
            rest = answer.status == 206  # 200: the server sends the whole file again
            first = f"bytes {before}-" if rest else ""
            same = _version(answer) == version and answer.headers.get("Content-Range", "").startswith(first)
            if same:
                _save(answer, part, total, append=rest)
        if not same or _size(part) > total:
            part.unlink()
            what = "then the server sent another file or another part; the next try begins anew"
            raise ConnectionError(f"broken off after {before} of {total} bytes, {what}")
        if _size(part) <= before:
            raise ConnectionError(f"broken off after {before} of {total} bytes; the next try goes on from there")
    return part


def _version(answer: HTTPResponse) -> str:
    """Return a string that identifies the version of a file under its URL: ETag or Last-Modified, and size."""
    of_all = answer.headers.get("Content-Range", "").rpartition("/")[2] or answer.headers.get("Content-Length")
    return f"{answer.headers.get('ETag') or answer.headers.get('Last-Modified')} {of_all}"


def _open(url: str, *, start: int = 0) -> HTTPResponse:
    headers = {"User-Agent": "fcos"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        return urlopen(Request(url, headers=headers), timeout=_PATIENCE)
    except HTTPError as error:
        error.close()  # closes the connection
        raise


def _save(answer: HTTPResponse, part: Path, total: int | None, *, append: bool = False) -> None:
    """Write a response to a partial file.

    A lost connection raises an error only if the total size is unknown; otherwise the caller sees it from the size.
    """
    name = part.name.partition(".")[0]
    with part.open("ab" if append else "wb") as file, progress_bar(name, in_bytes=True) as update:
        try:
            while chunk := answer.read(_CHUNK):
                file.write(chunk)
                update(file.tell(), total)
        except _BROKEN_OFF:
            if total is None:
                raise


def _size(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0
