"""Weights of backbones trained on ImageNet: which ones have a name, where they are, and how they get into a network."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models import (
    MobileNet_V2_Weights,
    ResNet50_Weights,
    ResNet101_Weights,
    ResNeXt101_32X8D_Weights,
    ResNeXt101_64X4D_Weights,
    WeightsEnum,
)

from ..checkpoint import other_shapes
from ..config import expand_user
from ..config_text import suggest
from ..downloads import WebFile, hub_file, is_url
from ..errors import WeightsError
from ..interop.detectron import load_backbone
from ..interop.fcos_core import convert_backbone

_CATALOG = "catalog://"
_DETECTRON = "https://dl.fbaipublicfiles.com/detectron/ImageNetPretrained"
_CLOUDSTOR = "https://cloudstor.aarnet.edu.au/plus/s"  # closed in 2023, but the original's configs name it
_OPENVINO = "https://storage.openvinotoolkit.org/repositories/open_model_zoo/public"
_CLASSIFIER = ("fc.", "classifier.")
_COUNTER = "num_batches_tracked"  # of batch norm; files of before PyTorch 0.4.1 have none
_WRAPPINGS = ("state_dict", "model")


def _torchvision(weights: WeightsEnum) -> WebFile:
    return WebFile((weights.url,), licence="BSD-3-Clause (torchvision)")


def _detectron(name: str, *paths: str, mirrors: tuple[str, ...] = ()) -> tuple[str, WebFile]:
    first, *others = (f"{_DETECTRON}/{path}.pkl" for path in paths)
    licence = "CC BY-SA 3.0 (Detectron's model zoo)"
    return name, WebFile((f"{first}#{name.replace('/', '_')}.pkl", *others, *mirrors), licence=licence)


IMAGENET = {
    "resnet50": _torchvision(ResNet50_Weights.IMAGENET1K_V1),
    "resnet101": _torchvision(ResNet101_Weights.IMAGENET1K_V1),
    "resnext101_32x8d": _torchvision(ResNeXt101_32X8D_Weights.IMAGENET1K_V1),
    "resnext101_64x4d": _torchvision(ResNeXt101_64X4D_Weights.IMAGENET1K_V1),
    "mobilenet_v2": _torchvision(MobileNet_V2_Weights.IMAGENET1K_V1),
    "dla34": WebFile(
        (
            "http://dl.yf.io/dla/models/imagenet/dla34-ba72cf86.pth",  # often out of reach
            f"{_OPENVINO}/2022.1/dla-34/dla34-ba72cf86.pth",
        ),
        licence="BSD-3-Clause (Deep Layer Aggregation)",
    ),
}
"""What `imagenet` means, by backbone."""
CATALOG = dict(
    [
        _detectron("ImageNetPretrained/MSRA/R-50", "MSRA/R-50"),
        _detectron("ImageNetPretrained/MSRA/R-50-GN", "47261647/R-50-GN"),
        _detectron("ImageNetPretrained/MSRA/R-101", "MSRA/R-101"),
        _detectron("ImageNetPretrained/MSRA/R-101-GN", "47592356/R-101-GN"),
        _detectron("ImageNetPretrained/FAIR/20171220/X-101-32x8d", "20171220/X-101-32x8d"),
        _detectron(
            "ImageNetPretrained/FAIR/20171220/X-101-64x4d",
            "20171220/X-101-64x4d",
            "FBResNeXt/X-101-64x4d",  # its place in Detectron's model zoo
            mirrors=(f"{_CLOUDSTOR}/k3ys35075jmU1RP/download#X-101-64x4d.pkl",),
        ),
    ]
)
"""What the original calls `catalog://NAME`: Caffe2's networks, for BGR images."""
_MOBILENET = WebFile(
    (
        "https://huggingface.co/tianzhi/FCOS/resolve/main/mobilenet_v2-ecbe2b5.pth?download=true#mobilenet_v2-ecbe2b5.pth",
        f"{_CLOUDSTOR}/xtixKaxLWmbcyf7/download#mobilenet_v2-ecbe2b5.pth",
    ),
    licence="none is stated with the file, which the authors of the original FCOS host; their project is for"
    " non-commercial use",
    restricted=True,
)
_KNOWN = (*CATALOG.values(), _MOBILENET)
_STRIDE_IN_1X1 = ("ImageNetPretrained/MSRA/R-50", "ImageNetPretrained/MSRA/R-101")


