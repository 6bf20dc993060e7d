"""Detectron pickles: readable files, rejected files, and blob names."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fcos.errors import WeightsError
from fcos.models.backbones import caffe2 as detectron
from fcos.models.backbones.caffe2 import load_backbone, rename

# {"conv1_w": np.array([1, 2], "<f4")} as written by Python 2 with numpy 1.x.
PYTHON_2 = (
    b"\x80\x02}q\x00U\x07conv1_wq\x01cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03K\x00\x85q\x04"
    b"U\x01bq\x05\x87q\x06Rq\x07(K\x01K\x02\x85q\x08cnumpy\ndtype\nq\tU\x02f4q\nK\x00K\x01\x87q\x0bRq\x0c(K\x03U\x01<q\r"
    b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x0eb\x89U\x08\x00\x00\x80?\x00\x00\x00@q\x0ftq\x10bs."
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "net.pkl"


def read(file: Path, content: Any, protocol: int = 2) -> list[Any]:
    """Return the values of the first blob of a pickle, as loaded."""
    file.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol))
    return load_backbone(file)["conv1.weight"].tolist()


def load_error(file: Path, content: Any) -> str:
    with pytest.raises(WeightsError) as caught:
        read(file, content)
    assert str(file) in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------------- readable files


def test_python_2_pickle_loads(file: Path) -> None:
    assert read(file, PYTHON_2) == [1, 2]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_pickle_protocol_loads(file: Path, protocol: int) -> None:
    assert read(file, {"conv1_w": np.array([[1.5, -2], [3, 200]], np.float32)}, protocol) == [[1.5, -2], [3, 200]]


@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize(
    "array",
    [
        np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
        np.arange(6, dtype=">f8").reshape(3, 2),
        np.arange(12, dtype=np.int64).reshape(3, 4)[:, ::2],
        np.array([[True, False]]).astype(np.uint8),
    ],
)
def test_array_values_survive_any_layout_and_dtype(file: Path, array: np.ndarray, protocol: int) -> None:
    assert read(file, {"conv1_w": array}, protocol) == array.tolist()


def test_arrays_under_the_blobs_key_load_and_other_values_are_ignored(file: Path) -> None:
    arrays = OrderedDict(conv1_w=np.ones(2, np.float32), epoch=np.float32(3), note="text", none=None)
    assert read(file, {"blobs": arrays, "cfg": "MODEL: {}", "lr": np.float64(0.1)}) == [1, 1]


def test_loaded_tensors_are_writable(file: Path) -> None:
    read(file, {"conv1_w": np.ones(2, np.float32)})
    tensor = load_backbone(file)["conv1.weight"]
    tensor.add_(1)
    assert tensor.tolist() == [2, 2]


def test_norm_without_statistics_gets_zero_mean_and_unit_variance(file: Path) -> None:
    file.write_bytes(pickle.dumps({"res2_0_branch2a_bn_s": np.full(2, 3.0, np.float32)}))
    state = load_backbone(file)
    assert {name: tensor.tolist() for name, tensor in state.items()} == {
        "layer1.0.bn1.weight": [3, 3],
        "layer1.0.bn1.running_mean": [0, 0],
        "layer1.0.bn1.running_var": [1, 1],
    }
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}


# ------------------------------------------------------------------------------------------------------- rejected files


class _Call:
    """Object that is pickled as a function call."""

    def __init__(self, function: Any, *args: Any):
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    ("function", "args", "name"),
    [
        (os.mkdir, ("made",), f"{os.name}.mkdir"),
        (eval, ("1",), "__builtin__.eval"),
        (getattr, ("", "join"), "__builtin__.getattr"),
        (np.load, ("x",), "numpy.load"),
        (Path, ("x",), "pathlib"),
    ],
)
def test_pickled_functions_are_not_called(
    file: Path, monkeypatch: pytest.MonkeyPatch, function: Any, args: Any, name: str
) -> None:
    monkeypatch.chdir(file.parent)
    text = load_error(file, {"conv1_w": _Call(function, *args)})
    assert f"it refers to {name}" in text
    assert "only arrays and plain containers are allowed" in text
    assert not Path("made").exists()


def test_arrays_of_python_objects_are_rejected(file: Path) -> None:
    assert "an array of type 'O8'; only plain numbers are supported" in load_error(file, {"conv1_w": np.array([None])})


@pytest.mark.parametrize("array", [np.array(["text"]), np.zeros(2, "V8"), np.zeros(2, "i4,f4"), np.zeros(1, "M8[s]")])
def test_non_numeric_arrays_are_rejected(file: Path, array: np.ndarray) -> None:
    assert "only plain numbers are supported" in load_error(file, {"conv1_w": array})


def test_encodings_other_than_latin1_are_rejected(file: Path) -> None:
    import _codecs

    assert "only latin1 is supported" in load_error(file, {"conv1_w": _Call(_codecs.encode, "x", "rot13")})


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02ccollections\nOrderedDict\n)R}X\x03\0\0\0getc_codecs\nencode\nsb.",  # OrderedDict().get = encode
        b"\x80\x02ccollections\nOrderedDict\nN}X\x03\0\0\0getc_codecs\nencode\ns\x86b.",  # OrderedDict.get = encode
        b"\x80\x02cnumpy\nndarray\nN}X\x05\0\0\0arrayK\x01s\x86b.",  # ndarray.array = 1
        b"\x80\x02c_codecs\nencode\nN}X\x08\0\0\0functioncnumpy\ndtype\ns\x86b.",
        b"\x80\x02c_codecs\nencode\nN}X\x0c\0\0\0__defaults__X\x06\0\0\0latin1\x85s\x86b.",
    ],
)
def test_pickle_cannot_modify_library_objects(file: Path, content: bytes) -> None:
    assert "not a readable pickle of arrays" in load_error(file, content)
    assert read(file, PYTHON_2) == [1, 2]


def test_array_without_state_loads_as_empty(file: Path) -> None:
    assert read(file, b"\x80\x02}X\x07\0\0\0conv1_wcnumpy\nndarray\n)\x81s.") == []


def test_huge_memo_index_is_rejected(file: Path) -> None:
    table = b"\x80\x02}r" + (200_000_000).to_bytes(4, "little") + b"."
    assert "not a readable pickle of arrays: it gives an object the number 200000000 after 2 operations" in load_error(
        file, table
    )


def test_error_without_a_message_is_reported_by_its_type(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(detectron.pickletools, "genops", full)
    assert load_error(file, PYTHON_2).endswith("a readable pickle of arrays: MemoryError")


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"version https://git-lfs", PYTHON_2[:-20], PYTHON_2.replace(b"K\x02\x85", b"K\x03\x85")]
)
def test_damaged_file_is_rejected(file: Path, content: bytes) -> None:
    assert "not a readable pickle of arrays" in load_error(file, content)


@pytest.mark.parametrize("content", [[1], "text", None, {"blobs": 3}])
def test_file_without_a_dictionary_of_arrays_is_rejected(file: Path, content: Any) -> None:
    assert "expected a dictionary of arrays" in load_error(file, content)


@pytest.mark.parametrize("content", [{}, {"conv1_w": 3}, {"cls_score_w": np.ones(2)}])
def test_file_without_backbone_blobs_is_rejected(file: Path, content: Any) -> None:
    assert "contains no ResNet blobs" in load_error(file, content)


# ---------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("blob", "name"),
    [
        ("conv1_w", "conv1.weight"),
        ("res_conv1_bn_b", "bn1.bias"),
        ("res2_0_branch1_w", "layer1.0.downsample.0.weight"),
        ("res2_0_branch1_bn_s", "layer1.0.downsample.1.weight"),
        ("res4_22_branch2c_bn_b", "layer3.22.bn3.bias"),
        ("res5_2_branch2b_w", "layer4.2.conv2.weight"),
        ("conv1_gn_s", "bn1.weight"),
        ("res3_1_branch2a_gn_b", "layer2.1.bn1.bias"),
        ("conv1_b", None),
        ("conv1_w_momentum", None),
        ("fc1000_w", None),
        ("pred_b", None),
        ("res6_0_branch2a_w", None),
        ("fpn_inner_res5_2_sum_w", None),
    ],
)
def test_rename_maps_blobs_to_our_tensor_names(blob: str, name: str | None) -> None:
    assert rename(blob) == name
