"""Reasons why training assigns no location to an object, found with the target assignment itself.

Shape letters: L levels, M objects, R locations over all levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from ..models.points import Assigner, assign_targets
from ..structures import Objects


def assign(points: Sequence[Tensor], objects: Objects, assigner: Assigner) -> Tensor:
    """Return the object that training assigns to every location, int64 [R]; -1: none."""
    return assign_targets(points, [objects], assigner).boxes[0]


def find_obstacles(points: Sequence[Tensor], objects: Objects, assigner: Assigner) -> list[str]:
    """Explain for every object why no location is assigned to it; empty texts for those that have a location.

    Args:
        points: L tensors of locations (x, y) in pixels of the resized image.
        objects: M objects in the same pixels.
        assigner: options of the assignment.
    """
    assigned = set(assign(points, objects, assigner).tolist())
    return ["" if i in assigned else _find_obstacle(points, objects[i : i + 1], assigner) for i in range(len(objects))]


def _find_obstacle(points: Sequence[Tensor], single: Objects, assigner: Assigner) -> str:
    """Explain why no location is assigned to an object, by assigning it alone and with fewer conditions."""

    def count(chosen: Assigner) -> int:
        return int((assign(points, single, chosen) >= 0).sum())

    if num_locations := count(assigner):
        locations = "its only location" if num_locations == 1 else f"all its {num_locations} locations"
        return f"other objects, which are not larger, take {locations}"
    if assigner.center_sampling_radius and count(replace(assigner, center_sampling_radius=0.0)):
        return (
            f"no location inside it is within the center sampling radius, {assigner.center_sampling_radius:g} strides"
            " around its centre"
        )
    x1, y1, x2, y2 = single.boxes[0].tolist()
    width, height = x2 - x1, y2 - y1
    longest = max(width, height)
    # For a location inside a box, the distance to the farthest side is between half and all of the longer side.
    fitting = [
        stride
        for stride, (low, high) in zip(assigner.strides, assigner.size_ranges, strict=True)
        if longest > low and longest / 2 <= (math.inf if high is None else high)
    ]
    size = f"{width:.0f}x{height:.0f} pixels in the resized image"
    if not fitting:
        return f"the size range of no level contains it ({size})"
    return f"it lies between the locations of its level, which are {min(fitting)} pixels apart ({size})"
