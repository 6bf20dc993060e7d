"""Progress bar for long operations."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Update = Callable[[int, int | None], None]
"""Callback that takes the number of finished steps and the total; total None: unknown."""


@contextmanager
def progress_bar(description: str, *, shown: bool = True, in_bytes: bool = False) -> Iterator[Update]:
    """Show a progress bar on stderr if it is a terminal.

    Args:
        description: description of the operation.
        shown: False disables the bar.
        in_bytes: True if the steps are bytes; the bar then shows sizes.

    Yields:
        Callback that updates the bar.
    """
    if not shown or not sys.stderr.isatty():
        yield lambda _done, _total: None
        return
    from rich.console import Console
    from rich.progress import DownloadColumn, MofNCompleteColumn, Progress

    columns = (*Progress.get_default_columns(), DownloadColumn() if in_bytes else MofNCompleteColumn())
    # Lines printed meanwhile appear above the bar, unless they go to a file or a pipe.
    is_redirected = sys.stdout.isatty()
    with Progress(
        *columns, console=Console(stderr=True, soft_wrap=True), transient=True, redirect_stdout=is_redirected
    ) as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
