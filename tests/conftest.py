"""Options of the test suite. `pytest tests/parity --goldens DIR` runs the parity tests on other recorded numbers."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from detectors import tiny_detector

from fcos import Detector, downloads
from fcos.allocator import keep_freed_memory

keep_freed_memory(torch.device("cpu"))  # as in training; many tests allocate large tensors
DEFAULT_GOLDENS = Path(__file__).parent / "parity" / "goldens"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--goldens", type=Path, default=DEFAULT_GOLDENS, help="folder of recorded numbers")
    parser.addoption("--data", type=Path, help="folder that holds the data sets bccd, raccoon and nuclei, for -m data")


@pytest.fixture(scope="session")
def goldens(pytestconfig: pytest.Config) -> Path:
    return Path(str(pytestconfig.getoption("--goldens"))).resolve()


@pytest.fixture
def data_sets(pytestconfig: pytest.Config) -> Path:
    folder = pytestconfig.getoption("--data")
    assert folder is not None, "give the folder of the data sets: --data DIR"
    return Path(str(folder)).resolve()


@pytest.fixture(autouse=True)
def _licences(monkeypatch: pytest.MonkeyPatch) -> None:
    """Licence warnings appear once per process; reset them so that every test sees its own."""
    monkeypatch.setattr(downloads, "_warned", set())


@pytest.fixture(autouse=True)
def _log_level() -> Iterator[None]:
    """The command line sets it for its process; the next test shall not see that."""
    logger = logging.getLogger("fcos")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def detector() -> Detector:
    return tiny_detector()
