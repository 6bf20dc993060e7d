"""Arguments of the commands of `fcos`: their types and checks, and suggestions for words that are no option."""

from __future__ import annotations

import difflib
import math
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from .errors import ConfigError
from .formatting import quote

Number = TypeVar("Number", int, float)


def check_folder(path: Path | None) -> Path | None:
    """Reject an output folder that no system can create, or that is or lies in a file, before anything is computed."""
    from .config.arguments import check_source

    if path is not None:
        check_source(path, name="--out")
    for candidate in (path, *path.parents) if path is not None else ():
        if candidate.exists() and not candidate.is_dir():
            raise ConfigError(f"--out: {candidate} is a file; expected a folder")
    return path


def parse_number(
    option: str, text: str, kind: type[Number], *, low: float = -math.inf, high: float = math.inf
) -> Number:
    """Convert the text of an option to a number.

    Args:
        option: name of the option, for messages.
        text: text as typed.
        kind: `int` or `float`.
        low: smallest value.
        high: largest value.

    Raises:
        ConfigError: the text is not a number, or the number is out of range.
    """
    try:
        number = kind(text)
    except ValueError:
        number = None
    if number is None or not low <= number <= high:
        name = "an integer" if kind is int else "a number"
        limits = "" if (low, high) == (-math.inf, math.inf) else f" from {low:g} to {high:g}"
        raise ConfigError(f"{option}: expected {name}{limits}, found {quote(text)}")
    return number


def check_flags(context: typer.Context, words: list[str] | None) -> list[str] | None:
    """Reject unknown flags among the words of a command, with the option to type instead."""
    for position, word in enumerate(words or []):
        if re.match(r"--?[A-Za-z]", word) and not Path(word).exists():
            raise ConfigError(f"{word}: no such option{_suggest_for_flag(context, (words or [])[position:])}")
    return words


def check_data_options(context: typer.Context, words: list[str] | None) -> list[str] | None:
    """Reject words that are not `key=value`, such as a folder without `data=`, with the option to type instead."""
    for word in check_flags(context, words) or []:
        if "=" not in word:
            raise ConfigError(f"{word}: expected KEY=VALUE; did you mean data={shlex.quote(word)}?")
    return words


def _suggest_for_flag(context: typer.Context, words: Sequence[str]) -> str:
    """Return a hint for an unknown flag: a flag of the command with a similar name, or an option `key=value`."""
    from .config import Config
    from .config.lookup import suggest_options

    flag, _, value = words[0].partition("=")
    if not value and len(words) > 1 and not words[1].startswith("-") and "=" not in words[1]:
        value = words[1]
    flags = [name for parameter in context.command.params for name in parameter.opts]
    known = difflib.get_close_matches(flag, flags, n=1, cutoff=0.7)
    known += [f"{key}={value or 'VALUE'}" for key in suggest_options(Config, flag.lstrip("-"))]
    if known:
        return f", did you mean {' or '.join(known)}?"
    return f"; options have the form key=value, and `{context.command_path} --help` lists the others"


Weights = Annotated[
    str,
    typer.Argument(metavar="WEIGHTS", help="Run folder, weights file, or name such as torchvision/fcos_resnet50_fpn."),
]
OriginalConfig = Annotated[
    str | None,
    typer.Option(
        "--config",
        help="YAML file or recipe with the options that the weights lack; weights of the original require it.",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Options, e.g. train.lr=0.005.", callback=check_flags),
]
TestOverrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Options, e.g. eval.flip=true.", callback=check_flags),
]
FileOverrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE", help="Options that the file lacks, e.g. data.classes=[a,b].", callback=check_flags
    ),
]
WORDS = {"ignore_unknown_options": True}
"""Settings of commands with KEY=VALUE words: -1 is a value (the original's TEST.DETECTIONS_PER_IMG -1), and
`check_flags` explains unknown flags."""
