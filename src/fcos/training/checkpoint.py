"""Weights files: tensors and plain data only, so that loading one never runs code from it.

A file is one dictionary: `format` ("fcos"), `version`, `model` (state dict), `config`, `class_names`, `category_ids`,
`metrics`, `iteration`, and `training` (what a run needs to continue, or None).
"""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..config import Config
from ..config_text import validate
from ..errors import WeightsError

if TYPE_CHECKING:
    from ..models import FCOS

FORMAT = "fcos"
VERSION = 1
CLASS_HEAD = "head.logits."
"""Prefix of the tensors with a row for every class."""


@dataclass(frozen=True)
class Checkpoint:
    """A weights file.

    Attributes:
        model: the detector's state dict, on the CPU.
        config: the resolved config of the run, plain data.
        class_names: [K].
        category_ids: [K], the data's own id of every class.
        metrics: of the last evaluation of these weights; empty when there was none.
        iteration: steps trained.
        training: optimiser and everything else a run needs to continue; None in files that are only for detection.
    """

    model: dict[str, Tensor]
    config: dict[str, Any]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    metrics: dict[str, float] = field(default_factory=dict)
    iteration: int = 0
    training: dict[str, Any] | None = None


def save_checkpoint(
    path: str | Path,
    *,
    model: nn.Module,
    config: Config,
    class_names: Sequence[str],
    category_ids: Sequence[int],
    metrics: Mapping[str, float] | None = None,
    iteration: int = 0,
    training: dict[str, Any] | None = None,
) -> None:
    """Write a weights file; until it is complete on the disk, a file that was there stays as it is.

    Args:
        path: where to; the folder exists.
        model: whose state dict is saved.
        config: the resolved config.
        class_names: [K].
        category_ids: [K].
        metrics: figures of an evaluation of these weights.
        iteration: steps trained.
        training: tensors and plain data (str, int, float, bool, None, list, tuple, dict).

    Raises:
        OSError: the disk is full or not writable.
    """
    path = Path(path)
    content = {
        "format": FORMAT,
        "version": VERSION,
        "model": {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()},
        "config": config.to_dict(),
        "class_names": [str(name) for name in class_names],
        "category_ids": [int(i) for i in category_ids],
        "metrics": {name: float(value) for name, value in (metrics or {}).items()},
        "iteration": iteration,
        "training": training,
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a weights file, onto the CPU.

    Raises:
        WeightsError: the file is missing, damaged, or not one of ours.
    """
    path = Path(path)
    if not path.is_file():
        what = "this is a folder" if path.is_dir() else "no such file"
        raise WeightsError(f"{path}: {what}; expected a weights file, for example runs/NAME/weights/best.pt")
    if not zipfile.is_zipfile(path):  # what torch.save writes; a file that was cut short is none any more
        raise WeightsError(
            f"{path}: no weights file, or one that was cut short ({path.stat().st_size} bytes);"
            " copy it again or use an earlier one"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise WeightsError(
            f"{path}: not a weights file of fcos: it holds Python objects, which are never loaded because they can run"
            " code; expected tensors and plain data only"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        raise WeightsError(f"{path}: damaged: {reason}; copy it again or use an earlier one") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise WeightsError(
            f"{path}: not a weights file of fcos: expected a file that `fcos train` wrote, found {_describe(content)}"
        )
    if content["version"] > VERSION:
        raise WeightsError(
            f"{path}: written by a newer fcos (file version {content['version']}, this one reads up to {VERSION});"
            " upgrade with pip install -U fcos-vision"
        )
    return Checkpoint(
        model=content["model"],
        config=content["config"],
        class_names=tuple(content["class_names"]),
        category_ids=tuple(content["category_ids"]),
        metrics=content["metrics"],
        iteration=content["iteration"],
        training=content["training"],
    )


def load_model(path: str | Path, *, device: torch.device | str = "cpu") -> tuple[FCOS, Checkpoint, Config]:
    """Build the detector of a weights file, in evaluation mode.

    Raises:
        WeightsError: see `load_checkpoint`; or weights that do not fit the config beside them.
        ConfigError: a config that this version does not know.
    """
    from ..models import build_model

    checkpoint = load_checkpoint(path)
    config = validate(checkpoint.config, where=f"{path}, config")
    model = build_model(config.model, num_classes=len(checkpoint.class_names), pretrained=False)
    fill(model, checkpoint.model, where=str(path))
    return model.eval().to(device), checkpoint, config


def fill(model: nn.Module, weights: Mapping[str, Tensor], *, where: str) -> None:
    """Load a complete state dict.

    Raises:
        WeightsError: tensors are missing, left over, or of another shape; at most five of each are named.
    """
    own = model.state_dict()
    problems = {
        "missing": [name for name in own if name not in weights],
        "not in the model": [name for name in weights if name not in own],
        "of another shape": [
            f"{name} {list(weights[name].shape)} for {list(own[name].shape)}"
            for name in own
            if name in weights and weights[name].shape != own[name].shape
        ],
    }
    found = [f"{len(names)} {what}: {', '.join(names[:5])}" for what, names in problems.items() if names]
    if found:
        raise WeightsError(
            f"{where}: the weights do not fit the model (of {len(own)} tensors, {'; '.join(found)});"
            " use the model options they were trained with"
        )
    model.load_state_dict(dict(weights))


def start_from(model: nn.Module, checkpoint: Checkpoint, class_names: Sequence[str], *, where: str) -> str:
    """Start a new training from a detector's weights; the class head only if it knows the same classes.

    Returns:
        One line that says what was taken.

    Raises:
        WeightsError: see `fill`.
    """
    if tuple(class_names) == checkpoint.class_names:
        fill(model, checkpoint.model, where=where)
        return f"weights: all {len(checkpoint.model)} tensors from {where}"
    head = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(CLASS_HEAD)}
    fill(model, {**checkpoint.model, **head}, where=where)
    return (
        f"weights: {len(checkpoint.model) - len(head)} tensors from {where}; the class head ({', '.join(head)}) starts"
        f" afresh, because the classes differ: {_list(checkpoint.class_names)} there, {_list(class_names)} here"
    )


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" ... ({len(names)})" if len(names) > 5 else "")


def _describe(content: Any) -> str:
    if not isinstance(content, dict):
        return f"a {type(content).__name__}"
    return f"the keys {_list([str(key) for key in content])}" if content else "an empty dictionary"
