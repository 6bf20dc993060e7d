"""The original's config files and data sets under their original names."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import yaml
from detectors import fcos_section
from tiny_data import CLASSES, coco_tree, write_images, write_json

from fcos.config.catalog import CATALOG, build_split_section
from fcos.config.overrides import validate
from fcos.data import load_annotations
from fcos.errors import ConfigError, DataError
from fcos.interop.fcos_core.config import config_from_yaml
from fcos.recipes import load_config

ROOT = Path(__file__).parents[2]
FACTS = ROOT / "tests/parity/goldens/facts"
MANIFESTS = sorted((ROOT / "tests/parity/goldens/manifests/fcos").glob("*.json"))


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda path: path.stem)
def test_original_file_loads_as_the_recorded_config(manifest: Path, caplog: pytest.LogCaptureFixture) -> None:
    recorded: dict[str, Any] = json.loads(manifest.read_text())["merged_config"]
    assert recorded["MODEL"]["FCOS"].pop("NUM_CLASSES") == 81  # the default; no file gives it, so the data does
    expected = validate(config_from_yaml(recorded), where=manifest.stem)
    path = ROOT / "configs/fcos" / f"{manifest.stem}.yaml"
    with caplog.at_level(logging.INFO, logger="fcos"):
        caplog.clear()
        assert load_config(path) == expected
    body = recorded["MODEL"]["BACKBONE"]["CONV_BODY"]
    messages = [f"{path}: a config for FCOS (MODEL.BACKBONE.CONV_BODY {body})"]
    idle = ["MODEL.RETINANET.USE_C5"] if body.startswith("MNV2") else []  # its P6 is always built from P5
    if "BBOX_AUG" in path.read_text():  # settings of augmentation, which is disabled
        idle += [f"TEST.BBOX_AUG.{key}" for key in ("H_FLIP", "SCALES", "MAX_SIZE", "SCALE_H_FLIP")]
    messages += [f"{path}: ignoring keys without effect on FCOS: {', '.join(idle)}"] if idle else []
    assert caplog.messages == messages


OTHERS = [
    path
    for path in sorted((ROOT / "tests/parity/goldens/manifests").rglob("*.json"))
    if path not in MANIFESTS and "merged_config" in json.loads(path.read_text())
]
"""Recorded configs of all detectors but FCOS."""
TITLES = {
    "RETINANET_ON": "RetinaNet",
    "RPN_ONLY": "a region proposal network (RPN)",
    "KEYPOINT_ON": "Keypoint R-CNN",
    "MASK_ON": "Mask R-CNN",
}
"""Detectors in messages, by the key that selects them."""


def without_defaults(tree: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a complete config that differ from the defaults, as in a YAML file of the original."""
    changed = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            changed[key] = without_defaults(value, defaults[key])
        elif value != defaults[key]:
            changed[key] = value
    return {key: value for key, value in changed.items() if value != {}}


