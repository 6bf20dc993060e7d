"""Checks of the content of a weights file, made once when it is read.

`torch.load` guarantees tensors and plain data, but not that each value has the type, shape or size that the code relies
on: files are edited, exported by other tools, and damaged before they are written.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .config.detectors import DEFAULT_DETECTOR, DETECTORS
from .config.options import in_effect, info_of, options_of
from .config.text import flatten
from .keypoints import KeypointLayout

COUNTER_SUFFIX = ".num_batches_tracked"
"""Suffix of the integer tensors of a model, the counters of batch norm."""
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_MAX_ID = 2**63 - 1
_SECTIONS = ("model", "data", "train", "eval")
_ALWAYS_ALLOWED_COUNT, _ALWAYS_ALLOWED_SIZE = 16, 256
"""Numbers of layers and of channels that never take much memory, whatever the weights are."""


def describe_tensor_problem(value: Any) -> str:
    """Return why a value is not an ordinary tensor on the CPU; empty if it is one.

    An ordinary tensor is dense, and its storage holds every element. A view of a smaller storage can claim any size,
    and kernels that write in place would write one element several times.
    """
    if not isinstance(value, Tensor):
        return f"not a tensor but {type(value).__name__}"
    if value.layout != torch.strided or value.is_quantized or value.is_nested or value.device.type != "cpu":
        return "not a dense tensor"
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return f"the shape {list(value.shape)} is larger than the stored data"
    return ""


def describe_weight_problems(tensors: Mapping[Any, Any]) -> list[str]:
    """Describe the entries of a state dict that cannot be weights: one text each, empty list if all can be.

    Weights are ordinary tensors of finite floating-point numbers; counters of batch norm are integers.
    """
    problems = {name: _describe_weight_problem(name, value) for name, value in tensors.items()}
    return [f"{name!s:.80}: {problem}" for name, problem in problems.items() if problem]


def _describe_weight_problem(name: Any, value: Any) -> str:
    if not isinstance(name, str):
        return "the name is not text"
    problem = describe_tensor_problem(value)
    if problem:
        return problem
    if name.endswith(COUNTER_SUFFIX):
        return "" if value.dtype == torch.int64 or value.dtype in _FLOATS else f"values of type {value.dtype}"
    if value.dtype not in _FLOATS:
        return f"values of type {value.dtype}"
    return "" if value.isfinite().all() else "values that are not finite"


def describe_metadata_problems(content: Mapping[str, Any]) -> list[str]:
    """Describe the invalid entries of a file of ours, except its weights: one text each, empty list if all are valid.

    Args:
        content: the dictionary in the file, whose required keys are present with values of the right type.
    """
    names, ids = content["class_names"], content["category_ids"]
    checks = {
        "metrics": _are_numbers(content.get("metrics", {})),
        "thresholds": _are_numbers(content.get("thresholds", {})),
        "class_names": all(isinstance(name, str) for name in names),
        "category_ids": all(map(_is_id, ids)) and len({*ids}) == len(ids) > 0,
        "iteration": _is_id(content.get("iteration", 0)) and content.get("iteration", 0) >= 0,
        "licence": isinstance(content.get("licence", ""), str),
        "keypoint_layout": _is_keypoint_layout(content.get("keypoint_layout", {})),
        "training": isinstance(content.get("training"), dict | None),
        "config": _has_sections(content["config"]),
    }
    problems = [name for name, is_valid in checks.items() if not is_valid]
    if not problems:
        problems = _describe_oversized_options(content["config"].get("model", {}), content["model"])
    if len(names) not in (0, len(ids)):
        problems.append(f"class_names ({len(names)} for {len(ids)} category_ids)")
    return problems


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _MAX_ID


def _is_keypoint_layout(value: Any) -> bool:
    """Return whether a value is a dictionary with the fields of a `KeypointLayout`, or an empty one."""
    if value == {}:
        return True
    if not isinstance(value, dict) or value.keys() != {*KeypointLayout._fields}:
        return False
    names, *lists = value["names"], value["skeleton"], value["pairs"]
    return (
        isinstance(names, tuple)
        and all(isinstance(name, str) for name in names)
        and isinstance(value["skeleton"], tuple)
        and isinstance(value["pairs"], tuple | None)
        and all(_is_pair(pair, len(names)) for pairs in lists for pair in pairs or ())
    )


def _is_pair(value: Any, count: int) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(type(i) is int and 0 <= i < count for i in value)


def _are_numbers(values: Any) -> bool:
    """Return whether `values` is a dictionary of numbers, of which metrics may be NaN."""
    return isinstance(values, dict) and all(
        isinstance(name, str) and isinstance(value, int | float) and not math.isinf(value)
        for name, value in values.items()
    )


def _has_sections(config: dict[Any, Any]) -> bool:
    return all(isinstance(key, str) for key in config) and all(
        isinstance(config.get(name, {}), dict) for name in _SECTIONS
    )


def _describe_oversized_options(section: Mapping[str, Any], weights: Mapping[str, Tensor]) -> list[str]:
    """Describe the options of the section `model` that are larger than the weights can be.

    The detector is built before its weights are loaded, so such an option would take any amount of memory or time.
    Options without effect may have any value.
    """
    name = section.get("name", DEFAULT_DETECTOR)
    options = options_of(DETECTORS[name]) if isinstance(name, str) and name in DETECTORS else {}
    max_count = max(_ALWAYS_ALLOWED_COUNT, len(weights))
    max_size = max(_ALWAYS_ALLOWED_SIZE, *(side for tensor in weights.values() for side in tensor.shape))
    problems = []
    defaults = flatten(DETECTORS[name].model_validate({}).model_dump()) if options else {}
    for key, value in in_effect({**defaults, **flatten(section)}, options).items():
        info = info_of(options, key)
        if info is None or "shape" not in info.roles:
            continue
        is_count = key.rpartition(".")[2].startswith("num_") or isinstance(value, list)
        size = len(value) if isinstance(value, list) else value if isinstance(value, int) else 0
        if size > (max_count if is_count else max_size):
            problems.append(f"config (model.{key}={str(value)[:40]} is larger than the weights)")
    return problems
