"""Command-line interface `fcos`: argument parsing only. Commands import heavy modules when they run."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from .choices import Form
from .cli_arguments import (
    WORDS,
    FileOverrides,
    OriginalConfig,
    Overrides,
    Recipe,
    TestOverrides,
    Weights,
    check_choice,
    check_data_options,
    check_flags,
    check_recipe,
    folder_option,
    parse_number,
    require_command,
)
from .errors import ConfigError
from .files import explain_write_errors
from .formatting import printable, printable_lines
from .output import drop_unwritable_output
from .progress import progress_bar
from .terminal import console, is_rank_zero, prepare_output, print_lines, report_user_errors

if TYPE_CHECKING:
    from .inference.sources import PredictedFile

app = typer.Typer(
    name="fcos",
    help="Train, evaluate and run the FCOS object detector.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
config_app = typer.Typer(help="Show and compare recipes and configs.", no_args_is_help=True)
samples_app = typer.Typer(help="Create sample data.", no_args_is_help=True)
app.add_typer(config_app, name="config")
app.add_typer(samples_app, name="samples")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line. A user error prints a message on stderr and exits with code 2.

    Args:
        arguments: command-line arguments; None: those of the process.
    """
    with drop_unwritable_output():
        prepare_output(hide_warnings=arguments is None)  # None: the process is ours
        with report_user_errors():
            require_command(sys.argv[1:] if arguments is None else arguments)
            app(arguments, prog_name="fcos")


@app.callback(invoke_without_command=True)
def _global_options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        from . import __version__

        print(f"fcos {__version__}")
        raise typer.Exit


@app.command(context_settings=WORDS)
def train(
    recipe: Recipe,
    overrides: Overrides = None,
) -> None:
    """Train a detector.

    \b
    For example:
      fcos train fcos_mnv2_small data=DIR train.max_minutes=10
    """
    from . import api

    check_recipe("fcos train", recipe, overrides or ())
    result = api.train(recipe, *overrides or ())
    if "WORLD_SIZE" not in os.environ:  # not a process of a distributed run
        print_lines(f"next: fcos predict {result.run / 'weights' / 'best.pt'} IMAGE...")


@app.command(context_settings=WORDS, short_help="Compute the COCO metrics of a detector.")
def val(
    weights: Weights,
    overrides: TestOverrides = None,
    config: OriginalConfig = None,
    split: Annotated[str, typer.Option(metavar="NAME", help="train, val or test.")] = "val",
    out: Annotated[
        Path | None,
        folder_option(
            "Folder for metrics.json and detections.json; default: RUN/SPLIT, or RUN/SPLIT-2 for other options."
        ),
    ] = None,
) -> None:
    """Compute the COCO metrics of a detector on annotated images.

    \b
    For example:
      fcos val runs/cells/weights/best.pt data=DIR --split test
      fcos val FCOS_R_50_FPN_1x.pth --config fcos_R_50_FPN_1x.yaml data=DIR
    """
    from . import api
    from .data.source import Split
    from .evaluation.results import default_folder, print_evaluation, save_evaluation

    check_choice("--split", split, get_args(Split))
    with progress_bar("evaluating", shown=is_rank_zero()) as progress:
        result = api.evaluate(weights, *overrides or (), config=config, split=split, progress=progress)
    if not is_rank_zero():
        return
    print_evaluation(result, console())
    file = Path(weights) if Path(weights).exists() else Path(Path(weights).name)  # a name such as torchvision/...
    folder = out or default_folder(file, split, result)
    save_evaluation(result, folder)
    print_lines(f"written: {folder / 'metrics.json'}, {folder / 'detections.json'}")
    if out is None and folder.name.startswith(f"{split}-"):
        print_lines(f"{folder.with_name(split)} is reserved for results with the data and options of the run")


@app.command(context_settings=WORDS, short_help="Write RUN/report.html: metrics, curves and errors.")
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, also of an unfinished run.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Options, e.g. data=DIR (where the data is now), device=cpu (for a new evaluation).",
            callback=check_flags,
        ),
    ] = None,
) -> None:
    """Write RUN/report.html: curves, per-class metrics, errors, images and config on one page.

    \b
    For example:
      fcos report runs/cells
      fcos report runs/cells data=DIR
    """
    from . import api

    with progress_bar("evaluating") as progress:
        file = api.report(run, *overrides or (), progress=progress)
    print_lines(f"written: {file}")


@app.command(context_settings=WORDS, short_help="Detect objects in images.")
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
    options = [s for s in words if _OVERRIDE.match(s) and not Path(s).exists()]
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


_OVERRIDE = re.compile(r"[a-z_]+(\.[a-z0-9_]+)*=")


def _report(result: PredictedFile, thresholds: str) -> None:
    if result.error is not None:
        print(f"fcos: {printable_lines(result.error)}", file=sys.stderr)
    elif result.instances is not None:
        detections = result.instances.summary()
        if not len(result.instances) and result.num_below:
            detections += f" above the {thresholds} ({result.num_below} below, best {result.best_below:.2f})"
        print_lines(f"{printable(result.source)}: {detections} -> {result.picture}")


