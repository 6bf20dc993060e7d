"""Detection as a module from tensors to tensors, which exporters and `torch.compile` can capture.

Shape letters: N images, H W image size, C candidates of an image, D detections of an image.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ..errors import ConfigError
from ..models import DetectionModel
from .metadata import FixedSizes

OUTPUTS = {True: ("boxes", "scores", "labels", "counts"), False: ("boxes", "scores", "labels", "valid")}
"""Names of the outputs with and without non-maximum suppression."""
_MAX_SIDE = 2**16


def check_size(size: tuple[int, int] | None, *, divisor: int) -> None:
    """Check that the sides of a fixed size are multiples of `divisor`.

    Raises:
        ConfigError: they are not.
    """
    if size is None:
        return
    if not all(side > 0 and side % divisor == 0 for side in size):
        height, width = (max(-(-side // divisor), 1) * divisor for side in size)
        raise ConfigError(
            f"--size: expected multiples of data.size_divisor={divisor}, found {size[0]}x{size[1]}; the next larger"
            f" size is {height}x{width}"
        )


class DetectionGraph(nn.Module):
    """Detector whose inputs and outputs are tensors, equal to `DetectionModel.detect`.

    Args:
        model: the detector.
        nms: whether to select the detections; otherwise `forward` returns all candidates.

    Attributes:
        score_threshold: 0-dim float32 threshold; None if the detector has none.

    Raises:
        ConfigError: the detector cannot be exported.
    """

    score_threshold: Tensor | None

    def __init__(self, model: DetectionModel, *, nms: bool = True):
        super().__init__()
        model.require_padded()
        self.model = model
        self.nms = nms
        options = model.postprocess
        self.register_buffer("score_threshold", None if options is None else torch.tensor(options.score_threshold))

    def forward(
        self, images: Tensor, sizes: Tensor, score_threshold: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Detect objects.

        Args:
            images: [N, 3, H, W] uint8 RGB, padded at the right and the bottom.
            sizes: [N, 2] int64 (height, width) without the padding.
            score_threshold: 0-dim float32; None: that of the detector.

        Returns:
            Boxes [N, D, 4] float32 XYXY in pixels of the images and the model's box convention (0 in the padding),
            scores [N, D] float32 in 0..1 (0 in the padding), labels [N, D] int64 in 0..K-1 (-1 in the padding), and
            counts [N] int64; best score first. Without `nms`, C candidates instead of D detections, level by level, and
            instead of counts a mask [N, C] of those that are not padding.
        """
        threshold = self.score_threshold if score_threshold is None else score_threshold
        selected = self.model.padded_candidates(images, sizes, score_threshold=0.0 if threshold is None else threshold)
        if self.nms:
            selected = self.model.padded_detections(selected, sizes)
        valid = selected.valid
        boxes = selected.boxes.where(valid[..., None], 0.0)
        scores, labels = selected.scores.where(valid, 0.0), selected.labels.where(valid, -1)
        return boxes, scores, labels, valid.sum(dim=1) if self.nms else valid


def capture(graph: DetectionGraph, sizes: FixedSizes, *, divisor: int, threshold_input: bool) -> ExportedProgram:
    """Capture a graph with `torch.export`.

    Args:
        graph: the graph on the CPU.
        sizes: sizes of the inputs that are fixed.
        divisor: number that divides the sides of padded images.
        threshold_input: whether the score threshold is a third input, otherwise a constant.
    """
    height, width = sizes.size or (-(-160 // divisor) * divisor, -(-224 // divisor) * divisor)
    batch = sizes.batch or 3
    arguments = [torch.zeros(batch, 3, height, width, dtype=torch.uint8), torch.tensor([[height, width]] * batch)]
    axes = {} if sizes.batch else {0: Dim("batch", min=1)}
    sides = {} if sizes.size else {2: _multiple("height", divisor), 3: _multiple("width", divisor)}
    shapes = [axes | sides, axes]
    if threshold_input and graph.score_threshold is not None:
        arguments.append(graph.score_threshold)
        shapes.append({})
    # Without this option, the program would reject images so small that a map has a single row or column.
    shape_config: Any = importlib.import_module("torch.fx.experimental._config")
    with torch.no_grad(), shape_config.patch(backed_size_oblivious=True):
        return torch.export.export(graph.eval(), tuple(arguments), dynamic_shapes=tuple(shapes), strict=False)


def _multiple(name: str, divisor: int) -> Dim:
    if divisor == 1:
        return Dim(name, min=1, max=_MAX_SIDE)
    return divisor * Dim(f"{name}_cells", min=1, max=_MAX_SIDE // divisor)
