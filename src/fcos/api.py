"""The Python counterpart of the command line: `load`, `train`, `evaluate`.

Options are given as on the command line, as `key=value` texts: `fcos.train("fcos_mnv2_small", "data=cells")`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .config import Config
from .config_text import apply_overrides, load_config, recipe_names, validate
from .errors import ConfigError, DataError, WeightsError

if TYPE_CHECKING:
    from .evaluation.loop import Evaluation
    from .inference.predictor import Detector
    from .models import FCOS
    from .training.checkpoint import Checkpoint
    from .training.loop import TrainResult


def load(source: str | Path, *overrides: str, device: str | None = None, num_classes: int = 80) -> Detector:
    """Load a detector that is ready to `predict`.

    Args:
        source: a weights file (runs/NAME/weights/best.pt); or a recipe or YAML file, for a detector whose head is
            untrained (its backbone's weights are fetched unless `model.backbone.weights=null`).
        overrides: `key=value`, e.g. `data.test_short_side=600`, `model.nms_threshold=0.5`.
        device: `auto` (CUDA, else MPS, else CPU) or a torch device; None: that of the config, an override `device=`
            among them.
        num_classes: of an untrained detector whose config does not say it.

    Raises:
        WeightsError: no such file, or not weights of this project.
        ConfigError: a wrong override or device.
    """
    from .distributed import resolve_device
    from .inference.predictor import Detector
    from .models import build_model

    if _is_recipe(source):
        config = load_config(source, overrides)
        place = resolve_device(device or config.device)
        model = build_model(config.model, num_classes=config.model.num_classes or num_classes)
        return Detector(model.to(place), config)
    model, checkpoint, config = _restore(source, overrides)
    place = resolve_device(device or config.device)
    return Detector(model.to(place), config, class_names=checkpoint.class_names, category_ids=checkpoint.category_ids)


def train(recipe: str | Path | Config, *overrides: str) -> TrainResult:
    """Train a detector.

    Args:
        recipe: a recipe's name, a YAML file, or a whole config.
        overrides: `key=value`, e.g. `data=cells`, `train.max_minutes=10`.

    Returns:
        The folder of the run and the metrics of its best weights.

    Raises:
        ConfigError: a wrong option.
        DataError: data that cannot be used.
    """
    if isinstance(recipe, Config):
        config, name = _override(recipe.to_dict(), overrides, where="config"), "fcos"
    else:
        config, name = load_config(recipe, overrides), Path(recipe).stem
    from .training.loop import train as run  # after the config: a mistake in it is told at once

    return run(config, name=name)


def evaluate(
    weights: str | Path,
    *overrides: str,
    split: str = "val",
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Compute the COCO figures of a weights file on a split.

    Args:
        weights: a weights file.
        overrides: `key=value`; `data=DIR` replaces the data that the weights were trained on; `device=cpu`.
        split: `train`, `val` or `test`.
        progress: called with the number of images done and the number of all.

    Raises:
        WeightsError: no such file, or not weights of this project.
        DataError: no such split, data that cannot be used, or class names that the weights do not know.
        ConfigError: a wrong override.
    """
    from .data import load_annotations
    from .distributed import resolve_device
    from .evaluation.loop import evaluate as run

    if split not in ("train", "val", "test"):
        raise ConfigError(f"split: expected train, val or test, found {split!r}")
    model, checkpoint, config = _restore(weights, overrides)
    device = resolve_device(config.device)
    annotations = load_annotations(config.data, split, class_names=checkpoint.class_names)
    if annotations is None:
        raise DataError(f"data: {config.data.root} has no split {split!r}; give another one with --split")
    return run(model.to(device), annotations, config, device=device, progress=progress)


def _is_recipe(source: str | Path) -> bool:
    return Path(source).suffix in (".yaml", ".yml") or (str(source) in recipe_names() and not Path(source).exists())


def _restore(weights: str | Path, overrides: Sequence[str]) -> tuple[FCOS, Checkpoint, Config]:
    """The detector of a weights file, on the CPU, with the config it was trained with as far as that still applies."""
    from .models import build_model
    from .training.checkpoint import fill, load_checkpoint

    if not Path(weights).suffix and not Path(weights).exists():
        raise WeightsError(
            f"{weights}: no such weights file, and no recipe either; recipes: {', '.join(recipe_names())}"
        )
    checkpoint = load_checkpoint(weights)
    tree: dict[str, Any] = {**checkpoint.config, "device": "auto", "output_dir": None}
    keys = [override.partition("=")[0] for override in overrides]
    if any(key.split(".")[:2] in (["data"], *(["data", place] for place in _DATA_PLACES)) for key in keys):
        tree["data"] = {key: value for key, value in tree["data"].items() if key not in _DATA_PLACES}
    config = _override(tree, overrides, where=f"{weights}, config")
    model = build_model(config.model, num_classes=len(checkpoint.class_names), pretrained=False)
    fill(model, checkpoint.model, where=str(weights))
    return model.eval(), checkpoint, config


_DATA_PLACES = ("root", "format", "train", "val", "test", "classes")
"""The options of `data` that say where the data is, rather than how it is read: new data replaces all of them."""


def _override(tree: dict[str, Any], overrides: Sequence[str], *, where: str) -> Config:
    apply_overrides(tree, overrides)
    return validate(tree, where=where)
