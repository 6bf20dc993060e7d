"""Commands of `fcos` that look into a detector: explain."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from .cli_arguments import OVERRIDE, WORDS, OriginalConfig, Weights, check_flags, parse_number
from .errors import ConfigError
from .formatting import join_some, printable
from .terminal import print_lines

commands = typer.Typer()


@commands.command(context_settings=WORDS, short_help="Explain the detections of FCOS on one image.")
def explain(  # noqa: PLR0917 (options of the command line)
    weights: Weights,
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE KEY=VALUE",
            help="File or URL; with data=DIR an image of this data set, whose missed objects are explained.",
            callback=check_flags,
        ),
    ],
    config: OriginalConfig = None,
    out: Annotated[Path, typer.Option(metavar="FILE", help="HTML page to write.")] = Path("explanation.html"),
    threshold: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER",
            help="Score threshold of shown detections, 0 to 1; default: as in fcos predict.",
            show_default=False,
        ),
    ] = None,
    class_name: Annotated[
        str | None,
        typer.Option("--class", metavar="NAME", help="Class of the score maps; default: the one with the best score."),
    ] = None,
) -> None:
    """Explain the detections of FCOS on one image on a page: score maps, locations, suppression, missed objects.

    \b
    For example:
      fcos explain runs/cells/weights/best.pt photo.jpg
      fcos explain runs/cells/weights/best.pt photo.jpg data=DIR --out photo.html
    """
    from . import api
    from .interop.fcos_core.config import split_pairs

    pairs, words = split_pairs(words) if config is not None else ([], words)
    options = [word for word in words if OVERRIDE.match(word) and not Path(word).exists()]
    images = [word for word in words if word not in options]
    if len(images) != 1:
        raise ConfigError(f"expected one image and KEY=VALUE options, found {join_some(images) or 'no image'}")
    (image,) = images
    score = None if threshold is None else parse_number("--threshold", threshold, float, low=0, high=1)
    explanation = api.explain(
        weights, image, *pairs, *options, config=config, threshold=score, class_name=class_name, out=out
    )
    print_lines(f"{printable(image)}: {explanation.detections.summary()}")
    if explanation.objects is not None:
        counts = Counter(miss.reason for miss in explanation.misses)
        reasons = ", ".join(f"{count} {reason}" for reason, count in counts.most_common()) or "nothing"
        print_lines(f"missed: {reasons}")
    print_lines(f"written: {out}")
