"""Writing of exported files: capture, conversion, proof, metadata."""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor
from torch.export import ExportedProgram

from ..choices import ExportContent, ExportFormat, ExportNMS, ExportPrecision
from ..errors import ConfigError, ExportError, WeightsError
from ..files import explain_write_errors, require_creatable, write_text
from ..formatting import quote
from ..models import DetectionModel
from ..models.inference_copy import InferenceCopy
from .aoti import add_entry, compile_package, describe_machine, require_compiler
from .graph import DetectionGraph, capture, lower_precision
from .metadata import Metadata, hash_weights
from .onnx import require_opset, to_onnx, with_constant_threshold
from .proof import Accuracy, Proof, Prover, proof_batches, proof_images
from .quantization import Quantization, judge, measure_float_ap, quantize
from .runtimes import FORMATS, METADATA_ENTRY, OnnxRuntime, OpenVINO, TorchPackage, TorchProgram, open_exported, require
from .triton import check_repository, write_repository

_PACKAGES: dict[ExportFormat, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino"),
    "torch_export": (),
    "aoti": (),
}


_PRECISIONS: dict[ExportFormat, tuple[ExportPrecision, ...]] = {
    "onnx": ("float32", "float16"),
    "openvino": ("float32", "float16", "int8"),
    "torch_export": ("float32", "float16", "bfloat16"),
    "aoti": ("float32",),
}
"""Precisions in which the runtime of a format computes on CPUs, where the proof runs; aoti was tried in float32."""


class Exported(NamedTuple):
    """Result of an export.

    Attributes:
        path: the file.
        proof: comparison of the file with PyTorch, see `Prover.prove`.
        proof_path: JSON file with the figures of the comparison.
        triton_path: folder of the model in a Triton model repository, if wanted.
        ap_on_val: AP in PyTorch and in the file on the val images of a data set; None: not measured.
    """

    path: Path
    proof: Proof
    proof_path: Path
    triton_path: Path | None = None
    ap_on_val: tuple[float, float] | None = None


def check_output(out: Path, form: ExportFormat, precision: ExportPrecision = "float32") -> None:
    """Check that `out` names a new file of a format in an existing folder, and that everything needed is installed.

    Raises:
        WeightsError: a file exists already or has another suffix, or its folder does not exist.
        ConfigError: the format is unknown or does not support this precision, or a package or a compiler is not
            installed.
        WriteError: no file can be created in its folder.
    """
    if form not in FORMATS:
        raise ConfigError(f"--format: expected one of {', '.join(FORMATS)}, found {quote(form)}")
    suffix = FORMATS[form]
    if out.suffix != suffix:
        others = " or ".join(f"--format {name}" for name, end in FORMATS.items() if end == out.suffix)
        raise WeightsError(
            f"{out}: files of the format {form} end in {suffix}; for example {out.with_suffix(suffix)}"
            f"{f'; for {out.suffix}, add {others}' if others else ''}"
        )
    for file in (out, out.with_suffix(".bin")) if form == "openvino" else (out,):
        if file.exists():
            raise WeightsError(f"{file}: exists already and is not overwritten; give another name or remove it first")
    if not out.parent.is_dir():
        raise WeightsError(f"{out}: no such folder {out.parent}; create it first")
    require_creatable(out)
    if precision == "int8" and precision not in _PRECISIONS[form]:
        raise ConfigError(f"--precision int8: only --format openvino supports it, not {form}")
    if precision not in _PRECISIONS[form]:
        raise ConfigError(
            f"--precision {precision}: the runtime of --format {form} does not compute in it on CPUs, where the proof"
            f" runs; use {' or '.join(_PRECISIONS[form])}"
        )
    for package in (*_PACKAGES[form], *(("nncf",) if precision == "int8" else ())):
        require(package)
    if form == "aoti":
        require_compiler()


