"""Arguments of the commands of `fcos`: their types and checks, and suggestions for words that are no option."""

from __future__ import annotations

import difflib
import math
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from .errors import ConfigError
from .formatting import quote

Number = TypeVar("Number", int, float)
_OVERRIDE = re.compile(r"[a-z_]+(\.[a-z0-9_]+)*=")
"""Beginning of an option of the config, `key=`."""


def split_words(words: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """Return the options of the config, KEY=VALUE, and the other words; an existing file is not an option."""
    is_option = [_OVERRIDE.match(word) is not None and not Path(word).exists() for word in words or ()]
    pairs = list(zip(words or (), is_option, strict=True))
    return [word for word, option in pairs if option], [word for word, option in pairs if not option]


def require_command(words: Sequence[str]) -> None:
    """Raise an error with the command to type if the first word is `help`, or an image as for the original's `fcos`."""
    first = words[0] if words else ""
    if first == "help":
        raise ConfigError(f"help: not a command; type: {' '.join(['fcos', *words[1:], '--help'])}")
    is_image = first.lower().partition("?")[0].endswith((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"))
    if is_image or "://" in first or "/" in first:
        raise ConfigError(
            f"{first}: not a command; to detect objects in images, type: fcos predict WEIGHTS {' '.join(words)}, with"
            " torchvision/fcos_resnet50_fpn (80 classes of COCO) or your weights file as WEIGHTS"
        )


def parse_folder(text: str | Path | None, *, name: str) -> Path | None:
    """Return the path of an output folder; None if it is not given. `name` is its option or argument, for messages.

    Raises:
        ConfigError: the text is empty, or the folder cannot be created on any system, or is or lies in a file. This is
            found before anything is computed.
    """
    from .config.arguments import check_source

    if text is None:
        return None
    if not str(text):
        raise ConfigError(f"{name}: expected a folder, found an empty value; write . for the current folder")
    path = Path(check_source(text, name=name))
    for candidate in (path, *path.parents):
        if candidate.exists() and not candidate.is_dir():
            raise ConfigError(f"{name}: {candidate} is a file; expected a folder")
    return path


def folder_option(description: str) -> Any:
    """Return the option `--out` with the path of an output folder, see `parse_folder`."""
    # As text, because an empty value as a path is the current folder.
    return typer.Option("--out", help=description, metavar="FOLDER", parser=str, callback=_parse_folder_option)


def _parse_folder_option(text: str | None) -> Path | None:
    return parse_folder(text, name="--out")


def folder_argument(description: str) -> Any:
    """Return the argument OUT with the path of an output folder; a mistyped flag or option is none."""
    return typer.Argument(help=description, metavar="OUT", parser=str, callback=_parse_folder_argument)


def _parse_folder_argument(context: typer.Context, text: str) -> Path | None:
    _reject_option(context, str(check_flag(context, text)))
    return parse_folder(text, name="OUT")


def check_data_source(context: typer.Context, text: str) -> str:
    """Return the path of a data set, given as DIR or data=DIR; reject an unknown flag and another option."""
    if text.startswith("data=") and not os.path.exists(text):
        text = text.removeprefix("data=")
    if not text:
        raise ConfigError("SOURCE: expected the folder or file of a data set, found an empty value")
    _reject_option(context, str(check_flag(context, text)))
    return text


def _reject_option(context: typer.Context, word: str) -> None:
    """Reject KEY=VALUE in the place of a single argument, with the usage to type."""
    if re.match(r"[a-z_]+(\.[a-z0-9_]+)*=", word) and not os.path.exists(word):
        raise ConfigError(f"{word}: expected a path, found an option; type: {_usage(context)}")


def require_reading_options(options: Sequence[str]) -> None:
    """Reject a second location of the data, and options that do not affect which annotations are read, and how."""
    from .config.options import ANNOTATION_OPTIONS, is_among

    keys = [option.partition("=")[0] for option in options]
    for option, key in zip(options, keys, strict=True):
        if key in ("data", "data.root"):
            raise ConfigError(f"{option}: SOURCE is already given; remove one of them")
    used = (*ANNOTATION_OPTIONS, "data.max_pixels", "data.bit_depth")
    idle = [key for key in keys if not is_among(key, used)]
    if idle:
        remove = "it" if len(idle) == 1 else "them"
        raise ConfigError(f"{', '.join(idle)}: no effect on a conversion of data; remove {remove}")


def check_choice(option: str, text: str, choices: Sequence[str]) -> None:
    """Raise ConfigError if the value of an option is not one of the choices.

    Args:
        option: name of the option as typed, for messages.
        text: value as typed.
        choices: allowed values.
    """
    if text not in choices:
        raise ConfigError(f"{option}: expected one of {', '.join(choices)}, found {quote(text)}")


def check_recipe(command: str, recipe: str, overrides: Sequence[str]) -> None:
    """Reject an option in the place of the recipe, which is the first word, with the command to type.

    Args:
        command: the command, for messages.
        recipe: first word.
        overrides: the other words.
    """
    if "=" in recipe and not os.path.exists(recipe):
        name = next((word for word in overrides if "=" not in word), "fcos_mnv2_small")
        words = shlex.join([name, recipe, *(word for word in overrides if word != name)])
        raise ConfigError(f"{recipe}: expected a recipe or YAML file before the options; type: {command} {words}")


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
        limits = f" of at least {low:.15g}" if high == math.inf else f" from {low:.15g} to {high:.15g}"
        limits = "" if (low, high) == (-math.inf, math.inf) else limits
        raise ConfigError(f"{option}: expected {name}{limits}, found {quote(text)}")
    return number


def check_flag(context: typer.Context, word: str | Path) -> str | Path:
    """Reject an unknown flag in the place of a single argument, with the option or the usage to type."""
    if re.match(_FLAG, str(word)) and not os.path.exists(word):
        raise ConfigError(f"{word}: no such option{_suggest_for_flag(context, [str(word)])}")
    return word


def parse_size(option: str, text: str) -> tuple[int, int]:
    """Convert a text such as `608x800` to (height, width).

    Raises:
        ConfigError: the text has another form.
    """
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if match is None:
        raise ConfigError(f"{option}: expected HEIGHTxWIDTH in pixels, such as 608x800, found {quote(text)}")
    return int(match[1]), int(match[2])


def check_weights(context: typer.Context, word: str) -> str:
    """Reject a flag or an option `key=value` in the place of the weights, which come first, with what to type."""
    check_flag(context, word)
    if re.match(r"[a-z_]+(\.[a-z0-9_]+)*=", word) and not os.path.exists(word):
        raise ConfigError(
            f"{word}: expected weights before the options; type: {context.command_path} WEIGHTS ... {shlex.quote(word)}"
        )
    return word


def check_flags(context: typer.Context, words: list[str] | None) -> list[str] | None:
    """Reject unknown flags among the words of a command, and its flags as `key=value`, with the option to type."""
    flags = _flags(context)
    for position, word in enumerate(words or []):
        if os.path.exists(word):  # False for words that are too long for a path
            continue
        if re.match(_FLAG, word):
            raise ConfigError(f"{word}: no such option{_suggest_for_flag(context, (words or [])[position:])}")
        name, separator, value = word.partition("=")
        flag = _FLAG_OF_NAME.get(name, f"--{name}")
        is_option = name == "output_dir" and context.command.name == "doctor"  # which takes the options of a training
        if separator and flag in flags and not is_option:
            raise ConfigError(f"{word}: no such option here, did you mean {flag} {shlex.quote(value)}?")
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
    name = flag.lstrip("-")
    flags = _flags(context)
    if flag in flags:
        return " after --; write it before --"
    similar = difflib.get_close_matches(flag, flags, n=1, cutoff=0.7)
    arguments = [parameter.name or "" for parameter in context.command.params if not _is_option(parameter)]
    if not similar and name not in _FLAG_OF_NAME and difflib.get_close_matches(name, arguments, n=1, cutoff=0.7):
        return f"; type: {_usage(context)}"
    if not value and len(words) > 1 and not words[1].startswith("-") and "=" not in words[1]:
        value = words[1]
    known = [other for other in [_FLAG_OF_NAME.get(name)] if other in flags] or similar
    if known and value and not _takes_no_value(context, known[0]):
        known = [f"{known[0]} {shlex.quote(value)}"]
    known += [f"{key}={value or 'VALUE'}" for key in suggest_options(Config, name)]
    if known:
        return f", did you mean {' or '.join(known)}?"
    return f"; options have the form key=value, and `{context.command_path} --help` lists the others"


def _usage(context: typer.Context) -> str:
    usage = " ".join(context.command.collect_usage_pieces(context)[1:])  # without [OPTIONS]
    return f"{context.command_path} {usage.replace('{', '').replace('}', '')}"


def _flags(context: typer.Context) -> list[str]:
    return [name for parameter in context.command.params for name in parameter.opts if _is_option(parameter)]


def _takes_no_value(context: typer.Context, flag: str) -> bool:
    return any(flag in parameter.opts and getattr(parameter, "is_flag", False) for parameter in context.command.params)


def _is_option(parameter: Any) -> bool:
    return any(name.startswith("--") for name in parameter.opts)


_FLAG = r"--?[A-Za-z]"

_FLAG_OF_NAME = {
    "conf": "--threshold",
    "confidence": "--threshold",
    "score_threshold": "--threshold",
    "scores": "--threshold",
    "output": "--out",
    "output_dir": "--out",
    "format": "--to",
}
"""Flags by the names that other commands and projects use for them."""
Weights = Annotated[
    str,
    typer.Argument(
        metavar="WEIGHTS",
        help="Run folder, weights file, or name such as torchvision/fcos_resnet50_fpn.",
        callback=check_weights,
    ),
]
Recipe = Annotated[
    str,
    typer.Argument(metavar="RECIPE", help="Recipe (see: fcos config list) or YAML file.", callback=check_flag),
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
