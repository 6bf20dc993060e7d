"""FCOS: train, evaluate and run the fully convolutional one-stage object detector.

The names below are the public API. They are imported on first use, so that `import fcos` stays fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import convert, evaluate, load, report, train
    from .api_export import export_detector
    from .api_inspect import benchmark, explain
    from .config import Config
    from .errors import ConfigError, DataError, ExportError, FCOSError, TrainingError, WeightsError
    from .evaluation.evaluate import Evaluation
    from .inference.draw import draw
    from .inference.predictor import Detector
    from .recipes import load_config
    from .structures import Instances

__all__ = [
    "Config",
    "ConfigError",
    "DataError",
    "Detector",
    "Evaluation",
    "ExportError",
    "FCOSError",
    "Instances",
    "TrainingError",
    "WeightsError",
    "benchmark",
    "convert",
    "draw",
    "evaluate",
    "explain",
    "export_detector",
    "load",
    "load_config",
    "report",
    "train",
]

_HOME = {
    **dict.fromkeys(("convert", "evaluate", "load", "report", "train"), "api"),
    "export_detector": "api_export",
    **dict.fromkeys(("benchmark", "explain"), "api_inspect"),
    **dict.fromkeys(
        ("ConfigError", "DataError", "ExportError", "FCOSError", "TrainingError", "WeightsError"), "errors"
    ),
    "Config": "config",
    "load_config": "recipes",
    "Evaluation": "evaluation.evaluate",
    "draw": "inference.draw",
    "Detector": "inference.predictor",
    "Instances": "structures",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("fcos-vision")
    if name == "FCOS":  # the class of the original's package; an AttributeError would lose this message in an import
        raise ImportError(
            "fcos has no class FCOS; load a detector with fcos.load(WEIGHTS), for example"
            " fcos.load('torchvision/fcos_resnet50_fpn'), and call its method predict(IMAGE)"
        )
    if name not in _HOME:
        raise AttributeError(f"module 'fcos' has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
