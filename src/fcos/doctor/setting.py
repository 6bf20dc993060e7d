"""What decides where a box is learned: the pyramid and the size of the images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ..config import Config
from ..config_text import as_option
from ..data.transforms import resize_size, train_transform
from ..models.targets import pyramid_locations
from ..structures import BoxConvention


@dataclass(frozen=True)
class Setting:
    """What decides where a box is learned.

    Attributes:
        strides: of the levels, pixels.
        size_ranges: see `assign_targets`; likewise `center_sampling_radius`, `box_convention`.
        location: see `pyramid_locations`.
        short_side: see `resize_size`; likewise `max_side`.
        size_divisor: images are padded to a multiple of it.
    """

    strides: tuple[int, ...]
    size_ranges: tuple[tuple[float, float | None], ...]
    center_sampling_radius: float
    location: Literal["center", "corner"]
    box_convention: BoxConvention
    short_side: int
    max_side: int
    size_divisor: int

    @staticmethod
    def of(config: Config) -> Setting:
        """That of a config; of several training sizes the middle one. Zoom is left out."""
        model, data = config.model, config.data
        sides = sorted(train_transform(data).short_sides)
        return Setting(
            strides=tuple(model.strides),
            size_ranges=tuple(model.size_ranges),
            center_sampling_radius=model.center_sampling_radius,
            location=model.location,
            box_convention=model.box_convention,
            short_side=sides[(len(sides) - 1) // 2],
            max_side=data.max_side,
            size_divisor=data.size_divisor,
        )

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """An image's (height, width) in training."""
        return resize_size(height, width, self.short_side, self.max_side)

    def locations(self, size: tuple[int, int]) -> list[Tensor]:
        """The locations [R_l, 2] of every level in an image of padded (height, width)."""
        maps = [(-(-size[0] // stride), -(-size[1] // stride)) for stride in self.strides]
        return pyramid_locations(maps, self.strides, location=self.location)

    @property
    def options(self) -> list[str]:
        """`key=value`, as on the command line."""
        options = {
            "data.short_side": self.short_side,
            "data.max_side": self.max_side,
            "model.strides": self.strides,
            "model.size_ranges": self.size_ranges,
            "model.center_sampling_radius": self.center_sampling_radius,
        }
        return [f"{key}={as_option(value)}" for key, value in options.items()]
