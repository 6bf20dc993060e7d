"""Evaluation of a detector on annotated images with the COCO metrics."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch

from ..config import Config
from ..data import build_test_loader
from ..distributed import all_gather, broadcast_buffers, rank, world_size
from ..errors import ConfigError, DataError
from ..formatting import join_some, plural
from ..inference.detect import detect_on_originals
from ..models.inference_copy import InferenceCopy
from ..precision import autocast
from .coco_metrics import Output, coco_metrics, metrics_of, sigmas_of, to_coco_results
from .proposal_recall import PROPOSAL_METRICS, proposal_recall
from .thresholds import shrink_thresholds
from .voc_metrics import VOC_METRICS, voc_metrics

if TYPE_CHECKING:
    from ..choices import Precision
    from ..data.dataset import Annotations
    from ..data.loader import Loader
    from ..models import DetectionModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """Result of an evaluation.

    Attributes:
        metrics: metrics by name, in 0..1; NaN if the data has no object that a metric applies to. `evaluate` computes
            the 12 COCO metrics of boxes: AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm, ARl. Metrics of
            other outputs have a suffix: `AP_mask` if the annotations have masks, `AP_keypoints` if they have keypoints.
            With `eval.voc_metrics`, AP50_voc07 and AP50_voc10 are added, and for an RPN the recall of its proposals,
            such as AR100_proposals and AR1000_proposals.
        per_class: metrics by name for every class name; all classes have the same metrics.
        detections: all detections in the COCO result format, with the original category ids.
        boxes_per_class: number of ground-truth boxes by class name, without crowds.
        thresholds: the score threshold with the highest F1 at IoU 0.5, by class name, drawn towards the default
            threshold for classes with few objects, see `shrink_thresholds`. Classes without a correct detection are
            missing.
        annotations_digest: SHA-256 of the annotations used, see `Annotations.digest`; empty if unknown.
        changed_options: options that affect the detections or locate the data and differ from those of the training, by
            dotted key, with their values as text, such as `{"eval.scales": "[600]"}`.
    """

    metrics: dict[str, float]
    per_class: dict[str, dict[str, float]]
    detections: list[dict[str, Any]] = field(repr=False)
    boxes_per_class: dict[str, int]
    thresholds: dict[str, float] = field(default_factory=dict)
    annotations_digest: str = ""
    changed_options: dict[str, str] = field(default_factory=dict)


def detection_limit(config: Config) -> int:
    """Return the maximum number of detections per image of a detector; 0 or less: no limit."""
    option = config.model.limit_option
    return attrgetter(option)(config.model) if option else 0


def warn_of_crowded_images(annotations: Annotations | None, config: Config) -> None:
    """Warn if images have more objects than the detector has detections, because AP cannot reach 1 then."""
    limit = detection_limit(config)
    if annotations is None or limit <= 0:
        return
    counts = annotations.boxes_per_image()
    crowded = int((counts > limit).sum())
    if crowded:
        logger.warning(
            "warning: %s with more objects than model.%s=%d, up to %d: AP cannot reach 1, because the"
            " detector returns at most %d detections per image; set model.%s=%d",
            plural(crowded, "image"),
            config.model.limit_option,
            limit,
            counts.max(),
            limit,
            config.model.limit_option,
            counts.max(),
        )


def metric_names(config: Config) -> tuple[str, ...]:
    """Return the names of the metrics that `evaluate` computes: of boxes, and of other outputs of the detector."""
    names = metrics_of(_outputs(config))
    names += PROPOSAL_METRICS if config.model.is_class_agnostic else ()
    return (*names, *VOC_METRICS) if config.eval.voc_metrics else names


def _outputs(config: Config) -> list[Output]:
    masks, keypoints = config.model.predicts_masks, config.model.num_predicted_keypoints > 0
    return ["boxes", *(["masks"] if masks else []), *(["keypoints"] if keypoints else [])]


def check_keypoints(config: Config, annotations: Annotations, trained: Sequence[str] = ()) -> None:
    """Check that the data has the keypoints that the detector predicts. Data without objects has none.

    Args:
        config: config of the detector.
        annotations: annotations of a split.
        trained: names of the keypoints in the order of the detector; empty: unknown.

    Raises:
        ConfigError: the numbers differ, or `eval.keypoint_sigmas` has another length.
        DataError: the keypoints have the same names in another order.
    """
    count = config.model.num_predicted_keypoints
    if not count or annotations.keypoints is None or not len(annotations.boxes):
        return
    names = annotations.keypoints.names
    if len(names) != count:
        raise ConfigError(
            f"model.keypoints.num_keypoints={count}, but the objects of the data have {plural(len(names), 'keypoint')}"
            f" ({join_some(names)}); train a detector with model.keypoints.num_keypoints={len(names)}"
        )
    if tuple(names) != tuple(trained) and sorted(names) == sorted(trained):
        raise DataError(
            f"data: {annotations.root}: the keypoints are in the order {', '.join(names):.200}, but the detector is"
            f" trained with {', '.join(trained):.200}; write the keypoints of all splits in this order"
        )
    sigmas_of(count, config.eval.keypoint_sigmas)


def evaluate(
    model: DetectionModel,
    annotations: Annotations,
    config: Config,
    *,
    device: torch.device | str,
    compiled: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Run the detector on every image of a split and compare the detections with the annotations.

    The result does not depend on the batch size, because all images of a batch have the same padded shape. With several
    processes, each process runs the detector on its share of the images with the batch-norm statistics of rank 0, and
    all of them return the metrics of the whole split. Images that can no longer be read cause a warning, and their
    objects count as missed.

    Args:
        model: detector on `device`; the training mode of its modules is restored afterwards.
        annotations: annotations of the split, with the labels of the model. Without masks or keypoints, those of the
            detector are not evaluated.
        config: config with the image sizes, test-time augmentation, batch size and number of loader workers.
        device: device of the model.
        compiled: whether to compile the network with torch.compile.
        progress: callback that receives the number of images done and the total. With several processes the former is
            an estimate from the images of this process.

    Raises:
        KeyboardInterrupt: `progress` raised it, or the user pressed Ctrl-C. With several processes all of them raise
            it, after the others have finished their shares.
    """
    check_keypoints(config, annotations)
    broadcast_buffers(model)
    batch_size = config.eval.batch_size
    loader = build_test_loader(config, annotations, batch_size=batch_size, rank=rank(), world_size=world_size())
    share: tuple[list[dict[str, Any]], int] | None = None
    try:
        share = _detect(
            model,
            annotations,
            loader,
            device=torch.device(device),
            precision=config.eval_precision,
            compiled=compiled,
            progress=progress,
        )
    except KeyboardInterrupt:
        if world_size() == 1:
            raise
    detections = _merge_shares(all_gather(share), annotations)
    annotated = {"boxes": True, "masks": annotations.masks, "keypoints": annotations.keypoints}
    outputs: list[Output] = [output for output in _outputs(config) if annotated[output] is not None]
    num_keypoints = config.model.num_predicted_keypoints if "keypoints" in outputs else 0
    metrics = coco_metrics(
        annotations.to_coco(),
        detections,
        max_detections=detection_limit(config),
        outputs=outputs,
        sigmas=sigmas_of(num_keypoints, config.eval.keypoint_sigmas) if num_keypoints else (),
    )
    if config.model.is_class_agnostic:
        recall = proposal_recall(annotations, detections)
        for values in (metrics.overall, *metrics.per_class.values()):
            values.update(recall)
    if config.eval.voc_metrics:
        extra_pixel = config.data.convention == "fcos_core"
        overall, per_class = voc_metrics(annotations, detections, extra_pixel=extra_pixel)
        metrics.overall.update(overall)
        for name, values in per_class.items():
            metrics.per_class[name].update(values)
    boxes_per_class = dict(zip(annotations.class_names, annotations.boxes_per_class().tolist(), strict=True))
    return Evaluation(
        metrics.overall,
        metrics.per_class,
        detections,
        boxes_per_class,
        shrink_thresholds(metrics.thresholds, boxes_per_class, default=config.model.default_threshold),
        annotations.digest(),
    )


