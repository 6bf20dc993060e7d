"""Interface of detectors for training, evaluation and inference, and the shared pixel normalisation.

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
from ..errors import ConfigError
from ..structures import Instances, Losses, Objects
from .cuda_graphs import CudaGraphs
from .padded import Padded
from .postprocess import Postprocess


@dataclass(frozen=True)
class Pixels:
    """Options of the pixel normalisation, which converts images 0..255 to the input of a network.

    Attributes:
        channel_order: channel order that the network expects.
        mean: mean of each channel, in that order; it is subtracted.
        std: standard deviation of each channel, in that order; the difference is divided by it.
    """

    channel_order: ChannelOrder = "rgb"
    mean: Sequence[float] = (123.675, 116.28, 103.53)
    std: Sequence[float] = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class ClassRows:
    """Layout of a parameter whose rows (its first dimension) belong to classes.

    The rows form `repeats` blocks. Each block starts with `before` rows that belong to no class, followed by
    `per_class` rows for every class in label order. The defaults fit the logits of K classes. Logits of A anchors have
    `repeats=A`, logits with a leading background class have `before=1`, and box offsets of the background and every
    class have `before=4, per_class=4`.

    Attributes:
        repeats: number of blocks.
        before: number of rows at the beginning of a block that belong to no class.
        per_class: number of rows per class in a block.
    """

    repeats: int = 1
    before: int = 0
    per_class: int = 1

    def count(self, num_classes: int) -> int:
        """Return the total number of rows."""
        return self.repeats * (self.before + num_classes * self.per_class)

    def of(self, label: int, num_classes: int) -> list[int]:
        """Return the indices of the rows of a class."""
        block = self.before + num_classes * self.per_class
        first = self.before + label * self.per_class
        return [block * i + first + j for i in range(self.repeats) for j in range(self.per_class)]

    def of_none(self, num_classes: int) -> list[int]:
        """Return the indices of the rows that belong to no class."""
        block = self.before + num_classes * self.per_class
        return [block * i + j for i in range(self.repeats) for j in range(self.before)]


class DetectionModel(nn.Module, ABC):
    """Abstract base class of detectors, including the pixel normalisation.

    The arguments of `forward` decide whether losses or outputs are computed. `self.training` does not; it only
    controls whether normalisation layers update their statistics.

    Attributes:
        num_classes: K.
        box_convention: convention of the boxes in ground truth and detections, see `structures`.
        default_threshold: score threshold in 0..1 for displaying detections of classes without a per-class threshold.
        loss_names: keys of `Losses.terms` in logging order; each begins with `loss_`.
        class_parameters: layouts of the parameters with rows for every class, by parameter name. Fine-tuning on other
            classes keeps the rows of the classes that both data sets have, and the rows that belong to no class.
        keypoint_parameters: dimension of the keypoints by the name of a parameter. Fine-tuning on other keypoints keeps
            the entries of the keypoints that both data sets have.
        optional_modules: paths of modules that may be missing from weights; fine-tuning then keeps their initial
            parameters.
        compiled_parts: paths of the modules that `train.compile` compiles.
        detail_names: `masks` and `keypoints`, as far as the detector predicts them.
        postprocess: options of suppression and limits that `detect`, `candidates` and `suppress` use. They can be
            replaced at any time. None: the detector has other options.
        has_fixed_sizes: whether no tensor in `forward` and `padded_candidates` has a size that depends on values.
        cuda_graphs: graphs that replace both on a GPU, see `InferenceCopy`; None: there are none.
    """

    class_parameters: Mapping[str, ClassRows]
    keypoint_parameters: Mapping[str, int] = {}
    optional_modules: tuple[str, ...] = ()
    compiled_parts: tuple[str, ...]
    detail_names: tuple[str, ...] = ()
    postprocess: Postprocess | None = None
    has_fixed_sizes: bool = False
    cuda_graphs: CudaGraphs | None = None
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
        """Device of the model."""
        return self.pixel_mean.device

    @abstractmethod
    def forward(
        self,
        images: Tensor,
        sizes: Tensor,
        targets: Sequence[Objects] | None = None,
        normalizers: Tensor | None = None,
    ) -> Any:
        """Compute the losses if targets are given, otherwise the raw outputs.

        Args:
            images: [N, 3, H, W] RGB 0..255 (uint8 or float), padded at the right and the bottom.
            sizes: [N, 2] int64 (height, width) without the padding.
            targets: ground truth of the N images in pixels of `images`, in the model's box convention.
            normalizers: denominators of the losses of the whole batch, if the images are a micro-batch of it (gradient
                accumulation). The losses of all micro-batches then add up to those of the batch, and `forward` contains
                no collective. None: the denominators are computed from `targets`.

        Returns:
            `Losses`, or the raw outputs as a NamedTuple of tensors or lists of tensors.
        """

    @abstractmethod
    def loss_normalizers(self, targets: Sequence[Objects], size: tuple[int, int]) -> Tensor | None:
        """Compute the denominators of the losses of a batch as means over all processes. Every process must call it.

        Args:
            targets: ground truth of all images of the batch.
            size: (height, width) of the padded images.

        Returns:
            The argument `normalizers` of `forward` for every micro-batch. None if the denominators depend on proposals
            that are sampled in `forward`. In that case `forward` contains no collective and averages the losses over
            the micro-batch, and gradient accumulation weights each micro-batch by its number of images.
        """

    @torch.inference_mode()
    def detect(self, images: Tensor, sizes: Tensor) -> list[Instances]:
        """Return the detections of every image, best score first, in pixels of `images` and the model's box convention.

        Args:
            images: padded images, see `forward`.
            sizes: sizes without the padding, see `forward`.
        """
        outputs, candidates = self.outputs_and_candidates(images, sizes)
        return self.add_details(outputs, self.suppress_images(candidates))

    @torch.inference_mode()
    def candidates(self, images: Tensor, sizes: Tensor) -> list[Instances]:
        """Return the boxes of every image before `suppress`; test-time augmentation concatenates those of its views.

        Args:
            images: padded images, see `forward`.
            sizes: sizes without the padding, see `forward`.
        """
        return self.outputs_and_candidates(images, sizes)[1]

    def outputs_and_candidates(self, images: Tensor, sizes: Tensor) -> tuple[Any, list[Instances]]:
        """Return the raw outputs, as `add_details` needs them, and the candidates of every image.

        Args:
            images: padded images, see `forward`.
            sizes: sizes without the padding, see `forward`.
        """
        if self.cuda_graphs is not None and not self._forward_hooks and not self._forward_pre_hooks:
            replayed = self.cuda_graphs.run(self._padded_candidates, images, sizes, options=self.postprocess)
            if replayed is not None:
                return None, replayed  # detectors with fixed sizes have no details
        outputs = self(images, sizes)
        return outputs, self.decode(outputs, sizes)

    def _padded_candidates(self, images: Tensor, sizes: Tensor) -> Padded:
        assert self.postprocess is not None
        threshold = self.postprocess.score_threshold
        return self.padded_candidates(self.padded_outputs(images, sizes), sizes, score_threshold=threshold)

    @abstractmethod
    def decode(self, outputs: Any, sizes: Tensor) -> list[Instances]:
        """Convert raw outputs to the candidates of every image.

        Args:
            outputs: raw outputs of `forward`.
            sizes: sizes without the padding, see `forward`.
        """

    @abstractmethod
    def suppress(self, candidates: Instances) -> Instances:
        """Select the detections among the candidates of an image, best score first."""

    def suppress_images(self, candidates: Sequence[Instances]) -> list[Instances]:
        """Select the detections among the candidates of several images, as `suppress` does for each."""
        return [self.suppress(image) for image in candidates]

    def add_details(self, outputs: Any, detections: list[Instances]) -> list[Instances]:
        """Add the masks or keypoints of the detections of every image; detectors without them return the argument.

        Args:
            outputs: raw outputs of `forward`.
            detections: detections of the N images, which may be on the CPU.
        """
        return detections

    def require_padded(self) -> None:
        """Check that the detector has the methods `padded_...`, which are those of `detect` in tensors of fixed size.

        Raises:
            ConfigError: it has not, so it cannot be exported.
        """
        if type(self).padded_candidates is DetectionModel.padded_candidates:
            raise ConfigError(f"{type(self).__name__}: this detector cannot be exported")

    def padded_outputs(self, images: Tensor, sizes: Tensor) -> Any:
        """Compute the raw outputs in tensors of fixed size, for export and `torch.compile`; by default `forward`.

        Args:
            images: padded images, see `forward`.
            sizes: sizes without the padding, see `forward`.
        """
        return self(images, sizes)

    def padded_candidates(self, outputs: Any, sizes: Tensor, *, score_threshold: Tensor | float) -> Padded:
        """Convert raw outputs to the candidates of every image in tensors of fixed size.

        Args:
            outputs: result of `padded_outputs`.
            sizes: sizes without the padding, see `forward`.
            score_threshold: threshold that replaces that of `postprocess`; detectors without one ignore it.
        """
        raise NotImplementedError  # optional: `require_padded` rejects detectors without it

    def padded_detections(self, candidates: Padded, sizes: Tensor) -> Padded:
        """Select the detections among the result of `padded_candidates`, the valid ones first and best score first."""
        raise NotImplementedError  # optional: `require_padded` rejects detectors without it

    def padded_details(self, outputs: Any, detections: Padded) -> dict[str, Tensor]:
        """Compute the masks [N, D, G, G] or keypoints [N, D, J, 3] of detections, see `add_details`.

        Args:
            outputs: result of `padded_outputs`.
            detections: result of `padded_detections`.

        Returns:
            The tensors by their names in `detail_names`; values of detections that are padding are arbitrary.
        """
        return {}

    def normalize(self, images: Tensor, sizes: Tensor) -> Tensor:
        """Convert images to the network input [N, 3, H, W]: reorder channels, normalise pixels, zero the padding.

        Args:
            images: padded images, see `forward`; the values in the padding are arbitrary.
            sizes: sizes without the padding, see `forward`.
        """
        if self.channel_order == "bgr":
            images = images.flip(1)
        normalized = (images.to(self.pixel_mean.dtype) - self.pixel_mean) / self.pixel_std
        rows, columns = (torch.arange(side, device=images.device) for side in images.shape[-2:])
        is_image = (rows[:, None] < sizes[:, 0, None, None]) & (columns < sizes[:, 1, None, None])  # [N, H, W]
        return normalized.where(is_image[:, None], 0.0)  # not a product, because 0 * inf is NaN


class ProposalStage(Protocol):
    """First stage of a two-stage detector, an `nn.Module` that the builder creates and passes to the second stage.

    It has no backbone: the second stage computes the features that both use.

    Attributes:
        loss_names: keys of the terms of `losses` in logging order.
    """

    loss_names: tuple[str, ...]

    def head(self, features: Sequence[Tensor], /) -> Any:
        """Compute the raw outputs from the pyramid levels [N, channels, H_l, W_l]."""
        ...

    def losses(
        self, outputs: Any, sizes: Tensor, targets: Sequence[Objects], normalizers: Tensor | None = None
    ) -> Losses:
        """Compute the losses from raw outputs; see `DetectionModel.forward`."""
        ...

    def loss_normalizers(self, targets: Sequence[Objects], size: tuple[int, int]) -> Tensor | None:
        """Compute the denominators of the losses, first the mean number of images per process.

        See `DetectionModel.loss_normalizers`.
        """
        ...

    def padded_proposals(self, outputs: Any, sizes: Tensor) -> Padded:
        """Return the proposals of detection in tensors of fixed size, see `DetectionModel.padded_candidates`."""
        ...

    def propose(self, outputs: Any, sizes: Tensor, *, training: bool) -> list[Instances]:
        """Return the proposals of every image, with the limits of training or detection."""
        ...
