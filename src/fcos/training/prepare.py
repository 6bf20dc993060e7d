"""Preparation of a run: its data, model, folder and length, with all checks that do not need a training step."""

from __future__ import annotations

import itertools
import math
import os
import socket
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from ..checkpoint import Checkpoint
from ..choices import Cache
from ..config import Config
from ..config.backbones import is_own
from ..config.text import suggest
from ..data import load_annotations
from ..data.cache import CacheFiles, PixelCache
from ..data.dataset import Annotations
from ..data.loader import try_user_transform
from ..distributed import all_gather, on_all_ranks, on_rank_zero, rank
from ..errors import ConfigError, DataError
from ..evaluation.evaluate import check_keypoints, metric_names, warn_of_crowded_images
from ..interop.checkpoints import load_checkpoint
from ..models import DetectionModel, build_model
from ..models.backbones import license_warning
from ..models.inference_copy import require_compiler
from ..models.layers import with_gpu_batch_norm
from .budget import IterationLength, Length, TimeLength
from .elastic import remember
from .folder import check_apart_from_data, find_folder, lock_folder, new_folder
from .loggers import check_loggers
from .optim import freeze_parameters, parameter_settings
from .original_run import find_resume_point, restore
from .run import Run
from .start import start_from
from .step import count_micro_batches

_train_calls = itertools.count()
"""Counter of the `train` calls of this process. It identifies a run across restarts by the elastic launcher."""


def prepare_run(
    config: Config, name: str, device: torch.device, stack: ExitStack, *, elapsed: Callable[[], float]
) -> tuple[Run, int, str]:
    """Prepare a new or resumed run, and lock its folder until `stack` is closed. All processes must call this function.

    Args:
        config: config of the run.
        name: name of the run, see `find_folder`.
        device: device of the model.
        stack: stack that releases the lock of the folder.
        elapsed: function that returns the seconds since `train` was called.

    Returns:
        The run, the number of micro-batches per batch, and a text for the user on the origin of the weights.

    Raises:
        FCOSError: see `train`.
    """
    launch_key = f"fcos/{next(_train_calls)}"
    folder = on_rank_zero(lambda: find_folder(config, name, launch_key=launch_key))
    train_data, val_data = on_all_ranks(lambda: _load_data(config))
    if not folder:
        on_all_ranks(lambda: check_apart_from_data(config, (train_data, val_data)))
    if folder:
        on_rank_zero(partial(stack.enter_context, lock_folder(folder, is_new=False)))
    resumed, note, resume_path = on_rank_zero(partial(find_resume_point, config, folder))
    torch.manual_seed(config.train.seed)
    model, origin, licence = on_all_ranks(lambda: _build(config, train_data, resumed))
    if device.type == "cuda":
        with_gpu_batch_norm(model)
    # Channels-last training is about 10% faster on the CPU.
    model = model.to(device).to(memory_format=torch.channels_last).train()
    on_all_ranks(lambda: _check_options(config, model, train_data))
    if config.data.cache is not None:
        train_data, val_data = _with_caches(config.data.cache, train_data, val_data, stack)
    most_boxes = int(np.diff(train_data.offsets).max(initial=0))
    # Counting is a collective, so all processes must have passed the checks.
    micro_batches = on_all_ranks(lambda: count_micro_batches(model, config, most_boxes=most_boxes))
    if not folder:
        folder = on_rank_zero(lambda: new_folder(config, name))
        on_rank_zero(partial(stack.enter_context, lock_folder(folder, is_new=True)))
    run = Run(folder, config, model=model, train_data=train_data, val_data=val_data, elapsed=elapsed, licence=licence)
    if resumed:
        on_all_ranks(partial(restore, run, resumed, where=resume_path))
        if resumed.project != "fcos":
            run.save_last()  # from now on, the run resumes from its own folder
    if rank() == 0:
        remember(launch_key, str(folder))
    return run, micro_batches, f"{note}\n{origin}" if note else origin


