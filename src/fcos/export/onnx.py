"""Conversion of captured detectors to ONNX.

Shape letters: N images, C candidates of an image, K classes, M boxes that non-maximum suppression keeps, P detections
of all images, J keypoints of a detection, G side of their heat maps.
"""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..choices import ExportFormat
from ..errors import ConfigError
from ..formatting import quote
from .graph import Captured

if TYPE_CHECKING:
    from onnx import ModelProto

OPSETS = range(20, 26)
"""Versions of the operators of ONNX. From 21 on, group normalisation is an operator."""
THRESHOLD = "score_threshold"
"""Name of the initializer with the score threshold, which `with_constant_threshold` adds."""


def require_opset(opset: int | None, form: ExportFormat) -> int:
    """Return the version of the operators for a file of a format; None: the default.

    Raises:
        ConfigError: it is not one of `OPSETS`, or the format is not ONNX.
    """
    if opset is None:
        return OPSETS[0]
    if form != "onnx":
        raise ConfigError(f"--opset: no effect on --format {form}; remove it")
    if opset not in OPSETS:
        raise ConfigError(f"--opset: expected an integer from {OPSETS[0]} to {OPSETS[-1]}, found {quote(opset)}")
    return opset


def to_onnx(captured: Captured, *, opset: int = OPSETS[0]) -> ModelProto:
    """Convert a captured detector, with names of inputs, outputs and their symbolic dimensions.

    Args:
        captured: the detector.
        opset: one of `OPSETS`.
    """
    import onnx_ir

    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the converter about its own code
            converted = torch.onnx.export(
                captured.program,
                (),
                dynamo=True,
                opset_version=opset,
                custom_translation_table={
                    torch.ops.fcos.class_wise_nms.default: _translate_nms,
                    torch.ops.fcos.decode_keypoints.default: _translate_keypoints,
                },
                verbose=False,
            )
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
    assert converted is not None
    graph = converted.model.graph
    for value, name in zip(graph.outputs, captured.output_names, strict=True):
        value.name = name
    for value, names in zip(graph.inputs, (("batch", 3, "height", "width"), ("batch", 2)), strict=False):
        assert value.shape is not None
        value.shape = onnx_ir.Shape(
            [side if isinstance(side, int) else name for side, name in zip(value.shape, names, strict=True)]
        )
    for value in graph.outputs:
        assert value.shape is not None
        names = ("batch", *(f"{value.name}_{axis}" for axis in range(1, len(value.shape))))
        value.shape = onnx_ir.Shape(
            [side if isinstance(side, int) else name for side, name in zip(value.shape, names, strict=True)]
        )
    proto = onnx_ir.to_proto(converted.model)
    del proto.graph.value_info[:]  # shapes of intermediate values in terms of symbols that inputs no longer have
    return proto


def with_constant_threshold(model: ModelProto, threshold: Tensor | None) -> ModelProto:
    """Return a copy whose input with the score threshold, if it has one, is the constant `THRESHOLD`."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if threshold is not None and len(copy.graph.input) == 3:
        del copy.graph.input[2]
        copy.graph.initializer.append(onnx.numpy_helper.from_array(threshold.numpy(), THRESHOLD))
    return copy


def _translate_nms(  # noqa: PLR0917 (arguments of the operator)
    boxes: Any, scores: Any, labels: Any, valid: Any, num_classes: int, threshold: float
) -> Any:
    """Translate `padded.nms_operator`: one NonMaxSuppression for all images and classes.

    Ranks replace the scores, so that equal scores keep their input order in every runtime.
    """
    from onnxscript import opset20

    op: Any = opset20
    float32, int64 = 1, 7
    zero, one = op.Constant(value_float=0.0), op.Constant(value_ints=[1])
    count = op.Shape(scores, start=1, end=2)  # C
    _, order = op.TopK(op.Where(valid, scores, op.Constant(value_float=-1.0)), count, axis=1)
    descending = op.Range(op.Squeeze(count), op.Constant(value_int=0), op.Constant(value_int=-1))
    ranks = op.Where(op.GatherElements(valid, order, axis=1), op.Cast(descending, to=float32), zero)  # [N, C]
    if threshold > 0:
        classes = op.Unsqueeze(op.Constant(value_ints=list(range(num_classes))), one)  # [K, 1]
        is_class = op.Equal(op.Unsqueeze(op.GatherElements(labels, order, axis=1), one), classes)
        ranks_of_class = op.Where(is_class, op.Unsqueeze(ranks, one), zero)  # [N, K, C]
        coordinates = op.Expand(op.Unsqueeze(order, op.Constant(value_ints=[2])), op.Constant(value_ints=[1, 1, 4]))
        selected = op.NonMaxSuppression(
            op.GatherElements(boxes, coordinates, axis=1),
            ranks_of_class,
            count,
            op.Constant(value_floats=[threshold]),
            op.Constant(value_floats=[0.0]),
        )  # [M, 3] image, class, box
        index = op.Gather(selected, op.Constant(value_ints=[0, 2]), axis=1)
        ranks = op.ScatterND(op.ConstantOfShape(op.Shape(ranks)), index, op.GatherND(ranks, index))
    _, best = op.TopK(ranks, count, axis=1)
    counts = op.ReduceSum(op.Cast(op.Greater(ranks, zero), to=int64), one, keepdims=0)
    return op.GatherElements(order, best, axis=1), counts


_DECODE_KEYPOINTS = """
decode_keypoints (float[J, G, G] maps, float[4] box) => (float[J, 3] keypoints)
{
    corner, other = Split <axis = 0, num_outputs = 2> (box)
    extent = Sub (other, corner)
    unit = Constant <value_floats = [1.0]> ()
    sides = Max (extent, unit)
    whole = Ceil (sides)
    lengths = Cast <to = 7> (whole)
    width, height = Split <axis = 0, num_outputs = 2> (lengths)
    one = Constant <value_ints = [1]> ()
    count = Shape <start = 0, end = 1> (maps)
    size = Concat <axis = 0> (one, count, height, width)
    axis = Constant <value_ints = [0]> ()
    batch = Unsqueeze (maps, axis)
    resized = Resize <mode = "cubic", cubic_coeff_a = -0.75, coordinate_transformation_mode = "half_pixel"> (
        batch, , , size)
    rows = Constant <value_ints = [0, 0, -1]> ()
    cells = Reshape (resized, rows)
    index = ArgMax <axis = 2, keepdims = 0> (cells)
    last = Constant <value_ints = [2]> ()
    logit = ReduceMax <keepdims = 0> (cells, last)
    row = Div (index, width)
    start = Mul (row, width)
    column = Sub (index, start)
    pairs = Concat <axis = 0> (column, row)
    cell = Transpose <perm = [1, 0]> (pairs)
    number = Cast <to = 1> (cell)
    half = Constant <value_floats = [0.5]> ()
    center = Add (number, half)
    scale = Div (sides, whole)
    offset = Mul (center, scale)
    point = Add (corner, offset)
    column_of_logits = Transpose <perm = [1, 0]> (logit)
    keypoints = Concat <axis = 1> (point, column_of_logits)
}
"""
"""`keypoint_head.decode_keypoints` for one detection."""


def _translate_keypoints(heat_maps: Any, boxes: Any) -> Any:
    """Translate `keypoint_head.keypoint_operator`: a Scan over the detections, whose boxes have different sizes."""
    import onnx
    from onnxscript import opset20

    op: Any = opset20
    body = onnx.parser.parse_graph(_DECODE_KEYPOINTS)
    return op.Scan(heat_maps, boxes, body=body, num_scan_inputs=2)  # [P, J, 3]
