"""User-defined transforms in batches and trainings."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import own_transforms
import pytest
import torch
from ground_truth import assert_same_objects
from tiny_data import config, write_coco, write_images
from torch import Tensor

import fcos
from fcos.choices import BoxConvention
from fcos.config import Config
from fcos.data import Annotations, build_train_loader, load_annotations
from fcos.data.loader import try_user_transform
from fcos.errors import ConfigError, DataError
from fcos.interop.checkpoints import load_checkpoint
from fcos.structures import Batch

pytestmark = pytest.mark.usefixtures("without_report")
CONVENTIONS: tuple[BoxConvention, ...] = ("continuous", "inclusive")


@pytest.fixture
def many(tmp_path: Path) -> tuple[Path, Annotations]:
    """Return a data set of eleven images of both orientations with up to three boxes each, one of them a crowd."""
    sizes = {f"{i}.png": (40, 30) if i % 3 else (30, 40) for i in range(11)}
    tree = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(sizes)],
        "annotations": [
            {"image_id": i, "category_id": 1, "bbox": [1 + 3 * k, 2, 10 + i, 12], "iscrowd": int(k == 2)}
            for i in range(11)
            for k in range(i % 4)
        ],
        "categories": [{"id": 1, "name": "x"}],
    }
    write_coco(tmp_path / "many", tree)
    write_images(tmp_path / "many/images", sizes)
    annotations = load_annotations(config(tmp_path / "many"), "train")
    assert annotations is not None
    return tmp_path / "many", annotations


def settings(root: Path, name: str | None, *, workers: int = 0, convention: BoxConvention = "continuous") -> Config:
    transforms = None if name is None else f"own_transforms:{name}"
    return Config.model_validate(
        {
            "model": {"box_convention": convention},
            "data": config(root, short_side=[24, 32], workers=workers, transforms=transforms).model_dump(),
            "train": {"batch_size": 4, "seed": 3},
        }
    )


def first_batches(settings: Config, annotations: Annotations, count: int) -> list[Batch]:
    return list(islice(iter(build_train_loader(settings, annotations)), count))


def assert_same_batches(found: list[Batch], expected: list[Batch]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.sizes, other.sizes)
        assert torch.equal(one.indices, other.indices)
        for objects, others in zip(one.targets or (), other.targets or (), strict=True):
            assert_same_objects(objects, others)


@pytest.mark.parametrize("name", ["noise", "pipeline"])
def test_batches_do_not_depend_on_workers_or_global_rng(name: str, many: tuple[Path, Annotations]) -> None:
    root, annotations = many
    alone = first_batches(settings(root, name), annotations, 7)
    torch.manual_seed(7)
    assert_same_batches(first_batches(settings(root, name), annotations, 7), alone)
    assert_same_batches(first_batches(settings(root, name, workers=2), annotations, 7), alone)
    assert any(objects.is_crowd.any() for batch in alone for objects in batch.targets or ())


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_identity_transform_does_not_change_batches(convention: BoxConvention, many: tuple[Path, Annotations]) -> None:
    root, annotations = many
    plain, own = (
        first_batches(settings(root, name, convention=convention), annotations, 7) for name in (None, "identity")
    )
    for one, other in zip(own, plain, strict=True):
        assert torch.equal(one.images, other.images)
        for objects, others in zip(one.targets or (), other.targets or (), strict=True):
            torch.testing.assert_close(objects.boxes, others.boxes, rtol=0, atol=1e-5)
            assert torch.equal(objects.is_crowd, others.is_crowd)


@pytest.mark.parametrize("name", ["raises", "float_image", "labels_from_one", "no_such_function"])
def test_invalid_transform_is_rejected_before_the_first_step(
    name: str, configure: Callable[..., Config], tmp_path: Path
) -> None:
    with pytest.raises((ConfigError, DataError), match=f"data.transforms=own_transforms:{name}: "):
        fcos.train(configure(), f"data.transforms=own_transforms:{name}")
    assert not (tmp_path / "run").exists()


def test_transform_trial_prefers_a_readable_image_with_boxes(many: tuple[Path, Annotations]) -> None:
    root, annotations = many
    assert np.diff(annotations.offsets)[:2].tolist() == [0, 1]
    with pytest.raises(DataError, match="box_missing: expected a label"):
        try_user_transform(settings(root, "box_missing"), annotations)
    annotations.path(1).unlink()
    with pytest.raises(DataError, match="label_missing: expected a label"):
        try_user_transform(settings(root, "label_missing"), annotations)
    for i in range(len(annotations)):
        annotations.path(i).unlink(missing_ok=True)
    try_user_transform(settings(root, "label_missing"), annotations)  # the training itself reports missing images


def test_transform_trial_keeps_the_rng_state(many: tuple[Path, Annotations]) -> None:
    root, annotations = many
    state = torch.get_rng_state()
    try_user_transform(settings(root, "noise"), annotations)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("workers", [0, 2])
def test_failing_transform_warns_and_keeps_the_original_image(
    workers: int, many: tuple[Path, Annotations], caplog: pytest.LogCaptureFixture
) -> None:
    root, annotations = many
    batches = first_batches(settings(root, "raises_on_portraits", workers=workers), annotations, 11)
    without = first_batches(settings(root, "identity", workers=workers), annotations, 11)
    for batch, expected in zip(batches, without, strict=True):
        assert torch.equal(batch.images, expected.images)
    portraits = [i for i in range(11) if i % 3 == 0]
    assert sorted(caplog.messages) == sorted(
        f"{annotations.path(i)}: data.transforms=own_transforms:raises_on_portraits: RuntimeError: too tall; the"
        " image is used without this transform"
        for i in portraits
    )


def test_training_applies_the_transform_reproducibly(
    configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls = []

    def counted(image: Tensor, target: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        calls.append(tuple(image.shape))
        return own_transforms.pipeline(image, target)

    monkeypatch.setattr(own_transforms, "counted", counted, raising=False)
    name = "data.transforms=own_transforms:counted"
    runs = [
        fcos.train(configure(), f"output_dir={tmp_path / str(i)}", *options)
        for i, options in enumerate([(name,), (name,), ()])
    ]
    assert len(calls) == 2 * (1 + 2 * 2)  # a trial with one image, then two steps of two images
    assert "transforms: own_transforms:counted" in (runs[0].run / "config.yaml").read_text()
    one, again, without = (load_checkpoint(run.run / "weights/last.pt").model for run in runs)
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert not all(torch.equal(one[key], without[key]) for key in one)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_objects", "none of the training images so far has a box"),
        ("fractions", r"\d of \d boxes so far are not assigned to any location"),
    ],
)
def test_transform_that_loses_boxes_is_reported(
    name: str, message: str, configure: Callable[..., Config], capsys: pytest.CaptureFixture[str]
) -> None:
    config = configure(iterations=1, batch_size=3)
    data = config.data.model_copy(update={"transforms": f"own_transforms:{name}", "flip": 0.0})
    fcos.train(config.model_copy(update={"data": data}))
    out = capsys.readouterr().out
    assert re.search(rf"warning: {message}; check the boxes that data.transforms=own_transforms:{name} returns", out)


def test_evaluation_does_not_apply_the_transform(configure: Callable[..., Config], tmp_path: Path) -> None:
    run = fcos.train(configure(), "data.transforms=own_transforms:flip").run
    path = run / "weights/best.pt"
    content = torch.load(path)
    found = []
    for transforms in (None, "no_such_module:f"):
        content["config"]["data"]["transforms"] = transforms
        torch.save(content, path)
        found.append(fcos.evaluate(path, "model.backbone.name=own_backbone:Own").detections)
    assert found[0] == found[1]
