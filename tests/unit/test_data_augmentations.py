"""Table of augmentations: random draws match earlier versions, and a new augmentation does not change them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations
from random import Random
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageEnhance, ImageOps
from tiny_data import config

from fcos.choices import BoxConvention
from fcos.config import DataConfig
from fcos.data.augmentations import (
    AUGMENTATIONS,
    Augmentation,
    ColorJitter,
    Flip,
    ImageAugmentation,
    Placement,
    SizeAugmentation,
    Zoom,
)
from fcos.data.geometry import crop_boxes, flip_boxes, resize_boxes, resize_image, resize_size
from fcos.data.images import tensor_to_image
from fcos.data.transforms import MIN_VISIBLE, Transform, train_transform
from fcos.structures import Objects

FLIP, ZOOM, JITTER = 0.3, (0.4, 2.5), 0.4
OLD: dict[str, Augmentation] = {"flip": Flip(FLIP), "zoom": Zoom(ZOOM), "jitter": ColorJitter(JITTER)}
SIDES = [(600,), (640, 672, 704, 736, 768, 800), range(640, 801)]
SUBSETS = [names for count in range(4) for names in combinations(OLD, count)]


class Drawn(NamedTuple):
    """Random numbers that earlier versions drew for an image."""

    short_side: int
    flip: bool
    zoom: float
    window: tuple[float, float]
    factors: tuple[float, float, float]

    @property
    def by_name(self) -> dict[str, Any]:
        return {"flip": self.flip, "zoom": (self.zoom, self.window), "jitter": self.factors}


def historical_draws(seed: int, sides: Any) -> Drawn:
    """Draw all numbers from one generator in this order, even those that are not used."""
    generator = Random(seed)
    return Drawn(
        short_side=generator.choice(sides),
        flip=generator.random() < FLIP,
        zoom=math.exp(generator.uniform(*map(math.log, ZOOM))),
        window=(generator.random(), generator.random()),
        factors=(
            generator.uniform(1 - JITTER, 1 + JITTER),
            generator.uniform(1 - JITTER, 1 + JITTER),
            generator.uniform(1 - JITTER, 1 + JITTER),
        ),
    )


@pytest.mark.parametrize("sides", SIDES, ids=["one", "list", "range"])
@pytest.mark.parametrize("names", SUBSETS, ids="+".join)
def test_random_draws_of_every_combination_match_earlier_versions(names: tuple[str, ...], sides: Any) -> None:
    transform = Transform(sides, 1333, tuple(OLD[name] for name in names))
    for seed in [*range(100), 2**40 + 7, 2**63 - 1]:
        expected = historical_draws(seed, sides)
        assert transform.draw(seed) == (expected.short_side, [expected.by_name[name] for name in names])


def test_random_draws_of_a_config_match_earlier_versions() -> None:
    transform = train_transform(config(short_side_range=(640, 800), flip=FLIP, zoom=ZOOM, color_jitter=JITTER))
    for seed in range(100):
        expected = historical_draws(seed, range(640, 801))
        assert transform.draw(seed) == (expected.short_side, list(expected.by_name.values()))


@pytest.mark.parametrize("strength", [0.0, 0.25, 1.0])
def test_strength_scales_zoom_and_colours_but_not_flips(strength: float) -> None:
    transform = train_transform(config(flip=FLIP, zoom=ZOOM, color_jitter=JITTER))
    for seed in range(100):
        _, (flip, zoom, factors) = transform.draw(seed, strength)
        full = historical_draws(seed, (800,))
        assert (flip, zoom.window) == (full.flip, full.window)
        assert math.log(zoom.scale) == pytest.approx(strength * math.log(full.zoom), abs=1e-12)
        expected = [1 + strength * (factor - 1) for factor in full.factors]
        assert factors == pytest.approx(expected, abs=1e-12)


def historical_transform(
    image: Image.Image, boxes: torch.Tensor, drawn: Drawn, max_side: int, convention: BoxConvention
) -> tuple[Image.Image, torch.Tensor, torch.Tensor]:
    """Compute image, boxes, and the visible share of each box as earlier versions did."""
    size = image.height, image.width
    new_size = resize_size(*size, drawn.short_side, max_side)
    zoomed = max(round(new_size[0] * drawn.zoom), 1), max(round(new_size[1] * drawn.zoom), 1)
    kept = min(new_size[0], zoomed[0]), min(new_size[1], zoomed[1])
    left, top = (round(drawn.window[axis] * (zoomed[1 - axis] - kept[1 - axis])) for axis in (0, 1))
    image = tensor_to_image(resize_image(image, kept, whole=zoomed, origin=(left, top)))
    boxes, visible = resize_boxes(boxes, size, zoomed), boxes.new_ones(len(boxes))
    if kept != zoomed:
        boxes, visible = crop_boxes(boxes, (left, top), kept, convention)
    if drawn.flip:
        image = ImageOps.mirror(image)
        boxes = flip_boxes(boxes, image.width, convention)
    for enhance, factor in zip(
        (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), drawn.factors, strict=True
    ):
        image = enhance(image).enhance(factor)
    return image, boxes, visible


@pytest.mark.parametrize("convention", ["continuous", "inclusive"])
def test_augmented_images_and_objects_match_earlier_versions(convention: BoxConvention) -> None:
    sides = range(24, 41)
    transform = Transform(sides, 60, tuple(OLD.values()), box_convention=convention)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 44, 3), dtype=np.uint8))
    corners = torch.tensor([[0, 0, 8, 6], [30, 20, 43, 29], [10, 5, 40, 28], [20, 12, 24, 16]], dtype=torch.float32)
    objects = Objects(corners, torch.tensor([0, 1, 2, 3]), torch.tensor([False, True, False, False]))
    fates = set()
    for seed in range(100):
        pixels, found = transform(image, objects, seed=seed)
        picture, boxes, visible = historical_transform(image, corners, historical_draws(seed, sides), 60, convention)
        assert np.array_equal(pixels.permute(1, 2, 0).numpy(), np.asarray(picture))
        assert torch.equal(found.boxes, boxes[visible > 0])
        assert torch.equal(found.labels, objects.labels[visible > 0])
        assert torch.equal(found.is_crowd, (objects.is_crowd | (visible < MIN_VISIBLE))[visible > 0])
        fates |= {(visible == 0).any().item(), "crowd" if found.is_crowd.sum() > 1 else "object"}
    assert fates == {True, False, "crowd", "object"}


@dataclass(frozen=True)
class Squeeze(SizeAugmentation):
    """New augmentation that makes the image narrower."""

    @classmethod
    def of(cls, config: DataConfig) -> Squeeze:
        return cls()

    def draw(self, generator: Random, strength: float) -> float:
        return generator.uniform(1 - 0.5 * strength, 1.0)

    def place(self, placement: Placement, drawn: float) -> Placement:
        height, width = placement.whole
        return Placement.whole_of((height, round(width * drawn)))


@dataclass(frozen=True)
class Negative(ImageAugmentation):
    """New augmentation that turns half of the images into negatives, without objects."""

    @classmethod
    def of(cls, config: DataConfig) -> Negative:
        return cls()

    def draw(self, generator: Random, strength: float) -> bool:
        return generator.random() < 0.5 * strength

    def change(
        self, image: torch.Tensor, objects: Objects, drawn: bool, convention: BoxConvention
    ) -> tuple[torch.Tensor, Objects]:
        return (255 - image, objects[:0]) if drawn else (image, objects)


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("new", [(Squeeze(),), (Negative(),), (Squeeze(), Negative())], ids=["size", "image", "both"])
def test_new_augmentations_do_not_change_other_draws(new: tuple[Augmentation, ...], place: int) -> None:
    old = tuple(OLD.values())
    before = Transform(SIDES[1], 1333, old)
    after = Transform(SIDES[1], 1333, (*old[:place], *new, *old[place:]))
    alone = [Transform(SIDES[1], 1333, (step,)) for step in new]
    for seed in range(50):
        short_side, numbers = after.draw(seed)
        assert (short_side, numbers[:place] + numbers[place + len(new) :]) == before.draw(seed)
        assert numbers[place : place + len(new)] == [transform.draw(seed)[1][0] for transform in alone]


def test_new_augmentations_draw_independently() -> None:
    transform = Transform((32,), 64, (*OLD.values(), Squeeze(), Negative()))
    rows = []
    for seed in range(2000):
        _, (flip, zoom, factors, squeeze, negative) = transform.draw(seed)
        rows.append((flip, zoom.scale, factors[0], squeeze, negative))
    correlations = np.corrcoef(rows, rowvar=False)
    assert np.abs(correlations - np.eye(5)).max() < 0.08  # 3.6 standard errors


def test_augmentation_added_to_the_table_applies_to_every_config(monkeypatch: pytest.MonkeyPatch) -> None:
    options = config(flip=FLIP, zoom=ZOOM, color_jitter=JITTER)
    before = train_transform(options)
    monkeypatch.setattr("fcos.data.transforms.AUGMENTATIONS", (Squeeze, *AUGMENTATIONS, Negative))
    after = train_transform(options)
    assert [type(step) for step in after.augmentations] == [Squeeze, Flip, Zoom, ColorJitter, Negative]
    for seed in range(50):
        short_side, (_, *old, _) = after.draw(seed)
        assert (short_side, old) == before.draw(seed)


@given(
    pixels=arrays(np.uint8, st.tuples(st.integers(1, 6), st.integers(1, 6), st.just(3))),
    factors=st.tuples(*[st.floats(0, 2)] * 3),
)
def test_jittered_pixels_equal_those_of_pillow(pixels: np.ndarray, factors: tuple[float, float, float]) -> None:
    expected = Image.fromarray(pixels)
    for enhance, factor in zip(
        (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), factors, strict=True
    ):
        expected = enhance(expected).enhance(factor)
    objects = Objects(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    jittered, _ = ColorJitter(1.0).change(torch.from_numpy(pixels).permute(2, 0, 1), objects, factors, "continuous")
    assert np.array_equal(jittered.permute(1, 2, 0).numpy(), np.asarray(expected))


def test_image_is_resampled_once_before_image_augmentations() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 40, 3), dtype=np.uint8))
    objects = Objects(torch.tensor([[0.0, 0.0, 40.0, 32.0]]), torch.tensor([1]))
    transform = Transform((32,), 64, (Squeeze(), Negative()))
    seen = set()
    for seed in range(20):
        _, (share, negative) = transform.draw(seed)
        pixels, found = transform(image, objects, seed=seed)
        width = round(40 * share)
        expected = resize_image(image, (32, width))
        assert torch.equal(pixels, 255 - expected if negative else expected)
        assert found.boxes.tolist() == ([] if negative else [[0, 0, width, 32]])
        seen.add(negative)
    assert seen == {True, False}
