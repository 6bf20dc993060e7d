"""Runtimes that execute exported files: ONNX Runtime, OpenVINO and PyTorch.

Shape letters: N images, H W image size.
"""

from __future__ import annotations

import json
import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Protocol

import torch
from torch import Tensor

from ..choices import ExportFormat
from ..errors import ConfigError, WeightsError
from ..extras import import_package
from .aoti import is_package, read_entry, require_same_machine

# NNCF and AOTInductor import this module of PyTorch, which warns of machines with CUDA and without a GPU.
logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)

FORMATS: dict[ExportFormat, str] = {"onnx": ".onnx", "openvino": ".xml", "torch_export": ".pt2", "aoti": ".pt2"}
"""Suffixes of exported files by format."""
METADATA_ENTRY = "fcos"
"""Name of the metadata in .pt2 and .xml files; in .onnx files every value has a property of its own."""


class Runtime(Protocol):
    """Exported file in its runtime."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """Texts that describe the file, see `metadata.Metadata.to_texts`."""
        ...

    def __call__(self, images: Tensor, sizes: Tensor, score_threshold: float | None = None) -> dict[str, Tensor]:
        """Return the outputs of `graph.DetectionGraph`.

        Args:
            images: [N, 3, H, W] uint8 RGB, padded at the right and the bottom.
            sizes: [N, 2] int64 (height, width) without the padding.
            score_threshold: threshold that replaces that of the file, if the file accepts one.
        """
        ...


def is_exported(path: str | Path) -> bool:
    """Return whether a path has the suffix of an exported file."""
    return Path(path).suffix in FORMATS.values()


def require(package: str) -> ModuleType:
    """Import a package of the extra `export` or `int8`.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return import_package(package)
    except ImportError:
        extra = "int8" if package == "nncf" else "export"
        raise ConfigError(
            f'export: the package {package} is not installed; type: pip install "fcos-vision[{extra}]"'
        ) from None


class OnnxRuntime:
    """ONNX model in ONNX Runtime on the CPU.

    Args:
        model: path or bytes of the model.
    """

    def __init__(self, model: Path | bytes):
        runtime = require("onnxruntime")
        options = runtime.SessionOptions()
        options.log_severity_level = 3  # errors
        options.intra_op_num_threads = torch.get_num_threads()
        source = model if isinstance(model, bytes) else str(model)
        self._session = runtime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        self.metadata = self._session.get_modelmeta().custom_metadata_map

    def __call__(self, images: Tensor, sizes: Tensor, score_threshold: float | None = None) -> dict[str, Tensor]:
        """Run the model, see `Runtime`."""
        import numpy as np

        values = [images.cpu().numpy(), sizes.cpu().numpy()]
        if score_threshold is not None:
            values.append(np.array(score_threshold, np.float32))
        names = [value.name for value in self._session.get_inputs()]
        outputs = self._session.run(None, dict(zip(names, values, strict=True)))
        output_names = [value.name for value in self._session.get_outputs()]
        return {name: torch.from_numpy(np.asarray(x)) for name, x in zip(output_names, outputs, strict=True)}


class OpenVINO:
    """Model in OpenVINO on the CPU, computed in float32.

    Layers that are quantised in the file compute in int8.

    Args:
        path: .xml or .onnx file.
    """

    def __init__(self, path: Path):
        openvino = require("openvino")
        core = openvino.Core()
        model = core.read_model(str(path))
        has_metadata = model.has_rt_info(METADATA_ENTRY)
        self.metadata = json.loads(model.get_rt_info(METADATA_ENTRY).astype(str)) if has_metadata else {}
        hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        self._model = core.compile_model(model, "CPU", hints)

    def __call__(self, images: Tensor, sizes: Tensor, score_threshold: float | None = None) -> dict[str, Tensor]:
        """Run the model, see `Runtime`."""
        import numpy as np

        values = [images.cpu().numpy(), sizes.cpu().numpy()]
        if score_threshold is not None:
            values.append(np.array(score_threshold, np.float32))
        results = self._model(values)
        return {output.get_any_name(): torch.from_numpy(np.array(results[output])) for output in self._model.outputs}


class TorchProgram:
    """Program of `torch.export` in PyTorch.

    Args:
        path: .pt2 file, saved by `torch.export.save`.
    """

    def __init__(self, path: Path):
        if not _is_program(path):  # otherwise torch logs a traceback
            raise ValueError("not a complete file of torch.export.save")
        files = {METADATA_ENTRY: ""}
        program = torch.export.load(path, extra_files=files)
        self.metadata = json.loads(files[METADATA_ENTRY] or "{}")
        # The guards would reject images so small that a map has a single row or column.
        self._module = program.module(check_guards=False)

    @torch.inference_mode()
    def __call__(self, images: Tensor, sizes: Tensor, score_threshold: float | None = None) -> dict[str, Tensor]:
        """Run the program, see `Runtime`."""
        if score_threshold is not None:
            self._module.get_buffer("score_threshold").fill_(score_threshold)
        with torch.autocast("cpu", enabled=False):  # the precision is fixed in the program
            return self._module(images.cpu().contiguous(), sizes.cpu())  # in the order of the captured ones


def _is_program(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/archive_format") for name in archive.namelist())


class TorchPackage:
    """Machine code of AOTInductor in PyTorch on the CPU.

    Args:
        path: .pt2 file, see `aoti.compile_package`.
    """

    def __init__(self, path: Path):
        self.metadata = json.loads(read_entry(path, METADATA_ENTRY) or "{}")
        self._module = torch._inductor.aoti_load_package(str(path))

    @torch.inference_mode()
    def __call__(self, images: Tensor, sizes: Tensor, score_threshold: float | None = None) -> dict[str, Tensor]:
        """Run the code, see `Runtime`."""
        if score_threshold is not None:
            self._module.load_constants({"score_threshold": torch.tensor(score_threshold)}, check_full_update=False)
        with torch.autocast("cpu", enabled=False):  # the precision is fixed in the code
            return self._module(images.cpu().contiguous(), sizes.cpu())  # in the order of the captured ones


def open_exported(path: Path) -> Runtime:
    """Open an exported file in its runtime; the suffix determines which.

    Raises:
        ConfigError: the runtime is not installed.
        WeightsError: the file does not exist or cannot be read.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such file; expected a file of fcos export")
    runtimes = {".onnx": OnnxRuntime, ".xml": OpenVINO, ".pt2": _open_pt2}
    try:
        return runtimes[path.suffix](path)
    except ConfigError:
        raise
    except Exception as error:  # arbitrary bytes can cause any exception
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]  # OpenVINO: after its source files
        raise WeightsError(f"{path}: cannot be read: {reason:.200}; export the detector again") from None


def _open_pt2(path: Path) -> Runtime:
    if not is_package(path):
        return TorchProgram(path)
    require_same_machine(json.loads(read_entry(path, METADATA_ENTRY) or "{}"))
    return TorchPackage(path)
