"""`fcos predict --engine ray`: the parts of a collection, and a run with two worker processes."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import sys
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from detectors import CATEGORY_IDS, NAMES, tiny_config, tiny_detector, tiny_two_stage
from hotcoco import mask as coco_mask
from PIL import Image

from fcos import ConfigError, Detector, cli
from fcos.checkpoint import save_checkpoint
from fcos.export.exported import ExportedModel
from fcos.export.metadata import Metadata
from fcos.export.runtimes import Runtime
from fcos.extras import import_package
from fcos.inference import ray_engine
from fcos.inference.batch_worker import WORKER_COLUMNS, DetectionWorker
from fcos.inference.collection import Part
from fcos.inference.sources import predict_files


def save(detector: Detector, path: Path) -> Path:
    save_checkpoint(path, model=detector.model, config=detector.config, class_names=NAMES, category_ids=CATEGORY_IDS)
    return path


@pytest.fixture
def weights(detector: Detector, tmp_path: Path) -> Path:
    return save(detector, tmp_path / "w.pt")


@pytest.fixture
def shapes() -> Detector:
    """Return a detector with masks and keypoints."""
    torch.manual_seed(0)
    heads = {"mask": {"enabled": True, "conv_channels": [16]}, "keypoints": {"enabled": True, "conv_channels": [16]}}
    config = tiny_config(name="rcnn", **heads)
    return Detector(tiny_two_stage(config), config, class_names=NAMES, category_ids=CATEGORY_IDS)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder with six pictures and a file that is no picture."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(6):
        Image.radial_gradient("L").convert("RGB").resize((64 + 8 * i, 96)).save(folder / f"{i}.png")
    (folder / "broken.png").write_text("no picture")
    return folder


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(["predict", *map(str, words)])
    return int(stop.value.code or 0)


def read(folder: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob("*.parquet"))])


def batch_of(*parts: Part) -> dict[str, np.ndarray]:
    return {"part": np.array([pickle.dumps(part) for part in parts], dtype=object)}


def rows_of(table: pa.Table, name: str) -> list[dict]:
    return [row for row in table.to_pylist() if Path(row["filename"]).name == name]


def assert_same_rows(found: pa.Table, expected: pa.Table, name: str) -> None:
    """Check that the detections of a picture are the same, as far as the rounding of other batches allows."""
    pairs = list(zip(rows_of(found, name), rows_of(expected, name), strict=True))
    assert pairs
    for row, one in pairs:
        for column in ("image_width", "image_height", "class", "category_id"):
            assert row[column] == one[column]
        assert row["score"] == pytest.approx(one["score"], abs=1e-5)
        for side in ("xmin", "ymin", "xmax", "ymax"):
            assert row[side] == pytest.approx(one[side], abs=1e-3)
        assert (row["segmentation"] is None, row["keypoints"] is None) == (
            one["segmentation"] is None,
            one["keypoints"] is None,
        )
        if one["segmentation"] is not None:
            size = [one["image_height"], one["image_width"]]
            mask, other = (coco_mask.decode({"size": size, "counts": r["segmentation"]}) for r in (row, one))
            assert np.mean(mask != other) < 1e-3  # pixels at the border, whose probability is almost 0.5
        if one["keypoints"] is not None:
            assert row["keypoints"] == pytest.approx(one["keypoints"], abs=1e-2)


@pytest.mark.slow  # processes of Ray import torch: nearly a minute of CPU time
@pytest.mark.filterwarnings("ignore")  # Ray uses options that it deprecates
def test_two_workers_give_the_results_of_one_process_and_continue(
    shapes: Detector, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = save(shapes, tmp_path / "w.pt")
    assert run(weights, photos, "--threshold", 0, "--save", "parquet", "--out", tmp_path / "one") == 1
    expected = read(tmp_path / "one")
    files = sorted(photos.glob("?.png"))
    with tarfile.open(tmp_path / "a.tar", "w") as shard:
        for path in files[:2]:
            shard.add(path, path.name)
    images = [path.read_bytes() for path in files[2:4]]
    pq.write_table(pa.table({"image": images, "filename": [path.name for path in files[2:4]]}), tmp_path / "b.parquet")
    for path in files[:4]:
        path.unlink()

    sources, out = (photos, tmp_path / "a.tar", tmp_path / "b.parquet"), tmp_path / "out"
    options = ("--threshold", 0, "--engine", "ray", "--workers", 2, "--out", out)
    capsys.readouterr()
    assert run(weights, *sources, *options) == 1
    output = capsys.readouterr()
    detections = sum(row["score"] is not None for row in expected.to_pylist())
    assert output.out == f"7 images: {detections} detections -> {out}\n"
    assert output.err.splitlines() == [
        f"fcos: {photos / 'broken.png'}: not an image, or the start of the file is damaged"
    ]

    found = read(out)
    assert found.schema.names == list(WORKER_COLUMNS)
    assert found.schema.remove(found.schema.get_field_index("error")).equals(expected.schema)
    for path in files:
        assert_same_rows(found, expected, path.name)
    (failure,) = rows_of(found, "broken.png")
    assert (failure["score"], failure["error"]) == (None, output.err.removeprefix("fcos: ").strip())

    states = {path: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    lost = next(path for path in states if path.name.startswith("shard-a.tar"))
    lost.unlink()  # as if the run had been killed before this part was complete
    Image.radial_gradient("L").convert("RGB").save(photos / "new.png")
    assert run(weights, *sources, *options) == 1
    again = capsys.readouterr()
    assert (again.out.partition(":")[0], again.err) == ("4 images", output.err)
    kept = [path for path in states if path.name.startswith("shard-") and path != lost]
    assert [path.stat().st_mtime_ns for path in kept] == [states[path] for path in kept]
    again = read(out)
    assert len(rows_of(again, "new.png")) > 0
    names = [path.name for path in [*files, photos / "broken.png"]]
    assert [len(rows_of(again, name)) for name in names] == [len(rows_of(found, name)) for name in names]
    assert not list(out.glob(".*.tmp"))
    ray, usage = sys.modules["ray"], import_package("ray._common.usage.usage_lib")
    assert not ray.is_initialized()
    assert not usage.usage_stats_enabled()


class LocalRay(SimpleNamespace):
    """Ray with one worker in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(exceptions=SimpleNamespace(RayError=ZeroDivisionError))
        context = SimpleNamespace(get_current=SimpleNamespace)
        self.data = SimpleNamespace(DataContext=context, ActorPoolStrategy=SimpleNamespace, from_items=self.from_items)
        for name, module in (("ray", self), ("ray.data", self.data)):
            monkeypatch.setitem(sys.modules, name, module)

    def is_initialized(self) -> bool:
        return True

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 1.0}

    def from_items(self, rows: list[dict[str, bytes]], **_: object) -> LocalRay:
        self.rows = rows
        return self

    def map_batches(self, function: type, *, fn_constructor_args: tuple[object, ...], **_: object) -> LocalRay:
        self.call = function(*fn_constructor_args)
        return self

    def iter_rows(self) -> Iterator[dict[str, object]]:
        for row in self.rows:
            results = self.call({"part": np.array([row["part"]], dtype=object)})
            yield {name: values[0] for name, values in results.items()}


