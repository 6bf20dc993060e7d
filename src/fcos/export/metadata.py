"""Metadata of exported files: everything that is needed to use them, as texts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..config import Config
from ..config.overrides import validate
from ..errors import WeightsError

VERSION = 1


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
        nms: whether the file selects the detections, see `graph.DetectionGraph`.
        fixed: sizes of the inputs that are fixed.
        licence: licence of the weights, see `Checkpoint`.
        weights_sha256: hash of the weights, see `hash_weights`.
    """

    config: Config
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    thresholds: Mapping[str, float] = field(default_factory=dict)
    nms: bool = True
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
            "output": _OUTPUT[self.nms].format(convention=self.config.model.box_convention),
            "class_names": json.dumps(self.class_names),
            "category_ids": json.dumps(self.category_ids),
            "thresholds": json.dumps(dict(self.thresholds)),
            "nms": json.dumps(self.nms),
            "fixed": json.dumps(self.fixed),
            "licence": self.licence,
            "weights_sha256": self.weights_sha256,
            "config": json.dumps(self.config.to_dict()),
            "versions": json.dumps({"fcos": __version__, "torch": torch.__version__}),
            "proof": json.dumps(proof),
        }

    def _describe_input(self) -> str:
        data = self.config.data
        return (
            "images: uint8 RGB [N, 3, H, W] without normalisation, padded at the right and the bottom to sides that"
            f" {data.size_divisor} divides; sizes: int64 [N, 2], (height, width) without the padding. The detector was"
            f" trained for images resized so that the short side has {data.detection_short_side} pixels,"
            f" or, if this is less, the long side {data.detection_max_side}."
        )


_OUTPUT = {
    True: "boxes [N, D, 4] XYXY in pixels of the images, {convention}, scores [N, D], labels [N, D], counts [N], best"
    " score first; boxes and scores are 0 and labels -1 in the padding",
    False: "candidates before non-maximum suppression: boxes [N, C, 4] XYXY in pixels of the images, {convention},"
    " scores [N, C], labels [N, C], valid [N, C]; boxes and scores are 0 and labels -1 if not valid",
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
        json.loads(texts["nms"]),
        FixedSizes(batch, None if size is None else (size[0], size[1])),
        texts["licence"],
        texts["weights_sha256"],
    )


def hash_weights(model: nn.Module) -> str:
    """Return the SHA-256 of the names, types, shapes and values of a state dict."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(_bytes_of(tensor))
    return digest.hexdigest()


def _bytes_of(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().view(-1).numpy().tobytes()
