"""Output of the command line on the terminal: escaped text, log messages, user errors and their exit code."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .errors import FCOSError
from .formatting import printable_lines

if TYPE_CHECKING:
    from rich.console import Console


_LOADERS = ("fcos.data.loader", "fcos.data.workers")
"""Loggers of warnings that differ between the processes of torchrun: each loads other images."""


def prepare_output(*, hide_warnings: bool) -> None:
    """Show log messages of this package, and accept names that are invalid Unicode.

    Args:
        hide_warnings: hide warnings of libraries, unless `python -W` or PYTHONWARNINGS asks for them.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]
    handler = logging.StreamHandler()
    handler.setFormatter(_TerminalFormatter("%(message)s"))
    logging.basicConfig(handlers=[handler])
    if hide_warnings and not sys.warnoptions:
        warnings.simplefilter("ignore")
    logging.getLogger("fcos").setLevel(logging.INFO if is_rank_zero() else logging.ERROR)
    if not is_rank_zero():  # the other warnings concern all processes, and rank 0 shows them
        for name in _LOADERS:
            logging.getLogger(name).setLevel(logging.WARNING)


class _TerminalFormatter(logging.Formatter):
    """Formatter that escapes control characters, which file names and licences may contain."""

    def format(self, record: logging.LogRecord) -> str:
        return printable_lines(super().format(record))


@contextmanager
def report_user_errors() -> Iterator[None]:
    """Turn a user error into a message on stderr and exit code 2. Under torchrun only one process prints it."""
    try:
        yield
    except (FCOSError, OSError) as error:  # OSError: full disk, folder that is not writable
        if not getattr(error, "told", False) and _is_first_report(str(error)):
            print(f"fcos: {printable_lines(str(error))}", file=sys.stderr)
        sys.exit(2)


@contextmanager
def interrupt_on_termination() -> Iterator[None]:
    """Let signals that ask the process to end stop it as Ctrl-C does, so that it completes its files.

    Batch systems and containers send SIGTERM, and a terminal that is closed SIGHUP, which nohup ignores. A process of a
    distributed evaluation ends at once: it would wait for the others.
    """
    if threading.current_thread() is not threading.main_thread() or "WORLD_SIZE" in os.environ:
        yield  # only the main thread can handle signals
        return
    signals = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]  # not all on Windows
    kept = (signal.SIG_IGN, None)  # None: not installed by Python
    previous = {number: handler for number in signals if (handler := signal.getsignal(number)) not in kept}

    def interrupt(*_: object) -> None:
        for number in previous:
            signal.signal(number, signal.SIG_IGN)  # a second one must not stop the completion of files
        raise KeyboardInterrupt

    for number in previous:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _is_first_report(message: str) -> bool:
    if "RANK" not in os.environ:
        return True
    from .training.elastic import is_first_report

    return is_first_report(message)


def print_lines(text: str) -> None:
    """Print lines on stdout, with escaped control characters."""
    print(printable_lines(text))


def is_rank_zero() -> bool:
    """Return whether this process has rank 0, which prints for all processes of torchrun."""
    return os.environ.get("RANK", "0") == "0"


def console() -> Console:
    """Return a console for tables, whose width does not depend on the terminal in a pipe."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 160, highlight=False)
