"""DLA-34, in addition to the tests of all backbones; tests/parity/test_dialects.py compares its numbers."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fcos.config import FCOSConfig
from fcos.config.backbones import DLAConfig
from fcos.errors import WeightsError
from fcos.models import build_model
from fcos.models.backbones.dla import DLA34
from fcos.models.backbones.pretrained import CATALOG, Pretrained


def authors_state() -> dict[str, Tensor]:
    """Return a state dict like the authors' file, with unused projections and a classifier."""
    torch.manual_seed(3)
    state = DLA34().state_dict()
    for level, channels in (("level3", (128, 64)), ("level4", (256, 128))):
        state[f"{level}.project.0.weight"] = torch.randn(*channels, 1, 1)
        state[f"{level}.project.1.weight"] = torch.randn(channels[0])
    state["fc.weight"], state["fc.bias"] = torch.randn(1000, 512, 1, 1), torch.randn(1000)
    return state


def test_weights_file_of_the_authors_loads(tmp_path: Path) -> None:
    state = authors_state()
    torch.save(state, tmp_path / "dla34.pth")
    net = DLA34(weights=str(tmp_path / "dla34.pth"))
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())


def test_weights_with_a_missing_tensor_raise(tmp_path: Path) -> None:
    state = authors_state()
    del state["level5.root.conv.weight"]
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"does not fit dla34.*level5\.root\.conv\.weight"):
        DLA34(weights=str(tmp_path / "other.pth"))


def test_imagenet_weights_fall_back_to_a_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = authors_state()
    torch.save(state, tmp_path / "net.pth")
    digest = hashlib.sha256((tmp_path / "net.pth").read_bytes()).hexdigest()
    (tmp_path / "net.pth").rename(tmp_path / f"dla34-{digest[:8]}.pth")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(tmp_path))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        site = f"http://127.0.0.1:{server.server_port}"
        file = replace(
            CATALOG["imagenet/dla34"].file, urls=tuple(f"{site}/{d}dla34-{digest[:8]}.pth" for d in ("gone/", ""))
        )
        monkeypatch.setitem(CATALOG, "imagenet/dla34", Pretrained(file))
        net = build_model(FCOSConfig(backbone=DLAConfig()), num_classes=1).backbone
        server.shutdown()
        thread.join()
    assert isinstance(net, DLA34)
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())


def test_every_weights_url_has_the_hash_in_its_file_name() -> None:
    assert {Path(url).name for url in CATALOG["imagenet/dla34"].file.urls} == {"dla34-ba72cf86.pth"}
