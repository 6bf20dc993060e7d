"""Weights of backbones trained on ImageNet; downloads."""

from __future__ import annotations

import socket
import sys
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError

import torch
from torch import Tensor, nn
from torchvision.models import (
    MobileNet_V2_Weights,
    ResNet50_Weights,
    ResNet101_Weights,
    ResNeXt101_32X8D_Weights,
    ResNeXt101_64X4D_Weights,
)

from ..errors import WeightsError

IMAGENET = {
    "resnet50": ResNet50_Weights.IMAGENET1K_V1,
    "resnet101": ResNet101_Weights.IMAGENET1K_V1,
    "resnext101_32x8d": ResNeXt101_32X8D_Weights.IMAGENET1K_V1,
    "resnext101_64x4d": ResNeXt101_64X4D_Weights.IMAGENET1K_V1,
    "mobilenet_v2": MobileNet_V2_Weights.IMAGENET1K_V1,
}

_CLASSIFIER = ("fc.", "classifier.")
_PATIENCE = 10.0  # seconds without an answer


def load_weights(net: nn.Module, backbone: str, source: str) -> None:
    """Fill a torchvision network, its classifier left out; `source` as in `imagenet_weights`.

    Raises:
        WeightsError: also when the tensors do not fit the network.
    """
    state = imagenet_weights(backbone, source)
    state = {name: tensor for name, tensor in state.items() if not name.startswith(_CLASSIFIER)}
    try:
        missing, unexpected = net.load_state_dict(state, strict=False)
    except RuntimeError as error:  # shapes
        raise WeightsError(f"model.backbone.weights={source} does not fit {backbone}: {error}") from None
    missing = [name for name in missing if not name.startswith(_CLASSIFIER)]
    if missing or unexpected:
        raise WeightsError(
            f"model.backbone.weights={source} does not fit {backbone} with this norm: {len(missing)} tensors missing"
            f" {missing[:3]}, {len(unexpected)} unknown {unexpected[:3]};"
            " use a norm of the weights' kind or weights=null"
        )


def imagenet_weights(backbone: str, source: str) -> dict[str, Tensor]:
    """The state dict of a backbone in torchvision's names.

    Args:
        backbone: a key of `IMAGENET`.
        source: `imagenet` (torchvision's file, from the torch hub cache or downloaded with its hash checked), or a path
            to a state dict.

    Raises:
        WeightsError: no such file, no network, or not a state dict.
    """
    if source == "imagenet":
        name = f"ImageNet weights of {backbone}"
        path = hub_file(IMAGENET[backbone].url, name, otherwise="train from random ones: model.backbone.weights=null")
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception:  # a damaged file makes the reader fail in any way
            raise WeightsError(f"{name}: {path} is damaged, it holds no tensors; delete it") from None
    if "://" in source:
        raise WeightsError(
            f"model.backbone.weights: {source!r} is not read; give a path to a state dict in torchvision's names, null,"
            " or `imagenet` (RGB images, torchvision's mean and deviation, blocks that downsample in the 3x3"
            " convolution: model.channel_order, pixel_mean, pixel_std and backbone.stride_in_1x1 must agree)"
        )
    try:
        state = torch.load(source, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise WeightsError(
            f"model.backbone.weights: no file {source!r} (expected `imagenet`, a path, or null)"
        ) from None
    except Exception as error:  # as above
        reason = str(error).partition("\n")[0]
        raise WeightsError(f"model.backbone.weights: {source}: not a readable state dict: {reason}") from None
    if isinstance(state, dict):
        state = state.get("state_dict", state.get("model", state))
    if not isinstance(state, dict) or not any(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"model.backbone.weights: {source}: expected a state dict of tensors")
    return state


def hub_file(url: str, name: str, *, otherwise: str) -> Path:
    """The file of an address in the torch hub cache, where it is downloaded to when it is missing.

    Args:
        url: ends in NAME-HASH.EXTENSION; a download must have a SHA-256 that begins with HASH.
        name: of the weights, for the message.
        otherwise: what else a user without a network can do, for the message.

    Raises:
        WeightsError: it could not be downloaded, or is another file.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    if path.is_file():
        return path
    print(f"downloading {url} to {path}", file=sys.stderr)
    patience = socket.getdefaulttimeout()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        socket.setdefaulttimeout(_PATIENCE)  # torch's download would wait for ever
        torch.hub.download_url_to_file(url, str(path), hash_prefix=path.stem.rpartition("-")[2])
    except (OSError, RuntimeError, HTTPException) as error:  # no connection, another hash, broken off
        if isinstance(error, HTTPError):
            error.close()  # it is also the connection
        raise WeightsError(
            f"{name}: could not download {url} ({error}); fetch the file elsewhere and put it at {path}, or {otherwise}"
        ) from None
    finally:
        socket.setdefaulttimeout(patience)
    return path
