"""Backbones: the contract, freezing, weights files, normalisation; and the pyramid above them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, Literal
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from fcos import downloads
from fcos.config import FCOSConfig, ResNetConfig
from fcos.downloads import WebFile
from fcos.errors import WeightsError
from fcos.models import build_model, weights
from fcos.models.backbones import BACKBONES, resnet
from fcos.models.fpn import FPN
from fcos.models.layers import NORMS, freeze
from fcos.models.weights import imagenet_weights

NAMES = ["resnet50", "mobilenet_v2"]
LEVELS = ["C2", "C3", "C4", "C5"]
SOURCES: list[Literal["p5", "c5"]] = ["p5", "c5"]


@pytest.fixture(autouse=True)
def _few_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """ResNets with one block a stage: everything tested here is in the first blocks."""
    for name, shape in resnet.SHAPES.items():
        monkeypatch.setitem(resnet.SHAPES, name, shape._replace(blocks=(1, 1, 1, 1)))


def build(name: str, **options: Any) -> nn.Module:
    backbone = BACKBONES[name](**options)
    assert isinstance(backbone, nn.Module)
    return backbone


def stages(backbone: nn.Module) -> list[list[nn.Module]]:
    """The modules of (stem, C2, C3, C4, C5)."""
    parts = dict(backbone.named_children())
    if "features" in parts:
        features = list(parts["features"].children())
        return [features[0:2], features[2:4], features[4:7], features[7:14], features[14:18]]
    return [[parts["conv1"], parts["bn1"]], *([parts[f"layer{i}"]] for i in (1, 2, 3, 4))]


def parameters(modules: list[nn.Module]) -> list[nn.Parameter]:
    return [parameter for module in modules for parameter in module.parameters()]


def statistics(modules: list[nn.Module]) -> list[Tensor]:
    return [
        b.clone() for m in modules for name, b in m.named_buffers() if name.endswith(("running_mean", "running_var"))
    ]


# ----------------------------------------------------------------------------------------------------------- contract


@pytest.mark.parametrize("size", [(97, 65), (1, 1)])
@pytest.mark.parametrize("name", BACKBONES)
def test_maps_have_the_stated_channels_and_strides_rounded_up(name: str, size: tuple[int, int]) -> None:
    backbone = BACKBONES[name]()
    assert list(backbone.strides) == list(backbone.channels) == LEVELS
    assert list(backbone.strides.values()) == [4, 8, 16, 32]
    assert isinstance(backbone, nn.Module)
    backbone.eval()
    features = backbone(torch.randn(1, 3, *size))
    assert list(features) == LEVELS
    for level, feature in features.items():
        stride = backbone.strides[level]
        assert feature.shape == (1, backbone.channels[level], -(-size[0] // stride), -(-size[1] // stride))


@pytest.mark.parametrize("end", LEVELS)
@pytest.mark.parametrize("name", BACKBONES)
def test_nothing_is_left_behind_the_last_map_in_use(name: str, end: str) -> None:
    backbone = BACKBONES[name](norm="frozen_bn", frozen_stages=0)
    assert isinstance(backbone, nn.Module)
    expected = backbone(images := torch.randn(1, 3, 64, 64))
    backbone.end_at(end)
    features = backbone(images)
    assert list(features) == list(backbone.channels) == list(backbone.strides) == LEVELS[: LEVELS.index(end) + 1]
    assert all(torch.equal(feature, expected[level]) for level, feature in features.items())
    features[end].sum().backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("name", "norm"), [*(("resnet50", norm) for norm in NORMS), ("mobilenet_v2", "bn")])
def test_a_batch_may_be_empty(name: str, norm: str, training: bool) -> None:
    backbone = build(name, norm=norm).train(training)
    features = backbone(torch.zeros(0, 3, 64, 96))
    assert [tuple(x.shape[2:]) for x in features.values()] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert all(len(x) == 0 for x in features.values())
    assert all(b.isfinite().all() for b in statistics([backbone]))


@pytest.mark.parametrize("norm", NORMS)
def test_the_norm_is_the_one_asked_for(norm: str) -> None:
    kinds = (nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d, nn.GroupNorm)
    found = {type(m) for m in build("resnet50", norm=norm, frozen_stages=0).modules() if isinstance(m, kinds)}
    assert found == {type(NORMS[norm](64))}


@pytest.mark.parametrize(("channels", "groups"), [(256, 32), (64, 32), (32, 16)])
def test_group_norm_has_32_groups_of_at_least_two_channels(channels: int, groups: int) -> None:
    assert NORMS["gn"](channels).num_groups == groups


def test_the_epsilon_reaches_every_norm() -> None:
    backbone = build("resnet50", norm="frozen_bn", norm_eps=0.0)
    assert {m.eps for m in backbone.modules() if isinstance(m, FrozenBatchNorm2d)} == {0.0}


@pytest.mark.parametrize("in_1x1", [True, False])
def test_the_stride_moves_between_the_1x1_and_the_3x3_convolution(in_1x1: bool) -> None:
    backbone = build("resnet50", stride_in_1x1=in_1x1)
    firsts = [next(stage[0].children()) for stage in stages(backbone)[1:]]
    strides = [(dict(b.named_children())["conv1"].stride, dict(b.named_children())["conv2"].stride) for b in firsts]
    moved = ((2, 2), (1, 1)) if in_1x1 else ((1, 1), (2, 2))
    assert strides == [((1, 1), (1, 1)), moved, moved, moved]


# ----------------------------------------------------------------------------------------------------------- freezing


@pytest.mark.parametrize("count", range(6))
@pytest.mark.parametrize("name", NAMES)
def test_exactly_the_first_stages_are_frozen(name: str, count: int) -> None:
    parts = stages(build(name, norm="bn", frozen_stages=count))
    for index, modules in enumerate(parts):
        assert parameters(modules)
        assert {p.requires_grad for p in parameters(modules)} == {index >= count}


@pytest.mark.parametrize("count", [0, 1, 3, 5])
@pytest.mark.parametrize(("name", "norm"), [("resnet50", "bn"), ("mobilenet_v2", "sync_bn")])
def test_frozen_batch_norm_keeps_its_statistics_in_training(name: str, count: int, norm: str) -> None:
    backbone = build(name, norm=norm, frozen_stages=count).train()
    before = [statistics(modules) for modules in stages(backbone)]
    backbone(torch.randn(2, 3, 64, 64))
    for index, (old, modules) in enumerate(zip(before, stages(backbone), strict=True)):
        moved = [not torch.equal(a, b) for a, b in zip(old, statistics(modules), strict=True)]
        assert set(moved) == {index >= count}, index


def test_freezing_keeps_what_a_network_computes() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8, eps=0.1), nn.Sequential(nn.BatchNorm2d(8)))
    net(torch.randn(9, 3, 4, 4))
    images = torch.randn(2, 3, 4, 4)
    expected = net.eval()(images)
    torch.testing.assert_close(freeze(net).train()(images), expected)


def test_a_batch_norm_alone_is_replaced() -> None:
    norm = nn.BatchNorm2d(4)
    frozen = freeze(norm)
    assert isinstance(frozen, FrozenBatchNorm2d)
    assert list(frozen.parameters()) == []


def test_freezing_group_norm_freezes_its_parameters() -> None:
    parts = stages(build("resnet50", norm="gn", frozen_stages=2))
    assert [any(p.requires_grad for p in parameters(modules)) for modules in parts] == [False, False, True, True, True]


# ------------------------------------------------------------------------------------------------------------ weights


def classifier(name: str, classes: int = 7) -> nn.Module:
    if name == "mobilenet_v2":
        return torchvision.models.mobilenet_v2(num_classes=classes)
    return torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [1, 1, 1, 1], num_classes=classes)


def randomise(net: nn.Module) -> dict[str, Tensor]:
    state = net.state_dict()
    for tensor in state.values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
    return state


@pytest.mark.parametrize(("norm", "wrapped"), [("bn", None), ("frozen_bn", "model"), ("sync_bn", "state_dict")])
@pytest.mark.parametrize("name", NAMES)
def test_torchvisions_classifiers_load(name: str, norm: str, wrapped: str | None, tmp_path: Path) -> None:
    state = randomise(classifier(name))
    torch.save(state if wrapped is None else {wrapped: state, "epoch": 3}, tmp_path / "net.pth")
    own = build(name, norm=norm, weights=str(tmp_path / "net.pth")).state_dict()
    assert len(own) > 50
    for key, tensor in own.items():
        assert torch.equal(tensor, state[key]), key


@pytest.mark.parametrize("name", NAMES)
def test_weights_give_torchvisions_features(name: str, tmp_path: Path) -> None:
    net = classifier(name).eval()
    torch.save(net.state_dict(), tmp_path / "net.pth")
    backbone, images = build(name, weights=str(tmp_path / "net.pth"), frozen_stages=3).eval(), torch.randn(1, 3, 64, 64)
    deepest = backbone(images)["C5"]
    if name == "mobilenet_v2":
        expected = dict(net.named_children())["features"][:18](images)  # pyright: ignore[reportIndexIssue]
    else:
        expected = nn.Sequential(*list(net.children())[:-2])(images)
    torch.testing.assert_close(deepest, expected)


@pytest.mark.parametrize("name", NAMES)
def test_weights_without_a_classifier_load(name: str, tmp_path: Path) -> None:
    state = {k: v for k, v in classifier(name).state_dict().items() if not k.startswith(("fc.", "classifier."))}
    torch.save(state, tmp_path / "net.pth")
    assert build(name, weights=str(tmp_path / "net.pth"))


def refused(tmp_path: Path, content: Any, *, name: str = "mobilenet_v2", **options: Any) -> str:
    path = tmp_path / "net.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(WeightsError) as caught:
        build(name, weights=str(path), **options)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_weights_of_another_network_do_not_fit(tmp_path: Path) -> None:
    text = refused(tmp_path, classifier("resnet50").state_dict())
    assert "does not fit mobilenet_v2" in text
    assert "missing" in text
    assert "unknown" in text


def test_weights_of_another_norm_do_not_fit(tmp_path: Path) -> None:
    text = refused(tmp_path, classifier("resnet50").state_dict(), name="resnet50", norm="gn")
    assert "use a norm of the weights' kind" in text


def test_weights_of_another_width_do_not_fit(tmp_path: Path) -> None:
    state = torchvision.models.mobilenet_v2(width_mult=0.5).state_dict()
    assert "does not fit mobilenet_v2" in refused(tmp_path, state)


@pytest.mark.parametrize("content", [{"model": "resnet"}, {"epoch": 3}, {}, [torch.zeros(3)], torch.zeros(3), 5])
def test_a_file_without_a_state_dict_is_refused(content: Any, tmp_path: Path) -> None:
    assert "expected a state dict of tensors" in refused(tmp_path, content)


@pytest.mark.parametrize("content", [b"", b"hello", b".", b"version https://git-lfs", b"PK\x03\x04rubbish", bytes(99)])
def test_a_file_of_another_kind_is_refused(content: bytes, tmp_path: Path) -> None:
    assert "not a readable state dict" in refused(tmp_path, content)


def test_a_file_with_code_is_refused(tmp_path: Path) -> None:
    assert "not a readable state dict" in refused(tmp_path, {"model": pytest.raises})


def test_a_missing_file_and_a_folder_are_told(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no file .*expected `imagenet`, catalog://NAME, an address, a path, or"):
        build("mobilenet_v2", weights=str(tmp_path / "none.pth"))
    with pytest.raises(WeightsError, match="not a readable state dict"):
        build("mobilenet_v2", weights=str(tmp_path))


def test_a_pickle_of_detectron_loads(tmp_path: Path) -> None:
    blobs = {"conv1_w": np.full((64, 3, 7, 7), 2, np.float32), "res_conv1_bn_s": np.full(64, 3, np.float32)}
    (tmp_path / "net.pkl").write_bytes(pickle.dumps(blobs))
    state = imagenet_weights("resnet50", str(tmp_path / "net.pkl"))
    assert {name: tensor.unique().tolist() for name, tensor in state.items()} == {
        "conv1.weight": [2],
        "bn1.weight": [3],
        "bn1.running_mean": [0],
        "bn1.running_var": [1],
    }


def test_a_pickle_that_is_refused_is_named(tmp_path: Path) -> None:
    (tmp_path / "net.pkl").write_bytes(pickle.dumps({"conv1_w": Path}))
    with pytest.raises(WeightsError, match=r"model\.backbone\.weights: .*net\.pkl: .*it asks for pathlib"):
        build("resnet50", weights=str(tmp_path / "net.pkl"))


def test_module_in_front_of_all_names_is_dropped(tmp_path: Path) -> None:
    torch.save({"module.conv1.weight": torch.zeros(1)}, tmp_path / "net.pth")
    assert list(imagenet_weights("resnet50", str(tmp_path / "net.pth"))) == ["conv1.weight"]


def test_a_path_may_begin_with_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "net.pth")
    assert list(imagenet_weights("resnet50", "~/net.pth")) == ["conv1.weight"]


# ---------------------------------------------------------------------------------------------------- weights by name


def asked_for(source: str, monkeypatch: pytest.MonkeyPatch, *, backbone: str = "resnet50") -> WebFile:
    """The file that a source stands for."""
    asked: list[Any] = []

    def stop(file: Any, *_: Any, **__: Any) -> Path:
        asked.append(file)
        raise WeightsError("no network")

    monkeypatch.setattr(weights, "hub_file", stop)
    with pytest.raises(WeightsError, match="no network"):
        imagenet_weights(backbone, source)
    return asked[0]


def test_names_of_the_catalogue_are_the_originals(monkeypatch: pytest.MonkeyPatch) -> None:
    file = asked_for("catalog://ImageNetPretrained/MSRA/R-50", monkeypatch)
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
def test_the_originals_mobilenet_has_mirrors(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = asked_for(url, monkeypatch, backbone="mobilenet_v2")
    assert url in file.urls
    assert len(file.urls) == 2
    assert file.name == "mobilenet_v2-ecbe2b5.pth"
    assert file.restricted


def test_the_originals_resnext_has_mirrors(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "https://cloudstor.aarnet.edu.au/plus/s/k3ys35075jmU1RP/download#X-101-64x4d.pkl"
    name = "catalog://ImageNetPretrained/FAIR/20171220/X-101-64x4d"
    assert asked_for(url, monkeypatch) == asked_for(name, monkeypatch)
    assert len(asked_for(url, monkeypatch).urls) > 1


def test_any_address_is_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked_for("http://a.org/b.pth#c.pth", monkeypatch) == WebFile(("http://a.org/b.pth#c.pth",))


def test_every_name_has_a_licence_and_a_name_of_its_own() -> None:
    files = [*weights.IMAGENET.values(), *weights.CATALOG.values()]
    assert all(file.licence for file in files)
    assert len({file.name for file in files}) == len(files)
    assert {Path(file.name).suffix for file in weights.CATALOG.values()} == {".pkl"}
    assert weights.IMAGENET.keys() == BACKBONES.keys() - {"dla34"}  # its authors' file is given by path or address


@pytest.mark.parametrize(
    ("source", "options", "other"),
    [
        ("imagenet", {}, None),
        ("imagenet", {"channel_order": "bgr"}, "channel_order=rgb"),
        ("catalog://ImageNetPretrained/MSRA/R-50", {}, "channel_order=bgr and stride_in_1x1=True"),
        ("catalog://ImageNetPretrained/FAIR/20171220/X-101-32x8d", {"channel_order": "bgr"}, None),
        ("net.pth", {"channel_order": "bgr"}, None),
    ],
)
def test_weights_with_a_name_tell_what_they_were_trained_with(
    source: str,
    options: dict[str, Any],
    other: str | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(resnet, "load_weights", lambda *_: None)
    config = FCOSConfig(backbone=ResNetConfig(weights=source), **options)
    build_model(config, num_classes=1)
    assert caplog.messages == ([f"{source}: trained with {other}, which fits them better"] if other else [])
    caplog.clear()
    build_model(config, num_classes=1, pretrained=False)
    assert caplog.messages == []


def test_an_unknown_name_gets_a_suggestion_and_the_known_ones() -> None:
    with pytest.raises(WeightsError) as caught:
        build("resnet50", weights="catalog://ImageNetPretrained/MSRA/R-55")
    assert "no catalog://ImageNetPretrained/MSRA/R-55, did you mean 'ImageNetPretrained/MSRA/R-50" in str(caught.value)
    assert all(name in str(caught.value) for name in weights.CATALOG)


def test_addresses_of_another_kind_are_not_read() -> None:
    with pytest.raises(WeightsError, match=r"'s3://x' is not read; give `imagenet`"):
        build("mobilenet_v2", weights="s3://x")


def test_a_damaged_file_from_the_net_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    path = tmp_path / "checkpoints" / "mobilenet_v2-b0353104.pth"
    path.write_bytes(b"cut short")
    with pytest.raises(WeightsError, match=r"not a readable state dict.*; delete it to download it again") as caught:
        build("mobilenet_v2", weights="imagenet")
    assert str(path) in str(caught.value)


def test_without_a_network_the_message_says_where_to_put_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise URLError("no route")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(downloads, "urlopen", unreachable)
    with pytest.raises(
        WeightsError, match=r"weights=imagenet: could not download .* \(no route\).*weights=null"
    ) as caught:
        build("mobilenet_v2", weights="imagenet")
    assert str(tmp_path / "checkpoints" / "mobilenet_v2-b0353104.pth") in str(caught.value)


# ---------------------------------------------------------------------------------------------------------- pyramid


def maps(*sizes: tuple[int, int], images: int = 2) -> list[Tensor]:
    return [torch.randn(images, 8 * (i + 1), *size) for i, size in enumerate(sizes)]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("norm", ["none", "gn"])
def test_levels_have_the_sizes_of_their_maps_and_halve_above(norm: str, relu: bool, source: Any) -> None:
    fpn = FPN([8, 16, 24], 32, extra_levels=3, extra_level_source=source, norm=norm, relu=relu)
    levels = fpn(maps((13, 17), (7, 9), (4, 5)))
    assert [tuple(x.shape) for x in levels] == [(2, 32, *s) for s in [(13, 17), (7, 9), (4, 5), (2, 3), (1, 2), (1, 1)]]
    assert all((level >= 0).all() == relu for level in levels[:3])


def test_a_pyramid_takes_empty_batches_and_single_maps() -> None:
    assert [x.shape[0] for x in FPN([8, 16], 32, norm="gn")(maps((4, 6), (2, 3), images=0))] == [0] * 4
    assert len(FPN([8], 32, extra_levels=0)(maps((4, 6)))) == 1


def test_the_first_extra_level_is_computed_from_its_source() -> None:
    features = maps((8, 8), (4, 4))
    for source, channels in zip(SOURCES, (32, 16), strict=True):
        fpn = FPN([8, 16], 32, extra_levels=2, extra_level_source=source)
        levels = fpn(features)
        assert fpn.extra[0].in_channels == channels
        torch.testing.assert_close(levels[2], fpn.extra[0](levels[1] if source == "p5" else features[1]))
        torch.testing.assert_close(levels[3], fpn.extra[1](levels[2].relu()))


def test_coarser_levels_reach_the_finer_ones_and_not_the_other_way_round() -> None:
    fpn, features = FPN([8, 16], 32, extra_levels=0), [x.requires_grad_() for x in maps((8, 8), (4, 4))]
    fine, coarse = fpn(features)
    fine.sum().backward()
    assert all(x.grad is not None for x in features)
    for x in features:
        x.grad = None
    fpn(features)[1].sum().backward()
    assert features[0].grad is None
    assert coarse.shape[2:] == (4, 4)


@pytest.mark.parametrize("rows", [1, 4])
def test_bfloat16_does_not_reach_the_extra_levels(rows: int) -> None:
    """With stride 2 to a map of one column it gives garbage."""
    fpn = FPN([256], 256, extra_levels=2, extra_level_source="c5")
    features = [torch.randn(2, 256, rows, 2).bfloat16()]

    def gradients(enabled: bool) -> list[Tensor]:
        fpn.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            levels = fpn([f if enabled else f.float() for f in features])
        torch.stack([level.float().square().sum() for level in levels[1:]]).sum().backward()
        return [p.grad for p in fpn.extra.parameters() if p.grad is not None]

    torch.testing.assert_close(gradients(True), gradients(False))
