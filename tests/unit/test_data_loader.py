from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import SECONDS
from tiny_data import config, write_coco, write_images

from fcos.config import Config, DataConfig, TrainConfig
from fcos.data import Annotations, build_test_loader, build_train_loader, dataset, load_annotations
from fcos.data.augmentations import augmentation_strength
from fcos.data.dataset import Sample
from fcos.data.images import open_rgb
from fcos.data.loader import collate
from fcos.data.samplers import endless_batches, permutation, seeded_batches, shard
from fcos.errors import DataError
from fcos.structures import Batch, Objects

PROGRAM = Path(__file__).parents[1] / "helpers/programs/interrupted_loader.py"
SIZES = {f"{i}.png": (40, 30) if i % 3 else (30, 40) for i in range(11)}


def _settings(root: Path, *, batch_size: int = 4, **options: Any) -> Config:
    options = {"short_side": [24, 32], **options}
    return Config(data=config(root, **options), train=TrainConfig.model_validate({"batch_size": batch_size, "seed": 3}))


@pytest.fixture
def data(tmp_path: Path) -> tuple[Path, Annotations]:
    tree = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(SIZES)],
        "annotations": [
            {"image_id": i, "category_id": 1, "bbox": [1 + k, 2, 10 + i, 12]} for i in range(11) for k in range(i % 4)
        ],
        "categories": [{"id": 1, "name": "x"}, {"id": 2, "name": "y"}],
    }
    write_coco(tmp_path, tree)
    write_images(tmp_path / "images", SIZES)
    annotations = load_annotations(config(tmp_path), "train")
    assert annotations is not None
    return tmp_path, annotations


def _first(batches: Any, count: int) -> list[Batch]:
    return list(islice(iter(batches), count))


def _equal(one: Sequence[Batch], other: Sequence[Batch]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(x, y)
        for a, b in zip(one, other, strict=True)
        for x, y in zip(_tensors(a), _tensors(b), strict=True)
    )


def _tensors(batch: Batch) -> list[torch.Tensor]:
    columns = ((objects.boxes, objects.labels, objects.is_crowd) for objects in batch.targets or ())
    return [batch.images, batch.sizes, batch.indices, *chain.from_iterable(columns)]


def _sample(height: int, width: int, boxes: int, index: int = 0) -> Sample:
    corners = torch.arange(boxes)[:, None] + torch.tensor([[0.0, 0.0, 2.0, 2.0]])
    return Sample(
        torch.full((3, height, width), 7, dtype=torch.uint8),
        Objects(corners, torch.arange(boxes), torch.ones(boxes).bool()),
        index,
    )


def test_images_are_zero_padded_at_the_right_and_bottom() -> None:
    batch = collate([_sample(30, 40, 2, 5), _sample(33, 20, 0, 6)], size_divisor=32)
    assert batch.images.shape == (2, 3, 64, 64)
    assert batch.sizes.tolist() == [[30, 40], [33, 20]]
    assert (batch.images[0, :, :30, :40] == 7).all()
    assert batch.images[0].sum() == 7 * 3 * 30 * 40
    assert batch.indices.tolist() == [5, 6]
    assert batch.targets is not None
    assert [objects.labels.tolist() for objects in batch.targets] == [[0, 1], []]
    assert [objects.is_crowd.tolist() for objects in batch.targets] == [[True, True], []]


def test_batches_do_not_depend_on_the_number_of_workers(data: tuple[Path, Annotations]) -> None:
    root, annotations = data
    alone = _first(build_train_loader(_settings(root), annotations), 7)
    assert _equal(alone, _first(build_train_loader(_settings(root, workers=2), annotations), 7))


def test_start_iteration_continues_the_same_batches(data: tuple[Path, Annotations]) -> None:
    root, annotations = data
    whole = _first(build_train_loader(_settings(root), annotations), 12)
    resumed = _first(build_train_loader(_settings(root), annotations, start_iteration=7), 5)
    assert _equal(whole[7:], resumed)


def test_ranks_split_the_batches_of_a_single_process(data: tuple[Path, Annotations]) -> None:
    root, annotations = data
    alone = _first(build_train_loader(_settings(root), annotations), 4)
    parts = [_first(build_train_loader(_settings(root), annotations, rank=rank, world_size=3), 4) for rank in range(3)]
    for whole, *shares in zip(alone, *parts, strict=True):
        assert torch.cat([share.indices for share in shares]).tolist() == whole.indices.tolist()
        assert torch.cat([share.sizes for share in shares]).tolist() == whole.sizes.tolist()
        assert {len(share.indices) for share in shares} == {1, 2}


