"""Images of the data sets that are written: copies of the pictures, under different names."""

from __future__ import annotations

import shutil
from pathlib import Path

from ...data.files import IMAGE_SUFFIXES
from ...files import explain_write_errors, replaced
from ..output import is_writable, save_picture
from ..stream import Detected
from .interface import Names, split_name


class DataSetImages:
    """Folder with copies of the pictures of a data set. Their names differ in more than the suffix.

    Files are copied unchanged; frames of videos and pictures from elsewhere are encoded.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._names = Names(by_stem=True)

    def add(self, detected: Detected) -> Path:
        """Copy a picture and return its path.

        Raises:
            DataError: the picture cannot be encoded.
            WriteError: the file cannot be written.
        """
        frame, image = detected.frame, detected.frame.image
        assert image is not None
        stem, suffix = split_name(frame)
        is_copied = frame.path is not None and suffix.lower() in IMAGE_SUFFIXES
        if not is_copied and not is_writable(suffix, image.size):
            suffix = ".png"
        path = self.folder / self._names.unique(stem, suffix)
        if not is_copied:
            save_picture(image, path)
            return path
        with explain_write_errors(path):
            self.folder.mkdir(parents=True, exist_ok=True)
            with replaced(path) as temporary:
                shutil.copyfile(str(frame.path), temporary)
        return path
