"""Explanation of the detections on one image: the maps of the head, the path of every prediction, missed objects.

Shape letters: K classes, H W map size of a level, R locations over all levels, M objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import Tensor

from ..config import Config, FCOSConfig
from ..data.geometry import resize_boxes, to_inclusive
from ..data.loader import pad
from ..data.transforms import detection_views
from ..errors import ConfigError
from ..evaluation.evaluate import detection_limit
from ..models import DetectionModel
from ..models.building import build_options
from ..models.candidates import decode, may_detect
from ..models.inference_copy import InferenceCopy
from ..models.points import Assigner
from ..models.postprocess import FCOSPostprocess
from ..precision import autocast
from ..structures import Instances, Objects
from .assignment import assign, find_obstacles
from .misses import Miss, Scene, explain_misses, match_detections
from .trace import Trace, trace_predictions


@dataclass(frozen=True, eq=False)
class Explanation:
    """Explanation of the detections on one image. Boxes and points are in pixels of the original image.

    Attributes:
        image: RGB image.
        class_names: K names; labels as text if the names are unknown.
        strides: strides of the levels in pixels of the resized image, finest first.
        resized: (height, width) of the resized image, without padding.
        scores: scores of every level, [K, H, W] in 0..1.
        quality: centerness of every level, [H, W] in 0..1; with `quality_name` "iou" the predicted IoU.
        quality_name: `centerness` or `iou`.
        points: [R, 2] (x, y) of the locations of all levels.
        levels: [R] positions of their levels.
        trace: predictions above the score threshold, and the step that dropped each.
        thresholds: [K] score thresholds of shown detections.
        objects: M annotated objects; None without annotations.
        detection_of: position of the detection of each object, shown or not, in `trace.detections`; -1: none.
        misses: the missed objects, with reasons.
    """

    image: Image.Image
    class_names: tuple[str, ...]
    strides: tuple[int, ...]
    resized: tuple[int, int]
    scores: list[Tensor]
    quality: list[Tensor]
    quality_name: str
    points: Tensor
    levels: Tensor
    trace: Trace
    thresholds: Tensor
    objects: Objects | None = None
    detection_of: Sequence[int] = ()
    misses: Sequence[Miss] = ()

    @property
    def shown(self) -> Tensor:
        """Positions in `trace` of the shown detections, best first."""
        detections = self.trace.detections
        return detections[self.trace.scores[detections] >= self.thresholds[self.trace.labels[detections]]]

    @property
    def detections(self) -> Instances:
        """The shown detections, as of `Detector.predict`."""
        return self.select(self.shown)

    def select(self, predictions: Tensor) -> Instances:
        """Return predictions, given by their positions in `trace`, as detections."""
        trace, size = self.trace, (self.image.height, self.image.width)
        columns = (trace.boxes[predictions], trace.labels[predictions], trace.scores[predictions])
        return Instances(*columns, size, self.class_names)

    @property
    def strongest_class(self) -> int:
        """Class with the highest score in the image."""
        return int(torch.stack([level.amax(dim=(1, 2)) for level in self.scores]).amax(dim=0).argmax())


def require_fcos(model: DetectionModel, config: Config) -> tuple[FCOSPostprocess, FCOSConfig]:
    """Return the options of an FCOS: those of detection, and the section `model`.

    Raises:
        ConfigError: the detector is not an FCOS.
    """
    options, section = model.postprocess, config.model
    if not isinstance(section, FCOSConfig) or not isinstance(options, FCOSPostprocess):
        found = "an exported file" if isinstance(section, FCOSConfig) else f"a detector with model.name={section.name}"
        raise ConfigError(f"explain: expected weights of FCOS, whose locations are explained, found {found}")
    return options, section


@torch.inference_mode()
def explain_image(
    model: DetectionModel,
    config: Config,
    image: Image.Image,
    *,
    thresholds: Tensor,
    class_names: Sequence[str],
    objects: Objects | None = None,
) -> Explanation:
    """Run an FCOS on an image, without test-time augmentation, and explain its detections.

    Args:
        model: detector in evaluation mode.
        config: its config.
        image: RGB image.
        thresholds: [K] score thresholds of shown detections.
        class_names: K names.
        objects: objects in pixels of the image; None: unknown.

    Raises:
        ConfigError: the detector is not an FCOS.
    """
    options, section = require_fcos(model, config)
    pixels = detection_views(config)[0](image).image
    images, sizes = pad([pixels], size_divisor=config.data.size_divisor)
    with autocast(model.device, config.eval_precision):
        outputs = InferenceCopy()(model)(images.to(model.device), sizes.to(model.device))
    logits, ltrb, quality = ([level[0].float().cpu() for level in levels] for levels in outputs)
    resized, original = (pixels.shape[1], pixels.shape[2]), (image.height, image.width)
    assigner: Assigner = build_options(Assigner, section)
    points = assigner.locations([(level.shape[1], level.shape[2]) for level in logits])
    trace = trace_predictions(logits, ltrb, quality, points, resized, options=options)
    scores = [_scores(level_logits, level, options) for level_logits, level in zip(logits, quality, strict=True)]

    def on_original(boxes: Tensor) -> Tensor:
        """Convert boxes of the resized image as `detect_on_originals` does."""
        labels = torch.zeros(len(boxes), dtype=torch.int64)
        instances = Instances(boxes, labels, torch.zeros(len(boxes)), resized)
        return instances.resize_to(original).to_continuous(model.box_convention).clip().boxes

    scale = torch.tensor([original[1] / resized[1], original[0] / resized[0]])
    explanation = Explanation(
        image,
        tuple(class_names),
        tuple(assigner.strides),
        resized,
        scores,
        [level[0].sigmoid() for level in quality],
        section.quality,
        torch.cat(points) * scale,
        torch.cat([torch.full((len(level),), i) for i, level in enumerate(points)]),
        replace(trace, boxes=on_original(trace.boxes)),
        thresholds,
    )
    if objects is None:
        return explanation
    all_points, all_ltrb = torch.cat(points), torch.cat([level.flatten(1).T for level in ltrb])
    flat_scores = torch.cat([level.flatten(1).T for level in scores])  # [R, K]
    assigned, obstacles = _assign(points, objects, original, resized, assigner)
    scene = Scene(
        trace=explanation.trace,
        scores=flat_scores.where(may_detect(all_points, resized, options)[:, None], 0.0),
        boxes=on_original(decode(all_points, all_ltrb)),
        strides=torch.tensor(assigner.strides)[explanation.levels],
        thresholds=thresholds,
        objects=objects,
        assigned=assigned,
        obstacles=obstacles,
        class_names=class_names,
        options=options,
    )
    detections = explanation.select(trace.detections)
    detection_of = match_detections(objects, detections, max_detections=detection_limit(config))
    return replace(explanation, objects=objects, detection_of=detection_of, misses=explain_misses(scene, detection_of))


def _scores(logits: Tensor, quality: Tensor, options: FCOSPostprocess) -> Tensor:
    """Return the scores of a level [K, H, W], as `select_candidates` computes them; NaN counts as 0."""
    product = (logits.sigmoid() * quality.sigmoid()).nan_to_num(0.0)
    return product.sqrt() if options.score == "sqrt" else product


def _assign(
    points: Sequence[Tensor],
    objects: Objects,
    original: tuple[int, int],
    resized: tuple[int, int],
    assigner: Assigner,
) -> tuple[Tensor, list[str]]:
    """Assign the objects of the original image as in training, but at the size of detection.

    Returns:
        The object that is assigned to every location, [R], -1: none; and M obstacles, see `find_obstacles`.
    """
    boxes, is_kept = objects.boxes, torch.ones(len(objects), dtype=torch.bool)
    if assigner.box_convention == "inclusive":
        boxes, is_kept = to_inclusive(boxes, torch.tensor([original]).expand(len(boxes), 2))
    resized_objects = replace(objects, boxes=resize_boxes(boxes, original, resized))[is_kept]
    kept = torch.nonzero(is_kept).squeeze(1)
    obstacles = ["its width or height is a pixel or less, which the inclusive convention drops"] * len(objects)
    for i, obstacle in zip(kept.tolist(), find_obstacles(points, resized_objects, assigner), strict=True):
        obstacles[i] = obstacle
    assigned = assign(points, resized_objects, assigner)
    return torch.cat([kept, kept.new_tensor([-1])])[assigned], obstacles
