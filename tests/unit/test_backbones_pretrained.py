"""ImageNet weights given by name or URL."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch

from fcos import downloads
from fcos.config import FCOSConfig
from fcos.config.backbones import ResNetConfig
from fcos.downloads import WebFile
from fcos.errors import WeightsError
from fcos.models import build_model
from fcos.models.backbones import BACKBONES, license_warning, resnet
from fcos.models.backbones import pretrained as weights
from fcos.models.backbones.pretrained import CATALOG, imagenet_weights

MOBILENET = CATALOG["mobilenet_v2-ecbe2b5.pth"].file


def requested_file(source: str, monkeypatch: pytest.MonkeyPatch, *, backbone: str = "resnet50") -> WebFile:
    """Return the file that is requested for a source of weights."""
    asked: list[Any] = []

    def stop(file: Any, *_: Any, **__: Any) -> Path:
        asked.append(file)
        raise WeightsError("no network")

    monkeypatch.setattr(weights, "hub_file", stop)
    with pytest.raises(WeightsError, match="no network"):
        imagenet_weights(backbone, source)
    return asked[0]


def test_catalog_name_resolves_to_the_url_of_the_original(monkeypatch: pytest.MonkeyPatch) -> None:
    file = requested_file("catalog://ImageNetPretrained/MSRA/R-50", monkeypatch)
    url = "https://dl.fbaipublicfiles.com/detectron/ImageNetPretrained/MSRA/R-50.pkl"
    assert [url.partition("#")[0] for url in file.urls] == [url]
    assert file.name == "ImageNetPretrained_MSRA_R-50.pkl"


@pytest.mark.parametrize(
    "url",
    [
        "https://cloudstor.aarnet.edu.au/plus/s/xtixKaxLWmbcyf7/download#mobilenet_v2-ecbe2b5.pth",
        "https://huggingface.co/tianzhi/FCOS/resolve/main/mobilenet_v2-ecbe2b5.pth?download=true#mobilenet_v2-ecbe2b5.pth",
    ],
)
def test_mobilenet_urls_of_the_original_have_mirrors(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = requested_file(url, monkeypatch, backbone="mobilenet_v2")
    assert url in file.urls
    assert len(file.urls) == 2
    assert file.name == "mobilenet_v2-ecbe2b5.pth"
    assert file.restricted


@pytest.mark.parametrize(
    ("name", "source", "licence"),
    [
        ("mobilenet_v2", "imagenet", ""),
        ("mobilenet_v2", None, ""),
        ("mobilenet_v2", "own.pth", ""),
        ("mobilenet_v2", MOBILENET.urls[1], MOBILENET.licence),
        ("timm/convnextv2_tiny.fcmae_ft_in1k", "imagenet", "cc-by-nc-4.0"),
        ("timm/convnextv2_tiny.fcmae_ft_in1k", "own.pth", ""),
        ("timm/resnet18.a1_in1k", "imagenet", ""),
        ("own_backbone:build", None, ""),
    ],
)
def test_license_warning_names_only_restrictive_licences(name: str, source: str | None, licence: str) -> None:
    assert license_warning(name, source) == licence


def test_resnext_url_and_catalog_name_share_mirrors(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "https://cloudstor.aarnet.edu.au/plus/s/k3ys35075jmU1RP/download#X-101-64x4d.pkl"
    name = "catalog://ImageNetPretrained/FAIR/20171220/X-101-64x4d"
    assert requested_file(url, monkeypatch) == requested_file(name, monkeypatch)
    assert len(requested_file(url, monkeypatch).urls) > 1


def test_arbitrary_url_is_used_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    assert requested_file("http://a.org/b.pth#c.pth", monkeypatch) == WebFile(("http://a.org/b.pth#c.pth",))


def test_catalog_entries_have_licences_and_unique_file_names() -> None:
    files = [row.file for row in CATALOG.values()]
    assert all(file.licence for file in files)
    assert len({file.name for file in files}) == len(files)
    assert {Path(row.file.name).suffix for name, row in CATALOG.items() if name.startswith("catalog://")} == {".pkl"}
    assert {f"imagenet/{name}" for name in BACKBONES if name != "fbnet"} == {
        name for name in CATALOG if name.startswith("imagenet/")
    }


@pytest.mark.parametrize(
    ("source", "options", "other"),
    [
        ("imagenet", {}, None),
        ("imagenet", {"channel_order": "bgr"}, "model.channel_order=rgb"),
        (
            "catalog://ImageNetPretrained/MSRA/R-50",
            {},
            "model.channel_order=bgr model.backbone.stride_in_1x1=true",
        ),
        ("catalog://ImageNetPretrained/FAIR/20171220/X-101-32x8d", {"channel_order": "bgr"}, None),
        ("net.pth", {"channel_order": "bgr"}, None),
    ],
)
def test_named_weights_warn_if_trained_with_other_options(
    source: str,
    options: dict[str, Any],
    other: str | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(resnet, "load_pretrained", lambda *_: None)
    config = FCOSConfig(backbone=ResNetConfig(weights=source), **options)
    build_model(config, num_classes=1)
    told = f"model.backbone.weights={source} (resnet50) were trained with {other}; set the same options"
    assert caplog.messages == ([told] if other else [])
    caplog.clear()
    build_model(config, num_classes=1, pretrained=False)
    assert caplog.messages == []


def test_unknown_catalog_name_gets_a_suggestion_and_the_known_names() -> None:
    with pytest.raises(WeightsError) as caught:
        BACKBONES["resnet50"](weights="catalog://ImageNetPretrained/MSRA/R-55")
    assert "MSRA/R-55, did you mean 'catalog://ImageNetPretrained/MSRA/R-50" in str(caught.value)
    assert all(name in str(caught.value) for name in CATALOG if name.startswith("catalog://"))


def test_unsupported_url_scheme_is_rejected() -> None:
    with pytest.raises(WeightsError, match=r"'s3://x' is not supported; give `imagenet`"):
        BACKBONES["mobilenet_v2"](weights="s3://x")


def test_damaged_download_is_named_in_the_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    path = tmp_path / "checkpoints" / "mobilenet_v2-b0353104.pth"
    path.write_bytes(b"cut short")
    with pytest.raises(WeightsError, match=r"not a readable state dict.*; delete it to download it again") as caught:
        BACKBONES["mobilenet_v2"](weights="imagenet")
    assert str(path) in str(caught.value)


def test_download_error_says_where_to_put_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise URLError("no route")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(downloads, "urlopen", unreachable)
    with pytest.raises(
        WeightsError,
        match=r"weights=imagenet: could not download .* \(no route\).*: model\.backbone\.weights=null \(MODEL\.W",
    ) as caught:
        BACKBONES["mobilenet_v2"](weights="imagenet")
    assert str(tmp_path / "checkpoints" / "mobilenet_v2-b0353104.pth") in str(caught.value)


def test_the_catalogue_has_the_recorded_names_and_addresses() -> None:
    facts = Path(__file__).parents[1] / "parity/goldens/facts/catalog.json"
    recorded = json.loads(facts.read_text())["pretrained_urls"]
    found = {name: row.file.urls[0].partition("#")[0] for name, row in CATALOG.items() if name.startswith("catalog://")}
    assert found == {f"catalog://{name}": address for name, address in recorded.items()}


@pytest.mark.parametrize(
    ("name", "in_1x1"), [("e2e_faster_rcnn_R-50-FPN_1x", True), ("e2e_mask_rcnn_X-101-32x8d-FPN_1x", False)]
)
def test_weights_of_a_coco_detector_were_trained_with_the_stride_of_their_backbone(name: str, in_1x1: bool) -> None:
    row = next(row for key, row in CATALOG.items() if key.endswith(name))
    assert row.trained_with == {"channel_order": "bgr", "backbone.stride_in_1x1": in_1x1}
    assert row.file.name.startswith("Caffe2Detectron_COCO_")
