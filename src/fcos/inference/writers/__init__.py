"""Outputs of `fcos predict`: one class for each, and the table of their names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from ...errors import DataError, WriteError
from ..stream import Detected
from .coco import CocoWriter
from .interface import Classes, OpenFiles, Writer
from .pictures import CopyWriter, CropWriter, FrameWriter
from .tables import CsvWriter, JsonLinesWriter, JsonWriter, ParquetWriter
from .voc import VocWriter
from .yolo import YoloWriter

WRITERS: dict[str, type[Writer]] = {
    "images": CopyWriter,
    "frames": FrameWriter,
    "crops": CropWriter,
    "coco": CocoWriter,
    "yolo": YoloWriter,
    "voc": VocWriter,
    "json": JsonWriter,
    "jsonl": JsonLinesWriter,
    "csv": CsvWriter,
    "parquet": ParquetWriter,
}
"""Outputs by name. Those that list the errors of the others come last."""

__all__ = ["WRITERS", "Classes", "Outputs", "open_outputs"]


class Outputs:
    """Outputs of a run.

    Attributes:
        is_empty: True until the first picture is written.
    """

    def __init__(self, writers: Sequence[Writer]) -> None:
        self._writers = writers
        self.is_empty = True

    def write(self, detected: Detected) -> Detected:
        """Write the result of a picture to all outputs, and return it without the picture."""
        self.is_empty = False
        for writer in self._writers:
            try:
                copied = writer.write(detected)
                detected.picture = detected.picture or copied
            except (DataError, WriteError) as error:
                detected.error = detected.error or str(error)
        return Detected(replace(detected.frame, image=None), detected.instances, detected.error, detected.picture)


@contextmanager
def open_outputs(names: Sequence[str], out: Path, classes: Classes) -> Iterator[Outputs]:
    """Open outputs in a folder, and complete them at the end, also after an error or an interruption.

    If an output cannot be opened, or nothing is written before an interruption, the files of earlier runs stay as they
    are.
    """
    with ExitStack() as cleanup:
        files = OpenFiles(ExitStack(), cleanup)
        outputs = Outputs([writer(out, classes, files) for name, writer in WRITERS.items() if name in names])
        with files.completion:
            try:
                yield outputs
            except BaseException:
                if outputs.is_empty:
                    files.completion.pop_all()
                raise
