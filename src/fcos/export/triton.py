"""Model repositories of NVIDIA Triton Inference Server.

Source: Triton's documentation of model repositories and of the model configuration.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError, WeightsError
from ..files import explain_write_errors
from .runtimes import require

if TYPE_CHECKING:
    from onnx import ValueInfoProto

_MAX_BATCH = 8
_QUEUE_DELAY = 2000  # microseconds
_TYPES = {"uint8": "TYPE_UINT8", "int64": "TYPE_INT64", "float32": "TYPE_FP32", "bool": "TYPE_BOOL"}


def check_repository(folder: Path, out: Path, *, batch: int | None) -> None:
    """Check that a model can be added to a repository.

    Args:
        folder: the repository, which may not exist yet.
        out: path of the exported file, whose name is that of the model.
        batch: fixed number of images at a time.

    Raises:
        ConfigError: the file is not an ONNX file, or accepts only a fixed number of images.
        WeightsError: the repository has a model of this name, or is not a folder.
    """
    if out.suffix != ".onnx":
        raise ConfigError(f"--triton: {out} is not an ONNX file; use --format onnx")
    if batch is not None:
        raise ConfigError("--triton: dynamic batching needs a file for any number of images; remove --batch")
    if folder.exists() and not folder.is_dir():
        raise WeightsError(f"{folder}: not a folder; expected the folder of a Triton model repository")
    if (folder / out.stem).exists():
        raise WeightsError(f"{folder / out.stem}: exists already and is not overwritten; give OUT another name")


def write_repository(folder: Path, file: Path) -> Path:
    """Add an exported ONNX file to a model repository, with dynamic batching.

    Args:
        folder: the repository; created if it does not exist.
        file: the exported file, whose name becomes that of the model.

    Returns:
        Folder of the model, with `config.pbtxt` and `1/model.onnx`.

    Raises:
        WriteError: the disk is full or not writable.
    """
    model = folder / file.stem
    with explain_write_errors(model):
        (model / "1").mkdir(parents=True)
        shutil.copyfile(file, model / "1" / "model.onnx")
        (model / "config.pbtxt").write_text(_config(file), encoding="utf-8")
    return model


def _config(file: Path) -> str:
    from google.protobuf import text_encoding  # of onnx

    onnx = require("onnx")
    graph = onnx.load(file, load_external_data=False).graph
    name = text_encoding.CEscape(file.stem.encode(), as_utf8=False)
    blocks = [
        f'name: "{name}"\nbackend: "onnxruntime"\nmax_batch_size: {_MAX_BATCH}',
        *(_describe("input", value) for value in graph.input),
        *(_describe("output", value) for value in graph.output),
        # Triton only combines requests whose images have the same padded size.
        f"dynamic_batching {{\n  max_queue_delay_microseconds: {_QUEUE_DELAY}\n}}",
    ]
    return "\n".join(blocks) + "\n"


def _describe(kind: str, value: ValueInfoProto) -> str:
    """Describe an input or output without its first dimension, the batch."""
    helper = require("onnx").helper
    tensor = value.type.tensor_type
    dims = [side.dim_value or -1 for side in tensor.shape.dim][1:]
    lines = [
        f'  name: "{value.name}"',
        f"  data_type: {_TYPES[str(helper.tensor_dtype_to_np_dtype(tensor.elem_type))]}",
        f"  dims: [ {', '.join(map(str, dims or [1]))} ]",
        *([] if dims else ["  reshape { shape: [ ] }"]),  # a number per image
    ]
    return f"{kind} {{\n" + "\n".join(lines) + "\n}"
