"""Lookup of options in a config section by dotted key: kinds of values, and suggestions for unknown names."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from .options import sections_of

Kind = Literal["text", "texts", "other"]
"""Kind of an option: a name or path, a list of these, or anything else."""

_OTHER_NAMES = {
    "batch": ("train.batch_size",),
    "bs": ("train.batch_size",),
    "conf": ("model.score_threshold",),
    "gpus": ("train.devices",),
    "img_size": ("data.short_side", "data.max_side"),
    "imgsz": ("data.short_side", "data.max_side"),
    "iou": ("model.nms_threshold",),
    "learning_rate": ("train.lr",),
    "lr0": ("train.lr",),
    "max_iter": ("train.iterations",),
    "names": ("data.classes",),
    "nc": ("model.num_classes",),
    "num_workers": ("data.workers",),
    "project": ("output_dir",),
    "scores": ("model.score_threshold",),
    "threshold": ("model.score_threshold",),
    "wd": ("train.weight_decay",),
}
"""Names that other projects use for our options."""


@cache
def option_kinds(root: type[BaseModel]) -> dict[str, Kind]:
    """Return the kind of every option below a section by dotted key, including the options of all its variants."""
    return dict(_walk(root, ""))


def suggest_options(root: type[BaseModel], name: str) -> list[str]:
    """Return the dotted keys of the options that a name may stand for, by the last part of their keys.

    The name may also be that of another project, such as `imgsz` or `batch`.
    """
    keys = list(option_kinds(root))
    name = name.lower().replace("-", "_")
    if name in keys or name == "data":  # short for data.root
        return [name]
    last = name.rpartition(".")[2]
    if last in _OTHER_NAMES:
        return [key for key in _OTHER_NAMES[last] if key in keys]
    by_last_part: dict[str, list[str]] = {}
    for key in keys:
        by_last_part.setdefault(key.rpartition(".")[2], []).append(key)
    close = difflib.get_close_matches(last, by_last_part, n=1, cutoff=0.85)  # an exact match is the closest
    return by_last_part[close[0]] if close and len(by_last_part[close[0]]) <= 3 else []


def _walk(section: type[BaseModel], prefix: str) -> Iterator[tuple[str, Kind]]:
    for name, field in section.model_fields.items():
        sections = list(sections_of(field))
        for child in sections:
            yield from _walk(child, f"{prefix}{name}.")
        if not sections:
            yield f"{prefix}{name}", _kind(field.annotation)


def _kind(annotation: Any) -> Kind:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in (str, Path):
        return "text"
    if origin is Annotated:
        return _kind(arguments[0])
    if origin is Literal:
        return "text" if all(isinstance(choice, str) for choice in arguments) else "other"
    if origin is list:
        return "texts" if _kind(arguments[0]) == "text" else "other"
    if origin in (Union, types.UnionType):
        kinds: set[Kind] = {_kind(argument) for argument in arguments if argument is not type(None)}
        return kinds.pop() if len(kinds) == 1 else "other"
    return "other"
