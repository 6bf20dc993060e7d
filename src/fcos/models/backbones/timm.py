"""Networks of timm (pytorch-image-models) as feature extractors."""

from __future__ import annotations

import logging
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ...config_text import suggest
from ...errors import ConfigError, WeightsError
from ..layers import freeze
from ..weights import imagenet_weights

log = logging.getLogger(__name__)

PREFIX = "timm/"
_LEVELS = {"C2": 4, "C3": 8, "C4": 16, "C5": 32}


class Timm(nn.Module):
    """The maps of strides 4 to 32 of a network of timm, with timm's padding and epsilons.

    Args:
        name: `timm/` and timm's name, with its tag where one is wanted: `timm/resnet18.a1_in1k`.
        weights: `imagenet` (timm's pretrained ones), a path or an address of a state dict in timm's names; None:
            random.
        norm: `bn` leaves the network as timm makes it; `frozen_bn` freezes its batch norm.
        frozen_stages: how many of (stem, C2, C3, C4, C5) do not learn.

    Raises:
        ConfigError: no timm, no such network, or one without maps of strides 8, 16 and 32.
        WeightsError: weights that cannot be had or do not fit.
    """

    def __init__(self, *, name: str, weights: str | None = None, norm: str = "bn", frozen_stages: int = 0):
        super().__init__()
        self.name = name
        self.net = _create(name)
        reductions: list[int] = self.net.feature_info.reduction()
        self.indices = {c: reductions.index(s) for c, s in _LEVELS.items() if reductions.count(s) == 1}
        if not {"C3", "C4", "C5"} <= self.indices.keys():
            raise ConfigError(
                f"model.backbone.name={name}: its maps have strides {reductions}; a backbone of FCOS needs one of 8, 16"
                " and 32 each, as convolutional and pyramid networks have"
            )
        self.channels = {c: self.net.feature_info.channels()[index] for c, index in self.indices.items()}
        self.strides = {c: _LEVELS[c] for c in self.indices}
        if weights == "imagenet":
            self.net = _pretrained(name)
        elif weights is not None:
            _load(self.net, name, weights)
        self._freeze(norm, frozen_stages)

    def end_at(self, level: str) -> None:
        """Remove what comes after a map."""
        if level == list(self.strides)[-1]:
            return
        parts = self._parts()
        for parent, key in parts[self._ends(parts)[level] :]:
            delattr(parent, key)
        kept = [c for c in self.strides if self.strides[c] <= self.strides[level]]
        self.strides = {c: self.strides[c] for c in kept}
        self.channels = {c: self.channels[c] for c in kept}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Normalised images [N, 3, H, W] to the maps.

        Some networks round the sizes of maps down, others want whole strides: images are padded to whole strides with
        zeros at the right and the bottom, and the maps cut to what the images cover.
        """
        height, width = images.shape[-2:]
        step = max(self.strides.values())
        maps = self.net(F.pad(images, (0, -width % step, 0, -height % step)))
        return {
            c: maps[self.indices[c]][..., : -(-height // stride), : -(-width // stride)]
            for c, stride in self.strides.items()
        }

    def _parts(self) -> list[tuple[nn.Module, str]]:
        """Parent and key of the parts that run one after the other; timm lists those of most networks so."""
        children = list(self.net.named_children())
        if isinstance(self.net, nn.ModuleDict) and hasattr(self.net, "return_layers"):
            return [(self.net, key) for key, _ in children]
        if [key for key, _ in children if key not in ("bn1", "act1")] == ["conv_stem", "blocks"]:  # EfficientNets
            blocks = self.net.get_submodule("blocks")
            return [
                *((self.net, key) for key, _ in children[:-1]),
                *((blocks, key) for key, _ in blocks.named_children()),
            ]
        raise ConfigError(
            f"model.backbone.name={self.name}: timm does not say where its stages end; frozen_stages must be 0 and"
            f" model.strides go up to {max(self.strides.values())} at least"
        )

    def _ends(self, parts: list[tuple[nn.Module, str]]) -> dict[str, int]:
        """One past the last part of every stage."""
        names = [key if parent is self.net else f"blocks_{key}" for parent, key in parts]
        info = self.net.feature_info
        ends = {
            reduction: names.index(name.replace(".", "_")) + 1
            for name, reduction in zip(info.module_name(), info.reduction(), strict=True)
        }
        stem = ends.get(2, min(ends.values()) - 1)
        return {"stem": stem, **{c: ends[stride] for c, stride in self.strides.items()}}

    def _freeze(self, norm: str, frozen_stages: int) -> None:
        from timm.layers.norm_act import (
            freeze_batch_norm_2d,
        )  # knows timm's batch norms, which have the activation inside

        if norm == "frozen_bn":
            frozen = freeze_batch_norm_2d(self.net)
            assert frozen is self.net
        if not frozen_stages:
            return
        parts = self._parts()
        ends = self._ends(parts)
        stages = [c for c in ("stem", *_LEVELS) if c in ends]
        for parent, key in parts[: ends[stages[min(frozen_stages, len(stages)) - 1]]]:
            setattr(parent, key, freeze(freeze_batch_norm_2d(parent.get_submodule(key))))


def _create(name: str, *, pretrained: bool = False) -> Any:
    """timm's feature extractor."""
    try:
        import timm
    except ImportError:
        raise ConfigError(f'model.backbone.name={name} needs timm: pip install "fcos-vision[timm]"') from None
    short = name.removeprefix(PREFIX)
    if not timm.is_model(short):
        raise ConfigError(f"model.backbone.name: timm has no {short!r}{suggest(short, timm.list_models())}")
    try:
        return timm.create_model(short, features_only=True, pretrained=pretrained)
    except Exception as error:  # timm raises what its networks happen to raise
        if pretrained:
            raise
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"model.backbone.name={name}: timm has no maps of it: {reason}") from None


def _pretrained(name: str) -> Any:
    """The feature extractor with timm's weights."""
    import timm

    settings = timm.get_pretrained_cfg(name.removeprefix(PREFIX))
    assert settings is not None
    try:
        net = _create(name, pretrained=True)
    except Exception as error:  # of the network library, of the hub, of timm
        reason = str(error).partition("\n")[0]
        raise WeightsError(
            f"model.backbone.weights=imagenet: timm could not get the weights of {name}: {reason}; fetch its state dict"
            " elsewhere and give the path, or train from random ones: weights=null"
        ) from None
    if "nc" in (settings.license or "").split("-"):
        log.warning("%s: mind the licence of these weights: %s", name, settings.license)
    mean, std = ([round(255 * x, 3) for x in values] for values in (settings.mean, settings.std))
    log.info("%s: trained with model.pixel_mean=%s model.pixel_std=%s", name, mean, std)
    return net


def _load(net: nn.Module, name: str, source: str) -> None:
    """Fill a feature extractor from a state dict of the whole network; the classifier's part is left."""
    # timm writes stages_0 in a feature extractor and stages.0 in the network.
    given = {key.replace(".", "_"): tensor for key, tensor in imagenet_weights(name, source).items()}
    wanted = net.state_dict()
    missing = [
        key
        for key, tensor in wanted.items()
        if not key.endswith("num_batches_tracked")
        and getattr(given.get(key.replace(".", "_")), "shape", None) != tensor.shape
    ]
    if missing:
        raise WeightsError(
            f"model.backbone.weights={source} does not fit {name}: {len(missing)} tensors are missing or of another"
            f" shape {missing[:3]}"
        )
    net.load_state_dict({key: given.get(key.replace(".", "_"), tensor) for key, tensor in wanted.items()})
