"""Options that decide which location learns which box: the feature pyramid and the image sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from ..choices import BoxConvention, Location
from ..config import DataConfig, FCOSConfig
from ..config.text import as_option
from ..data.geometry import resize_size
from ..data.transforms import training_sides
from ..models.points import Assigner

_SIDE_STEP = 32  # pixels; enlarged sides are multiples of it


def resized_in_training(config: DataConfig, height: int, width: int) -> tuple[int, int]:
    """Return the (height, width) of an image resized to the median training size."""
    return resize_size(height, width, _middle(training_sides(config)), config.max_side)


def _middle(sides: Sequence[int]) -> int:
    return sorted(sides)[(len(sides) - 1) // 2]


@dataclass(frozen=True)
class Setting:
    """Options of a config that decide which location learns which box.

    Attributes:
        strides: strides of the levels, pixels.
        size_ranges: (low, high) of every level; a level learns a box if the largest distance from the location to a
            side (pixels) is in its range. None: no upper end. See `Assigner`.
        center_sampling_radius: largest distance of a location from the centre of its box, in strides; 0: no limit.
        location: point of a cell that is its location, `center` or `corner`, see `pyramid_locations`.
        box_convention: `continuous` or `inclusive`, see `structures`.
        short_sides: shorter sides of training images, pixels, from which one is drawn per image: a range or a tuple.
        max_side: limit of the longer side, pixels.
        test_short_side: shorter side in detection, pixels; None: the largest of the training sizes.
        test_max_side: limit of the longer side in detection, pixels; None: `max_side`.
        size_divisor: number that padded sides are multiples of.
    """

    strides: tuple[int, ...]
    size_ranges: tuple[tuple[float, float | None], ...]
    center_sampling_radius: float
    location: Location
    box_convention: BoxConvention
    short_sides: tuple[int, ...] | range
    max_side: int
    test_short_side: int | None
    test_max_side: int | None
    size_divisor: int

    @staticmethod
    def of(model: FCOSConfig, data: DataConfig) -> Setting:
        """Return the setting of a config; the zoom augmentation is ignored."""
        sides = training_sides(data)
        return Setting(
            strides=tuple(model.strides),
            size_ranges=tuple(model.size_ranges),
            center_sampling_radius=model.center_sampling_radius,
            location=model.location,
            box_convention=model.box_convention,
            short_sides=sides if isinstance(sides, range) else tuple(sides),
            max_side=data.max_side,
            test_short_side=data.test_short_side,
            test_max_side=data.test_max_side,
            size_divisor=data.size_divisor,
        )

    @property
    def middle_side(self) -> int:
        """Median of the shorter sides in training, pixels; the coverage is computed at this size."""
        return _middle(self.short_sides)

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) of an image resized to the median training size."""
        return resize_size(height, width, self.middle_side, self.max_side)

    def enlarged(self, scale: float, longest: float) -> Setting:
        """Multiply all image sizes, in training and in detection, by a factor, rounded up to multiples of 32 pixels.

        A limit of the longer side is multiplied only if an image would exceed it.

        Args:
            scale: factor, at least 1; 1 changes nothing.
            longest: largest ratio of longer to shorter side of an image.
        """
        if scale == 1:
            return self

        def scaled(side: int) -> int:
            return math.ceil(side * scale / _SIDE_STEP) * _SIDE_STEP

        def limit(side: int, short_side: int) -> int:
            return scaled(side) if short_side * longest > side else side

        sides, test_side = self.short_sides, self.test_short_side and scaled(self.test_short_side)
        between = range(scaled(sides[0]), scaled(sides[-1]) + 1) if isinstance(sides, range) else None
        short_sides = between or tuple(map(scaled, sides))
        largest = max(short_sides)
        return replace(
            self,
            short_sides=short_sides,
            max_side=limit(self.max_side, max(largest, test_side or 0)),
            test_short_side=test_side,
            test_max_side=self.test_max_side and limit(self.test_max_side, test_side or largest),
        )

    @property
    def assigner(self) -> Assigner:
        """Assigner with these options, as used in training."""
        return Assigner(self.strides, self.size_ranges, self.center_sampling_radius, self.location, self.box_convention)

    def locations(self, size: tuple[int, int]) -> list[Tensor]:
        """Return the locations of every level, [R_l, 2] pixels, for an image of the given padded (height, width)."""
        return self.assigner.locations(self.assigner.maps(size))

    @property
    def values(self) -> dict[str, object]:
        """Config options of this setting, by key; unused options for sizes are left out."""
        sides = self.short_sides
        if isinstance(sides, range):
            short_side: dict[str, object] = {"data.short_side_range": (sides[0], sides[-1])}
        else:
            short_side = {"data.short_side": sides if len(sides) > 1 else max(sides)}
        tests = {"data.test_short_side": self.test_short_side, "data.test_max_side": self.test_max_side}
        return {
            **short_side,
            "data.max_side": self.max_side,
            **{key: side for key, side in tests.items() if side is not None},
            "model.strides": self.strides,
            "model.size_ranges": self.size_ranges,
            "model.center_sampling_radius": self.center_sampling_radius,
            "model.location": self.location,
            "model.box_convention": self.box_convention,
            "data.size_divisor": self.size_divisor,
        }

    @property
    def options(self) -> list[str]:
        """Options of `values` as `key=value` for the command line."""
        return [f"{key}={as_option(value)}" for key, value in self.values.items()]
