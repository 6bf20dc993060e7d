"""Weights files: tensors and plain data only, so that loading one never runs code from it.

A file is one dictionary: `format` ("fcos"), `version`, `model` (state dict), `config`, `class_names`, `category_ids`,
`metrics`, `thresholds`, `iteration`, `licence`, and `training` (what a run needs to continue, or None).
"""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .choices import Project
from .config import Config
from .errors import WeightsError
from .formatting import some

FORMAT = "fcos"
VERSION = 1
PIXELS = ("pixel_mean", "pixel_std")
"""Tensors that not every project saves with the weights."""
_COUNTER = ".num_batches_tracked"
_NEEDED = {"version": int, "model": dict, "config": dict, "class_names": list, "category_ids": list}
"""What no file of ours is without."""


@dataclass(frozen=True)
class Checkpoint:
    """A weights file.

    Attributes:
        model: the detector's state dict, on the CPU.
        config: the resolved config of the run, plain data; of weights of other projects what is known of it. Those of
            `fcos_core` do not tell how the head is made: they also need the config they were trained with.
        class_names: [K]; empty when unknown.
        category_ids: [K], the data's own id of every class.
        metrics: of the last evaluation of these weights; empty when there was none.
        thresholds: score above which `predict` shows detections of a class, by its name, see `best_thresholds`; empty
            when these weights were not evaluated.
        iteration: steps trained.
        licence: of the weights, where one must mind it; empty: nothing is known against any use.
        training: optimiser and everything else a run needs to continue; None in files that are only for detection.
        project: who wrote the file.
        original: the file's tensors in that project's own names; empty for files of ours.
        original_names: the name in the file of each tensor of `model`; empty for files of ours.
    """

    model: dict[str, Tensor]
    config: dict[str, Any]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    metrics: dict[str, float] = field(default_factory=dict)
    thresholds: dict[str, float] = field(default_factory=dict)
    iteration: int = 0
    licence: str = ""
    training: dict[str, Any] | None = None
    project: Project = "fcos"
    original: dict[str, Tensor] = field(default_factory=dict)
    original_names: dict[str, str] = field(default_factory=dict)


def save_checkpoint(
    path: str | Path,
    *,
    model: nn.Module,
    config: Config,
    class_names: Sequence[str],
    category_ids: Sequence[int],
    metrics: Mapping[str, float] | None = None,
    thresholds: Mapping[str, float] | None = None,
    iteration: int = 0,
    licence: str = "",
    training: dict[str, Any] | None = None,
    keep: int = 1,
) -> None:
    """Write a weights file; until it is complete on the disk, a file that was there stays as it is.

    Args:
        path: where to; the folder exists.
        model: whose state dict is saved.
        config: the resolved config.
        class_names: [K].
        category_ids: [K].
        metrics: figures of an evaluation of these weights.
        thresholds: see `Checkpoint`.
        iteration: steps trained.
        licence: see `Checkpoint`.
        training: tensors and plain data (str, int, float, bool, None, list, tuple, dict).
        keep: see `write`.

    Raises:
        OSError: the disk is full or not writable.
    """
    content = {
        "format": FORMAT,
        "version": VERSION,
        "model": {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()},
        "config": config.to_dict(),
        "class_names": [str(name) for name in class_names],
        "category_ids": [int(i) for i in category_ids],
        "metrics": {name: float(value) for name, value in (metrics or {}).items()},
        "thresholds": {name: float(value) for name, value in (thresholds or {}).items()},
        "iteration": iteration,
        "licence": licence,
        "training": training,
    }
    write(Path(path), content, keep=keep)


