"""Names and paths stay as typed, even if they look like numbers, booleans, dates or comments."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from PIL import Image

from fcos.config import DataConfig
from fcos.config.text import as_option
from fcos.data import load_annotations
from fcos.errors import DataError
from fcos.recipes import load_config

WORDS = ["007", "1e5", "1_000", "0x10", "12:30", "on", "no", "2024-01-01", "2024-02-30", "~", ".5", "=", "9" * 200]
"""Plain words that YAML reads as a number, boolean, date or null."""
PHRASES = [
    *WORDS, "cells #2", "a: b", "cells ", " cells", "@home", "*star", "&and", "!bang", "%percent", "`tick", "a's", '"',
    "[draft", "-", "- a", "{x", "a,b", "100%", "C:\\data", "Ünïcode", "key=value", "? x", "|", ">", "#1",
]  # fmt: skip
"""Names that are possible on a command line."""


@pytest.mark.parametrize("name", PHRASES)
def test_names_on_the_command_line_stay_as_typed(name: str) -> None:
    config = load_config(
        None, [f"data={name}x", f"train.weights={name}", f"data.train.annotations={name}", f"train.best_metric={name}"]
    )
    assert str(config.data.root) == f"{name}x"
    assert config.train.weights == name
    assert config.train.best_metric == name
    assert load_config(None, [f"output_dir=x{name}"]).output_dir == Path(f"x{name}")


@pytest.mark.parametrize("name", WORDS)
def test_names_in_files_keep_their_source_text(name: str, tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    text = f"data:\n  classes:\n  - {name}\ntrain:\n  freeze: [{name}]\n  lr_factors: {{{name}: 0.1}}\n"
    path.write_text(text + ("" if name == "~" else f"  weights: {name}\n"))  # `weights: ~` is null
    config = load_config(path)
    assert (config.data.classes, config.train.freeze, config.train.lr_factors) == ([name], [name], {name: 0.1})
    assert config.train.weights == (None if name == "~" else name)


def test_folder_as_the_only_value_of_data_in_a_file_keeps_its_source_text(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("data: 007\noutput_dir: 2024-01-01\n")
    config = load_config(path)
    assert (config.data.root, config.output_dir) == (Path("007"), Path("2024-01-01"))


@pytest.mark.parametrize(
    ("typed", "names"),
    [
        ("[no,yes,on,off,0x10,null,01]", ["no", "yes", "on", "off", "0x10", "null", "01"]),
        ("[cell #1, cell #2]", ["cell #1", "cell #2"]),
        ("['a, b', \"c, d\", it's]", ["a, b", "c, d", "it's"]),
        ("[a: b,c]", ["a: b", "c"]),
        ("[a,]", ["a"]),
        ("[ 1 ]", ["1"]),
        ("['a' , \"b\",'c'd, 'e, f]", ["a", "b", "'c'd", "'e", "f"]),
        ("[a" + " " * 100_000 + "b]", ["a" + " " * 100_000 + "b"]),
        ("null", None),
    ],
)
def test_list_of_names_is_split_at_commas(typed: str, names: list[str] | None) -> None:
    assert load_config(None, [f"data.classes={typed}"]).data.classes == names


def test_quotes_around_a_name_are_removed() -> None:
    config = load_config(None, ['data="2007"', "train.weights='a b.pt'"])
    assert (config.data.root, config.train.weights) == (Path("2007"), "a b.pt")
    assert load_config(None, [r'train.weights="C:\data\a.pt"']).train.weights == r"C:\data\a.pt"


@pytest.mark.parametrize("typed", ["null", ""])
def test_null_and_nothing_clear_a_path(typed: str) -> None:
    assert load_config("fcos_mnv2_small", [f"train.weights={typed}"]).train.weights is None


def test_options_of_user_backbones_are_values() -> None:
    overrides = ["model.backbone.name=a:b", "model.backbone.options={width: 8, on: yes}"]
    backbone = load_config(None, [*overrides, "model.backbone.options.scale=1e-3"]).model.backbone
    assert backbone.model_dump()["options"] == {"width": 8, "on": True, "scale": 1e-3}


@pytest.mark.parametrize("name", PHRASES)
def test_configs_and_suggested_options_round_trip(name: str, tmp_path: Path) -> None:
    overrides = [f"data.classes={as_option([name, f'{name}2'])}", f"train.weights={as_option(name)}"]
    config = load_config(None, overrides)
    assert (config.data.classes, config.train.weights) == ([name, f"{name}2"], name)
    path = tmp_path / "own.yaml"
    path.write_text(config.to_yaml())
    assert load_config(path) == config


def test_text_in_options_of_user_backbones_survives_the_yaml_round_trip(tmp_path: Path) -> None:
    config = load_config(None, ["model.backbone.name=a:b", "model.backbone.options={a: '1e5', b: 'no', c: 1e5}"])
    path = tmp_path / "own.yaml"
    path.write_text(config.to_yaml())
    assert load_config(path) == config


# ------------------------------------------------------------------------------------------------ the original's YAML


def test_names_in_a_config_of_the_original_keep_their_source_text(tmp_path: Path) -> None:
    path = tmp_path / "old.yaml"
    body = "MODEL: {WEIGHT: 1e5, BACKBONE: {CONV_BODY: R-50-FPN-RETINANET}}\n"
    path.write_text(body + "OUTPUT_DIR: 2024-01-01\n")
    config = load_config(path)
    assert (config.train.weights, config.output_dir) == ("1e5", Path("2024-01-01"))
    config = load_config(path, ["OUTPUT_DIR", "007", "MODEL.WEIGHT", "1.5"])
    assert (config.train.weights, config.output_dir) == ("1.5", Path("007"))


def test_literals_that_the_compiler_warns_about_are_text(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    path = tmp_path / "old.yaml"
    path.write_text("MODEL: {BACKBONE: {CONV_BODY: R-50-FPN-RETINANET}}\n")
    assert load_config(path, ["OUTPUT_DIR", "1if"]).output_dir == Path("1if")
    assert load_config(path, ["OUTPUT_DIR", r"'\d'"]).output_dir == Path(r"\d")
    assert not recwarn


# ---------------------------------------------------------------------------------------------------------- data.yaml


def write_yolo(folder: Path, content: str) -> DataConfig:
    for path in ("images/train/a.png", "labels/train/a.txt"):
        (folder / path).parent.mkdir(parents=True)
    Image.new("RGB", (20, 20)).save(folder / "images/train/a.png")
    (folder / "labels/train/a.txt").write_text("1 0.5 0.5 0.2 0.2\n")
    (folder / "data.yaml").write_text(content)
    return DataConfig(root=folder)


NAMES = ["no", "yes", "on", "off", "0x10", "null", "01", "1.0", "~", "2024-02-30"]


@pytest.mark.parametrize(
    "names", [f"[{', '.join(NAMES)}]", "\n" + "".join(f"  {i}: {n}\n" for i, n in enumerate(NAMES))]
)
def test_class_names_in_data_yaml_keep_their_source_text(names: str, tmp_path: Path) -> None:
    annotations = load_annotations(
        write_yolo(tmp_path, f"train: images/train\nval:\ntest: null\nnames: {names}"), "train"
    )
    assert annotations is not None
    assert list(annotations.class_names) == NAMES


def test_paths_in_data_yaml_keep_their_source_text(tmp_path: Path) -> None:
    config = write_yolo(tmp_path / "007", "path: 007\ntrain: 1e5\nnames: [a, b]")
    (tmp_path / "007/images/train").rename(tmp_path / "007/images/1e5")
    (tmp_path / "007/labels/train").rename(tmp_path / "007/labels/1e5")
    (tmp_path / "data.yaml").write_text("path: 007/images\ntrain: 1e5\nnames: [a, b]\n")
    annotations = load_annotations(config.model_copy(update={"root": tmp_path / "data.yaml"}), "train")
    assert annotations is not None
    assert len(annotations) == 1


@pytest.mark.parametrize(
    "names", ["[a, a]", "[a, '']", "{0: a, 2: b}", "{0: a, 00: b}", "{a: 0, b: 1}", "a", "[[a]]", "{0: a, x: b}"]
)
def test_invalid_class_names_in_data_yaml_are_rejected(names: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="names must list unique class names"):
        load_annotations(write_yolo(tmp_path, f"train: images/train\nnames: {names}"), "train")


def test_mixed_keys_of_class_names_in_data_yaml_are_accepted(tmp_path: Path) -> None:
    content = yaml.safe_dump({"train": "images/train", "names": {0: "a", "1": "b"}})
    annotations = load_annotations(write_yolo(tmp_path, content), "train")
    assert annotations is not None
    assert annotations.class_names == ("a", "b")
