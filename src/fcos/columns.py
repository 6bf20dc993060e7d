"""Columns of data classes that hold one row per box: checks, selection and concatenation of all columns at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from .masks import Masks

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Rows = TypeVar("Rows", bound="DataclassInstance")
_SHAPES: dict[str, tuple[int | str, ...]] = {
    "boxes": (4,),
    "labels": (),
    "is_crowd": (),
    "scores": (),
    "mask_grids": ("S", "S"),
    "keypoints": ("P", 3),
    "track_ids": (),
}
"""Columns of tensors, with their shape without the first dimension; a letter stands for any size."""
_DTYPES = {"labels": torch.int64, "is_crowd": torch.bool, "track_ids": torch.int64}
"""Data types of the columns; all others are floating-point."""
_POLYGONS = ("masks", "polygons")
"""Columns of `Masks`."""
OPTIONAL = (*_POLYGONS, "mask_grids", "keypoints", "track_ids")
"""Columns that may be None."""


def columns(rows: DataclassInstance) -> dict[str, Any]:
    """Return the fields that have one row per box, without those that are None."""
    values = {name: getattr(rows, name) for name in _column_names(type(rows))}
    return {name: value for name, value in values.items() if value is not None or name not in OPTIONAL}


@cache  # called several times per image
def _column_names(kind: type[DataclassInstance]) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind) if field.name in _SHAPES or field.name in _POLYGONS)


def map_columns(rows: Rows, function: Callable[[Any], Any]) -> Rows:
    """Apply a function to every column."""
    return replace(rows, **{name: function(column) for name, column in columns(rows).items()})


def concatenate(parts: Sequence[Rows]) -> Rows:
    """Concatenate the columns; take the other fields from the first part.

    Raises:
        ValueError: a part lacks a column that another one has.
    """
    all_columns = [columns(part) for part in parts]
    names = list(all_columns[0])
    for other in all_columns:
        if list(other) != names:
            raise ValueError(f"expected the same columns in all parts, found {', '.join(names)} and {', '.join(other)}")
    joined = {name: [part[name] for part in all_columns] for name in names}
    return replace(
        parts[0],
        **{name: Masks.concatenate(parts) if name in _POLYGONS else torch.cat(parts) for name, parts in joined.items()},
    )


def split(rows: Rows, counts: Sequence[int]) -> list[Rows]:
    """Split the columns into parts with the given numbers of rows; `concatenate` is the inverse."""
    parts = {name: column.split(list(counts)) for name, column in columns(rows).items()}
    return [replace(rows, **{name: parts[name][i] for name in parts}) for i in range(len(counts))]


def require_columns(rows: DataclassInstance) -> None:
    """Check shapes and dtypes. Values are not checked, as reading them would synchronize with the GPU.

    Raises:
        ValueError: a column has a wrong type, shape or dtype, or another length than `boxes`.
    """
    class_name, named_columns = type(rows).__name__, columns(rows)
    boxes = named_columns["boxes"]
    count = len(boxes) if isinstance(boxes, Tensor) and boxes.ndim else 0
    for name, column in named_columns.items():
        if name in _POLYGONS:
            if not isinstance(column, Masks) or len(column) != count:
                found = len(column) if isinstance(column, Masks) else type(column).__name__
                raise ValueError(f"{class_name}.{name}: expected Masks of {count} objects, found {found}")
        else:
            _require_tensor(f"{class_name}.{name}", column, (count, *_SHAPES[name]), _DTYPES.get(name))


def _require_tensor(name: str, column: Any, shape: tuple[int | str, ...], dtype: torch.dtype | None) -> None:
    """Raise ValueError unless `column` is a tensor of this shape and dtype; None: any floating-point dtype."""
    is_tensor = isinstance(column, Tensor)
    is_dtype = is_tensor and (column.is_floating_point() if dtype is None else column.dtype == dtype)
    if is_dtype and _fits(column.shape, shape):
        return
    found = f"{list(column.shape)} {_dtype_name(column.dtype)}" if is_tensor else type(column).__name__
    expected = f"[{', '.join(map(str, shape))}] {'floating-point' if dtype is None else _dtype_name(dtype)}"
    raise ValueError(f"{name}: expected {'' if is_tensor else 'a tensor '}{expected}, found {found}")


def _fits(sizes: Sequence[int], shape: tuple[int | str, ...]) -> bool:
    """Return whether all sizes are those of `shape`, where the same letter stands for the same size."""
    letters: dict[int | str, int] = {}
    return len(sizes) == len(shape) and all(
        size == (letters.setdefault(expected, size) if isinstance(expected, str) else expected)
        for size, expected in zip(sizes, shape, strict=True)
    )


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
