from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_data import config, write_coco

from fcos.choices import BoxConvention, Resize
from fcos.data import load_annotations
from fcos.data.augmentations import ColorJitter, Flip, Zoom
from fcos.data.dataset import DetectionDataset
from fcos.data.geometry import crop_boxes, flip_boxes, resize_boxes, resize_image, resize_size, to_inclusive
from fcos.data.images import image_to_tensor
from fcos.data.transforms import MIN_VISIBLE, Transform, train_transform
from fcos.data.transforms import test_transform as detection_transform
from fcos.structures import Objects

BOXES = torch.tensor([[2.0, 3.0, 12.0, 23.0], [0.0, 0.0, 40.0, 30.0]])


def _image(width: int = 40, height: int = 30) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def _objects(boxes: torch.Tensor) -> Objects:
    return Objects(boxes, torch.zeros(len(boxes), dtype=torch.int64))


def test_resizing_an_extremely_long_image_keeps_one_pixel_of_height() -> None:
    assert resize_size(1, 100000, 800, 1333) == (1, 1333)


def test_flipping_twice_is_the_identity() -> None:
    conventions: tuple[BoxConvention, ...] = ("continuous", "inclusive")
    for convention in conventions:
        assert torch.equal(flip_boxes(flip_boxes(BOXES, 40, convention), 40, convention), BOXES)


def test_flipped_box_contains_the_same_pixels() -> None:
    image = _image()
    pixels, objects = Transform((30,), 100, (Flip(1.0),))(image, _objects(BOXES[:1]))
    x1, y1, x2, y2 = objects.boxes[0].int().tolist()
    inside = np.asarray(image)[3:23, 2:12]
    assert np.array_equal(pixels[:, y1:y2, x1:x2].permute(1, 2, 0).numpy(), inside[:, ::-1])


def test_resizing_boxes_scales_each_axis_separately() -> None:
    assert resize_boxes(BOXES, (30, 40), (60, 100)).tolist() == [[5, 6, 30, 46], [0, 0, 100, 60]]


def test_image_without_boxes_is_transformed() -> None:
    pixels, objects = Transform((60,), 100, (Flip(1.0),))(_image())
    assert pixels.shape == (3, 60, 80)
    assert objects.boxes.shape == (0, 4)


@pytest.mark.parametrize("size", [(90, 120), (30, 40), (45, 61), (11, 16)])
def test_torch_resizes_like_pillow(size: tuple[int, int]) -> None:
    smooth = _image(40, 30).resize((120, 90), Image.Resampling.BICUBIC)
    for image in (smooth, _image(120, 90)):
        expected, pixels = (resize_image(image, size, method=method).int() for method in ("pillow", "torch"))
        assert pixels.shape == (3, *size)
        assert (pixels - expected).abs().max() <= 1


def test_a_window_is_resized_by_pillow_and_pixels_are_resized_like_their_image() -> None:
    image = _image(80, 60)
    for method in ("pillow", "torch"):
        window = {"whole": (90, 120), "origin": (7, 5), "method": method}
        found = resize_image(image_to_tensor(image), (40, 50), **window)
        assert torch.equal(found, resize_image(image, (40, 50), whole=(90, 120), origin=(7, 5)))
        whole = resize_image(image, (40, 53), method=method)
        assert torch.equal(resize_image(image_to_tensor(image), (40, 53), method=method), whole)


@pytest.mark.parametrize(
    ("size", "short_side", "scales", "expected"),
    [
        ((3000, 4000), 800, (1, 1), 2),
        ((3000, 4000), 750, (1, 1), 4),
        ((4000, 3000), 375, (1, 1), 8),
        ((2999, 4000), 700, (1, 1), 1),
        ((2998, 4000), 700, (1, 1), 2),
        ((480, 640), 320, (1, 1), 1),
        ((30, 40), 320, (1, 1), 1),
        ((3000, 4000), 600, (1.25, 1.25), 4),
        ((3000, 4000), 600, (1.3, 1.3), 2),
    ],
)
def test_images_are_decoded_at_no_less_than_their_resized_size(
    size: tuple[int, int], short_side: int, scales: tuple[float, float], expected: int
) -> None:
    transform = Transform((short_side,), 1333, (Zoom(scales),), decode="fast")
    assert transform.reduction(size) == expected
    assert replace(transform, decode="exact").reduction(size) is None


