"""Options as text: dotted keys, and values as typed on the command line."""

from __future__ import annotations

from typing import Any

import pytest

from fcos.config.text import as_option, flatten
from fcos.config.yaml_text import parse_yaml


def test_flatten_returns_dotted_keys() -> None:
    tree = {"data": "cells", "model": {"head": {"norm": "gn"}, "strides": [8, 16], "empty": {}}}
    assert flatten(tree) == {"data": "cells", "model.head.norm": "gn", "model.strides": [8, 16]}


@pytest.mark.parametrize(
    ("value", "typed"),
    [
        (None, "null"),
        (True, "true"),
        (800.0, "800"),
        (102.9801, "102.9801"),
        (123456.78, "123456.78"),
        (1e-5, "1.0e-05"),
        (float("inf"), ".inf"),
        ("bgr", "bgr"),
        ("null", "'null'"),
        (((-1.0, 64), (64, None)), "[[-1,64],[64,null]]"),
        (["a, b", "c"], "['a, b',c]"),
    ],
)
def test_as_option_formats_values_as_typed_on_the_command_line(value: Any, typed: str) -> None:
    assert as_option(value) == typed
    assert as_option(parse_yaml(typed, where="here")) == typed
