"""Outputs of `fcos predict`: one class for each, and the table of their names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from .coco import CocoWriter
from .interface import Classes, Writer
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
    """Open outputs in a folder. All are closed at the end, also after an error or an interruption."""
    with ExitStack() as stack:
        writers: list[Writer] = []
        for name, writer in WRITERS.items():
            if name in names:
                writers.append(writer(out, classes))
                stack.callback(writers[-1].close)
        yield writers
