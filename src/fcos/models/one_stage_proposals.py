"""One-stage detector as the first stage of a two-stage detector, such as FCOS instead of a region proposal network.

Source: Tian et al., ICCV 2019 (arXiv:1904.01355), section 4.2 and table 6.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..distributed import mean_over_processes
from ..structures import Instances, Losses, Objects
from .detector import DetectionModel
from .padded import Padded
from .postprocess import Postprocess


class OneStageProposals(nn.Module):
    """First stage that learns objects of any class with a one-stage detector, see `detector.ProposalStage`.

    Args:
        detector: detector with a single class, and with the methods `head` and `losses` of FCOS and RetinaNet. Its
            backbone and its pyramid are not used.
        training: options of the selection of proposals in training.
    """

    def __init__(self, detector: DetectionModel, *, training: Postprocess):
        super().__init__()
        self.detector: Any = detector
        self.training_options = training
        self.loss_names = tuple(map(_name_loss, detector.loss_names))

    @property
    def head(self) -> nn.Module:
        """Head of the detector."""
        return self.detector.head

    def losses(
        self, outputs: Any, sizes: Tensor, targets: Sequence[Objects], normalizers: Tensor | None = None
    ) -> Losses:
        """Compute the losses of the detector, with objects of all classes as one class."""
        of_detector = None if normalizers is None else normalizers[1:]
        terms, stats = self.detector.losses(outputs, _of_any_class(targets), of_detector)
        return Losses({_name_loss(name): term for name, term in terms.items()}, stats)

    def loss_normalizers(self, targets: Sequence[Objects], size: tuple[int, int]) -> Tensor:
        """Compute the mean number of images per process and the denominators of the detector."""
        of_detector = self.detector.loss_normalizers(_of_any_class(targets), size)
        return torch.cat([mean_over_processes(of_detector.new_tensor([len(targets)])), of_detector])

    def propose(self, outputs: Any, sizes: Tensor, *, training: bool) -> list[Instances]:
        """Return the detections of every image as proposals."""
        detector: Any = self.detector
        if training:
            detector = copy.copy(detector)  # with the same parameters
            detector.postprocess = self.training_options
        return [detector.suppress(image) for image in detector.decode(outputs, sizes)]

    def padded_proposals(self, outputs: Any, sizes: Tensor) -> Padded:
        """Return the detections as proposals in tensors of fixed size."""
        threshold = self.detector.postprocess.score_threshold
        candidates = self.detector.padded_candidates(outputs, sizes, score_threshold=threshold)
        return self.detector.padded_detections(candidates, sizes)


def _of_any_class(targets: Sequence[Objects]) -> list[Objects]:
    return [replace(objects, labels=objects.labels.new_zeros(len(objects))) for objects in targets]


def _name_loss(name: str) -> str:
    return f"loss_proposal_{name.removeprefix('loss_')}"
