"""Loggers with the real libraries, none of which may send a request to the network."""

from __future__ import annotations

import csv
import json
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hooks import at_call, before_forward
from no_network import no_requests
from processes import SECONDS
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import fcos
from fcos.config import Config
from fcos.errors import ConfigError, TrainingError
from fcos.models.fcos import FCOS
from fcos.training.loggers import LOGGERS, RunStart, build_loggers
from fcos.training.loop import train

LOSSES = ["train/loss", "train/loss_cls", "train/loss_box", "train/loss_centerness"]


@pytest.fixture(autouse=True)
def requests(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """Yield a list of requests that would have left this machine; a test fails if it is not empty at the end."""
    connect = socket.socket.connect

    def refuse(self: socket.socket, address: Any) -> None:
        local = self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "::1", "localhost")
        assert local, f"a connection to {address}"
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", refuse)  # libraries that ignore proxies
    with no_requests(monkeypatch) as made:
        yield made


def wandb_records(file: Path) -> list[Any]:
    """Return the records of a .wandb file up to the exit code, which W&B may write only after `finish` has returned."""
    deadline = time.monotonic() + SECONDS
    while True:
        records = parse_wandb_records(file.read_bytes())
        if any(record.HasField("exit") for record in records) or time.monotonic() > deadline:
            return records
        time.sleep(0.05)


def parse_wandb_records(content: bytes) -> list[Any]:
    """Return the complete records of a .wandb file, which has LevelDB's log format: blocks with parts of records."""
    from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportAttributeAccessIssue]

    position, record, records = 7, b"", []
    while position + 7 <= len(content):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        length, kind = struct.unpack_from("<HB", content, position + 4)
        record += content[position + 7 : position + 7 + length]
        position += 7 + length
        if position > len(content):
            break
        if kind in (1, 4):  # a complete record, or the last part of one
            records.append(Record.FromString(record))
            record = b""
    return records


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def start(folder: Path, *loggers: str, **position: Any) -> RunStart:
    return RunStart(folder, Config.model_validate({"train": {"loggers": list(loggers)}}), **position)


def test_default_loggers_are_csv_and_tensorboard(configure: Callable[..., Config]) -> None:
    run = train(configure(eval_every=1)).run
    assert [row["split"] for row in rows(run)] == ["train", "val", "train", "val"]
    events = EventAccumulator(str(run)).Reload()
    assert {*LOSSES, "train/lr", "train/unassigned_share", "val/AP"} <= set(events.Tags()["scalars"])
    for name in LOSSES:
        values = [float(row[name.removeprefix("train/")]) for row in rows(run) if row["split"] == "train"]
        assert [event.value for event in events.Scalars(name)] == pytest.approx(values, rel=1e-5)  # six digits in CSV


def test_csv_loss_columns_match_the_detector(configure: Callable[..., Config]) -> None:
    run = train(configure(model={"quality": "iou"})).run
    assert "loss_iou_quality" in rows(run)[0]
    assert "loss_centerness" not in rows(run)[0]


def test_csv_adds_columns_for_new_metrics(tmp_path: Path) -> None:
    logger = build_loggers(start(tmp_path, "csv"))["csv"]
    logger.log(1, {"train/loss": 2.0})
    logger.log(1, {"val/AP_mask": 0.25})
    logger.log(2, {"train/loss": 1.0})
    logger.close()
    assert [(row["iteration"], row["loss"], row["AP_mask"]) for row in rows(tmp_path)] == [
        ("1", "2", ""),
        ("1", "", "0.25"),
        ("2", "1", ""),
    ]


@pytest.mark.parametrize(
    "text", ["", "iteration\n", "a,b\n1,2\n", "iteration,split\n1\n", "iteration,split,loss\nx,train,1\n", "\x00\xff\n"]
)
def test_csv_logger_starts_over_after_a_malformed_table(tmp_path: Path, text: str) -> None:
    (tmp_path / "metrics.csv").write_bytes(text.encode("latin1"))
    logger = build_loggers(start(tmp_path, "csv", iteration=5, logged_iteration=5, evaluations=1))["csv"]
    logger.log(6, {"train/loss": 2.0})
    logger.close()
    assert [(row["iteration"], row["loss"]) for row in rows(tmp_path)] == [("6", "2")]


@pytest.mark.parametrize(
    ("mark", "separator", "kept"), [("", ",", ["5", "6"]), ("\ufeff", ",", ["5", "6"]), ("", ";", ["6"])]
)
def test_csv_logger_keeps_rows_saved_by_a_spreadsheet(
    tmp_path: Path, mark: str, separator: str, kept: list[str]
) -> None:
    text = mark + "iteration,split,loss\n5,train,1\n".replace(",", separator)
    (tmp_path / "metrics.csv").write_text(text, encoding="utf-8")
    logger = build_loggers(start(tmp_path, "csv", iteration=5, logged_iteration=5))["csv"]
    logger.log(6, {"train/loss": 2.0})
    logger.close()
    assert [row["iteration"] for row in rows(tmp_path)] == kept
    assert len(kept) == 2 or (tmp_path / "metrics.old.csv").read_text(encoding="utf-8") == text


