"""Recognition of backbone weights in MODEL.WEIGHT, which the original uses for backbones and complete detectors."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from ...config import expand_user
from ...errors import WeightsError

_CATALOG = "catalog://"
_CAFFE2_SUFFIX = ".pkl"
_FILE_NAME = re.compile(r"(wide_)?(resnet|resnext|mobilenet_v2)\w*-[0-9a-f]{7,}\.pth$")
"""Names that torchvision gives to its ImageNet weights, also used by the original's MobileNetV2."""
_DETECTOR_NAME = re.compile(r"catalog://Caffe2Detectron/.*|.*/model_final\.pkl")
"""Names of Detectron's complete detectors."""
_WRAPPINGS = ("state_dict", "model")


def is_backbone_file(weight: str, detector: str) -> bool:
    """Return whether a value of MODEL.WEIGHT is a backbone: by its content if the file exists, else by its name.

    Only the backbone is used of a Detectron file with another detector, as the original does for FCOS.

    Args:
        weight: name, address or path.
        detector: `model.name` of the config.
    """
    path = expand_user(weight)
    is_file = bool(weight) and os.path.isfile(path)  # False for paths that no system can open, too
    is_caffe2 = weight.startswith(_CATALOG) or weight.endswith(_CAFFE2_SUFFIX)
    if is_caffe2 and not is_file:
        is_retinanet = "retinanet" in weight.lower()
        return not _DETECTOR_NAME.fullmatch(weight) or not _fits(detector, is_retinanet=is_retinanet)
    if not is_file:
        return bool(_FILE_NAME.search(weight))
    from ...checkpoint import is_zip, read  # slow imports
    from ...models.backbones.caffe2 import load_pickle

    try:
        if is_caffe2 and not is_zip(path):
            return _is_of_other_detector(load_pickle(path), detector)
        return _has_backbone_names(read(path))
    except WeightsError:  # reported when the weights are loaded
        return is_caffe2


def _fits(detector: str, *, is_retinanet: bool) -> bool:
    """Return whether the weights of a detector of Detectron are for the detector of a config."""
    return detector == "retinanet" if is_retinanet else detector in ("rpn", "rcnn")


def _is_of_other_detector(content: Any, detector: str) -> bool:
    from .detectron import is_detector, is_retinanet

    blobs = content.get("blobs", content) if isinstance(content, Mapping) else ()
    names = [name for name in blobs if isinstance(name, str)] if isinstance(blobs, Mapping) else []
    return not is_detector(names) or not _fits(detector, is_retinanet=is_retinanet(names))


def _has_backbone_names(content: Any) -> bool:
    from ...models.backbones.renames import BACKBONE_TENSORS, without_module

    if not isinstance(content, Mapping):
        return False
    state = next((content[key] for key in _WRAPPINGS if isinstance(content.get(key), Mapping)), content)
    names = without_module({str(name): tensor for name, tensor in state.items()})
    return any(name in names for name in BACKBONE_TENSORS)