def collect(*sources: Path, out: Path) -> tuple[int, int, list[str]]:
    """Run with one worker, and return the numbers of images and failures, and the messages."""
    messages: list[str] = []
    worker = DetectionWorker(tiny_detector, threshold=0.5, threads=None)
    done = ray_engine.predict_collection(worker, list(map(str, sources)), out, report=messages.append)
    return done.num_images, done.num_failed, messages


REASON = "not an image, or the start of the file is damaged"


def test_failed_pictures_are_tried_again(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LocalRay(monkeypatch)
    good, *broken = (photos / name for name in ("0.png", "broken.png", "other.png"))
    broken[1].write_text("no picture")
    failures = (2, [f"{path}: {REASON}" for path in broken])
    out = tmp_path / "out"
    assert collect(good, *broken, out=out) == (3, *failures)
    first = read(out)
    assert collect(good, *broken, out=out) == (2, *failures)
    key = [("filename", "ascending"), ("score", "ascending")]
    assert read(out).sort_by(key).equals(first.sort_by(key))

    shutil.copy(good, broken[0])
    assert collect(good, broken[0], out=out) == (1, 0, [])
    scores = {path: [row["score"] for row in rows_of(read(out), path.name)] for path in (good, *broken)}
    assert scores[broken[0]] == scores[good] != []
    assert scores[broken[1]] == [None]  # was not among the sources


def test_failures_in_shards_are_reported_again(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LocalRay(monkeypatch)
    images = [(photos / name).read_bytes() for name in ("0.png", "broken.png")]
    shard, broken, out = tmp_path / "a.parquet", tmp_path / "b.parquet", tmp_path / "out"
    pq.write_table(pa.table({"image": images}), shard)
    pq.write_table(pa.table({"image": [b"a", b"b"]}), broken)
    failures = [f"{broken}/{i}: {REASON}" for i in range(2)]
    assert collect(shard, broken, out=out) == (4, 3, [f"{shard}/1: {REASON}", *failures])
    (part,) = out.glob("shard-a.parquet-*")
    message = f"{shard}/1: {REASON} (in an earlier run; to try it again, delete {part})"
    assert collect(shard, out=out) == (0, 1, [message])
    assert collect(broken, out=out) == (2, 2, failures)  # done again, as nothing of it succeeded


def test_masks_and_keypoints_of_a_part_are_those_of_one_process(shapes: Detector, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    predict_files(shapes, [str(photos)], tmp_path / "one", threshold=0.0, save=["parquet"], report=lambda _: None)
    expected = read(tmp_path / "one")
    worker = DetectionWorker(lambda: shapes, threshold=0.0, threads=None)
    files = [str(path) for path in sorted(photos.glob("?.png"))]
    ray_engine.PartWriter(worker, str(out), "{}", os.getcwd())(batch_of(*ray_engine.divide(files, {}, num_workers=1)))
    for path in files:
        assert_same_rows(read(out), expected, Path(path).name)
    assert {row["segmentation"] is None for row in rows_of(expected, "0.png")} == {False}
    assert {len(row["keypoints"]) for row in rows_of(expected, "0.png")} == {3 * 17}


def test_a_part_is_complete_or_missing(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = DetectionWorker(tiny_detector, threshold=0.0, threads=None)
    parts = ray_engine.divide([str(path) for path in sorted(photos.iterdir())], {}, num_workers=1)
    assert len(parts) == 4
    write = ray_engine.PartWriter(worker, str(tmp_path / "out"), "{}", os.getcwd())
    (tmp_path / "out").mkdir()

    def interrupt(_batch: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(write, "_worker", interrupt)
        with pytest.raises(KeyboardInterrupt):
            write(batch_of(parts[0]))
    assert list((tmp_path / "out").iterdir()) == []
    assert write(batch_of(parts[0], parts[3]))["images"].tolist() == [2, 1]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted([parts[0].name, parts[3].name])


def test_relative_paths_start_from_the_folder_of_the_command(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.chdir("/")  # as a worker of a cluster
    worker = DetectionWorker(tiny_detector, threshold=0.0, threads=None)
    write = ray_engine.PartWriter(worker, str(out), "{}", str(tmp_path))
    written = write(batch_of(Part("images-0.parquet", (f"{photos.name}/0.png",))))
    assert (written["images"].tolist(), written["errors"].tolist()) == ([1], ["[]"])


def test_a_damaged_shard_is_a_row_with_an_error(photos: Path, tmp_path: Path) -> None:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as shard:
        for path in sorted(photos.glob("?.png")):
            shard.add(path, path.name)
    shard = tmp_path / os.fsdecode(b"\xff.tar")
    shard.write_bytes(content.getvalue()[:3000])
    worker = DetectionWorker(tiny_detector, threshold=0.0, threads=None)
    write = ray_engine.PartWriter(worker, str(tmp_path), "{}", os.getcwd())
    parts = ray_engine.divide([str(shard)], {}, num_workers=1)
    (error,) = json.loads(write(batch_of(*parts))["errors"][0])
    assert error.startswith(f"{shard}: cannot be read")
    (failure,) = rows_of(read(tmp_path), "\\udcff.tar")
    assert failure["error"].startswith(f"{tmp_path}/\\udcff.tar: cannot be read")


class TestMistakes:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--save", "images,parquet"], "--save: not possible with --engine ray, which writes Parquet files"),
            (["--json", "--track"], "--json, --track: not possible"),
            (["--watch"], "--watch: not possible"),
            (["--workers", "0"], "--workers: expected an integer of at least 1"),
        ],
    )
    def test_other_options_are_refused(
        self, photos: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run("w.pt", photos, "--engine", "ray", *options) == 2
        assert message in capsys.readouterr().err

    def test_workers_need_the_engine(self, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("w.pt", photos, "--workers", 2) == 2
        assert "--workers: only --engine ray" in capsys.readouterr().err
        assert run("w.pt", photos, "--engine", "spark") == 2
        assert "--engine: expected one of local, ray, found 'spark'" in capsys.readouterr().err

    def test_ray_may_be_missing(
        self,
        weights: Path,
        photos: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setitem(sys.modules, "ray", None)
        assert run(weights, photos, "--engine", "ray", "--out", tmp_path / "out") == 2
        assert capsys.readouterr().err == ('fcos: --engine ray needs Ray Data; type: pip install "fcos-vision[ray]"\n')
        assert not (tmp_path / "out").exists()

    def test_results_of_other_options_are_not_mixed(
        self, weights: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "out"
        run(weights, photos, "--save", "parquet", "--out", out)
        capsys.readouterr()
        assert run(weights, photos, "--engine", "ray", "--out", out) == 2
        assert "predictions.parquet: was written with other weights or options" in capsys.readouterr().err

    def test_settings_contain_all_that_changes_the_result(self) -> None:
        def describe(**options: object) -> str:
            return ray_engine._describe(DetectionWorker(partial(tiny_detector), threads=None, **options))  # type: ignore[arg-type]

        assert describe() == describe()
        assert describe(threshold=0.5) != describe()

    def test_settings_of_exported_files_contain_their_weights(self) -> None:
        def load(weights: str) -> Detector:
            config = tiny_detector().config
            metadata = Metadata(config, NAMES, CATEGORY_IDS, weights_sha256=weights)
            runtime = cast("Runtime", SimpleNamespace(metadata=metadata.to_texts({})))
            return Detector(ExportedModel(runtime, metadata), config, class_names=NAMES, category_ids=CATEGORY_IDS)

        a, b = (ray_engine._describe(DetectionWorker(partial(load, weights), threads=None)) for weights in "ab")
        assert a != b

    def test_pictures_in_the_output_folder(
        self, weights: Path, photos: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(weights, photos, "--engine", "ray", "--out", photos) == 2
        assert "the input images are in this folder" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("address", "error", "message"),
        [
            (
                "host:1",
                ConnectionError("Failed to connect to Ray cluster at host:1\nand more"),
                "cluster at host:1; check RAY_ADDRESS, and set RAY_AUTH_MODE=token",
            ),
            (
                "",
                Exception("The current node timed out during startup."),
                "cannot be started: The current node timed out",
            ),
        ],
        ids=["a cluster that cannot be reached", "processes that start too slowly"],
    )
    def test_failed_starts_are_explained(
        self, monkeypatch: pytest.MonkeyPatch, address: str, error: Exception, message: str
    ) -> None:
        def init(**_: object) -> None:
            raise error

        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        if address:
            monkeypatch.setenv("RAY_ADDRESS", address)
        monkeypatch.setenv("RAY_BACKEND_LOG_LEVEL", "fatal")
        ray = SimpleNamespace(is_initialized=lambda: False, init=init)
        with pytest.raises(ConfigError, match=message), ray_engine._connection(ray):
            pass

    def test_a_cluster_that_is_too_small(self) -> None:
        assert ray_engine._share({"CPU": 4.0}, None) == (4, {"num_cpus": 1})
        assert ray_engine._share({"CPU": 16.0, "GPU": 2.0}, None) == (2, {"num_gpus": 1})
        with pytest.raises(ConfigError, match="--workers: expected at most 2, as Ray has 2 GPUs, found 3"):
            ray_engine._share({"CPU": 16.0, "GPU": 2.0}, 3)
        with pytest.raises(ConfigError, match="Ray has no CPUs"):
            ray_engine._share({"memory": 1e9}, None)
