"""Measurement of variants in turns, and its result.

The variants take turns batch by batch, so that other load on the machine slows all of them alike.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .pipeline import PARTS, Pipeline, Variant

WARM_UP = 2
"""Number of unmeasured batches of each variant."""
_MIN_REPEATS = 3


@dataclass
class Timing:
    """Times of one variant.

    Attributes:
        variant: the variant.
        seconds: seconds of every part, by name, for every batch.
        num_detections: number of detections in all measured batches.
    """

    variant: Variant
    seconds: list[dict[str, float]] = field(default_factory=list)
    num_detections: int = 0

    @property
    def images_per_second(self) -> float:
        """Images per second at the median time of a batch."""
        return self.variant.batch / self.percentiles()["p50"]

    @property
    def detections_per_image(self) -> float:
        """Mean number of detections per image."""
        return self.num_detections / (len(self.seconds) * self.variant.batch)

    def percentiles(self, part: str | None = None) -> dict[str, float]:
        """Return mean, p50, p90 and p99 of the seconds per batch, of one part or (None) of the whole."""
        values = [sum(parts.values()) if part is None else parts[part] for parts in self.seconds]
        return {"mean": float(np.mean(values)), **{f"p{q}": float(np.percentile(values, q)) for q in (50, 90, 99)}}


@dataclass(frozen=True)
class Benchmark:
    """Result of a benchmark.

    Attributes:
        machine: hardware and versions, by name.
        num_images: number of different images.
        timings: one per variant.
    """

    machine: dict[str, str]
    num_images: int
    timings: list[Timing]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, with all times in milliseconds per batch; the means of the parts sum up to the total."""
        results = [
            {
                **timing.variant._asdict(),
                "num_batches": len(timing.seconds),
                "images_per_second": timing.images_per_second,
                "detections_per_image": timing.detections_per_image,
                "total_ms": _milliseconds(timing.percentiles()),
                "parts_ms": {part: _milliseconds(timing.percentiles(part)) for part in PARTS},
            }
            for timing in self.timings
        ]
        return {"machine": self.machine, "num_images": self.num_images, "results": results}


def measure(
    pipelines: Sequence[Pipeline],
    files: Sequence[Path],
    *,
    seconds: float,
    repeats: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Timing]:
    """Time variants in turns.

    Args:
        pipelines: the variants.
        files: image files, used again and again.
        seconds: mean time per variant, after the warm-up.
        repeats: number of batches of each variant; None: as many as take `seconds`, at least 3.
        progress: callback that receives the number of finished steps and the total, which are batches, or seconds.
    """
    timings = [Timing(pipeline.variant) for pipeline in pipelines]
    images = [itertools.cycle(files) for _ in pipelines]
    for pipeline, source in zip(pipelines, images, strict=True):
        for _ in range(WARM_UP):
            pipeline.run(list(itertools.islice(source, pipeline.variant.batch)))
    start, limit = time.perf_counter(), seconds * len(pipelines)
    for turn in itertools.count(1):
        for pipeline, source, timing in zip(pipelines, images, timings, strict=True):
            parts, detections = pipeline.run(list(itertools.islice(source, pipeline.variant.batch)))
            timing.seconds.append(parts)
            timing.num_detections += sum(map(len, detections))
        elapsed = time.perf_counter() - start
        if progress is not None:
            done, total = (elapsed, limit) if repeats is None else (turn, repeats)
            progress(min(int(done), int(total)), int(total))
        is_last = elapsed >= limit and turn >= _MIN_REPEATS if repeats is None else turn >= repeats
        if is_last:
            break
    return timings


def _milliseconds(seconds: dict[str, float]) -> dict[str, float]:
    return {name: 1000 * value for name, value in seconds.items()}
