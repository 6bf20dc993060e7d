"""Detection as a module from tensors to tensors, which exporters and `torch.compile` can capture.

Shape letters: N images, H W image size, K classes, C candidates of an image, D detections of an image.
"""

from __future__ import annotations

import copy
import importlib
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils._pytree import tree_map_only

from ..choices import ExportContent
from ..data.opening import MAX_PIXELS
from ..errors import ConfigError
from ..models import DetectionModel
from .matrix_nms import with_matrix_nms
from .metadata import FixedSizes

_MAX_SIDE = 2**16
_MAX_BATCH = 1024


def check_sizes(sizes: FixedSizes, *, divisor: int) -> None:
    """Check that fixed sides are multiples of `divisor`, and that the memory may suffice.

    Raises:
        ConfigError: they are not, or there are more pixels than the default of `data.max_pixels`, or more images than
            the proof can hold in memory.
    """
    batch, size = sizes
    if batch is not None and batch > _MAX_BATCH:
        raise ConfigError(f"--batch: expected at most {_MAX_BATCH} images, found {batch}")
    if size is None:
        return
    if not all(side > 0 and side % divisor == 0 for side in size):
        height, width = (max(-(-side // divisor), 1) * divisor for side in size)
        raise ConfigError(
            f"--size: expected multiples of data.size_divisor={divisor}, found {size[0]}x{size[1]}; the next larger"
            f" size is {height}x{width}"
        )
    if math.prod(size) > MAX_PIXELS:
        raise ConfigError(f"--size: expected at most {MAX_PIXELS} pixels, found {size[0]}x{size[1]}")


class DetectionGraph(nn.Module):
    """Detector whose inputs and outputs are tensors, equal to `DetectionModel.detect`.

    Args:
        model: the detector.
        content: what `forward` returns.
        matrix_nms: whether `capture` writes non-maximum suppression in plain tensor operations, see `matrix_nms`.

    Attributes:
        score_threshold: 0-dim float32 threshold; None if the detector has none.

    Raises:
        ConfigError: the detector cannot be exported.
    """

    score_threshold: Tensor | None

    def __init__(self, model: DetectionModel, *, content: ExportContent = "detections", matrix_nms: bool = False):
        super().__init__()
        model.require_padded()
        if content == "raw" and type(model).padded_outputs is not DetectionModel.padded_outputs:
            raise ConfigError(
                "--raw: two-stage detectors cannot be exported without selecting proposals; leave out the option"
            )
        if content == "candidates" and model.detail_names:
            raise ConfigError(
                f"--nms none: {' and '.join(model.detail_names)} are computed for the detections that non-maximum"
                " suppression selects; leave out the option"
            )
        self.model = model
        self.content = content
        self.matrix_nms = matrix_nms
        options = model.postprocess
        self.register_buffer("score_threshold", None if options is None else torch.tensor(options.score_threshold))

    def forward(self, images: Tensor, sizes: Tensor, score_threshold: Tensor | None = None) -> dict[str, Tensor]:
        """Detect objects.

        Args:
            images: [N, 3, H, W] uint8 RGB, padded at the right and the bottom.
            sizes: [N, 2] int64 (height, width) without the padding.
            score_threshold: 0-dim float32; None: that of the detector.

        Returns:
            `boxes` [N, D, 4] float32 XYXY in pixels of the images and the model's box convention (0 in the padding),
            `scores` [N, D] float32 in 0..1 (0 in the padding), `labels` [N, D] int64 in 0..K-1 (-1 in the padding), and
            `counts` [N] int64; best score first. If the detector predicts them, `masks` [N, D, G, G] and `keypoints`
            [N, D, J, 3], see `Instances` (0 in the padding).

            If `content` is `candidates`, C candidates instead of D detections, level by level, and instead of counts a
            mask `valid` [N, C] of those that are not padding. If it is `raw`, the outputs of the head by their names
            and the number of the level, such as `logits_0` [N, K, H_0, W_0].
        """
        outputs = self.model.padded_outputs(images, sizes)
        if self.content == "raw":
            return raw_outputs(outputs)
        threshold = self.score_threshold if score_threshold is None else score_threshold
        threshold = 0.0 if threshold is None else threshold
        candidates = self.model.padded_candidates(outputs, sizes, score_threshold=threshold)
        if self.content == "candidates":
            return candidates.without_padding()._asdict()
        detections = self.model.padded_detections(candidates, sizes).without_padding()
        boxes, scores, labels, valid = detections
        selected = {"boxes": boxes, "scores": scores, "labels": labels, "counts": valid.sum(dim=1)}
        details = self.model.padded_details(outputs, detections)
        return selected | {name: values.where(valid[..., None, None], 0.0) for name, values in details.items()}


def lower_precision(model: DetectionModel, dtype: torch.dtype) -> DetectionModel:
    """Return a copy whose `compiled_parts` compute in half precision, and everything else in float32.

    These are the backbone, the pyramid and the heads; pixels are normalised and boxes decoded and selected in float32.
    """
    model = copy.deepcopy(model)
    for path in model.compiled_parts:
        part = model.get_submodule(path).to(dtype)
        part.register_forward_pre_hook(lambda _, inputs: tree_map_only(Tensor, lambda x: x.to(dtype), inputs))
        part.register_forward_hook(lambda _, __, outputs: tree_map_only(Tensor, Tensor.float, outputs))
    return model


def raw_outputs(outputs: Any) -> dict[str, Tensor]:
    """Name the tensors of the raw outputs of a one-stage detector, a NamedTuple of lists with a tensor per level."""
    return {f"{name}_{i}": level for name, levels in outputs._asdict().items() for i, level in enumerate(levels)}


class Captured(NamedTuple):
    """Result of `capture`.

    Attributes:
        program: the program.
        output_names: names of its outputs, in their order.
    """

    program: ExportedProgram
    output_names: tuple[str, ...]


def capture(graph: DetectionGraph, sizes: FixedSizes, *, divisor: int, threshold_input: bool) -> Captured:
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
    if threshold_input and graph.score_threshold is not None and graph.content != "raw":
        arguments.append(graph.score_threshold)
        shapes.append({})
    # Without this option, the program would reject images so small that a map has a single row or column.
    shape_config: Any = importlib.import_module("torch.fx.experimental._config")
    with torch.no_grad(), shape_config.patch(backed_size_oblivious=True), _padding_in_integers():
        names = tuple(graph.eval()(*arguments))
        program = torch.export.export(graph, tuple(arguments), dynamic_shapes=tuple(shapes), strict=False)
        return Captured(with_matrix_nms(program) if graph.matrix_nms else program, names)


@contextmanager
def _padding_in_integers() -> Iterator[None]:
    """Let the "SAME" padding of timm's layers divide integers, with the same result.

    timm divides floating-point numbers. PyTorch cannot simplify these expressions, which grow from layer to layer, so
    that the capture of an EfficientNet would not end.
    """
    padding: Any = sys.modules.get("timm.layers.padding")
    if padding is None:
        yield
        return
    original = padding.get_same_padding
    padding.get_same_padding = _same_padding
    try:
        yield
    finally:
        padding.get_same_padding = original


def _same_padding(side: int, kernel_size: int, stride: int, dilation: int) -> int:
    """Return the padding with which a convolution gives ceil(side / stride) values."""
    return max((-(-side // stride) - 1) * stride + (kernel_size - 1) * dilation + 1 - side, 0)


def _multiple(name: str, divisor: int) -> Dim:
    if divisor == 1:
        return Dim(name, min=1, max=_MAX_SIDE)
    return divisor * Dim(f"{name}_cells", min=1, max=_MAX_SIDE // divisor)
