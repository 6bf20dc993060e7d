"""The config: its schema, its text forms, and overrides. Importing it does not import torch."""

from .schema import Config, DataConfig, EvalConfig, FCOSConfig, SplitConfig, TrainConfig, UserPath, expand_user

__all__ = ["Config", "DataConfig", "EvalConfig", "FCOSConfig", "SplitConfig", "TrainConfig", "UserPath", "expand_user"]
