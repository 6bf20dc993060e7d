"""Python counterpart of the command line: `load`, `train`, `evaluate`, `report`, `convert`.

Options are `key=value` strings, as on the command line: `fcos.train("fcos_mnv2_small", "data=cells")`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .allocator import keep_freed_memory
from .config import Config, DataConfig
from .config.arguments import check_overrides, check_source
from .config.overrides import apply_overrides, validate
from .errors import ConfigError, DataError, WeightsError
from .formatting import printable, quote
from .limits import require_open_files
from .output import drop_unwritable_output
from .recipes import is_recipe, load_config, warn_of_unused_details

if TYPE_CHECKING:
    import torch

    from .data.dataset import Annotations
    from .data.source import Split
    from .evaluation.evaluate import Evaluation
    from .inference.predictor import Detector
    from .interop import Form
    from .restore import RestoredDetector
    from .training.loop import TrainResult

log = logging.getLogger(__name__)

_NUM_COCO_CLASSES = 80
_TRAIN_FIRST = "train it with `fcos train`, or set train.weights=PATH of trained weights"


def load(
    source: str | Path,
    *overrides: str,
    config: str | Path | Config | None = None,
    device: str | None = None,
) -> Detector:
    """Load a detector for inference, with the per-class score thresholds from its training, if any.

    Args:
        source: weights, a recipe or a YAML file. Weights are a run folder (its best weights, or the latest if there are
            none yet), or the path or http(s) URL of a file such as runs/NAME/weights/best.pt or of a checkpoint of the
            original FCOS, AdelaiDet, detectron2, mmdetection or torchvision; or a file of `export`; or the name
            `torchvision/fcos_resnet50_fpn` (COCO; downloaded once). A recipe or YAML file loads the weights in its
            `train.weights`. If this is null, `load` warns and returns an untrained detector, which `Detector.predict`
            refuses to run: its head is random, its backbone has `model.backbone.weights`, and it has 80 classes unless
            `model.num_classes` is set.
        overrides: `key=value`, e.g. `data.test_short_side=600`, `model.nms_threshold=0.5`; `data.classes=[cat, dog]`
            names the classes of a file that contains no class names. Other options of `model` describe weights of
            other projects; for weights of this project they must have the values of the training.
        config: recipe, YAML file or `Config` for all options that the weights do not determine. Most files contain a
            config, which determines all of `model` except options that only select detections (thresholds and limits).
            Files of the original FCOS contain none and require this argument. None: the config in the file.
        device: `auto` (CUDA, else MPS, else CPU) or a torch device; None: the device of the config, including an
            override `device=`.

    Raises:
        WeightsError: the file does not exist or does not contain weights of a known project.
        ConfigError: an override or the device is wrong, or an override has no effect on predictions or contradicts the
            weights; a config is missing, or was given in addition to a recipe.
    """
    from .interop.fcos_core.config import split_pairs
    from .restore import restore_detector

    source, options = check_source(source, name="source"), check_overrides(overrides)
    if is_recipe(source):
        if config is not None:
            raise ConfigError(
                f"config: not allowed, because {source} is itself a config; give weights, or remove config"
            )
        config = load_config(source, options)
        if not config.train.weights:
            log.warning("%s: the detector is untrained: its head has random weights (%s)", source, _TRAIN_FIRST)
            return _build_untrained(config, device)
        source = config.train.weights
        options = [text for text in split_pairs(options)[1] if not text.startswith("train.weights=")]
    return to_detector(restore_detector(source, options, config, use="predictions"), device)


def to_detector(restored: RestoredDetector, device: str | None = None) -> Detector:
    """Build the detector of restored weights; `device` None: that of the config."""
    from .inference.predictor import Detector

    target_device = _find_device(restored.config, device)
    keep_freed_memory(target_device)
    ids = restored.checkpoint.category_ids
    return Detector(
        restored.model.to(target_device),
        restored.config,
        class_names=restored.checkpoint.class_names or [f"class {i}" for i in ids],
        category_ids=ids,
        thresholds=restored.thresholds,
        keypoint_layout=restored.checkpoint.keypoint_layout,
        licence=restored.checkpoint.licence,
    )


def _find_device(config: Config, device: str | None = None) -> torch.device:
    """Return a device, None: that of the config, or raise ConfigError if it does not exist or cannot compile."""
    from .distributed import resolve_device

    found = resolve_device(config.device if device is None else device)
    if config.eval.compile:
        from .models.inference_copy import require_compiler

        require_compiler(found, option="eval.compile")
    return found


def _build_untrained(config: Config, device: str | None) -> Detector:
    import torch

    from .inference.predictor import Detector
    from .models import build_model

    target_device = _find_device(config, device)
    keep_freed_memory(target_device)
    model = build_model(config.model, num_classes=config.model.num_classes or _NUM_COCO_CLASSES)
    return Detector(model.to(target_device).to(memory_format=torch.channels_last), config, is_trained=False)


def require_trained(source: str | Path, *overrides: str) -> None:
    """Check that `load` would load a trained detector, without building it.

    Raises:
        WeightsError: `source` is a recipe or YAML file without weights.
        ConfigError: an override is wrong.
    """
    if is_recipe(source) and not load_config(source, overrides).train.weights:
        raise WeightsError(f"{source}: a recipe or config without trained weights; {_TRAIN_FIRST}")


@drop_unwritable_output()
def train(recipe: str | Path | Config, *overrides: str) -> TrainResult:
    """Train a detector.

    Args:
        recipe: name of a recipe, path of a YAML file, or a complete config.
        overrides: `key=value`, e.g. `data=cells`, `train.max_minutes=10`.

    Returns:
        The run folder and the metrics of the best weights.

    Raises:
        ConfigError: an option is wrong.
        DataError: the data cannot be used.
        TrainingError: the training cannot continue. With `train.devices`, also if a process was killed or failed for
            any other reason, which it printed to stderr.
    """
    if isinstance(recipe, Config):
        tree = recipe.to_dict()
        apply_overrides(tree, check_overrides(overrides))
        config, name = validate(tree, where="config"), "fcos"
    else:
        recipe = check_source(recipe, name="recipe")
        config, name = load_config(recipe, overrides), Path(recipe).stem
    from .data.workers import limit_workers  # slow imports: config errors come first
    from .training.folder import with_current_folder
    from .training.launch import launch, processes_to_start
    from .training.loop import train as run

    if not isinstance(recipe, Config) and not any(text.startswith("output_dir=") for text in overrides):
        config = with_current_folder(config, recipe)

    if config.train.resume and not any(text.startswith(("data=", "data.root=", "data.train.")) for text in overrides):
        _check_stored_paths(config.data, "train")
    processes = processes_to_start(config)
    require_open_files(limit_workers(config.data.workers, processes=processes if processes > 1 else None))
    if processes > 1:
        return launch(config, name, processes)
    warn_of_unused_details(config)  # not before `launch`, whose processes warn
    result = run(config, name=name)
    _write_report(result)
    return result


def _write_report(result: TrainResult) -> None:
    """Write the report of a finished run. A failure only causes a warning, because the run itself is saved."""
    from .distributed import rank
    from .reporting.record import Splits
    from .reporting.report import write_report

    if rank() != 0:
        return
    try:
        data = None if result.train_data is None else Splits(result.train_data, result.val_data)
        page = write_report(result.run, data=data)
    except Exception as error:
        log.warning("warning: no report of the run: %s: %s", type(error).__name__, error)
    else:
        print(f"report: {printable(str(page))}")


def evaluate(
    weights: str | Path,
    *overrides: str,
    config: str | Path | Config | None = None,
    split: str = "val",
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Compute the COCO metrics of a weights file on a split. Under torchrun the images are divided among processes.

    Args:
        weights: weights file or name, see `load`.
        overrides: `key=value`, e.g. `device=cpu`; `data=DIR` replaces the data that the weights were trained on.
        config: config of weights that contain none, see `load`.
        split: `train`, `val` or `test`.
        progress: callback, called with the number of finished images and the total.

    Raises:
        WeightsError: the file does not exist or does not contain weights of a known project.
        DataError: the split does not exist, the data cannot be used, or its classes are not those of the weights.
        ConfigError: an override is wrong, has no effect on an evaluation or contradicts the weights, or a config is
            missing.
    """
    from .data.workers import limit_workers
    from .evaluation.evaluate import evaluate as run
    from .evaluation.evaluate import warn_of_crowded_images
    from .restore import restore_detector
    from .training.elastic import join_processes

    if split not in ("train", "val", "test"):
        raise ConfigError(f"split: expected train, val or test, found {quote(split)}")
    restored = restore_detector(weights, overrides, config, use="an evaluation")
    resolved, device = restored.config, _find_device(restored.config)
    keep_freed_memory(device)
    warn_of_unused_details(resolved, overrides)
    if not any(text.startswith(("data=", "data.root=", f"data.{split}.")) for text in overrides):
        _check_stored_paths(resolved.data, split)
    annotations = load_split(restored, split, where=str(weights))
    _note_missing_metrics(resolved, annotations, split)
    require_open_files(limit_workers(resolved.data.workers))
    join_processes(device)
    warn_of_crowded_images(annotations, resolved)
    model, compiled = restored.model.to(device), resolved.eval.compile
    evaluation = run(model, annotations, resolved, device=device, compiled=compiled, progress=progress)
    return replace(evaluation, changed_options=restored.changed_options)


