"""Large collections of pictures, in parts that are processed independently: folders, Parquet files and tar shards."""

from __future__ import annotations

import hashlib
import lzma
import os
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from ..data.files import IMAGE_SUFFIXES
from ..downloads import is_url
from ..errors import ConfigError, DataError
from ..files import open_file
from .paths import PARQUET_SUFFIX, TAR_SUFFIXES, expand, is_shard
from .video import VIDEO_SUFFIXES, is_video
from .writers.tables import to_unicode

if TYPE_CHECKING:
    import pyarrow
    from pyarrow.parquet import ParquetFile

Batch = dict[str, np.ndarray]
"""Columns `image` and `filename`, see `DetectionWorker`."""

PICTURES = "images-"
"""Start of the names of parts that consist of pictures in files of their own."""
_BATCH = 32  # pictures that are in memory at a time
_BUFFER = 1 << 20  # bytes of each column of a Parquet file
_LARGEST_PART = 256  # pictures in files of their own
_PARTS_PER_WORKER = 4  # at least, so that the workers end at about the same time
_CONTENTS = ("image", "bytes", "content", "image_bytes", "data", "jpg", "jpeg", "png")
_PATHS = ("filename", "file_name", "path", "file", "filepath", "image_path", "image", "url")


@dataclass(frozen=True)
class Part:
    """Pictures whose detections are a file.

    Attributes:
        name: name of the file with the detections. It identifies the pictures.
        paths: pictures; empty for a shard.
        shard: Parquet file or tar file; None: none.
        group: row group of the Parquet file.
        state: size and time of the shard, by which a changed one is recognised.
    """

    name: str
    paths: tuple[str, ...] = ()
    shard: str | None = None
    group: int = 0
    state: str = ""

    @property
    def where(self) -> str:
        """Shard, or the first picture and the number of the others."""
        if self.shard is not None:
            return self.shard
        first, *others = self.paths
        return f"{first} and {len(others)} others" if others else first