def _detect(
    model: DetectionModel,
    annotations: Annotations,
    loader: Loader,
    *,
    device: torch.device,
    precision: Precision,
    compiled: bool,
    progress: Callable[[int, int], None] | None,
) -> tuple[list[dict[str, Any]], int]:
    """Return the detections on the images of a loader, and the number of images that could not be read."""
    detections, done = [], 0
    with detecting(model), autocast(device, precision):
        model = InferenceCopy(compiled=compiled)(model)
        for batch in loader:
            indices = batch.indices.tolist()
            sizes = [(height, width) for height, width in annotations.sizes[indices].tolist()]
            clip = model.box_convention == "continuous"  # the original does not clip here
            results = detect_on_originals(model, batch.to(device).views, sizes, clip=clip)
            for index, instances in zip(indices, results, strict=True):
                image_id = int(annotations.image_ids[index])
                detections += to_coco_results(instances, image_id=image_id, category_ids=annotations.category_ids)
            done += len(batch.indices)
            if progress is not None:
                progress(min(done * world_size(), len(annotations)), len(annotations))
    return detections, loader.num_skipped


@contextmanager
def detecting(model: torch.nn.Module) -> Iterator[None]:
    """Set evaluation mode and disable gradients; restore the training mode of every module on exit."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module in training:
            module.training = True


def _merge_shares(
    shares: Sequence[tuple[list[dict[str, Any]], int] | None], annotations: Annotations
) -> list[dict[str, Any]]:
    """Join the detections of all processes, ordered by image id and descending score; warn of unreadable images.

    Raises:
        KeyboardInterrupt: a process was interrupted (its share is None).
    """
    detections, num_unreadable = [], 0
    for share in shares:
        if share is None:
            raise KeyboardInterrupt
        detections += share[0]
        num_unreadable += share[1]
    if num_unreadable and rank() == 0:
        logger.warning(
            "%d of %d images could not be read; their objects count as missed", num_unreadable, len(annotations)
        )
    return sorted(detections, key=lambda d: (d["image_id"], -d["score"]))