def load_split(restored: RestoredDetector, split: Split, *, where: str) -> Annotations:
    """Read a split with the classes of the weights, or raise DataError if it does not exist or has other classes.

    It may lack masks and keypoints, although the detector predicts them.
    """
    from .data import load_annotations
    from .data.layouts import SPLITS
    from .data.shape_checks import MissingShapesError
    from .data.splits import has_split
    from .evaluation.evaluate import check_keypoints

    checkpoint, data = restored.checkpoint, restored.config.data
    names, ids = checkpoint.class_names or None, checkpoint.category_ids
    one_class = restored.config.model.is_class_agnostic
    try:
        annotations = load_annotations(
            data, split, class_names=names, category_ids=ids if names else None, one_class=one_class
        )
    except MissingShapesError as error:
        if not getattr(data, error.option):  # data.boxes=masks needs them
            raise
        without = data.model_copy(update={error.option: False})
        config = restored.config.model_copy(update={"data": without})
        return load_split(restored._replace(config=config), split, where=where)
    if annotations is None:
        existing = [name for name in SPLITS if has_split(data, name)]
        hint = f"choose another one with --split ({', '.join(existing)})" if existing else "it has no other splits"
        fraction = checkpoint.config.get("data", {}).get("val_fraction")
        if split == "val" and "train" in existing and isinstance(fraction, float):
            hint = f"add data.val_fraction={fraction:g}, which the training used, or {hint}"
        raise DataError(f"data: {data.root or 'the data set of this config'} has no split {split!r}; {hint}")
    check_keypoints(restored.config, annotations, checkpoint.keypoint_layout.names)
    # Unnamed classes are matched to those of the data: torchvision's by category id, the original's by order.
    data_ids = annotations.category_ids
    if not names and (data_ids != ids if checkpoint.project == "torchvision" else len(data_ids) != len(ids)):
        data_ids_text, weights_ids_text = (", ".join(map(str, values)) for values in (data_ids, ids))
        raise DataError(
            f"data: the classes have the ids {data_ids_text:.80}, but {where} has {weights_ids_text:.80} and no class"
            " names; name its classes with data.classes=[NAME, ...]"
        )
    return annotations


