"""`fcos.train` passes on its arguments. Other test modules cover `fcos.load` and `fcos.evaluate`."""

import pytest
from detectors import CATEGORY_IDS, NAMES, tiny_config, tiny_model

import fcos
from fcos import Config, ConfigError
from fcos.checkpoint import save_checkpoint
from fcos.training import loop


@pytest.fixture
def trained(monkeypatch):
    """Return a list that collects the arguments of calls to the training loop, which is replaced."""
    calls = []
    monkeypatch.setattr(loop, "train", lambda config, *, name: calls.append((config, name)))
    return calls


def test_train_applies_overrides_and_names_the_run_after_the_recipe(trained):
    fcos.train("fcos_mnv2_small", "data=cells", "train.max_minutes=10")
    ((config, name),) = trained
    assert name == "fcos_mnv2_small"
    assert str(config.data.root) == "cells"
    assert (config.train.max_minutes, config.train.iterations) == (10, None)


def test_train_names_the_run_after_the_yaml_file(trained, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("train: {lr: 0.5}")
    fcos.train(path)
    ((config, name),) = trained
    assert (config.train.lr, name) == (0.5, "mine")


def test_train_does_not_modify_the_config(trained):
    config = Config()
    fcos.train(config, "train.lr=0.5")
    ((passed, _),) = trained
    assert passed.train.lr == 0.5
    assert config.train.lr == 0.01


def test_unknown_override_is_rejected_before_training(trained):
    with pytest.raises(ConfigError, match=r"train\.lrr"):
        fcos.train(Config(), "train.lrr=0.5")
    assert trained == []


def test_load_rejects_key_value_pairs_with_a_config_object(tmp_path):
    config = tiny_config()
    save_checkpoint(
        tmp_path / "a.pt", model=tiny_model(config), config=config, class_names=NAMES, category_ids=CATEGORY_IDS
    )
    with pytest.raises(ConfigError, match=r"option 'TEST\.DETECTIONS_PER_IMG': expected key=value"):
        fcos.load(tmp_path / "a.pt", "TEST.DETECTIONS_PER_IMG", "5", config=config)


def test_load_uses_the_device_override():
    with pytest.raises(ConfigError, match="abacus"):
        fcos.load("fcos_mnv2_small", "model.backbone.weights=null", "device=abacus")


def test_load_rejects_a_config_in_addition_to_a_recipe():
    with pytest.raises(ConfigError, match="config: not allowed, because fcos_mnv2_small is itself a config"):
        fcos.load("fcos_mnv2_small", config="fcos_r50_fpn_1x")
