"""Run folders that were moved or copied, and the lock that keeps two processes out of one folder."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from hooks import at_call, before_forward
from processes import SECONDS

import fcos
from fcos.config import Config
from fcos.errors import ConfigError, DataError, WriteError
from fcos.interop.checkpoints import load_checkpoint
from fcos.models.fcos import FCOS
from fcos.recipes import load_config
from fcos.training.folder import lock_folder
from fcos.training.loop import train

pytestmark = pytest.mark.usefixtures("without_report")
Contents = dict[Path, bytes]


def contents(folder: Path) -> Contents:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def resume(config: Config) -> Config:
    return config.model_copy(update={"train": config.train.model_copy(update={"resume": True})})


@pytest.mark.parametrize("saved", [True, False])
def test_a_copied_run_resumes_in_its_own_folder(configure: Callable[..., Config], tmp_path: Path, saved: bool) -> None:
    original, copy = train(configure()).run, tmp_path / "copy"
    shutil.copytree(original, copy)
    if not saved:  # killed before the first checkpoint
        shutil.rmtree(copy / "weights")
    before = contents(original)
    result = fcos.train(copy / "config.yaml", "train.resume=true", "train.iterations=3")
    assert result.run == copy
    assert contents(original) == before
    assert load_checkpoint(copy / "weights/last.pt").iteration == 3
    assert load_config(copy / "config.yaml").output_dir == copy


def test_a_moved_run_resumes_with_a_path_relative_to_the_working_directory(
    configure: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(configure()).run.rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "moved")
    fcos.train("config.yaml", "train.resume=true", "train.iterations=3")
    assert load_checkpoint(tmp_path / "moved/weights/last.pt").iteration == 3
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_created_is_a_user_error(configure: Callable[..., Config], tmp_path: Path) -> None:
    (tmp_path / "dead_link").symlink_to("missing")
    with pytest.raises(WriteError, match="dead_link: cannot be written: File exists"):
        train(configure().model_copy(update={"output_dir": tmp_path / "dead_link"}))


def test_a_new_run_with_the_config_of_a_copied_run_is_refused(configure: Callable[..., Config], tmp_path: Path) -> None:
    shutil.copytree(train(configure()).run, tmp_path / "copy")
    with pytest.raises(ConfigError, match=rf"output_dir: {tmp_path / 'copy'} already contains a run"):
        fcos.train(tmp_path / "copy/config.yaml")


def test_the_config_of_a_run_can_start_a_run_in_another_folder(
    configure: Callable[..., Config], tmp_path: Path
) -> None:
    run = train(configure()).run
    result = fcos.train(run / "config.yaml", f"output_dir={tmp_path / 'other'}", "train.iterations=1")
    assert result.run == tmp_path / "other"


def test_a_config_of_the_user_keeps_its_output_folder(configure: Callable[..., Config], tmp_path: Path) -> None:
    project = tmp_path / "project"
    (project / "weights").mkdir(parents=True)  # of the user, not of a run
    (project / "config.yaml").write_text(configure(iterations=1).to_yaml())
    assert fcos.train(project / "config.yaml").run == tmp_path / "run"


def test_a_run_whose_data_has_moved_asks_for_its_location(configure: Callable[..., Config], tmp_path: Path) -> None:
    run = train(configure()).run
    (tmp_path / "data").rename(tmp_path / "moved")
    with pytest.raises(DataError, match=rf"data: {tmp_path / 'data'} does not exist\. .* with data=DIR"):
        fcos.train(run / "config.yaml", "train.resume=true", "train.iterations=3")
    fcos.train(run / "config.yaml", "train.resume=true", "train.iterations=3", f"data={tmp_path / 'moved'}")
    assert load_checkpoint(run / "weights/last.pt").iteration == 3


def test_a_run_folder_or_weights_file_is_not_a_recipe(tmp_path: Path) -> None:
    for name in ("config.yaml", "last.pt"):
        (tmp_path / name).touch()
    with pytest.raises(
        ConfigError, match=rf"is a folder, .* did you mean {tmp_path}/config\.yaml, the config of this run"
    ):
        fcos.train(tmp_path, "train.resume=true")
    with pytest.raises(
        ConfigError, match=r"last\.pt: is not a recipe; expected .* such as the config\.yaml in a run folder"
    ):
        fcos.train(tmp_path / "last.pt", "train.resume=true")


def refusal(config: Config) -> str:
    with pytest.raises(ConfigError) as caught:
        train(config)
    return str(caught.value)


def test_a_run_in_use_is_refused_with_the_name_of_its_process(configure: Callable[..., Config]) -> None:
    config = configure()
    run = train(config).run
    with lock_folder(run, is_new=False):
        before = contents(run)
        message = refusal(resume(config))
        assert contents(run) == before
    assert f"{run} is in use by process {os.getpid()} on {socket.gethostname()}, which trains in this folder" in message
    train(resume(config))  # the lock is released
    assert not (run / "run.lock.txt").exists()


def test_a_folder_in_which_another_run_has_just_started_is_refused(
    configure: Callable[..., Config], tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    with lock_folder(tmp_path / "run", is_new=True):  # before it has written its config.yaml
        assert "is in use by process" in refusal(configure())
    assert not list((tmp_path / "run").glob("*.yaml"))


def test_a_folder_in_which_another_run_was_started_and_finished_is_refused(
    configure: Callable[..., Config], tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").touch()
    with pytest.raises(ConfigError, match="already contains a run"), lock_folder(tmp_path / "run", is_new=True):
        pass
    with lock_folder(tmp_path / "run", is_new=False):
        pass


def test_a_folder_in_place_of_the_file_with_the_owner_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "run.lock.txt").mkdir()
    with pytest.raises(WriteError, match=r"run\.lock\.txt: cannot be written"), lock_folder(tmp_path, is_new=True):
        pass


@pytest.mark.skipif(os.name == "nt", reason="no /dev/zero on Windows")
def test_the_owner_of_a_lock_is_not_read_from_a_device(tmp_path: Path) -> None:
    with lock_folder(tmp_path, is_new=True):
        (tmp_path / "run.lock.txt").unlink()
        (tmp_path / "run.lock.txt").symlink_to("/dev/zero")
        with pytest.raises(ConfigError, match="is in use by another process"), lock_folder(tmp_path, is_new=False):
            pass


def test_the_folder_is_locked_while_training(configure: Callable[..., Config]) -> None:
    messages: list[str] = []
    config = configure(iterations=1)
    with before_forward(FCOS, at_call(1, lambda _: messages.append(refusal(resume(config))))):
        train(config)
    assert "is in use by process" in messages[0]


def hold_lock(folder: Path, ready: Connection) -> None:
    """Lock a folder, start a worker, and wait; the target of a child process."""
    with lock_folder(folder, is_new=True):
        worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(SECONDS,))
        worker.start()
        ready.send(worker.pid)
        time.sleep(SECONDS)


def test_a_killed_process_loses_the_lock_even_if_its_workers_are_alive(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=hold_lock, args=(tmp_path, sender))
    process.start()
    worker = receiver.recv()
    with pytest.raises(ConfigError, match=f"process {process.pid} on "), lock_folder(tmp_path, is_new=True):
        pass
    process.kill()
    process.join()
    try:
        with lock_folder(tmp_path, is_new=True):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)


def test_temporary_files_of_killed_processes_are_removed(tmp_path: Path) -> None:
    names = {".tmp", f".{'0' * 32}.tmp", f"val/.{'a1' * 16}.tmp", f"val/.{'b' * 32}.tmp", ".mine.tmp", "report.html"}
    (tmp_path / "val").mkdir()
    for name in names:
        (tmp_path / name).write_text("")
        os.utime(tmp_path / name, (0, 0))
    os.utime(tmp_path / f"val/.{'b' * 32}.tmp")  # another process may be writing this one
    with lock_folder(tmp_path, is_new=False):
        pass
    removed = {name for name in names if not (tmp_path / name).exists()}
    assert removed == {f".{'0' * 32}.tmp", f"val/.{'a1' * 16}.tmp"}
