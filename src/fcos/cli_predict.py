"""Command `fcos predict`."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .cli_arguments import (
    WORDS,
    OriginalConfig,
    Weights,
    check_choice,
    check_flags,
    folder_option,
    parse_number,
    split_words,
)
from .errors import ConfigError
from .formatting import plural, printable, printable_lines
from .progress import progress_bar
from .terminal import print_lines

if TYPE_CHECKING:
    from .inference.predictor import Detector
    from .inference.stream import Detected
    from .inference.tiling import Tiling

commands = typer.Typer()


@commands.command(context_settings=WORDS, short_help="Detect objects in images and videos.")
def predict(  # noqa: PLR0917 (options of the command line)
    weights: Weights,
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="Images, videos, folders, globs, URLs, cameras (0), - for paths on stdin.",
            callback=check_flags,
        ),
    ],
    config: OriginalConfig = None,
    out: Annotated[Path, folder_option("Folder for the outputs.")] = Path("predictions"),
    threshold: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[CLASS=]NUMBER",
            help="Score threshold, 0 to 1, of all classes or of one; default: per class, from the best F1 on val,"
            " otherwise 0.5.",
            show_default=False,
        ),
    ] = None,
    save: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Outputs, separated by commas: images (default), frames, crops, json, jsonl, csv, parquet, coco, yolo,"
            " voc; or none.",
            show_default=False,
        ),
    ] = None,
    write_json: Annotated[bool, typer.Option("--json", help="Short for --save images,json.")] = False,
    tile: Annotated[
        str | None,
        typer.Option(metavar="PIXELS", help="Side of tiles, for small objects in large images, e.g. 640."),
    ] = None,
    overlap: Annotated[
        str | None,
        typer.Option(metavar="FRACTION", help="Overlap of two tiles, 0 to 0.9 of their side; default: 0.2."),
    ] = None,
    track: Annotated[bool, typer.Option("--track", help="Number the objects in the frames of videos.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Wait for new files in the folders until Ctrl-C.")] = False,
    engine: Annotated[
        str,
        typer.Option(metavar="NAME", help="local, or ray: several processes or machines, which write Parquet files."),
    ] = "local",
    workers: Annotated[
        str | None,
        typer.Option(metavar="NUMBER", help="Processes of --engine ray; default: one per GPU, or else per CPU."),
    ] = None,
) -> None:
    """Detect objects in images and videos, and write annotated copies and other files.

    KEY=VALUE options may be mixed with the sources. The exit code is 1 if a source failed.

    \b
    For example:
      fcos predict runs/cells/weights/best.pt photos --out found
      fcos predict runs/cells/weights/best.pt PHOTO.jpg data.test_short_side=600
      fcos predict runs/cells/weights/best.pt clip.mp4 --save images,jsonl --threshold 0.4 --threshold RBC=0.6
      fcos predict runs/cells/weights/best.pt "shards/*.tar" --engine ray --out found
    """
    from . import api
    from .inference.sources import predict_files
    from .interop.fcos_core.config import split_pairs

    tiling = _parse_tiling(tile, overlap)
    thresholds = [_parse_threshold(text) for text in threshold or []]
    outputs = _parse_outputs("images" if save is None else save, write_json=write_json)
    check_choice("--engine", engine, ["local", "ray"])
    num_workers = _parse_workers(engine, workers)
    if engine == "ray":
        _check_ray_options(
            {"--save": save not in (None, "parquet"), "--json": write_json, "--track": track, "--watch": watch}
        )
    original = config is not None or weights.endswith((".yaml", ".yml"))
    pairs, words = split_pairs(sources) if original else ([], sources)
    options, images = split_words(words)
    if not images:
        raise ConfigError(f"no images given, only options: {' '.join(sources)}; add files, folders, globs or URLs")
    if watch and not any(Path(image).is_dir() for image in images):
        raise ConfigError(f"--watch: expected a folder, found {' '.join(images)}")
    api.require_trained(weights, *pairs, *options)  # before a possible download of its backbone
    load = partial(api.load, weights, *pairs, *options, config=config)
    if engine == "ray":
        _predict_with_ray(load, images, out, thresholds=thresholds, tiling=tiling, num_workers=num_workers)
        return
    detector = load()
    of_all = [value for name, value in thresholds if name is None]
    reporter = _Reporter(f"threshold {of_all[-1]:g}" if of_all and len(thresholds) == 1 else "thresholds")
    with progress_bar("predicting", unit="images") as progress:
        try:
            success = predict_files(
                detector,
                images,
                out,
                threshold=_join_thresholds(thresholds, detector),
                save=outputs,
                watch=watch,
                tiling=tiling,
                track=track,
                report=reporter.report,
                progress=progress,
            )
        finally:
            reporter.end_video()
    if not success:
        raise typer.Exit(1)


def _parse_workers(engine: str, workers: str | None) -> int | None:
    if workers is None:
        return None
    if engine != "ray":
        raise ConfigError("--workers: only --engine ray has several workers; add it, or remove --workers")
    return parse_number("--workers", workers, int, low=1)


def _check_ray_options(given: dict[str, bool]) -> None:
    """Raise ConfigError if an option was given that the engine does not have."""
    if names := [name for name, is_given in given.items() if is_given]:
        raise ConfigError(f"{', '.join(names)}: not possible with --engine ray, which writes Parquet files of images")


def _predict_with_ray(
    load: Callable[[], Detector],
    sources: Sequence[str],
    out: Path,
    *,
    thresholds: Sequence[tuple[str | None, float]],
    tiling: Tiling | None,
    num_workers: int | None,
) -> None:
    from .inference.batch_worker import DetectionWorker
    from .inference.ray_engine import predict_collection

    def report(message: str) -> None:
        print(f"fcos: {printable_lines(message)}", file=sys.stderr)

    worker = DetectionWorker(load, tiling=tiling)
    worker.threshold = _join_thresholds(thresholds, worker.detector)
    with progress_bar("predicting", unit="parts") as progress:
        done = predict_collection(worker, sources, out, num_workers=num_workers, report=report, progress=progress)
    print_lines(f"{plural(done.num_images, 'image')}: {plural(done.num_detections, 'detection')} -> {out}")
    if done.is_continued:
        print_lines("The results of an earlier run are kept; delete their files to do them again.")
    if done.num_failed:
        raise typer.Exit(1)


def _parse_tiling(tile: str | None, overlap: str | None) -> Tiling | None:
    from .inference.tiling import MIN_TILE, Tiling

    fraction = 0.2 if overlap is None else parse_number("--overlap", overlap, float, low=0, high=0.9)
    if tile is None and overlap is not None:
        raise ConfigError(f"--overlap {overlap}: no effect without tiles; add --tile PIXELS, or remove it")
    return None if tile is None else Tiling(parse_number("--tile", tile, int, low=MIN_TILE), fraction)


def _parse_threshold(text: str) -> tuple[str | None, float]:
    """Return the name of a class, None for all classes, and its threshold."""
    name, separator, number = text.rpartition("=")
    return name if separator else None, parse_number("--threshold", number, float, low=0, high=1)


def _join_thresholds(
    thresholds: Sequence[tuple[str | None, float]], detector: Detector
) -> float | dict[str, float] | None:
    """Return the threshold of all classes, or those by class name; the later ones replace the earlier ones."""
    from .inference.selection import find_labels

    of_all = [value for name, value in thresholds if name is None]
    by_name = {name: value for name, value in thresholds if name is not None}
    if not by_name:
        return of_all[-1] if of_all else None
    find_labels([*by_name], detector.label_names, option="--threshold")  # checks the names
    return (dict.fromkeys(detector.label_names, of_all[-1]) if of_all else {}) | by_name


def _parse_outputs(text: str, *, write_json: bool) -> list[str]:
    """Return the names of the outputs."""
    from .inference.writers import WRITERS

    names = [] if text == "none" else [name.strip() for name in text.split(",")]
    for name in names:
        check_choice("--save", name, [*WRITERS, "none"])
    if "none" in names:
        raise ConfigError(f"--save: expected none, or other outputs, found {text}")
    return [*names, *(["json"] if write_json and "json" not in names else [])]


class _Reporter:
    """Prints a line for every picture and every video.

    Args:
        thresholds: name of the score thresholds.
    """

    def __init__(self, thresholds: str) -> None:
        self._thresholds = thresholds
        self._source, self._video = "", None
        self._counts: Counter[str] = Counter()
        self._num_frames = 0
        self._copy: Path | None = None

    def report(self, detected: Detected) -> None:
        """Print the result of a picture; the frames of a video are counted."""
        found = detected.instances
        if detected.frame.video is not self._video:
            self.end_video()
        if detected.error is not None:
            print(f"fcos: {printable_lines(detected.error)}", file=sys.stderr)
        if found is None:
            return
        if detected.frame.index is not None:
            self._source, self._video = detected.source, detected.frame.video
            self._num_frames += 1
            self._counts.update(found.names)
            self._copy = self._copy or detected.picture
        elif detected.error is None:
            detections = found.summary()
            if not len(found) and found.num_below:
                detections += f" above the {self._thresholds} ({found.num_below} below, best {found.best_below:.2f})"
            print_lines(f"{printable(detected.source)}: {detections}{_arrow(detected.picture)}")

    def end_video(self) -> None:
        """Print the line of a video after its last frame."""
        if self._num_frames:
            counts = ", ".join(f"{count} {printable(name)}" for name, count in self._counts.most_common())
            frames = plural(self._num_frames, "frame")
            print_lines(f"{printable(self._source)}: {frames}: {counts or 'nothing'}{_arrow(self._copy)}")
        self._source, self._video, self._num_frames, self._copy = "", None, 0, None
        self._counts.clear()


def _arrow(copy: Path | None) -> str:
    return "" if copy is None else f" -> {copy}"