def content_of(nms: ExportNMS, *, raw: bool) -> ExportContent:
    """Return what a file contains, see `graph.DetectionGraph`.

    Raises:
        ConfigError: `nms` has another value, or no effect on raw outputs.
    """
    if nms not in get_args(ExportNMS):
        raise ConfigError(f"--nms: expected one of {', '.join(get_args(ExportNMS))}, found {quote(nms)}")
    if raw and nms != "graph":
        raise ConfigError(f"--nms {nms}: no effect with --raw, whose outputs are not decoded; remove one of them")
    return "raw" if raw else "candidates" if nms == "none" else "detections"


def check_quantization(*, has_data: bool, content: ExportContent, matrix_nms: bool = False) -> None:
    """Check that AP on val can be compared before and after a quantisation.

    Raises:
        ConfigError: there are no data, or the file does not return detections or contains `matrix_nms`.
    """
    if not has_data:
        raise ConfigError(
            "--precision int8: images are needed for the calibration, and annotations to measure the drop of AP; add"
            " --data DIR (in Python: fcos.export_detector with data=DIR)"
        )
    if content != "detections":
        option = "--raw" if content == "raw" else "--nms none"
        raise ConfigError(f"--precision int8: AP is only known of files that return detections; leave out {option}")
    if matrix_nms:
        raise ConfigError("--precision int8: OpenVINO has an operator for suppression; leave out --nms matrix")


def write_detector(
    model: DetectionModel,
    metadata: Metadata,
    out: Path,
    *,
    form: ExportFormat = "onnx",
    matrix_nms: bool = False,
    opset: int | None = None,
    images: Sequence[Tensor] | None = None,
    quantization: Quantization | None = None,
    triton: Path | None = None,
) -> Exported:
    """Write a detector to a file for another runtime, and prove that the file detects what PyTorch detects.

    The file is only written if the proof succeeds. For int8, the proof compares the model before the quantisation, and
    afterwards AP must not drop too far.

    Args:
        model: detector in evaluation mode.
        metadata: description of the file; `weights_sha256` is filled in.
        out: path of the file, see `check_output`.
        form: format of the file.
        matrix_nms: whether the file contains no operator for non-maximum suppression, see `matrix_nms`.
        opset: version of the operators of ONNX, see `onnx.require_opset`.
        images: uint8 images [3, h, w] for the proof; None: generated images.
        quantization: data for int8.
        triton: Triton model repository that the file is added to.

    Raises:
        WeightsError, ConfigError: as `check_output`, or the detector cannot be exported.
        ExportError: the proof failed, or int8 costs too much AP.
        DataError: an image for the calibration cannot be read.
        WriteError: the disk is full or not writable.
    """
    precision = metadata.precision
    check_output(out, form, precision)
    operators = require_opset(opset, form)
    if triton is not None:
        check_repository(triton, out, batch=metadata.fixed.batch)
    if precision == "int8":
        check_quantization(has_data=quantization is not None, content=metadata.content, matrix_nms=matrix_nms)
        precision = "float32"  # before the quantisation
    if model.device.type != "cpu":
        model = copy.deepcopy(model).cpu()
    dtype = getattr(torch, precision)
    folded = InferenceCopy()(model)
    lowered = folded if dtype is torch.float32 else lower_precision(folded, dtype)
    graph = DetectionGraph(lowered, content=metadata.content, matrix_nms=matrix_nms)
    divisor = metadata.config.data.size_divisor
    metadata = replace(metadata, weights_sha256=hash_weights(model))
    batches = proof_batches(images or proof_images(metadata.fixed), metadata.fixed, divisor=divisor)
    prover = Prover(model, batches, content=metadata.content, precision=precision)
    write = {"torch_export": _write_program, "aoti": _write_package}.get(
        form, partial(_write_onnx, form=form, opset=operators, quantization=quantization)
    )
    with explain_write_errors(out), tempfile.TemporaryDirectory(prefix=".export-", dir=out.parent) as folder:
        temporary = Path(folder) / out.name
        proof = write(graph, metadata, temporary, prover, divisor=divisor)
        proof_path = out.with_name(f"{out.name}.proof.json")
        figures = {"precision": metadata.precision, "low_threshold": proof.to_dict()}
        if proof.accuracy is None:
            figures["as_written"] = _require_passed(prover.check(open_exported(temporary)), out).to_dict()
        write_text(proof_path, json.dumps(figures, indent=2) + "\n")
        for file in sorted(Path(folder).iterdir()):  # .bin before .xml
            if file.stem == out.stem:
                shutil.move(file, out.parent / file.name)
    return Exported(out, proof, proof_path, None if triton is None else write_repository(triton, out))


