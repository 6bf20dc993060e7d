"""Command `fcos predict`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .cli_arguments import (
    OVERRIDE,
    WORDS,
    OriginalConfig,
    Weights,
    check_flags,
    folder_option,
    parse_number,
)
from .errors import ConfigError
from .formatting import printable, printable_lines
from .progress import progress_bar
from .terminal import print_lines

if TYPE_CHECKING:
    from .inference.sources import PredictedFile

commands = typer.Typer()


@commands.command(context_settings=WORDS, short_help="Detect objects in images.")
def predict(  # noqa: PLR0917 (options of the command line)
    weights: Weights,
    sources: Annotated[
        list[str],
        typer.Argument(metavar="SOURCE", help="Files, folders, globs, http(s) URLs.", callback=check_flags),
    ],
    config: OriginalConfig = None,
    out: Annotated[Path, folder_option("Folder for the annotated images.")] = Path("predictions"),
    threshold: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER",
            help="Score threshold, 0 to 1; default: per class, from the best F1 on val, otherwise 0.5.",
            show_default=False,
        ),
    ] = None,
    write_json: Annotated[bool, typer.Option("--json", help="Also write OUT/predictions.json.")] = False,
) -> None:
    """Detect objects in images and write annotated copies.

    KEY=VALUE options may be mixed with the sources.

    \b
    For example:
      fcos predict runs/cells/weights/best.pt photos --out found
      fcos predict runs/cells/weights/best.pt PHOTO.jpg data.test_short_side=600
    """
    from . import api
    from .inference.sources import predict_files
    from .interop.fcos_core.config import split_pairs

    score = None if threshold is None else parse_number("--threshold", threshold, float, low=0, high=1)
    original = config is not None or weights.endswith((".yaml", ".yml"))
    pairs, words = split_pairs(sources) if original else ([], sources)
    options = [s for s in words if OVERRIDE.match(s) and not Path(s).exists()]
    images = [s for s in words if s not in options]
    if not images:
        raise ConfigError(f"no images given, only options: {' '.join(sources)}; add files, folders, globs or URLs")
    api.require_trained(weights, *pairs, *options)  # before a possible download of its backbone
    detector = api.load(weights, *pairs, *options, config=config)
    thresholds = "thresholds" if score is None else f"threshold {score:g}"
    with progress_bar("predicting") as progress:
        success = predict_files(
            detector,
            images,
            out,
            threshold=score,
            write_json=write_json,
            report=lambda result: _report(result, thresholds),
            progress=progress,
        )
    if not success:
        raise typer.Exit(2)


def _report(result: PredictedFile, thresholds: str) -> None:
    if result.error is not None:
        print(f"fcos: {printable_lines(result.error)}", file=sys.stderr)
    elif result.instances is not None:
        found = result.instances
        detections = found.summary()
        if not len(found) and found.num_below:
            detections += f" above the {thresholds} ({found.num_below} below, best {found.best_below:.2f})"
        print_lines(f"{printable(result.source)}: {detections} -> {result.picture}")
