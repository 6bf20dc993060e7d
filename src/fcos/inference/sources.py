"""Detection on files, folders, globs, URLs, videos and cameras, with annotated copies and other files as output."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from itertools import chain
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from ..data.files import IMAGE_SUFFIXES, PREDICTIONS_MARK
from ..errors import ConfigError, DataError
from ..files import explain_write_errors
from .frames import Frame, Source, find_sources, read_frames
from .stream import Detected
from .tiling import Tiling
from .writers import Classes, Outputs, open_outputs

if TYPE_CHECKING:
    from .predictor import Detector

_WAITING = 2  # pictures that wait to be written
_FOLDERS = ("frames", "crops", "coco", "yolo", "voc")  # outputs with a folder of their name


def predict_files(
    detector: Detector,
    sources: Sequence[str],
    out: Path,
    *,
    threshold: float | Mapping[str, float] | None = None,
    save: Sequence[str] = ("images",),
    watch: bool = False,
    tiling: Tiling | None = None,
    track: bool = False,
    report: Callable[[Detected], None],
    progress: Callable[[int, int | None], None] | None = None,
) -> bool:
    """Detect objects in all pictures and write the results into a folder; a failure does not stop the others.

    Reading, detection and writing run at the same time. Every file is complete, also after an interruption.

    Args:
        detector: the detector.
        sources: files, folders, globs, URLs, numbers of cameras, or `-`, see `find_sources`.
        out: output folder, created if it is missing. Copies keep their file names; duplicate names get a number, and
            pictures that their format cannot store are written as PNG.
        threshold: score threshold in 0..1, or thresholds by class name; None uses the per-class thresholds, see
            `Detector.predict`.
        save: outputs, names of `WRITERS`; empty: none.
        watch: also wait for new files in the folders; then this function does not return.
        tiling: tiles of large pictures; None: no tiles.
        track: number the objects in the frames of videos (extra `track`).
        report: callback that receives every result, without the picture.
        progress: callback that receives the number of finished pictures, and the total if it is known.

    Returns:
        True if all pictures of all sources succeeded.

    Raises:
        ConfigError: `out` has the name of a picture, or a package for an output is not installed.
        DataError: none of the sources exists, or `out` is a folder that contains pictures to read.
        WriteError: `out` cannot be created, or an output for all pictures cannot be completed.
    """
    if out.suffix.lower() in IMAGE_SUFFIXES and not out.is_dir():
        raise ConfigError(f"{out}: expected a folder for the annotated images, not the name of an image (--out)")
    found, failures = find_sources(sources, watch=watch)
    if not found:
        raise DataError("\n".join(str(failure.error) for failure in failures))
    stop = Event()
    frames = read_frames(found, detector.config.data, stop=stop)
    if save:
        frames = _reject_outputs(frames, out, save)
    # Finds mistakes before anything is written; nothing is read yet.
    results = detector.detect_stream(frames, threshold=threshold, tiling=tiling, track=track)
    if save:
        prepare_folder(out, found, save)
    total = _count(found, num_failures=len(failures))
    if progress is not None:
        progress(0, total)
    classes = Classes.of(detector)
    success = True
    failed = (Detected(failure, error=failure.error) for failure in failures)
    with (
        open_outputs(save, out, classes) as outputs,
        closing(results),
        ExitStack() as stack,
        closing(_write_all(outputs, chain(failed, results))) as written,  # closed first, so that nothing is cut off
    ):
        stack.callback(stop.set)  # before `results` is closed, whose thread may wait for new files
        for done, result in enumerate(written, start=1):
            success &= result.error is None
            report(result)
            if progress is not None:
                progress(done, total)
    return success


def prepare_folder(out: Path, sources: Sequence[Source], save: Sequence[str]) -> None:
    """Create the output folder, after checking that outputs overwrite no picture to read."""
    watched = [os.path.realpath(source.text) for source in sources if source.kind == "watched"]
    if os.path.realpath(out) in watched or any(_may_be_overwritten(source.text, out, save) for source in sources):
        raise DataError(
            f"{out}: the input images are in this folder and would be overwritten; choose another one (--out)"
        )
    with explain_write_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        if not any(out.iterdir()):  # a folder with other files may be data
            (out / PREDICTIONS_MARK).touch()


def _reject_outputs(frames: Iterator[Frame], out: Path, save: Sequence[str]) -> Iterator[Frame]:
    """Replace pictures by failures if outputs may overwrite them; sources on stdin are unknown before."""
    for frame in frames:
        if _may_be_overwritten(frame.source, out, save):
            yield Frame(
                frame.source, error=f"{frame.source}: is in the output folder {out}; choose another one (--out)"
            )
        else:
            yield frame


def _may_be_overwritten(source: str, out: Path, save: Sequence[str]) -> bool:
    """Return whether a file, or the file that it links to, is in a folder that outputs are written to."""
    if not os.path.isfile(source):  # a URL, a camera, a folder
        return False
    folders = {os.path.realpath(os.path.dirname(source)), os.path.dirname(os.path.realpath(source))}
    root = os.path.realpath(out)
    written = [os.path.join(root, name) for name in save if name in _FOLDERS]
    return root in folders or any(Path(folder).is_relative_to(path) for folder in folders for path in written)


def _count(sources: Sequence[Source], *, num_failures: int) -> int | None:
    """Return the number of results; None if it is unknown."""
    counts = [source.num_frames for source in sources]
    return None if None in counts else num_failures + sum(count or 0 for count in counts)


def _write_all(outputs: Outputs, results: Iterable[Detected | None]) -> Generator[Detected]:
    """Write results in a thread, which Ctrl-C does not interrupt, and yield them without their pictures, in order.

    None among the results makes the previous ones complete.
    """
    waiting: deque[Future[Detected]] = deque()
    with ThreadPoolExecutor(1) as pool:
        try:
            for result in results:
                is_idle = result is None
                if result is not None:
                    waiting.append(pool.submit(outputs.write, result))
                del result  # the picture
                while waiting and (is_idle or len(waiting) > _WAITING or waiting[0].done()):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
