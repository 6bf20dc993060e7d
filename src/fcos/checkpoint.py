"""Weights files, which contain only tensors and plain data, so that loading one never executes code.

A file contains one dictionary: `format` ("fcos"), `version`, `model` (state dict), `config`, `class_names`,
`category_ids`, `metrics`, `thresholds`, `iteration`, `licence`, and `training` (state for resuming a run, or None).
"""

from __future__ import annotations

import logging
import os
import pickle
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .checkpoint_checks import COUNTER_SUFFIX, describe_metadata_problems, describe_weight_problems
from .choices import Project
from .config import Config
from .errors import WeightsError
from .files import replaced
from .formatting import join_some

log = logging.getLogger(__name__)

FORMAT = "fcos"
VERSION = 1
PIXELS = ("pixel_mean", "pixel_std")
"""Pixel normalisation tensors, which some projects do not save with the weights."""
_REQUIRED_KEYS = {"version": int, "model": dict, "config": dict, "class_names": list, "category_ids": list}
"""Required keys of our files, with the types of their values."""


@dataclass(frozen=True)
class Checkpoint:
    """Contents of a weights file.

    Attributes:
        model: state dict of the detector, on the CPU.
        config: resolved config of the run as plain data. For weights of other projects, the part of it that the file
            determines; files of `fcos_core` do not describe the head, so they also require their training config.
        class_names: K names; empty if unknown.
        category_ids: K category ids of the classes in the data set.
        metrics: metrics of the last evaluation of these weights; empty if they were not evaluated.
        thresholds: score threshold of `predict` by class name, see `best_thresholds`; empty if these weights were not
            evaluated.
        iteration: number of training steps.
        licence: licence of the weights if it may restrict their use; empty: no restriction is known.
        training: state of the optimiser and everything else needed to resume a run; None in files for inference only.
            For another project's file: its entries `optimizer` and `iteration`, or None without them.
        project: project that wrote the file.
        original: tensors of the file under that project's names; empty for files of ours.
        original_names: name in the file of each tensor of `model`; empty for files of ours.
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
    """Write a weights file atomically: an existing file is replaced only when the new one is complete on disk.

    Args:
        path: path of the file, in an existing folder.
        model: detector whose state dict is saved.
        config: resolved config.
        class_names: K class names.
        category_ids: K category ids.
        metrics: metrics of an evaluation of these weights.
        thresholds: per-class score thresholds, see `Checkpoint`.
        iteration: number of training steps.
        licence: licence that may restrict the use of the weights, see `Checkpoint`.
        training: state for resuming: tensors and plain data (str, int, float, bool, None, list, tuple, dict).
        keep: number of generations to keep, see `write`.

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
    """Write a file with `torch.save` atomically: an existing file is replaced only when the new one is on disk.

    Args:
        path: path of the file, in an existing folder.
        content: tensors and plain data.
        keep: number of generations to keep, see `generations`. The newest one is complete at any time.

    Raises:
        OSError: the disk is full or not writable.
    """
    try:
        with replaced(path) as temporary:
            with temporary.open("wb") as file:
                torch.save(content, file)
                file.flush()
                os.fsync(file.fileno())
            if keep > 1:
                for number, earlier in reversed(list(enumerate(generations(path), start=1))):
                    _rename(earlier, path.with_name(f"{path.stem}-{number}{path.suffix}"), keep_old=earlier == path)
    except RuntimeError as error:  # raised by torch's writer instead of the OSError
        raise error.__context__ if isinstance(error.__context__, OSError) else error from None
    for old in generations(path)[keep:]:
        old.unlink()


def _rename(file: Path, name: Path, *, keep_old: bool) -> None:
    """Rename a file. With `keep_old` the old name stays as a hard link, if the file system supports this."""
    if keep_old:
        try:
            name.hardlink_to(file)
            return
        except OSError:
            pass
    file.replace(name)


