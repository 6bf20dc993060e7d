"""One way to run a detector (batch size, precision, compilation), timed by part from image files to detections."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..choices import Precision
from ..data.images import load_rgb
from ..data.loader import pad_views
from ..data.opening import read_image
from ..export.runtimes import is_exported
from ..inference.detect import detect_on_originals
from ..inference.predictor import Detector
from ..inference.resized import group_by_shape
from ..inference.selection import Selection
from ..models import DetectionModel
from ..models.inference_copy import InferenceCopy, require_compiler
from ..precision import autocast
from ..structures import Instances

PARTS: tuple[str, ...] = ("loading", "decoding", "resizing", "transfer", "model", "post-processing")
"""Parts of detection, in order: read the files; decode them; resize and pad the images; copy them to the device; run
the network; select the detections and scale them to the original images. `model` of an exported file includes the
selection, that of a two-stage detector its proposals, and that of a replayed CUDA graph the candidates."""
_RUNTIMES = {
    ".onnx": ("ONNX Runtime", "onnxruntime"),
    ".xml": ("OpenVINO", "openvino"),
    ".pt2": ("PyTorch (exported)", "torch"),
}
"""Name and package of the runtime of an exported file, by its suffix."""


class Variant(NamedTuple):
    """Way to run a detector.

    Attributes:
        weights: name of the weights, recipe or exported file.
        runtime: PyTorch, or the runtime of an exported file, and the version.
        batch: number of images at a time.
        precision: precision of the network; `exported` for an exported file, which determines it.
        compiled: whether the network is compiled with torch.compile.
    """

    weights: str
    runtime: str
    batch: int
    precision: str
    compiled: bool


class Stopwatch:
    """Clock that adds all time to the part that was entered last, so that the parts sum up to the whole.

    Args:
        device: device that every change of part waits for.
    """

    def __init__(self, device: torch.device):
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._device, self._part, self._start = device, "", 0.0

    def enter(self, part: str) -> None:
        """Begin a part, which ends the one before; an empty name only ends it."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        if self._part:
            self.seconds[self._part] += now - self._start
        self._part, self._start = part, now


@dataclass(frozen=True, eq=False)
class Pipeline:
    """Detector that is run in one way.

    Attributes:
        variant: description.
        detector: detector, whose config has the image sizes.
        model: its network, as `Detector.predict` runs it, compiled for compiled variants.
        precision: precision of the network.
    """

    variant: Variant
    detector: Detector
    model: DetectionModel
    precision: Precision

    def run(self, files: Sequence[Path]) -> tuple[dict[str, float], list[Instances]]:
        """Detect objects in a batch of image files, as `Detector.predict` does.

        Returns:
            The seconds of every part, and the detections of every image that reach the score thresholds.
        """
        config, thresholds, device = self.detector.config, self.detector.thresholds, self.model.device
        watch, results = Stopwatch(device), dict[int, Instances]()
        model = _timed(self.model, watch)
        limit = self.model.postprocess.max_detections if self.model.postprocess else 0

        def select(images: list[Instances]) -> list[Instances]:
            return [Selection().select(image, thresholds, limit=limit).detections for image in images]

        decode = partial(load_rgb, bit_depth=config.data.bit_depth)
        resize = self.detector.resize
        watch.enter("loading")
        contents = [file.read_bytes() for file in files]
        watch.enter("decoding")
        pictures = [read_image(BytesIO(content), decode, max_pixels=config.data.max_pixels) for content in contents]
        watch.enter("resizing")
        resized = [resize(picture) for picture in pictures]
        for members in group_by_shape(resized):
            watch.enter("resizing")
            images = [resized[i].views for i in members]
            padded = pad_views(images, resize.transforms, size_divisor=resize.size_divisor)
            watch.enter("transfer")
            views = [view.to(device) for view in padded]
            with autocast(device, self.precision):
                found = detect_on_originals(model, views, [resized[i].size for i in members], select=select)
            results |= zip(members, found, strict=True)
        watch.enter("")
        return watch.seconds, [results[i] for i in range(len(files))]


def _timed(model: DetectionModel, watch: Stopwatch) -> DetectionModel:
    """Return a copy of a detector, with the same modules, that enters the parts `model` and `post-processing`."""
    timed = copy.copy(model)

    def run(images: Tensor, sizes: Tensor) -> tuple[Any, list[Instances]]:
        watch.enter("model")
        found = type(model).outputs_and_candidates(timed, images, sizes)
        watch.enter("post-processing")
        return found

    def decode(outputs: Any, sizes: Tensor) -> list[Instances]:
        watch.enter("post-processing")
        return type(model).decode(timed, outputs, sizes)

    timed.outputs_and_candidates, timed.decode = run, decode
    return timed


def build_pipelines(
    name: str, detector: Detector, *, batches: Sequence[int], precisions: Sequence[Precision], compiled: bool
) -> list[Pipeline]:
    """Build the variants of a detector: every batch size with every precision, and if wanted also compiled.

    Args:
        name: name of the weights, recipe or exported file.
        detector: the detector. Exported files have their own precision and are compiled already, so that only the batch
            size varies.
        batches: batch sizes.
        precisions: precisions of the network.
        compiled: whether to add compiled variants.

    Raises:
        ConfigError: there is no compiler.
    """
    if is_exported(name):
        runtime, package = _RUNTIMES[Path(name).suffix]
        runtime = f"{runtime} {version(package)}"
        variants = [Variant(name, runtime, batch, "exported", False) for batch in batches]
        return [Pipeline(variant, detector, detector.model, "float32") for variant in variants]
    if compiled:
        require_compiler(detector.device, option="--compile")
    pipelines = []
    for is_compiled in (False, True) if compiled else (False,):
        for precision in precisions:
            with autocast(detector.device, precision):
                model = InferenceCopy(compiled=is_compiled)(detector.model)
            for batch in batches:
                variant = Variant(name, f"PyTorch {version('torch')}", batch, precision, is_compiled)
                pipelines.append(Pipeline(variant, detector, model, precision))
    return pipelines
