"""Run a detector over annotated images and compute the COCO figures."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from ..config import Config
from ..data import build_test_loader
from ..distributed import all_gather, broadcast_buffers, rank, world_size
from ..inference.detect import detect_on_originals
from .coco_metrics import METRICS, coco_metrics, to_coco_results

if TYPE_CHECKING:
    from ..data.dataset import Annotations
    from ..data.loader import Loader
    from ..models import DetectionModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        metrics: any metrics by name, in 0..1; NaN where the data has no such object. `evaluate` computes the 12 COCO
            metrics of boxes: AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm, ARl. Those of anything else
            have a suffix, as in `AP_mask`.
        per_class: metrics by name for every class name, the same names for all classes.
        detections: every detection in COCO's result format, with the original category ids.
        boxes_per_class: ground-truth boxes of every class name, crowds left out.
        thresholds: the score threshold of best F1 (IoU 0.5) of every class name of which an object was found.
        annotations_digest: tells what the detections were compared with, see `Annotations.digest`; empty: not known.
    """

    metrics: dict[str, float]
    per_class: dict[str, dict[str, float]]
    detections: list[dict[str, Any]] = field(repr=False)
    boxes_per_class: dict[str, int]
    thresholds: dict[str, float] = field(default_factory=dict)
    annotations_digest: str = ""


def metric_names(model: DetectionModel) -> tuple[str, ...]:
    """The names of the metrics that `evaluate` computes for a detector."""
    return METRICS


def evaluate(
    model: DetectionModel,
    annotations: Annotations,
    config: Config,
    *,
    device: torch.device | str,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Detect on every image of a split and compare with its annotations.

    The result does not depend on the batch size: a batch holds images of one padded shape only. With several processes
    every process detects on its share with the batch-norm statistics of rank 0, and all of them return the figures of
    the whole split. Images that cannot be read any more are told; their objects count as missed.

    Args:
        model: the detector, on `device`; whether its modules train or not is restored afterwards.
        annotations: the split; its labels are those of the model.
        config: for the sizes and views of the images, how many make a batch, and the number of loader workers.
        device: where the model is.
        progress: called with the number of images done (estimated from those of this process) and of all.

    Raises:
        KeyboardInterrupt: from `progress`, or Ctrl-C; on every process, at the end of the others' shares.
    """
    broadcast_buffers(model)
    batch_size = config.eval.batch_size
    loader = build_test_loader(config, annotations, batch_size=batch_size, rank=rank(), world_size=world_size())
    share: tuple[list[dict[str, Any]], int] | None = None
    try:
        share = _detect(model, annotations, loader, device=device, progress=progress)
    except KeyboardInterrupt:
        if world_size() == 1:
            raise
    detections = _joined(all_gather(share), annotations)
    figures = coco_metrics(annotations.to_coco(), detections)
    return Evaluation(
        figures.overall,
        figures.per_class,
        detections,
        dict(zip(annotations.class_names, annotations.boxes_per_class().tolist(), strict=True)),
        figures.thresholds,
        annotations.digest(),
    )


def _detect(
    model: DetectionModel,
    annotations: Annotations,
    loader: Loader,
    *,
    device: torch.device | str,
    progress: Callable[[int, int], None] | None,
) -> tuple[list[dict[str, Any]], int]:
    """The detections on the images of a loader, and how many of these could not be read."""
    detections, done = [], 0
    with detecting(model):
        for batch in loader:
            indices = batch.indices.tolist()
            sizes = [(height, width) for height, width in annotations.sizes[indices].tolist()]
            clip = model.box_convention == "continuous"  # the original does not
            results = detect_on_originals(model, batch.to(device).views, sizes, clip=clip)
            for index, instances in zip(indices, results, strict=True):
                image_id = int(annotations.image_ids[index])
                detections += to_coco_results(instances, image_id=image_id, category_ids=annotations.category_ids)
            done += len(batch.indices)
            if progress is not None:
                progress(min(done * world_size(), len(annotations)), len(annotations))
    return detections, loader.left_out


@contextmanager
def detecting(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module's own mode is restored."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module in training:
            module.training = True


def _joined(
    shares: Sequence[tuple[list[dict[str, Any]], int] | None], annotations: Annotations
) -> list[dict[str, Any]]:
    """The detections of all processes, in the order of the images' ids."""
    detections, unread = [], 0
    for share in shares:
        if share is None:
            raise KeyboardInterrupt
        detections += share[0]
        unread += share[1]
    if unread and rank() == 0:
        logger.warning("%d of %d images could not be read; their objects count as missed", unread, len(annotations))
    return sorted(detections, key=lambda d: (d["image_id"], -d["score"]))
