"""Results that would look right and be wrong: untrained detectors, weights under a wrong suffix, unused class names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectors import CATEGORY_IDS, NAMES, tiny_config, tiny_model
from PIL import Image

import fcos
from fcos import ConfigError, WeightsError, cli
from fcos.checkpoint import save_checkpoint
from fcos.choices import Form
from fcos.interop.checkpoints import load_checkpoint

UNTRAINED = ("model.backbone.weights=null", "model.num_classes=3", "device=cpu")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return save(tmp_path / "best.pt")


def save(path: Path, *, class_names: tuple[str, ...] = NAMES) -> Path:
    torch.manual_seed(0)
    config = tiny_config()
    save_checkpoint(path, model=tiny_model(config), config=config, class_names=class_names, category_ids=CATEGORY_IDS)
    return path


def run_cli(*words: object) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main([str(word) for word in words])
    return int(stop.value.code or 0)


class TestUntrained:
    def test_loading_a_recipe_warns(self, caplog: pytest.LogCaptureFixture) -> None:
        fcos.load("fcos_mnv2_small", *UNTRAINED)
        assert caplog.messages == [
            "fcos_mnv2_small: the detector is untrained: its head has random weights (train it with `fcos train`, or"
            " set train.weights=PATH of trained weights)"
        ]

    def test_an_untrained_detector_refuses_to_predict(self) -> None:
        detector = fcos.load("fcos_mnv2_small", *UNTRAINED)
        with pytest.raises(WeightsError, match="the detector is untrained"):
            detector.predict(Image.new("RGB", (64, 64)))

    @pytest.mark.parametrize("recipe", ["fcos_mnv2_small", "mine.yaml"])
    def test_the_command_refuses_a_recipe_before_a_download(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], recipe: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        Path("mine.yaml").write_text("train: {lr: 0.5}")
        Image.new("RGB", (64, 64)).save("photo.jpg")
        assert run_cli("predict", recipe, "photo.jpg") == 2
        assert f"fcos: {recipe}: a recipe or config without trained weights; train it with" in capsys.readouterr().err
        assert not Path("predictions").exists()

    def test_a_recipe_with_trained_weights_predicts(
        self, weights: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path
    ) -> None:
        recipe = tmp_path / "mine.yaml"
        recipe.write_text(f"train: {{weights: {weights}}}\ndevice: cpu")
        assert fcos.load(recipe).predict(Image.new("RGB", (64, 64))).size == (64, 64)
        assert caplog.messages == []


class TestConvert:
    @pytest.mark.parametrize("name", ["m.onnx", "m.safetensors", "m.pkl", "m.engine", "m.jpg", "m", ".pt", "m.pt.gz"])
    @pytest.mark.parametrize("to", ["fcos", "torchvision"])
    def test_another_suffix_is_rejected(self, weights: Path, tmp_path: Path, name: str, to: Form) -> None:
        with pytest.raises(WeightsError, match=r"must end in \.pt or \.pth, found"):
            fcos.convert(weights, tmp_path / name, to=to)
        assert not (tmp_path / name).exists()

    @pytest.mark.parametrize("name", ["m.pt", "m.pth", "m.v2.PT"])
    def test_torch_suffixes_are_accepted(self, weights: Path, tmp_path: Path, name: str) -> None:
        fcos.convert(weights, tmp_path / name)
        assert load_checkpoint(tmp_path / name).class_names == NAMES

    def test_other_class_names_for_a_file_that_has_names_are_rejected(self, weights: Path, tmp_path: Path) -> None:
        for names in ("[a, b, c]", "[dog, cat, owl]", "[cat]"):
            with pytest.raises(
                ConfigError, match=r"data\.classes: .*best\.pt already names its classes: cat, dog, owl"
            ):
                fcos.convert(weights, tmp_path / "m.pt", f"data.classes={names}")
            with pytest.raises(ConfigError, match=r"data\.classes"):
                fcos.load(weights, f"data.classes={names}")

    def test_the_same_class_names_are_accepted(self, weights: Path, tmp_path: Path) -> None:
        fcos.convert(weights, tmp_path / "m.pt", "data.classes=[cat, dog, owl]")
        assert load_checkpoint(tmp_path / "m.pt").class_names == NAMES

    def test_class_names_for_a_file_of_ours_without_names_are_saved(self, tmp_path: Path) -> None:
        nameless = save(tmp_path / "nameless.pt", class_names=())
        with pytest.raises(WeightsError, match=r"3 classes, but data\.classes has 2 names"):
            fcos.convert(nameless, tmp_path / "m.pt", "data.classes=[a, b]")
        fcos.convert(nameless, tmp_path / "m.pt", "data.classes=[a, b, c]")
        assert load_checkpoint(tmp_path / "m.pt").class_names == ("a", "b", "c")