@pytest.mark.parametrize(
    "manifest", OTHERS, ids=lambda path: path.relative_to(path.parents[1]).with_suffix("").as_posix()
)
def test_file_of_another_detector_loads_as_the_recorded_config(
    manifest: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The files do not set FCOS_ON, like those of the original; the recorded configs do."""
    recorded: dict[str, Any] = json.loads(manifest.read_text())["merged_config"]
    model = recorded["MODEL"]
    tree = without_defaults(recorded, json.loads((FACTS / "default_config.json").read_text()))
    assert tree["MODEL"].pop("FCOS_ON") is False
    path = tmp_path / "original.yaml"
    path.write_text(yaml.safe_dump(tree))
    for head in ("RETINANET", "ROI_BOX_HEAD"):
        if model[head]["NUM_CLASSES"] == 81:  # the default: not in the file, so the data determines it
            del model[head]["NUM_CLASSES"]
    expected = validate(config_from_yaml(recorded), where=manifest.stem)
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="fcos"):
        assert load_config(path) == expected
    title = next((title for key, title in TITLES.items() if model[key]), "Faster R-CNN")
    assert caplog.messages[0].startswith(f"{path}: a config for {title} (MODEL.")
    assert caplog.messages[0].endswith("; the original would train FCOS, unless MODEL.FCOS_ON is set to False")


def test_all_configs_of_the_original_are_recorded() -> None:
    names = sorted(path.stem for path in (ROOT / "configs/fcos").iterdir())
    assert names == [path.stem for path in MANIFESTS]
    assert (len(names), len(OTHERS)) == (19, 58)


def test_voc_data_sets_select_the_metrics_of_voc() -> None:
    def metrics(*names: str) -> bool:
        pairs = ["MODEL.BACKBONE.CONV_BODY", "R-50-FPN-RETINANET", "DATASETS.TEST", str(names)]
        return validate(config_from_yaml({}, pairs), where="x").eval.voc_metrics

    assert metrics("coco_2014_minival", "voc_2007_test")
    assert not metrics("voc_2007_val_cocostyle")


def test_key_value_pairs_override_original_files() -> None:
    path = ROOT / "configs/fcos/fcos_imprv_R_50_FPN_1x.yaml"
    config = load_config(path, ["DATALOADER.NUM_WORKERS", "2", "OUTPUT_DIR", "training_dir/fcos_imprv_R_50_FPN_1x"])
    assert (config.data.workers, str(config.output_dir)) == (2, "training_dir/fcos_imprv_R_50_FPN_1x")
    assert fcos_section(config).box_loss == "giou"


def test_catalog_matches_the_recorded_catalog() -> None:
    recorded = json.loads((FACTS / "catalog.json").read_text())["datasets"]
    assert set(CATALOG) == set(recorded)
    for name, place in recorded.items():
        found = CATALOG[name]
        if "ann_file" in place:
            assert found == (place["ann_file"], place["img_dir"], None)
        else:
            folder, split = place["data_dir"], place["split"]
            assert found == (f"{folder}/Annotations", f"{folder}/JPEGImages", f"{folder}/ImageSets/Main/{split}.txt")


def test_data_set_names_resolve_to_paths_below_fcos_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FCOS_DATASETS", raising=False)
    places = {
        "annotations": ["datasets/coco/annotations/instances_minival2014.json"],
        "images": ["datasets/coco/val2014"],
    }
    assert build_split_section(["coco_2014_minival"], key="x") == places
    monkeypatch.setenv("FCOS_DATASETS", "elsewhere")
    assert build_split_section(["voc_2007_val"], key="x")["image_list"] == [
        "elsewhere/voc/VOC2007/ImageSets/Main/val.txt"
    ]
    assert build_split_section([], key="x") == {}


def test_coco_and_voc_names_are_paths_of_two_formats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FCOS_DATASETS", raising=False)
    paths = build_split_section(["coco_2014_minival", "voc_2007_val"], key="x")
    assert paths["annotations"][1] == "datasets/voc/VOC2007/Annotations"
    assert paths["image_list"] == [None, "datasets/voc/VOC2007/ImageSets/Main/val.txt"]


def test_several_test_sets_form_one_val_split(caplog: pytest.LogCaptureFixture) -> None:
    pairs = ["MODEL.BACKBONE.CONV_BODY", "R-50-FPN-RETINANET", "DATASETS.TEST", "('coco_2014_val', 'voc_2007_val')"]
    with caplog.at_level(logging.INFO, logger="fcos"):
        config = validate(config_from_yaml({}, pairs, where="old.yaml"), where="x")
    assert len(config.data.val.data_sets) == 2
    assert caplog.messages[1:] == [
        "old.yaml: DATASETS.TEST: coco_2014_val, voc_2007_val form one val split; tools/test_net.py evaluates them one"
        " by one"
    ]


def test_missing_data_set_error_suggests_fcos_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FCOS_DATASETS", str(tmp_path))
    config = load_config(ROOT / "configs/fcos/fcos_R_50_FPN_1x.yaml")
    with pytest.raises(DataError) as caught:
        load_annotations(config.data, "train")
    assert str(caught.value) == (
        f"data.train: {tmp_path}/coco/annotations/instances_train2014.json does not exist; put the data set there, or"
        f" set the environment variable FCOS_DATASETS to another folder than {tmp_path}, or give data=DIR"
    )


def test_train_split_combines_both_coco_2014_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FCOS_DATASETS", str(tmp_path))
    for images, name in (("train2014", "train"), ("val2014", "valminusminival"), ("val2014", "minival")):
        write_images(tmp_path / "coco" / images)
        write_json(tmp_path / f"coco/annotations/instances_{name}2014.json", coco_tree())
    config = load_config(ROOT / "configs/fcos/fcos_R_50_FPN_1x.yaml")
    train, val = load_annotations(config.data, "train"), load_annotations(config.data, "val")
    assert train is not None
    assert val is not None
    with_boxes = [f"{folder}2014/{name}.png" for folder in ("train", "val") for name in "ab"]  # c.png has none
    assert [train.file_name(i) for i in range(len(train))] == with_boxes
    assert (len(val), val.class_names) == (3, CLASSES)


def test_unknown_data_set_name_warns_with_a_suggestion(caplog: pytest.LogCaptureFixture) -> None:
    pairs = ["MODEL.BACKBONE.CONV_BODY", "R-50-FPN-RETINANET", "DATASETS.TRAIN", "('coco_2014_trian', 'mine')"]
    assert config_from_yaml({}, pairs)["data"]["train"] == {}
    assert caplog.messages == [
        "DATASETS.TRAIN: coco_2014_trian, mine is not a data set of the original, did you mean 'coco_2014_train'?;"
        " give data=DIR, or data.train.annotations=FILE and data.train.images=DIR"
    ]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("DATASETS.TRAIN", "coco_2014_train", "expected a list of names"),
        ("DATASETS.TRAIN", "(3,)", "expected a list of names"),
        ("DATASETS.TEST", "coco_2014_minival", "expected a list of names"),
    ],
)
def test_names_of_data_sets_must_be_a_list(key: str, value: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_from_yaml({}, ["MODEL.BACKBONE.CONV_BODY", "R-50-FPN-RETINANET", key, value])
