"""Metadata of exported files: everything that is needed to use them, as texts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ..choices import ExportContent, ExportPrecision
from ..config import Config, RCNNConfig
from ..config.overrides import validate
from ..errors import WeightsError
from ..keypoints import UNNAMED, KeypointLayout

VERSION = 2


class FixedSizes(NamedTuple):
    """Sizes of the inputs that an exported file accepts; None: any.

    Attributes:
        batch: number of images.
        size: (height, width) of the padded images.
    """

    batch: int | None = None
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Metadata:
    """Description of an exported detector.

    Attributes:
        config: config that the detector was trained with.
        class_names: K names; empty if unknown.
        category_ids: K category ids of the classes in the data set.
        thresholds: score thresholds by class name, see `Checkpoint`.
        keypoint_layout: names, skeleton and flip pairs of the keypoints, see `Checkpoint`.
        content: outputs of the file, see `graph.DetectionGraph`.
        precision: precision of the network, see `graph.lower_precision` and `quantization.quantize`.
        fixed: sizes of the inputs that are fixed.
        licence: licence of the weights, see `Checkpoint`.
        weights_sha256: hash of the weights, see `hash_weights`.
    """

    config: Config
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    thresholds: Mapping[str, float] = field(default_factory=dict)
    keypoint_layout: KeypointLayout = UNNAMED
    content: ExportContent = "detections"
    precision: ExportPrecision = "float32"
    fixed: FixedSizes = field(default_factory=FixedSizes)
    licence: str = ""
    weights_sha256: str = ""

    def to_texts(self, proof: Mapping[str, Any]) -> dict[str, str]:
        """Return the entries of a file; values that are not texts are JSON.

        Args:
            proof: result of the proof, see `proof.Proof`.
        """
        from .. import __version__

        return {
            "fcos_export": str(VERSION),
            "input": self._describe_input(),
            "output": self._describe_output(),
            "class_names": json.dumps(self.class_names),
            "category_ids": json.dumps(self.category_ids),
            "thresholds": json.dumps(dict(self.thresholds)),
            "keypoint_layout": json.dumps(self.keypoint_layout),
            "content": self.content,
            "precision": self.precision,
            "fixed": json.dumps(self.fixed),
            "licence": self.licence,
            "weights_sha256": self.weights_sha256,
            "config": json.dumps(self.config.to_dict()),
            "versions": json.dumps({"fcos": __version__, "torch": torch.__version__}),
            "proof": json.dumps(proof),
        }

    def _describe_input(self) -> str:
        data, size = self.config.data, self.fixed.size
        fixed = "" if size is None else f" All images are padded to {size[0]}x{size[1]}, which the network sees."
        return (
            "images: uint8 RGB [N, 3, H, W] without normalisation, padded at the right and the bottom to sides that"
            f" {data.size_divisor} divides; sizes: int64 [N, 2], (height, width) without the padding. The detector was"
            f" trained for images resized so that the short side has {data.detection_short_side} pixels,"
            f" or, if this is less, the long side {data.detection_max_side}.{fixed}"
        )

    def _describe_output(self) -> str:
        model = self.config.model
        text = _OUTPUT[self.content].format(convention=model.box_convention)
        if not isinstance(model, RCNNConfig):
            return text
        if model.mask.enabled:
            text += "; masks [N, D, G, G]: probabilities on a grid that spans the box"
        if model.keypoints.enabled:
            text += "; keypoints [N, D, J, 3]: x, y in pixels of the images, and the logit"
        return text


_OUTPUT: dict[ExportContent, str] = {
    "detections": "boxes [N, D, 4] XYXY in pixels of the images, {convention}, scores [N, D], labels [N, D], counts"
    " [N], best score first; boxes and scores are 0 and labels -1 in the padding",
    "candidates": "candidates before non-maximum suppression: boxes [N, C, 4] XYXY in pixels of the images,"
    " {convention}, scores [N, C], labels [N, C], valid [N, C]; boxes and scores are 0 and labels -1 if not valid",
    "raw": "outputs of the head for the levels 0, 1, ... in the order of `model.strides` in the config",
}


def from_texts(texts: Mapping[str, str], *, where: str) -> Metadata:
    """Return the metadata of a file.

    Args:
        texts: result of `Metadata.to_texts`.
        where: the file, for messages.

    Raises:
        WeightsError: the file has no or other metadata.
        ConfigError: its config is not valid.
    """
    if texts.get("fcos_export") != str(VERSION):
        raise WeightsError(f"{where}: not a file of this version of fcos export; export the detector again")
    batch, size = json.loads(texts["fixed"])
    return Metadata(
        validate({**json.loads(texts["config"]), "output_dir": None, "device": "auto"}, where=f"{where}, config"),
        tuple(json.loads(texts["class_names"])),
        tuple(json.loads(texts["category_ids"])),
        json.loads(texts["thresholds"]),
        _to_layout(*json.loads(texts["keypoint_layout"])),
        cast("ExportContent", texts["content"]),
        cast("ExportPrecision", texts["precision"]),
        FixedSizes(batch, None if size is None else (size[0], size[1])),
        texts["licence"],
        texts["weights_sha256"],
    )


def _to_layout(names: list[str], skeleton: list[list[int]], pairs: list[list[int]] | None) -> KeypointLayout:
    lines, exchanged = (None if rows is None else tuple((a, b) for a, b in rows) for rows in (skeleton, pairs))
    return KeypointLayout(tuple(names), lines or (), exchanged)


def hash_weights(model: nn.Module) -> str:
    """Return the SHA-256 of the names, types, shapes and values of a state dict."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(_bytes_of(tensor))
    return digest.hexdigest()


def _bytes_of(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().view(-1).numpy().tobytes()
