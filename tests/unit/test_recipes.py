"""Recipes that the original lacks: real-time detectors and levels for small objects; test_config has the others."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from detectors import build_fcos
from foreign_weights import state_of
from ground_truth import objects_of
from small_backbones import one_block_per_stage

from fcos.checkpoint import load_weights
from fcos.errors import ConfigError
from fcos.interop.checkpoints import from_content
from fcos.models.backbones import BACKBONES
from fcos.models.fcos import FCOS
from fcos.recipes import RECIPES, load_config, recipe_names
from fcos.training.loop import train

REAL_TIME = {
    "fcos_rt_r50_fpn_4x": "adelaidet__RT_MS_R_50_4x_syncbn",
    "fcos_rt_dla34_fpn_4x": "adelaidet__RT_MS_DLA_34_4x_syncbn_shared_towers",
}
"""Recorded models with the same structure, by recipe."""
SMALL = "fcos_imprv_r50_fpn_p2_1x"
FINE = ["model.strides=[4,8,16,32,64]", "model.size_ranges=[[-1,32],[32,64],[64,128],[128,256],[256,null]]"]
NETS = [*BACKBONES, "timm/test_resnet", "timm/test_efficientnet"]


@pytest.fixture(autouse=True)
def _few_blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reduce ResNets to one block per stage, except in tests that compare all tensors."""
    if "recorded" not in request.fixturenames:
        one_block_per_stage(monkeypatch)


def build(*options: str, recipe: str | None = SMALL) -> FCOS:
    """Build an untrained narrow detector with 3 classes."""
    config = load_config(recipe, [*options, "model.fpn.channels=32", "model.head.num_convs=1"])
    return build_fcos(config.model, num_classes=3)


@pytest.mark.parametrize("recipe", [*REAL_TIME, SMALL, "fcos_mnv2_nano"])
def test_recipe_trains_for_two_iterations(recipe: str, data: Path, tmp_path: Path) -> None:
    config = load_config(
        recipe,
        [
            f"data.root={data}",
            "data.workers=0",
            "data.short_side=[48,64]",
            "data.max_side=96",
            "data.test_short_side=64",
            "data.test_max_side=96",
            "model.backbone.weights=null",
            "train.batch_size=2",
            "train.iterations=2",
            f"output_dir={tmp_path / 'run'}",
            "device=cpu",
        ],
    )
    result = train(config)
    assert (result.run / "weights/best.pt").is_file()
    assert "AP" in result.metrics


def test_recipes_with_a_weight_average_select_statistics_of_its_age() -> None:
    settings = [load_config(name).train for name in recipe_names()]
    assert {train.ema_statistics for train in settings if train.ema} == {"same_age"}


@pytest.mark.parametrize(("recipe", "recorded"), REAL_TIME.items())
def test_real_time_recipes_match_tensors_of_the_recorded_models(recipe: str, recorded: str) -> None:
    theirs = from_content({"model": state_of(recorded, device="cpu")}, where=recipe)
    model = build_fcos(load_config(recipe).model, num_classes=80)
    load_weights(model, theirs.model, where=recipe)  # raises WeightsError if tensors or shapes differ


@pytest.mark.parametrize(("recipe", "recorded"), REAL_TIME.items())
def test_real_time_recipes_match_options_of_the_recorded_models(recipe: str, recorded: str) -> None:
    theirs = from_content({"model": state_of(recorded)}, where=recipe).config
    ours = load_config(recipe).to_dict()
    # Backbone, pixels, clipping and padding follow that project's ImageNet weights and conventions, so they may differ.
    keys = ("strides", "size_ranges", "center_sampling_radius", "box_loss")
    assert {key: ours["model"][key] for key in keys} == {key: as_data(theirs["model"][key]) for key in keys}
    assert ours["model"]["head"] == {**ours["model"]["head"], **theirs["model"]["head"]}
    sides = load_config(recipe).data
    assert [sides.detection_short_side] == theirs["data"]["short_side"]
    assert sides.detection_max_side == theirs["data"]["max_side"]


def as_data(value: Any) -> Any:
    return [as_data(item) for item in value] if isinstance(value, list | tuple) else value


def test_small_object_recipe_has_levels_of_strides_4_to_64() -> None:
    model = build()
    assert model.backbone_levels == ["C2", "C3", "C4", "C5"]
    assert len(model.fpn.extra) == 1
    images = torch.randint(0, 256, (1, 3, 97, 129), dtype=torch.uint8)
    outputs = model(images, torch.tensor([[97, 129]]))
    expected = [(math.ceil(97 / stride), math.ceil(129 / stride)) for stride in (4, 8, 16, 32, 64)]
    assert [tuple(level.shape[-2:]) for level in outputs.logits] == expected


def test_small_object_recipe_assigns_a_box_missed_by_coarser_levels() -> None:
    targets = objects_of([torch.tensor([[45.0, 45.0, 51.0, 51.0]])], [torch.tensor([0])])
    images, sizes = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8), torch.tensor([[64, 96]])
    assert build()(images, sizes, targets).stats["unassigned"] == 0
    assert build(recipe="fcos_imprv_r50_fpn_1x")(images, sizes, targets).stats["unassigned"] == 1


@pytest.mark.parametrize("backbone", NETS)
def test_every_backbone_trains_with_a_stride_4_level(backbone: str) -> None:
    model = build(f"model.backbone.name={backbone}", "model.backbone.weights=null", *FINE, recipe=None)
    assert model.backbone_levels == (["C2", "C3", "C4"] if backbone == "fbnet" else ["C2", "C3", "C4", "C5"])
    images, sizes = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8), torch.tensor([[64, 64]] * 2)
    targets = objects_of([torch.tensor([[4.0, 4.0, 20.0, 30.0]])] * 2, [torch.tensor([1])] * 2)
    terms = model(images, sizes, targets).terms
    assert all(term.isfinite() and term > 0 for term in terms.values())
    torch.stack(list(terms.values())).sum().backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("backbone", NETS)
def test_stride_finer_than_the_backbone_is_rejected(backbone: str) -> None:
    strides = "model.strides=[2,4,8,16,32]"
    options = [f"model.backbone.name={backbone}", "model.backbone.weights=null", strides, FINE[1]]
    with pytest.raises(ConfigError) as caught:
        build(*options, recipe=None)
    known = [4, 8, 16] if backbone == "fbnet" else [4, 8, 16, 32]
    assert str(caught.value) == (
        f"model.strides=[2, 4, 8, 16, 32]: the first stride must be one of the strides of {backbone}: {known}"
    )


def test_mismatched_strides_and_size_ranges_are_rejected() -> None:
    with pytest.raises(ConfigError, match=r"strides has 4 levels but size_ranges has 5; give one range per level"):
        load_config(SMALL, ["model.strides=[4,8,16,32]"])


def test_small_object_recipe_differs_from_improved_one_only_in_levels() -> None:
    assert load_config("fcos_imprv_r50_fpn_1x", FINE) == load_config(SMALL)


def test_recipes_and_original_configs_document_their_conventions() -> None:
    for path in (Path(__file__).parents[2] / "configs/fcos").glob("*.yaml"):
        name = path.stem.lower().replace("r_", "r").replace("x_101", "x101")
        original, recipe = (file.read_text(encoding="utf-8") for file in (path, RECIPES / f"{name}.yaml"))
        assert f"BGR pixels and inclusive boxes; the recipe {name} has RGB pixels" in original
        assert f"RGB pixels and continuous boxes; configs/fcos/{path.name} has" in recipe
