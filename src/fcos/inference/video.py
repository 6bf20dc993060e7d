"""Reading of video files, streams and cameras, and writing of videos, with PyAV (extra `video`).

PyAV's wheels contain encoders under the GPL, such as x264, which this module does not use: decoding does not need them,
and videos are written with libvpx (BSD).
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from PIL import Image

from ..data.files import IMAGE_SUFFIXES
from ..data.opening import MAX_PIXELS
from ..downloads import is_url, media_type
from ..errors import ConfigError, DataError
from ..files import explain_write_errors, replaced, require_regular

VIDEO_SUFFIXES = (
    *(".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv"),
    *(".3gp", ".ogv"),
)
_STREAM_SUFFIXES = (*VIDEO_SUFFIXES, ".m3u8", ".mjpg", ".mjpeg")
_STREAM_SCHEMES = ("rtsp://", "rtsps://")
_STREAM_TYPES = ("video/", "multipart/x-mixed-replace", "application/vnd.apple.mpegurl", "application/x-mpegurl")
_TIMEOUT = 10.0  # seconds
_TURNS = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}
_MILLISECOND = Fraction(1, 1000)
_CODEC = "libvpx-vp9"
_CODEC_OPTIONS = {"deadline": "realtime", "cpu-used": "8", "row-mt": "1", "crf": "30", "b": "0"}


class VideoFrame(NamedTuple):
    """Frame of a video.

    Attributes:
        image: RGB picture; None if it could not be decoded.
        error: reason why it could not be decoded.
        time: seconds since the start of the video.
        is_live: whether the video has no end, so that frames arrive at their own pace.
    """

    image: Image.Image | None
    error: str | None
    time: float
    is_live: bool


def import_av(where: str) -> ModuleType:
    """Import PyAV. `where` names the video, for the message.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import av
    except ImportError:
        raise ConfigError(f'{where}: videos and cameras need PyAV; type: pip install "fcos-vision[video]"') from None
    return av


def is_remote(source: str) -> bool:
    """Return whether a source is an http(s) or RTSP URL."""
    return is_url(source) or source.lower().startswith(_STREAM_SCHEMES)


def is_video(source: str) -> bool:
    """Return whether a source is a video file or stream.

    An http(s) URL whose suffix does not tell is requested, because cameras serve streams under any URL.
    """
    if source.lower().startswith(_STREAM_SCHEMES):
        return True
    if not is_url(source):
        return source.lower().endswith(VIDEO_SUFFIXES) and os.path.isfile(source)
    with suppress(ValueError):  # not a URL
        path = urlsplit(source).path.lower()
        if path.endswith(IMAGE_SUFFIXES):
            return False
        return path.endswith(_STREAM_SUFFIXES) or media_type(source, max_seconds=_TIMEOUT).startswith(_STREAM_TYPES)
    return False


def count_frames(source: str) -> int | None:
    """Return the number of frames of a video file, an estimate if the file does not state it; None: unknown."""
    if is_remote(source):
        return None
    with suppress(ConfigError, DataError), _open(source) as container:
        stream = container.streams.video[0]
        if stream.frames:
            return stream.frames
        if container.duration and stream.average_rate:
            return max(1, round(container.duration / 1e6 * stream.average_rate))
    return None


def read_video(source: str, *, max_pixels: int | None = MAX_PIXELS) -> Iterator[VideoFrame]:
    """Decode a video file or stream. A frame that cannot be decoded is a `VideoFrame` with an error.

    Frames are rotated as the file states. Only the first video stream is read.

    Args:
        source: path, or http(s) or RTSP URL.
        max_pixels: largest number of pixels of a frame; None: no limit.

    Raises:
        ConfigError: PyAV is not installed.
        DataError: the source cannot be opened, contains no video or not a single frame, or is too large.
    """
    with _open(source) as container:
        stream = container.streams.video[0]
        if max_pixels is not None and stream.width * stream.height > max_pixels:
            raise DataError(
                f"{source}: has {stream.width}x{stream.height} pixels, more than data.max_pixels={max_pixels}; if the"
                " file can be trusted, increase this option"
            )
        yield from _decode(container, is_live=is_remote(source) and not container.duration, name=source)


def read_camera(number: int) -> Iterator[VideoFrame]:
    """Read the frames of a camera without end. Errors are those of `read_video`."""
    address, form = camera_input(number)
    with _open(address, form=form, name=f"camera {number}") as container:
        yield from _decode(container, is_live=True, name=f"camera {number}")


def camera_input(number: int) -> tuple[str, str | None]:
    """Return FFmpeg's address of a camera and the name of its input format.

    Raises:
        ConfigError: cameras have no numbers on this system.
    """
    if sys.platform.startswith("linux"):
        return f"/dev/video{number}", "v4l2"
    if sys.platform == "darwin":
        return str(number), "avfoundation"
    raise ConfigError(f"{number}: cameras are read on Linux and macOS only")


