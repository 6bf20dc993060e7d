"""Run folders: choosing, creating and locking the folder of a run, and writing files to it."""

from __future__ import annotations

import itertools
import os
import re
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ..checkpoint import generations
from ..config import Config
from ..data import Annotations
from ..errors import ConfigError
from ..files import explain_write_errors, remove_old_temporaries, write_text
from ..formatting import printable
from .elastic import recall

LAST = Path("weights/last.pt")
BEST = Path("weights/best.pt")
CONFIG = Path("config.yaml")
RUNS = Path("runs")
LAST_CHECKPOINT = Path("last_checkpoint")
"""File with the name of the last checkpoint in the run folder of the original FCOS."""
ENVIRONMENT = Path("environment.json")
LOCK = Path("run.lock")
LOCK_OWNER = Path("run.lock.txt")


def with_current_folder(config: Config, recipe: str | Path) -> Config:
    """Set `output_dir` to the folder of `recipe` if this is the config.yaml of a run.

    The `output_dir` in the file is the folder in which the run was started. The run folder may have been moved or
    copied since then.
    """
    file = Path(recipe)
    is_run = file.name == CONFIG.name and (
        (file.parent / ENVIRONMENT).is_file() or bool(generations(file.parent / LAST))
    )
    return config.model_copy(update={"output_dir": file.parent}) if is_run else config


def find_folder(config: Config, name: str, *, launch_key: str = "") -> Path | None:
    """Return the folder of the run to resume, or None for a new run.

    Args:
        config: config of the run. `output_dir` is the run folder; null stands for runs/NAME, runs/NAME-2 and so on. To
            resume, null selects the one that was written to last.
        name: NAME of the run.
        launch_key: key of the folder in the elastic launcher's store. If the launcher has restarted the processes, the
            run resumes in this folder, regardless of the config.

    Returns:
        The folder of the run to resume. None for a new folder, also if `train.resume` continues the run of the original
        in `train.weights`.

    Raises:
        ConfigError: the run to resume does not exist, the folder of a new run already holds a run, or the path is a
            file.
    """
    earlier_folder = recall(launch_key)
    if earlier_folder is not None:
        return Path(earlier_folder)
    folder = config.output_dir
    for path in (folder or RUNS, *(folder or RUNS).parents):
        if path.exists() and not path.is_dir():
            raise ConfigError(f"output_dir: {path} is a file; expected a folder, or a path that does not exist")
    if config.train.resume:
        if holds_run(config, name):
            return folder or _newest_run(name)
        if config.train.weights is None:
            raise ConfigError(
                f"train.resume: no {LAST} in {folder or RUNS / name}; set output_dir to a run folder,"
                " or remove train.resume to start a new run"
            )
        return None
    if folder is not None:
        _refuse_existing_run(folder)
    return None


def _refuse_existing_run(folder: Path) -> None:
    if _run_files(folder):
        raise ConfigError(
            f"output_dir: {folder} already contains a run; resume it with train.resume=true, or choose another folder"
        )


def check_apart_from_data(config: Config, splits: Iterable[Annotations | None]) -> None:
    """Check that `output_dir` is neither the data folder nor one in it that contains images of these splits.

    Otherwise, pictures of the run would become data, and deleting the run would delete data.

    Raises:
        ConfigError: it is such a folder.
    """
    folder, data = config.output_dir, config.data
    if folder is None:
        return
    sections = (data.train, data.val, data.test)
    given = [*filter(None, [data.root]), *(path for s in sections for path in (*s.annotations, *s.images))]
    data_folders = {path.resolve() for path in given if path.is_dir()}
    parents = {path.parent.resolve() for path in given if not path.is_dir()}
    image_folders: set[Path] = set()
    for split in filter(None, splits):
        names = {os.path.dirname(split.file_name(i)) for i in range(len(split))}
        image_folders |= {(split.root / name).resolve() for name in names}
    path = folder.resolve()
    contains_images = any(images.is_relative_to(path) for images in image_folders)
    is_in_data = any(path.is_relative_to(data_folder) for data_folder in data_folders | parents)
    if path in data_folders | image_folders or (contains_images and is_in_data):
        raise ConfigError(
            f"output_dir: {folder} is a folder of the data set; expected a folder for the files of the run, for example"
            f" output_dir={RUNS / folder.resolve().name}"
        )


@contextmanager
def lock_folder(folder: Path, *, is_new: bool) -> Iterator[None]:
    """Hold the lock of a run folder, so that no other process trains in it. A killed process loses the lock.

    Temporary files that killed processes left in the folder are removed.

    Args:
        folder: run folder.
        is_new: True if a new run starts in the folder. Another run may have been started and finished in it since
            `find_folder` was called.

    Raises:
        ConfigError: another process trains in this folder, or `is_new` and the folder already holds a run.
        WriteError: nothing can be written to the folder.
    """
    lock, owner = FileLock(folder / LOCK), folder / LOCK_OWNER
    with explain_write_errors(folder):
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise ConfigError(
                f"output_dir: {folder} is in use by {_read_owner(owner)}, which trains in this folder; wait until it"
                " has finished, stop it, or choose another folder"
            ) from None
    try:
        if is_new:
            _refuse_existing_run(folder)
        remove_old_temporaries(folder)
        write_text(owner, f"process {os.getpid()} on {socket.gethostname()}\n")
        yield
    finally:
        with suppress(OSError):
            owner.unlink()
        lock.release()


def _read_owner(file: Path) -> str:
    if not file.is_file():  # not yet written, or a device that never ends
        return "another process"
    try:
        return printable(file.read_text(encoding="utf-8", errors="replace").strip()) or "another process"
    except OSError:  # removed since
        return "another process"


def holds_run(config: Config, name: str) -> bool:
    """Return whether there is a run to resume: in `output_dir`, of this project or the original, or else runs/NAME."""
    folder = config.output_dir
    if folder is None:
        return _newest_run(name) is not None
    return bool(_run_files(folder)) or (folder / LAST_CHECKPOINT).is_file()


def new_folder(config: Config, name: str) -> Path:
    """Create the folder of a new run, `output_dir` or the first free one of runs/NAME, runs/NAME-2 and so on."""
    folder = config.output_dir
    if folder is not None:
        with explain_write_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
    else:
        with explain_write_errors(RUNS):
            folder = _create_numbered(name)
    with explain_write_errors(folder):
        (folder / LAST).parent.mkdir(exist_ok=True)
    return folder


def _create_numbered(name: str) -> Path:
    RUNS.mkdir(exist_ok=True)
    for number in itertools.count(1):
        folder = RUNS / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir()  # fails if another run, perhaps started at the same time, has it
            return folder
        except FileExistsError:
            continue
    raise AssertionError


def _newest_run(name: str) -> Path | None:
    """Return the folder runs/NAME or runs/NAME-N that was written to last."""
    pattern = re.compile(re.escape(name) + r"(-\d+)?")
    run_folders = [folder for folder in RUNS.glob("*") if pattern.fullmatch(folder.name) and _run_files(folder)]
    return max(run_folders, key=lambda folder: max(p.stat().st_mtime for p in _run_files(folder)), default=None)


def _run_files(folder: Path) -> list[Path]:
    """Return the checkpoints and config.yaml in a folder; any of them makes it a run folder."""
    return [*generations(folder / LAST), *(path for path in [folder / CONFIG] if path.is_file())]
