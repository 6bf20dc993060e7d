"""The progress bar of whatever takes long."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Update = Callable[[int, int | None], None]
"""Takes the number of steps done, and that of all; None: it is not known."""


@contextmanager
def progress_bar(what: str, *, shown: bool = True, in_bytes: bool = False) -> Iterator[Update]:
    """A progress bar on the terminal (stderr), nothing elsewhere.

    Args:
        what: is being done.
        shown: False: nothing on the terminal either.
        in_bytes: a step is a byte; tell sizes.
    """
    if not shown or not sys.stderr.isatty():
        yield lambda _done, _total: None
        return
    from rich.console import Console
    from rich.progress import DownloadColumn, Progress

    columns = (*Progress.get_default_columns(), *([DownloadColumn()] if in_bytes else []))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
