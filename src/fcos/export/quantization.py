"""Quantisation of exported networks to int8 with NNCF, for OpenVINO."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from ..errors import ExportError
from .metadata import FixedSizes
from .proof import Accuracy, pad_batch
from .runtimes import require

if TYPE_CHECKING:
    import numpy as np
    from openvino import Model

MAX_IMAGES = 300
"""Number of images that are used for the calibration; the default of NNCF."""
MIN_AP = 0.3
"""Smallest AP in float32 of which a drop means something."""

_IN_INT8 = {
    "Convolution",
    "ConvolutionBackpropData",
    "GroupConvolution",
    "GroupConvolutionBackpropData",
    "MatMul",
}


class Quantization(NamedTuple):
    """Data for a quantisation, see `fcos.export_detector`.

    Attributes:
        images: functions that return the images for the calibration, uint8 [3, h, w].
        evaluate_float: function that returns the AP on val of the detector in float32, 0 to 1.
        evaluate: function that returns the AP on val of an exported file.
        max_drop: largest accepted difference of the two.
    """

    images: Sequence[Callable[[], Tensor]]
    evaluate_float: Callable[[], float]
    evaluate: Callable[[Path], float]
    max_drop: float


def measure_float_ap(quantization: Quantization) -> float:
    """Return the AP on val in float32.

    Raises:
        ExportError: it is too small to judge a drop.
    """
    ap = quantization.evaluate_float()
    if not ap >= MIN_AP:  # it may be NaN
        raise ExportError(
            f"--precision int8: AP on val is {ap:.4f} in float32, and at least {MIN_AP:g} is needed to judge a drop;"
            " train the detector for longer, or give --data the data that it was trained for"
        )
    return ap


def judge(accuracy: Accuracy, *, path: Path) -> Accuracy:
    """Check the accuracy before and after a quantisation, and return it.

    Args:
        accuracy: AP before and after.
        path: the file, for messages.

    Raises:
        ExportError: AP drops by more than is accepted.
    """
    if not accuracy.drop <= accuracy.max_drop:
        raise ExportError(
            f"export: {path.name} is not written: AP on val drops by {accuracy.drop:.4f}, from {accuracy.float32:.4f}"
            f" in float32 to {accuracy.int8:.4f} in int8, and --max-drop is {accuracy.max_drop:g}; use --precision"
            " float16, or more training images in --data"
        )
    return accuracy


def quantize(model: Model, quantization: Quantization, fixed: FixedSizes, *, divisor: int) -> Model:
    """Return a model whose network computes in int8.

    Source: post-training quantisation of NNCF, which measures the ranges of activations.

    Args:
        model: model of OpenVINO with the inputs `images` and `sizes`.
        quantization: images for the calibration.
        fixed: sizes of the inputs that are fixed.
        divisor: number that divides the sides of padded images.

    Raises:
        ConfigError: NNCF is not installed, or an image is larger than the fixed size.
        DataError: an image cannot be read.
    """
    nncf = require("nncf")
    images, count = quantization.images, fixed.batch or 1

    def load(start: int) -> list[np.ndarray]:
        group = [images[(start + i) % len(images)]() for i in range(count)]
        return [tensor.numpy() for tensor in pad_batch(group, fixed, divisor=divisor)]

    starts = range(0, len(images), count)
    logging.getLogger("nncf").setLevel(logging.ERROR)  # nncf.set_log_level also changes handlers of other libraries
    with redirect_stdout(StringIO()):  # progress bars
        return nncf.quantize(
            model,
            nncf.Dataset(starts, load),
            preset=nncf.QuantizationPreset.MIXED,  # activations that no ReLU precedes have both signs
            subset_size=len(starts),
            ignored_scope=nncf.IgnoredScope(names=float_operations(model), validate=False),
        )


def float_operations(model: Model) -> list[str]:
    """Return the names of the operations that stay in float: all but the layers with weights.

    These are the normalisation of pixels, group normalisation, and everything after the last layers of a head: sigmoid,
    exponential, decoding, selection of candidates and non-maximum suppression.
    """
    kinds = _IN_INT8 | {"Constant", "Parameter", "Result"}
    return [op.get_friendly_name() for op in model.get_ordered_ops() if op.get_type_name() not in kinds]
