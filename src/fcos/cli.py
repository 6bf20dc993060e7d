"""Command-line interface `fcos`: argument parsing only. Commands import heavy modules when they run."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, cast, get_args

import typer

from . import cli_data, cli_deploy, cli_inspect, cli_predict
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
    check_flag,
    check_flags,
    check_recipe,
    folder_option,
    require_command,
)
from .output import drop_unwritable_output
from .progress import progress_bar
from .terminal import (
    console,
    interrupt_on_termination,
    is_rank_zero,
    prepare_output,
    print_lines,
    report_user_errors,
)

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
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        from . import __version__

        print(f"fcos {__version__}")
        raise typer.Exit
    if context.invoked_subcommand not in {"train", "serve"}:  # which handle these signals themselves
        context.with_resource(interrupt_on_termination())


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
        print_lines(f"next: fcos predict {shlex.quote(str(result.run / 'weights' / 'best.pt'))} IMAGE...")


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
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Run folder, also of an unfinished run.", callback=check_flag)
    ],
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


@app.command(context_settings=WORDS, short_help="Convert weights between projects.")
def convert(
    weights: Weights,
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="New file; its name ends in .pt or .pth.", callback=check_flag)
    ],
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


app.add_typer(cli_predict.commands)
app.add_typer(cli_data.commands)
app.add_typer(cli_deploy.commands)
app.add_typer(cli_inspect.commands)
app.add_typer(config_app, name="config")


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
