"""The config: its schema, its text forms, and overrides. Importing it does not import torch."""

from .schema import (
    Config,
    DataConfig,
    DetectorConfig,
    EvalConfig,
    FCOSConfig,
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
    "SplitConfig",
    "TrainConfig",
    "UserPath",
    "expand_user",
]
