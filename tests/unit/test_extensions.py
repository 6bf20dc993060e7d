"""User-defined functions in configs: functions of the standard library never run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fcos.errors import ConfigError
from fcos.extensions import load_function
from fcos.models import build_model
from fcos.recipes import load_config

STANDARD = [
    "subprocess:check_output", "os:system", "os.path:exists", "posix:system", "builtins:exec", "shutil:rmtree",
    "importlib:import_module", "concurrent.futures:ThreadPoolExecutor", "webbrowser:open",
    "antigravity:fly", "pty:spawn",
]  # fmt: skip


@pytest.mark.parametrize("name", STANDARD)
def test_function_of_the_standard_library_is_rejected(name: str) -> None:
    with pytest.raises(ConfigError, match="x: functions of Python's standard library are not allowed"):
        load_function(name, option="x")
    assert "antigravity" not in sys.modules  # importing it would open a browser


def test_backbone_in_a_config_cannot_run_a_command(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    options = f"{{args: [touch, '{tmp_path / 'ran'}']}}"
    path.write_text(f"model: {{backbone: {{name: 'subprocess:check_output', options: {options}}}}}\n")
    with pytest.raises(
        ConfigError, match=r"model.backbone.name=subprocess:check_output: functions of Python's standard"
    ):
        build_model(load_config(path).model, num_classes=1)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "line",
    [
        "from subprocess import check_output as f",
        "from os import system as f",
        "f = eval",
        "from io import FileIO as f",
    ],
)
def test_standard_library_function_in_another_module_is_rejected(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = f"imports_{abs(hash(line))}"
    (tmp_path / f"{module}.py").write_text(line)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="functions of Python's standard library are not allowed"):
        load_function(f"{module}:f", option="x")


@pytest.mark.parametrize(
    "definition",
    [
        "def f(): return 3",
        "import functools\nf = functools.partial(lambda x: x, 3)",
        "import functools\n@functools.cache\ndef f(): return 3",
        "f = lambda: 3",
        "class _Callable:\n    def __call__(self): return 3\nf = _Callable()",
        "from collections import namedtuple\nclass f(namedtuple('f', '')):\n    pass",
    ],
)
def test_users_functions_are_loaded(definition: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = f"own_{abs(hash(definition))}"
    (tmp_path / f"{module}.py").write_text(definition)
    monkeypatch.syspath_prepend(tmp_path)
    assert load_function(f"{module}:f", option="x")() in (3, ())
