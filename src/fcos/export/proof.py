"""Proof that an exported file detects what PyTorch detects."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..choices import ExportContent, Precision
from ..data.loader import pad
from ..errors import ConfigError, ExportError
from ..models import DetectionModel
from ..structures import Instances
from .comparison import TOLERANCES, Differences, Tolerances, compare, largest_difference
from .graph import raw_outputs
from .metadata import FixedSizes
from .outputs import to_instances
from .runtimes import Runtime

MIN_DETECTIONS = 20
"""Smallest number of detections in a proof image, so that the comparison means something."""
NUM_VARIATIONS = 16
_SIDES = ((203, 317), (257, 161), (96, 224), (320, 320))
"""(height, width) of the generated images, smaller if the file has a fixed size."""
_LOWEST_THRESHOLD = 1e-6

Views = tuple[Tensor, Tensor]
"""A batch of padded images [N, 3, H, W] and their sizes [N, 2]."""


class Accuracy(NamedTuple):
    """AP on val, 0 to 1, before and after a quantisation.

    Attributes:
        float32: AP of PyTorch.
        int8: AP of the exported file.
        max_drop: largest accepted difference.
    """

    float32: float
    int8: float
    max_drop: float

    @property
    def drop(self) -> float:
        """Difference of the two."""
        return self.float32 - self.int8


@dataclass(frozen=True)
class Proof:
    """Result of a comparison.

    Attributes:
        images: number of images compared, counting an image once for every batch it is in.
        detections: number of detections of PyTorch in them.
        without_detections: number of images in which both found nothing.
        score_threshold: threshold at which the other images were compared; None: the detector has none.
        differences: differences of the detections.
        details: names of the further outputs that were compared, see `DetectionModel.detail_names`.
        raw_difference: largest difference of raw outputs, as a fraction of the largest one; None: not compared.
        raw_undecided: largest such difference beyond the limit that variations of the weights explain.
        tolerances: limits of the differences.
        accuracy: AP, if the file was quantised after the comparison.
    """

    images: int = 0
    detections: int = 0
    without_detections: int = 0
    score_threshold: float | None = None
    differences: Differences = field(default_factory=Differences)
    details: tuple[str, ...] = ()
    raw_difference: float | None = None
    raw_undecided: float = 0.0
    tolerances: Tolerances = field(default_factory=Tolerances)
    accuracy: Accuracy | None = None

    @property
    def passed(self) -> bool:
        """True if the differences are within the tolerances."""
        return (self.raw_difference or 0) <= self.tolerances.outputs and self.differences.within(self.tolerances)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self) | {
            "differences": self.differences._asdict(),
            "tolerances": self.tolerances._asdict(),
            "accuracy": None if self.accuracy is None else self.accuracy._asdict(),
        }

    def summary(self) -> str:
        """Return the figures as a line of text."""
        if self.raw_difference is not None:
            limit = self.tolerances.outputs
            text = f"{self.images} images: largest difference {self.raw_difference:.2g} of outputs (limit {limit:g})"
            return f"{text}; up to {self.raw_undecided:.2g} by rounding" if self.raw_undecided else text
        threshold = "" if self.score_threshold is None else f" at score threshold {self.score_threshold:.3g}"
        found, limits = self.differences, self.tolerances
        parts = [
            f"{self.images} images ({self.without_detections} without detections), {self.detections} detections"
            f"{threshold}: largest difference {found.boxes:.2g} px (limit {limits.boxes:g})",
            f"{found.scores:.2g} in scores (limit {limits.scores:g})",
        ]
        if "masks" in self.details:
            parts.append(f"{found.masks:.2g} in masks (limit {limits.masks:g})")
        if "keypoints" in self.details:
            parts.append(f"{found.keypoints:.2g} px in keypoints (limit {limits.boxes:g})")
        return f"{', '.join(parts)}; {found.unmatched} unmatched, {found.undecided} decided by rounding"


def proof_images(fixed: FixedSizes) -> list[Tensor]:
    """Return uint8 images [3, h, w] of several sizes, with smooth shapes and noise; the same in every call."""
    generator = torch.Generator().manual_seed(0)
    height, width = fixed.size or (10**6, 10**6)
    images = []
    for sides in _SIDES:
        h, w = min(sides[0], height), min(sides[1], width)
        coarse = torch.rand(1, 3, 2 + h // 24, 2 + w // 24, generator=generator)
        image = F.interpolate(coarse, size=(h, w), mode="bilinear")[0] * 255
        for _ in range(6):  # rectangles
            y, x = (int(torch.randint(0, side, (), generator=generator)) for side in (h, w))
            image[:, y : y + h // 3, x : x + w // 4] = torch.rand(3, 1, 1, generator=generator) * 255
        images.append((image + 10 * torch.randn(3, h, w, generator=generator)).clamp(0, 255).to(torch.uint8))
    return images


def proof_batches(images: Sequence[Tensor], fixed: FixedSizes, *, divisor: int) -> list[Views]:
    """Return single images and batches of 3 unequal images, as far as a file with fixed sizes accepts them.

    Args:
        images: uint8 images [3, h, w].
        fixed: sizes of the inputs that are fixed.
        divisor: number that divides the sides of padded images.

    Raises:
        ConfigError: an image is larger than the fixed size.
    """
    groups = [[image] for image in images] if fixed.batch in (None, 1) else []
    if fixed.batch != 1:
        count = fixed.batch or 3
        groups += [[images[(start + i) % len(images)] for i in range(count)] for start in range(0, len(images), 3)]
    return [pad_batch(group, fixed, divisor=divisor) for group in groups]


class Prover:
    """Comparison of exported files with `DetectionModel.detect`.

    Args:
        model: the detector.
        batches: result of `proof_batches`.
        content: outputs of the files.
        precision: precision of the files, which determines the tolerances.

    Raises:
        ExportError: an image has too few detections at any score threshold.
    """

    def __init__(
        self,
        model: DetectionModel,
        batches: Sequence[Views],
        *,
        content: ExportContent = "detections",
        precision: Precision = "float32",
    ):
        self.model = model
        self.batches = batches
        self.content: ExportContent = content
        self.tolerances = TOLERANCES[precision]
        self._threshold = None if content == "raw" else self._low_threshold()

    def prove(self, runtime: Runtime) -> Proof:
        """Compare a file at a low score threshold.

        The threshold is lowered until every image has at least `MIN_DETECTIONS` detections. In addition, images without
        detections are compared, if the detector has a threshold or ignores the padding.

        Args:
            runtime: the file with an input for the score threshold, if the detector has one.
        """
        if self.content == "raw":
            return self.check(runtime)
        threshold = self._threshold
        proof = self._begin(threshold)
        for views in self.batches:
            proof = self._compare(proof, runtime, views, threshold)
        # Images without detections: a threshold that no score exceeds, or an image without a location inside.
        images, sizes = self.batches[-1]
        if threshold is None:
            return self._compare(proof, runtime, (images, torch.ones_like(sizes)), None)
        return self._compare(proof, runtime, (images, sizes), 1.0)

    def check(self, runtime: Runtime) -> Proof:
        """Compare a file at its own score threshold, at which there may be no detections."""
        options = self.model.postprocess
        threshold = None if options is None else options.score_threshold
        proof = self._begin(threshold)
        for views in self.batches:
            proof = self._compare(proof, runtime, views, None)
        return proof

    def _begin(self, threshold: float | None) -> Proof:
        return Proof(score_threshold=threshold, details=self.model.detail_names, tolerances=self.tolerances)

    def _low_threshold(self) -> float | None:
        """Return a threshold at which every image has enough detections."""
        options = self.model.postprocess
        threshold, limit = (None, 0) if options is None else (options.score_threshold, options.max_detections)
        wanted = min(MIN_DETECTIONS, limit) if limit > 0 else MIN_DETECTIONS
        remaining = list(self.batches)
        while remaining:
            counts = [len(instances) for instances in self._detect(self.model, remaining[0], threshold)]
            if min(counts) >= wanted:
                remaining.pop(0)
            elif threshold is None or threshold <= _LOWEST_THRESHOLD:
                raise ExportError(
                    f"export: the proof is not possible: PyTorch finds {min(counts)} objects in an image, and at least"
                    f" {wanted} are needed; give images with --data DIR"
                )
            else:
                threshold = max(threshold / 3, _LOWEST_THRESHOLD)
        return threshold

    def _detect(self, model: DetectionModel, views: Views, threshold: float | None) -> list[Instances]:
        """Return the detections or candidates of PyTorch with another score threshold; None: the model's own."""
        if threshold is not None and model.postprocess is not None:
            model = copy.copy(model)
            assert model.postprocess is not None
            model.postprocess = replace(model.postprocess, score_threshold=threshold)
        return model.candidates(*views) if self.content == "candidates" else model.detect(*views)

    def _compare(self, proof: Proof, runtime: Runtime, views: Views, threshold: float | None) -> Proof:
        """Add the comparison of a batch to a proof."""
        outputs = runtime(*views, threshold)
        proof = replace(proof, images=proof.images + len(views[0]))
        if self.content == "raw":
            difference, undecided = self._compare_raw(views, outputs)
            return replace(
                proof,
                raw_difference=max(proof.raw_difference or 0.0, difference),
                raw_undecided=max(proof.raw_undecided, undecided),
            )
        expected, found = self._detect(self.model, views, threshold), to_instances(outputs, views[1])

        @cache
        def detect_with_variation(seed: int) -> list[Instances]:
            return self._detect(vary(self.model, seed, self.tolerances.variation), views, threshold)

        def variations(image: int) -> Iterator[Instances]:
            return (detect_with_variation(seed)[image] for seed in range(NUM_VARIATIONS))

        for i, (a, b) in enumerate(zip(expected, found, strict=True)):
            others = partial(variations, i) if proof.passed else tuple  # they take time
            proof = replace(
                proof,
                detections=proof.detections + len(a),
                without_detections=proof.without_detections + (len(a) == len(b) == 0),
                differences=proof.differences | compare(a, b, self.tolerances, others),
            )
        return proof

    def _compare_raw(self, views: Views, outputs: dict[str, Tensor]) -> tuple[float, float]:
        """Return the largest differences of outputs that variations do not explain, and of those that they do.

        A difference is a fraction of the largest value of the output. In half precision, one beyond the limit is
        explained if a variation of PyTorch differs at least as much in this output: rounding has a large effect where
        large terms cancel.
        """
        expected = self._raw_outputs(self.model, views)
        assert list(expected) == list(outputs)
        differences = _relative_differences(expected, outputs)
        limit = self.tolerances.outputs if self.tolerances.is_half else torch.inf
        excessive, explained = {name for name, value in differences.items() if not value <= limit}, set[str]()
        for seed in range(NUM_VARIATIONS):
            if not excessive:
                break
            varied = self._raw_outputs(vary(self.model, seed, self.tolerances.variation), views)
            effects = _relative_differences(expected, varied)
            explained |= {name for name in excessive if differences[name] <= effects[name] < torch.inf}
            excessive -= explained
        remaining = max((value for name, value in differences.items() if name not in explained), default=0.0)
        return remaining, max((differences[name] for name in explained), default=0.0)

    @staticmethod
    @torch.inference_mode()
    def _raw_outputs(model: DetectionModel, views: Views) -> dict[str, Tensor]:
        return raw_outputs(model.padded_outputs(*views))


