"""Tables of a benchmark on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..formatting import printable
from .measure import Benchmark, Timing
from .pipeline import PARTS

_WIDTH = 20  # characters of a column


def print_benchmark(benchmark: Benchmark, console: Console) -> None:
    """Print the times in milliseconds per batch: medians of the parts, percentiles of the whole.

    Every variant is a column. Those that do not fit beside each other are printed below, in another table.
    """
    num_columns = max(console.width // _WIDTH - 1, 1)
    for start in range(0, len(benchmark.timings), num_columns):
        _print_columns(benchmark.timings[start : start + num_columns], start + 1, console)


def _print_columns(timings: Sequence[Timing], first: int, console: Console) -> None:
    is_plain = not console.is_terminal
    table = Table(box=None if is_plain else SIMPLE_HEAD, pad_edge=False)
    table.add_column("variant", no_wrap=True)
    for number in range(first, first + len(timings)):
        table.add_column(str(number), justify="right", no_wrap=is_plain)
    rows = zip(*(_column(timing).items() for timing in timings), strict=True)
    for cells in rows:
        table.add_row(cells[0][0], *(escape(printable(text)) for _, text in cells))
    console.print(table)
    if is_plain:
        console.print()


def _column(timing: Timing) -> dict[str, str]:
    """Return the cells of a variant by the names of their rows."""
    variant, total = timing.variant, timing.percentiles()
    times = {part: timing.percentiles(part)["p50"] for part in PARTS}
    times |= {name: total[name] for name in ("p50", "p90", "p99")}
    return {
        "weights": variant.weights,
        "runtime": variant.runtime,
        "precision": variant.precision,
        "compiled": "yes" if variant.compiled else "no",
        "batch": str(variant.batch),
        **{name: f"{1000 * seconds:.1f}" for name, seconds in times.items()},
        "images/s": f"{timing.images_per_second:.1f}",
        "objects": f"{timing.detections_per_image:.1f}",
    }
