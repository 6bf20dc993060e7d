"""Python counterpart of the commands that look into a detector: `explain`, `benchmark`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .api import load, load_split, to_detector
from .config import Config
from .config.arguments import check_new_file
from .errors import ConfigError

if TYPE_CHECKING:
    from .choices import Precision
    from .data.dataset import Annotations
    from .explanation.explain import Explanation
    from .inference.inputs import Picture
    from .restore import RestoredDetector
    from .speed.measure import Benchmark

_MEASURED = {"batch_size": "--batch", "compile": "--compile", "precision": "--precision"}
"""Options of `eval` and `train` that a benchmark ignores, and its own, which take several values."""


def explain(
    weights: str | Path,
    image: Picture,
    *overrides: str,
    config: str | Path | Config | None = None,
    threshold: float | None = None,
    class_name: str | None = None,
    out: str | Path | None = None,
) -> Explanation:
    """Explain the detections of an FCOS on one image, and with annotations why objects were missed.

    Args:
        weights: weights file or name of an FCOS, see `load`.
        image: a picture, see `Detector.predict`. With an override `data=DIR` the path or the file name of an image of
            this data set, whose annotations are then used.
        overrides: `key=value`, e.g. `data=DIR`, `model.nms_threshold=0.5`.
        config: config of weights that contain none, see `load`.
        threshold: score threshold of shown detections for all classes, in 0..1; None: those of the weights.
        class_name: class whose scores the page shows; None: the one with the highest score.
        out: file for the explanation as an HTML page, which ends in .html; None: no page is written.

    Returns:
        Maps of the head, the path of every prediction through post-processing, and the missed objects with reasons.

    Raises:
        ConfigError: the detector is not an FCOS, an option is wrong, or `out` is no path of a new HTML file.
        WeightsError: the file does not exist or does not contain weights of a known project.
        DataError: the image cannot be read, or is not in the data set.
        OSError: the disk is full or not writable.
    """
    import torch

    from .data.layouts import SPLITS
    from .explanation.explain import explain_image, require_fcos
    from .explanation.page import write_page
    from .inference.inputs import to_picture
    from .inference.selection import Selection, find_labels
    from .restore import restore_detector

    Selection(threshold=threshold)  # checks its range
    page = None if out is None else check_new_file(out, name="out", suffix=".html")
    restored = restore_detector(weights, overrides, config, use="an evaluation")
    require_fcos(restored.model, restored.config)
    objects, source = None, image
    if any(text.startswith(("data=", "data.root=", *(f"data.{split}." for split in SPLITS))) for text in overrides):
        split, i = _find_annotated(restored, image, where=str(weights))
        objects, source = split.objects(i), split.path(i)
    detector = to_detector(restored)
    data, thresholds, names = detector.config.data, detector.thresholds, detector.class_names
    label = None if class_name is None else find_labels([class_name], names, option="--class")[0]
    explanation = explain_image(
        detector.model,
        detector.config,
        to_picture(source, bit_depth=data.bit_depth, max_pixels=data.max_pixels),
        thresholds=thresholds if threshold is None else torch.full_like(thresholds, threshold),
        class_names=names,
        objects=objects,
    )
    if page is not None:
        title = Path(source).name if isinstance(source, str | Path) else "an image"
        write_page(explanation, page, title=title, label=label)
    return explanation


def _find_annotated(restored: RestoredDetector, image: Picture, *, where: str) -> tuple[Annotations, int]:
    """Find an image in the splits of the data set, see `find_image`."""
    from .data.layouts import SPLITS
    from .data.splits import has_split
    from .explanation.annotated import find_image

    if not isinstance(image, str | Path):
        raise ConfigError("data: allowed with the path or the file name of an image only; remove it")
    data = restored.config.data
    return find_image(image, [load_split(restored, split, where=where) for split in SPLITS if has_split(data, split)])


def benchmark(
    weights: str | Path | Sequence[str | Path],
    *overrides: str,
    images: Sequence[str | Path] = (),
    config: str | Path | Config | None = None,
    batches: Sequence[int] = (1,),
    precisions: Sequence[Precision] = ("float32",),
    compiled: bool = False,
    threads: int | None = None,
    size: tuple[int, int] = (480, 640),
    seconds: float | None = None,
    repeats: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Benchmark:
    """Measure the speed of detection, from image files to boxes, by part. The variants take turns.

    Args:
        weights: one or several weights files, recipes or exported files, see `load`. An untrained detector finds
            nothing, so its post-processing takes less time.
        overrides: `key=value` for all of them, e.g. `data.test_short_side=600`, `device=cpu`.
        images: image files, folders or globs, of which the first 64 images are used; empty: generated images.
        config: config of weights that contain none, see `load`.
        batches: batch sizes.
        precisions: precisions of the network (autocast). They do not apply to exported files.
        compiled: also measure with torch.compile.
        threads: number of CPU threads of PyTorch, ONNX Runtime and OpenVINO; None: as it is.
        size: (height, width) of generated images, at most `data.max_pixels` pixels.
        seconds: mean time per variant, after two batches of warm-up; None: 5, unless `repeats` is given.
        repeats: number of batches of each variant, instead of `seconds`.
        progress: callback, see `speed.measure.measure`.

    Raises:
        ConfigError: an option is wrong, or there is no compiler.
        WeightsError: a file does not exist or does not contain weights of a known project.
        DataError: an image cannot be read.
    """
    import tempfile

    import torch

    from .speed.images import find_images, generate_images
    from .speed.measure import Benchmark, measure
    from .speed.pipeline import build_pipelines
    from .training.environment import environment

    for override in overrides:
        key = override.partition("=")[0].strip()
        section, _, name = key.partition(".")
        if section in ("eval", "train") and name in _MEASURED:
            raise ConfigError(f"{key}: no effect on a benchmark; use {_MEASURED[name]}")
    if seconds is not None and repeats is not None:
        raise ConfigError("--seconds: no effect beside --repeats, which sets the number of batches; remove one of them")
    previous_threads = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        sources = [weights] if isinstance(weights, str | Path) else list(weights)
        detectors = [load(source, *overrides, config=config) for source in sources]
        names = [Path(source).name for source in sources]
        names = names if len({*names}) == len(names) else [str(source) for source in sources]
        pipelines = [
            pipeline
            for name, detector in zip(names, detectors, strict=True)
            for pipeline in build_pipelines(name, detector, batches=batches, precisions=precisions, compiled=compiled)
        ]
        data = detectors[0].config.data
        if data.max_pixels is not None and not images and math.prod(size) > data.max_pixels:
            raise ConfigError(f"--size: {size[0]}x{size[1]} are more than data.max_pixels={data.max_pixels} pixels")
        with tempfile.TemporaryDirectory() as folder:
            if images:
                files = find_images(images, bit_depth=data.bit_depth, max_pixels=data.max_pixels)
            else:
                files = generate_images(Path(folder), size)
            timings = measure(
                pipelines, files, seconds=5.0 if seconds is None else seconds, repeats=repeats, progress=progress
            )
        machine = environment(detectors[0].device) | {"threads": str(torch.get_num_threads())}
        return Benchmark(machine, len(files), timings)
    finally:
        torch.set_num_threads(previous_threads)