def test_run_without_csv_logger_can_be_resumed(configure: Callable[..., Config], tmp_path: Path) -> None:
    train(configure(loggers=["tensorboard"]))
    assert not (tmp_path / "run/metrics.csv").exists()
    train(configure(loggers=[], iterations=3, resume=True))
    assert not (tmp_path / "run/metrics.csv").exists()


def test_user_logger_receives_training_and_validation_metrics(configure: Callable[..., Config]) -> None:
    run = train(configure(loggers=["own_logger:Lines"], eval_every=1)).run
    lines = [json.loads(line) for line in (run / "lines.json").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 1, 2, 2]
    assert "train/loss" in lines[0]
    assert "val/AP" in lines[1]


def test_failing_logger_does_not_stop_the_run(
    configure: Callable[..., Config], capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(configure(loggers=["own_logger:Failing", "csv"], iterations=4)).run
    assert len((run / "lines.json").read_text().splitlines()) == 1
    assert len(rows(run)) >= 4
    out = capsys.readouterr().out
    assert out.count("warning: the logger own_logger:Failing failed and was closed: KeyError") == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tensorbord", "train.loggers=tensorbord: no such logger, did you mean 'tensorboard'"),
        ("no_such_module:Logger", "train.loggers=no_such_module:Logger: no module 'no_such_module'"),
        ("own_logger:Nothing", "the module 'own_logger' has no function 'Nothing'"),
    ],
)
def test_invalid_logger_is_rejected_before_the_folder_is_created(
    configure: Callable[..., Config], tmp_path: Path, name: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        fcos.train(configure(loggers=[name]))
    assert not (tmp_path / "run").exists()


def test_logger_that_cannot_start_stops_the_run(configure: Callable[..., Config]) -> None:
    message = "train.loggers=own_logger:Unreachable: cannot start the logger: RuntimeError: no server for run; fix this"
    hook = threading.excepthook
    with pytest.raises(ConfigError, match=message):
        fcos.train(configure(loggers=["tensorboard", "own_logger:Unreachable"]))
    assert threading.excepthook is hook  # the logger that started first is closed
    train(configure(loggers=["csv"]))  # the same folder can be used again


def test_lost_connection_is_not_reported_as_full_disk(
    configure: Callable[..., Config], capsys: pytest.CaptureFixture[str]
) -> None:
    train(configure(loggers=["own_logger:Disconnected"], iterations=3))
    out = capsys.readouterr().out
    assert out.count("the logger own_logger:Disconnected failed and was closed: ConnectionResetError") == 1
    assert "free up disk space" not in out


@pytest.mark.parametrize("name", ["Careless", "Leaving"])
def test_misbehaving_logger_affects_neither_run_nor_other_loggers(
    configure: Callable[..., Config], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    run = fcos.train(configure(loggers=[f"own_logger:{name}", "csv"], eval_every=1)).run
    assert [row["split"] for row in rows(run)] == ["train", "val", "train", "val"]
    assert (run / "report.html").is_file()
    assert f"the logger own_logger:{name} failed and was closed" in capsys.readouterr().out


def test_loggers_option_accepts_a_single_name() -> None:
    assert Config.model_validate({"train": {"loggers": "csv"}}).train.loggers == ["csv"]


def test_tensorboard_leaves_threading_excepthook_unchanged(tmp_path: Path) -> None:
    hook = threading.excepthook
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        build_loggers(start(tmp_path / "file", "tensorboard"))
    assert threading.excepthook is hook
    logger = build_loggers(start(tmp_path, "tensorboard"))["tensorboard"]
    logger.close()
    assert threading.excepthook is hook


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_missing_package_error_names_the_extra(
    configure: Callable[..., Config], tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # simulates a missing package
    with pytest.raises(ConfigError, match=rf"train.loggers={name}: .*pip install {name}"):
        fcos.train(configure(loggers=[name]))
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore")  # warnings inside these libraries
def test_mlflow_logs_config_and_metrics_and_resumes_the_run(
    configure: Callable[..., Config], services: list[str]
) -> None:
    from mlflow import MlflowClient

    assert "mlflow" in services
    run = train(configure(loggers=["mlflow"], eval_every=1)).run
    train(configure(loggers=["mlflow"], eval_every=1, iterations=3, resume=True))
    client = MlflowClient()
    experiment = client.get_experiment_by_name("fcos")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_name == run.name
    assert found.info.status == "FINISHED"
    assert found.data.params["model.backbone.name"] == "own_backbone:Own"
    steps = [metric.step for metric in client.get_metric_history(found.info.run_id, "train/loss")]
    assert steps == [1, 2, 3]
    assert {*LOSSES, "val/AP"} <= found.data.metrics.keys()


@pytest.mark.filterwarnings("ignore")  # warnings inside these libraries
def test_wandb_offline_logs_into_the_run_folder(
    configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = train(configure(loggers=["wandb"], eval_every=1)).run
    assert "the logger wandb failed" not in capsys.readouterr().out
    (folder,) = (run / "wandb").glob("offline-run-*")
    known = (run / "wandb_id.txt").read_text().strip()
    assert folder.name.endswith(known)
    (file,) = folder.glob("run-*.wandb")
    records = wandb_records(file)
    names = {item.nested_key[0] for record in records for item in record.history.item}
    assert {*LOSSES, "val/AP", "iteration"} <= names
    metrics = [record.metric for record in records if record.HasField("metric")]
    assert ("*", "iteration") in [(metric.glob_name, metric.step_metric) for metric in metrics]
    assert [record.exit.exit_code for record in records if record.HasField("exit")] == [0]
    train(configure(loggers=["wandb"], iterations=3, resume=True))
    assert (run / "wandb_id.txt").read_text().strip() == known
    assert len(list((run / "wandb").glob(f"offline-run-*-{known}"))) == 2


def outcomes(folder: Path) -> tuple[str, list[int]]:
    """Return the status of a run in MLflow and its exit codes in W&B."""
    from mlflow import MlflowClient

    run = MlflowClient().get_run((folder / "mlflow_id.txt").read_text().strip())
    (file,) = (folder / "wandb").glob("offline-run-*/run-*.wandb")
    return run.info.status, [record.exit.exit_code for record in wandb_records(file) if record.HasField("exit")]


@pytest.fixture(scope="module")
def mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an empty database of MLflow, whose creation takes seconds; do not modify it."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def services(mlflow_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the loggers of services, configured to keep everything on this machine."""
    shutil.copy(mlflow_database, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv("WANDB_MODE", "offline")
    return ["mlflow", "wandb"]


@pytest.mark.filterwarnings("ignore")  # warnings inside these libraries
@pytest.mark.parametrize(
    ("error", "expected"), [(KeyboardInterrupt, ("KILLED", [1])), (TrainingError, ("FAILED", [1]))]
)
def test_services_record_an_interrupted_or_failed_run(
    configure: Callable[..., Config], services: list[str], error: type[BaseException], expected: tuple[str, list[int]]
) -> None:
    config = configure(loggers=services)

    def end(_: FCOS) -> None:
        raise error

    with before_forward(FCOS, at_call(2, end)), pytest.raises(error):
        train(config)
    assert config.output_dir is not None
    assert outcomes(config.output_dir) == expected


def test_failing_close_of_a_logger_does_not_hide_the_outcome(configure: Callable[..., Config]) -> None:
    config = configure(loggers=["own_logger:NotClosing", "own_logger:Outcome"])

    def end(_: FCOS) -> None:
        raise KeyboardInterrupt

    with before_forward(FCOS, at_call(2, end)), pytest.raises(KeyboardInterrupt):
        train(config)
    assert config.output_dir is not None
    assert (config.output_dir / "outcome.txt").read_text() == "KeyboardInterrupt"


@pytest.mark.filterwarnings("ignore")  # warnings inside these libraries
def test_run_started_in_an_except_block_is_recorded_as_finished(
    configure: Callable[..., Config], services: list[str]
) -> None:
    try:
        raise TrainingError("a first attempt")
    except TrainingError:
        assert outcomes(train(configure(loggers=services)).run) == ("FINISHED", [0])


@pytest.mark.filterwarnings("ignore")  # warnings inside these libraries
def test_mlflow_run_with_rejected_metrics_is_recorded_as_failed(
    configure: Callable[..., Config], services: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    def log_batch(*_: Any, metrics: Any = (), **__: Any) -> None:
        if metrics:
            raise RuntimeError("rejected")

    monkeypatch.setattr(MlflowClient, "log_batch", log_batch)
    assert outcomes(train(configure(loggers=services)).run) == ("FAILED", [0])


@pytest.mark.filterwarnings("ignore")  # warnings inside these libraries
def test_unreachable_mlflow_server_stops_the_run_at_startup(
    configure: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)  # nothing listens here any more
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ConfigError, match=r"train.loggers=mlflow: cannot start the logger: .*Connection refused"):
        train(configure(loggers=["mlflow"]))
    assert not (tmp_path / "run/config.yaml").exists()


def test_request_guard_covers_child_processes(requests: list[bytes]) -> None:
    program = "import urllib.request; urllib.request.urlopen('https://example.org')"
    assert subprocess.run([sys.executable, "-c", program], stderr=subprocess.DEVNULL, check=False).returncode == 1
    assert [request.split()[:2] for request in requests] == [[b"CONNECT", b"example.org:443"]]
    requests.clear()


def test_importing_the_loop_does_not_import_wandb_or_mlflow(configure: Callable[..., Config]) -> None:
    names = ("wandb", "mlflow")
    program = f"import sys, fcos.training.loop; sys.exit(any(name in sys.modules for name in {names}))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
    assert set(names) < LOGGERS.keys()
