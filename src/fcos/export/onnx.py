"""Conversion of captured detectors to ONNX.

Shape letters: N images, C candidates of an image, K classes, M boxes that non-maximum suppression keeps.
"""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch.export import ExportedProgram

if TYPE_CHECKING:
    from onnx import ModelProto

OPSET = 20
THRESHOLD = "score_threshold"
"""Name of the initializer with the score threshold, which `with_constant_threshold` adds."""


def to_onnx(program: ExportedProgram, output_names: tuple[str, ...]) -> ModelProto:
    """Convert a program of `graph.capture`, with names of inputs, outputs and their symbolic dimensions.

    Args:
        program: the captured detector.
        output_names: names of its outputs.
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
                program,
                (),
                dynamo=True,
                opset_version=OPSET,
                custom_translation_table={torch.ops.fcos.class_wise_nms.default: _translate_nms},
                verbose=False,
            )
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
    assert converted is not None
    graph = converted.model.graph
    for value, name in zip(graph.outputs, output_names, strict=True):
        value.name = name
    for value, names in zip(graph.inputs, (("batch", 3, "height", "width"), ("batch", 2)), strict=False):
        assert value.shape is not None
        value.shape = onnx_ir.Shape(
            [side if isinstance(side, int) else name for side, name in zip(value.shape, names, strict=True)]
        )
    for value in graph.outputs:
        assert value.shape is not None
        value.shape = onnx_ir.Shape(
            ["batch" if not isinstance(value.shape[0], int) else value.shape[0], *value.shape[1:]]
        )
    proto = onnx_ir.to_proto(converted.model)
    del proto.graph.value_info[:]  # shapes of intermediate values in terms of symbols that inputs no longer have
    return proto


def with_constant_threshold(model: ModelProto, threshold: float | None) -> ModelProto:
    """Return a copy whose input with the score threshold, if it has one, is the constant `THRESHOLD`."""
    import numpy as np
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if threshold is not None:
        del copy.graph.input[2]
        copy.graph.initializer.append(onnx.numpy_helper.from_array(np.array(threshold, np.float32), THRESHOLD))
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
