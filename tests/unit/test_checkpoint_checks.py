"""Weights files whose content is not what it should be: each is rejected with one message when it is read."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectors import CATEGORY_IDS, NAMES, tiny_config, tiny_model
from torch import Tensor

import fcos
from fcos.checkpoint import save_checkpoint
from fcos.errors import WeightsError
from fcos.interop.checkpoints import load_checkpoint

WEIGHT = "fpn.lateral.0.weight"


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config, path = tiny_config(), tmp_path_factory.mktemp("intact") / "a.pt"
    save_checkpoint(path, model=tiny_model(config), config=config, class_names=NAMES, category_ids=CATEGORY_IDS)
    return path


@pytest.fixture
def file(intact: Path, tmp_path: Path) -> Path:
    """A copy that the test may change."""
    return Path(shutil.copy(intact, tmp_path))


def change(file: Path, act: Callable[[dict[str, Any]], object]) -> None:
    content = torch.load(file, weights_only=True)
    act(content)
    torch.save(content, file)


def message(file: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        fcos.load(file, device="cpu")
    assert str(file) in str(caught.value)
    assert str(caught.value).endswith("copy it again or use an earlier one")
    assert len(str(caught.value)) < 1000
    return str(caught.value)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("text", "not a tensor but str"),
        (None, "not a tensor but NoneType"),
        ([1.0, 2.0], "not a tensor but list"),
        (torch.eye(3).to_sparse(), "not a dense tensor"),
        (torch.zeros(3, device="meta"), "not a dense tensor"),
        (torch.zeros(1).expand(1000, 1000, 1000), "the shape [1000, 1000, 1000] is larger than the stored data"),
        (torch.zeros(3, dtype=torch.int64), "values of type torch.int64"),
        (torch.zeros(3, dtype=torch.bool), "values of type torch.bool"),
        (torch.zeros(3, dtype=torch.complex64), "values of type torch.complex64"),
        (torch.tensor([1.0, float("nan")]), "values that are not finite"),
        (torch.tensor([float("inf")]), "values that are not finite"),
    ],
)
def test_an_entry_that_is_not_a_weight_is_rejected(file: Path, value: Any, problem: str) -> None:
    change(file, lambda content: content["model"].update({WEIGHT: value}))
    assert f" entries are not weights: {WEIGHT}: {problem}; copy it again" in message(file)


def test_weights_that_are_all_nan_are_rejected_in_a_short_message(file: Path) -> None:
    change(file, lambda content: [tensor.fill_(torch.nan) for tensor in floats(content["model"])])
    assert "values that are not finite and " in message(file)


def floats(model: dict[str, Tensor]) -> list[Tensor]:
    return [tensor for tensor in model.values() if tensor.is_floating_point()]


def test_a_name_that_is_not_text_is_rejected(file: Path) -> None:
    change(file, lambda content: content["model"].update({7: torch.zeros(1)}))
    assert "7: the name is not text" in message(file)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_in_another_floating_point_precision_load(file: Path, dtype: torch.dtype) -> None:
    change(file, lambda content: content["model"].update({WEIGHT: content["model"][WEIGHT].to(dtype)}))
    assert fcos.load(file, device="cpu").class_names == NAMES


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("class_names", [None, "dog"]),
        ("class_names", [b"cat", b"dog"]),
        ("category_ids", ["1", "2"]),
        ("category_ids", [1.5, 2]),
        ("category_ids", [True, False]),
        ("category_ids", [4, 4]),
        ("category_ids", [1, 2**70]),
        ("category_ids", []),
        ("licence", 5),
        ("licence", None),
        ("iteration", "many"),
        ("iteration", -1),
        ("iteration", 10**30),
        ("metrics", {"AP": "0.5"}),
        ("metrics", {5: 0.5}),
        ("thresholds", {"cat": float("inf")}),
        ("training", [1, 2]),
        ("config", {"model": 5}),
        ("config", {"data": "cells"}),
        ("config", {3: {}}),
        ("keypoint_layout", None),
        ("keypoint_layout", {"names": ("a", "b")}),
        ("keypoint_layout", {"names": ("a", 5), "skeleton": (), "pairs": None}),
        ("keypoint_layout", {"names": ("a", "b"), "skeleton": ((0, 2),), "pairs": None}),
        ("keypoint_layout", {"names": ("a", "b"), "skeleton": (), "pairs": (0, 1)}),
    ],
)
def test_metadata_of_the_wrong_type_is_rejected(file: Path, name: str, value: Any) -> None:
    change(file, lambda content: content.update({name: value}))
    assert f"damaged checkpoint: invalid {name}" in message(file)


@pytest.mark.parametrize(
    ("section", "option", "value"),
    [
        ("fpn", "channels", 10**9),
        ("fpn", "channels", 32 * 10**6),
        ("head", "num_convs", 10**6),
        ("head", "num_shared_convs", 10**18),
    ],
)
def test_an_option_larger_than_the_weights_is_rejected(file: Path, section: str, option: str, value: int) -> None:
    change(file, lambda content: content["config"]["model"][section].update({option: value}))
    assert f"invalid config (model.{section}.{option}={value} is larger than the weights)" in message(file)


def test_more_pyramid_levels_than_weights_are_rejected(file: Path) -> None:
    strides = [2**i for i in range(3, 1000)]
    change(file, lambda content: content["config"]["model"].update(strides=strides, size_ranges=[[0, None]] * 997))
    assert "invalid config (model.strides=[8, 16, 32" in message(file)


@pytest.mark.parametrize(
    "value", [torch.eye(3).to_sparse(), torch.zeros(3, dtype=torch.int32), torch.tensor(torch.nan)]
)
def test_weights_of_another_project_with_odd_tensors_are_rejected(tmp_path: Path, value: Tensor) -> None:
    names = ("head.classification_head.cls_logits.bias", "head.regression_head.bbox_ctrness.bias")
    torch.save({**dict.fromkeys(names, torch.zeros(3)), "head.odd": value}, tmp_path / "a.pth")
    with pytest.raises(WeightsError) as caught:
        load_checkpoint(tmp_path / "a.pth")
    assert str(tmp_path / "a.pth") in str(caught.value)
    assert "1 of 3 entries are not weights: head.odd: " in str(caught.value)
