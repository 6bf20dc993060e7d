"""Python counterpart of the command `export`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .api import evaluate, load
from .config import Config
from .config.arguments import check_source
from .errors import ConfigError, DataError
from .recipes import load_config

if TYPE_CHECKING:
    from .choices import ExportFormat, ExportNMS, ExportPrecision
    from .data.source import Split
    from .export.write import Exported

_PROOF_IMAGES = 4


def export_detector(
    weights: str | Path,
    out: str | Path,
    *overrides: str,
    config: str | Path | Config | None = None,
    form: ExportFormat = "onnx",
    size: tuple[int, int] | None = None,
    batch: int | None = None,
    nms: ExportNMS = "graph",
    raw: bool = False,
    opset: int | None = None,
    precision: ExportPrecision = "float32",
    triton: str | Path | None = None,
    data: str | Path | None = None,
    max_drop: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Exported:
    """Write a detector to a file for another runtime, and prove that the file detects what PyTorch detects.

    Args:
        weights: weights file or name, see `load`.
        out: path of the new file, see `Detector.export`.
        overrides: `key=value`, e.g. `model.score_threshold=0.3`.
        config: config of weights that contain none, see `load`.
        form: `onnx`, `openvino`, `torch_export` or `aoti`.
        size: fixed (height, width) of the padded images; None: any.
        batch: fixed number of images at a time; None: any.
        nms: `graph`, `matrix` or `none`: non-maximum suppression, see `Detector.export`.
        raw: whether the file returns the raw outputs of the head.
        opset: version of the operators of ONNX, 20 to 25; None: 20.
        precision: precision of the network, see `Detector.export`. For `int8`, up to 300 train images of `data`, or
            val images if there are none, are used for the calibration.
        triton: folder of a Triton model repository, to which an ONNX file is added.
        data: data set whose val images are used for the proof, and on which AP is measured in PyTorch and in the file;
            None: generated images.
        max_drop: for int8, largest accepted drop of AP on val, 0 to 1; None: 0.01. AP in float32 must be at least 0.3.
        progress: callback of the two evaluations, see `evaluate`.

    Returns:
        The path of the file, and the figures of the proof and of the evaluations.

    Raises:
        FCOSError: see `load` and `Detector.export`; `data` has no val images.
    """
    from .export.graph import check_sizes
    from .export.metadata import FixedSizes
    from .export.onnx import require_opset
    from .export.quantization import MAX_IMAGES, Quantization
    from .export.runtimes import is_exported
    from .export.triton import check_repository
    from .export.write import check_output, check_quantization, content_of

    out, content = Path(check_source(out, name="out")), content_of(nms, raw=raw)
    require_opset(opset, form)
    check_output(out, form, precision)  # before a possible download
    if triton is not None:
        check_repository(Path(triton), out, batch=batch)
    if is_exported(weights):
        raise ConfigError(f"{weights}: is already exported; export the weights that it was made from")
    if precision == "int8":
        check_quantization(has_data=data is not None, content=content, matrix_nms=nms == "matrix")
    elif max_drop is not None:
        raise ConfigError(f"--max-drop: no effect on --precision {precision}; remove it, or use --precision int8")
    if max_drop is not None and not 0 <= max_drop <= 1:
        raise ConfigError(f"--max-drop: expected a number from 0 to 1, found {max_drop:g}")
    detector = load(weights, *overrides, config=config, device="cpu")
    check_sizes(FixedSizes(batch, size), divisor=detector.config.data.size_divisor)
    images = quantization = float_ap = None
    if data is not None:
        measure = partial(_ap_on_val, data=data, progress=progress)
        measure_float = partial(measure, weights, *overrides, config=config)
        images = _sample_paths(data, "val", limit=_PROOF_IMAGES)
        if not images:
            raise DataError(f"data: {data} has no val images, which the proof of an export needs")
        if precision == "int8":
            paths = _sample_paths(data, "train", limit=MAX_IMAGES) or _sample_paths(data, "val", limit=MAX_IMAGES)
            quantization = Quantization(
                [partial(detector.to_input, path) for path in paths],
                measure_float,
                measure,
                0.01 if max_drop is None else max_drop,
            )
        elif content == "detections":
            float_ap = measure_float()  # first, as it may find a mistake in the data
    exported = detector.export(
        out,
        form=form,
        size=size,
        batch=batch,
        nms=nms,
        raw=raw,
        opset=opset,
        precision=precision,
        triton=triton,
        images=images,
        quantization=quantization,
    )
    if accuracy := exported.proof.accuracy:
        return exported._replace(ap_on_val=accuracy[:2])
    return exported if float_ap is None else exported._replace(ap_on_val=(float_ap, measure(out)))


def _ap_on_val(
    weights: str | Path,
    *overrides: str,
    data: str | Path,
    config: str | Path | Config | None = None,
    progress: Callable[[int, int], None] | None,
) -> float:
    return evaluate(weights, *overrides, f"data={data}", config=config, progress=progress).metrics["AP"]


def _sample_paths(data: str | Path, split: Split, *, limit: int) -> list[Path]:
    """Return the paths of at most `limit` images of a split, evenly distributed; empty if it does not exist."""
    from .data import load_annotations

    annotations = load_annotations(load_config("fcos_mnv2_small", [f"data={data}"]).data, split)
    if annotations is None:
        return []
    count = min(limit, len(annotations))
    return [annotations.path(i * len(annotations) // count) for i in range(count)]


def default_path(weights: str | Path, suffix: str) -> Path:
    """Return the path of an exported file with the name of the weights: beside them if they are a file."""
    path = Path(weights)
    if path.is_dir():
        path = path / "weights" / "best"
    elif not path.exists():  # a name or URL
        path = Path(path.name)
    return path.with_suffix(suffix)
