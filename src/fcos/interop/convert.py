"""Conversion of weights files between the formats of projects, with a report on the tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from ..checkpoint import Checkpoint, save_checkpoint, write
from ..config import Config
from ..errors import WeightsError
from ..files import explain_write_errors
from ..formatting import join_some
from ..models import DetectionModel
from . import Form
from .fcos_core.weights import renaming_back, to_fcos_core
from .torchvision import to_torchvision, torchvision_name

OUTPUT_NAMES: dict[Form, Callable[[Mapping[str, Any]], Callable[[str], str]]] = {
    "fcos": lambda _: str,
    "fcos_core": renaming_back,
    "torchvision": lambda section: partial(torchvision_name, section=section),
}
"""Functions from the complete `model` section of a detector to a function from our tensor names to those of each output
format."""
SUFFIXES = (".pt", ".pth")
"""Suffixes of the files written here; every other suffix would promise another format, such as ONNX."""


def check_output(out: Path) -> None:
    """Check that `out` names a new PyTorch file in an existing folder: no file is overwritten, no folder is created.

    Raises:
        WeightsError: `out` exists already or has another suffix, or its folder does not exist.
    """
    if out.suffix.lower() not in SUFFIXES:
        raise WeightsError(
            f"{out}: the new file contains PyTorch weights, so its name must end in {' or '.join(SUFFIXES)}, found"
            f" {out.suffix!r}; for example {out.parent / (out.stem or 'model')}{SUFFIXES[0]}"
        )
    if out.exists():
        raise WeightsError(f"{out}: exists already and is not overwritten; give another name or remove it first")
    if not out.parent.is_dir():
        raise WeightsError(f"{out}: no such folder {out.parent}; create it first")


def write_as(to: Form, out: Path, model: DetectionModel, checkpoint: Checkpoint, config: Config, *, where: str) -> str:
    """Write a detector's weights in the format of a project.

    Args:
        to: output format. `fcos`: ours, with config and classes; `fcos_core`: {"model": state dict}; `torchvision`: a
            state dict.
        out: path of a new file.
        model: detector built from `config`.
        checkpoint: weights that fit `model`; tensors that it lacks are taken from `model`.
        config: config of the detector.
        where: source of the weights, for messages.

    Returns:
        Report on matched, reshaped, skipped and new tensors, see `report`.

    Raises:
        WeightsError: the project's model cannot compute this detector, or `out` fails `check_output`.
        WriteError: the disk is full or not writable.
    """
    check_output(out)
    with explain_write_errors(out):
        return _write(to, out, model, checkpoint, config, where=where)


def _write(to: Form, out: Path, model: DetectionModel, checkpoint: Checkpoint, config: Config, *, where: str) -> str:
    model_state: dict[str, Tensor] = model.state_dict()
    weights = {name: checkpoint.model.get(name, tensor) for name, tensor in model_state.items()}
    converted = replace(checkpoint, model=weights, config=config.to_dict())
    if to == "fcos":
        written = weights
        model.load_state_dict(weights, assign=True)  # assign: a copy would take the model's memory format
        save_checkpoint(
            out,
            model=model,
            config=config,
            class_names=checkpoint.class_names,
            category_ids=checkpoint.category_ids,
            metrics=checkpoint.metrics,
            thresholds=checkpoint.thresholds,
            iteration=checkpoint.iteration,
            licence=checkpoint.licence,
            keypoint_layout=checkpoint.keypoint_layout,
        )
    elif to == "fcos_core":
        written = to_fcos_core(converted, where=where)
        write(out, {"model": written})
    else:
        written = to_torchvision(converted, where=where)
        write(out, written)
    is_ours = checkpoint.project == "fcos"
    origin = {name: name if is_ours else checkpoint.original_names.get(name, "") for name in checkpoint.model}
    source = checkpoint.model if is_ours else checkpoint.original
    output_name = OUTPUT_NAMES[to](config.model.model_dump())
    pairs = {output_name(name): old for name, old in origin.items() if old in source}
    return report(source, written, {new: old for new, old in pairs.items() if new in written})


def report(source: Mapping[str, Tensor], written: Mapping[str, Tensor], pairs: Mapping[str, str]) -> str:
    """Report on the tensors of a conversion, with a line each for matched, reshaped, skipped and new ones.

    Lines without tensors are omitted, except the first.

    Args:
        source: tensors by their names in the input file.
        written: tensors by their names in the output file.
        pairs: names in the input file by names in the output file, for the tensors that are in both.
    """
    reshaped = [
        f"{old} {list(source[old].shape)} -> {new} {list(written[new].shape)}"
        for new, old in pairs.items()
        if source[old].shape != written[new].shape
    ]
    num_renamed = sum(new != old for new, old in pairs.items())
    skipped = [name for name in source if name not in pairs.values()]
    added = [name for name in written if name not in pairs]
    lines = [f"matched: {len(pairs)} of {len(source)} tensors, {num_renamed} renamed"]
    lines += [
        f"{title}: {len(names)}: {join_some(names)}"
        for title, names in (("reshaped", reshaped), ("skipped", skipped))
        if names
    ]
    return "\n".join([*lines, f"new: {len(added)}: {join_some(added)}"] if added else lines)
