"""Backbones, pyramids, and heads that the backbone defines, of the original's two-stage detectors against recordings.

Names, shapes and trained parameters of every manifest; features of every recorded model of `rcnn/`. The models of the
manifests are built on the meta device, because no test depends on a value.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from fill import fill_array
from golden import folder, manifest_of, network_input, pairs_of
from golden import load as load_numbers
from torch import Tensor, nn

from fcos.config.backbones import section_of
from fcos.config.schema import TrainConfig
from fcos.interop.architecture import replace_prefix
from fcos.interop.fcos_core.bodies import BODIES
from fcos.interop.fcos_core.config import given_keys
from fcos.interop.fcos_core.keys import DEFAULTS
from fcos.interop.fcos_core.mapping import to_options
from fcos.interop.fcos_core.weights import TWO_STAGE_PREFIXES
from fcos.models.backbones import build_backbone
from fcos.models.backbones.fbnet import FBNet
from fcos.models.backbones.resnet import ResNet
from fcos.models.fpn import FPN
from fcos.training.optim import parameter_settings

HEADS = {
    "rpn": ("rpn.head.0.head.", "heads.rpn.blocks."),
    "box": ("roi_heads.box.feature_extractor.head.", "heads.box."),
    "mask": ("roi_heads.mask.feature_extractor.head.", "heads.mask."),
    "keypoint": ("roi_heads.keypoint.feature_extractor.head.", "heads.keypoint."),
}
"""Prefixes of the names of the heads that consist of layers of the backbone: the original's, and those below."""
OF_BACKBONE = ("FBNet.", "ResNet50Conv5ROIFeatureExtractor")
"""Beginnings of the original's names of such heads."""


class Features(nn.Module):
    """Backbone, pyramid if there is one, and heads of the backbone."""

    def __init__(self, get: Callable[[str], Any]):
        super().__init__()
        options = to_options(get, detector="rcnn", num_classes_given=True)
        body = BODIES[get("MODEL.BACKBONE.CONV_BODY")]
        section = section_of(options["model.backbone.name"])
        assert section is not None
        self.backbone = build_backbone(section.model_validate(nested(options, "model.backbone.")), pretrained=False)
        assert isinstance(self.backbone, FBNet | ResNet)
        self.heads = nn.ModuleDict({kind: self.backbone.build_head(kind) for kind in heads_of(get)})
        if body.end == "fpn":
            options: dict[str, Any] = nested(options, "model.fpn.") | {"extra_levels": 1}
            del options["enabled"]
            self.fpn = FPN([*self.backbone.channels.values()], options.pop("channels"), **options)
        elif body.end != "last":
            self.backbone.truncate_after(body.end)

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = list(self.backbone(images).values())
        return self.fpn(maps) if hasattr(self, "fpn") else maps[-1:]