def _with_caches(
    kind: Cache, train_data: Annotations, val_data: Annotations | None, stack: ExitStack
) -> tuple[Annotations, Annotations | None]:
    """Return the splits with caches of their images, which the processes of a machine share until `stack` is closed.

    The first process of every machine creates the files.

    Raises:
        ConfigError: there is too little space.
    """
    machines = all_gather((socket.gethostname(), os.environ.get("GROUP_RANK", "")))
    first = machines.index(machines[rank()])
    splits = [train_data] if val_data is None else [train_data, val_data]

    def create() -> list[PixelCache]:
        files = stack.enter_context(closing(CacheFiles(kind, [split.sizes for split in splits])))
        return files.caches

    caches = all_gather(on_all_ranks(lambda: create() if rank() == first else []))[first]
    for cache in caches:
        stack.callback(cache.close)
    with_caches = [replace(split, cache=cache) for split, cache in zip(splits, caches, strict=True)]
    return with_caches[0], with_caches[1] if val_data is not None else None


def build_length(run: Run) -> Length:
    """Build the length of a run from its options."""
    settings = run.config.train
    if settings.max_minutes is not None:
        return TimeLength(
            settings.max_minutes * 60,
            elapsed=run.elapsed,
            evaluation_steps=len(run.val_data or ()) / settings.batch_size,
            steps=run.state.iteration,
            step_seconds=run.state.step_seconds,
        )
    if settings.epochs is not None:
        images = settings.epochs * len(run.train_data)
        earlier = run.state.images - run.state.iteration * settings.batch_size  # not 0 if the batch size has changed
        return IterationLength(max(1, math.ceil((images - earlier) / settings.batch_size)))
    assert settings.iterations is not None
    return IterationLength(settings.iterations)


def _check_options(config: Config, model: DetectionModel, train_data: Annotations) -> None:
    """Raise an error for options that cannot be trained with, before the run folder is created."""
    parameter_settings(model, config.train)
    check_loggers(config)
    metric, metrics = config.train.best_metric, metric_names(config)
    if metric not in metrics:
        hint = suggest(metric, metrics)
        raise ConfigError(f"train.best_metric={metric}: no such metric{hint}; known: {', '.join(metrics)}")
    if config.train.compile:
        require_compiler(model.device, option="train.compile")
    try_user_transform(config, train_data)


def _load_data(config: Config) -> tuple[Annotations, Annotations | None]:
    one_class = config.model.is_class_agnostic
    train_data = load_annotations(config.data, "train", one_class=one_class)
    if train_data is None:
        raise DataError(
            f"data: no train split in {config.data.root}; expected data=DIR, or data.train.annotations=FILE"
        )
    num_classes, num_data_classes = config.model.num_classes, len(train_data.class_names)
    if num_classes not in (None, num_data_classes):
        raise ConfigError(
            f"model.num_classes: {num_classes}, but the data has {num_data_classes} classes; remove the option"
        )
    names, ids = train_data.class_names, train_data.category_ids
    val_data = load_annotations(config.data, "val", class_names=names, category_ids=ids, one_class=one_class)
    warn_of_crowded_images(val_data, config)
    for data in filter(None, (train_data, val_data)):
        check_keypoints(config, data, train_data.keypoint_layout.names)
    return train_data, val_data


def _build(config: Config, data: Annotations, resumed: Checkpoint | None) -> tuple[DetectionModel, str, str]:
    """Build the model; return it with a line on the origin of its weights, and their licence."""
    weights = None if resumed else config.train.weights
    fresh = resumed is None and weights is None
    model = build_model(config.model, num_classes=len(data.class_names), pretrained=fresh)
    freeze_parameters(model, config.train.freeze)
    if resumed:
        return model, f"weights: iteration {resumed.iteration} of this run", resumed.licence
    if weights:
        checkpoint = load_checkpoint(weights)
        names = data.keypoint_layout.names
        summary = start_from(model, checkpoint, config.model, data.class_names, keypoint_names=names, where=weights)
        return model, summary, checkpoint.licence
    backbone = config.model.backbone
    initialisation = "initialised by its function" if is_own(backbone.name) else "random"
    licence = license_warning(backbone.name, backbone.weights)
    return model, f"weights: backbone {backbone.weights or initialisation}, the rest random", licence
