"""Annotated copies of videos."""

from __future__ import annotations

from pathlib import Path

from ..stream import Detected
from ..video import VideoFile
from .interface import Names, OpenFiles, video_stem


class VideoWriter:
    """Annotated copies of videos, under the names of the videos. Frames that could not be read are left out."""

    def __init__(self, out: Path, names: Names, files: OpenFiles) -> None:
        self._out = out
        self._names = names
        self._file: VideoFile | None = None
        self._video: object = None
        files.completion.callback(self._complete)

    def write(self, detected: Detected) -> Path | None:
        """Write a frame of a video and return the path of the copy; other pictures are ignored."""
        frame = detected.frame
        if frame.video is not self._video:
            self._complete()
        if frame.index is None or detected.instances is None:
            return None
        if self._file is None:
            path = self._out / self._names.unique(video_stem(frame), VideoFile.SUFFIX)
            self._file, self._video = VideoFile(path, detected.drawn.size), frame.video
        self._file.write(detected.drawn, frame.time or 0.0)
        return self._file.path

    def _complete(self) -> None:
        file, self._file, self._video = self._file, None, None
        if file is not None:
            file.close()
