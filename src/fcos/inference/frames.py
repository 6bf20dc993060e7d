"""Pictures of any source, one after the other: files, URLs, frames of videos and cameras, new files, paths on stdin."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Container, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path
from threading import Event
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from ..config import DataConfig
from ..data.files import IMAGE_SUFFIXES
from ..downloads import is_url
from ..errors import DataError, FCOSError
from .inputs import Picture, to_picture
from .paths import expand, is_shard, stands_for_several
from .resized import Resized
from .video import VIDEO_SUFFIXES, count_frames, is_video, read_camera, read_video

Kind = Literal["picture", "video", "camera", "list", "watched"]
_THREADS = min(4, os.cpu_count() or 1)  # for decoding pictures
_REQUESTS = 16  # servers that are asked at a time what a URL is
_POLL = 0.5  # seconds between two looks at a watched folder


class Source(NamedTuple):
    """Source as typed, or a file that a folder or glob stands for.

    Attributes:
        text: path, URL, number of a camera, `-` for a list of paths on stdin, or a watched folder.
        kind: kind of the source.
        num_frames: number of pictures, estimated for videos; None: unknown.
    """

    text: str
    kind: Kind
    num_frames: int | None = 1


@dataclass(frozen=True, eq=False)
class Frame:
    """A picture to detect objects in, or the reason why there is none.

    Attributes:
        source: path or URL of the picture or video, or number of the camera; empty for a picture in memory.
        image: RGB picture; None if it could not be read.
        error: reason why it could not be read, with the source; None if it could.
        path: file of the picture; None for other pictures.
        index: position in the video, from 0; None for a picture.
        time: seconds since the start of the video; None for a picture.
        is_live: whether frames are dropped if the detector is slower than the camera or stream.
        video: identity of the opened video; a video that is read twice has two. None for a picture.
        resized: the picture resized for the detector; None: not yet.
    """

    source: str
    image: Image.Image | None = None
    error: str | None = None
    path: Path | None = None
    index: int | None = None
    time: float | None = None
    is_live: bool = False
    video: object = None
    resized: Resized | None = None

    @property
    def where(self) -> str:
        """Source, with the number of the frame, for messages."""
        if not self.source:
            return "picture in memory"
        return self.source if self.index is None else f"{self.source}, frame {self.index}"


def find_sources(texts: Sequence[str], *, watch: bool = False) -> tuple[list[Source], list[Frame]]:
    """Expand folders and globs to different sources, and return the texts that stand for none as failures.

    Args:
        texts: files, folders, globs, URLs, numbers of cameras, and `-`.
        watch: also wait for new files in the folders.
    """
    found: dict[str, Source] = {}
    failures: list[Frame] = []
    watched = [text for text in dict.fromkeys(texts) if watch and os.path.isdir(text)]
    urls = [text for text in dict.fromkeys(texts) if is_url(text)]
    with ThreadPoolExecutor(_REQUESTS) as pool:  # some servers take seconds to answer
        streams = {url for url, is_stream in zip(urls, pool.map(is_video, urls), strict=True) if is_stream}
    for text in texts:
        if text == "-" and not os.path.lexists(text):
            found[text] = Source(text, "list", None)
        elif re.fullmatch("[0-9]{1,3}", text) and not os.path.lexists(text):
            found[text] = Source(text, "camera", None)
        elif text in streams or (not is_url(text) and is_video(text)):
            found[text] = Source(text, "video", count_frames(text))
        elif text not in watched:
            try:
                found |= {path: _to_source(path) for path in expand(text, suffixes=(*IMAGE_SUFFIXES, *VIDEO_SUFFIXES))}
            except DataError as error:
                failures.append(Frame(text, error=str(error)))
    return [*found.values(), *(Source(folder, "watched", None) for folder in watched)], failures


def _to_source(path: str) -> Source:
    # `find_sources` has asked the servers of URLs.
    is_picture = is_url(path) or not is_video(path)
    return Source(path, "picture") if is_picture else Source(path, "video", count_frames(path))


def find_frames(images: Picture | Iterable[Picture], data: DataConfig) -> Iterator[Frame]:
    """Return the frames of pictures in any form, and of videos.

    Args:
        images: a source as typed, a picture, or an iterable of these, which is read picture by picture.
        data: options `bit_depth` and `max_pixels`.

    Raises:
        DataError: the only source does not exist.
    """
    if isinstance(images, str | Path):
        sources, failures = find_sources([str(images)])
        if failures:
            raise DataError(str(failures[0].error))
        return read_frames(sources, data)
    if isinstance(images, list | tuple) and all(isinstance(image, str | Path) for image in images):
        sources, failures = find_sources([str(image) for image in images])
        return chain(failures, read_frames(sources, data))
    return _read_pictures_in_memory(_as_iterable(images), data)


def list_pictures(images: Picture | Iterable[Picture]) -> tuple[list[Picture], bool]:
    """Return the pictures of a call without `stream`, with those of folders and globs, and whether it is a single one.

    Raises:
        DataError: a video is among them, or a path does not exist.
    """
    if isinstance(images, str | Path):
        return _expand_picture(images), not stands_for_several(str(images))
    pictures = [picture for image in _as_iterable(images) for picture in _expand_picture(image)]
    return pictures, _is_single(images)


def _expand_picture(image: Picture) -> list[Picture]:
    """Return the pictures that a folder or a glob stands for, or the picture itself."""
    if isinstance(image, str | Path) and not is_url(str(image)) and is_video(str(image)):
        raise DataError(f"{image}: is a video; use predict(..., stream=True)")
    is_several = isinstance(image, str | Path) and stands_for_several(str(image))
    return [*expand(str(image))] if is_several else [image]


def _as_iterable(images: Picture | Iterable[Picture]) -> Iterable[Picture]:
    # `to_picture` reports anything that is not a picture.
    return [images] if _is_single(images) else images  # pyright: ignore[reportReturnType]


def _is_single(images: Picture | Iterable[Picture]) -> bool:
    # Bytes and open files are iterable, too, but not lists of pictures.
    is_picture = isinstance(images, str | Path | Image.Image | np.ndarray | Tensor | bytes) or hasattr(images, "read")
    return is_picture or not isinstance(images, Iterable)


def _read_pictures_in_memory(images: Iterable[Picture], data: DataConfig) -> Iterator[Frame]:
    for number, image in enumerate(images):
        if isinstance(image, str | Path):
            yield from _read_each([str(image)], data)
        else:
            yield to_frame(image, data, where=f"images[{number}]")


def read_frames(sources: Iterable[Source], data: DataConfig, *, stop: Event | None = None) -> Iterator[Frame]:
    """Read the pictures of all sources in order, several files at a time. A failure does not stop the others.

    Args:
        sources: sources to read. After a source without end, such as a camera, the others are not reached.
        data: options `bit_depth` and `max_pixels`.
        stop: ends the wait for new files in watched folders; None: it never ends.
    """
    for kind, group in groupby(sources, key=lambda source: source.kind):
        texts = [source.text for source in group]
        if kind == "picture":
            yield from _read_pictures(texts, data)
        elif kind == "watched":
            yield from _watch(texts, data, stop or Event())
        elif kind == "list":
            yield from _read_list(data)
        else:
            for text in texts:
                yield from _read_video(text, data, is_camera=kind == "camera")


def _read_pictures(paths: Sequence[str], data: DataConfig) -> Iterator[Frame]:
    """Read pictures in several threads, in order; at most `_THREADS` of them are read before they are needed."""
    with ThreadPoolExecutor(_THREADS) as pool:
        waiting: list[Future[Frame]] = []
        try:
            for path in paths:
                waiting.append(pool.submit(_read_picture, path, data))
                if len(waiting) > _THREADS:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        finally:
            for future in waiting:
                future.cancel()


def _read_picture(path: str, data: DataConfig) -> Frame:
    frame = to_frame(path, data, where=path)
    if frame.error is not None and is_shard(path):
        return Frame(path, error=f"{path}: not an image; only fcos predict --engine ray reads tar and Parquet files")
    return frame


def to_frame(picture: Picture, data: DataConfig, *, where: str) -> Frame:
    """Convert a picture in any form to a frame. `where` names a picture without a path in the message."""
    source = str(picture) if isinstance(picture, str | Path) else ""
    try:
        image = to_picture(picture, where=where, bit_depth=data.bit_depth, max_pixels=data.max_pixels)
    except DataError as error:
        return Frame(source, error=str(error))
    return Frame(source, image, path=Path(source) if source and not is_url(source) else None)


def _read_video(text: str, data: DataConfig, *, is_camera: bool) -> Iterator[Frame]:
    video = object()
    try:
        frames = read_camera(int(text)) if is_camera else read_video(text, max_pixels=data.max_pixels)
        for index, (image, error, seconds, is_live) in enumerate(frames):
            message = None if error is None else f"{text}, frame {index}: {error}"
            yield Frame(text, image, message, index=index, time=seconds, is_live=is_live, video=video)
    except FCOSError as error:
        yield Frame(text, error=str(error))


def _read_list(data: DataConfig) -> Iterator[Frame]:
    """Read the sources that are listed on stdin."""
    try:
        descriptor = sys.stdin.fileno()
    except (OSError, ValueError, AttributeError):  # closed, or replaced by an object without file
        yield Frame("-", error="-: expected paths on stdin, found no stdin")
        return
    yield from _read_each(read_lines(descriptor), data)


def _read_each(paths: Iterable[str], data: DataConfig) -> Iterator[Frame]:
    """Read pictures and videos one by one as they arrive."""
    for path in paths:
        sources, failures = find_sources([path])
        yield from failures
        if any(source.kind in ("camera", "list") for source in sources):
            yield Frame(path, error=f"{path}: no such file; cameras and lists cannot be part of a list")
        else:
            yield from read_frames(sources, data)


def read_lines(descriptor: int) -> Iterator[str]:
    """Read lines without empty ones, each as soon as it arrives.

    Args:
        descriptor: file descriptor. A Python file would hold a lock while it waits, so that Python could not exit.
    """
    rest = b""
    while chunk := os.read(descriptor, 1 << 16):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from (os.fsdecode(line.rstrip(b"\r")) for line in lines if line.strip())
    if rest.strip():
        yield os.fsdecode(rest.rstrip(b"\r"))


def _watch(folders: Sequence[str], data: DataConfig, stop: Event) -> Iterator[Frame]:
    """Read the files in folders, then new ones until `stop`. A file that failed is read again after it has changed."""
    failed: set[str] = set()
    for path in _wait_for_files(folders, failed, stop):
        failed.add(path)
        for frame in _read_each([path], data):
            if frame.image is not None:
                failed.discard(path)
            yield frame


def _wait_for_files(folders: Sequence[str], failed: Container[str], stop: Event) -> Iterator[str]:
    """Yield the files in folders, then new ones as soon as their size and time no longer change.

    Args:
        folders: folders without subfolders.
        failed: files that could not be read, perhaps because their transfer paused. They are yielded again after a
            change; other files are not, as their results are written.
        stop: ends the wait.
    """
    done: dict[str, tuple[int, int]] = {}
    last: dict[str, tuple[int, int]] = {}
    while True:
        states: dict[str, tuple[int, int]] = {}
        for folder in folders:
            states |= _list_states(folder)
        for path in sorted(states):
            is_wanted = path not in done or (path in failed and done[path] != states[path])
            if is_wanted and last.get(path) == states[path]:
                done[path] = states[path]
                yield path
        done = {path: state for path, state in done.items() if path in states}  # a removed file may come again
        last = states
        if stop.wait(_POLL):
            return


def _list_states(folder: str) -> dict[str, tuple[int, int]]:
    """Return size and time of the files in a folder that are not empty."""
    try:
        paths = expand(folder, suffixes=(*IMAGE_SUFFIXES, *VIDEO_SUFFIXES))
    except DataError:  # nothing yet
        return {}
    states: dict[str, tuple[int, int]] = {}
    for path in paths:
        try:
            status = os.stat(path)
        except OSError:  # removed since
            continue
        if status.st_size:
            states[path] = (status.st_size, status.st_mtime_ns)
    return states