def test_seeds_change_image_order_and_image_seeds() -> None:
    seeds = [list(islice(seeded_batches(20, np.zeros(20, int), 4, seed=seed), 20)) for seed in (0, 1)]
    assert [d.index for batch in seeds[0] for d in batch] != [d.index for batch in seeds[1] for d in batch]
    assert len({d.seed for batches in seeds for batch in batches for d in batch}) == 160


def test_strength_of_a_batch_changes_neither_its_images_nor_their_seeds() -> None:
    batches = [*islice(seeded_batches(20, np.zeros(20, int), 4, seed=0, strength=lambda k: k / 15), 15)]
    assert [[image.strength for image in batch] for batch in batches] == [[k / 15] * 4 for k in range(15)]
    plain = [*islice(seeded_batches(20, np.zeros(20, int), 4, seed=0), 15)]
    assert [[image[:2] for image in batch] for batch in batches] == [[image[:2] for image in batch] for batch in plain]
    assert {image.strength for batch in plain for image in batch} == {1.0}
    resumed = next(seeded_batches(20, np.zeros(20, int), 4, seed=0, strength=lambda k: k / 15, start_iteration=9))
    assert resumed == batches[9]


def test_warmup_begins_with_flips_only_and_ends_with_the_full_augmentation(data: tuple[Path, Annotations]) -> None:
    root, annotations = data
    strong = {"zoom": [0.5, 2.0], "color_jitter": 0.4}
    # 2 classes: batch 3, after 12 images, is the first one at full strength.
    warm = _first(build_train_loader(_settings(root, **strong, augmentation_warmup=6), annotations), 5)
    flips, full = (_first(build_train_loader(_settings(root, **options), annotations), 5) for options in ({}, strong))
    assert _equal(warm[:1], flips[:1])
    assert _equal(warm[3:], full[3:])
    for others in (flips, full):
        assert not any(_equal([warm[k]], [others[k]]) for k in (1, 2))


def test_augmentations_fade_until_the_end_of_the_run(data: tuple[Path, Annotations]) -> None:
    root, annotations = data
    strong = {"zoom": [0.5, 2.0], "color_jitter": 0.4}
    flips, full = (_first(build_train_loader(_settings(root, **options), annotations), 8) for options in ({}, strong))
    settings = _settings(root, **strong, augmentation_fade=12)  # 2 classes, batches of 4: full strength from 6 batches
    fading = _first(build_train_loader(settings, annotations, total=lambda: 6), 8)
    assert _equal(fading[:1], full[:1])
    assert _equal(fading[6:], flips[6:])  # batches that are loaded in advance
    for others in (flips, full):
        assert not any(_equal([fading[k]], [others[k]]) for k in range(1, 6))
    endless = _first(build_train_loader(settings, annotations), 8)
    assert _equal(endless, full)


@pytest.mark.parametrize(
    ("options", "seen", "total", "strength"),
    [
        ({}, 0, 100, 1),
        ({}, 100, 100, 1),
        ({"augmentation_fade": 600}, 0, math.inf, 1),
        ({"augmentation_fade": 600}, 0, 1200, 1),
        ({"augmentation_fade": 600}, 300, 1200, 0.75),
        ({"augmentation_fade": 600}, 1300, 1200, 0),
        ({"augmentation_fade": 600}, 0, 200, 1 / 3),  # a short run
        ({"augmentation_fade": 600}, 50, 200, 1 / 4),
        ({"augmentation_warmup": 300}, 150, 600, 0.5),
        ({"augmentation_warmup": 300}, 450, 600, 1),
        ({"augmentation_warmup": 300, "augmentation_fade": 600}, 150, 600, 0.5 * 0.75),
    ],
)
def test_strength_depends_on_the_images_per_class(
    options: dict[str, float], seen: float, total: float, strength: float
) -> None:
    assert augmentation_strength(seen, total, DataConfig.model_validate(options)) == pytest.approx(strength)


def test_every_image_is_used_equally_often() -> None:
    batches = islice(seeded_batches(11, np.arange(11) % 2, 4, seed=0), 110)
    counts = Counter(image.index for batch in batches for image in batch)
    assert len(counts) == 11
    assert max(counts.values()) - min(counts.values()) <= 2


