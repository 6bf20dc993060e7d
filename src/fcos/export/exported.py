"""Exported file as a detector for prediction and evaluation.

Shape letters: N images, H W image size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import RCNNConfig
from ..errors import ConfigError, DataError, WeightsError
from ..models.detector import DetectionModel, Pixels
from ..structures import Instances, Objects
from .metadata import Metadata, from_texts
from .outputs import to_instances
from .runtimes import Runtime, open_exported


def load_exported(path: Path) -> ExportedModel:
    """Load an exported file.

    Raises:
        ConfigError: the runtime is not installed.
        WeightsError: the file does not exist, cannot be read, or was not written by `fcos export`.
    """
    runtime = open_exported(path)
    metadata = from_texts(runtime.metadata, where=str(path))
    if metadata.content != "detections":
        option = "--raw" if metadata.content == "raw" else "--nms none"
        raise WeightsError(f"{path}: exported with {option}, so it returns no detections; export without this option")
    return ExportedModel(runtime, metadata)


class ExportedModel(DetectionModel):
    """Exported file with the interface of a detector. It can only detect.

    Args:
        runtime: the file in its runtime.
        metadata: its metadata.
    """

    compiled_parts = ()

    def __init__(self, runtime: Runtime, metadata: Metadata):
        model = metadata.config.model
        super().__init__(
            len(metadata.category_ids),
            box_convention=model.box_convention,
            default_threshold=model.default_threshold,
            loss_names=(),
            pixels=Pixels(),
        )
        self.class_parameters = {}
        self.runtime = runtime
        self.metadata = metadata

    def forward(
        self,
        images: Tensor,
        sizes: Tensor,
        targets: Sequence[Objects] | None = None,
        normalizers: Tensor | None = None,
    ) -> list[Instances]:
        """Return the detections of every image, see `DetectionModel.detect`.

        Raises:
            DataError: the images do not fit into the fixed size of the file.
            ConfigError: targets are given.
        """
        if targets is not None:
            raise _only_detects()
        batch, size = self.metadata.fixed
        if size is not None:
            images = _pad_to(images, size)
        step = batch or max(len(images), 1)
        results = []
        for start in range(0, len(images), step):
            some_images, some_sizes = images[start : start + step], sizes[start : start + step]
            missing = step - len(some_images)
            if missing > 0:  # the last batch of a file with a fixed one
                some_images = torch.cat([some_images, images.new_zeros(missing, *images.shape[1:])])
                some_sizes = torch.cat([some_sizes, sizes.new_ones(missing, 2)])
            results += to_instances(self.runtime(some_images, some_sizes), some_sizes)[: step - missing]
        model = self.metadata.config.model
        if isinstance(model, RCNNConfig) and model.mask.enabled:
            pasting = {"mask_margin": model.mask.margin, "mask_pasting": model.mask.pasting}
            results = [replace(instances, **pasting) for instances in results]
        return [instances.to(self.device) for instances in results]

    def loss_normalizers(self, targets: Sequence[Objects], size: tuple[int, int]) -> NoReturn:
        """Raise ConfigError, because the file only contains detection as a whole."""
        raise _only_detects()

    def candidates(self, images: Tensor, sizes: Tensor) -> NoReturn:
        """Raise ConfigError: test-time augmentation needs the boxes before suppression, which are inside the file."""
        raise _only_detects()

    def decode(self, outputs: list[Instances], sizes: Tensor) -> list[Instances]:
        """Return the detections themselves."""
        return outputs

    def suppress(self, candidates: Instances) -> Instances:
        """Return the detections themselves, which the file has selected."""
        return candidates


def _only_detects() -> ConfigError:
    return ConfigError(
        "exported files only detect: training and test-time augmentation (eval.flip, eval.scales) need the weights"
        " that were exported"
    )


def _pad_to(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Pad images [N, 3, H, W] to a (height, width)."""
    below, right = size[0] - images.shape[2], size[1] - images.shape[3]
    if min(below, right) < 0:
        raise DataError(
            f"an image of {images.shape[3]}x{images.shape[2]} pixels after resizing and padding does not fit into the"
            f" {size[1]}x{size[0]} pixels that the file accepts; set data.test_short_side and data.test_max_side to"
            " smaller values, or export without --size"
        )
    return F.pad(images, (0, right, 0, below))
