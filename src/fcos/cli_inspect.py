"""Commands of `fcos` that look into a detector: explain, benchmark."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Annotated, cast, get_args

import typer

from .choices import Precision
from .cli_arguments import (
    WORDS,
    OriginalConfig,
    Weights,
    check_choice,
    check_flags,
    parse_number,
    parse_size,
    split_words,
)
from .errors import ConfigError
from .formatting import join_some, printable
from .progress import progress_bar
from .terminal import console, print_lines

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
    out: Annotated[Path, typer.Option(metavar="FILE", help="HTML page to write: FILE.html.")] = Path(
        "explanation.html"
    ),
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
    from . import api_inspect
    from .config.arguments import check_new_file
    from .interop.fcos_core.config import split_pairs

    pairs, words = split_pairs(words) if config is not None else ([], words)
    options, images = split_words(words)
    if len(images) != 1:
        raise ConfigError(f"expected one image and KEY=VALUE options, found {join_some(images) or 'no image'}")
    (image,) = images
    check_new_file(out, name="--out", suffix=".html")
    score = None if threshold is None else parse_number("--threshold", threshold, float, low=0, high=1)
    explanation = api_inspect.explain(
        weights, image, *pairs, *options, config=config, threshold=score, class_name=class_name, out=out
    )
    print_lines(f"{printable(image)}: {explanation.detections.summary()}")
    if explanation.objects is not None:
        counts = Counter(miss.reason for miss in explanation.misses)
        reasons = ", ".join(f"{count} {reason}" for reason, count in counts.most_common()) or "nothing"
        print_lines(f"missed: {reasons}")
    print_lines(f"written: {out}")


_WEIGHTS = (".pt", ".pth", ".pkl", ".onnx", ".xml", ".pt2", ".yaml", ".yml")
"""Suffixes of weights, configs and exported files, which distinguish them from images."""


def _is_weights(word: str) -> bool:
    """Return whether a word names a detector; the others are images."""
    from .recipes import is_recipe

    path = Path(word)
    is_run = any((path / "weights" / name).is_file() for name in ("best.pt", "last.pt"))
    is_name = word.startswith(("torchvision/", "catalog://")) and not path.exists()
    return word.endswith(_WEIGHTS) or is_run or is_name or is_recipe(word)


@commands.command(context_settings=WORDS, short_help="Measure the speed of detection by part.")
def benchmark(  # noqa: PLR0917 (options of the command line)
    weights: Weights,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[WEIGHTS|IMAGES|KEY=VALUE]",
            help="More weights or exported files to compare; images, folders or globs; options, e.g. device=cpu.",
            callback=check_flags,
        ),
    ] = None,
    config: OriginalConfig = None,
    batch: Annotated[str, typer.Option(metavar="N,...", help="Batch sizes, e.g. 1,8.")] = "1",
    precision: Annotated[
        str, typer.Option(metavar="NAME,...", help="Precisions: float32, bfloat16, float16.")
    ] = "float32",
    compiled: Annotated[bool, typer.Option("--compile", help="Also measure with torch.compile.")] = False,
    threads: Annotated[str | None, typer.Option(metavar="N", help="Number of CPU threads.")] = None,
    size: Annotated[
        str | None, typer.Option(metavar="HxW", help="Height and width of the generated images; default: 480x640.")
    ] = None,
    seconds: Annotated[
        str | None,
        typer.Option(metavar="S", help="Seconds per variant, after the warm-up; default: 5.", show_default=False),
    ] = None,
    repeats: Annotated[
        str | None, typer.Option(metavar="N", help="Number of batches per variant, instead of --seconds.")
    ] = None,
    write_json: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the results to FILE.json.")
    ] = None,
) -> None:
    """Measure the speed of detection by part: loading, decoding, resizing, transfer, model, post-processing.

    WEIGHTS may also be a recipe (untrained) or an exported file. Without images, generated ones are used.

    \b
    For example:
      fcos benchmark runs/cells/weights/best.pt photos --batch 1,8 --precision float32,bfloat16
      fcos benchmark runs/cells/weights/best.pt runs/cells/weights/best.onnx --threads 2 --json speed.json
    """
    from . import api_inspect
    from .config.arguments import check_new_file
    from .files import write_text
    from .speed.table import print_benchmark

    options, others = split_words(words)
    more = [word for word in others if _is_weights(word)]
    images = [word for word in others if word not in more]
    if size is not None and images:
        raise ConfigError("--size: the size of generated images, but images are given; remove one of them")
    precisions = precision.split(",")
    for name in precisions:
        check_choice("--precision", name, get_args(Precision))
    if write_json is not None:
        check_new_file(write_json, name="--json", suffix=".json")
    with progress_bar("measuring") as progress:
        result = api_inspect.benchmark(
            [weights, *more],
            *options,
            images=images,
            config=config,
            batches=[parse_number("--batch", text, int, low=1, high=4096) for text in batch.split(",")],
            precisions=cast("list[Precision]", precisions),
            compiled=compiled,
            threads=None if threads is None else parse_number("--threads", threads, int, low=1, high=1024),
            size=(480, 640) if size is None else parse_size("--size", size),
            seconds=None if seconds is None else parse_number("--seconds", seconds, float, low=0.001, high=86400),
            repeats=None if repeats is None else parse_number("--repeats", repeats, int, low=1, high=10**6),
            progress=progress,
        )
    print_lines("\n".join(f"{name}: {value}" for name, value in result.machine.items()))
    print_lines(f"images: {result.num_images}{'' if images else ', generated'}; times in ms per batch\n")
    print_benchmark(result, console())
    if write_json is not None:
        write_text(write_json, json.dumps(result.to_dict(), indent=1) + "\n")
        print_lines(f"written: {write_json}")
