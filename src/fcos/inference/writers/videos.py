"""Annotated copies of videos."""

from __future__ import annotations

from pathlib import Path

from ..stream import Detected
from ..video import VideoFile
from .interface import Names, video_stem


class VideoWriter:
    """Annotated copies of videos, under the names of the videos. Frames that could not be read are left out."""

    def __init__(self, out: Path, names: Names) -> None:
        self._out = out
        self._names = names
        self._file: VideoFile | None = None
        self._source = ""

    def write(self, detected: Detected) -> None:
        """Write a frame of a video; other pictures are ignored."""
        frame = detected.frame
        if frame.source != self._source:
            self.close()
        if frame.index is None or detected.instances is None:
            return
        if self._file is None:
            path = self._out / self._names.unique(video_stem(frame), VideoFile.SUFFIX)
            self._file, self._source = VideoFile(path, detected.drawn.size), frame.source
        self._file.write(detected.drawn, frame.time or 0.0)
        detected.picture = self._file.path

    def close(self) -> None:
        """Complete the video."""
        file, self._file, self._source = self._file, None, ""
        if file is not None:
            file.close()
