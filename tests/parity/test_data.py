"""Resizing, flipping, reading and sampling against the recorded numbers."""

from __future__ import annotations

import json
import re
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden import load, tensor
from PIL import Image

from fcos.config import DataConfig, FCOSConfig
from fcos.data import DetectionDataset, Transform, load_annotations, train_transform
from fcos.data.dataset import Annotations, Sample
from fcos.data.geometry import flip_boxes, resize_boxes, resize_image, resize_size
from fcos.data.loader import collate
from fcos.data.samplers import aspect_groups, endless_batches, grouped_batches, permutation, shard
from fcos.models import build_model
from fcos.structures import Batch, Objects

RTOL = 1e-6  # the recorded units are bit-identical between two runs of the original


def _json(goldens: Path, name: str) -> Any:
    return json.loads((goldens / "units" / name).read_text())


def _rows(table: dict[str, Any], rows: list[list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(table["columns"], row, strict=True)) for row in rows]


def test_resized_sizes_match_the_original(goldens: Path) -> None:
    table = _json(goldens, "resize_rule.json")
    for row in _rows(table, table["rows"]):
        size = resize_size(row["h"], row["w"], row["min_size"], row["max_size"])
        assert size == (row["out_h"], row["out_w"]), row


def test_training_sizes_of_the_original_are_among_ours(goldens: Path) -> None:
    """The original draws from Python's global random state; this project uses the same rule with another generator."""
    table = _json(goldens, "train_transform_draws.json")
    for sequence in table["sequences"]:
        kind, *sides = sequence["transform"].split("_")
        sides = [int(side) for side in sides]
        options = {"short_side_range": sides} if kind == "range" else {"short_side": sides}
        rows = _rows(table, sequence["rows"])
        # The limit is not recorded. Either it was reached, or that of the original's configs holds.
        max_side = max(max(row["out_h"], row["out_w"]) for row in rows)
        assert any(_are_possible(rows, options, limit) for limit in (max_side, 1333)), sequence["transform"]


def _are_possible(rows: list[dict[str, Any]], options: dict[str, Any], max_side: int) -> bool:
    short_sides = train_transform(DataConfig.model_validate({**options, "max_side": max_side})).short_sides
    return all(
        any(resize_size(row["h"], row["w"], side, max_side) == (row["out_h"], row["out_w"]) for side in short_sides)
        for row in rows
    )


def test_short_side_range_and_flip_probability_match_the_original(goldens: Path) -> None:
    table = _json(goldens, "train_transform_draws.json")
    transform = train_transform(DataConfig.model_validate({"short_side_range": (table["first"], table["last"])}))
    assert len(transform.short_sides) == table["number_of_sizes_in_range_640_800"]
    assert DataConfig.model_validate({}).flip == table["flip_probability"]


def _images(numbers: dict[str, np.ndarray]) -> list[int]:
    return sorted(int(key.removeprefix("image")) for key in numbers if key.startswith("image"))


def test_resized_pixels_match_the_original_exactly(goldens: Path) -> None:
    numbers = load(goldens / "units" / "image_transform.npz")
    for i in _images(numbers):
        resized = numbers[f"resized{i}"]
        image = resize_image(Image.fromarray(numbers[f"image{i}"]), resized.shape[:2])
        assert np.array_equal(image.permute(1, 2, 0).numpy(), resized), i


def test_flipped_and_resized_boxes_match_the_original(goldens: Path) -> None:
    numbers = load(goldens / "units" / "image_transform.npz")
    for i in _images(numbers):
        size, new_size = numbers[f"image{i}"].shape[:2], numbers[f"resized{i}"].shape[:2]
        flipped = flip_boxes(tensor(numbers[f"flip_box{i}"]), size[1], "inclusive")
        torch.testing.assert_close(
            resize_boxes(flipped, size, new_size), tensor(numbers[f"box{i}"]), rtol=RTOL, atol=0.0, msg=str(i)
        )


