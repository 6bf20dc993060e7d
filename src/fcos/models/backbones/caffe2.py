"""Loading of pickles of arrays: backbones in Detectron's files (Caffe2 blobs), and detectron2's weights.

A pickle names functions that are called when it is loaded, so it can run any code. This reader admits only numbers,
text, arrays and plain containers. It builds the arrays itself, because numpy's functions trust what a pickle states
about memory. A pickle can also set attributes; no admitted object has attributes that it could set. Names of blobs are
facts about Detectron; they agree with those recorded from the original FCOS.
"""

from __future__ import annotations

import pickle
import pickletools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import WeightsError

_BLOB = re.compile(r"(?:res_)?(?:conv1|res([2-5])_(\d+)_branch(1|2[abc]))_(w|(?:bn|gn)_[sb])")


def rename(blob: str) -> str | None:
    """Return the name in torchvision's ResNet for a blob, or None for a blob that a backbone does not use.

    Unused are the biases of convolutions (a norm follows), the classifier (`fc1000`, `pred`) and `_momentum`.
    """
    match = _BLOB.fullmatch(blob)
    if match is None:
        return None
    stage, block, branch, kind = match.groups()
    number = 1 if stage is None else "abc".find(branch[-1]) + 1
    layer = ("conv" if kind == "w" else "bn") + str(number)
    if branch == "1":
        layer = f"downsample.{'0' if kind == 'w' else '1'}"
    prefix = "" if stage is None else f"layer{int(stage) - 1}.{block}."
    return f"{prefix}{layer}.{'bias' if kind.endswith('b') else 'weight'}"


def load_backbone(path: Path) -> dict[str, Tensor]:
    """Load the backbone of a Detectron file as a state dict with torchvision's names.

    Detectron's batch norm only has scale and offset, so its statistics are set to mean 0 and variance 1.

    Raises:
        WeightsError: the file is not a pickle, contains more than arrays and plain containers, or has no backbone.
        OSError: the file cannot be opened.
    """
    state: dict[str, Tensor] = {}
    for blob, array in _read_blobs(path).items():
        name = rename(blob)
        if name is None:
            continue
        state[name] = torch.from_numpy(array)
        if blob.endswith("_bn_s"):
            norm = name.removesuffix("weight")
            state |= {f"{norm}running_mean": torch.zeros(array.shape), f"{norm}running_var": torch.ones(array.shape)}
    if not state:
        raise WeightsError(f"{path}: contains no ResNet blobs (expected conv1_w, res2_0_branch2a_w, ...)")
    return state


def _read_blobs(path: Path) -> dict[str, np.ndarray]:
    """Load the arrays of a pickle by name, from its dictionary or from the dictionary under the key `blobs`."""
    content = _read(path)
    content = content.get("blobs", content) if isinstance(content, dict) else None
    if not isinstance(content, dict):
        raise WeightsError(f"{path}: expected a dictionary of arrays, as Detectron writes it")
    return {n: blob.array for n, blob in content.items() if isinstance(n, str) and isinstance(blob, _Array)}


def load_pickle(path: Path) -> Any:
    """Load a pickle of up to two nested dictionaries of arrays, with tensors in the place of the arrays.

    Raises:
        WeightsError: the file is missing, is not a pickle, or contains more than arrays and plain containers.
    """
    try:
        content = _read(path)
    except OSError as error:
        raise WeightsError(f"{path}: {error.strerror or error}; expected a weights file") from None
    return _with_tensors(content, depth=2)


def _with_tensors(value: Any, *, depth: int) -> Any:
    """Replace arrays in nested dictionaries, which may contain themselves, down to a depth."""
    if isinstance(value, _Array):
        return torch.from_numpy(value.array)
    if not isinstance(value, dict) or not depth:
        return value
    return {key: _with_tensors(item, depth=depth - 1) for key, item in value.items()}


def _read(path: Path) -> Any:
    """Load the content of a pickle, whose arrays become `_Array`.

    Raises:
        WeightsError: the file is not a pickle, or contains more than arrays and plain containers.
        OSError: the file cannot be opened.
    """
    with path.open("rb") as file:
        try:
            for count, (operation, number, _) in enumerate(pickletools.genops(file)):
                if operation.name.endswith("PUT") and (number or 0) > count:  # the unpickler allocates this much
                    raise pickle.UnpicklingError(f"it gives an object the number {number} after {count} operations")
            file.seek(0)
            return _Unpickler(file, encoding="latin1").load()  # latin1 keeps the bytes of Python 2 strings
        except Exception as error:  # bytes that are not a pickle can raise any exception
            reason = str(error) or type(error).__name__
            raise WeightsError(f"{path}: not a readable pickle of arrays: {reason}") from None


class _Type:
    """Replacement for `numpy.dtype` that only admits plain numbers."""

    def __init__(self, code: str, *_: Any):
        if not re.fullmatch(r"[biuf][1248]", code):
            raise pickle.UnpicklingError(f"an array of type {code!r}; only plain numbers are supported")
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1].replace("|", "=")

    def read(self, data: Any) -> np.ndarray:
        """Copy the numbers in `data` (bytes) to a new flat array."""
        data = data.encode("latin1") if isinstance(data, str) else data
        return np.frombuffer(data, np.dtype(self.order + self.code)).astype(self.code)


class _Array:
    """Replacement for `numpy.ndarray` and for the function that creates an empty one.

    The pickle sets the content with `__setstate__`.
    """

    array = np.empty(0, np.float32)

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        self.array = dtype.read(data).reshape(shape, order="F" if fortran else "C")


class _Function:
    """Callable wrapper of a function, without attributes that a pickle can set."""

    def __init__(self, function: Callable[..., Any]):
        self.function = function

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)

    def __setstate__(self, _: Any) -> None:
        raise pickle.UnpicklingError("it sets attributes of a function")


@_Function
def _from_buffer(data: Any, dtype: _Type, shape: tuple[int, ...], order: str, *_: Any) -> _Array:
    array = _Array()
    array.__setstate__((1, shape, dtype, order == "F", data))
    return array


@_Function
def _scalar(dtype: _Type, data: Any) -> int | float:
    return dtype.read(data).item()


@_Function
def _bytes(text: str, encoding: str) -> bytes:
    """Return the bytes that Python 3 pickled as text for Python 2."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in the encoding {encoding!r}; only latin1 is supported")
    return text.encode(encoding)


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): dict,  # a dict has no attributes to set
    ("_codecs", "encode"): _bytes,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
}
_NUMPY_FUNCTIONS = {
    ("multiarray", "_reconstruct"): _Array,
    ("multiarray", "scalar"): _scalar,
    ("numeric", "_frombuffer"): _from_buffer,
}
for _core in ("core", "_core"):  # before numpy 2, and since
    _ALLOWED |= {
        (f"numpy.{_core}.{module}", name): replacement for (module, name), replacement in _NUMPY_FUNCTIONS.items()
    }


class _Unpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """Return the replacement for an admitted global of a pickle.

        Raises:
            UnpicklingError: the global is not admitted.
        """
        try:
            return _ALLOWED[module_name, global_name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it refers to {module_name}.{global_name}; only arrays and plain containers are allowed, because"
                " everything else can run code"
            ) from None
