"""Weights files of other projects: recognised automatically, with classes; loaded by name; without running code."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import pytest
import torch
import yaml
from detectors import fcos_of
from foreign_weights import MANIFESTS, MOBILE, original_file, original_state
from PIL import Image
from processes import in_new_process
from torch import Tensor
from torchvision.models.detection import fcos_resnet50_fpn, retinanet_resnet50_fpn

import fcos
from fcos import ConfigError, DataError, WeightsError, cli
from fcos.config.backbones import OwnConfig, ResNetConfig
from fcos.config.overrides import validate
from fcos.interop.checkpoints import from_content, load_checkpoint, with_fcos_core_conventions
from fcos.interop.fcos_core.config import config_from_yaml
from fcos.interop.torchvision import COCO_CLASSES, WEIGHTS
from fcos.recipes import load_config


@pytest.fixture
def original_yaml(tmp_path: Path) -> Path:
    path = tmp_path / "fcos_syncbn_bs32_c128_MNV2_FPN_1x.yaml"
    path.write_text(yaml.safe_dump(MOBILE["merged_config"]))
    return path


# ----------------------------------------------------------------------------------------------- files of the original


@pytest.mark.parametrize(("module", "old_format"), [("", False), ("module.", True)])
def test_original_checkpoint_loads_with_its_config(
    tmp_path: Path, original_yaml: Path, module: str, old_format: bool
) -> None:
    path = original_file(tmp_path / "model_final.pth", module=module, old_format=old_format)
    detector = fcos.load(path, "device=cpu", config=original_yaml)
    state = original_state()
    assert torch.equal(fcos_of(detector).head.centerness.weight, state["rpn.head.centerness.weight"])
    assert torch.equal(detector.model.state_dict()["fpn.extra.1.weight"], state["backbone.fpn.top_blocks.p7.weight"])
    assert (detector.model.box_convention, detector.model.channel_order) == ("inclusive", "bgr")
    assert detector.model.pixel_mean.flatten().tolist() == pytest.approx([102.9801, 115.9465, 122.7717])
    assert (detector.class_names[11], detector.category_ids[11]) == ("stop sign", 13)


def test_original_checkpoint_without_config_raises(tmp_path: Path) -> None:
    path = original_file(tmp_path / "model_final.pth")
    with pytest.raises(ConfigError, match=r"model_final\.pth: a checkpoint of the original FCOS.*--config"):
        fcos.load(path)


def test_original_key_value_pairs_override_the_config(tmp_path: Path, original_yaml: Path) -> None:
    path = original_file(tmp_path / "model_final.pth")
    pairs = ["TEST.DETECTIONS_PER_IMG", "7", "MODEL.WEIGHT", "https://a.b/c.pth?download=true"]
    detector = fcos.load(path, *pairs, "model.nms_threshold=0.3", config=original_yaml)
    options = fcos_of(detector).postprocess
    assert (options.max_detections, options.nms_threshold) == (7, 0.3)
    assert detector.config.train.weights == pairs[-1]


@pytest.mark.parametrize("original", sorted(path.stem for path in MANIFESTS.glob("*.json")))
def test_every_original_config_has_an_equivalent_recipe(original: str) -> None:
    recipe = original.lower().replace("_r_", "_r").replace("_x_", "_x")
    merged = json.loads((MANIFESTS / f"{original}.json").read_text())["merged_config"]
    theirs = validate(config_from_yaml(merged), where=original)
    ours = validate(with_fcos_core_conventions(load_config(recipe).to_dict()), where=recipe)
    theirs.model.num_classes = None
    assert not isinstance(ours.model.backbone, OwnConfig)
    assert not isinstance(theirs.model.backbone, OwnConfig)
    ours.model.backbone.weights = theirs.model.backbone.weights = theirs.train.weights = None
    if isinstance(theirs.model.backbone, ResNetConfig) and not theirs.model.backbone.deformable_stages:
        theirs.model.backbone.modulated = True
    assert ours.model == theirs.model
    assert ours.train == theirs.train
    sizes = "short_side", "short_side_range", "max_side", "detection_short_side", "detection_max_side", "size_divisor"
    if theirs.data.short_side_range:  # then `short_side` has no effect
        ours.data.short_side = theirs.data.short_side
    assert [getattr(ours.data, name) for name in sizes] == [getattr(theirs.data, name) for name in sizes]


def test_config_loads_an_original_checkpoint_as_its_weights(tmp_path: Path, original_yaml: Path) -> None:
    path = original_file(tmp_path / "model_final.pth")
    detector = fcos.load(original_yaml, "MODEL.WEIGHT", str(path))
    assert torch.equal(fcos_of(detector).head.ltrb.weight, original_state()["rpn.head.bbox_pred.weight"])


def test_config_of_another_model_raises(tmp_path: Path) -> None:
    path = original_file(tmp_path / "model_final.pth")
    with pytest.raises(WeightsError, match=r"model_final\.pth: the weights do not fit the model"):
        fcos.load(path, config="fcos_r50_fpn_1x")


# ------------------------------------------------------------------------------------------------------------- classes


def test_unnamed_classes_are_numbered_from_one(tmp_path: Path, original_yaml: Path) -> None:
    path = original_file(tmp_path / "cells.pth", classes=3)
    detector = fcos.load(path, config=original_yaml)
    assert detector.class_names == ("class 1", "class 2", "class 3")
    assert detector.category_ids == (1, 2, 3)


def test_data_classes_option_names_the_classes(tmp_path: Path, original_yaml: Path) -> None:
    path = original_file(tmp_path / "cells.pth", classes=3)
    assert fcos.load(path, "data.classes=[a, b, c]", config=original_yaml).class_names == ("a", "b", "c")
    with pytest.raises(WeightsError, match=r"cells\.pth: the weights have 3 classes, but data\.classes has 2 names"):
        fcos.load(path, "data.classes=[a, b]", config=original_yaml)


def test_assumption_of_coco_classes_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert from_content(original_state(), where="x.pth").class_names == tuple(COCO_CLASSES.values())
    assert "x.pth: assuming that the 80 classes are those of COCO" in caplog.text
    assert "fcos convert x.pth OUT data.classes=[NAME, ...]" in caplog.text


def test_no_classes_are_assumed_for_a_region_proposal_network(caplog: pytest.LogCaptureFixture) -> None:
    blobs = {f"{name}_{kind}": torch.zeros(3) for name in ("conv_rpn", "rpn_cls_logits") for kind in "wb"}
    with caplog.at_level(logging.INFO):
        checkpoint = from_content({"blobs": blobs}, where="x.pkl")
    assert (checkpoint.config["model"]["name"], checkpoint.class_names) == ("rpn", ("object",))
    assert caplog.messages == []


def test_unknown_name_of_the_original_suggests_the_closest_name() -> None:
    name = "catalog://Caffe2Detectron/COCO/35858933/e2e_mask_rcnn_R-50-FPN_"
    with pytest.raises(WeightsError) as caught:
        load_checkpoint(f"{name}2x")
    assert str(caught.value) == (
        f"{name}2x: no detector of this name in the original's catalogue, did you mean {name + '1x'!r}?"
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a data set of one annotated image with three classes that are not sorted by name."""
    folder = tmp_path / "data"
    folder.mkdir()
    Image.radial_gradient("L").convert("RGB").resize((96, 64)).save(folder / "a.png")
    content = {
        "images": [{"id": 5, "file_name": "a.png", "width": 96, "height": 64}],
        "annotations": [{"id": 1, "image_id": 5, "category_id": 3, "bbox": [30, 10, 40, 40]}],
        "categories": [{"id": i, "name": name} for i, name in ((3, "rbc"), (4, "wbc"), (9, "platelet"))],
    }
    for split in ("train", "val"):
        (folder / f"{split}.json").write_text(json.dumps(content))
    return folder


