from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_data import config

from fcos.data.transforms import (
    Transform,
    flip_boxes,
    resize_boxes,
    resize_size,
    to_inclusive,
    train_transform,
)
from fcos.data.transforms import test_transform as detection_transform
from fcos.structures import BoxConvention

BOXES = torch.tensor([[2.0, 3.0, 12.0, 23.0], [0.0, 0.0, 40.0, 30.0]])


def _image(width: int = 40, height: int = 30) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_an_extremely_long_image_keeps_a_pixel() -> None:
    assert resize_size(1, 100000, 800, 1333) == (1, 100000)


def test_flipping_twice_is_the_identity() -> None:
    conventions: tuple[BoxConvention, ...] = ("continuous", "inclusive")
    for convention in conventions:
        assert torch.equal(flip_boxes(flip_boxes(BOXES, 40, convention), 40, convention), BOXES)


def test_a_flipped_box_holds_the_same_pixels() -> None:
    image = _image()
    pixels, boxes = Transform((30,), 100, flip=1.0)(image, BOXES[:1])
    x1, y1, x2, y2 = boxes[0].int().tolist()
    inside = np.asarray(image)[3:23, 2:12]
    assert np.array_equal(pixels[:, y1:y2, x1:x2].permute(1, 2, 0).numpy(), inside[:, ::-1])


def test_boxes_are_scaled_with_each_axis_own_ratio() -> None:
    assert resize_boxes(BOXES, (30, 40), (60, 100)).tolist() == [[5, 6, 30, 46], [0, 0, 100, 60]]


def test_an_image_without_boxes_is_transformed() -> None:
    pixels, boxes = Transform((60,), 100, flip=1.0)(_image())
    assert pixels.shape == (3, 60, 80)
    assert boxes.shape == (0, 4)


def test_draws_depend_on_the_seed_only() -> None:
    transform = train_transform(config(short_side_range=(640, 800), max_side=1333))
    draws = [transform.draw(seed) for seed in range(4000)]
    assert draws == [transform.draw(seed) for seed in range(4000)]
    assert {short_side for short_side, _ in draws} == set(range(640, 801))
    assert 0.45 < sum(flip for _, flip in draws) / 4000 < 0.55


def test_a_list_of_sizes_is_drawn_from() -> None:
    transform = train_transform(config(short_side=[32, 48]))
    assert {transform.draw(seed)[0] for seed in range(50)} == {32, 48}


@pytest.mark.parametrize(
    ("options", "short_side"),
    [({"short_side": [32, 48]}, 48), ({"short_side_range": (16, 64)}, 64), ({"test_short_side": 24}, 24)],
)
def test_detection_uses_one_size_and_no_flip(options: dict, short_side: int) -> None:
    transform = detection_transform(config(**options))
    assert {transform.draw(seed) for seed in range(50)} == {(short_side, False)}


def test_boxes_of_a_pixel_vanish_in_the_inclusive_convention() -> None:
    boxes = torch.tensor([[10.3, 5.0, 11.3, 9.0], [10.3, 5.0, 12.3, 9.0], [0.0, 0.0, 40.0, 30.0]])
    inclusive, kept = to_inclusive(boxes, torch.tensor([[30, 40]] * 3))
    assert kept.tolist() == [False, True, True]
    assert inclusive[2].tolist() == [0, 0, 39, 29]
