"""Batches from a data set: padding, worker processes, and images that become unreadable during a run.

The check at the start does not find every damaged file, and a file may disappear later. Neither ends a run. Training
replaces an unreadable image by the next readable one, detection skips it; both log a warning.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..allocator import keep_freed_memory
from ..columns import columns
from ..config import Config, DataConfig
from ..errors import DataError
from ..formatting import join_some
from ..keypoints import flip_order, unpaired_names
from ..structures import Batch, Objects, View
from .augmentations import augmentation_strength
from .dataset import Annotations, DetectionDataset, Sample
from .geometry import resize_size
from .samplers import SeededIndex, aspect_groups, seeded_batches, shard
from .source import Keypoints
from .transforms import Transform, detection_views, train_transform
from .workers import fits_into_shared_memory, iterate, limit_workers

logger = logging.getLogger(__name__)

_MAX_WARNINGS = 20
"""Largest number of failures of the user's transform and of the cache that are reported."""


_LITTLE_SHARED_MEMORY = (
    "warning: the shared memory of this machine (/dev/shm) is too small for batches; the loader workers send them"
    " through pipes instead, which is slower; give it more space (docker run --shm-size=2g), or set data.workers=0"
)


def padded_size(size: Sequence[int], size_divisor: int) -> tuple[int, int]:
    """Return (height, width) rounded up to multiples of `size_divisor`."""
    height, width = size
    return -(-height // size_divisor) * size_divisor, -(-width // size_divisor) * size_divisor


def pad(images: Sequence[Tensor], *, size_divisor: int) -> tuple[Tensor, Tensor]:
    """Zero-pad images at the right and the bottom to a common size.

    Args:
        images: uint8 [3, h, w] each, at least one.
        size_divisor: divisor of both sides of the padded size.

    Returns:
        The padded images, uint8 [N, 3, H, W] in channels-last order, and their (height, width) without padding, [N, 2].
    """
    sizes = torch.tensor([image.shape[1:] for image in images])
    height, width = padded_size(sizes.amax(dim=0).tolist(), size_divisor)
    padded = torch.zeros(len(images), height, width, 3, dtype=torch.uint8).permute(0, 3, 1, 2)  # as the images are read
    for row, image in zip(padded, images, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    return padded, sizes


def pad_views(images: Sequence[Sequence[Tensor]], transforms: Sequence[Transform], *, size_divisor: int) -> list[View]:
    """Batch several images in several views; each view is padded to a common size.

    Args:
        images: the views of every image, uint8 [3, h, w] each.
        transforms: transforms that produced the views, in the same order.
        size_divisor: divisor of both sides of the padded sizes.
    """
    views = zip(*images, strict=True)
    return [
        View(*pad(view, size_divisor=size_divisor), flipped=transform.is_mirrored)
        for transform, view in zip(transforms, views, strict=True)
    ]


def collate(samples: Sequence[Sample], *, size_divisor: int) -> Batch:
    """Collate samples into a batch; `pad` pads the images to a common size."""
    images, sizes = pad([sample.image for sample in samples], size_divisor=size_divisor)
    return Batch(images, sizes, [s.objects for s in samples], torch.tensor([sample.index for sample in samples]))


class _Loaded(NamedTuple):
    """Batch as a worker sends it to the main process.

    Errors are sent as text, because an exception would be hidden in the worker's traceback. The ground truth of all
    images is concatenated, because sending a tensor takes a file descriptor.
    """

    batch: Batch | None
    errors: list[str]
    objects: Objects | None = None
    counts: tuple[int, ...] = ()
    warnings: Sequence[str] = ()

    def tensors(self) -> list[Tensor]:
        """Return all tensors that are not empty."""
        tensors = []
        if self.objects is not None:  # masks are NumPy arrays, which are sent through pipes
            tensors = [column for column in columns(self.objects).values() if isinstance(column, Tensor)]
        if self.batch is not None:
            tensors.append(self.batch.indices)
            for images, sizes, *_ in (self.batch, *self.batch.more_views):
                tensors += [images, sizes]
        return [tensor for tensor in tensors if tensor.numel()]

    def unpack(self) -> Batch | None:
        """Return the batch with the ground truth of each image."""
        if self.batch is None or self.objects is None:
            return self.batch
        return self.batch._replace(targets=self.objects.split(self.counts))


class _Reader:
    """Map-style data set that maps the seeded indices of a batch to the loaded batch; used in the workers."""

    def __init__(self, dataset: DetectionDataset, *, training: bool, size_divisor: int) -> None:
        self.dataset, self.training, self.size_divisor = dataset, training, size_divisor

    def __getitem__(self, images: Sequence[SeededIndex]) -> _Loaded:
        samples: list[Sample] = []
        errors: list[str] = []
        count = len(self.dataset)
        for index, seed, strength in images:
            for step in range(count if self.training else 1):
                try:
                    samples.append(self.dataset.load((index + step) % count, seed, strength))
                    break
                except DataError as error:
                    errors.append(str(error))
        if not samples:
            return _Loaded(None, errors)
        batch = collate(samples, size_divisor=self.size_divisor)
        warnings = [sample.warning for sample in samples if sample.warning]
        if self.training:
            objects = Objects.concatenate([sample.objects for sample in samples])
            counts = tuple(len(sample.objects) for sample in samples)
            return _Loaded(batch._replace(targets=None), errors, objects, counts, warnings)
        views = [sample.more_views for sample in samples]
        more_views = pad_views(views, self.dataset.more_views, size_divisor=self.size_divisor)
        return _Loaded(batch._replace(targets=None, more_views=more_views), errors, warnings=warnings)


class Loader:
    """Iterable of batches.

    Attributes:
        num_skipped: number of times that an unreadable image was replaced (training) or skipped (detection).
    """

    def __init__(
        self, reader: _Reader, batches: Callable[[], Iterable[Sequence[SeededIndex]]], *, workers: int
    ) -> None:
        self.num_skipped = 0
        self._reader, self._batches, self._workers = reader, batches, limit_workers(workers)

    def __iter__(self) -> Iterator[Batch]:
        # With a separate generator, creating an iterator does not change the global random state.
        # torch limits each worker to one thread.
        def build(workers: int) -> DataLoader[Any]:
            return DataLoader(
                self._reader,  # pyright: ignore[reportArgumentType]
                sampler=self._batches(),
                batch_size=None,
                collate_fn=_send if workers else _identity,
                num_workers=workers,
                worker_init_fn=_start_worker,
                pin_memory=torch.cuda.is_available(),
                generator=torch.Generator(),
            )

        consequence = "another image is used instead" if self._reader.training else "skipped"
        logged: set[str] = set()
        num_failures = 0  # of the user's transform and of the cache
        for received in iterate(build, self._workers):
            loaded = pickle.loads(received) if isinstance(received, bytes) else received
            if loaded is not received and _LITTLE_SHARED_MEMORY not in logged:
                logger.warning(_LITTLE_SHARED_MEMORY)
                logged.add(_LITTLE_SHARED_MEMORY)
            if loaded.batch is None and self._reader.training:
                raise DataError(f"none of the training images can be read any more; first error: {loaded.errors[0]}")
            self.num_skipped += len(loaded.errors)
            num_failures += len(loaded.warnings)
            warnings = loaded.warnings if num_failures <= _MAX_WARNINGS else ()
            for warning in (*(f"{error}; {consequence}" for error in loaded.errors), *warnings):
                if warning not in logged:
                    logger.warning("%s", warning)
                logged.add(warning)
            batch = loaded.unpack()
            if batch is not None:
                yield batch


def _identity(loaded: Any) -> Any:
    return loaded


def _send(loaded: Any) -> Any:
    """Move a `_Loaded` to shared memory in a worker; if this is too small, return bytes, which are sent through a pipe.

    torch would do the same after this function, in a thread whose failure loses the batch: the main process would wait
    for it forever.
    """
    tensors = loaded.tensors()
    try:
        if fits_into_shared_memory(sum(tensor.nbytes for tensor in tensors)):
            for tensor in tensors:
                tensor.share_memory_()
            return loaded
    except (RuntimeError, OSError):  # other processes need it at the same time
        pass
    return pickle.dumps(loaded)


def _start_worker(_worker: int) -> None:
    """Keep freed memory, for any device of the detector, and move the worker to a separate OS process group.

    Ctrl-C, and SIGTERM from torchrun or a batch system, are sent to all processes of a group. The parent still needs a
    batch to finish its step, and then stops the workers.
    """
    keep_freed_memory(torch.device("cpu"))
    if hasattr(os, "setpgid"):  # not on Windows
        os.setpgid(0, 0)
    parent = multiprocessing.parent_process()
    if os.getppid() == 1 and parent is not None and parent.pid != 1:
        # The parent was killed while this worker started. torch does not detect this: the worker would wait forever.
        os._exit(1)


def build_train_loader(
    config: Config,
    annotations: Annotations,
    *,
    start_iteration: int = 0,
    total: Callable[[], float] = lambda: math.inf,
    rank: int = 0,
    world_size: int = 1,
) -> Loader:
    """Build a loader of endless, seeded training batches.

    Batch k (images, scales and flips) is the same for any `start_iteration` and number of workers. Each process gets a
    contiguous shard of it, so the global batch does not depend on the number of processes.

    Args:
        config: configuration; `data`, `train.batch_size`, `train.seed` and `model.box_convention` are used.
        annotations: annotations of the training split.
        start_iteration: 0-based number of the first batch.
        total: function that returns the current estimate of the number of batches of the run, on which the strength of
            the augmentations depends; infinite if unknown.
        rank: rank of this process.
        world_size: number of processes, at most the batch size.

    Raises:
        DataError: no image can be read any more, or a worker was killed (raised during iteration).
    """
    data, batch_size, convention = config.data, config.train.batch_size, config.model.box_convention
    assert batch_size >= world_size
    transform = _train_transform(config, annotations)
    if rank == 0:
        _warn_of_unnamed_sides(data, annotations)
    dataset = DetectionDataset(annotations, transform=transform, box_convention=convention)
    groups = aspect_groups(annotations.sizes) if data.group_by_aspect else np.zeros(len(annotations), dtype=np.int64)

    per_class = batch_size / max(len(annotations.class_names), 1)

    def strength(k: int) -> float:
        return augmentation_strength(k * per_class, total() * per_class, data)

    def batches() -> Iterator[Sequence[SeededIndex]]:
        global_batches = seeded_batches(
            len(annotations),
            groups,
            batch_size,
            seed=config.train.seed,
            strength=strength,
            start_iteration=start_iteration,
        )
        return (shard(batch, rank, world_size) for batch in global_batches)

    reader = _Reader(dataset, training=True, size_divisor=data.size_divisor)
    return Loader(reader, batches, workers=data.workers)


def _train_transform(config: Config, annotations: Annotations) -> Transform:
    """Build the transform of the training images of annotations.

    Raises:
        ConfigError: `data.transforms` does not name a function, or `data.keypoint_pairs` does not fit the keypoints.
    """
    keypoints = annotations.keypoints
    return train_transform(
        config.data,
        config.model.box_convention,
        num_classes=len(annotations.class_names),
        keypoint_order=() if keypoints is None else flip_order(keypoints.names, _flip_pairs(config.data, keypoints)),
    )


def _flip_pairs(data: DataConfig, keypoints: Keypoints) -> Sequence[tuple[int, int]] | None:
    """Return the pairs of keypoints that flips exchange: those of the option, or else of the data; None: by name."""
    return keypoints.layout.pairs if data.keypoint_pairs is None else data.keypoint_pairs


def _warn_of_unnamed_sides(data: DataConfig, annotations: Annotations) -> None:
    """Warn if flips do not exchange keypoints because their names do not say which are left and right."""
    keypoints = annotations.keypoints
    if keypoints is None or not data.flip or _flip_pairs(data, keypoints) is not None:
        return
    names = keypoints.names
    if unpaired := unpaired_names(names):
        logger.warning(
            "warning: data.flip=%g does not exchange the keypoints %s, because no name differs from theirs only in left"
            " and right; correct the names, or set data.keypoint_pairs",
            data.flip,
            join_some(unpaired),
        )
    elif len(names) > 1 and flip_order(names) == tuple(range(len(names))):
        logger.warning(
            "warning: data.flip=%g exchanges no keypoints, because their names (%s) do not say which are left and"
            " right; set data.keypoint_pairs, for example [[1,2],[3,4]] counted from 0, or [] if there are none",
            data.flip,
            join_some(names),
        )


def try_user_transform(config: Config, annotations: Annotations) -> None:
    """Call the user's transform, if any, on the first readable image, preferably one with boxes.

    Raises:
        ConfigError: `data.transforms` does not name a function.
        DataError: the transform fails or returns an invalid result.
    """
    convention = config.model.box_convention
    transform = _train_transform(config, annotations)
    if transform.user is None:
        return
    plain = DetectionDataset(annotations, transform=replace(transform, user=None), box_convention=convention)
    without_boxes = np.diff(plain.annotations.offsets) == 0
    for index in np.argsort(without_boxes, kind="stable").tolist():
        try:
            image, objects, *_ = plain.load(index, 0)
        except DataError:
            continue  # training replaces the image
        transform.user(image, objects, seed=0, convention=convention)
        return


def build_test_loader(
    config: Config, annotations: Annotations, *, batch_size: int, rank: int = 0, world_size: int = 1
) -> Loader:
    """Build a loader that yields every image once, without targets.

    All images of a batch have the same padded size in every view. No image gets extra padding because of another one,
    so detections do not depend on the batch size. The order differs from the data set's; `Batch.indices` holds the
    positions in the data set.

    Args:
        config: configuration; `data` and the test-time augmentation options in `eval` are used.
        annotations: annotations of the split.
        batch_size: largest number of images per batch.
        rank: rank of this process.
        world_size: number of processes; each gets a shard of the batches.
    """
    data, views = config.data, detection_views(config)
    groups = same_size_batches(annotations.sizes.tolist(), views, data.size_divisor, batch_size)
    batches = [[SeededIndex(index, 0) for index in group] for group in shard(groups, rank, world_size)]
    dataset = DetectionDataset(annotations, transform=views[0], more_views=views[1:])
    reader = _Reader(dataset, training=False, size_divisor=data.size_divisor)
    return Loader(reader, lambda: batches, workers=min(data.workers, len(batches)))


def same_size_batches(
    sizes: Sequence[tuple[int, int]], views: Sequence[Transform], size_divisor: int, batch_size: int
) -> list[list[int]]:
    """Split images into batches whose images have the same padded size in every view.

    Args:
        sizes: (height, width) of every image.
        views: transforms of the views, each with exactly one short side.
        size_divisor: divisor of both padded sides.
        batch_size: largest number of images per batch.

    Returns:
        The image indices of every batch; each image is in exactly one batch.
    """
    groups: dict[tuple[tuple[int, int], ...], list[int]] = {}
    for index, (height, width) in enumerate(sizes):
        resized = (resize_size(height, width, view.short_sides[0], view.max_side) for view in views)
        groups.setdefault(tuple(padded_size(size, size_divisor) for size in resized), []).append(index)
    return [group[i : i + batch_size] for group in groups.values() for i in range(0, len(group), batch_size)]
