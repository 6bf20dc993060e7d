"""Outputs of `fcos predict`: one class for each, and the table of their names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

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

__all__ = ["WRITERS", "Classes", "Writer", "open_writers"]


@contextmanager
def open_writers(names: Sequence[str], out: Path, classes: Classes) -> Iterator[list[Writer]]:
    """Open outputs in a folder, and complete them at the end, also after an error or an interruption.

    If an output cannot be opened, the files of earlier runs stay as they are.
    """
    with ExitStack() as cleanup:
        files = OpenFiles(ExitStack(), cleanup)
        writers = [writer(out, classes, files) for name, writer in WRITERS.items() if name in names]
        with files.completion:
            yield writers