@app.command(context_settings=WORDS, short_help="Serve a detector over HTTP, with a web page.")
def serve(  # noqa: PLR0917 (options of the command line)
    weights: Weights,
    overrides: FileOverrides = None,
    config: OriginalConfig = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0: all networks.")] = "127.0.0.1",
    port: Annotated[str, typer.Option(metavar="N", help="Port; 0: any free one.")] = "8000",
    name: Annotated[str | None, typer.Option(help="Name of the model; default: that of the run or file.")] = None,
    token: Annotated[
        str | None, typer.Option(envvar="FCOS_TOKEN", help="Bearer token that requests must contain.")
    ] = None,
    max_batch: Annotated[str, typer.Option(metavar="N", help="Images that are processed together.")] = "8",
    max_wait_ms: Annotated[str, typer.Option(metavar="MS", help="Longest wait for other images.")] = "5",
    max_queue: Annotated[str, typer.Option(metavar="N", help="Images that may be in progress.")] = "128",
    max_body_mb: Annotated[str, typer.Option(metavar="MB", help="Largest request.")] = "32",
    max_pixels: Annotated[str, typer.Option(metavar="N", help="Largest number of pixels of an image.")] = "65000000",
    timeout: Annotated[str, typer.Option(metavar="SECONDS", help="Longest time for a request.")] = "30",
) -> None:
    """Serve a detector over HTTP: a web page, POST /v1/detect, and the Open Inference Protocol at /v2.

    \b
    For example:
      fcos serve runs/cells/weights/best.pt
      FCOS_TOKEN=SECRET fcos serve torchvision/fcos_resnet50_fpn --host 0.0.0.0 --max-batch 16
    """
    from . import api
    from .serving import require_packages

    require_packages()
    from .serving.server import open_socket, serve
    from .serving.settings import Settings, model_name, require_name, require_token

    settings = Settings(
        name=model_name(weights) if name is None else require_name(name),
        max_batch=parse_number("--max-batch", max_batch, int, low=1, high=4096),
        max_wait_ms=parse_number("--max-wait-ms", max_wait_ms, float, low=0, high=60_000),
        max_queue=parse_number("--max-queue", max_queue, int, low=1, high=1_000_000),
        max_body=round(parse_number("--max-body-mb", max_body_mb, float, low=0.001, high=100_000) * 1_000_000),
        max_pixels=parse_number("--max-pixels", max_pixels, int, low=1),
        timeout=parse_number("--timeout", timeout, float, low=0.001, high=86_400),
        token=None if token is None else require_token(token),
    )
    with open_socket(host, parse_number("--port", port, int, low=0, high=65_535)) as opened:
        api.require_trained(weights, *overrides or ())
        serve(api.load(weights, *overrides or (), config=config), settings, opened)


@app.command(context_settings=WORDS, short_help="Convert weights between projects.")
def convert(
    weights: Weights,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New file; its name ends in .pt or .pth.")],
    overrides: FileOverrides = None,
    to: Annotated[
        str,
        typer.Option(
            metavar="FORMAT", help="Output format: fcos (ours), fcos_core (the original FCOS) or torchvision."
        ),
    ] = "fcos",
    config: OriginalConfig = None,
) -> None:
    """Convert weights of any known project to our format, with config and classes, or to another project's.

    \b
    For example:
      fcos convert FCOS_R_50_FPN_1x.pth fcos.pt --config fcos_R_50_FPN_1x.yaml
      fcos convert runs/cells/weights/best.pt tv.pth --to torchvision
    """
    from . import api

    check_choice("--to", to, get_args(Form))
    print_lines(api.convert(weights, out, *overrides or (), to=cast("Form", to), config=config))
    print_lines(f"written: {out}")


@app.command(context_settings=WORDS, short_help="Check a data set before training.")
def doctor(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RECIPE] KEY=VALUE",
            help="data=DIR, and the recipe and options to train with.",
            callback=check_flags,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        folder_option("Folder for doctor.html (with images) and doctor.json."),
    ] = None,
) -> None:
    """Check a data set for broken files, doubtful labels, duplicates and boxes that cannot be learned. Exit code 1:
    something must be fixed.

    RECIPE selects the detector, which determines the boxes that can be learned; default: fcos_mnv2_small.

    \b
    For example:
      fcos doctor data=DIR --out checkup
      fcos doctor fcos_r50_fpn_1x data=DIR data.short_side=600
    """
    from .doctor.check import check
    from .doctor.page import save
    from .doctor.terminal import render
    from .recipes import load_config

    overrides = list(words or [])
    recipe = next((word for word in overrides if "=" not in word), None)
    if recipe is not None:
        overrides.remove(recipe)
    recipe = recipe or "fcos_mnv2_small"
    config = load_config(recipe, overrides)
    if out is not None:
        with explain_write_errors(out):
            out.mkdir(parents=True, exist_ok=True)  # fails before the check, which takes long
    report = check(config, recipe=recipe, progress=progress_bar)
    console().print(render(report))
    if out is not None:
        save(report, out)
        print_lines(f"written: {out / 'doctor.html'}, {out / 'doctor.json'}")
    if report.failed:
        raise typer.Exit(1)


