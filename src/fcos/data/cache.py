"""Cache of decoded images for training (`data.cache`): one file per split, which all processes of a machine share.

The file has a fixed place for the pixels of every image, preceded by the size and time of the image file that they were
decoded from. It has no name, so that nothing remains of it when the last process ends, however it ends.
"""

from __future__ import annotations

import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Sequence
from io import FileIO
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..choices import Cache
from ..errors import ConfigError
from .workers import available_memory

LARGEST_SHARE = 0.5
"""Largest share of the available memory, or of the free disk space, that a cache may take."""
_HAS_LINKS = Path("/proc/self/fd").is_dir()
"""True where files without name have a path, as on Linux."""
_HAS_MEMORY_FILES = _HAS_LINKS and hasattr(os, "memfd_create")
"""True where files can be in memory. Otherwise `ram` is a file on disk, too, which the system keeps in memory."""
_VERSION = struct.Struct("<qq")  # size and time of modification of an image file


class PixelCache:
    """Pixels of the images of a split, uint8 RGB as displayed, shared by all processes of a machine.

    Pixels are written before the version of their image file, so that no process reads half an image. An image file
    that changes is decoded again. If the file cannot be written, images are decoded each time.

    Args:
        path: path of the file.
        identity: device and inode of the file. A closed file's path may later be that of another file.
        sizes: int [I, 2], (height, width) of the images.
    """

    def __init__(self, path: str, identity: tuple[int, int], sizes: np.ndarray) -> None:
        self.path, self.identity, self._sizes = path, identity, sizes
        lengths = sizes.astype(np.int64).prod(axis=1) * 3
        self._starts = len(sizes) * _VERSION.size + np.cumsum(lengths) - lengths
        self._handle: tuple[int, FileIO] | None = None  # with the process that opened it: a fork shares its position
        self._is_usable, self._failure = True, ""

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_handle": None}

    def get(self, index: int, path: Path, decode: Callable[[], Tensor]) -> Tensor:
        """Return the pixels of an image, uint8 [3, H, W], a channels-last view that the caller may change.

        Args:
            index: position of the image.
            path: path of the image file.
            decode: function that reads the pixels from this file.

        Raises:
            DataError: see `decode`.
        """
        try:
            version = _version(path)
        except OSError:
            return decode()  # which explains the error
        try:
            pixels = self._read(index, version)
            if pixels is None:
                pixels = decode()
                self._write(index, version, pixels)
        except OSError as error:
            self._is_usable = False
            self._failure = (
                f"warning: data.cache: the cache cannot be used ({error.strerror or error}); the other images are"
                " decoded each time"
            )
            return decode()
        return pixels

    def take_failure(self) -> str:
        """Return a warning if the cache failed in this process since the last call, otherwise an empty text."""
        failure, self._failure = self._failure, ""
        return failure

    def close(self) -> None:
        """Stop using the file in this process."""
        self._is_usable = False
        if self._handle is not None:
            self._handle[1].close()
            self._handle = None

    def _read(self, index: int, version: bytes) -> Tensor | None:
        if not self._is_usable:
            return None
        file = self._open()
        file.seek(index * _VERSION.size)
        if file.read(_VERSION.size) != version:
            return None
        height, width = self._sizes[index].tolist()
        pixels = torch.empty(height, width, 3, dtype=torch.uint8)
        file.seek(int(self._starts[index]))
        is_complete = file.readinto(pixels.numpy().data) == pixels.numel()
        return pixels.permute(2, 0, 1) if is_complete else None

    def _write(self, index: int, version: bytes, pixels: Tensor) -> None:
        if not self._is_usable or list(pixels.shape[1:]) != self._sizes[index].tolist():
            return
        file = self._open()
        content = np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())
        file.seek(int(self._starts[index]))
        if file.write(content.data) != content.nbytes:
            raise OSError("incomplete write")
        file.seek(index * _VERSION.size)
        file.write(version)

    def _open(self) -> FileIO:
        """Return the file, opened by this process."""
        if self._handle is None or self._handle[0] != os.getpid():
            file = open(self.path, "r+b", buffering=0)  # noqa: SIM115 (open until `close`)
            if _identity(file) != self.identity:
                file.close()
                raise OSError("the file is gone")
            self._handle = os.getpid(), file
        return self._handle[1]