def test_batches_are_full_and_contain_one_group() -> None:
    groups = (np.arange(20) < 3).astype(int)
    for batch in islice(endless_batches(cycle([np.arange(20)]), groups, 6), 40):
        assert len(batch) == 6
        assert len({groups[index] for index in batch}) == 1


def _reference_batches(orders: Iterable[np.ndarray], groups: np.ndarray, batch_size: int) -> Iterator[list[int]]:
    """Yield the same batches as `endless_batches`, computed image by image."""
    left: list[int] = []
    for order in orders:
        growing: dict[int, list[tuple[int, int]]] = {}  # by group: (position in the epoch, image)
        full = []
        for entry in enumerate([*left, *order.tolist()]):
            batch = growing.setdefault(int(groups[entry[1]]), [])
            batch.append(entry)
            if len(batch) == batch_size:
                full.append(growing.pop(int(groups[entry[1]])))
        for batch in sorted(full):
            yield [image for _, image in batch]
        left = [image for batch in sorted(growing.values()) for _, image in batch]


@pytest.mark.parametrize(
    ("images", "number_of_groups", "batch_size"), [(50, 5, 7), (3, 2, 8), (1, 1, 1), (64, 1, 16), (5, 2, 70)]
)
def test_endless_batches_match_a_reference_implementation(images: int, number_of_groups: int, batch_size: int) -> None:
    groups = np.arange(images) * 7919 % number_of_groups
    orders = [permutation(images, epoch) for epoch in range(60)]
    expected = list(_reference_batches(orders, groups, batch_size))
    assert list(endless_batches(orders, groups, batch_size)) == expected
    for start in (1, len(expected) // 2, len(expected) - 1, len(expected)):
        assert list(endless_batches(orders, groups, batch_size, start=start)) == expected[start:]


def test_small_dataset_fills_a_batch_with_repeated_images() -> None:
    (batch,) = islice(seeded_batches(3, np.zeros(3, int), 8, seed=0), 1)
    assert Counter(image.index for image in batch).most_common()[0][1] == 3
    assert len({image.seed for image in batch}) == 8


def test_training_batches_have_one_orientation_if_grouped_by_aspect(data: tuple[Path, Annotations]) -> None:
    root, annotations = data
    for batch in _first(build_train_loader(_settings(root, batch_size=3), annotations), 12):
        assert len({height >= width for height, width in batch.sizes.tolist()}) == 1
    mixed = _first(build_train_loader(_settings(root, batch_size=3, group_by_aspect=False), annotations), 12)
    assert any(len({height >= width for height, width in batch.sizes.tolist()}) == 2 for batch in mixed)


def test_shards_cover_every_item_once() -> None:
    for length in range(9):
        parts = [shard(range(length), rank, 4) for rank in range(4)]
        assert [item for part in parts for item in part] == list(range(length))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("workers", [0, 2])
def test_test_loader_yields_each_image_once_in_batches_of_one_size(
    world_size: int, workers: int, data: tuple[Path, Annotations]
) -> None:
    root, annotations = data
    settings = _settings(root, workers=workers)
    batches = [
        batch
        for rank in range(world_size)
        for batch in build_test_loader(settings, annotations, batch_size=3, rank=rank, world_size=world_size)
    ]
    assert sorted(index for batch in batches for index in batch.indices.tolist()) == list(range(11))
    for batch in batches:
        assert len(batch.images) <= 3
        assert batch.targets is None
        padded = {tuple(-(-side // 32) for side in size) for size in batch.sizes.tolist()}
        assert len(padded) == 1


def test_rank_without_images_gets_no_test_batches(data: tuple[Path, Annotations]) -> None:
    root, annotations = data
    loader = build_test_loader(_settings(root, workers=2), annotations, batch_size=11, rank=0, world_size=3)
    assert list(loader) == []


def _damage_the_middle(path: Path) -> None:
    """Overwrite the middle of a file; start and end stay intact, so that the check at the start accepts it."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 200] = bytes(200)
    path.write_bytes(content)


def test_workers_keep_freed_memory_for_any_device(
    data: tuple[Path, Annotations], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, annotations = data
    note = tmp_path / "workers"

    def keep(device: torch.device) -> None:
        with note.open("a", encoding="utf-8") as file:
            print(os.getpid(), device, file=file)

    monkeypatch.setattr("fcos.data.loader.keep_freed_memory", keep)  # the workers are forked
    monkeypatch.setattr("fcos.data.loader.limit_workers", lambda workers: workers)
    _first(build_train_loader(_settings(root, workers=2), annotations), 1)
    pids, devices = zip(*(line.split() for line in note.read_text(encoding="utf-8").splitlines()), strict=True)
    assert len({*pids, str(os.getpid())}) == 3
    assert devices == ("cpu", "cpu")


@pytest.mark.parametrize("on_error", ["stop", "skip"])
@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_image_is_replaced_in_training(
    workers: int, on_error: str, data: tuple[Path, Annotations], caplog: pytest.LogCaptureFixture
) -> None:
    root, _ = data
    _damage_the_middle(root / "images/4.png")
    annotations = load_annotations(config(root), "train")
    assert annotations is not None
    loader = build_train_loader(_settings(root, workers=workers, on_error=on_error), annotations)
    batches = _first(loader, 11)
    assert all(len(batch.images) == 4 for batch in batches)
    assert 4 not in {index for batch in batches for index in batch.indices.tolist()}
    assert loader.num_skipped == 4  # 44 images are four epochs of 11
    assert [record.levelname for record in caplog.records].count("WARNING") == 1
    assert re.search(r"4\.png: cannot be read: .*; another image is used instead", caplog.text)


@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_test_loader_skips_an_unreadable_image(
    on_error: str, data: tuple[Path, Annotations], caplog: pytest.LogCaptureFixture
) -> None:
    root, annotations = data
    annotations.path(4).unlink()
    loader = build_test_loader(_settings(root, on_error=on_error), annotations, batch_size=1)
    assert sorted(int(batch.indices) for batch in loader) == [0, 1, 2, 3, 5, 6, 7, 8, 9, 10]
    assert loader.num_skipped == 1
    assert "4.png: no such file; skipped" in caplog.text


def test_image_is_decoded_once_for_all_views(data: tuple[Path, Annotations], monkeypatch: pytest.MonkeyPatch) -> None:
    root, annotations = data
    opened: list[Path] = []
    monkeypatch.setattr(dataset, "open_rgb", lambda path, bit_depth: opened.append(path) or open_rgb(path))
    settings = _settings(root)
    settings.eval.flip, settings.eval.scales = True, [48]
    batches = list(build_test_loader(settings, annotations, batch_size=2))
    assert sorted(opened) == sorted(annotations.path(i) for i in range(len(annotations)))
    for batch in batches:
        mirrored, larger = batch.more_views
        assert (mirrored.flipped, larger.flipped) == (True, False)
        assert torch.equal(mirrored.sizes, batch.sizes)
        assert larger.sizes.amin(dim=1).tolist() == [48] * len(batch.images)
        for image, mirror, (height, width) in zip(batch.images, mirrored.images, batch.sizes.tolist(), strict=True):
            assert torch.equal(image[:, :height, :width].flip(2), mirror[:, :height, :width])


def test_train_loader_raises_if_every_image_is_unreadable(data: tuple[Path, Annotations]) -> None:
    root, annotations = data
    for index in range(len(annotations)):
        annotations.path(index).unlink()
    with pytest.raises(DataError, match="none of the training images can be read any more; first error: "):
        _first(build_train_loader(_settings(root), annotations), 1)


def test_interrupt_signals_do_not_reach_the_workers(data: tuple[Path, Annotations]) -> None:
    """The whole process group gets the signal, as on Ctrl-C or when torchrun or a batch system ends a run."""
    root, _ = data
    run = subprocess.run(
        [sys.executable, str(PROGRAM), str(root), "SIGINT", "SIGTERM"],
        capture_output=True, text=True, timeout=SECONDS, check=False, start_new_session=True,
    )  # fmt: skip
    assert (run.returncode, run.stdout, run.stderr) == (0, "SIGINT: 5 batches\nSIGTERM: 5 batches\n", "")


def test_loading_does_not_change_the_global_rng_state(data: tuple[Path, Annotations]) -> None:
    root, annotations = data
    state = torch.get_rng_state()
    _first(build_train_loader(_settings(root, workers=1), annotations), 2)
    assert torch.equal(torch.get_rng_state(), state)
