"""Detection on files, folders, globs and URLs, with annotated copies and a JSON file as output."""

from __future__ import annotations

import glob
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from PIL import Image

from ..data.files import IMAGE_SUFFIXES
from ..downloads import is_url
from ..errors import DataError
from ..structures import Instances
from .draw import draw
from .inputs import to_picture

if TYPE_CHECKING:
    from .predictor import Detector

# Pictures in other formats are written as PNG.
_OUTPUT_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
_CHUNK_SIZE = 16  # pictures held in memory at a time


@dataclass(frozen=True)
class PredictedFile:
    """Result of `predict_files` for one source.

    Attributes:
        source: path or URL.
        picture: path of the annotated copy; None on failure.
        instances: detections in pixels of the original picture; None if the picture could not be read.
        error: reason for the failure; None on success.
    """

    source: str
    picture: Path | None = None
    instances: Instances | None = None
    error: str | None = None


def expand(source: str) -> list[str]:
    """Expand a file name, folder, glob or URL to a sorted list of pictures; `**` in a glob matches any subfolders.

    Raises:
        DataError: nothing matches `source`.
    """
    path = Path(source)
    if is_url(source) or path.is_file():
        return [source]
    if path.is_dir():
        files = sorted(str(p) for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        if not files:
            raise DataError(
                f"{source}: no images in this folder; expected files with the suffixes {', '.join(IMAGE_SUFFIXES)}"
            )
        return files
    files = sorted(p for p in glob.glob(source, recursive=True) if Path(p).is_file())
    if not files:
        reason = "no file matches" if glob.has_magic(source) else "no such file or folder"
        raise DataError(f"{source}: {reason}")
    return files


def predict_files(
    detector: Detector,
    sources: Sequence[str],
    out: Path,
    *,
    threshold: float | None = None,
    write_json: bool = False,
    report: Callable[[PredictedFile], None],
) -> bool:
    """Detect objects in every picture and write annotated copies into a folder; a failure does not stop the others.

    Args:
        detector: the detector.
        sources: files, folders, globs or URLs, see `expand`.
        out: output folder, created if it is missing. Copies keep their file names; duplicate names get a number.
        threshold: score threshold in 0..1; None uses the per-class thresholds, see `Detector.predict`.
        write_json: also write `predictions.json` with file and size of every picture and, per object, name, category
            id, score and box (continuous XYXY, pixels of the original picture).
        report: callback that receives every result.

    Returns:
        True if all sources succeeded.

    Raises:
        DataError: `out` is a folder that contains pictures to read.
    """
    results: list[PredictedFile] = []
    files: list[str] = []
    for source in sources:
        try:
            files += expand(source)
        except DataError as error:
            results.append(PredictedFile(source, error=str(error)))
            report(results[-1])
    files = list(dict.fromkeys(files))
    if any(not is_url(file) and Path(file).resolve().parent == out.resolve() for file in files):
        raise DataError(
            f"{out}: the input images are in this folder and would be overwritten; choose another one (--out)"
        )
    out.mkdir(parents=True, exist_ok=True)
    try:
        for result in _predict(detector, files, out, threshold):
            results.append(result)
            report(result)
    finally:  # also after an interruption: keeps the results so far
        if write_json:
            rows = [json.dumps(_to_json(result, detector.category_ids)) for result in results]
            (out / "predictions.json").write_text("[\n" + ",\n".join(rows) + "\n]\n", encoding="utf-8")
    return all(result.error is None for result in results)


def _predict(detector: Detector, files: list[str], out: Path, threshold: float | None) -> Iterator[PredictedFile]:
    used_names: set[str] = set()
    for start in range(0, len(files), _CHUNK_SIZE):
        images: dict[str, Image.Image] = {}
        for file in files[start : start + _CHUNK_SIZE]:
            try:
                images[file] = to_picture(file)
            except DataError as error:
                yield PredictedFile(file, error=str(error))
        detections = detector.predict(list(images.values()), threshold=threshold)
        for (file, image), instances in zip(images.items(), detections, strict=True):
            picture = out / _file_name(file, used_names)
            try:
                draw(image, instances).save(picture, quality=92)
            except OSError as error:
                yield PredictedFile(file, instances=instances, error=f"{picture}: cannot be written: {error}")
            else:
                yield PredictedFile(file, picture, instances)


def _file_name(source: str, used_names: set[str]) -> str:
    """Return the output file name of a source, with a number if the name is taken (compared without case)."""
    path = Path(unquote(urlsplit(source).path) if is_url(source) else source)
    stem, suffix = path.stem or "picture", path.suffix if path.suffix.lower() in _OUTPUT_SUFFIXES else ".png"
    name, number = stem + suffix, 1
    while name.lower() in used_names:
        number += 1
        name = f"{stem}_{number}{suffix}"
    used_names.add(name.lower())
    return name


def _to_json(result: PredictedFile, category_ids: Sequence[int]) -> dict[str, Any]:
    if result.instances is None:
        return {"file": result.source, "error": result.error}
    instances = result.instances
    objects = zip(
        instances.names, instances.labels.tolist(), instances.scores.tolist(), instances.boxes.tolist(), strict=True
    )
    return {
        "file": result.source,
        "picture": None if result.picture is None else result.picture.name,
        "width": instances.size[1],
        "height": instances.size[0],
        "detections": [
            {"name": name, "category_id": category_ids[label], "score": score, "box": box}
            for name, label, score, box in objects
        ],
    }
