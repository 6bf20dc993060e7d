"""Files from the net: mirrors, cache, downloads that broke off, hashes, licences."""

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

_PATIENCE = 10.0  # seconds without an answer, or without a further byte
_CHUNK = 1 << 20
_LONGEST_NAME = 200
_BROKEN_OFF = (TimeoutError, ConnectionError, SSLError, HTTPException)
_told: set[tuple[str, str]] = set()  # licences, and of what


@dataclass(frozen=True)
class WebFile:
    """A file of weights on the net.

    Attributes:
        urls: where it is, in the order they are tried. `#NAME` at the end of the first is the file's name in the cache.
        licence: of the weights; None: not known here (the address is the user's).
        restricted: the licence allows no commercial use, or nobody says what it is: told when it is first used.
    """

    urls: tuple[str, ...]
    licence: str | None = None
    restricted: bool = False

    @property
    def name(self) -> str:
        """In the cache. Without `#NAME` or a hash it is the whole address: many files are called R-50.pkl."""
        address, _, name = self.urls[0].partition("#")
        if not name:
            last = address.partition("?")[0].rpartition("/")[2]
            name = last if _hash_in(last) else address.partition("://")[2]
        return re.sub(r"[^\w.-]+", "_", name).strip("._")[-_LONGEST_NAME:]


def is_url(source: str) -> bool:
    """Whether it is an http(s) address."""
    return source.startswith(("http://", "https://"))


def hub_file(source: str | WebFile, name: str, *, otherwise: str) -> Path:
    """The file of an address in the torch hub cache, where it is downloaded to when it is missing.

    What a download that broke off has left behind is used by the next one. Of several processes one downloads.

    Args:
        source: an address (http or https), or several with their licence. When the name in the cache is
            NAME-HASH.EXTENSION (seven hexadecimal digits or more, not a number), the SHA-256 of a download must begin
            with HASH.
        name: of the weights, for the message.
        otherwise: what else a user without a network can do, for the message.

    Raises:
        WeightsError: no address has it; every one is named with the reason, and where the file belongs.
    """
    file = WebFile((source,)) if isinstance(source, str) else source
    path = Path(torch.hub.get_dir()) / "checkpoints" / file.name
    if not path.is_file():
        _fetch(file, path, name, otherwise=otherwise)
    if file.restricted:
        tell_licence(file.licence, name)
    return path


def tell_licence(licence: str | None, where: str, *, derived: bool = False) -> None:
    """Warn, once, of weights that may not be free to use.

    Args:
        licence: None or empty: nothing is known against any use.
        where: the weights, for the message.
        derived: they have the licence of others that they were trained or converted from; then it is not told again
            after it was told of those.
    """
    if not licence or (licence, where) in _told or (derived and any(licence == told for told, _ in _told)):
        return
    _told.add((licence, where))
    log.warning("%s: mind the licence of these weights: %s", where, licence)


def _fetch(file: WebFile, path: Path, name: str, *, otherwise: str) -> None:
    """Download a file; as `hub_file`, whose Raises it has."""
    failures = []
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock")):
            if path.is_file():  # by another process in the meantime
                return
            for address in file.urls:
                url = address.partition("#")[0]
                failure = _download(file, url, path)
                if failure is None:
                    return
                failures.append(f"{url} ({failure})")
    except OSError as error:  # no place for the cache
        failures = [f"to {path.parent} ({error})"]
    reasons = ",\n  ".join(failures)
    raise WeightsError(
        f"{name}: could not download {reasons}; fetch the file elsewhere and put it at {path}, or {otherwise}"
    )


def _hash_in(name: str) -> str:
    """What the SHA-256 of a file begins with, from its name; empty: it does not say. Digits alone may be a date."""
    found = re.search(r"-(?=\d*[a-f])([0-9a-f]{7,64})\.", name)
    return found[1] if found else ""


def _download(file: WebFile, url: str, path: Path) -> str | None:
    """Fetch a file; why it is not there afterwards, if it is not."""
    licence = f" (licence: {file.licence})" if file.licence else ""
    print(f"downloading {url} to {path}{licence}", file=sys.stderr)
    expected = _hash_in(path.name)
    try:
        part = _receive(url, path, expected)
        with part.open("rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
    except (OSError, HTTPException, ValueError) as error:  # ValueError: no address
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
    """The complete file, under a name that keeps parts of different files (or of their versions) from being mixed."""
    with closing(_open(url)) as answer:
        length, version = answer.headers.get("Content-Length"), _version(answer)
        total = None if length is None else int(length)
        part = path.with_name(f"{path.name}.{expected or hashlib.sha256(version.encode()).hexdigest()[:8]}.part")
        if total is None or not 0 < _size(part) <= total:
            _save(answer, part, total)
    while total is not None and (before := _size(part)) < total:
        with closing(_open(url, start=before)) as answer:
            rest = answer.status == 206  # 200: the server sends the whole file once more
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
    """What differs between a file and another one, or a later one, under the same address."""
    of_all = answer.headers.get("Content-Range", "").rpartition("/")[2] or answer.headers.get("Content-Length")
    return f"{answer.headers.get('ETag') or answer.headers.get('Last-Modified')} {of_all}"


def _open(url: str, *, start: int = 0) -> HTTPResponse:
    headers = {"User-Agent": "fcos"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        return urlopen(Request(url, headers=headers), timeout=_PATIENCE)
    except HTTPError as error:
        error.close()  # it is also the connection
        raise


def _save(answer: HTTPResponse, part: Path, total: int | None, *, append: bool = False) -> None:
    """Write what comes. That it breaks off is an error only where the number of bytes does not show it."""
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