def test_unnamed_classes_take_names_and_ids_from_the_data(tmp_path: Path, original_yaml: Path, data: Path) -> None:
    path = original_file(tmp_path / "cells.pth", classes=3)
    small = ["data.test_short_side=64", "data.workers=0", "device=cpu", f"data={data}"]
    found = fcos.evaluate(path, *small, config=original_yaml)
    assert list(found.per_class) == ["rbc", "wbc", "platelet"]
    assert {detection["category_id"] for detection in found.detections} <= {3, 4, 9}
    with pytest.raises(DataError, match=r"the ids 3, 4, 9, but .* has 1, 2 and no class names"):
        fcos.evaluate(original_file(tmp_path / "two.pth", classes=2), *small, config=original_yaml)


def test_cli_evaluates_and_predicts_with_an_original_checkpoint(
    tmp_path: Path,
    original_yaml: Path,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = original_file(tmp_path / "cells.pth", classes=3)
    small = ["--config", str(original_yaml), "data.test_short_side=64", "data.workers=0", "device=cpu"]
    for verb in (
        ["val", str(path), f"data={data}"],
        ["predict", str(path), str(data / "a.png"), "--out", str(tmp_path)],
    ):
        monkeypatch.setattr(sys, "argv", ["fcos", *verb, *small])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert not stop.value.code, capsys.readouterr().err
    assert (tmp_path / "cells_val" / "metrics.json").is_file()
    assert (tmp_path / "a.jpg").is_file() or (tmp_path / "a.png").is_file()


# ------------------------------------------------------------------------------------------------- files of torchvision


@pytest.fixture(scope="module")
def coco_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file in a torch hub cache with the names and shapes of torchvision's COCO weights."""
    path = tmp_path_factory.mktemp("hub") / "checkpoints" / "fcos_resnet50_fpn_coco-99b0c9b7.pth"
    path.parent.mkdir()
    state = fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91).state_dict()
    torch.save({k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}, path)
    return path


