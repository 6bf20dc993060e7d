"""The interface of detectors for training, evaluation and inference, and the shared pixel normalisation.

Shape letters: N images, H W image size, K classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..choices import BoxConvention, ChannelOrder
from ..structures import Instances, Losses, Objects


@dataclass(frozen=True)
class Pixels:
    """Options of the pixel normalisation: from images 0..255 to the input of a network.

    Attributes:
        channel_order: the order in which the network wants the channels.
        mean: subtracted from the channels, in that order.
        std: divided by.
    """

    channel_order: ChannelOrder = "rgb"
    mean: Sequence[float] = (123.675, 116.28, 103.53)
    std: Sequence[float] = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class ClassRows:
    """The rows of a parameter that belong to each class, along its first dimension.

    The rows are `repeats` blocks, each with `before` rows of no class and then `per_class` rows for every class in
    label order. Class logits of K classes have the defaults, those of A anchors `repeats=A`, those with a background
    class in front `before=1`, and box offsets of every class and the background `before=4, per_class=4`.

    Attributes:
        repeats: number of blocks.
        before: rows at the beginning of a block that belong to no class.
        per_class: rows of a class in a block.
    """

    repeats: int = 1
    before: int = 0
    per_class: int = 1

    def count(self, num_classes: int) -> int:
        """The number of all rows."""
        return self.repeats * (self.before + num_classes * self.per_class)

    def of(self, label: int, num_classes: int) -> list[int]:
        """The rows of a class."""
        block = self.before + num_classes * self.per_class
        first = self.before + label * self.per_class
        return [block * i + first + j for i in range(self.repeats) for j in range(self.per_class)]

    def of_none(self, num_classes: int) -> list[int]:
        """The rows that belong to no class."""
        block = self.before + num_classes * self.per_class
        return [block * i + j for i in range(self.repeats) for j in range(self.before)]


class DetectionModel(nn.Module, ABC):
    """The contract of a detector, and the pixel normalisation that all detectors share.

    What it computes follows from the arguments of `forward`, never from `self.training`, which only says whether norm
    layers update their statistics.

    Attributes:
        num_classes: K.
        box_convention: of ground truth and detections, see `structures`.
        default_threshold: score in 0..1 below which detections of a class without a threshold of its own are hidden.
        loss_names: the keys of `Losses.terms`, in the order in which they are logged; each begins with `loss_`.
        class_parameters: the parameters with rows for every class, by name. Fine-tuning on other classes carries over
            the rows of the classes that both data sets have, and rows that belong to no class.
        optional_modules: the paths of modules that weights may lack; fine-tuning then keeps the initial values of their
            parameters.
        compiled_parts: the paths of the modules that `train.compile` compiles.
    """

    class_parameters: Mapping[str, ClassRows]
    optional_modules: tuple[str, ...] = ()
    compiled_parts: tuple[str, ...]
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        num_classes: int,
        *,
        box_convention: BoxConvention,
        default_threshold: float,
        loss_names: tuple[str, ...],
        pixels: Pixels,
    ):
        super().__init__()
        self.num_classes = num_classes
        self.loss_names = loss_names
        self.box_convention: BoxConvention = box_convention
        self.default_threshold = default_threshold
        self.channel_order = pixels.channel_order
        self.register_buffer("pixel_mean", torch.tensor(pixels.mean).view(3, 1, 1))
        self.register_buffer("pixel_std", torch.tensor(pixels.std).view(3, 1, 1))

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.pixel_mean.device

    @abstractmethod
    def forward(
        self,
        images: Tensor,
        sizes: Tensor,
        targets: Sequence[Objects] | None = None,
        normalizers: Tensor | None = None,
    ) -> Any:
        """Losses when targets are given, else the raw outputs.

        Args:
            images: [N, 3, H, W] RGB 0..255 (uint8 or float), padded at the right and the bottom.
            sizes: [N, 2] int64 (height, width) without the padding.
            targets: N ground truths in pixels of `images`, in the model's box convention.
            normalizers: the denominators of the losses, when the images are part of a larger batch (gradient
                accumulation): then the losses of all parts add up to those of the batch, and `forward` contains no
                collective. None: those of `targets`.

        Returns:
            `Losses`, or a NamedTuple of tensors or lists of tensors.
        """

    @abstractmethod
    def loss_normalizers(self, targets: Sequence[Objects], size: tuple[int, int]) -> Tensor | None:
        """The denominators of the losses of a batch, as means over all processes; every process must call it.

        Args:
            targets: the ground truth of all images of the batch.
            size: (height, width) of the padded images.

        Returns:
            What `forward` takes as `normalizers` for each part of the batch. None: the denominators depend on proposals
            that are sampled in `forward`; the losses of each part are then its own means, without any collective in
            `forward`, and gradient accumulation weights the parts by their numbers of images.
        """

    @abstractmethod
    def detect(self, images: Tensor, sizes: Tensor) -> list[Instances]:
        """Detections of every image, best score first, in pixels of `images` and the model's box convention.

        Args:
            images: see `forward`.
            sizes: see `forward`.
        """

    @abstractmethod
    def candidates(self, images: Tensor, sizes: Tensor) -> list[Instances]:
        """The boxes of every image among which `suppress` chooses; test-time augmentation joins those of several views.

        Args:
            images: see `forward`.
            sizes: see `forward`.
        """

    @abstractmethod
    def suppress(self, candidates: Instances) -> Instances:
        """The detections among the candidates of an image, best score first."""

    def normalize(self, images: Tensor, sizes: Tensor) -> Tensor:
        """Network input [N, 3, H, W]: channel order, mean and deviation; zeros in the padding, whatever was there.

        Args:
            images: see `forward`.
            sizes: see `forward`.
        """
        if self.channel_order == "bgr":
            images = images.flip(1)
        normalized = (images.to(self.pixel_mean.dtype) - self.pixel_mean) / self.pixel_std
        rows, columns = (torch.arange(side, device=images.device) for side in images.shape[-2:])
        real = (rows[:, None] < sizes[:, 0, None, None]) & (columns < sizes[:, 1, None, None])  # [N, H, W]
        return normalized.where(real[:, None], 0.0)  # not a product: 0 times infinity is not 0


class ProposalStage(Protocol):
    """A one-stage detector as the first stage of a two-stage one, which gets it from `build_model`.

    The second stage works on the same `features`; the names of the methods are those of the steps of `forward` and
    `detect`.
    """

    loss_names: tuple[str, ...]

    def features(self, images: Tensor, sizes: Tensor) -> list[Tensor]:
        """Images to pyramid levels [N, channels, H_l, W_l], finest first; see `DetectionModel.forward`."""
        ...

    def head(self, features: Sequence[Tensor], /) -> Any:
        """Pyramid levels to raw outputs."""
        ...

    def losses(self, outputs: Any, targets: Sequence[Objects], normalizers: Tensor | None = None) -> Losses:
        """The losses of raw outputs; see `DetectionModel.forward`."""
        ...

    def loss_normalizers(self, targets: Sequence[Objects], size: tuple[int, int]) -> Tensor | None:
        """See `DetectionModel.loss_normalizers`."""
        ...

    def decode(self, outputs: Any, sizes: Tensor) -> list[Instances]:
        """The candidates of raw outputs; see `DetectionModel.candidates`."""
        ...

    def suppress(self, candidates: Instances) -> Instances:
        """The proposals among the candidates of an image."""
        ...
