"""User-defined backbone, `package.module:function`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from detectors import build_fcos
from own_backbone import Own

import fcos
from fcos.checkpoint import save_checkpoint
from fcos.config import Config
from fcos.errors import ConfigError
from fcos.models.fcos import FCOS
from fcos.recipes import load_config

NAME = "model.backbone.name=own_backbone:Own"
SMALL = ["model.fpn.channels=32", "model.head.num_convs=1"]


def config(*overrides: str) -> Config:
    return load_config(None, [*SMALL, *overrides])


def build(*overrides: str) -> FCOS:
    return build_fcos(config(*overrides).model, num_classes=2)


def test_user_backbone_receives_its_options() -> None:
    model = build(NAME, "model.backbone.options.width=6")
    assert isinstance(model.backbone, Own)
    assert model.backbone.channels == {"C3": 6, "C4": 6, "C5": 6}
    found = model.eval().detect(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), torch.tensor([[64, 64]]))
    assert len(found) == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["model.backbone.name=no_such_module:f"],
            "no module 'no_such_module'; install it, or .* PYTHONPATH",
        ),
        (
            ["model.backbone.name=broken_module:f"],
            "importing 'broken_module' failed: ZeroDivisionError: division by zero",
        ),
        (["model.backbone.name=own_backbone:f"], "the module 'own_backbone' has no function 'f'"),
        (["model.backbone.name=own_backbone:no_backbone"], "found Identity without channels and strides"),
        (["model.backbone.name=own backbone:f"], "model.backbone.name: "),
        ([NAME, "model.backbone.options.wide=6"], "options of own_backbone:Own: got an unexpected .* 'wide'"),
        ([NAME, "model.backbone.options.wrong_stride=true"], r"expected maps {'C3': \(1, 4, 16, 24\).* found {'C3'"),
        (
            [NAME, "model.strides=[8, 16]", "model.size_ranges=[[-1, 64], [64, null]]"],
            "maps after C4, .* no method truncate_after",
        ),
        ([NAME, "model.backbone.width=6"], "no such option; known options: name, options"),
    ],
)
def test_invalid_user_backbone_is_rejected(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(*overrides)


def test_load_runs_user_backbone_code_only_if_named_explicitly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, model, path, ran = "model.backbone.name=fresh:Own", build(NAME), tmp_path / "own.pt", tmp_path / "ran"
    (tmp_path / "fresh.py").write_text(f"from own_backbone import Own\nopen({str(ran)!r}, 'x').close()\n")
    monkeypatch.syspath_prepend(tmp_path)
    save_checkpoint(path, model=model, config=config(name), class_names=["cat", "dog"], category_ids=[1, 2])
    with pytest.raises(ConfigError, match=r"own.pt: .* code .* add model.backbone.name=fresh:Own"):
        fcos.load(path)
    with pytest.raises(ConfigError, match="loading it runs the code"):
        fcos.load(path, "model.score_threshold=0.1")
    assert not ran.exists()
    assert fcos.load(path, name, device="cpu").model.state_dict().keys() == model.state_dict().keys()
    assert ran.exists()


def test_the_backbone_of_the_guide_works_on_images_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guide = (Path(__file__).parents[2] / "docs/training.md").read_text(encoding="utf-8")
    code = next(block for block in re.findall(r"^```python\n(.*?)^```$", guide, re.DOTALL | re.M) if "TinyNet" in block)
    (tmp_path / "guide_backbone.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    model = build("model.backbone.name=guide_backbone:TinyNet", "model.backbone.options.width=6")
    features = model.backbone(torch.zeros(1, 3, 65, 100))
    assert [(name, tuple(x.shape)) for name, x in features.items()] == [
        ("C3", (1, 6, 9, 13)),
        ("C4", (1, 12, 5, 7)),
        ("C5", (1, 24, 3, 4)),
    ]
