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
_WRAPPINGS = ("state_dict", "model")


def is_backbone_file(weight: str) -> bool:
    """Return whether a value of MODEL.WEIGHT is a backbone: by its content if the file exists, else by its name."""
    if weight.startswith(_CATALOG) or weight.endswith(_CAFFE2_SUFFIX):
        return True
    path = expand_user(weight)
    if not weight or not os.path.isfile(path):  # False for paths that no system can open, too
        return bool(_FILE_NAME.search(weight))
    from ...checkpoint import read  # slow import

    try:
        return _has_backbone_names(read(path))
    except WeightsError:  # reported when the weights are loaded
        return False


def _has_backbone_names(content: Any) -> bool:
    from ...models.backbones.renames import BACKBONE_TENSORS, without_module

    if not isinstance(content, Mapping):
        return False
    state = next((content[key] for key in _WRAPPINGS if isinstance(content.get(key), Mapping)), content)
    names = without_module({str(name): tensor for name, tensor in state.items()})
    return any(name in names for name in BACKBONE_TENSORS)
