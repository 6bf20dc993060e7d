"""Configs of the original against their recorded manifests: tensors, trainable parameters, their lr and decay.

The models are built on the meta device, because no test depends on a value. The order of the tensors is not compared:
within a ResNet block and within the pyramid it is torchvision's and ours, and no number depends on it.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from golden import folder, manifest_files

from fcos.checkpoint import Checkpoint
from fcos.config import Config
from fcos.config.overrides import validate
from fcos.config.text import flatten
from fcos.interop.fcos_core.config import config_from_yaml
from fcos.interop.fcos_core.keys import DEFAULTS, is_idle
from fcos.interop.fcos_core.mapping import to_keys
from fcos.interop.fcos_core.weights import rename, to_fcos_core
from fcos.models import DetectionModel, build_model
from fcos.training.optim import build_optimizer, learning_rate_factor, parameter_settings, set_learning_rate


class Row(NamedTuple):
    """Recorded tensor, with its name translated to ours."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: str
    requires_grad: bool | None
    lr: float | None
    weight_decay: float | None


class Manifest(NamedTuple):
    recorded: dict[str, Any]
    rows: list[Row]
    config: Config
    net: DetectionModel


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "manifest" in metafunc.fixturenames:
        paths = manifest_files(metafunc.config)
        metafunc.parametrize("manifest", paths, ids=[p.stem for p in paths], indirect=True, scope="module")


@pytest.fixture(scope="module")
def manifest(request: pytest.FixtureRequest) -> Manifest:
    recorded = json.loads(request.param.read_text())
    config = validate(config_from_yaml(recorded["merged_config"]), where=request.param.stem)
    rows = [Row(rename(name, config.model.name), tuple(shape), *rest) for name, shape, *rest in recorded["tensors"]]
    with torch.device("meta"):
        net = build_model(config.model, num_classes=config.model.num_classes or 0, pretrained=False)
    return Manifest(recorded, rows, config, net)


def test_manifests_exist_for_all_configs(pytestconfig: pytest.Config) -> None:
    counts = Counter(file.parent.name for file in manifest_files(pytestconfig))
    assert counts.keys() >= {"fcos", "retinanet"}
    if folder(pytestconfig) == (Path(__file__).parent / "goldens").resolve():
        assert (counts["fcos"], counts["retinanet"], counts.total()) == (19, 6, 77)


def test_state_dict_matches_the_original(manifest: Manifest) -> None:
    parameters = dict(manifest.net.named_parameters())
    ours = {
        (name, tuple(tensor.shape), str(tensor.dtype), "parameter" if name in parameters else "buffer")
        for name, tensor in {**dict(manifest.net.named_buffers()), **manifest.net.state_dict()}.items()
        if not name.startswith("pixel_")
    }
    assert ours == {(row.name, row.shape, f"torch.{row.dtype}", row.kind) for row in manifest.rows}
    assert len(ours) == manifest.recorded["counts"]["tensors"]


def test_weights_convert_to_the_original_and_back(manifest: Manifest) -> None:
    model = manifest.net.state_dict()
    ids = tuple(range(1, manifest.net.num_classes + 1))
    checkpoint = Checkpoint(model=model, config=manifest.config.to_dict(), class_names=(), category_ids=ids)
    converted = to_fcos_core(checkpoint)
    recorded = {name: tuple(shape) for name, shape, *_ in manifest.recorded["tensors"]}
    assert {name: tuple(tensor.shape) for name, tensor in converted.items()} == recorded
    back = {rename(name, manifest.config.model.name): tensor for name, tensor in converted.items()}
    assert all(back[name] is tensor for name, tensor in model.items() if not name.startswith("pixel_"))


def test_model_config_converts_to_the_original_and_back(manifest: Manifest) -> None:
    section = manifest.config.to_dict()["model"]
    settings = to_keys(flatten(section), manifest.net.num_classes)
    again = validate(config_from_yaml(settings), where="x").to_dict()["model"]
    del section["num_classes"], again["num_classes"]  # a default; the weights determine it
    section["backbone"]["weights"] = None  # the converted weights contain the backbone
    assert again == section


def test_settings_are_those_of_the_original_config(manifest: Manifest) -> None:
    """All keys of `MODEL` that the config sets and that affect its detector are found again, and no others."""
    given, detector = flatten(manifest.recorded["merged_config"]), manifest.config.model.name
    values = {key: _as_list(given[key]) for key in DEFAULTS if key.startswith(("MODEL.", "INPUT.PIXEL", "INPUT.TO_"))}
    expected = {
        key: value
        for key, value in values.items()
        if value != _as_list(DEFAULTS[key]) and key != "MODEL.WEIGHT" and not is_idle(key, detector)
    }
    settings = to_keys(flatten(manifest.config.to_dict()["model"]), manifest.net.num_classes)
    chosen = ("MODEL.FCOS_ON", "MODEL.RETINANET_ON", "MODEL.RPN_ONLY")
    assert {key: _as_list(value) for key, value in settings.items() if key not in chosen} == {
        key: value for key, value in expected.items() if key not in chosen
    }
    assert {key: settings.get(key, DEFAULTS[key]) for key in chosen} == {key: given[key] for key in chosen}


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def test_requires_grad_lr_and_weight_decay_match_the_original(manifest: Manifest) -> None:
    net, train = manifest.net, manifest.config.train
    settings = {s.name: (s.lr, s.weight_decay) for s in parameter_settings(net, train)}
    ours = {name: (p.requires_grad, *settings.get(name, (None, None))) for name, p in net.named_parameters()}
    assert ours == {r.name: (r.requires_grad, r.lr, r.weight_decay) for r in manifest.rows if r.kind == "parameter"}
    assert len(settings) == manifest.recorded["optimizer"]["groups"]


def test_optimizer_settings_match_the_original(manifest: Manifest) -> None:
    recorded, optimizer = manifest.recorded["optimizer"], build_optimizer(manifest.net, manifest.config.train)
    assert type(optimizer).__name__ == recorded["type"]
    for key in ("momentum", "nesterov", "dampening"):
        assert {group[key] for group in optimizer.param_groups} == {recorded[key]}


def test_learning_rates_match_the_original(manifest: Manifest) -> None:
    train = manifest.config.train
    optimizer = build_optimizer(manifest.net, train)
    assert train.iterations is not None
    for iteration, expected in manifest.recorded["lr_values_at_iteration"].items():
        set_learning_rate(optimizer, learning_rate_factor(int(iteration), train.iterations, train))
        # The same float64 arithmetic in another order.
        assert sorted({g["lr"] for g in optimizer.param_groups}) == pytest.approx(expected, rel=1e-12)
