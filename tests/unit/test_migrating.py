"""docs/migrating.md is correct for every option of the original."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import original_configs
import pytest
from original_configs import BODIES, RECORDED, leaves, other_value, recorded_config

from fcos.config.backbones import FBNetConfig
from fcos.config.detectors import DETECTORS
from fcos.config.overrides import validate
from fcos.config.text import changes, flatten
from fcos.errors import ConfigError
from fcos.interop.fcos_core.config import config_from_yaml
from fcos.interop.fcos_core.rcnn_keys import RCNN_DEFAULTS
from fcos.interop.torchvision import WEIGHTS
from fcos.models.backbones.pretrained import CATALOG
from fcos.recipes import load_config, recipe_names

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/migrating.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| `([A-Z][\w.*]+)` \| (.+?) \| ", PAGE.split("## Every option")[1], re.MULTILINE))
DEFAULTS = leaves(original_configs.DEFAULTS)
CHOICES = ["MODEL.FCOS_ON", "MODEL.RETINANET_ON"]
OURS = {key for name in DETECTORS for key in leaves(load_config(None, [f"model.name={name}"]).to_dict())} | {
    f"model.backbone.{key}" for key in leaves(FBNetConfig().model_dump())
}


def table_row(key: str) -> str:
    """Return the row of the table for a key, or that of its section if the key has none."""
    section = key.rpartition(".")[0]
    assert key in ROWS or f"{section}.*" in ROWS, f"{key} is not in the table"
    return ROWS.get(key, ROWS.get(f"{section}.*", ""))


def another_value(default: Any) -> Any:
    if isinstance(default, list):
        return [7.0] * max(len(default), 1)
    return {bool: not default, str: "other", int: 7, float: 0.123}[type(default)]


DEPENDENT = (
    *(f"TEST.BBOX_AUG.{key}" for key in ("ENABLED", "H_FLIP", "SCALES", "MAX_SIZE", "SCALE_H_FLIP")),
    "MODEL.USE_SYNCBN",
)
"""Keys that have an effect only together with others."""


@pytest.mark.parametrize("detector", BODIES)
@pytest.mark.parametrize("key", [key for key in DEFAULTS if key not in CHOICES])
def test_every_key_behaves_as_documented_in_the_table(
    key: str, detector: str, caplog: pytest.LogCaptureFixture
) -> None:
    text, body = table_row(key), BODIES[detector]
    base = validate(config_from_yaml({}, body), where="x")
    moved, refusal = set(), ""
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="fcos"):
        try:
            pairs = body[2:] if key == body[0] else body
            other = validate(config_from_yaml({key: another_value(DEFAULTS[key])}, pairs), where="x")
            moved = {option for option, _, _ in changes(base, other)}
        except ConfigError as error:
            refusal = str(error)
    sections = {"fcos": "MODEL.FCOS.", "retinanet": "MODEL.RETINANET.", "rcnn": "MODEL.FBNET."}
    is_of_other = key in (*RCNN_DEFAULTS, "MODEL.RESNETS.RES5_DILATION") or key.startswith(
        tuple(section for name, section in sections.items() if name != detector)
    )
    if "(not supported: " in refusal:
        assert text == f"only `{DEFAULTS[key]}`"
    elif key not in DEPENDENT and any("without effect" in message for message in caplog.messages):
        assert text == "no effect" or is_of_other
    else:
        named = set(re.findall(r"`([\w.]+)`", text))
        assert named
        assert named <= OURS
        assert moved <= named


@pytest.mark.parametrize("name", RECORDED)
def test_keys_of_every_detector_change_the_options_in_the_table(name: str) -> None:
    tree = recorded_config(name)
    original, moved_keys = flatten(config_from_yaml(tree)), 0
    for key, value in leaves(tree).items():
        try:
            changed = flatten(config_from_yaml(tree, [key, str(other_value(key, value))]))
        except ConfigError:  # test_interop_fcos_core.py
            continue
        if changed["model.name"] != original["model.name"]:  # of which all options follow
            continue
        moved = {option for option, value in changed.items() if value != original.get(option)}
        moved_keys += bool(moved)
        assert moved <= set(re.findall(r"`([\w.]+)`", table_row(key))), key
    assert moved_keys > 40


@pytest.mark.parametrize("key", CHOICES)
def test_keys_that_choose_the_detector_are_documented(key: str) -> None:
    assert table_row(key) == "`model.name`"


def test_table_has_only_keys_of_the_original() -> None:
    sections = {f"{key.rpartition('.')[0]}.*" for key in DEFAULTS}
    assert set(ROWS) <= {*DEFAULTS, *sections}


def test_recipes_and_files_named_on_the_page_exist() -> None:
    assert set(re.findall(r"fcos train ((?:fcos|retinanet)_\w+) ", PAGE)) <= set(recipe_names())
    for path in re.findall(r"(?:configs/fcos|tools)/\w+\.\w+", PAGE):
        assert (ROOT / path).is_file()


def test_weights_table_lists_every_name_with_file_and_licence() -> None:
    files = {}
    for key, (file, _) in CATALOG.items():
        kind, _, name = key.partition("/")
        titles = {"imagenet": f"`imagenet` of `{name}`", "catalog:": f"`{key}`"}
        files[titles.get(kind, "the addresses of MobileNetV2 in the original's configs")] = file
    files |= {f"`{name}`": file for name, file in WEIGHTS.items()}
    section = PAGE.split("## Weights with a name")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (.+?) \| `(.+?)` \| (.+?) \|$", section, re.MULTILINE)
    assert rows == [(name, file.name, file.licence) for name, file in files.items()]
