"""The promises of `import fcos`."""

import subprocess
import sys

import pytest

import fcos


def test_the_public_names_are_these():
    assert fcos.__all__ == [
        "Config",
        "ConfigError",
        "DataError",
        "Detector",
        "Evaluation",
        "FCOSError",
        "Instances",
        "TrainingError",
        "WeightsError",
        "convert",
        "draw",
        "evaluate",
        "load",
        "load_config",
        "report",
        "train",
    ]


@pytest.mark.parametrize("name", fcos.__all__)
def test_every_public_name_is_there_and_documented(name):
    documentation = getattr(fcos, name).__doc__
    assert documentation
    assert not documentation.startswith(f"{name}(")  # what dataclasses make up
    assert name in dir(fcos)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'predict'"):
        _ = fcos.predict


@pytest.mark.parametrize("code", ["import fcos; dir(fcos)", "import fcos.cli", "import fcos; fcos.load_config"])
def test_importing_does_not_import_torch(code):
    program = f"import sys; {code}; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_the_detector_does_not_need_the_training():
    program = "import sys; import fcos.models; sys.exit(any(name.startswith('fcos.training') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