@pytest.mark.parametrize("method", ["pillow", "torch"])
def test_fast_decoding_changes_pixels_slightly_and_objects_not_at_all(method: Resize, tmp_path: Path) -> None:
    boxes = [{"image_id": 0, "category_id": 1, "bbox": box} for box in ([10, 20, 300, 200], [400, 90, 100, 60])]
    images, names = [{"id": 0, "file_name": "x.jpg"}], [{"id": 1, "name": "x"}]
    write_coco(tmp_path, {"images": images, "annotations": boxes, "categories": names})
    _image(20, 15).resize((640, 480), Image.Resampling.BICUBIC).save(tmp_path / "images/x.jpg", quality=90)
    options = {"short_side": [100, 300], "max_side": 999, "zoom": [0.5, 2.0], "color_jitter": 0.2, "resize": method}
    exact, fast = (config(tmp_path, **options, decode=decode) for decode in ("exact", "fast"))
    annotations = load_annotations(exact, "train")
    assert annotations is not None
    reductions = set()
    for seed in range(20):
        found, expected = (
            DetectionDataset(annotations, transform=train_transform(data)).load(0, seed) for data in (fast, exact)
        )
        assert torch.equal(found.objects.boxes, expected.objects.boxes)
        assert torch.equal(found.objects.is_crowd, expected.objects.is_crowd)
        assert 0 < (found.image.int() - expected.image.int()).abs().float().mean() < 4
        reductions.add(train_transform(fast).reduction((480, 640), seed=seed))
    assert reductions == {1, 2, 4, 8}


def test_detection_decodes_exactly(tmp_path: Path) -> None:
    assert detection_transform(config(tmp_path, decode="fast")).reduction((3000, 4000)) is None


def test_a_cache_keeps_exact_pixels(tmp_path: Path) -> None:
    assert train_transform(config(tmp_path, decode="fast", cache="ram")).reduction((3000, 4000)) is None


def test_option_sets_the_method_of_resizing_in_training_and_detection(tmp_path: Path) -> None:
    annotations = load_annotations(config(write_coco(tmp_path)), "train")
    assert annotations is not None
    image = annotations.open(0)
    for method in ("pillow", "torch"):
        options = config(short_side=[20], max_side=100, flip=0, resize=method)
        expected = resize_image(image, resize_size(image.height, image.width, 20, 100), method=method)
        for transform in (train_transform(options), detection_transform(options)):
            sample = DetectionDataset(annotations, transform=transform, more_views=[transform]).load(0, 0)
            assert torch.equal(sample.image, expected)
            assert torch.equal(sample.more_views[0], expected)
            assert torch.equal(transform(image).image, expected)


def test_draws_depend_only_on_the_seed_and_cover_all_sizes() -> None:
    transform = train_transform(config(short_side_range=(640, 800), max_side=1333))
    draws = [transform.draw(seed) for seed in range(4000)]
    assert draws == [transform.draw(seed) for seed in range(4000)]
    assert {short_side for short_side, _ in draws} == set(range(640, 801))
    assert 0.45 < sum(flip for _, (flip, *_) in draws) / 4000 < 0.55


def test_short_side_is_drawn_from_the_list() -> None:
    transform = train_transform(config(short_side=[32, 48]))
    assert {transform.draw(seed)[0] for seed in range(50)} == {32, 48}


@pytest.mark.parametrize(
    ("options", "short_side"),
    [({"short_side": [32, 48]}, 48), ({"short_side_range": (16, 64)}, 64), ({"test_short_side": 24}, 24)],
)
def test_detection_transform_uses_one_size_and_no_flip(options: dict, short_side: int) -> None:
    transform = detection_transform(config(**options))
    assert [transform.draw(seed) for seed in range(50)] == [(short_side, [])] * 50


def test_zoomed_box_contains_the_same_content() -> None:
    """A white square on black stays exactly under its box, even if parts are cut off."""
    image = Image.new("RGB", (120, 90))
    image.paste("white", (40, 30, 80, 60))
    transform = Transform((90,), 200, (Flip(0.5), Zoom((0.4, 3.0))))
    sizes = set()
    for seed in range(60):
        pixels, objects = transform(image, _objects(torch.tensor([[40.0, 30.0, 80.0, 60.0]])), seed=seed)
        height, width = pixels.shape[1:]
        assert height <= 90
        assert width <= 120
        sizes.add((height, width))
        ((x1, y1, x2, y2),) = objects.boxes.tolist()
        assert 0 <= x1 < x2 <= width
        assert 0 <= y1 < y2 <= height
        assert pixels[0].sum() / 255 == pytest.approx((x2 - x1) * (y2 - y1), rel=0.02, abs=3)
        inside = pixels[0, math.ceil(y1) + 2 : math.floor(y2) - 2, math.ceil(x1) + 2 : math.floor(x2) - 2]
        assert (inside == 255).all()
        _, (_, zoom) = transform.draw(seed)
        share = (x2 - x1) * (y2 - y1) / (40 * 30 * zoom.scale**2)
        if zoom.scale < 1:
            assert share == pytest.approx(1, rel=0.05)
        if not math.isclose(share, MIN_VISIBLE, rel_tol=0.05):
            assert objects.is_crowd.tolist() == [share < MIN_VISIBLE]
    assert len(sizes) > 10
    assert (90, 120) in sizes


