"""Weights files of backbones."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from small_backbones import build, classifier, one_block_per_stage, randomise
from torch import nn

from fcos.errors import WeightsError
from fcos.models.backbones import resnet
from fcos.models.backbones.pretrained import imagenet_weights

TORCHVISIONS = ["resnet50", "mobilenet_v2"]


@pytest.fixture(autouse=True)
def _few_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    one_block_per_stage(monkeypatch)


@pytest.mark.parametrize(("norm", "wrapped"), [("bn", None), ("frozen_bn", "model"), ("sync_bn", "state_dict")])
@pytest.mark.parametrize("name", TORCHVISIONS)
def test_torchvision_classifier_weights_load(name: str, norm: str, wrapped: str | None, tmp_path: Path) -> None:
    state = randomise(classifier(name))
    torch.save(state if wrapped is None else {wrapped: state, "epoch": 3}, tmp_path / "net.pth")
    own = build(name, norm=norm, weights=str(tmp_path / "net.pth")).state_dict()
    assert len(own) > 50
    for key, tensor in own.items():
        assert torch.equal(tensor, state[key]), key


@pytest.mark.parametrize("name", TORCHVISIONS)
def test_features_match_torchvision(name: str, tmp_path: Path) -> None:
    net = classifier(name).eval()
    torch.save(net.state_dict(), tmp_path / "net.pth")
    backbone, images = build(name, weights=str(tmp_path / "net.pth"), frozen_stages=3).eval(), torch.randn(1, 3, 64, 64)
    deepest = backbone(images)["C5"]
    if name == "mobilenet_v2":
        expected = dict(net.named_children())["features"][:18](images)  # pyright: ignore[reportIndexIssue]
    else:
        expected = nn.Sequential(*list(net.children())[:-2])(images)
    torch.testing.assert_close(deepest, expected)


@pytest.mark.parametrize("name", TORCHVISIONS)
def test_weights_without_a_classifier_load(name: str, tmp_path: Path) -> None:
    state = {k: v for k, v in classifier(name).state_dict().items() if not k.startswith(("fc.", "classifier."))}
    torch.save(state, tmp_path / "net.pth")
    assert build(name, weights=str(tmp_path / "net.pth"))


def load_error(tmp_path: Path, content: Any, *, name: str = "mobilenet_v2", **options: Any) -> str:
    path = tmp_path / "net.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(WeightsError) as caught:
        build(name, weights=str(path), **options)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_weights_of_another_network_are_rejected(tmp_path: Path) -> None:
    text = load_error(tmp_path, classifier("resnet50").state_dict())
    assert "does not fit mobilenet_v2" in text
    assert "missing" in text
    assert "unknown" in text


def test_weights_with_another_norm_are_rejected(tmp_path: Path) -> None:
    text = load_error(tmp_path, classifier("resnet50").state_dict(), name="resnet50", norm="gn")
    assert "use the kind of norm that the weights have" in text


def test_width_mismatch_error_lists_the_tensor_shapes(tmp_path: Path) -> None:
    state = torchvision.models.mobilenet_v2(width_mult=0.5).state_dict()
    text = load_error(tmp_path, state)
    assert "does not fit mobilenet_v2: " in text
    first = "features.0.0.weight [16, 3, 3, 3] instead of [32, 3, 3, 3], features.0.1.weight [16] instead of [32], "
    assert f" of a different shape, such as {first}" in text
    assert text.endswith("; give weights of mobilenet_v2, or model.backbone.weights=null")


def test_non_tensor_values_count_as_missing(tmp_path: Path) -> None:
    state = {**classifier("mobilenet_v2").state_dict(), "features.0.0.weight": 5, 7: torch.zeros(1)}
    text = load_error(tmp_path, state)
    assert "1 tensors missing ['features.0.0.weight'], 1 unknown ['7']" in text


@pytest.mark.parametrize("content", [{"model": "resnet"}, {"epoch": 3}, {}, [torch.zeros(3)], torch.zeros(3), 5])
def test_file_without_a_state_dict_is_rejected(content: Any, tmp_path: Path) -> None:
    assert "expected a state dict of tensors" in load_error(tmp_path, content)


@pytest.mark.parametrize("content", [b"", b"hello", b".", b"version https://git-lfs", b"PK\x03\x04rubbish", bytes(99)])
def test_file_of_another_format_is_rejected(content: bytes, tmp_path: Path) -> None:
    assert "not a readable state dict" in load_error(tmp_path, content)


def test_file_with_code_is_rejected(tmp_path: Path) -> None:
    assert "not a readable state dict" in load_error(tmp_path, {"model": pytest.raises})


def test_missing_file_and_folder_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no file .*expected `imagenet`, catalog://NAME, an address, a path, or"):
        build("mobilenet_v2", weights=str(tmp_path / "none.pth"))
    with pytest.raises(WeightsError, match="not a readable state dict"):
        build("mobilenet_v2", weights=str(tmp_path))


def test_detectron_pickle_loads(tmp_path: Path) -> None:
    blobs = {"conv1_w": np.full((64, 3, 7, 7), 2, np.float32), "res_conv1_bn_s": np.full(64, 3, np.float32)}
    (tmp_path / "net.pkl").write_bytes(pickle.dumps(blobs))
    state = imagenet_weights("resnet50", str(tmp_path / "net.pkl"))
    assert {name: tensor.unique().tolist() for name, tensor in state.items()} == {
        "conv1.weight": [2],
        "bn1.weight": [3],
        "bn1.running_mean": [0],
        "bn1.running_var": [1],
    }


def test_rejected_pickle_is_named_in_the_error(tmp_path: Path) -> None:
    (tmp_path / "net.pkl").write_bytes(pickle.dumps({"conv1_w": Path}))
    with pytest.raises(WeightsError, match=r"model\.backbone\.weights: .*net\.pkl: .*it refers to pathlib"):
        build("resnet50", weights=str(tmp_path / "net.pkl"))


def test_module_prefix_of_tensor_names_is_stripped(tmp_path: Path) -> None:
    torch.save({"module.conv1.weight": torch.zeros(1)}, tmp_path / "net.pth")
    assert list(imagenet_weights("resnet50", str(tmp_path / "net.pth"))) == ["conv1.weight"]


def test_tilde_in_weights_path_expands_to_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "net.pth")
    assert list(imagenet_weights("resnet50", "~/net.pth")) == ["conv1.weight"]


def test_residual_heads_have_separate_copies_of_the_weights_of_c5(tmp_path: Path) -> None:
    state = randomise(classifier("resnet50"))
    torch.save(state, tmp_path / "net.pth")
    backbone = build("resnet50", weights=str(tmp_path / "net.pth"))
    assert isinstance(backbone, resnet.ResNet)
    box, mask = backbone.build_head("box"), backbone.build_head("mask")
    backbone.truncate_after("C4")
    for head in (box, mask):
        assert all(torch.equal(tensor, state[name]) for name, tensor in head.state_dict().items())
    assert not {*box.parameters()} & {*mask.parameters()}
    assert not [name for name, _ in backbone.named_parameters() if name.startswith("layer4")]