def _write_onnx(
    graph: DetectionGraph,
    metadata: Metadata,
    path: Path,
    prover: Prover,
    *,
    divisor: int,
    form: ExportFormat,
    opset: int,
    quantization: Quantization | None,
) -> Proof:
    import onnx

    model = to_onnx(capture(graph, metadata.fixed, divisor=divisor, threshold_input=True), opset=opset)
    with_input = path.with_name(".threshold.onnx")  # compared with several score thresholds
    onnx.save(model, with_input)
    proof = _require_passed(prover.prove(OnnxRuntime(with_input) if form == "onnx" else OpenVINO(with_input)), path)
    texts = metadata.to_texts(proof.to_dict())
    final = with_constant_threshold(model, graph.score_threshold)
    onnx.helper.set_model_props(final, texts)
    onnx.checker.check_model(final)
    if form == "onnx":
        onnx.save(final, path)
        return proof
    openvino = require("openvino")
    onnx.save(final, path.with_name(".final.onnx"))
    converted = openvino.Core().read_model(path.with_name(".final.onnx"))
    if quantization is not None:
        float_ap = measure_float_ap(quantization)
        converted = quantize(converted, quantization, metadata.fixed, divisor=divisor)
        evaluated = path.with_name(".evaluated.xml")
        converted.set_rt_info(json.dumps(texts), METADATA_ENTRY)
        openvino.save_model(converted, evaluated, compress_to_fp16=False)
        accuracy = Accuracy(float_ap, quantization.evaluate(evaluated), quantization.max_drop)
        proof = replace(proof, accuracy=judge(accuracy, path=path))
        texts = metadata.to_texts(proof.to_dict())
    converted.set_rt_info(json.dumps(texts), METADATA_ENTRY)
    openvino.save_model(converted, path, compress_to_fp16=False)
    return proof


def _write_program(graph: DetectionGraph, metadata: Metadata, path: Path, prover: Prover, *, divisor: int) -> Proof:
    program = capture(graph, metadata.fixed, divisor=divisor, threshold_input=False).program
    _save_program(program, path)
    proof = _require_passed(prover.prove(TorchProgram(path)), path)
    _save_program(program, path, {METADATA_ENTRY: json.dumps(metadata.to_texts(proof.to_dict()))})
    return proof


def _save_program(program: ExportedProgram, path: Path, texts: dict[str, Any] | None = None) -> None:
    with warnings.catch_warnings():
        # Weights in channels-last order look like parts of a tensor to PyTorch, which stores all of their memory.
        warnings.filterwarnings("ignore", message="No complete tensor found in the group")
        torch.export.save(program, path, extra_files=texts)


def _write_package(graph: DetectionGraph, metadata: Metadata, path: Path, prover: Prover, *, divisor: int) -> Proof:
    compile_package(capture(graph, metadata.fixed, divisor=divisor, threshold_input=False).program, path)
    proof = _require_passed(prover.prove(TorchPackage(path)), path)
    texts = metadata.to_texts(proof.to_dict()) | {"compiled_for": describe_machine()}
    add_entry(path, METADATA_ENTRY, json.dumps(texts))
    return proof


def _require_passed(proof: Proof, path: Path) -> Proof:
    if not proof.passed:
        raise ExportError(
            f"export: {path.name} does not detect what PyTorch detects, so it is not written: {proof.summary()}"
        )
    return proof
