"""Commands of `fcos` that read or write data sets without a detector: doctor, split, convert-data and samples."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from .cli_arguments import (
    WORDS,
    check_data_options,
    check_data_source,
    check_flags,
    folder_argument,
    folder_option,
    parse_number,
    require_reading_options,
)
from .files import explain_write_errors
from .progress import progress_bar
from .terminal import console, print_lines

commands = typer.Typer()
samples_app = typer.Typer(help="Create sample data.", no_args_is_help=True)
commands.add_typer(samples_app, name="samples")


@commands.command(context_settings=WORDS, short_help="Check a data set before training.")
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


@commands.command(context_settings=WORDS, short_help="Divide a data set into train, val and test.")
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


@commands.command("convert-data", context_settings=WORDS, short_help="Convert a data set to COCO files.")
def convert_data(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="Folder or file of a data set in any layout.", callback=check_data_source
        ),
    ],
    out: Annotated[
        Path,
        folder_argument("Folder for train.json, val.json and test.json."),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Options for reading the data, e.g. data.on_error=skip, data.val_fraction=0.2.",
            callback=check_data_options,
        ),
    ] = None,
    copy_images: Annotated[bool, typer.Option("--copy-images", help="Copy the images to OUT/images.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace train.json, val.json and test.json in OUT, and images.")
    ] = False,
) -> None:
    """Convert a data set in any layout to COCO files, one per split, with its masks and keypoints.

    The files name the images where they are, relative to OUT, unless they are copied.

    \b
    For example:
      fcos convert-data cityscapes cityscapes-coco
      fcos convert-data labelme coco --copy-images
    """
    from .data.conversion import convert, describe
    from .recipes import load_config

    options = overrides or []
    config = load_config("fcos_mnv2_small", [f"data={source}", *options]).data
    require_reading_options(options)
    for file, written in convert(config, out, copy_images=copy_images, overwrite=overwrite).items():
        print_lines(f"{file}: {describe(written)}")
    print_lines(f"next: fcos train fcos_mnv2_small data={shlex.quote(str(out))}")


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
