"""The folder of a run: which one it is, and from which of its checkpoints the run continues."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from ..checkpoint import Checkpoint, generations
from ..config import Config
from ..errors import ConfigError, TrainingError, WeightsError
from ..interop.checkpoints import load_checkpoint
from .elastic import recalled

LAST = Path("weights/last.pt")
BEST = Path("weights/best.pt")
CONFIG = Path("config.yaml")
RUNS = Path("runs")
DAMAGED = Path("weights/damaged.pt")


def find_folder(config: Config, name: str, *, launch_key: str = "") -> Path | None:
    """Find the folder of the run to continue; None: a new run, and nothing is in its way.

    Args:
        config: `output_dir` names the folder; null: runs/NAME, runs/NAME-2 and so on. To continue, null means the one
            that was written to last.
        name: NAME.
        launch_key: under which the folder is remembered when the elastic launcher starts the processes again: then the
            run continues there, whatever the config says.

    Raises:
        ConfigError: nothing to continue; a run is there already and should not be continued; or a file is in the way.
    """
    before = recalled(launch_key)
    if before is not None:
        return Path(before)
    folder = config.output_dir
    for path in (folder or RUNS, *(folder or RUNS).parents):
        if path.exists() and not path.is_dir():
            raise ConfigError(f"output_dir: {path} is a file; expected a folder, or a name that is free")
    if config.train.resume:
        folder = folder or _newest(name)
        if folder is None or not _files(folder):
            raise ConfigError(
                f"train.resume: no {LAST} in {folder or RUNS / name}; expected the folder of a run as output_dir,"
                " or leave train.resume out to start one"
            )
        return folder
    if folder is not None and _files(folder):
        raise ConfigError(
            f"output_dir: {folder} holds a run already; continue it with train.resume=true, or name another folder"
        )
    return None


def new_folder(config: Config, name: str) -> Path:
    """Make the folder of a new run, see `find_folder`."""
    folder = config.output_dir
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    else:
        folder = _numbered(name)
    (folder / LAST).parent.mkdir(exist_ok=True)
    return folder


def _numbered(name: str) -> Path:
    RUNS.mkdir(exist_ok=True)
    for number in itertools.count(1):
        folder = RUNS / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir()  # fails where another run, perhaps one that starts just now, was first
            return folder
        except FileExistsError:
            continue
    raise AssertionError


def _newest(name: str) -> Path | None:
    """The folder runs/NAME or runs/NAME-N that was written to last."""
    pattern = re.compile(re.escape(name) + r"(-\d+)?")
    found = [folder for folder in RUNS.glob("*") if pattern.fullmatch(folder.name) and _files(folder)]
    return max(found, key=lambda folder: max(p.stat().st_mtime for p in _files(folder)), default=None)


def _files(folder: Path) -> list[Path]:
    """What makes a folder that of a run."""
    return [*generations(folder / LAST), *(path for path in [folder / CONFIG] if path.is_file())]


class Continued(NamedTuple):
    """From what a run continues.

    Attributes:
        checkpoint: None: nothing had been saved yet.
        note: what the user should know of it, in lines; empty: the last checkpoint was there and good.
    """

    checkpoint: Checkpoint | None
    note: str


def load_last(folder: Path) -> Continued:
    """Read the newest checkpoint that is whole, and put it in the place of the last one.

    Damaged ones that are newer are moved out of the way; what a killed process left of a file that it was writing is
    removed.

    Raises:
        WeightsError: there are checkpoints, and none can be read.
    """
    for leftover in (folder / LAST).parent.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)
    problems: list[str] = []
    bad: list[Path] = []
    for path in generations(folder / LAST):
        try:
            checkpoint = load_checkpoint(path)
        except WeightsError as error:
            problems.append(str(error))
            bad.append(path)
            continue
        for damaged in bad:
            damaged.replace(folder / DAMAGED)
        if path == folder / LAST:
            return Continued(checkpoint, "")
        path.replace(folder / LAST)
        lost = [f"warning: {problem}" for problem in problems] or [f"warning: {folder / LAST} is missing"]
        kept = f" (kept as {folder / DAMAGED})" if bad else ""
        return Continued(checkpoint, "\n".join([*lost, f"  continuing from the one before{kept}, {path}"]))
    if problems:
        raise WeightsError(f"train.resume: no checkpoint can be read: {' | '.join(problems)}")
    (folder / LAST).parent.mkdir(exist_ok=True)
    return Continued(None, f"nothing was saved in {folder} yet: starting from the beginning")


def write_text(path: Path, text: str) -> None:
    """Write a file; one that is there stays whole until then.

    Raises:
        OSError: the disk is full or not writable.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def names_folder(folder: Path) -> Iterator[None]:
    """Say which folder it is that cannot be written; of a full disk the system does not.

    Raises:
        TrainingError: instead of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise TrainingError(f"{folder}: nothing can be written there: {error}; make room, then start again") from None
