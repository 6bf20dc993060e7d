"""Detection in large collections with Ray: several processes or machines, which write Parquet files."""

from __future__ import annotations

import json
import logging
import os
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ConfigError, DataError, FCOSError
from ..extras import import_package
from ..files import explain_write_errors, remove_old_temporaries, replaced
from ..formatting import plural
from .batch_worker import WORKER_COLUMNS, DetectionWorker
from .collection import PICTURES, Part, divide, find_files, read_part, shard_prefix
from .frames import Source
from .paths import is_shard
from .sources import prepare_folder
from .writers.tables import parquet_schema, to_unicode

if TYPE_CHECKING:
    import pyarrow

log = logging.getLogger(__name__)

_SETTINGS, _STATE = b"fcos", b"state"  # keys in the metadata of the files
Failures = dict[str, dict[str, str]]
"""Messages of failures by picture, by name of the part."""
_TRIES = 2  # more than one, because a machine may fail; few, because a picture may end its process


@dataclass
class Collected:
    """Result of `predict_collection`.

    Attributes:
        num_images: number of pictures, also failed ones, of this run.
        num_detections: number of their detections.
        num_failed: number of failures: pictures, shards and sources that do not exist.
        is_continued: whether an earlier run finished parts or pictures, which are not done again.
    """

    num_images: int = 0
    num_detections: int = 0
    num_failed: int = 0
    is_continued: bool = False


def predict_collection(
    worker: DetectionWorker,
    sources: Sequence[str],
    out: Path,
    *,
    num_workers: int | None = None,
    report: Callable[[str], None],
    progress: Callable[[int, int | None], None] | None = None,
) -> Collected:
    """Detect objects in a collection with Ray Data. A failure does not stop the others.

    Every part of the collection becomes a Parquet file with the columns `WORKER_COLUMNS`, which appears when it is
    complete. Parts whose files exist are not done again. Exceptions are pictures in files of their own that failed, and
    parts of shards without a success; other failures in shards are reported again. All machines of a cluster must reach
    the same files.

    Args:
        worker: the detector and its options.
        sources: pictures, Parquet files, tar shards, folders of them, and globs, see `find_files`.
        out: output folder, created if it is missing.
        num_workers: number of processes with a model each; None: one per GPU of the cluster, or per CPU without GPUs.
        report: callback that receives the message of every failure.
        progress: callback that receives the number of finished parts and their total.

    Raises:
        ConfigError: Ray is not installed, a source is a video, the cluster is too small, or an option is wrong.
        DataError: none of the sources exists, `out` contains other files or the pictures to read, or a shard has
            changed since an earlier run.
        WriteError: `out` cannot be created.
    """
    ray = _import_ray()
    files, messages = find_files(sources)
    if not files:
        raise DataError("\n".join(messages))
    settings = _describe(worker)  # finds mistakes before anything is written
    prepare_folder(out, [Source(path, "picture") for path in files], ["parquet"])
    remove_old_temporaries(out)
    finished, failed = _find_finished(out, settings)
    messages += _failures_in_shards(files, out, failed)
    collected = Collected(num_failed=len(messages), is_continued=bool(finished))
    for message in messages:
        report(message)
    with _connection(ray):
        count, resources = _share(ray.cluster_resources(), num_workers)
        parts = divide(files, finished, num_workers=count)
        _drop_failures(files, out, failed)
        if progress is not None:
            progress(0, len(parts))
        missing = {part.name: part for part in parts}
        constructor_args = (worker, os.path.abspath(out), settings, os.getcwd())
        for done, row in enumerate(_run(ray, parts, constructor_args, count, resources), start=1):
            missing.pop(row["name"])
            collected.num_images += row["images"]
            collected.num_detections += row["detections"]
            errors = json.loads(row["errors"])
            collected.num_failed += len(errors)
            for error in errors:
                report(error)
            if progress is not None:
                progress(done, len(parts))
    for part in missing.values():
        collected.num_failed += 1
        report(f"{part.where}: the worker process ended; try it again with fewer workers (--workers)")
    return collected


def _import_ray() -> Any:
    try:
        import pyarrow  # noqa: F401

        ray = import_package("ray")
        import_package("ray.data")
    except ImportError:
        raise ConfigError('--engine ray needs Ray Data; type: pip install "fcos-vision[ray]"') from None
    return ray