def find_files(sources: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the different pictures and shards that sources stand for, and messages for the sources that do not exist.

    Args:
        sources: pictures, shards (Parquet or tar files), folders of them without subfolders, globs, and URLs of
            pictures.

    Raises:
        ConfigError: a source is a video, a camera or `-`.
    """
    found: dict[str, None] = {}
    messages: list[str] = []
    for source in sources:
        if not os.path.lexists(source) and (source == "-" or re.fullmatch("[0-9]{1,3}", source)):
            raise ConfigError(f"{source}: --engine ray does not read cameras or stdin, only files")
        try:
            suffixes = (*IMAGE_SUFFIXES, *TAR_SUFFIXES, PARQUET_SUFFIX, *VIDEO_SUFFIXES)
            paths = [source] if is_url(source) or is_video(source) else expand(source, suffixes=suffixes)
        except DataError as error:
            messages.append(str(error))
            continue
        if video := next((path for path in paths if is_video(path)), None):
            raise ConfigError(f"{video}: --engine ray does not read videos; leave out the option, or name the images")
        found |= dict.fromkeys(paths)
    return list(found), messages


def divide(files: Sequence[str], finished: Mapping[str, str], *, num_workers: int) -> list[Part]:
    """Divide a collection into parts, without the pictures that are finished.

    Args:
        files: pictures and shards.
        finished: states of finished parts of shards by name, see `Part`. It also contains the names of finished
            pictures in files of their own.
        num_workers: number of parts that are processed at the same time.

    Raises:
        DataError: a shard has changed since some of its parts were finished.
    """
    shards = [part for path in files if is_shard(path) for part in _divide_shard(path, finished)]
    pictures = [path for path in files if not is_shard(path) and to_unicode(path) not in finished]
    step = min(_LARGEST_PART, -(-len(pictures) // (_PARTS_PER_WORKER * num_workers)) or 1)
    chunks = [tuple(pictures[i : i + step]) for i in range(0, len(pictures), step)]
    return [
        *(part for part in shards if part.name not in finished),
        *(Part(f"{PICTURES}{_digest(*chunk)}.parquet", chunk) for chunk in chunks),
    ]


def shard_prefix(path: str) -> str:
    """Return the start of the names of the parts of a shard; the number of a row group follows."""
    stem = re.sub(r"[^A-Za-z0-9_.-]", "_", os.path.basename(path))[-100:]
    return f"shard-{stem}-{_digest(path)}-"


def _divide_shard(path: str, finished: Mapping[str, str]) -> list[Part]:
    prefix, state = shard_prefix(path), _state_of(path)
    groups = range(_count_row_groups(path) if path.lower().endswith(PARQUET_SUFFIX) else 1)
    parts = [Part(f"{prefix}{group}.parquet", shard=path, group=group, state=state) for group in groups]
    if any(finished.get(part.name, state) != state for part in parts):
        raise DataError(
            f"{path}: has changed since an earlier run; delete the files {prefix}*.parquet in the output folder, or"
            " choose another folder (--out)"
        )
    return parts


def _state_of(path: str) -> str:
    """Return size and time of a file; empty if it has been removed, which is reported when it is read."""
    try:
        status = os.stat(path)
    except OSError:
        return ""
    return f"{status.st_size} {status.st_mtime_ns}"


def _count_row_groups(path: str) -> int:
    """Return the number of row groups of a Parquet file, at least 1 so that an unreadable file is reported later."""
    try:
        with _open_parquet(path) as file:
            return max(1, file.num_row_groups)
    except DataError:
        return 1


@contextmanager
def _open_parquet(path: str) -> Iterator[ParquetFile]:
    """Open a Parquet file, and describe errors of reading it.

    Raises:
        DataError: it cannot be read.
    """
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    try:
        # Reads pages through a buffer; otherwise a row group, which may be the whole file, would be in memory.
        with open_file(path) as opened, ParquetFile(opened, buffer_size=_BUFFER, pre_buffer=False) as file:
            yield file
    except (OSError, pa.ArrowException, UnicodeError) as error:
        raise DataError(f"{path}: cannot be read: {_describe(error)}") from None


def _describe(error: Exception) -> str:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return reason.partition("\n")[0]


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode(errors="surrogatepass")).hexdigest()[:16]


def read_part(part: Part) -> Iterator[Batch]:
    """Read the pictures of a part, a few at a time, without decoding them.

    Raises:
        DataError: the shard cannot be read any further.
    """
    if part.shard is None:
        pairs: Iterator[tuple[Any, str]] = ((path, path) for path in part.paths)
    elif part.shard.lower().endswith(PARQUET_SUFFIX):
        pairs = _read_row_group(part.shard, part.group)
    else:
        pairs = _read_tar(part.shard)
    waiting: list[tuple[Any, str]] = []
    try:
        for pair in pairs:
            waiting.append(pair)
            if len(waiting) == _BATCH:
                yield _to_batch(waiting)
                waiting.clear()
    except DataError:
        if waiting:
            yield _to_batch(waiting)
        raise
    if waiting:
        yield _to_batch(waiting)


def _to_batch(pairs: Sequence[tuple[Any, str]]) -> Batch:
    batch = {"image": np.empty(len(pairs), dtype=object), "filename": np.empty(len(pairs), dtype=object)}
    for i, (image, name) in enumerate(pairs):
        batch["image"][i], batch["filename"][i] = image, name
    return batch


class _Member(tarfile.TarInfo):
    """Member of a tar file. By default, a damaged header ends the file without an error, as does a missing end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Return the member of a header."""
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if buf == bytes(tarfile.BLOCKSIZE):  # the end that a tar file must have
                raise
            raise tarfile.ReadError(str(error)) from None


def _read_tar(path: str) -> Iterator[tuple[bytes, str]]:
    """Yield the pictures in a tar file in the layout of webdataset, and their names, `FILE.tar/NAME.jpg`."""
    try:
        with open_file(path) as opened, tarfile.open(fileobj=opened, mode="r|*", tarinfo=_Member) as shard:
            for member in shard:
                hidden = os.path.basename(member.name).startswith(".")
                if member.isfile() and not hidden and member.name.lower().endswith(IMAGE_SUFFIXES):
                    file = shard.extractfile(member)
                    assert file is not None  # as it is a file
                    yield file.read(), f"{path}/{member.name}"
    except (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{path}: cannot be read: {_describe(error)}") from None


def _read_row_group(path: str, group: int) -> Iterator[tuple[Any, str]]:
    """Yield the pictures in a row group of a Parquet file: encoded files or paths, and their names."""
    with _open_parquet(path) as file:
        image, name = _find_columns(path, file.schema_arrow)
        start = sum(file.metadata.row_group(i).num_rows for i in range(group))
        columns = [column for column in (image, name) if column is not None]
        groups = [group] if file.num_row_groups else []
        for batch in file.iter_batches(_BATCH, row_groups=groups, columns=columns):
            images = batch.column(image).to_pylist()
            names = [None] * len(images) if name is None else batch.column(name).to_pylist()
            for number, (value, text) in enumerate(zip(images, names, strict=True), start):
                yield _to_pair(value, text, path, number)
            start += len(images)


def _to_pair(value: Any, name: str | None, path: str, number: int) -> tuple[Any, str]:
    if isinstance(value, dict):  # an image of the library datasets: its bytes or its path
        value, name = value.get("bytes") or value.get("path"), name or value.get("path")
    if isinstance(value, str):
        file = value if is_url(value) else os.path.join(os.path.dirname(path), value)
        return file, file
    return value, name or f"{path}/{number}"


def _find_columns(path: str, schema: pyarrow.Schema) -> tuple[str, str | None]:
    """Return the names of the columns with pictures and with their names.

    Raises:
        DataError: no column, or several, may contain pictures.
    """
    import pyarrow as pa

    binary = (pa.binary(), pa.large_binary(), pa.binary_view())
    text = (pa.string(), pa.large_string(), pa.string_view())

    def is_content(kind: pyarrow.DataType) -> bool:
        return kind in binary or (pa.types.is_struct(kind) and {"bytes", "path"} <= {field.name for field in kind})

    kinds = {field.name: field.type for field in schema}
    paths = [name for name in _PATHS if kinds.get(name) in text]
    contents = [name for name, kind in kinds.items() if is_content(kind)]
    if len(contents) > 1:
        contents = [name for name in _CONTENTS if name in contents][:1]
    if contents:
        return contents[0], paths[0] if paths else None
    if paths:
        return paths[0], None
    raise DataError(
        f"{path}: expected a column with encoded image files (binary), or with paths (called {', '.join(_PATHS)}),"
        f" found {', '.join(f'{name} ({kind})' for name, kind in kinds.items()) or 'no columns'}"
    )
