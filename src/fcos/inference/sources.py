"""Detection on files, folders, globs and URLs, with annotated copies and a JSON file as output."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from PIL import Image

from ..data.files import IMAGE_SUFFIXES, PREDICTIONS_MARK
from ..downloads import is_url
from ..errors import ConfigError, DataError, WriteError
from ..files import MAX_NAME_BYTES, explain_write_errors, write_text
from ..formatting import UNPRINTABLE
from .draw import draw
from .inputs import to_picture
from .output import is_writable, save_picture
from .paths import expand

if TYPE_CHECKING:
    from .prediction import Prediction
    from .predictor import Detector


@dataclass(frozen=True)
class PredictedFile:
    """Result of `predict_files` for one source.

    Attributes:
        source: path or URL.
        picture: path of the annotated copy; None on failure.
        instances: detections in pixels of the original picture; None if the picture could not be read or processed.
        error: reason for the failure; None on success.
    """

    source: str
    picture: Path | None = None
    instances: Prediction | None = None
    error: str | None = None


def predict_files(
    detector: Detector,
    sources: Sequence[str],
    out: Path,
    *,
    threshold: float | None = None,
    write_json: bool = False,
    report: Callable[[PredictedFile], None],
    progress: Callable[[int, int], None] | None = None,
) -> bool:
    """Detect objects in every picture and write annotated copies into a folder; a failure does not stop the others.

    Every file is written under its name only when it is complete, and a link with that name is replaced.

    Args:
        detector: the detector.
        sources: files, folders, globs or URLs, see `expand`.
        out: output folder, created if it is missing. Copies keep their file names; duplicate names get a number, and
            pictures that their format cannot store are written as PNG.
        threshold: score threshold in 0..1; None uses the per-class thresholds, see `Detector.predict`.
        write_json: also write `predictions.json` with file and size of every picture and, per object, name, category
            id, score and box (continuous XYXY, pixels of the original picture).
        report: callback that receives every result.
        progress: callback that receives the number of finished pictures and the total.

    Returns:
        True if all sources succeeded.

    Raises:
        ConfigError: `out` has the name of a picture.
        DataError: `out` is a folder that contains pictures to read.
        WriteError: `out` cannot be created, or `predictions.json` cannot be written.
    """
    if out.suffix.lower() in IMAGE_SUFFIXES and not out.is_dir():
        raise ConfigError(f"{out}: expected a folder for the annotated images, not the name of an image (--out)")
    files, results = _expand_all(sources)
    for result in results:
        report(result)
    if any(_is_in(file, out) for file in files):
        raise DataError(
            f"{out}: the input images are in this folder and would be overwritten; choose another one (--out)"
        )
    with explain_write_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        if not any(out.iterdir()):  # a folder with other files may be data
            (out / PREDICTIONS_MARK).touch()
    if progress is not None:
        progress(0, len(files))
    try:
        for done, result in enumerate(_predict(detector, files, out, threshold), start=1):
            results.append(result)
            report(result)
            if progress is not None:
                progress(done, len(files))
    finally:  # also after an interruption: keeps the results so far
        if write_json:
            rows = [json.dumps(_to_json(result, detector.category_ids)) for result in results]
            write_text(out / "predictions.json", "[\n" + ",\n".join(rows) + "\n]\n")
    return all(result.error is None for result in results)


def _expand_all(sources: Sequence[str]) -> tuple[list[str], list[PredictedFile]]:
    """Expand sources to different files, and return the sources that stand for none as failures."""
    files: list[str] = []
    failures: list[PredictedFile] = []
    for source in sources:
        try:
            files += expand(source)
        except DataError as error:
            failures.append(PredictedFile(source, error=str(error)))
    return list(dict.fromkeys(files)), failures


def _is_in(file: str, folder: Path) -> bool:
    """Return whether a file, or the file that it links to, is in a folder."""
    if is_url(file):
        return False
    parents = os.path.realpath(os.path.dirname(file)), os.path.dirname(os.path.realpath(file))
    return os.path.realpath(folder) in parents


def _predict(detector: Detector, files: list[str], out: Path, threshold: float | None) -> Iterator[PredictedFile]:
    used_names: set[str] = set()
    step = detector.config.eval.batch_size
    for start in range(0, len(files), step):
        images: dict[str, Image.Image] = {}
        for file in files[start : start + step]:
            try:
                options = detector.config.data
                images[file] = to_picture(file, bit_depth=options.bit_depth, max_pixels=options.max_pixels)
            except DataError as error:
                yield PredictedFile(file, error=str(error))
        detections = _detect(detector, list(images.values()), threshold)
        for (file, image), instances in zip(images.items(), detections, strict=True):
            if isinstance(instances, str):
                yield PredictedFile(file, error=f"{file}: {instances}")
                continue
            picture, error = None, None
            try:
                drawn = draw(image, instances)
                path = out / _file_name(file, drawn.size, used_names)
                save_picture(drawn, path)
                picture = path
            except (DataError, WriteError) as failure:
                error = str(failure)
            yield PredictedFile(file, picture, instances, error)


def _detect(detector: Detector, images: list[Image.Image], threshold: float | None) -> list[Prediction | str]:
    """Return the detections of every picture, or the reason why a picture cannot be processed."""
    try:
        # Without the pictures, which all results together could not hold.
        return [replace(found, image=None) for found in detector.predict(images, threshold=threshold)]
    except (MemoryError, RuntimeError) as error:  # torch raises RuntimeError if it is out of memory
        if len(images) == 1:
            reason = str(error).partition("\n")[0] or "out of memory"
            return [f"cannot be processed ({images[0].width}x{images[0].height} pixels): {reason}"]
    return [result for image in images for result in _detect(detector, [image], threshold)]


def _file_name(source: str, size: tuple[int, int], used_names: set[str]) -> str:
    """Return the output file name of a source: its own, with a number if the name is taken (compared without case)."""
    path = Path(unquote(urlsplit(source).path) if is_url(source) else source)
    stem, suffix = UNPRINTABLE.sub("_", path.stem) or "picture", path.suffix
    if not is_writable(suffix, size):
        suffix = ".png"
    name, number = stem + suffix, 1
    while name.lower() in used_names or len(os.fsencode(name)) > MAX_NAME_BYTES:
        if len(os.fsencode(name)) > MAX_NAME_BYTES:
            stem = stem[:-8]
        else:
            number += 1
        name = f"{stem}_{number}{suffix}" if number > 1 else stem + suffix
    used_names.add(name.lower())
    return name


def _to_json(result: PredictedFile, category_ids: Sequence[int]) -> dict[str, Any]:
    error = {} if result.error is None else {"error": result.error}
    if result.instances is None:
        return {"file": result.source, **error}
    instances = result.instances
    content = instances.to_dict()
    detections = [
        {"name": detection.pop("name"), "category_id": category_ids[detection.pop("label")], **detection}
        for detection in content["detections"]
    ]
    picture = None if result.picture is None else result.picture.name
    return {"file": result.source, **error, "picture": picture, **content, "detections": detections}
