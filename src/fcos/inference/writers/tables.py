"""Tables of all detections: JSON, JSON lines, CSV and Parquet."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import ConfigError
from ...files import explain_write_errors, temporary_path
from ..stream import Detected
from .interface import Classes, OpenFiles, refuse_folder
from .row_file import RowFile

if TYPE_CHECKING:
    import pyarrow

_COLUMNS = (
    *("filename", "frame", "time", "image_width", "image_height"),
    *("class", "category_id", "score", "xmin", "ymin", "xmax", "ymax", "track_id"),
)
"""Columns of CSV and Parquet files. `fcos` reads boxes from a CSV with them."""
PARQUET_COLUMNS = (*_COLUMNS, "segmentation", "keypoints")
"""Columns of Parquet files."""
_ROWS_AT_A_TIME = 4096  # rows of a group in a Parquet file


def to_json(detected: Detected, classes: Classes) -> dict[str, Any]:
    """Return plain data of a picture: file, frame and time of a video, error, annotated copy, size and detections."""
    frame, instances = detected.frame, detected.instances
    row: dict[str, Any] = {"file": frame.source}
    if frame.index is not None:
        row |= {"frame": frame.index, "time": round(frame.time or 0.0, 6)}
    if detected.error is not None:
        row["error"] = detected.error
    if instances is None:
        return row
    content = instances.to_dict()
    detections = [
        {"name": detection.pop("name"), "category_id": classes.ids[detection.pop("label")], **detection}
        for detection in content["detections"]
    ]
    picture = None if detected.picture is None else detected.picture.name
    return {**row, "picture": picture, **content, "detections": detections}


class JsonWriter:
    """`predictions.json`, a list with an object for every picture. The file appears when it is complete."""

    def __init__(self, out: Path, classes: Classes, files: OpenFiles) -> None:
        self._classes = classes
        path = out / "predictions.json"
        self._file = RowFile(path, files, start="[\n", end=lambda: "\n]\n", separator=",\n")

    def write(self, detected: Detected) -> None:
        """Append a picture."""
        self._file.write(json.dumps(to_json(detected, self._classes)))


class JsonLinesWriter:
    """`predictions.jsonl`, a line for every picture, which other programs can follow while it grows."""

    def __init__(self, out: Path, classes: Classes, files: OpenFiles) -> None:
        self._classes = classes
        self._file = RowFile(out / "predictions.jsonl", files, visible=True)

    def write(self, detected: Detected) -> None:
        """Append a picture."""
        self._file.write(json.dumps(to_json(detected, self._classes)) + "\n")


def to_rows(detected: Detected, classes: Classes) -> Iterator[dict[str, Any]]:
    """Yield a row for every detection, or a row without box for a picture without detections; none after a failure."""
    data = to_json(detected, classes)
    if "detections" not in data:
        return
    common = {
        "filename": data["file"],
        "frame": data.get("frame"),
        "time": data.get("time"),
        "image_width": data["width"],
        "image_height": data["height"],
    }
    for detection in data["detections"] or [{}]:
        xmin, ymin, xmax, ymax = detection.get("box", [None] * 4)
        yield common | {
            "class": detection.get("name"),
            "category_id": detection.get("category_id"),
            "score": detection.get("score"),
            **{"xmin": xmin, "ymin": ymin, "xmax": xmax, "ymax": ymax},
            "track_id": detection.get("track_id"),
            "segmentation": detection.get("segmentation", {}).get("counts"),
            "keypoints": detection.get("keypoints"),
        }


class CsvWriter:
    """`predictions.csv`, a row for every detection, which other programs can follow while it grows.

    Names of files are absolute paths: readers of data sets look for other names beside the CSV first, where the
    annotated copies are.
    """

    def __init__(self, out: Path, classes: Classes, files: OpenFiles) -> None:
        self._classes = classes
        self._file = RowFile(out / "predictions.csv", files, start=_to_csv([list(_COLUMNS)]), visible=True)

    def write(self, detected: Detected) -> None:
        """Append the detections of a picture."""
        source = detected.source
        name = os.path.abspath(source) if os.path.isfile(source) else source
        rows = [row | {"filename": name} for row in to_rows(detected, self._classes)]
        self._file.write(_to_csv([[row[column] for column in _COLUMNS] for row in rows]))


def _to_csv(rows: list[list[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def parquet_schema() -> pyarrow.Schema:
    """Return the columns of Parquet files. All of them may be null, except `filename`."""
    import pyarrow as pa

    types = {
        **{"filename": pa.string(), "class": pa.string(), "segmentation": pa.string()},
        **dict.fromkeys(("frame", "category_id", "track_id"), pa.int64()),
        **dict.fromkeys(("image_width", "image_height"), pa.int32()),
        **{"time": pa.float64(), "keypoints": pa.list_(pa.float32())},
    }
    return pa.schema([(column, types.get(column, pa.float32())) for column in PARQUET_COLUMNS])


def to_unicode(text: str) -> str:
    """Escape the bytes of a file name that are no valid Unicode, which Arrow's strings are."""
    return text.encode("utf-8", errors="backslashreplace").decode()


class ParquetWriter:
    """`predictions.parquet`, a row for every detection. The file appears when it is complete.

    Masks are in the column `segmentation`, the text `counts` of COCO's RLE.
    """

    def __init__(self, out: Path, classes: Classes, files: OpenFiles) -> None:
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError:
            raise ConfigError('--save parquet needs pyarrow; type: pip install "fcos-vision[parquet]"') from None
        self._path = out / "predictions.parquet"
        self._classes = classes
        self._rows: list[dict[str, Any]] = []
        self._schema = parquet_schema()
        self._to_table = pa.Table.from_pylist
        with explain_write_errors(self._path):
            refuse_folder(self._path)
            self._temporary = files.cleanup.enter_context(temporary_path(self._path))
            self._file = pq.ParquetWriter(self._temporary, self._schema)
        files.cleanup.callback(self._release)
        files.completion.callback(self._complete)

    def write(self, detected: Detected) -> None:
        """Append the detections of a picture."""
        for row in to_rows(detected, self._classes):
            self._rows.append(row | {"filename": to_unicode(row["filename"])})
        if len(self._rows) >= _ROWS_AT_A_TIME:
            self._flush()

    def _complete(self) -> None:
        """Write the remaining rows and the end of the file, and give it its name."""
        with explain_write_errors(self._path):
            self._flush()
            self._file.close()
            self._temporary.replace(self._path)

    def _release(self) -> None:
        with suppress(OSError):  # a full disk, which `_complete` has reported
            self._file.close()

    def _flush(self) -> None:
        rows, self._rows = self._rows, []
        with explain_write_errors(self._path):
            self._file.write_table(self._to_table(rows, schema=self._schema))