def generations(path: Path) -> list[Path]:
    """List the existing generations of a file, newest first: last.pt, last-1.pt, last-2.pt."""
    earlier = {}
    for file in path.parent.glob(f"{path.stem}-*{path.suffix}"):
        number = file.stem.removeprefix(f"{path.stem}-")
        if number.isdecimal():
            earlier[int(number)] = file
    return [file for file in (path,) if file.is_file()] + [earlier[number] for number in sorted(earlier)]


def find_weights(path: Path) -> Path:
    """Return the weights file that a path stands for: the best or latest weights of a run folder, or the path itself.

    Raises:
        WeightsError: the path is a folder without weights of a run.
    """
    if not path.is_dir():
        return path
    best, last = path / "weights" / "best.pt", path / "weights" / "last.pt"
    if best.is_file():
        return best
    if last.is_file():
        log.info("%s: no %s yet; using %s", path, best.relative_to(path), last.relative_to(path))
        return last
    raise WeightsError(f"{path}: this is a folder without weights/best.pt; expected a weights file or a run folder")


def read(path: Path, *, safe_globals: Sequence[Any] = ()) -> Any:
    """Load the content of a `torch.save` file onto the CPU without executing code from it.

    Args:
        path: path of the file.
        safe_globals: additional allowed types, see `torch.serialization.safe_globals`.

    Raises:
        WeightsError: the file is missing, damaged, or contains other Python objects.
    """
    if not path.is_file():
        problem = "this is a folder" if path.is_dir() else "no such file"
        raise WeightsError(f"{path}: {problem}; expected a weights file, for example runs/NAME/weights/best.pt")
    try:
        with torch.serialization.safe_globals(list(safe_globals)), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about odd tensors, which the caller rejects
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # arbitrary bytes can cause any exception in torch.load
        if not is_zip(path):  # PyTorch has written zip files since version 1.6
            reason = f"not a weights file, or a truncated one ({path.stat().st_size} bytes)"
        elif isinstance(error, pickle.UnpicklingError):
            raise WeightsError(
                f"{path}: not a weights file: it contains Python objects, which are never loaded because they can run"
                " code; expected tensors and plain data only, as in torch.save(model.state_dict(), PATH)"
            ) from None
        else:
            first_line = str(error).partition("\n")[0]
            reason = f"damaged checkpoint: {first_line}"
        raise WeightsError(f"{path}: {reason}; copy it again or use an earlier one") from None


def is_zip(path: Path) -> bool:
    """Return whether a file is a zip file, possibly a damaged one, as `torch.save` writes it since PyTorch 1.6."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # a damaged zip file
        return True


def _verify(path: Path) -> None:
    """Verify the checksums of a file of ours, which torch writes but ignores when reading."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged_entry = archive.testzip()
            problem = f"wrong checksum of {damaged_entry}" if damaged_entry else ""
            for entry in archive.infolist():
                if entry.external_attr & _FOLDER:
                    problem = f"{entry.filename} is marked as a folder"
    except Exception as error:  # as in `read`
        problem = str(error)
    if problem:
        raise WeightsError(f"{path}: damaged checkpoint: {problem}; copy it again or use an earlier one")


_FOLDER = 0x10
"""Attribute bit of a zip entry. No checksum covers it, and torch reads no data from an entry that has it."""


def is_ours(content: Any) -> bool:
    """Return whether the result of `read` comes from a file written by `save_checkpoint`."""
    return isinstance(content, dict) and content.get("format") == FORMAT