class CacheFiles:
    """Files of the caches of several splits, which exist until `close` is called or the process ends.

    Args:
        kind: place of the files, `ram` or `disk`.
        sizes: int [I, 2] of every split, (height, width) of its images.

    Raises:
        ConfigError: the decoded images take more than `LARGEST_SHARE` of the space, or the files cannot be created.
    """

    def __init__(self, kind: Cache, sizes: Sequence[np.ndarray]) -> None:
        self.caches: list[PixelCache] = []
        self._files: list[FileIO] = []
        self._named: list[str] = []
        _check_space(kind, sizes)
        try:
            for split_sizes in sizes:
                file, path = self._create(kind)
                self._files.append(file)
                file.truncate(len(split_sizes) * _VERSION.size + decoded_bytes(split_sizes))
                self.caches.append(PixelCache(path, _identity(file), split_sizes))
        except OSError as error:
            self.close()
            raise ConfigError(f"data.cache={kind}: cannot create the cache: {error.strerror or error}") from None

    def _create(self, kind: Cache) -> tuple[FileIO, str]:
        """Create a file; return it with a path by which other processes can open it."""
        if kind == "ram" and _HAS_MEMORY_FILES:
            descriptor = os.memfd_create("fcos-pixels")
        else:
            descriptor, name = tempfile.mkstemp(prefix="fcos-pixels-", dir=disk_folder())
            if not _HAS_LINKS:
                self._named.append(name)
                return os.fdopen(descriptor, "r+b", buffering=0), name
            os.unlink(name)
        return os.fdopen(descriptor, "r+b", buffering=0), f"/proc/{os.getpid()}/fd/{descriptor}"

    def close(self) -> None:
        """Remove the files."""
        for file in (*self.caches, *self._files):
            file.close()
        for name in self._named:
            Path(name).unlink(missing_ok=True)
        self._files, self._named = [], []


def decoded_bytes(sizes: np.ndarray) -> int:
    """Return the number of bytes of decoded images of the sizes [I, 2]."""
    return int(sizes.astype(np.int64).prod(axis=1).sum()) * 3


def disk_folder() -> Path:
    """Return the folder of a cache on disk: TMPDIR, or else /var/tmp, because /tmp is in memory on many systems."""
    folder = Path("/var/tmp")
    return folder if "TMPDIR" not in os.environ and folder.is_dir() else Path(tempfile.gettempdir())


def _check_space(kind: Cache, sizes: Sequence[np.ndarray]) -> None:
    """Raise ConfigError if the decoded images take too much of the available memory or disk space."""
    needed = sum(map(decoded_bytes, sizes))
    if kind == "ram" and _HAS_MEMORY_FILES:
        available, place = available_memory(), "available memory"
        remedy = "use data.cache=disk, or leave out data.cache"
    else:
        available, place = shutil.disk_usage(disk_folder()).free, f"free disk space in {disk_folder()}"
        remedy = "set TMPDIR to a folder on a larger disk, or leave out data.cache"
    if available is not None and needed > LARGEST_SHARE * available:
        raise ConfigError(
            f"data.cache={kind}: the {sum(map(len, sizes))} decoded images take {needed / 2**30:.1f} GiB, more than"
            f" {LARGEST_SHARE:.0%} of the {available / 2**30:.1f} GiB of {place}; {remedy}"
        )


def _version(path: Path) -> bytes:
    """Return the size and the time of modification of an image file."""
    status = os.stat(path)
    return _VERSION.pack(status.st_size, status.st_mtime_ns)


def _identity(file: FileIO) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino
