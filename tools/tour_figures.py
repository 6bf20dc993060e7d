"""Draw the figures of docs/tour.md with a trained FCOS and an annotated image.

    python tools/tour_figures.py WEIGHTS DATA [IMAGE]

IMAGE is the position of the image in the validation set of DATA (default: 0). The figures are written to docs/tour.
`make tour` trains a detector on sample images and then calls this program.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, cast

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor
from torch.nn.functional import interpolate

import fcos
from fcos.data import load_annotations
from fcos.data.dataset import DetectionDataset
from fcos.data.loader import detection_views, padded_size
from fcos.evaluation.evaluate import detecting
from fcos.models.fcos import FCOS, FCOSOutputs
from fcos.models.points import Assignment, assign_targets, centerness_targets
from fcos.structures import Instances, Objects

OUT = Path(__file__).parents[1] / "docs" / "tour"
COLORS = [mpl.colormaps["tab10"](i) for i in range(10)]
SHOWN_LEVELS = 3


class Scene(NamedTuple):
    """An image and everything that the detector computes from it.

    Attributes:
        image: [1, 3, H, W] uint8, resized and padded.
        sizes: [1, 2] size without the padding.
        objects: Ground truth in pixels of `image`.
        maps: Feature maps by name: those of the backbone (C...) and of the pyramid (P...).
        outputs: Outputs of the head.
        points: Locations of each level.
        assignment: Training targets of the locations.
        candidates: Boxes before non-maximum suppression.
        detections: Boxes after it.
    """

    image: Tensor
    sizes: Tensor
    objects: Objects
    maps: dict[str, Tensor]
    outputs: FCOSOutputs
    points: list[Tensor]
    assignment: Assignment
    candidates: Instances
    detections: Instances


def prepare(detector: fcos.Detector, data: str, index: int) -> Scene:
    """Run the detector on an image of the validation set, step by step."""
    model = cast("FCOS", detector.model)
    names, ids = detector.class_names, detector.category_ids
    annotations = load_annotations(
        fcos.load_config(None, [f"data={data}"]).data, "val", class_names=names, category_ids=ids
    )
    assert annotations is not None, f"{data}: no validation set"
    sample = DetectionDataset(annotations, transform=detection_views(detector.config)[0]).load(index, 0)
    height, width = sample.image.shape[1:]
    sizes = torch.tensor([[height, width]])
    image = sample.image.new_zeros(1, 3, *padded_size((height, width), detector.config.data.size_divisor))
    image[0, :, :height, :width] = sample.image
    with detecting(model):
        backbone = model.backbone(model.normalize(image, sizes))
        pyramid = model.features(image, sizes)
        outputs = model.head(pyramid)
        points = model.locations(outputs)
        candidates = model.decode(outputs, sizes)[0]
        detections = model.suppress(candidates)
    first = int(np.log2(model.assigner.strides[0]))
    maps = {name: backbone[name] for name in model.backbone_levels}
    maps |= {f"P{first + i}": level for i, level in enumerate(pyramid)}
    assignment = assign_targets(points, [sample.objects], model.assigner)
    return Scene(image, sizes, sample.objects, maps, outputs, points, assignment, candidates, detections)


def show_image(axes: Axes, scene: Scene, title: str, *, dim: float = 0.0) -> None:
    """Draw the image, mixed with `dim` parts of white."""
    pixels = scene.image[0].permute(1, 2, 0).numpy() / 255
    axes.imshow(pixels * (1 - dim) + dim)
    axes.set_title(title, fontsize=10)
    axes.set_axis_off()


def show_boxes(axes: Axes, boxes: Tensor, colors: Sequence[object], *, linewidth: float = 1.5) -> None:
    """Draw rectangles."""
    for (x1, y1, x2, y2), color in zip(boxes.tolist(), colors, strict=True):
        axes.add_patch(
            Rectangle((x1 - 0.5, y1 - 0.5), x2 - x1, y2 - y1, fill=False, edgecolor=color, linewidth=linewidth)  # pyright: ignore[reportArgumentType]
        )


def show_heat(axes: Axes, scene: Scene, heat: Tensor, title: str) -> None:
    """Draw a map [H_l, W_l] in 0..1 over the image."""
    height, width = scene.image.shape[-2:]
    show_image(axes, scene, title, dim=0.3)
    heat = interpolate(heat[None, None], (height, width), mode="nearest")[0, 0]
    axes.imshow(heat.numpy(), cmap="magma", alpha=0.75, vmin=0, vmax=1)


def per_level(scene: Scene, values: Tensor) -> list[Tensor]:
    """Split values of all locations [R, ...] by level."""
    return list(values.split([len(points) for points in scene.points]))


def level_names(scene: Scene) -> list[str]:
    """Return the names of the pyramid levels."""
    return [name for name in scene.maps if name.startswith("P")]


def draw_features(scene: Scene) -> Figure:
    """Mean absolute activation of the maps of backbone and pyramid."""
    figure = Figure(figsize=(11, 1.9), layout="constrained")
    axes = figure.subplots(1, len(scene.maps) + 1)
    show_image(axes[0], scene, f"input\n{scene.image.shape[-2]}x{scene.image.shape[-1]}")
    for plot, (name, level) in zip(axes[1:], scene.maps.items(), strict=True):
        plot.imshow(level[0].abs().mean(0).numpy(), cmap="viridis")
        plot.set_title(f"{name}, {level.shape[1]} channels\n{level.shape[-2]}x{level.shape[-1]}", fontsize=9)
        plot.set_axis_off()
    return figure


def draw_assignment(scene: Scene, strides: Sequence[int]) -> Figure:
    """Locations of the finest levels, coloured by the box that they learn."""
    figure = Figure(figsize=(11, 3.9), layout="constrained")
    axes = figure.subplots(1, SHOWN_LEVELS)
    boxes_of_levels = per_level(scene, scene.assignment.boxes[0])
    for plot, name, stride, points, boxes in zip(
        axes, level_names(scene), strides, scene.points, boxes_of_levels, strict=False
    ):
        assigned = boxes >= 0
        show_image(plot, scene, f"{name}, stride {stride}: {int(assigned.sum())} of {len(boxes)} locations", dim=0.45)
        plot.scatter(*points[~assigned].T.numpy(), s=3, color="0.45", linewidths=0)
        plot.scatter(*points[assigned].T.numpy(), s=14, color=[COLORS[i % 10] for i in boxes[assigned].tolist()])
        learned = boxes[assigned].unique()
        show_boxes(plot, scene.objects.boxes[learned], [COLORS[i % 10] for i in learned.tolist()])
    return figure


def draw_centerness(scene: Scene) -> Figure:
    """Centerness: target and prediction on the level with most positive locations."""
    figure = Figure(figsize=(11, 3.9), layout="constrained")
    target, predicted, scored = figure.subplots(1, 3)
    counts = [int((boxes >= 0).sum()) for boxes in per_level(scene, scene.assignment.boxes[0])]
    level = int(np.argmax(counts))
    positive = scene.assignment.boxes[0] >= 0
    values = torch.where(positive, centerness_targets(scene.assignment.ltrb[0].clamp(min=1e-6)), 0.0)
    shape = scene.outputs.centerness[level].shape[-2:]
    name = level_names(scene)[level]
    show_heat(target, scene, per_level(scene, values)[level].reshape(shape), f"{name}: centerness target")
    show_boxes(target, scene.objects.boxes, ["white"] * len(scene.objects), linewidth=0.8)
    centerness = scene.outputs.centerness[level][0, 0].sigmoid()
    classes = scene.outputs.logits[level][0].sigmoid().amax(0)
    show_heat(predicted, scene, centerness, f"{name}: predicted centerness")
    show_heat(scored, scene, (centerness * classes).sqrt(), f"{name}: score, with the best class")
    return figure


def draw_scores(scene: Scene) -> Figure:
    """Score of the best class on the finest levels."""
    figure = Figure(figsize=(11, 3.9), layout="constrained")
    names = level_names(scene)
    for plot, name, logits, centerness in zip(
        figure.subplots(1, SHOWN_LEVELS), names, scene.outputs.logits, scene.outputs.centerness, strict=False
    ):
        score = (logits[0].sigmoid().amax(0) * centerness[0, 0].sigmoid()).sqrt()
        show_heat(plot, scene, score, f"{name}: score of the best class")
    return figure


def draw_suppression(scene: Scene, detector: fcos.Detector) -> Figure:
    """Candidates, detections after non-maximum suppression, and detections above the thresholds of the classes."""
    figure = Figure(figsize=(11, 3.9), layout="constrained")
    shown = scene.detections[scene.detections.scores >= detector.thresholds[scene.detections.labels]]
    parts = {"candidates": scene.candidates, "after NMS": scene.detections, "above the thresholds": shown}
    for plot, (title, instances) in zip(figure.subplots(1, 3), parts.items(), strict=True):
        show_image(plot, scene, f"{title}: {len(instances)} boxes", dim=0.25)
        colors = [
            (*COLORS[label % 10][:3], max(score, 0.1))
            for label, score in zip(instances.labels.tolist(), instances.scores.tolist(), strict=True)
        ]
        show_boxes(plot, instances.boxes, colors)
    for (x1, y1, *_), label, score in zip(
        shown.boxes.tolist(), shown.labels.tolist(), shown.scores.tolist(), strict=True
    ):
        name = f"{detector.class_names[label]} {score:.2f}"
        plot.text(x1, y1 - 2, name, fontsize=7, color="white", backgroundcolor=COLORS[label % 10])
    return figure


def main(weights: str, data: str, index: str = "0") -> None:
    """Draw all figures."""
    detector = fcos.load(weights, device="cpu")
    scene = prepare(detector, data, int(index))
    enlarged = prepare(fcos.load(weights, "data.test_short_side=448", device="cpu"), data, int(index))
    strides = cast("FCOS", detector.model).assigner.strides
    OUT.mkdir(exist_ok=True)
    for name, figure in {
        "features": draw_features(scene),
        "assignment": draw_assignment(enlarged, strides),
        "centerness": draw_centerness(scene),
        "scores": draw_scores(scene),
        "suppression": draw_suppression(scene, detector),
    }.items():
        figure.savefig(OUT / f"{name}.webp", dpi=110)
        print(OUT / f"{name}.webp")


if __name__ == "__main__":
    main(*sys.argv[1:])
