from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from detectors import CATEGORY_IDS, NAMES, tiny_config, tiny_model
from full_disk import files_up_to
from torch import nn

import fcos
from fcos.checkpoint import generations, load_weights, save_checkpoint
from fcos.config import Config
from fcos.errors import WeightsError
from fcos.interop.checkpoints import load_checkpoint


def save(path: Path, model: nn.Module | None = None, **options: Any) -> Path:
    given = {"config": Config(), "class_names": ["cat"], "category_ids": [7], **options}
    save_checkpoint(path, model=model or nn.Linear(2, 2), **given)
    return path


def message(path: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_checkpoint_round_trip_preserves_all_fields(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    training = {"state": {"iteration": 3}, "rng": torch.get_rng_state(), "none": None, "groups": [{"lr": 0.1}]}
    config = tiny_config()
    save(tmp_path / "a.pt", model, config=config, metrics={"AP": 0.5}, iteration=3, training=training)
    loaded = load_checkpoint(tmp_path / "a.pt")
    assert loaded.config == config.to_dict()
    assert (loaded.class_names, loaded.category_ids, loaded.metrics, loaded.iteration) == (
        ("cat",),
        (7,),
        {"AP": 0.5},
        3,
    )
    assert loaded.training is not None
    assert torch.equal(loaded.training.pop("rng"), training.pop("rng"))
    assert loaded.training == training
    assert same(loaded.model, model.state_dict())


def same(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_loaded_detector_gives_identical_detections(tmp_path: Path) -> None:
    config = tiny_config()
    model = tiny_model(config)
    save(tmp_path / "a.pt", model, config=config, class_names=NAMES, category_ids=CATEGORY_IDS)
    loaded = fcos.load(tmp_path / "a.pt", device="cpu")
    images, sizes = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8), torch.tensor([[64, 96]])
    model = model.to(memory_format=torch.channels_last)  # as in loaded models
    (before,), (after,) = model.detect(images, sizes), loaded.model.detect(images, sizes)
    assert len(before) > 0
    assert torch.equal(before.boxes, after.boxes)
    assert torch.equal(before.scores, after.scores)
    assert not loaded.model.training
    assert loaded.config.model == config.model
    assert loaded.class_names == NAMES
    assert loaded.category_ids == CATEGORY_IDS


def test_save_leaves_no_temporary_files(tmp_path: Path) -> None:
    save(tmp_path / "a.pt")
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_failed_save_keeps_the_previous_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.pt", iteration=1)

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        save(path, iteration=2)
    assert load_checkpoint(path).iteration == 1
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_keep_limits_the_number_of_checkpoint_generations(tmp_path: Path) -> None:
    for i in range(5):
        save(tmp_path / "last.pt", iteration=i, keep=3)
    files = generations(tmp_path / "last.pt")
    assert [(file.name, load_checkpoint(file).iteration) for file in files] == [
        ("last.pt", 4),
        ("last-1.pt", 3),
        ("last-2.pt", 2),
    ]
    save(tmp_path / "last.pt", iteration=5, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last-1.pt", "last.pt"]


class Killed(BaseException):
    pass


def no_links(*_: Any) -> None:
    raise PermissionError


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("keep", [1, 2, 3])
def test_killed_save_always_leaves_a_readable_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: int, links: bool
) -> None:
    """The process is killed before the first, second, ... change in the folder; later changes do not happen.

    On file systems with hard links, the newest file always has its final name.
    """
    path = tmp_path / "last.pt"
    changes = 0

    def limit_changes(original: Callable[..., Any]) -> Callable[..., Any]:
        def change(*args: Any, **options: Any) -> Any:
            nonlocal changes
            changes -= 1
            if changes < 0:
                raise Killed
            return original(*args, **options)

        return change

    for name in ("replace", "unlink", "hardlink_to"):
        monkeypatch.setattr(Path, name, limit_changes(getattr(Path, name)))
    if not links:
        monkeypatch.setattr(Path, "hardlink_to", no_links)
    found = []
    for survived in range(6):
        changes = 100
        for iteration in range(3):
            save(path, iteration=iteration, keep=keep)
        changes = survived
        with contextlib.suppress(Killed):
            save(path, iteration=3, keep=keep)
        found.append(load_checkpoint(path if links else generations(path)[0]).iteration)
    assert set(found) == {2, 3}
    assert found[-1] == 3


@pytest.mark.parametrize("room", [0, 700, 5000])
def test_full_disk_raises_oserror_and_keeps_the_previous_file(tmp_path: Path, room: int) -> None:
    path = save(tmp_path / "a.pt", nn.Linear(1, 1), iteration=1)
    with files_up_to(room), pytest.raises(OSError, match="File too large"):
        save(path, nn.Linear(100, 100), iteration=2)
    assert load_checkpoint(path).iteration == 1
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_missing_file_is_reported(tmp_path: Path) -> None:
    assert "no such file" in message(tmp_path / "none.pt")


def test_folder_is_reported(tmp_path: Path) -> None:
    assert "this is a folder" in message(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_truncated_file_is_reported(tmp_path: Path, share: float) -> None:
    path = save(tmp_path / "a.pt")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    assert "truncated" in message(path)


def test_damaged_file_is_reported(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pt")
    content = bytearray(path.read_bytes())
    content[600] ^= 0xFF
    path.write_bytes(content)
    assert "damaged" in message(path)


def test_bit_flip_is_detected_or_harmless(tmp_path: Path) -> None:
    """torch does not verify checksums: a wrong byte in a third of the file would give wrong numbers."""
    model = nn.Linear(8, 8)
    training = {"state": {"iteration": 3}, "optimizer": {"momentum": torch.randn(40)}}
    path = save(tmp_path / "a.pt", model, training=training)
    whole = path.read_bytes()
    refused = 0
    for position in range(0, len(whole), 7):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x10]) + whole[position + 1 :])
        try:
            loaded = load_checkpoint(path)
        except WeightsError:
            refused += 1
            continue
        assert same(loaded.model, model.state_dict()), position
        assert loaded.config == Config().to_dict(), position
        assert loaded.training is not None
        assert loaded.training["state"] == {"iteration": 3}
        assert torch.equal(loaded.training["optimizer"]["momentum"], training["optimizer"]["momentum"]), position
    assert refused > 100


def test_tensor_marked_as_folder_is_reported_as_damage(tmp_path: Path) -> None:
    """torch would return uninitialised memory; no checksum covers this flag."""
    path = save(tmp_path / "a.pt")
    content = bytearray(path.read_bytes())
    name_in_directory = content.rindex(b"archive/data/0")
    content[name_in_directory - 8] ^= 0x10
    path.write_bytes(content)
    assert "damaged checkpoint: archive/data/0 is marked as a folder" in message(path)


def test_file_truncated_at_any_length_is_rejected(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pt")
    whole = path.read_bytes()
    for length in range(0, len(whole), 31):
        path.write_bytes(whole[:length])
        message(path)


def test_checkpoint_of_another_project_is_reported_with_its_keys(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "epoch": 3}, tmp_path / "a.pt")
    assert "found the keys state_dict, epoch" in message(tmp_path / "a.pt")


def test_pickled_module_is_not_loaded(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "a.pt")
    assert "never loaded" in message(tmp_path / "a.pt")


def test_code_in_a_checkpoint_is_not_executed(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "hacked"),)

    torch.save({"format": "fcos", "model": Payload()}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Payload()))
    message(tmp_path / "a.pt")
    message(tmp_path / "b.pt")
    assert not (tmp_path / "hacked").exists()


