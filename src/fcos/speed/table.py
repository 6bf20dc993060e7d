"""Table of a benchmark on the terminal."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..formatting import printable
from .measure import Benchmark
from .pipeline import PARTS

_TEXT = ("weights", "runtime", "precision")


def print_benchmark(benchmark: Benchmark, console: Console) -> None:
    """Print the times in milliseconds per batch, a row per variant: medians of the parts, percentiles of the whole."""
    is_plain = not console.is_terminal
    table = Table(box=None if is_plain else SIMPLE_HEAD, pad_edge=False)
    columns = [*_TEXT, "batch", *PARTS, "p50", "p90", "p99", "images/s", "objects"]
    for column in columns:
        table.add_column(column, justify="left" if column in _TEXT else "right", no_wrap=is_plain)
    for timing in benchmark.timings:
        variant, total = timing.variant, timing.percentiles()
        runtime = f"{variant.runtime}, compiled" if variant.compiled else variant.runtime
        times = [timing.percentiles(part)["p50"] for part in PARTS] + [total[name] for name in ("p50", "p90", "p99")]
        table.add_row(
            escape(printable(variant.weights)),
            runtime,
            variant.precision,
            str(variant.batch),
            *(f"{1000 * seconds:.1f}" for seconds in times),
            f"{timing.images_per_second:.1f}",
            f"{timing.detections_per_image:.1f}",
        )
    console.print(table)
