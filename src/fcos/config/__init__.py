"""Config schema, its text formats, and overrides. Importing this package does not import torch."""

from .detector import DetectorConfig
from .detectors import FCOSConfig, RetinaNetConfig
from .rcnn import RCNNConfig, RPNConfig
from .schema import (
    Config,
    DataConfig,
    EvalConfig,
    SplitConfig,
    TrainConfig,
    UserPath,
    expand_user,
)

__all__ = [
    "Config",
    "DataConfig",
    "DetectorConfig",
    "EvalConfig",
    "FCOSConfig",
    "RCNNConfig",
    "RPNConfig",
    "RetinaNetConfig",
    "SplitConfig",
    "TrainConfig",
    "UserPath",
    "expand_user",
]
