"""Writing of exported files: capture, conversion, proof, metadata."""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..choices import ExportFormat
from ..errors import ExportError, WeightsError
from ..files import explain_write_errors, write_text
from ..models import DetectionModel
from .graph import OUTPUTS, DetectionGraph, capture
from .metadata import Metadata, hash_weights
from .onnx import to_onnx, with_constant_threshold
from .proof import Proof, proof_images, prove
from .runtimes import FORMATS, METADATA_ENTRY, OnnxRuntime, OpenVINO, Runtime, TorchProgram, require

_PACKAGES: dict[ExportFormat, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino"),
    "torch_export": (),
}


class Exported(NamedTuple):
    """Result of an export.

    Attributes:
        path: the file.
        proof: comparison of the file with PyTorch.
        proof_path: JSON file with the figures of the comparison.
    """

    path: Path
    proof: Proof
    proof_path: Path


def check_output(out: Path, form: ExportFormat) -> None:
    """Check that `out` names a new file of a format in an existing folder, and that the packages are installed.

    Raises:
        WeightsError: the file exists already or has another suffix, or its folder does not exist.
        ConfigError: a package is not installed.
    """
    suffix = FORMATS[form]
    if out.suffix != suffix:
        raise WeightsError(f"{out}: files of the format {form} end in {suffix}; for example {out.with_suffix(suffix)}")
    if out.exists():
        raise WeightsError(f"{out}: exists already and is not overwritten; give another name or remove it first")
    if not out.parent.is_dir():
        raise WeightsError(f"{out}: no such folder {out.parent}; create it first")
    for package in _PACKAGES[form]:
        require(package)


def export_detector(
    model: DetectionModel,
    metadata: Metadata,
    out: Path,
    *,
    form: ExportFormat = "onnx",
    images: Sequence[Tensor] | None = None,
) -> Exported:
    """Write a detector to a file for another runtime, and prove that the file detects what PyTorch detects.

    The file is only written if the proof succeeds.

    Args:
        model: detector in evaluation mode.
        metadata: description of the file; `weights_sha256` is filled in.
        out: path of the file, see `check_output`.
        form: format of the file.
        images: uint8 images [3, h, w] for the proof; None: generated images.

    Raises:
        WeightsError, ConfigError: as `check_output`, or the detector cannot be exported.
        ExportError: the proof failed.
        WriteError: the disk is full or not writable.
    """
    check_output(out, form)
    if model.device.type != "cpu":
        model = copy.deepcopy(model).cpu()
    graph = DetectionGraph(model, nms=metadata.nms)
    divisor = metadata.config.data.size_divisor
    metadata = replace(metadata, weights_sha256=hash_weights(model))
    images = proof_images(metadata.fixed) if images is None else images
    run_proof = partial(prove, model, images=images, fixed=metadata.fixed, divisor=divisor, nms=metadata.nms)
    write = _write_program if form == "torch_export" else partial(_write_onnx, form=form)
    with explain_write_errors(out), tempfile.TemporaryDirectory(prefix=".export-", dir=out.parent) as folder:
        temporary = Path(folder) / out.name
        proof = write(graph, metadata, temporary, run_proof, divisor=divisor)
        proof_path = out.with_suffix(".proof.json")
        write_text(proof_path, json.dumps(proof.to_dict(), indent=2) + "\n")
        for file in sorted(Path(folder).glob(f"{out.stem}.*")):  # .bin before .xml
            shutil.move(file, out.parent / file.name)
    return Exported(out, proof, proof_path)


def _write_onnx(
    graph: DetectionGraph,
    metadata: Metadata,
    path: Path,
    run_proof: Callable[[Runtime], Proof],
    *,
    divisor: int,
    form: ExportFormat,
) -> Proof:
    import onnx

    program = capture(graph, metadata.fixed, divisor=divisor, threshold_input=True)
    model = to_onnx(program, OUTPUTS[graph.nms])
    with_input = path.with_name("threshold.onnx")  # compared with several score thresholds
    onnx.save(model, with_input)
    proof = _require_passed(run_proof(OnnxRuntime(with_input) if form == "onnx" else OpenVINO(with_input)), path)
    texts = metadata.to_texts(proof.to_dict())
    final = with_constant_threshold(model, None if graph.score_threshold is None else float(graph.score_threshold))
    onnx.helper.set_model_props(final, texts)
    onnx.checker.check_model(final)
    if form == "onnx":
        onnx.save(final, path)
        return proof
    openvino = require("openvino")
    onnx.save(final, path.with_name("final.onnx"))
    converted = openvino.Core().read_model(path.with_name("final.onnx"))
    converted.set_rt_info(json.dumps(texts), METADATA_ENTRY)
    openvino.save_model(converted, path, compress_to_fp16=False)
    return proof


def _write_program(
    graph: DetectionGraph, metadata: Metadata, path: Path, run_proof: Callable[[Runtime], Proof], *, divisor: int
) -> Proof:
    program = capture(graph, metadata.fixed, divisor=divisor, threshold_input=False)
    torch.export.save(program, path)
    proof = _require_passed(run_proof(TorchProgram(path)), path)
    torch.export.save(program, path, extra_files={METADATA_ENTRY: json.dumps(metadata.to_texts(proof.to_dict()))})
    return proof


def _require_passed(proof: Proof, path: Path) -> Proof:
    if not proof.passed:
        raise ExportError(
            f"export: {path.name} does not detect what PyTorch detects, so it is not written: {proof.summary()}"
        )
    return proof
