"""Damaged YAML files and overrides: either a valid config or one clean message, within time and memory limits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from fuzzing import (
    ODD_TEXTS,
    ODD_VALUES,
    Damaged,
    damaged_bytes,
    damaged_tree,
    examples,
    fuzz,
    limits,
    result_or_message,
)
from hypothesis import strategies as st

import fcos
from fcos import Config
from fcos.config.text import flatten
from fcos.recipes import load_config

YAML_TEXTS = (
    *("!!int abc", "!!float x", "!!timestamp x", "2024-02-30", "!!python/object:os.system x", "*missing", "&a [*a]"),
    *("{" * 3000, "[" * 3000, "- " * 3000, "9" * 6000, "0x" + "f" * 6000, "1:2:3", "!!binary x", "!!set {a, b}"),
    *("? [a, b]\n: c", "<<: 1", "{<<: [1]}", "key: 'open", "\t", "%YAML 9.9\n---\nx", "--- a\n--- b", "=", "~", ""),
)
ALIASES = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
"""Ten lines that expand to gigabytes if they are printed."""
CONFIG = load_config("fcos_mnv2_small").to_dict()


def check_config(config: Config | None, path: Path) -> None:
    """Check that a valid config is written as YAML and read again without a change."""
    if config is not None:
        with limits():
            path.write_text(config.to_yaml(), encoding="utf-8")
            assert load_config(path) == config


def as_yaml(damaged: Damaged) -> bytes:
    return yaml.safe_dump(damaged.tree, allow_unicode=True).encode("utf-8", "surrogatepass")


@examples(150)
def test_damaged_configs_are_used_or_rejected(count: int, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    valid = as_yaml(Damaged(CONFIG, []))
    lines = [b"model: " + text.encode() for text in YAML_TEXTS] + [text.encode() for text in YAML_TEXTS]
    nested = (ALIASES + "model: *i\n").encode()
    inputs = st.one_of(damaged_tree(CONFIG).map(as_yaml), damaged_bytes([valid]), st.sampled_from([*lines, nested]))

    def check(content: bytes) -> None:
        path.write_bytes(content)
        check_config(result_or_message(lambda: load_config(path)), tmp_path / "again.yaml")

    fuzz(check, inputs, count)


@examples(150, slow=40)
def test_odd_overrides_are_used_or_rejected(count: int, tmp_path: Path) -> None:
    keys = [*flatten(CONFIG), "data", "data.train.images", "model", "train.weights", "nothing", "train.nothing", ""]
    values = st.one_of(st.sampled_from(ODD_TEXTS + YAML_TEXTS), st.sampled_from(ODD_VALUES).map(repr))
    override = st.tuples(st.sampled_from(keys), values).map("=".join)

    def check(overrides: list[str]) -> None:
        config = result_or_message(lambda: load_config("fcos_mnv2_small", overrides))
        check_config(config, tmp_path / "again.yaml")

    fuzz(check, st.lists(override, min_size=1, max_size=3), count)


@pytest.mark.parametrize("function", [fcos.load, fcos.train, fcos.evaluate, fcos.report])
@examples(30)
def test_odd_arguments_from_python_are_rejected(function: Any, count: int, tmp_path: Path) -> None:
    arguments = st.sampled_from([*ODD_VALUES, b"x", open, iter(()), tmp_path, tmp_path / "x.yaml", tmp_path / "x.pt"])

    def check(drawn: tuple[Any, list[Any]]) -> None:
        source, overrides = drawn
        assert result_or_message(lambda: function(source, *overrides)) is None

    fuzz(check, st.tuples(arguments, st.lists(arguments, max_size=1)), count)


@examples(60)
def test_damaged_json_of_a_config_is_used_or_rejected(count: int, tmp_path: Path) -> None:
    """JSON is YAML; infinities, large integers and lone surrogates look different there."""
    path = tmp_path / "config.yaml"

    def check(damaged: Damaged) -> None:
        path.write_text(json.dumps(damaged.tree), encoding="utf-8")
        check_config(result_or_message(lambda: load_config(path)), tmp_path / "again.yaml")

    fuzz(check, damaged_tree(CONFIG), count)