def test_torchvision_coco_weights_load_by_name(coco_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(coco_file.parents[1]))
    detector = fcos.load("torchvision/fcos_resnet50_fpn", device="cpu")
    assert dict(zip(detector.category_ids, detector.class_names, strict=True)) == COCO_CLASSES
    assert detector.config.data.detection_short_side == 800
    assert fcos_of(detector).head.logits.out_channels == 80
    rows = load_checkpoint(coco_file).model["head.logits.weight"]
    assert torch.equal(fcos_of(detector).head.logits.weight, rows)


@pytest.mark.parametrize("given", [True, False])
def test_config_sets_test_options_and_weights_set_the_model(coco_file: Path, tmp_path: Path, given: bool) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model: {{max_detections: 7}}\ndata: {{short_side: 96}}\ntrain: {{weights: {coco_file}}}\n")
    detector = fcos.load(coco_file, config=recipe) if given else fcos.load(recipe)
    model = fcos_of(detector)
    assert (model.postprocess.max_detections, detector.config.data.detection_short_side) == (7, 96)
    assert (model.assigner.location, model.postprocess.threshold_on) == ("corner", "score")


def test_checkpoint_of_torchvision_training_script_loads(tmp_path: Path) -> None:
    state = fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3).state_dict()
    content = {"model": state, "optimizer": {}, "args": argparse.Namespace(lr=0.1), "epoch": 3}
    torch.save(content, tmp_path / "model_3.pth")
    loaded = load_checkpoint(tmp_path / "model_3.pth")
    assert (loaded.project, loaded.class_names, loaded.category_ids) == ("torchvision", (), (1, 2))


def test_url_loads_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    original_file(tmp_path / "checkpoints" / "old.pth")
    assert load_checkpoint("https://127.0.0.1:9/download?x=1#old.pth").project == "fcos_core"


def test_error_advises_deleting_a_damaged_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    path = tmp_path / "checkpoints" / "x.pth"
    path.write_text("<html>Not found</html>")
    with pytest.raises(WeightsError, match=r"; delete the file to download it again$") as caught:
        load_checkpoint("http://127.0.0.1:9/download#x.pth")
    assert str(path) in str(caught.value)
    with pytest.raises(WeightsError, match=r"; copy it again or use an earlier one$"):
        load_checkpoint(path)


def test_tilde_in_path_expands_to_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    original_file(tmp_path / "old.pth")
    assert load_checkpoint("~/old.pth").project == "fcos_core"


def test_tilde_of_an_unknown_user_is_not_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    original_file(tmp_path / "~old.pth")
    assert load_checkpoint("~old.pth").project == "fcos_core"
    with pytest.raises(WeightsError, match=r"~no-such-user/old\.pth: no such file"):
        load_checkpoint("~no-such-user/old.pth")


def errors_of_command(*words: str) -> str:
    """Run a command that succeeds, and return what it prints to stderr."""
    with TemporaryFile("w+") as file, redirect_stderr(file):
        with pytest.raises(SystemExit) as stop:
            cli.main(words)
        file.seek(0)
        assert stop.value.code == 0
        return file.read()