def _describe(worker: DetectionWorker) -> str:
    """Return all that the detections of a picture depend on, as text.

    Raises:
        WeightsError: the detector is untrained.
        ConfigError: an option is wrong.
    """
    from ..export.exported import ExportedModel
    from ..export.metadata import hash_weights

    worker({"image": np.empty(0, dtype=object)})
    detector, model = worker.detector, worker.detector.model
    del worker.detector  # the workers load their own
    return json.dumps(
        {
            # An exported file has no tensors, but the hash of the weights and its precision in the metadata.
            "weights": dict(model.runtime.metadata) if isinstance(model, ExportedModel) else hash_weights(model),
            "config": detector.config.to_dict(),
            "classes": list(detector.class_names),
            "thresholds": detector.thresholds.tolist(),
            "options": worker.options,
        },
        default=str,
    )


def _find_finished(out: Path, settings: str) -> tuple[dict[str, str], Failures]:
    """Return the states of finished parts by name, see `Part`, also the names of finished pictures; and the failures.

    Raises:
        DataError: a Parquet file in the folder does not belong to this collection.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    finished: dict[str, str] = {}
    failed: Failures = {}
    for path in sorted(out.glob("*.parquet")):
        try:
            with pq.ParquetFile(path) as file:
                metadata = file.schema_arrow.metadata or {}
                is_same = metadata.get(_SETTINGS) == settings.encode()
                columns = file.read(["filename", "error"]).to_pydict() if is_same else {}
        except (OSError, pa.ArrowException):
            is_same, metadata, columns = False, {}, {}
        if not is_same:
            raise DataError(
                f"{path}: was written with other weights or options, or by another program; choose another folder"
                " (--out), or delete the file"
            )
        rows = list(zip(columns["filename"], columns["error"], strict=True))
        successes = {name for name, error in rows if error is None}
        if path.name.startswith(PICTURES):
            finished |= dict.fromkeys(successes, "")
        if path.name.startswith(PICTURES) or successes or not rows:
            finished[path.name] = metadata.get(_STATE, b"").decode()
            failed[path.name] = {name: error for name, error in rows if error is not None}
    return finished, failed


def _failures_in_shards(files: Sequence[str], out: Path, failed: Failures) -> list[str]:
    """Return the messages of an earlier run about pictures in shards, which are not tried again."""
    prefixes = {shard_prefix(path) for path in files if is_shard(path)}
    return [
        f"{message} (in an earlier run; to try it again, delete {out / part})"
        for part, messages in failed.items()
        if f"{part.rpartition('-')[0]}-" in prefixes
        for message in messages.values()
    ]


def _drop_failures(files: Sequence[str], out: Path, failed: Failures) -> None:
    """Remove the rows of failed pictures that are tried again, so that each picture has one result.

    Raises:
        WriteError: the disk is full or not writable.
    """
    import pyarrow.parquet as pq

    again = {to_unicode(path) for path in files if not is_shard(path)}
    for part, messages in failed.items():
        if not part.startswith(PICTURES) or again.isdisjoint(messages):
            continue
        table = pq.read_table(out / part)
        rows = zip(table["filename"].to_pylist(), table["error"].to_pylist(), strict=True)
        kept = table.filter([error is None or name not in again for name, error in rows])
        with explain_write_errors(out / part):
            if not kept.num_rows:
                (out / part).unlink()
                continue
            with replaced(out / part) as temporary:
                pq.write_table(kept, temporary)


@contextmanager
def _connection(ray: Any) -> Iterator[None]:
    """Connect to the cluster of RAY_ADDRESS, or start Ray on this machine; an existing connection is kept."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # otherwise, C++ code writes advice to the terminal
    try:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray raises a plain Exception if its processes start too slowly
        hint = "; check RAY_ADDRESS, and set RAY_AUTH_MODE=token if the cluster has a token"
        reason = str(error).partition("\n")[0] + (hint if "RAY_ADDRESS" in os.environ else "")
        raise ConfigError(f"--engine ray: Ray cannot be started: {reason}") from None
    try:
        yield
    finally:
        ray.shutdown()


