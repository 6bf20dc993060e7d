"""Progress of long operations: a bar on a terminal, log lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)

LOG_INTERVAL = 30.0
"""Seconds between two log lines of an operation."""
Update = Callable[[int, int | None], None]
"""Callback that takes the number of finished steps and the total; total None: unknown."""


@contextmanager
def progress_bar(
    description: str, *, shown: bool = True, in_bytes: bool = False, unit: str | None = None
) -> Iterator[Update]:
    """Show a progress bar on stderr if it is a terminal; otherwise log the progress every `LOG_INTERVAL` seconds.

    Args:
        description: description of the operation.
        shown: False disables the bar; the log lines depend on the level of the logger only.
        in_bytes: True if the steps are bytes; the bar then shows sizes.
        unit: name of the steps in the plural, to show how many are done per second; None: no rate.

    Yields:
        Callback that updates the bar or logs a line.
    """
    if not sys.stderr.isatty():
        yield _log_regularly(description, in_bytes=in_bytes, unit=unit)
        return
    if not shown:
        yield lambda _done, _total: None
        return
    from rich.console import Console
    from rich.progress import DownloadColumn, MofNCompleteColumn, Progress, TextColumn

    columns = [*Progress.get_default_columns(), DownloadColumn() if in_bytes else MofNCompleteColumn()]
    if unit is not None:
        columns.append(TextColumn("{task.fields[rate]}"))
    # Lines printed meanwhile appear above the bar, unless they go to a file or a pipe.
    goes_to_terminal = sys.stdout.isatty()
    with Progress(
        *columns, console=Console(stderr=True, soft_wrap=True), transient=True, redirect_stdout=goes_to_terminal
    ) as bar:
        task, start = bar.add_task(description, total=None, rate=""), time.monotonic()

        def update(done: int, total: int | None) -> None:
            bar.update(task, completed=done, total=total, rate=_format_rate(done, start, unit))

        yield update


def _log_regularly(description: str, *, in_bytes: bool, unit: str | None) -> Update:
    start = last = time.monotonic()

    def update(done: int, total: int | None) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= LOG_INTERVAL:
            last = now
            of_total = f" of {total:,}" if total is not None else ""
            rate = "" if unit is None else f", {_format_rate(done, start, unit, now=now)}"
            logger.info("%s: %s%s%s%s", description, f"{done:,}", of_total, " bytes" if in_bytes else "", rate)

    return update


def _format_rate(done: int, start: float, unit: str | None, *, now: float | None = None) -> str:
    seconds = (time.monotonic() if now is None else now) - start
    return "" if unit is None or seconds <= 0 else f"{done / seconds:.1f} {unit}/s"