def write(path: Path, content: Any, *, keep: int = 1) -> None:
    """`torch.save`, but until the file is complete on the disk, one that was there stays as it is.

    Args:
        path: where to; the folder exists.
        content: tensors and plain data.
        keep: how many generations stay, see `generations`. At every moment the newest of them is whole.

    Raises:
        OSError: the disk is full or not writable.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        if keep > 1:
            for number, earlier in reversed(list(enumerate(generations(path), start=1))):
                _rename(earlier, path.with_name(f"{path.stem}-{number}{path.suffix}"), leave=earlier == path)
        temporary.replace(path)
    except RuntimeError as error:  # torch's writer hides what the system said
        raise error.__context__ if isinstance(error.__context__, OSError) else error from None
    finally:
        temporary.unlink(missing_ok=True)
    for old in generations(path)[keep:]:
        old.unlink()


def _rename(file: Path, name: Path, *, leave: bool) -> None:
    """Give a file another name; with `leave` the old one stays too, where the file system can do that."""
    if leave:
        try:
            name.hardlink_to(file)
            return
        except OSError:
            pass
    file.replace(name)


def generations(path: Path) -> list[Path]:
    """A file and the earlier ones of its name that are there, newest first: last.pt, last-1.pt, last-2.pt."""
    earlier = {}
    for file in path.parent.glob(f"{path.stem}-*{path.suffix}"):
        number = file.stem.removeprefix(f"{path.stem}-")
        if number.isdecimal():
            earlier[int(number)] = file
    return [file for file in (path,) if file.is_file()] + [earlier[number] for number in sorted(earlier)]


def read(path: Path, *, safe_globals: Sequence[Any] = ()) -> Any:
    """What is in a file that `torch.save` wrote, on the CPU; no code from it is run.

    Args:
        path: the file.
        safe_globals: see `torch.serialization.safe_globals`.

    Raises:
        WeightsError: the file is missing, damaged, or holds Python objects.
    """
    if not path.is_file():
        what = "this is a folder" if path.is_dir() else "no such file"
        raise WeightsError(f"{path}: {what}; expected a weights file, for example runs/NAME/weights/best.pt")
    try:
        with torch.serialization.safe_globals(list(safe_globals)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no weights make the reader fail in any way
        if not _is_zip(path):  # of PyTorch before 1.6
            reason = f"no weights file, or one that was cut short ({path.stat().st_size} bytes)"
        elif isinstance(error, pickle.UnpicklingError):
            raise WeightsError(
                f"{path}: not a weights file: it holds Python objects, which are never loaded because they can run"
                " code; expected tensors and plain data only, as in torch.save(model.state_dict(), PATH)"
            ) from None
        else:
            first_line = str(error).partition("\n")[0]
            reason = f"damaged: {first_line}"
        raise WeightsError(f"{path}: {reason}; copy it again or use an earlier one") from None


def _is_zip(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # it is one, and damaged
        return True


def _verify(path: Path) -> None:
    """Compare the check sums of a file of ours: torch writes them, but does not look at them when it reads."""
    try:
        with zipfile.ZipFile(path) as parts:
            bad = parts.testzip()
            problem = f"wrong check sum of {bad}" if bad else ""
            for part in parts.infolist():
                if part.external_attr & _FOLDER:
                    problem = f"{part.filename} is marked as a folder"
    except Exception as error:  # as above
        problem = str(error)
    if problem:
        raise WeightsError(f"{path}: damaged: {problem}; copy it again or use an earlier one")


_FOLDER = 0x10
"""An attribute in the directory of a zip file, which no check sum covers; torch reads nothing where it is set."""


def is_ours(content: Any) -> bool:
    """Whether what `read` gave is of a file that `save_checkpoint` wrote."""
    return isinstance(content, dict) and content.get("format") == FORMAT


def from_ours(content: Mapping[str, Any], path: Path) -> Checkpoint:
    """A checkpoint from what is in a file of ours.

    Args:
        content: as `read` gave it.
        path: the file, whose check sums are compared.

    Raises:
        WeightsError: the file is damaged, or of a newer version.
    """
    _verify(path)
    lacks = [name for name, kind in _NEEDED.items() if not isinstance(content.get(name), kind)]
    if lacks:
        raise WeightsError(f"{path}: damaged: lacks {', '.join(lacks)}; copy it again or use an earlier one")
    if content["version"] > VERSION:
        raise WeightsError(
            f"{path}: written by a newer fcos (file version {content['version']}, this one reads up to {VERSION});"
            " upgrade with pip install -U fcos-vision"
        )
    names, ids = content["class_names"], content["category_ids"]
    figures = {name: content.get(name, {}) for name in ("metrics", "thresholds")}
    odd = [name for name, values in figures.items() if not _are_numbers(values)]
    if len(names) not in (0, len(ids)):
        odd.append(f"class_names ({len(names)} for {len(ids)} category_ids)")
    if odd:
        raise WeightsError(f"{path}: damaged: odd {', '.join(odd)}; copy it again or use an earlier one")
    return Checkpoint(
        model=content["model"],
        config=content["config"],
        class_names=tuple(names),
        category_ids=tuple(ids),
        **figures,
        iteration=content.get("iteration", 0),
        licence=content.get("licence", ""),
        training=content.get("training"),
    )


def _are_numbers(values: Any) -> bool:
    """Whether it is a dictionary with nothing else below its names."""
    return isinstance(values, dict) and all(isinstance(value, int | float) for value in values.values())


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], *, where: str) -> None:
    """Load a complete state dict.

    Only what other projects or norms do not have may be missing, mean and deviation of the pixels and the counters of
    batch norm; then the model's stay. Counters that the model has no use for are left out.

    Args:
        model: to fill.
        weights: its state dict.
        where: they came from, for messages.

    Raises:
        WeightsError: tensors are missing, left over, or of another shape; a few of each are named.
    """
    own = model.state_dict()
    optional = {name: own[name] for name in own if name in PIXELS or name.endswith(_COUNTER)}
    weights = {**optional, **{name: w for name, w in weights.items() if name in own or not name.endswith(_COUNTER)}}
    problems = {
        "missing": [name for name in own if name not in weights],
        "not in the model": [name for name in weights if name not in own],
        "of another shape": other_shapes(own, weights),
    }
    found = [f"{len(names)} {what}: {some(names)}" for what, names in problems.items() if names]
    if found:
        raise WeightsError(
            f"{where}: the weights do not fit the model (of {len(own)} tensors, {'; '.join(found)});"
            " use the model options they were trained with"
        )
    model.load_state_dict(dict(weights))


def other_shapes(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> list[str]:
    """The tensors of `weights` whose shape is not that of the model's `own`, each with both."""
    return [
        f"{name} {list(weights[name].shape)} for {list(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