def _note_missing_metrics(config: Config, annotations: Annotations, split: Split) -> None:
    """Warn of predicted masks and keypoints that cannot be evaluated, because they were not found or not read."""
    predicted = {"masks": config.model.predicts_masks, "keypoints": config.model.num_predicted_keypoints > 0}
    for name in (name for name, is_predicted in predicted.items() if is_predicted):
        if getattr(annotations, name) is None:
            reason = f"the {split} split has no {name}" if getattr(config.data, name) else f"data.{name}=false"
            log.warning("%s, so the metrics of %s are not computed", reason, name)


def _check_stored_paths(data: DataConfig, split: str) -> None:
    """Raise an error if a path of the data in the config of the training does not exist here."""
    paths = [data.root, *(path for data_set in getattr(data, split).data_sets for path in data_set)]
    missing = next((path for path in paths if path is not None and not path.exists()), None)
    if missing is not None:
        relative = "" if missing.is_absolute() else ", relative to the folder in which it was started"
        raise DataError(
            f"data: {missing} does not exist. This is the path in the config of the training{relative}; give the"
            " current location of the data with data=DIR"
        )


def report(run: str | Path, *overrides: str, progress: Callable[[int, int], None] | None = None) -> Path:
    """Write `report.html` into a run folder: curves, metrics, errors, images and config on one page.

    `train` writes this page at the end of a run. The validation detections are those of the best evaluation; if they
    are missing, weights/best.pt is evaluated again.

    Args:
        run: run folder; the run may be unfinished.
        overrides: `key=value`. Current location of the data: `data=DIR` (short for `data.root`), or `data.train...` and
            `data.val...`. Options for reading it: `data.format`, `data.on_error`. Options of a new evaluation:
            `data.workers`, `eval.batch_size`, `device`. `model.backbone.name` with the value of the run allows it to
            execute a user-defined backbone.
        progress: callback of a new evaluation, see `evaluate`.

    Returns:
        Path of the file.

    Raises:
        ConfigError: the folder is not a run, its config has another version, or an override is wrong or has no effect.
        DataError: the data in an override cannot be read or is not that of the run.
        OSError: the disk is full or not writable.
    """
    from .distributed import resolve_device
    from .evaluation.evaluate import evaluate as run_evaluation
    from .reporting.report import write_report
    from .restore import restore_detector

    def measure(weights: Path, val: Annotations) -> Evaluation:
        restored = restore_detector(weights, overrides, None, use="an evaluation")
        device = resolve_device(restored.config.device)
        keep_freed_memory(device)
        return run_evaluation(restored.model.to(device), val, restored.config, device=device, progress=progress)

    run = check_source(run, name="run")
    return write_report(Path(run), check_overrides(overrides), evaluate=measure)