def test_checkpoint_of_a_newer_version_is_rejected(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pt")
    content = torch.load(path, weights_only=True)
    torch.save({**content, "version": 99}, path)
    assert "written by a newer fcos" in message(path)


@pytest.mark.parametrize("name", ["training", "metrics", "thresholds", "iteration", "licence"])
def test_checkpoint_without_an_optional_field_loads(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / "a.pt")
    content = torch.load(path, weights_only=True)
    del content[name]
    torch.save(content, path)
    assert load_checkpoint(path).class_names == ("cat",)


@pytest.mark.parametrize(
    "odd", [{"version": "1"}, {"config": None}, {"model": []}, {"class_names": None}, {"category_ids": 3}]
)
def test_required_field_of_wrong_type_is_reported_as_lacking(tmp_path: Path, odd: dict[str, Any]) -> None:
    path = save(tmp_path / "a.pt")
    torch.save(torch.load(path, weights_only=True) | odd, path)
    assert f"damaged checkpoint: it has no {next(iter(odd))}; copy it again" in message(path)


@pytest.mark.parametrize(
    ("odd", "told"),
    [
        ({"class_names": ["cat", "dog"]}, "class_names (2 for 1 category_ids)"),
        ({"thresholds": {"cat": "x"}}, "thresholds"),
        ({"metrics": [0.5]}, "metrics"),
    ],
)
def test_inconsistent_field_is_reported_as_invalid(tmp_path: Path, odd: dict[str, Any], told: str) -> None:
    path = save(tmp_path / "a.pt")
    torch.save(torch.load(path, weights_only=True) | odd, path)
    assert f"damaged checkpoint: invalid {told}; copy it again" in message(path)


def test_load_weights_error_lists_mismatched_tensors() -> None:
    weights = {"weight": torch.zeros(3, 2), "scale": torch.zeros(1)}
    with pytest.raises(WeightsError) as caught:
        load_weights(nn.Linear(2, 2), weights, where="x.pt")
    for part in (
        "1 missing: bias",
        "1 not in the model: scale",
        "1 of a different shape: weight [3, 2] instead of [2, 2]",
    ):
        assert part in str(caught.value)


def test_load_weights_ignores_batch_norm_counters() -> None:
    learning, frozen = (
        tiny_model(tiny_config(backbone={"name": "mobilenet_v2", "weights": None, "norm": norm}))
        for norm in ("bn", "frozen_bn")
    )
    load_weights(frozen, learning.state_dict(), where="x.pt")
    load_weights(learning, frozen.state_dict(), where="x.pt")
    assert torch.equal(learning.head.ltrb.weight, frozen.head.ltrb.weight)


def test_load_weights_keeps_pixel_statistics_absent_from_the_weights() -> None:
    model = tiny_model(tiny_config(pixel_mean=[1.0, 2.0, 3.0]))
    load_weights(model, {k: v for k, v in model.state_dict().items() if not k.startswith("pixel_")}, where="x.pt")
    assert model.pixel_mean.flatten().tolist() == [1, 2, 3]