def test_original_licence_warns_once_per_process_and_after_conversion(
    tmp_path: Path, original_yaml: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    original_file(tmp_path / "checkpoints" / "first.pth")
    address = "https://127.0.0.1:9/download#first.pth"
    ours = tmp_path / "ours.pt"
    fcos.load(address, config=original_yaml)
    fcos.convert(address, ours, config=original_yaml)
    licence = "licence of the original FCOS (non-commercial use only) if its authors published these weights"
    assert caplog.messages == [f"{address}: the licence of these weights may restrict their use: {licence}"]
    err = in_new_process(errors_of_command, "convert", str(ours), str(tmp_path / "copy.pt"))
    assert err == f"{ours}: the licence of these weights may restrict their use: {licence}\n"
    assert load_checkpoint(tmp_path / "copy.pt").licence == licence


def test_all_named_weights_have_an_unrestricted_licence() -> None:
    assert all(file.licence and not file.restricted for file in WEIGHTS.values())


def test_network_error_names_the_url_and_the_cache_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise OSError("no route")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("fcos.downloads.urlopen", unreachable)
    with pytest.raises(WeightsError) as caught:
        fcos.load("torchvision/fcos_resnet50_fpn")
    for part in (
        WEIGHTS["torchvision/fcos_resnet50_fpn"].urls[0],
        "no route",
        str(tmp_path / "checkpoints" / "fcos_resnet50_fpn_coco-99b0c9b7.pth"),
    ):
        assert part in str(caught.value)


def test_unknown_weights_name_lists_the_known_names() -> None:
    with pytest.raises(
        WeightsError, match=r"did you mean 'torchvision/fcos_resnet50_fpn'.*; named weights: torchvision"
    ):
        fcos.load("torchvision/fcos")


# ------------------------------------------------------------------------------------------------------- other files


def error_message(content: Any) -> str:
    with pytest.raises(WeightsError) as caught:
        from_content(content, where="x.pth")
    assert str(caught.value).startswith("x.pth: ")
    return str(caught.value)


def named(*names: str) -> Mapping[str, Tensor]:
    return {name: torch.zeros(1) for name in names}


def test_weights_of_an_unknown_project_raise() -> None:
    text = error_message({"model": named("bbox_head.conv_cls.weight", "bbox_head.conv_cls.bias")})
    assert "found the tensors bbox_head.conv_cls.weight, bbox_head.conv_cls.bias" in text
    for known in ("fcos train", "fcos_core", "fcos_resnet50_fpn"):
        assert known in text


@pytest.mark.parametrize(
    "names",
    [
        ("rpn.head.cls_logits.bias", "rpn.head.centerness.bias"),
        ("head.classification_head.cls_logits.bias", "head.regression_head.bbox_ctrness.bias"),
    ],
)
def test_class_head_of_wrong_shape_raises(names: Sequence[str]) -> None:
    odd = {name: torch.zeros(()) for name in names}
    expected = "a weight of shape [K, C, 3, 3] and a bias of shape [K] for K classes"
    assert error_message(odd).endswith(f"expected a class head with {expected}, found weight: none, bias: []")


@pytest.mark.parametrize(
    ("weight", "bias", "found"),
    [
        (None, 3, "weight: none, bias: [3]"),
        (3, 4, "weight: [3, 8, 3, 3], bias: [4]"),
        (0, 0, "weight: [0, 8, 3, 3], bias: [0]"),
    ],
)
@pytest.mark.parametrize("head", ["rpn.head.", "head.classification_head."])
def test_incomplete_or_inconsistent_class_head_raises(head: str, weight: int | None, bias: int, found: str) -> None:
    state = dict(named("rpn.head.centerness.bias", "head.regression_head.bbox_ctrness.bias"))
    state[f"{head}cls_logits.bias"] = torch.zeros(bias)
    if weight is not None:
        state[f"{head}cls_logits.weight"] = torch.zeros(weight, 8, 3, 3)
    assert error_message(state).endswith(f" for K classes, found {found}")


def test_torchvision_class_head_with_background_only_raises() -> None:
    state = dict(named("head.regression_head.bbox_ctrness.bias"))
    state |= {"head.classification_head.cls_logits.weight": torch.ones(1, 8, 3, 3)}
    state |= {"head.classification_head.cls_logits.bias": torch.zeros(1)}
    assert "found a class head with background only (1 row)" in error_message(state)


def test_retinanet_weights_are_not_mistaken_for_fcos() -> None:
    torchvisions = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=2).state_dict()
    assert from_content(torchvisions, where="x.pth").config["model"]["name"] == "retinanet"
    assert "unknown weights format" in error_message(named("rpn.head.cls_logits.bias", "rpn.head.bbox_pred.bias"))


@pytest.mark.parametrize("name", ["layer1.0.conv1.weight", "features.0.0.weight"])
def test_error_for_backbone_weights_names_the_backbone_option(name: str) -> None:
    assert "model.backbone.weights=PATH" in error_message(named(name))


@pytest.mark.parametrize(
    ("content", "found"),
    [({"epoch": 3}, "found the keys epoch"), ({}, "found an empty dictionary"), ([1], "found a list")],
)
def test_file_without_weights_raises(content: Any, found: str) -> None:
    assert found in error_message(content)
