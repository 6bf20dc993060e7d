"""Optional packages are imported without their telemetry."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from no_network import no_requests

from fcos.extras import import_package

MODEL = """
import numpy
from onnx import TensorProto, helper
from fcos.extras import import_package

values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "graph", values[:1], values[1:])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()
session = import_package("onnxruntime").InferenceSession(model)
print(session.run(None, {"x": numpy.full(1, -2, numpy.float32)})[0])
import_package("openvino").Core().read_model(model)
import_package("nncf")
from nncf.telemetry import wrapper
assert not isinstance(wrapper.telemetry, wrapper.NNCFTelemetry)
"""


def test_runtimes_send_nothing_and_leave_no_identifiers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Path(__file__).parents[2] / "src"
    with no_requests(monkeypatch):
        variables = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(source), "CI": ""}
        for name in ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME"):
            variables.pop(name, None)
        command = [sys.executable, "-c", MODEL]
        result = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "[0.]\n"), result.stderr
    assert list(tmp_path.iterdir()) == []  # OpenVINO, NNCF and ONNX Runtime would store an id of the user


def test_variables_of_the_user_prevail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    for name in ("WANDB_ERROR_REPORTING", "RAY_USAGE_STATS_ENABLED", "MLFLOW_DISABLE_TELEMETRY"):
        monkeypatch.delenv(name, raising=False)
    import_package("json")
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "0"
    assert os.environ["WANDB_ERROR_REPORTING"] == "false"
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_missing_package_is_an_import_error() -> None:
    with pytest.raises(ImportError, match="no_such_package"):
        import_package("no_such_package")
    assert "openvino_telemetry" not in sys.modules or sys.modules["openvino_telemetry"] is not None
