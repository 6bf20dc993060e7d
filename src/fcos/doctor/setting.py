"""What decides where a box is learned: the pyramid and the size of the images."""

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

_WHOLE = 32  # pixels, of which enlarged sides are a multiple


def resized_in_training(config: DataConfig, height: int, width: int) -> tuple[int, int]:
    """An image's (height, width) at the middle one of the training sizes."""
    return resize_size(height, width, _middle(training_sides(config)), config.max_side)


def _middle(sides: Sequence[int]) -> int:
    return sorted(sides)[(len(sides) - 1) // 2]


@dataclass(frozen=True)
class Setting:
    """What decides where a box is learned.

    Attributes:
        strides: of the levels, pixels.
        size_ranges: see `assign_targets`; likewise `center_sampling_radius`, `box_convention`.
        location: see `pyramid_locations`.
        short_sides: the shorter side is drawn from these in training: a range, or those that are listed.
        max_side: as in `DataConfig`; likewise `test_short_side`, `test_max_side`, `size_divisor`.
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
        """The setting of a config. Zoom is left out."""
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
        """The middle one of the shorter sides in training, pixels: boxes are looked at there."""
        return _middle(self.short_sides)

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """An image's (height, width) at the middle one of the training sizes."""
        return resize_size(height, width, self.middle_side, self.max_side)

    def enlarged(self, scale: float, longest: float) -> Setting:
        """All sizes of images, in training and in detection, times a factor, in whole 32 pixels; a limit of the longer
        side where it would be met.

        Args:
            scale: the factor, at least 1; 1 changes nothing.
            longest: the largest ratio of an image's sides.
        """
        if scale == 1:
            return self

        def scaled(side: int) -> int:
            return math.ceil(side * scale / _WHOLE) * _WHOLE

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
        """What training assigns boxes with."""
        return Assigner(self.strides, self.size_ranges, self.center_sampling_radius, self.location, self.box_convention)

    def locations(self, size: tuple[int, int]) -> list[Tensor]:
        """The locations [R_l, 2] of every level in an image of padded (height, width)."""
        return self.assigner.locations(self.assigner.maps(size))

    @property
    def values(self) -> dict[str, object]:
        """The options of a config that make the setting; those of sizes that are not in force are left out."""
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
        """`values` as `key=value` on the command line."""
        return [f"{key}={as_option(value)}" for key, value in self.values.items()]