def _open(source: str, *, form: str | None = None, name: str = "") -> Any:
    """Open a video with at least one video stream."""
    name = name or source
    av = import_av(name)
    is_file = form is None and not is_remote(source)
    options = {"rtsp_transport": "tcp"} if source.lower().startswith(_STREAM_SCHEMES) else {}
    try:
        if is_file:
            require_regular(source)
        # `file:`, because FFmpeg takes the start of a:b.mp4 for a protocol.
        address = f"file:{os.path.abspath(source)}" if is_file else source
        container = av.open(address, format=form, options=options, timeout=None if is_file else _TIMEOUT)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise DataError(f"{name}: cannot be opened as video: {_describe(error)}") from None
    if not container.streams.video:
        container.close()
        raise DataError(f"{name}: contains no video")
    container.streams.video[0].thread_type = "AUTO"
    return container


def _describe(error: Exception) -> str:
    reason = getattr(error, "strerror", None)  # without the address
    return str(reason or error).partition("\n")[0] or type(error).__name__


def _decode(container: Any, *, is_live: bool, name: str) -> Iterator[VideoFrame]:
    av, stream = import_av(name), container.streams.video[0]
    rate, first, last = float(stream.average_rate or 25), None, 0.0  # of the first and the last frame, in seconds
    packets, is_empty = container.demux(stream), True
    while True:
        try:
            packet = next(packets)
            frames = packet.decode()
        except StopIteration:
            if is_empty:
                hint = "" if is_live else "; the file is incomplete"
                raise DataError(f"{name}: ends before its first frame{hint}") from None
            return
        except av.FFmpegError as error:
            is_empty = False
            yield VideoFrame(None, f"cannot be decoded: {_describe(error)}", last - (first or 0.0), is_live)
            if not isinstance(error, av.InvalidDataError):  # the connection or the disk
                return
            continue
        for frame in frames:
            is_empty = False
            # Without timestamps, the frames have equal distances.
            seconds = last + 1 / rate if frame.time is None else frame.time
            first = seconds if first is None else first
            last = seconds
            if frame.is_corrupt:
                yield VideoFrame(None, "is damaged", seconds - first, is_live)
            else:
                yield VideoFrame(_to_image(frame), None, seconds - first, is_live)


def _to_image(frame: Any) -> Image.Image:
    image = frame.to_image()
    turn = _TURNS.get(round(frame.rotation) % 360)
    return image if turn is None else image.transpose(turn)


class VideoFile:
    """Video file that is written frame by frame: VP9 in WebM, without sound. It replaces `path` when it is closed.

    Args:
        path: path of the file.
        size: (width, height) of the first frame; the video is at most one pixel smaller, as its sides are even.

    Raises:
        ConfigError: PyAV is not installed, or its FFmpeg has no encoder for VP9.
        WriteError: the file cannot be written.
    """

    SUFFIX = ".webm"

    def __init__(self, path: Path, size: tuple[int, int]):
        self._av = import_av(str(path))
        if _CODEC not in self._av.codecs_available:
            raise ConfigError(f"videos cannot be written: this FFmpeg has no encoder {_CODEC}; choose another --save")
        self.path = path
        self._size = (max(2, size[0] // 2 * 2), max(2, size[1] // 2 * 2))
        self._last = -1
        with ExitStack() as stack, explain_write_errors(path):
            temporary = stack.enter_context(replaced(path))
            self._container = stack.enter_context(self._av.open(str(temporary), "w", format="webm"))
            self._stack = stack.pop_all()
        self._stream = self._container.add_stream(_CODEC, rate=25, options=_CODEC_OPTIONS)
        self._stream.width, self._stream.height = self._size
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = _MILLISECOND

    def write(self, image: Image.Image, seconds: float) -> None:
        """Append a frame; one of another size is scaled.

        Raises:
            WriteError: the disk is full.
        """
        if image.size != self._size:
            is_odd = all(0 <= side - even <= 1 for side, even in zip(image.size, self._size, strict=True))
            image = image.crop((0, 0, *self._size)) if is_odd else image.resize(self._size)
        frame = self._av.VideoFrame.from_image(image)
        self._last = max(self._last + 1, math.floor(seconds * 1000 + 0.5))
        frame.pts, frame.time_base = self._last, _MILLISECOND
        with explain_write_errors(self.path):
            self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Write the end of the file, and give it its name.

        Raises:
            WriteError: the disk is full.
        """
        with explain_write_errors(self.path), self._stack:
            self._container.mux(self._stream.encode())
