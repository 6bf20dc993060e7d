"""Runs of the original FCOS: resuming from its checkpoints, and notes on its files that a new run does not use."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import torch

from ..checkpoint import Checkpoint, generations
from ..config import Config
from ..errors import ConfigError, WeightsError
from ..interop.checkpoints import load_checkpoint
from ..interop.fcos_core.solver import momentum_by_name
from .folder import LAST, LAST_CHECKPOINT
from .resume import ResumePoint, TrainState, load_run
from .run import Run


def find_resume_point(config: Config, folder: Path | None) -> ResumePoint:
    """Load the checkpoint from which a run starts: of this run, or with `train.resume` of a run of the original.

    Args:
        config: config of the run.
        folder: folder of the run to resume, see `find_folder`; None for a new folder.

    Returns:
        The checkpoint, or None to start from the beginning, with a note for the user.

    Raises:
        ConfigError: the checkpoint is not of a run that `config` can resume.
        WeightsError: no checkpoint can be read.
    """
    settings = config.train
    if folder is not None and (generations(folder / LAST) or not settings.resume):
        return load_run(folder, config)
    if not settings.resume:
        return ResumePoint(None, _describe_unused(config.output_dir))
    if folder is None:  # see `find_folder`
        assert settings.weights is not None
        where = settings.weights
    elif (folder / LAST_CHECKPOINT).is_file():
        where = str(_find_last_checkpoint(folder))
    else:
        return load_run(folder, config)
    checkpoint = load_checkpoint(where)
    if checkpoint.project != "fcos_core" or checkpoint.training is None:
        raise ConfigError(
            f"train.resume: {where} is not a checkpoint of the original FCOS with `optimizer` and `iteration`; start a"
            f" new run with train.weights={where}, without train.resume"
        )
    if config.model.box_convention != "inclusive":
        raise ConfigError(
            f"train.resume: {where} is of a run of the original FCOS; give the YAML file of that run instead of a"
            f" recipe, or start a new run with train.weights={where}"
        )
    if folder is not None:
        (folder / LAST).parent.mkdir(exist_ok=True)
    note = (
        f"resuming a run of the original FCOS: {where}: using its weights, momentum and iteration"
        f" {checkpoint.iteration}; learning rate and schedule follow the config, and its scheduler is not used"
    )
    return ResumePoint(checkpoint, note, where)


def restore(run: Run, checkpoint: Checkpoint, *, where: str) -> None:
    """Resume a run from a checkpoint of this project or of the original, see `Run.restore`.

    Args:
        run: new run, modified in place.
        checkpoint: checkpoint of `find_resume_point`.
        where: path or address of the checkpoint, for messages.

    Raises:
        ConfigError: see `Run.restore`; also raised if `train.optimizer` is not the original's SGD.
        WeightsError: the weights or the momentum are of another model.
    """
    if checkpoint.project != "fcos_core":
        run.restore(checkpoint, where=where)
        return
    if run.config.train.optimizer != "sgd":
        raise ConfigError(
            f"train.optimizer={run.config.train.optimizer}: the original FCOS trains with sgd; resume its run with"
            " train.optimizer=sgd"
        )
    assert checkpoint.training is not None
    num_classes, num_data_classes = len(checkpoint.category_ids), len(run.train_data.class_names)
    if num_classes != num_data_classes:
        raise WeightsError(f"train.resume: {where} has {num_classes} classes, but the data has {num_data_classes}")
    trainable = {name: p for name, p in run.model.named_parameters() if p.requires_grad}
    optimizer = checkpoint.training["optimizer"]
    momentum = momentum_by_name(optimizer, list(checkpoint.model), trainable, where=where)
    training = {
        "state": asdict(TrainState(checkpoint.iteration, images=checkpoint.iteration * run.config.train.batch_size)),
        "optimizer": {
            "state": {i: {"momentum_buffer": value} for i, value in enumerate(momentum.values())},
            "param_groups": run.optimizer.state_dict()["param_groups"],
        },
        "learning": [*momentum, *(name for name in trainable if name not in momentum)],
        "scaler": {},
        "weights": None,
        "updates": 0,
        "best": None,
        "steps": [],
        "rng": torch.get_rng_state(),
        "cuda_rng": None,
    }
    converted = replace(
        checkpoint,
        project="fcos",
        config=run.config.to_dict(),
        class_names=run.train_data.class_names,
        training=training,
    )
    run.restore(converted, where=where)


def _find_last_checkpoint(folder: Path) -> Path:
    """Return the checkpoint that the file `last_checkpoint` names, in the folder itself if the folder was moved.

    Raises:
        WeightsError: the checkpoint does not exist.
    """
    name = _read_name(folder)
    for path in (folder / Path(name).name, Path(name)):
        if path.is_file():
            return path
    raise WeightsError(
        f"train.resume: {folder / LAST_CHECKPOINT} names {name!r}, which is not in {folder}; copy that file there, or"
        " start a new run without train.resume"
    )


def _read_name(folder: Path) -> str:
    with (folder / LAST_CHECKPOINT).open(encoding="utf-8", errors="backslashreplace") as file:
        return file.readline(4096).strip()


def _describe_unused(folder: Path | None) -> str:
    """Return a note for a new run in the folder of a run of the original; empty if there is none."""
    if folder is None or not (folder / LAST_CHECKPOINT).is_file():
        return ""
    return (
        f"{folder} contains a run of the original FCOS ({LAST_CHECKPOINT}: {_read_name(folder)}), which is not used; to"
        " continue it with its weights, momentum and iteration, set train.resume=true"
    )
