"""Mapping from tensors of ImageNet files to those of our backbones, against the recorded rows."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden import manifest_of, pairs_of
from small_backbones import one_block_per_stage
from torch import Tensor, nn

from fcos.config.overrides import validate
from fcos.interop.fcos_core.config import config_from_yaml
from fcos.interop.fcos_core.weights import rename
from fcos.models.backbones import BACKBONES
from fcos.models.backbones import caffe2 as detectron


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "detectron_file" in metafunc.fixturenames:
        goldens: Any = metafunc.config.getoption("--goldens")
        files = sorted((goldens / "checkpoint").glob("c2_*.json"))
        metafunc.parametrize("detectron_file", files, ids=[file.stem for file in files])


def ours(keys: list[str]) -> list[str]:
    """Return our backbone's tensor names for keys of the original's model."""
    return [rename(key).removeprefix("backbone.") for key in keys]


def values(shape: list[int], name: str) -> np.ndarray:
    """Return values that differ between tensors."""
    return ((np.arange(np.prod(shape)) + sum(name.encode())) % 997).astype(np.float32).reshape(shape)


def build(goldens: Path, recorded: dict[str, Any], weights: Path) -> dict[str, Tensor]:
    """Return the state dict of the backbone in the recorded config, with weights from a file."""
    config = validate(config_from_yaml(manifest_of(goldens, recorded)["merged_config"], pairs_of(recorded)), where="x")
    options = {**config.model.backbone.model_dump(), "weights": str(weights)}
    backbone = BACKBONES[options.pop("name")](**options)
    assert isinstance(backbone, nn.Module)
    return backbone.state_dict()


def test_blob_names_map_as_in_the_original(detectron_file: Path) -> None:
    rows = json.loads(detectron_file.read_text())["blobs"]
    assert len(rows) > 200
    for blob, _, _, keys in rows:
        before_deformable = [name.replace(".conv2.conv.", ".conv2.") for name in ours(keys)]
        assert [detectron.rename(blob)] == (before_deformable or [None]), blob


def test_detectron_file_fills_the_same_tensors_as_in_the_original(
    detectron_file: Path, goldens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the first block of every stage is built; the names in the other blocks are tested above."""
    one_block_per_stage(monkeypatch)
    recorded = json.loads(detectron_file.read_text())
    rows = [row for row in recorded["blobs"] if not re.match(r"res\d_[1-9]", row[0])]
    blobs = {blob: values(shape, blob) for blob, shape, _, _ in rows}
    (tmp_path / "net.pkl").write_bytes(pickle.dumps(blobs))
    state = build(goldens, recorded, tmp_path / "net.pkl")
    filled = {name: blob for blob, _, _, keys in rows for name in ours(keys)}
    for name, blob in filled.items():
        assert np.array_equal(state[name].numpy(), blobs[blob]), name
    assert state.keys() - filled.keys() == set(ours(recorded["model_keys_not_in_file"])) & state.keys()
    for name in state.keys() - filled.keys():
        if ".offset." not in name:
            assert torch.equal(state[name], torch.full_like(state[name], name.endswith("running_var"))), name


def test_mobilenet_file_fills_the_same_tensors_as_in_the_original(goldens: Path, tmp_path: Path) -> None:
    recorded = json.loads((goldens / "checkpoint" / "mobilenet_v2.json").read_text())
    file = {key: torch.from_numpy(values(shape, key)) for key, shape, _, _ in recorded["blobs"]}
    torch.save(file, tmp_path / "net.pth")
    state = build(goldens, recorded, tmp_path / "net.pth")
    filled = {name: key for key, _, _, keys in recorded["blobs"] for name in ours(keys)}
    assert len(filled) > 200
    for name, key in filled.items():
        assert torch.equal(state[name], file[key]), name
    left = state.keys() - filled.keys()
    assert left == set(ours(recorded["model_keys_not_in_file"])) & state.keys()
    assert all(name.endswith("num_batches_tracked") for name in left)