def _share(available: dict[str, float], num_workers: int | None) -> tuple[int, dict[str, float]]:
    """Return the number of workers and the resources of each.

    Raises:
        ConfigError: the cluster has too few GPUs or CPUs. Ray would wait for more.
    """
    kind = "GPU" if available.get("GPU", 0) >= 1 else "CPU"
    most = int(available.get(kind, 0))
    if not most:
        raise ConfigError("--engine ray: Ray has no CPUs; start it with at least one (ray start --num-cpus)")
    if num_workers is not None and num_workers > most:
        raise ConfigError(f"--workers: expected at most {most}, as Ray has {plural(most, kind)}, found {num_workers}")
    return num_workers or most, {"num_gpus": 1} if kind == "GPU" else {"num_cpus": 1}


def _run(
    ray: Any,
    parts: Sequence[Part],
    constructor_args: tuple[Any, ...],
    num_workers: int,
    resources: Mapping[str, float],
) -> Iterator[dict[str, Any]]:
    """Yield the row of every part, see `PartWriter`, in any order; there is none if the process of a part ended.

    Raises:
        ConfigError: the workers cannot be started, or the connection to the cluster is lost.
    """
    if not parts:
        return
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.max_errored_blocks = -1  # goes on after a failure
    context.execution_no_progress_timeout_s = -1  # a large shard may take hours
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    # A block per part, so that the workers share them. Blocks in memory need no process that reads them.
    rows = [{"part": pickle.dumps(part)} for part in parts]
    data = ray.data.from_items(rows, override_num_blocks=len(rows))
    # A waiting part would be lost with the one that ends the process, and could not go to another worker.
    pool = ray.data.ActorPoolStrategy(size=min(num_workers, len(rows)), max_tasks_in_flight_per_actor=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `max_task_retries` is deprecated, see pyproject.toml
        results = data.map_batches(
            PartWriter,
            fn_constructor_args=constructor_args,
            batch_size=1,
            compute=pool,
            max_task_retries=_TRIES - 1,
            **resources,
        )
    try:
        yield from results.iter_rows()
    except ray.exceptions.RayError as error:
        raise ConfigError(f"--engine ray: {_last_line(error)}") from error


class PartWriter:
    """Detects objects in parts of a collection, and writes a file for each. Ray starts it in every worker process.

    Args:
        worker: the detector and its options.
        out: output folder, an absolute path.
        settings: text for the metadata of the files.
        folder: folder that relative paths of weights and pictures start from; workers of a cluster start elsewhere.
    """

    def __init__(self, worker: DetectionWorker, out: str, settings: str, folder: str) -> None:
        self._worker = worker
        self._out = Path(out)
        self._settings = settings
        os.chdir(folder)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Write the files of parts.

        Args:
            batch: column `part`, pickled parts.

        Returns:
            Columns `name`, `images` (number), `detections` (number) and `errors` (JSON list of messages).
        """
        rows = [self._write(pickle.loads(part)) for part in batch["part"]]
        return {column: np.array([row[column] for row in rows]) for column in rows[0]}

    def _write(self, part: Part) -> dict[str, Any]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        path, num_images, num_detections, errors = self._out / part.name, 0, 0, []
        schema = _part_schema({_SETTINGS: self._settings, _STATE: part.state})
        try:
            with (
                explain_write_errors(path),
                replaced(path) as temporary,
                pq.ParquetWriter(temporary, schema) as file,
            ):
                try:
                    for batch in read_part(part):
                        columns = self._worker(batch)
                        file.write_table(pa.table(columns, schema=schema))
                        num_images += len(batch["image"])
                        num_detections += sum(score is not None for score in columns["score"])
                        errors += [error for error in columns["error"] if error is not None]
                except DataError as error:  # of the shard
                    errors.append(str(error))
                    row = {"filename": to_unicode(part.where), "error": to_unicode(str(error))}
                    file.write_table(pa.Table.from_pylist([dict.fromkeys(WORKER_COLUMNS) | row], schema=schema))
        except FCOSError as error:  # the disk is full
            errors.append(str(error))
        except Exception as error:  # the other parts are still done
            log.exception("%s", part.where)  # in the log of Ray's worker
            errors.append(f"{part.where}: {type(error).__name__}: {error}")
        return {
            "name": part.name,
            "images": num_images,
            "detections": num_detections,
            "errors": json.dumps(errors),
        }


def _last_line(error: Exception) -> str:
    """Return the last line of the message of Ray, which contains tracebacks."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _part_schema(metadata: Mapping[bytes, str]) -> pyarrow.Schema:
    """Return the columns `WORKER_COLUMNS` with their types."""
    import pyarrow as pa

    return parquet_schema().append(pa.field("error", pa.string())).with_metadata(metadata)
