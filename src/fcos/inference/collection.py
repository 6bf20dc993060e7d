"""Large collections of pictures, in parts that are processed independently: folders, Parquet files and tar shards."""

from __future__ import annotations

import hashlib
import lzma
import os
import re
import tarfile
import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.files import IMAGE_SUFFIXES
from ..downloads import is_url
from ..errors import ConfigError, DataError
from .paths import expand
from .video import VIDEO_SUFFIXES, is_video
from .writers.tables import to_unicode

if TYPE_CHECKING:
    import pyarrow

Batch = dict[str, np.ndarray]
"""Columns `image` and `filename`, see `DetectionWorker`."""

PICTURES = "images-"
"""Start of the names of parts that consist of pictures in files of their own."""
_TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_PARQUET_SUFFIX = ".parquet"
_BATCH = 32  # pictures that are in memory at a time
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
    """

    name: str
    paths: tuple[str, ...] = ()
    shard: str | None = None
    group: int = 0

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
            suffixes = (*IMAGE_SUFFIXES, *_TAR_SUFFIXES, _PARQUET_SUFFIX, *VIDEO_SUFFIXES)
            paths = [source] if is_video(source) else expand(source, suffixes=suffixes)
        except DataError as error:
            messages.append(str(error))
            continue
        if video := next((path for path in paths if is_video(path)), None):
            raise ConfigError(f"{video}: --engine ray does not read videos; leave out the option, or name the images")
        found |= dict.fromkeys(paths)
    return list(found), messages


def divide(files: Sequence[str], finished: Collection[str], *, num_workers: int) -> list[Part]:
    """Divide a collection into parts, without the pictures that are finished.

    Args:
        files: pictures and shards.
        finished: names of finished parts of shards, and of finished pictures in files of their own.
        num_workers: number of parts that are processed at the same time.
    """
    shards = [part for path in files if _is_shard(path) for part in _divide_shard(path)]
    pictures = [path for path in files if not _is_shard(path) and to_unicode(path) not in finished]
    step = min(_LARGEST_PART, -(-len(pictures) // (_PARTS_PER_WORKER * num_workers)) or 1)
    chunks = [tuple(pictures[i : i + step]) for i in range(0, len(pictures), step)]
    return [
        *(part for part in shards if part.name not in finished),
        *(Part(f"{PICTURES}{_digest(*chunk)}.parquet", chunk) for chunk in chunks),
    ]


def _is_shard(path: str) -> bool:
    return not is_url(path) and path.lower().endswith((*_TAR_SUFFIXES, _PARQUET_SUFFIX))


def _divide_shard(path: str) -> list[Part]:
    stem = re.sub(r"[^A-Za-z0-9_.-]", "_", os.path.basename(path))[-100:]
    groups = range(_count_row_groups(path) if path.lower().endswith(_PARQUET_SUFFIX) else 1)
    return [Part(f"shard-{stem}-{_digest(path, str(group))}.parquet", shard=path, group=group) for group in groups]


def _count_row_groups(path: str) -> int:
    """Return the number of row groups of a Parquet file, at least 1 so that an unreadable file is reported later."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            return max(1, file.num_row_groups)
    except (OSError, pa.ArrowException):
        return 1


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode(errors="surrogatepass")).hexdigest()[:16]


def read_part(part: Part) -> Iterator[Batch]:
    """Read the pictures of a part, a few at a time, without decoding them.

    Raises:
        DataError: the shard cannot be read any further.
    """
    if part.shard is None:
        pairs: Iterator[tuple[Any, str]] = ((path, path) for path in part.paths)
    elif part.shard.lower().endswith(_PARQUET_SUFFIX):
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


def _read_tar(path: str) -> Iterator[tuple[bytes, str]]:
    """Yield the pictures in a tar file in the layout of webdataset, and their names, `FILE.tar/NAME.jpg`."""
    try:
        with tarfile.open(path, "r|*") as shard:
            for member in shard:
                hidden = os.path.basename(member.name).startswith(".")
                if member.isfile() and not hidden and member.name.lower().endswith(IMAGE_SUFFIXES):
                    file = shard.extractfile(member)
                    assert file is not None  # as it is a file
                    yield file.read(), f"{path}/{member.name}"
    except (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _read_row_group(path: str, group: int) -> Iterator[tuple[Any, str]]:
    """Yield the pictures in a row group of a Parquet file: encoded files or paths, and their names."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
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
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read: {str(error).partition(chr(10))[0]}") from None


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

    def is_binary(kind: pyarrow.DataType) -> bool:
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    def is_content(kind: pyarrow.DataType) -> bool:
        return is_binary(kind) or (pa.types.is_struct(kind) and {"bytes", "path"} <= {field.name for field in kind})

    kinds = {field.name: field.type for field in schema}
    texts = [name for name, kind in kinds.items() if pa.types.is_string(kind) or pa.types.is_large_string(kind)]
    paths = [name for name in _PATHS if name in texts]
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