def nested(options: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Return the options below a section, with the options of subsections in dictionaries."""
    tree: dict[str, Any] = {}
    for key, value in options.items():
        if key.startswith(prefix):
            *sections, name = key.removeprefix(prefix).split(".")
            node = tree
            for section in sections:
                node = node.setdefault(section, {})
            node[name] = value
    return tree


def heads_of(get: Callable[[str], Any]) -> list[Any]:
    """Return the kinds of the heads that consist of layers of the backbone and share them with no other head."""
    if get("MODEL.RPN_ONLY"):
        keys = {"rpn": "MODEL.RPN.RPN_HEAD"}
    else:
        keys = {"rpn": "MODEL.RPN.RPN_HEAD", "box": "MODEL.ROI_BOX_HEAD.FEATURE_EXTRACTOR"}
        for kind, section in (("mask", "MODEL.ROI_MASK_HEAD"), ("keypoint", "MODEL.ROI_KEYPOINT_HEAD")):
            if get(f"MODEL.{kind.upper()}_ON") and not get(f"{section}.SHARE_BOX_FEATURE_EXTRACTOR"):
                keys[kind] = f"{section}.FEATURE_EXTRACTOR"
    return [kind for kind, key in keys.items() if str(get(key)).startswith(OF_BACKBONE)]


def rename(name: str) -> str | None:
    """Return our name of a tensor of the original, or None if it belongs to another part of the model."""
    renamed = replace_prefix(name, [*TWO_STAGE_PREFIXES, *HEADS.values()])
    return None if renamed == name and not name.startswith("backbone.") else renamed


def getter(manifest: dict[str, Any], pairs: list[str]) -> Callable[[str], Any]:
    return {**DEFAULTS, **given_keys(manifest["merged_config"], pairs)}.__getitem__


def is_two_stage(get: Callable[[str], Any]) -> bool:
    return BODIES[get("MODEL.BACKBONE.CONV_BODY")].end != "retinanet"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    goldens = folder(metafunc.config)
    if "manifest" in metafunc.fixturenames:
        files = {path: json.loads(path.read_text()) for path in sorted((goldens / "manifests").rglob("*.json"))}
        files = {path: item for path, item in files.items() if "merged_config" in item}
        paths = [path for path, item in files.items() if is_two_stage(getter(item, []))]
        metafunc.parametrize("manifest", paths, ids=[p.stem for p in paths], indirect=True, scope="module")
    if "recording" in metafunc.fixturenames:
        entries = json.loads((goldens / "rcnn" / "index.json").read_text())["models"]
        entries = [e for e in entries if is_two_stage(getter(manifest_of(goldens, e), pairs_of(e)))]
        metafunc.parametrize("recording", entries, ids=[e["file"] for e in entries])


class Manifest(NamedTuple):
    rows: list[tuple[Any, ...]]  # (name, shape, dtype, kind, requires_grad, lr, weight_decay)
    net: Features
    train: TrainConfig


@pytest.fixture(scope="module")
def manifest(request: pytest.FixtureRequest) -> Manifest:
    recorded = json.loads(request.param.read_text())
    get = getter(recorded, [])
    with torch.device("meta"):
        net = Features(get)
    modules = ("backbone.", "fpn.", *(f"heads.{kind}." for kind in heads_of(get)))
    rows = [(rename(name), tuple(shape), *rest) for name, shape, *rest in recorded["tensors"]]
    train = nested(to_options(get, detector="rcnn", num_classes_given=True), "train.")
    return Manifest([row for row in rows if row[0] and row[0].startswith(modules)], net, TrainConfig(**train))


def test_names_and_shapes_match_the_original(manifest: Manifest) -> None:
    parameters = dict(manifest.net.named_parameters())
    ours = {
        (name, tuple(tensor.shape), str(tensor.dtype), "parameter" if name in parameters else "buffer")
        for name, tensor in manifest.net.state_dict().items()
    }
    assert len(ours) > 150
    assert ours == {(name, shape, f"torch.{dtype}", kind) for name, shape, dtype, kind, *_ in manifest.rows}


def test_trained_parameters_and_their_rates_match_the_original(manifest: Manifest) -> None:
    settings = {s.name: (s.lr, s.weight_decay) for s in parameter_settings(manifest.net, manifest.train)}
    ours = {name: (p.requires_grad, *settings.get(name, (None, None))) for name, p in manifest.net.named_parameters()}
    assert ours == {
        name: (trained, lr, decay) for name, _, _, kind, trained, lr, decay in manifest.rows if kind == "parameter"
    }


def load(net: Features, manifest: dict[str, Any], seed: int) -> None:
    """Fill a model with the synthetic weights of a recording."""
    ours = net.state_dict()
    theirs = {rename(name): (name, shape) for name, shape, *_ in manifest["tensors"]}
    net.load_state_dict({name: torch.from_numpy(fill_array(*theirs[name], seed)) for name in ours})


@pytest.fixture(scope="module")
def goldens(pytestconfig: pytest.Config) -> Path:
    return folder(pytestconfig)


def test_features_match_the_original(recording: dict[str, Any], goldens: Path) -> None:
    manifest = manifest_of(goldens, recording)
    get = getter(manifest, pairs_of(recording))
    net = Features(get).eval()
    load(net, manifest, recording["seed"])
    numbers = load_numbers(goldens / "rcnn" / recording["file"])
    stride = json.loads((goldens / "rcnn" / "index.json").read_text())["feature_stride"]
    keys = given_keys(manifest["merged_config"], pairs_of(recording))
    with torch.inference_mode():
        features = net(network_input(load_numbers(goldens / "rcnn" / "inputs.npz"), keys))
    assert {f"eval/feat{i}" for i in range(len(features))} == {k for k in numbers if k[:-1] == "eval/feat"}
    for i, ours in enumerate(features):
        expected = numbers[f"eval/feat{i}"]
        assert list(ours.shape) == numbers[f"eval/feat{i}/shape"].tolist()
        atol = max(1e-4, 1e-5 * float(np.abs(expected).max()))
        np.testing.assert_allclose(ours.flatten()[::stride], expected, rtol=0, atol=atol)
    if "rpn" in net.heads:  # the predictions are 1x1 convolutions on the head's layers
        name, expected = "rpn.head.1.cls_logits", numbers["eval/rpn_cls0"]
        shapes = {row[0]: row[1] for row in manifest["tensors"]}
        weight, bias = (
            torch.from_numpy(fill_array(f"{name}.{key}", shapes[f"{name}.{key}"], recording["seed"]))
            for key in ("weight", "bias")
        )
        with torch.inference_mode():
            logits = nn.functional.conv2d(net.heads["rpn"](features[0]), weight, bias)
        stride = math.ceil(logits.numel() / expected.size)  # the smallest one of the recorded length
        atol = max(1e-4, 1e-5 * float(np.abs(expected).max()))
        np.testing.assert_allclose(logits.flatten()[::stride], expected, rtol=0, atol=atol)