def convert(
    weights: str | Path, out: str | Path, *overrides: str, to: Form = "fcos", config: str | Path | Config | None = None
) -> str:
    """Convert a detector's weights to a new file in the format of this project or another one.

    Args:
        weights: weights file or name, see `load`.
        out: path of the new file; its name ends in .pt or .pth.
        overrides: `key=value`; `data.classes=[cat, dog]` names the classes of a file that contains no class names.
        to: format of the new file. `fcos`: ours, with config and classes; `fcos_core`: the original's,
            {"model": state dict}; `torchvision`: a state dict.
        config: config of weights that contain none, see `load`.

    Returns:
        Summary with one line each for the tensors that were matched, reshaped, left out and added.

    Raises:
        WeightsError: the weights are not of a known project, the target project cannot compute the detector, or `out`
            exists or has another suffix.
        ConfigError: the format or an override is wrong, or a config is missing.
        OSError: the disk is full or not writable.
    """
    from .interop import FORMS
    from .interop.convert import check_output, write_as
    from .restore import restore_detector

    if to not in FORMS:
        raise ConfigError(f"to: expected one of {', '.join(FORMS)}, found {quote(to)}")
    out = check_source(out, name="out")
    check_output(Path(out))  # before a possible download
    restored = restore_detector(weights, overrides, config, use="a conversion")
    return write_as(to, Path(out), restored.model, restored.checkpoint, restored.config, where=str(weights))