@app.command(context_settings=WORDS, short_help="Divide a data set into train, val and test.")
def split(
    overrides: Annotated[
        list[str],
        typer.Argument(metavar="KEY=VALUE", help="data=DIR, and options for reading it.", callback=check_data_options),
    ],
    out: Annotated[
        Path,
        folder_option("Folder for train.txt and val.txt."),
    ] = Path("splits"),
    val: Annotated[str, typer.Option(metavar="NUMBER", help="Fraction of the images for validation, 0 to 1.")] = "0.2",
    test: Annotated[str, typer.Option(metavar="NUMBER", help="Fraction for testing, 0 to 1; 0: no test.txt.")] = "0",
) -> None:
    """Divide a data set without validation split, and write lists of the images of each part.

    Every class is divided in the same proportion. Duplicates and near duplicates, and images whose names differ only in
    their last number (frames of a video), stay in one part.

    \b
    For example:
      fcos split data=DIR --val 0.2 --out splits
    """
    from .doctor.division import describe_divided_sequences, describe_part, divide, write_lists
    from .recipes import load_config

    fractions = parse_number("--val", val, float), parse_number("--test", test, float)
    config = load_config("fcos_mnv2_small", overrides).data
    annotations, parts = divide(config, val=fractions[0], test=fractions[1])
    files = write_lists(annotations, parts, out)
    for name, mask in parts.items():
        print_lines(f"{name}: {describe_part(annotations, mask)}")
    if note := describe_divided_sequences(annotations, parts):
        print_lines(f"note: {note}")
    print_lines(f"written: {', '.join(map(str, files.values()))}")
    options = [f"data.{name}.image_list={shlex.quote(str(file))}" for name, file in files.items()]
    print_lines(f"next: fcos train fcos_mnv2_small {' '.join([*map(shlex.quote, overrides), *options])}")


@samples_app.command(short_help="Write a sample data set in COCO layout.")
def digits(  # noqa: PLR0917 (options of the command line)
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="New folder.")],
    train_images: Annotated[str, typer.Option(metavar="N", help="Number of training images.")] = "600",
    val_images: Annotated[str, typer.Option(metavar="N", help="Number of validation images.")] = "100",
    size: Annotated[str, typer.Option(metavar="N", help="Width and height in pixels.")] = "192",
    classes: Annotated[str, typer.Option(metavar="N", help="Number of digit classes, 1 to 10.")] = "10",
    seed: Annotated[str, typer.Option(metavar="N", help="Random seed; each seed gives different images.")] = "0",
    masks: Annotated[bool, typer.Option("--masks", help="Add the mask of every digit.")] = False,
) -> None:
    """Write a sample data set in COCO layout: handwritten digits on photographs."""
    from .data.digits import make_digits

    with progress_bar("drawing") as progress:
        make_digits(
            folder,
            train_images=parse_number("--train-images", train_images, int),
            val_images=parse_number("--val-images", val_images, int),
            size=parse_number("--size", size, int),
            classes=parse_number("--classes", classes, int),
            seed=parse_number("--seed", seed, int),
            masks=masks,
            progress=progress,
        )
    print_lines(f"written: {folder}; train with: fcos train fcos_mnv2_small data={folder}")


@config_app.command("list", short_help="List the shipped recipes.")
def config_list() -> None:
    """List the shipped recipes with their descriptions, first the one to start with."""
    from .recipes import FIRST_RECIPE, recipe_descriptions

    recipes = recipe_descriptions()
    width = max(map(len, recipes))
    for name in sorted(recipes, key=lambda name: name != FIRST_RECIPE):
        print(f"{name:{width}}  {'START HERE. ' if name == FIRST_RECIPE else ''}{recipes[name]}")


@config_app.command("show", context_settings=WORDS, short_help="Print a complete config with descriptions.")
def config_show(
    recipe: Recipe,
    overrides: Overrides = None,
) -> None:
    """Print the complete resolved config as YAML, with a description of every option."""
    from .config.text import annotated_yaml
    from .recipes import load_config

    check_recipe("fcos config show", recipe, overrides or ())
    print(annotated_yaml(load_config(recipe, overrides or ())), end="")


@config_app.command("diff", short_help="Print the options that differ.")
def config_diff(
    first: Recipe,
    second: Annotated[str, typer.Argument(metavar="RECIPE", help="Recipe or YAML file to compare with.")],
) -> None:
    """Print the options that differ between two configs."""
    from .config.text import changes
    from .recipes import load_config

    for key, old, new in changes(load_config(first), load_config(second)):
        print_lines(f"{key}: {old} -> {new}")