def from_ours(content: Mapping[str, Any], path: Path) -> Checkpoint:
    """Build a checkpoint from the content of a file of ours.

    Args:
        content: result of `read`.
        path: path of the file, whose checksums are verified.

    Raises:
        WeightsError: the file is damaged, its content is invalid, or it has a newer version.
    """
    _verify(path)
    missing = [name for name, kind in _REQUIRED_KEYS.items() if not isinstance(content.get(name), kind)]
    if missing:
        raise WeightsError(
            f"{path}: damaged checkpoint: it has no {', '.join(missing)}; copy it again or use an earlier one"
        )
    if content["version"] > VERSION:
        raise WeightsError(
            f"{path}: written by a newer fcos (file version {content['version']}, this one reads up to {VERSION});"
            " install a newer version of fcos"
        )
    check_weights(content["model"], where=str(path))
    problems = describe_metadata_problems(content)
    if problems:
        raise WeightsError(
            f"{path}: damaged checkpoint: invalid {join_some(problems)}; copy it again or use an earlier one"
        )
    return Checkpoint(
        model=content["model"],
        config=content["config"],
        class_names=tuple(content["class_names"]),
        category_ids=tuple(content["category_ids"]),
        metrics=content.get("metrics", {}),
        thresholds=content.get("thresholds", {}),
        iteration=content.get("iteration", 0),
        licence=content.get("licence", ""),
        training=content.get("training"),
    )


def check_weights(weights: Mapping[Any, Any], *, where: str) -> None:
    """Check that a state dict contains nothing but weights, see `describe_weight_problems`.

    Args:
        weights: state dict of a file of ours or of another project.
        where: source of the weights, for messages.

    Raises:
        WeightsError: an entry is not a dense tensor of finite floating-point numbers.
    """
    problems = describe_weight_problems(weights)
    if problems:
        raise WeightsError(
            f"{where}: damaged checkpoint: {len(problems)} of {len(weights)} entries are not weights:"
            f" {join_some(problems, '; ')}; copy it again or use an earlier one"
        )


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], *, where: str) -> None:
    """Load a complete state dict into a model.

    Only `pixel_mean`, `pixel_std` and batch-norm counters (`num_batches_tracked`) may be missing, since other projects
    or norm layers do not have them; the model then keeps its values. Counters that the model does not have are ignored.
    Constants that the model does not save (buffers with `persistent=False`, such as anchors) may be in the weights,
    with the same values.

    Args:
        model: model to load into.
        weights: state dict of the model.
        where: source of the weights, for messages.

    Raises:
        WeightsError: tensors are missing, unexpected or of a different shape, or constants have other values; the
            message lists a few of each.
    """
    tensors = model.state_dict()
    constants = {name: buffer for name, buffer in model.named_buffers() if name not in tensors and name in weights}
    differing = [name for name, value in constants.items() if not _is_equal(value, weights[name])]
    optional = {name: tensors[name] for name in tensors if name in PIXELS or name.endswith(COUNTER_SUFFIX)}
    weights = {
        **optional,
        **{
            name: weight
            for name, weight in weights.items()
            if name in tensors or not (name in constants or name.endswith(COUNTER_SUFFIX))
        },
    }
    problems = {
        "missing": [name for name in tensors if name not in weights],
        "not in the model": [name for name in weights if name not in tensors],
        "of a different shape": describe_shape_mismatches(tensors, weights),
        "with other values": differing,
    }
    descriptions = [f"{len(names)} {kind}: {join_some(names)}" for kind, names in problems.items() if names]
    if descriptions:
        raise WeightsError(
            f"{where}: the weights do not fit the model (of {len(tensors)} tensors, {'; '.join(descriptions)});"
            " use the model options they were trained with"
        )
    model.load_state_dict(dict(weights))


def _is_equal(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors have the same shape and, up to rounding, the same values."""
    return a.shape == b.shape and torch.allclose(a.cpu(), b.to(a.dtype), rtol=1e-4, atol=1e-3)


def describe_shape_mismatches(tensors: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> list[str]:
    """Describe the tensors whose shapes in `weights` and in the model's `tensors` differ, each with both shapes."""
    return [
        f"{name} {list(weights[name].shape)} instead of {list(tensors[name].shape)}"
        for name in tensors
        if name in weights and weights[name].shape != tensors[name].shape
    ]