def test_normalised_images_match_the_original(goldens: Path) -> None:
    numbers = load(goldens / "units" / "image_transform.npz")
    original = {"channel_order": "bgr", "pixel_mean": [102.9801, 115.9465, 122.7717], "pixel_std": [1.0, 1.0, 1.0]}
    without_bgr = {"pixel_mean": [123.675, 116.28, 103.53], "pixel_std": [58.395, 57.12, 57.375]}

    def normalized(options: dict[str, Any], pixels: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
        config = FCOSConfig.model_validate({"backbone": {"name": "mobilenet_v2", "weights": None}, **options})
        return build_model(config, num_classes=1).normalize(pixels, sizes)

    images = [tensor(numbers[f"resized{i}"]).permute(2, 0, 1) for i in _images(numbers)]
    for i, image in zip(_images(numbers), images, strict=True):
        found = normalized(original, image[None], torch.tensor([image.shape[1:]]))[0]
        # The original divides by 255 and multiplies again: an error of 3e-6 for values up to 153.
        torch.testing.assert_close(found, tensor(numbers[f"tensor{i}"]), rtol=0, atol=5e-6, msg=str(i))
    found = normalized(without_bgr, images[0][None], torch.tensor([images[0].shape[1:]]))[0]
    torch.testing.assert_close(found, tensor(numbers["rgb_norm0"]), rtol=0, atol=RTOL)
    for key in _batch_keys(numbers):
        batch = _batch(images, size_divisor=_divisor(key))
        padded = normalized(original, batch.images, batch.sizes).double()
        assert [padded.sum().item(), padded.abs().sum().item()] == pytest.approx(numbers[f"{key}_stats"], rel=RTOL)


def _batch_keys(numbers: dict[str, np.ndarray]) -> list[str]:
    """Return the prefixes of the recorded batches, `batch` followed by the size divisor (0: none)."""
    return [key.removesuffix("_shape") for key in numbers if key.startswith("batch") and key.endswith("_shape")]


def _divisor(key: str) -> int:
    return max(1, int(key.removeprefix("batch")))


def _batch(images: list[torch.Tensor], *, size_divisor: int) -> Batch:
    nothing = Objects(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    return collate([Sample(image, nothing, i) for i, image in enumerate(images)], size_divisor=size_divisor)


def test_padded_batch_shapes_match_the_original(goldens: Path) -> None:
    numbers = load(goldens / "units" / "image_transform.npz")
    pixels = [tensor(numbers[f"resized{i}"]).permute(2, 0, 1) for i in _images(numbers)]
    for key in _batch_keys(numbers):
        batch = _batch(pixels, size_divisor=_divisor(key))
        assert list(batch.images.shape) == numbers[f"{key}_shape"].tolist()
        assert batch.sizes.tolist() == numbers[f"{key}_sizes_hw"].tolist()
        assert batch.images.sum() == sum(p.sum() for p in pixels)


def test_resized_boxes_match_the_original(goldens: Path) -> None:
    numbers = load(goldens / "units" / "boxlist.npz")
    width, height = numbers["size_wh"].tolist()
    for case in (key.removesuffix("/size_wh") for key in numbers if re.fullmatch(r"resize_\w+/size_wh", key)):
        new_width, new_height = numbers[f"{case}/size_wh"].tolist()
        boxes = resize_boxes(tensor(numbers["boxes"]), (height, width), (new_height, new_width))
        torch.testing.assert_close(boxes, tensor(numbers[f"{case}/xyxy"]), rtol=RTOL, atol=0.0)


def test_flipped_boxes_match_the_original(goldens: Path) -> None:
    numbers = load(goldens / "units" / "boxlist.npz")
    boxes = flip_boxes(tensor(numbers["boxes"]), int(numbers["size_wh"][0]), "inclusive")
    torch.testing.assert_close(boxes, tensor(numbers["flip_lr"]), rtol=RTOL, atol=0.0)


def test_grouped_batches_match_the_original(goldens: Path) -> None:
    for case in _json(goldens, "samplers.json")["grouped"]:
        found = grouped_batches(np.array(case["order"]), np.array(case["group_ids"]), case["batch_size"])
        full, partial = ([batch.tolist() for batch in batches] for batches in found)
        batches = full if case["drop_uneven"] else sorted(full + partial, key=lambda b: case["order"].index(b[0]))
        assert batches == case["batches"], case


def test_aspect_ratio_groups_match_the_original(goldens: Path) -> None:
    for case in _json(goldens, "samplers.json")["quantize"]:
        assert case["bins"] == [1]
        sizes = np.array([(round(1000 * ratio), 1000) for ratio in case["height_over_width"]])
        assert aspect_groups(sizes).tolist() == case["groups"]


def test_image_order_across_iterations_matches_the_original(goldens: Path) -> None:
    """The images come in the same order but are split into batches differently.

    Our batches continue across epochs; the original ends an epoch with a smaller batch. A resumed run of the original
    starts a new permutation; ours continues the old one, see the unit tests.
    """
    for case in _json(goldens, "samplers.json")["iteration"]:
        batches = endless_batches(cycle([np.arange(case["n"])]), np.zeros(case["n"], dtype=int), case["batch_size"])
        ours = [index for batch in islice(batches, case["num_iterations"]) for index in batch]
        recorded = [index for batch in case["batches"] for index in batch]
        assert ours[: len(recorded)] == recorded


def test_shards_of_a_seeded_permutation_match_the_original(goldens: Path) -> None:
    """The original repeats images from the start, so that all shards have the same length."""
    for case in _json(goldens, "samplers.json")["distributed"]:
        order = permutation(case["n"], case["epoch"]).tolist() if case["shuffle"] else list(range(case["n"]))
        order += order[: -case["n"] % case["replicas"]]
        assert list(shard(order, case["rank"], case["replicas"])) == case["indices"], case


@pytest.fixture
def coco(goldens: Path, tmp_path: Path) -> tuple[dict[str, Any], Annotations]:
    """Return the recorded small COCO file and our annotations of it; its empty box is an error here and is skipped."""
    recorded = _json(goldens, "coco_dataset.json")
    (tmp_path / "train.json").write_text(json.dumps(recorded["coco"]))
    for image in recorded["coco"]["images"]:
        Image.new("RGB", (image["width"], image["height"])).save(tmp_path / image["file_name"])
    annotations = load_annotations(DataConfig.model_validate({"root": tmp_path, "on_error": "skip"}), "train")
    assert annotations is not None
    return recorded, annotations


def test_image_order_matches_the_original(coco: tuple[dict[str, Any], Annotations]) -> None:
    """By default, this project trains on all images (BEHAVIOUR 8, 22)."""
    recorded, annotations = coco
    assert annotations.image_ids.tolist() == recorded["all_ids"]


def test_the_convention_of_the_original_selects_the_recorded_training_images(
    coco: tuple[dict[str, Any], Annotations],
) -> None:
    recorded, annotations = coco
    options = {"root": annotations.root, "on_error": "skip", "convention": "fcos_core"}
    selected = load_annotations(DataConfig.model_validate(options), "train")
    assert selected is not None
    assert selected.image_ids.tolist() == recorded["train_ids"]
    assert selected.category_ids == annotations.category_ids
    for index, image_id in enumerate(selected.image_ids.tolist()):
        span = annotations.span(recorded["all_ids"].index(image_id))
        np.testing.assert_array_equal(selected.boxes[selected.span(index)], annotations.boxes[span])
        np.testing.assert_array_equal(selected.labels[selected.span(index)], annotations.labels[span])


def test_category_order_matches_the_original(coco: tuple[dict[str, Any], Annotations]) -> None:
    recorded, annotations = coco
    assert {str(id_): k + 1 for k, id_ in enumerate(annotations.category_ids)} == recorded["json_to_contiguous"]


def test_inclusive_targets_match_the_original(coco: tuple[dict[str, Any], Annotations]) -> None:
    """The original drops crowds; this project marks them."""
    recorded, annotations = coco
    dataset = DetectionDataset(annotations, transform=Transform((1,), 1), box_convention="inclusive")
    inclusive = dataset.annotations
    for target in recorded["targets"]:
        index = target["index"]
        span = inclusive.span(index)
        ours = ~inclusive.crowd[span]
        expected = np.array(target["boxes"], dtype=np.float32).reshape(-1, 4)
        assert inclusive.image_ids[index] == target["image_id"]
        assert inclusive.sizes[index].tolist() == target["size_wh"][::-1]
        np.testing.assert_allclose(inclusive.boxes[span][ours], expected, rtol=RTOL)
        assert (inclusive.labels[span][ours] + 1).tolist() == target["labels"]