def _relative_differences(expected: dict[str, Tensor], outputs: dict[str, Tensor]) -> dict[str, float]:
    """Return the largest difference of every output as a fraction of its largest expected value."""
    return {
        name: largest_difference((a - outputs[name].float()) / a.abs().max().clamp(min=1e-6))
        for name, a in expected.items()
    }


def vary(model: DetectionModel, seed: int, amount: float) -> DetectionModel:
    """Return a copy whose weights differ by a relative error with a standard deviation, as rounding does."""
    changed, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.mul_(1 + amount * torch.randn(parameter.shape, generator=generator))
    return changed


def pad_batch(images: Sequence[Tensor], fixed: FixedSizes, *, divisor: int) -> Views:
    """Return a batch of padded images, and their sizes.

    Raises:
        ConfigError: an image is larger than the fixed size.
    """
    padded, sizes = pad(images, size_divisor=divisor)
    size = fixed.size
    if size is not None:
        if padded.shape[2] > size[0] or padded.shape[3] > size[1]:
            raise ConfigError(
                f"export: an image has {padded.shape[3]}x{padded.shape[2]} pixels after resizing and"
                f" padding, more than --size {size[0]}x{size[1]}; set data.test_short_side and data.test_max_side"
            )
        padded = F.pad(padded, (0, size[1] - padded.shape[3], 0, size[0] - padded.shape[2]))
    return padded, sizes