def test_zooming_in_and_zooming_out_are_equally_likely() -> None:
    transform = Transform((90,), 200, (Zoom((0.5, 2.0)),))
    zooms = [zoom.scale for _, (zoom,) in map(transform.draw, range(2000))]
    assert min(zooms) == pytest.approx(0.5, rel=0.01)
    assert max(zooms) == pytest.approx(2.0, rel=0.01)
    assert sum(zoom > 1 for zoom in zooms) / 2000 == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize(
    ("convention", "boxes", "shares"),
    [
        ("continuous", [[10, 10, 30, 20], [20, 10, 40, 20], [40, 0, 50, 9], [0, 0, 5, 5]], [1, 0.5, 0, 0]),
        ("inclusive", [[10, 10, 29, 19], [20, 10, 39, 19], [40, 0, 49, 9], [0, 0, 4, 4]], [1, 0.5, 0, 0]),
    ],
)
def test_crop_boxes_returns_clipped_boxes_and_visible_fractions(
    convention: BoxConvention, boxes: list[list[float]], shares: list[float]
) -> None:
    cut, visible = crop_boxes(torch.tensor(boxes, dtype=torch.float32), (10, 10), (15, 20), convention)
    assert visible.tolist() == shares
    last = 1 if convention == "inclusive" else 0
    assert cut[:2].tolist() == [[0, 0, 20 - last, 10 - last], [10, 0, 20 - last, 10 - last]]


def test_color_jitter_stays_within_its_strength_and_keeps_boxes() -> None:
    image = Image.new("RGB", (40, 30), (100, 120, 140))
    transform = Transform((30,), 100, (ColorJitter(0.3),))
    pixels = [transform(image, _objects(BOXES), seed=seed) for seed in range(50)]
    means = torch.stack([p.image.float().mean() for p in pixels])
    assert means.unique().numel() > 20
    assert 0.65 * 120 < means.min() < 0.9 * 120 < 1.1 * 120 < means.max() < 1.35 * 120
    assert all(torch.equal(p.objects.boxes, BOXES) for p in pixels)
    # In an image of one colour, only saturation changes the difference of the channels relative to their brightness.
    spread = torch.stack([(p.image[2, 0, 0] - p.image[0, 0, 0]) / p.image[1, 0, 0].float() for p in pixels])
    assert spread.min() < 0.9 / 3
    assert spread.max() > 1.1 / 3


def test_color_jitter_changes_contrast() -> None:
    image = Image.new("RGB", (40, 30), (60, 60, 60))
    image.paste((180, 180, 180), (0, 0, 20, 30))
    results = [Transform((30,), 100, (ColorJitter(0.3),))(image, seed=seed).image.float() for seed in range(50)]
    ratios = torch.stack([result[0, 0, 0] / result[0, 0, -1] for result in results])
    assert ratios.min() < 2.5
    assert ratios.max() > 3.5


def test_one_pixel_boxes_are_dropped_in_the_inclusive_convention() -> None:
    boxes = torch.tensor([[10.3, 5.0, 11.3, 9.0], [10.3, 5.0, 12.3, 9.0], [0.0, 0.0, 40.0, 30.0]])
    inclusive, kept = to_inclusive(boxes, torch.tensor([[30, 40]] * 3))
    assert kept.tolist() == [False, True, True]
    assert inclusive[2].tolist() == [0, 0, 39, 29]


@pytest.mark.parametrize("max_side", [100, 1333])
@pytest.mark.parametrize("long", [1332, 1334, 2000, 2666, 2667, 10_000, 400_000])
@pytest.mark.parametrize("short", [1, 2, 3, 50])
def test_the_longer_side_exceeds_its_limit_by_a_third_at_most(short: int, long: int, max_side: int) -> None:
    size = resize_size(short, long, 800, max_side)
    assert resize_size(long, short, 800, max_side) == size[::-1]
    assert size[0] >= 1
    assert size[1] <= max_side * 4 / 3


def test_the_boxes_of_an_extremely_long_image_stay_inside() -> None:
    transform = Transform((800,), 1333)
    objects = Objects(torch.tensor([[0.0, 0, 300_000, 1], [399_000, 0, 400_000, 1]]), torch.zeros(2, dtype=torch.int64))
    image, objects = transform(Image.new("RGB", (400_000, 1)), objects)
    assert image.shape == (3, 1, 1333)
    assert objects.boxes.flatten().tolist() == pytest.approx([0, 0, 999.75, 1, 1329.6675, 0, 1333, 1], abs=1e-2)