def trained_with(source: str) -> dict[str, str | bool]:
    """What weights with a name were trained with: options of `model` that they fit."""
    if source == "imagenet":
        return {"channel_order": "rgb", "backbone.stride_in_1x1": False}
    if source.startswith(_CATALOG):
        return {"channel_order": "bgr", "backbone.stride_in_1x1": source.removeprefix(_CATALOG) in _STRIDE_IN_1X1}
    return {}


def load_weights(net: nn.Module, backbone: str, source: str) -> None:
    """Fill a torchvision network, its classifier left out.

    Args:
        net: the network.
        backbone: see `imagenet_weights`.
        source: likewise.

    Raises:
        WeightsError: see `imagenet_weights`; or the tensors do not fit the network.
    """
    state = imagenet_weights(backbone, source)
    state = {name: tensor for name, tensor in state.items() if not name.startswith(_CLASSIFIER)}
    shapes = other_shapes(net.state_dict(), state)
    if shapes:
        raise WeightsError(
            f"model.backbone.weights={source} does not fit {backbone}: {len(shapes)} tensors of another shape:"
            f" {', '.join(shapes[:3])}; give weights of {backbone}, or model.backbone.weights=null"
        )
    missing, unexpected = net.load_state_dict(state, strict=False)
    missing = [name for name in missing if not name.startswith(_CLASSIFIER) and not name.endswith(_COUNTER)]
    if missing or unexpected:
        raise WeightsError(
            f"model.backbone.weights={source} does not fit {backbone} with this norm: {len(missing)} tensors missing"
            f" {missing[:3]}, {len(unexpected)} unknown {unexpected[:3]};"
            " use a norm of the weights' kind or model.backbone.weights=null"
        )


def imagenet_weights(backbone: str, source: str) -> dict[str, Tensor]:
    """The state dict of a backbone in torchvision's names.

    Args:
        backbone: a key of `IMAGENET`.
        source: `imagenet` (see `IMAGENET`), `catalog://` and a key of `CATALOG`, an http(s) address, which may end in
            `#NAME` for the name in the cache, or a path. Files are state dicts, in torchvision's names (DLA-34:
            its authors') or those of the original's MobileNetV2, or Detectron's when they end in .pkl.

    Raises:
        WeightsError: no such name or file, a failed download, or a file of another kind.
    """
    file = _named(backbone, source)
    if file is None:
        path, mend = expand_user(source), ""
    else:
        otherwise = "train from random ones: model.backbone.weights=null (MODEL.WEIGHT '' with a YAML of the original)"
        path = hub_file(file, f"model.backbone.weights={source}", otherwise=otherwise)
        mend = "; delete it to download it again"
    try:
        if path.suffix == ".pkl":
            return load_backbone(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise WeightsError(
            f"model.backbone.weights: no file {source!r} (expected `imagenet`, {_CATALOG}NAME, an address, a path, or"
            " null)"
        ) from None
    except WeightsError as error:
        raise WeightsError(f"model.backbone.weights: {error}{mend}") from None
    except Exception as error:  # a damaged file makes the reader fail in any way
        reason = str(error).partition("\n")[0]
        raise WeightsError(f"model.backbone.weights: {path}: not a readable state dict: {reason}{mend}") from None
    if isinstance(content, dict):
        content = next((content[key] for key in _WRAPPINGS if key in content), content)
    tensors = content.items() if isinstance(content, dict) else ()
    state = {str(name): tensor for name, tensor in tensors if isinstance(tensor, Tensor)}
    if not state:
        raise WeightsError(f"model.backbone.weights: {path}: expected a state dict of tensors{mend}")
    return convert_backbone(state)


def restricted_licence(backbone: str, source: str) -> str:
    """The licence of weights that may not be free to use; empty: nothing is known against any use.

    Args:
        backbone: see `imagenet_weights`.
        source: likewise.

    Raises:
        WeightsError: no such name.
    """
    file = _named(backbone, source)
    return file.licence or "" if file and file.restricted else ""


def _named(backbone: str, source: str) -> WebFile | None:
    """What is downloaded for a source; None: it is a path."""
    if source == "imagenet":
        return IMAGENET[backbone]
    if is_url(source):
        return next((file for file in _KNOWN if source in file.urls), WebFile((source,)))
    if source.startswith(_CATALOG):
        name = source.removeprefix(_CATALOG)
        if name not in CATALOG:
            known = ", ".join(CATALOG)
            raise WeightsError(
                f"model.backbone.weights: no {source}{suggest(name, list(CATALOG))}; backbones with a name: {known}"
            )
        return CATALOG[name]
    if "://" in source:
        raise WeightsError(
            f"model.backbone.weights: {source!r} is not read; give `imagenet`, {_CATALOG}NAME, an http(s) address, a"
            " path, or null"
        )
    return None
