"""Annotated copies of pictures, and crops of the objects in them."""

from __future__ import annotations

import math
from pathlib import Path

from ..output import is_writable, save_picture
from ..stream import Detected
from .interface import Classes, Names, OpenFiles, class_folder, split_name
from .videos import VideoWriter


class CopyWriter:
    """Annotated copies of pictures and videos, under their names."""

    def __init__(self, out: Path, classes: Classes, files: OpenFiles) -> None:
        self._out = out
        self._names = Names()
        self._videos = VideoWriter(out, self._names, files)

    def write(self, detected: Detected) -> Path | None:
        """Write the copy of a picture, as PNG if its format cannot store it; or add a frame to the copy of a video."""
        if detected.frame.index is not None:
            return self._videos.write(detected)
        return None if detected.instances is None else _save_drawn(detected, self._out, self._names)


class FrameWriter:
    """Annotated frames of videos as pictures, in a folder `frames`."""

    def __init__(self, out: Path, classes: Classes, files: OpenFiles) -> None:
        self._out = out / "frames"
        self._names = Names()

    def write(self, detected: Detected) -> Path | None:
        """Write a frame of a video; other pictures are ignored."""
        is_frame = detected.frame.index is not None and detected.instances is not None
        return _save_drawn(detected, self._out, self._names) if is_frame else None


def _save_drawn(detected: Detected, folder: Path, names: Names) -> Path:
    stem, suffix = split_name(detected.frame)
    suffix = suffix if is_writable(suffix, detected.drawn.size) else ".png"
    path = folder / names.unique(stem, suffix)
    save_picture(detected.drawn, path)
    return path


class CropWriter:
    """Objects cut out of the pictures, in a folder `crops/CLASS` for each class."""

    def __init__(self, out: Path, classes: Classes, files: OpenFiles) -> None:
        self._out = out / "crops"
        self._names: dict[str, Names] = {}

    def write(self, detected: Detected) -> None:
        """Write the objects of a picture, numbered from the best one."""
        if detected.instances is None:
            return
        image, boxes = detected.frame.image, detected.instances.boxes.tolist()
        assert image is not None
        stem, suffix = split_name(detected.frame)
        for number, (name, box) in enumerate(zip(detected.instances.names, boxes, strict=True), start=1):
            left, top = math.floor(box[0]), math.floor(box[1])
            right, bottom = max(left + 1, math.ceil(box[2])), max(top + 1, math.ceil(box[3]))
            crop = image.crop((left, top, right, bottom))
            folder = class_folder(name)
            names = self._names.setdefault(folder.lower(), Names())
            file = names.unique(f"{stem}_{number}", suffix if is_writable(suffix, crop.size) else ".png")
            save_picture(crop, self._out / folder / file)
