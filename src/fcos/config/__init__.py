"""Config schema, its text formats, and overrides. Importing this package does not import torch."""

from .detectors import DetectorConfig, FCOSConfig, RetinaNetConfig
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
    "RetinaNetConfig",
    "SplitConfig",
    "TrainConfig",
    "UserPath",
    "expand_user",
]
