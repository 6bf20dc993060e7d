"""Cache of decoded images: batches as without it, shared by processes, and given up where it cannot be used."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from full_disk import files_up_to
from PIL import Image
from processes import in_processes
from tiny_data import config, write_coco

from fcos import cli
from fcos.choices import Cache
from fcos.config import Config
from fcos.data import Annotations, build_test_loader, build_train_loader, load_annotations
from fcos.data.cache import CacheFiles, PixelCache, decoded_bytes, disk_folder
from fcos.data.images import read_pixels
from fcos.distributed import barrier
from fcos.errors import ConfigError, DataError
from fcos.structures import Batch
from fcos.training.loop import train
from fcos.training.prepare import prepare_run

KINDS: list[Cache] = ["ram", "disk"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a data set with a PNG, a rotated JPEG, a grey JPEG, a 12-bit PNG and a palette GIF."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (30, 40, 3), dtype=np.uint8)
    folder = tmp_path / "images"
    folder.mkdir()
    image = Image.fromarray(pixels)
    rotated = Image.Exif()
    rotated[0x0112] = 6
    image.save(folder / "0.png")
    image.save(folder / "1.jpg", exif=rotated)
    image.convert("L").save(folder / "2.jpg")
    Image.fromarray(generator.integers(0, 4096, (40, 30), dtype=np.uint16)).save(folder / "3.png")
    image.convert("P").save(folder / "4.gif")
    names = sorted(path.name for path in folder.iterdir())
    tree = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(names)],
        "annotations": [{"image_id": i, "category_id": 1, "bbox": [1 + i, 2, 10, 12]} for i in range(len(names))],
        "categories": [{"id": 1, "name": "x"}],
    }
    for split in ("train", "val"):
        write_coco(tmp_path, tree, split=split)
    return tmp_path


def settings(root: Path, **options: Any) -> Config:
    data = config(root, short_side=[24, 32], zoom=(0.6, 1.6), color_jitter=0.3, bit_depth=12, **options)
    return Config.model_validate({"data": data.model_dump(), "train": {"batch_size": 3, "seed": 3}})


def annotations_of(root: Path) -> Annotations:
    annotations = load_annotations(settings(root).data, "train")
    assert annotations is not None
    return annotations


@pytest.fixture(params=KINDS)
def files(request: pytest.FixtureRequest, root: Path) -> Iterator[CacheFiles]:
    with closing(CacheFiles(request.param, [annotations_of(root).sizes])) as opened:
        yield opened


@pytest.fixture
def cached(root: Path, files: CacheFiles) -> Annotations:
    return replace(annotations_of(root), cache=files.caches[0])


def batches(config: Config, annotations: Annotations, count: int) -> list[Batch]:
    return [
        *islice(build_train_loader(config, annotations), count),
        *build_test_loader(config, annotations, batch_size=2),
    ]


def assert_same(one: list[Batch], other: list[Batch]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.indices, b.indices)
        assert [o.boxes.tolist() for o in a.targets or ()] == [o.boxes.tolist() for o in b.targets or ()]


def overwrite(path: Path) -> None:
    """Change the content of an image, but neither the size nor the time of its file, so that nobody can notice."""
    status = path.stat()
    path.write_bytes(b"?" * status.st_size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("resize", ["pillow", "torch"])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_without_cache(root: Path, cached: Annotations, resize: str, workers: int) -> None:
    options = settings(root, resize=resize, workers=workers)
    assert_same(batches(options, cached, 8), batches(options, annotations_of(root), 8))


@pytest.mark.parametrize("workers", [0, 2])
def test_each_image_is_decoded_once_by_all_processes(root: Path, cached: Annotations, workers: int) -> None:
    options = settings(root, workers=workers)
    expected = batches(options, cached, 8)
    for path in (root / "images").iterdir():
        overwrite(path)
    assert_same(batches(options, cached, 8), expected)  # with other workers


def read_in_child(cache: PixelCache, path: Path, connection: Any) -> None:
    connection.send(cache.get(0, path, lambda: torch.zeros(3, 30, 40, dtype=torch.uint8)).sum().item())


def test_spawned_process_reads_the_same_file(root: Path, cached: Annotations) -> None:
    expected = cached.read_pixels(0).sum().item()
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=read_in_child, args=(cached.cache, cached.path(0), theirs))
    child.start()
    assert ours.poll(60)
    assert ours.recv() == expected > 0
    child.join()


def test_changed_image_is_decoded_again(root: Path, cached: Annotations) -> None:
    cached.read_pixels(0)
    Image.new("RGB", (40, 30), "red").save(cached.path(0))
    for _ in range(2):
        assert cached.read_pixels(0)[:, 5, 5].tolist() == [255, 0, 0]


def test_caller_may_change_the_pixels(cached: Annotations) -> None:
    expected = cached.read_pixels(0).clone()
    cached.read_pixels(0).zero_()
    assert torch.equal(cached.read_pixels(0), expected)
    assert np.array_equal(np.asarray(cached.open(0)), expected.permute(1, 2, 0).numpy())


def test_deleted_and_unreadable_images_are_errors_as_without_cache(cached: Annotations) -> None:
    cached.read_pixels(0)
    cached.path(0).unlink()
    cached.path(1).write_bytes(b"no image")
    for index, reason in enumerate(("no such file", "not an image")):
        with pytest.raises(DataError, match=reason):
            cached.read_pixels(index)


def test_image_of_another_size_is_not_kept(cached: Annotations) -> None:
    Image.new("RGB", (41, 30), "red").save(cached.path(0))
    for _ in range(2):
        assert cached.read_pixels(0).shape == (3, 30, 41)
    assert torch.equal(cached.read_pixels(1), read_pixels(cached.path(1)))


@pytest.mark.parametrize("workers", [0, 2])
def test_full_disk_is_reported_once_and_changes_no_batch(
    root: Path, cached: Annotations, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    options = settings(root, workers=workers)
    with files_up_to(5000):
        found = batches(options, cached, 8)
    assert_same(found, batches(options, annotations_of(root), 8))
    assert caplog.text.count("warning: data.cache: the cache cannot be used (File too large)") in (1, 2)  # per loader


def test_closed_cache_is_not_used_even_if_its_path_is_that_of_another_file(
    cached: Annotations, files: CacheFiles, tmp_path: Path
) -> None:
    cache = files.caches[0]
    copy = pickle.loads(pickle.dumps(cache))  # that of another process
    expected = cached.read_pixels(0)
    files.close()
    others = [open(tmp_path / f"{i}.txt", "w+b") for i in range(20)]  # noqa: SIM115 (they get the freed descriptors)
    for other in others:
        other.write(b"text")
        other.flush()
    for each in (cache, copy):
        assert torch.equal(each.get(0, cached.path(0), partial(read_pixels, cached.path(0))), expected)
    assert "the cache cannot be used" in copy.take_failure()
    assert copy.take_failure() == cache.take_failure() == ""
    for other in others:
        other.seek(0)
        assert other.read() == b"text"
        other.close()


def test_nothing_remains_on_disk(root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    assert disk_folder() == folder
    with closing(CacheFiles("disk", [annotations_of(root).sizes])) as files:
        replace(annotations_of(root), cache=files.caches[0]).read_pixels(0)
        assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "place", "remedy"),
    [("ram", "available memory", "data.cache=disk"), ("disk", "free disk space in /", "set TMPDIR")],
)
def test_cache_that_takes_too_much_space_is_refused(kind: Cache, place: str, remedy: str) -> None:
    sizes = np.full((1000, 2), 60_000, dtype=np.int32)
    assert decoded_bytes(sizes) == 1000 * 60_000**2 * 3
    with pytest.raises(ConfigError) as error:
        CacheFiles(kind, [sizes, sizes[:3]])
    message = str(error.value)
    assert message.startswith(f"data.cache={kind}: the 1003 decoded images take 10088.5 GiB, more than 50% of the ")
    assert place in message
    assert remedy in message


@pytest.mark.usefixtures("without_report")
def test_training_with_a_cache_gives_the_same_weights(root: Path, tmp_path: Path) -> None:
    weights = []
    for cache in ("null", *KINDS):
        options = [f"data={root}", "data.bit_depth=12", "data.short_side=32", "data.resize=torch", "device=cpu"]
        options += ["train.iterations=6", "train.batch_size=2", "train.eval_every=3", "model.backbone.weights=null"]
        cli_options = [*options, f"output_dir={tmp_path / cache}", f"data.cache={cache}"]
        with pytest.raises(SystemExit) as end:
            cli.main(["train", "fcos_mnv2_small", *cli_options])
        assert not end.value.code
        weights.append(torch.load(tmp_path / cache / "weights/last.pt", weights_only=True)["model"])
    without, *cached = weights
    assert all(torch.equal(other[name], without[name]) for other in cached for name in without)


def read_images(rank: int, _: int, config: Config) -> list[torch.Tensor]:
    """Read the images of a run in this process; process 0 makes the files unreadable before process 1 reads them."""
    with ExitStack() as stack:
        run = prepare_run(config, "fcos", torch.device("cpu"), stack, elapsed=lambda: 0.0)[0]
        assert run.val_data is not None
        if rank == 1:
            barrier()
        images = [data.read_pixels(i) for data in (run.train_data, run.val_data) for i in range(len(data))]
        if rank == 0:
            for path in run.train_data.root.iterdir():
                overwrite(path)
            barrier()
        barrier()  # the file exists as long as process 0 needs it
        return images


@pytest.mark.parametrize("kind", KINDS)
def test_processes_of_a_machine_share_a_cache(root: Path, kind: Cache, tmp_path: Path) -> None:
    options = settings(root, cache=kind).to_dict()
    options["output_dir"] = str(tmp_path / "run")
    options["model"]["backbone"] = {"name": "mobilenet_v2", "weights": None}
    expected = [annotations_of(root).read_pixels(i) for i in range(5)]
    for images in in_processes(2, read_images, tmp_path / "group", Config.model_validate(options)):
        assert all(torch.equal(one, other) for one, other in zip(images, 2 * expected, strict=True))


def test_training_refuses_too_large_a_cache_before_it_creates_a_folder(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fcos.data.cache.available_memory", lambda: 20_000)
    options = settings(root, cache="ram").to_dict()
    options["output_dir"] = str(tmp_path / "run")
    options["model"]["backbone"]["weights"] = None
    with pytest.raises(ConfigError, match="10 decoded images take"):
        train(Config.model_validate(options))
    assert not (tmp_path / "run").exists()
