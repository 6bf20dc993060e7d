"""docs/migrating.md is correct for every option of the original."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest

from fcos.config.overrides import validate
from fcos.config.text import changes
from fcos.errors import ConfigError
from fcos.interop.fcos_core.config import config_from_yaml
from fcos.interop.fcos_core.rcnn_keys import RCNN_DEFAULTS
from fcos.interop.torchvision import WEIGHTS
from fcos.models.backbones.pretrained import CATALOG
from fcos.recipes import load_config, recipe_names

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/migrating.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| `([A-Z][\w.*]+)` \| (.+?) \| ", PAGE.split("## Every option")[1], re.MULTILINE))
BODY = ["MODEL.BACKBONE.CONV_BODY", "R-50-FPN-RETINANET"]


def leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


DEFAULTS = leaves(json.loads((ROOT / "tests/parity/goldens/facts/default_config.json").read_text()))
BODIES = {"fcos": BODY, "retinanet": [*BODY, "MODEL.FCOS_ON", "False", "MODEL.RETINANET_ON", "True"]}
CHOICES = ["MODEL.FCOS_ON", "MODEL.RETINANET_ON"]
OURS = {key for name in (*BODIES, "rpn", "rcnn") for key in leaves(load_config(None, [f"model.name={name}"]).to_dict())}


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
    sections = {"fcos": "MODEL.FCOS.", "retinanet": "MODEL.RETINANET."}
    is_of_other = key in RCNN_DEFAULTS or key.startswith(tuple(s for name, s in sections.items() if name != detector))
    if "(not supported: " in refusal:
        assert text == f"only `{DEFAULTS[key]}`"
    elif key not in DEPENDENT and any("without effect" in message for message in caplog.messages):
        assert text == "no effect" or is_of_other
    else:
        named = set(re.findall(r"`([\w.]+)`", text))
        assert named
        assert named <= OURS
        assert moved <= named


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
