"""Model repositories of Triton Inference Server."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format

from fcos import FCOSError
from fcos.export.triton import check_repository
from fcos.export.write import Exported


def parse_config(path: Path) -> Any:
    """Parse a model configuration with Triton's own definition, without its gRPC client."""
    client = importlib.util.find_spec("tritonclient")
    assert client is not None, "the extra dev contains tritonclient"
    definition = Path(*client.submodule_search_locations or ()) / "grpc/model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", definition)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return text_format.Parse(path.read_text(), module.ModelConfig())


def test_repository_has_the_file_and_a_configuration_with_dynamic_batching(exported_detector: Exported) -> None:
    file, model = exported_detector.path, exported_detector.path.parent / 'models/my "cells"'
    assert exported_detector.triton_path == model
    assert (model / "1/model.onnx").read_bytes() == file.read_bytes()
    config = parse_config(model / "config.pbtxt")
    assert (config.name, config.backend, config.max_batch_size) == ('my "cells"', "onnxruntime", 8)
    assert config.dynamic_batching.max_queue_delay_microseconds == 2000
    types = type(config.input[0]).DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number
    shapes = {x.name: (types[x.data_type].name, [*x.dims]) for x in [*config.input, *config.output]}
    assert shapes == {
        "images": ("TYPE_UINT8", [3, -1, -1]),
        "sizes": ("TYPE_INT64", [2]),
        "boxes": ("TYPE_FP32", [30, 4]),
        "scores": ("TYPE_FP32", [30]),
        "labels": ("TYPE_INT64", [30]),
        "counts": ("TYPE_INT64", [1]),
    }
    assert [x.name for x in config.output if x.HasField("reshape")] == ["counts"]


@pytest.mark.parametrize(
    ("out", "batch", "message"),
    [
        ("a.xml", None, r"--triton: a\.xml is not an ONNX file; use --format onnx"),
        ("a.onnx", 2, "--triton: dynamic batching needs a file for any number of images; remove --batch"),
        ("old.onnx", None, r"old: exists already and is not overwritten"),
    ],
)
def test_wrong_arguments_are_explained(tmp_path: Path, out: str, batch: int | None, message: str) -> None:
    (tmp_path / "old").mkdir()
    with pytest.raises(FCOSError, match=message):
        check_repository(tmp_path, Path(out), batch=batch)


def test_repository_must_be_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FCOSError, match="not a folder; expected the folder of a Triton model repository"):
        check_repository(tmp_path / "file", Path("a.onnx"), batch=None)
