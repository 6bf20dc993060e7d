"""Test-time augmentation: the views, which prediction and evaluation use in the same way."""

import json

import numpy as np
import pytest
import torch
from detectors import NAMES, tiny_config, tiny_model, tiny_retinanet, tiny_two_stage
from PIL import Image, ImageOps

from fcos.config import Config
from fcos.config.detectors import DETECTORS
from fcos.config.overrides import validate
from fcos.data import build_test_loader, load_annotations
from fcos.data.augmentations import Flip
from fcos.data.transforms import detection_views
from fcos.evaluation.evaluate import evaluate
from fcos.inference.predictor import Detector

FLIP = {"flip": True}
EVERYTHING = {"flip": True, "scales": [64, 128], "scales_max_side": 200, "scales_flip": True}


def config(augmentation, **model) -> Config:
    return validate({**tiny_config(**model).to_dict(), "eval": augmentation}, where="test")


def detector(augmentation, **model) -> Detector:
    torch.manual_seed(0)
    settings = config(augmentation, **model)
    build = {"fcos": tiny_model, "retinanet": tiny_retinanet}.get(settings.model.name, tiny_two_stage)
    return Detector(build(settings), settings, class_names=NAMES)


def picture(width=120, height=96, seed=0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def assert_same(found, expected) -> None:
    assert len(found) > 5
    assert found.labels.tolist() == expected.labels.tolist()
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.boxes, expected.boxes, rtol=0, atol=1e-3)


def test_default_is_a_single_unmirrored_view() -> None:
    assert [view.is_mirrored for view in detection_views(tiny_config())] == [False]


def test_views_are_ordered_by_scale_then_mirroring() -> None:
    views = [(view.short_sides, view.max_side, view.augmentations) for view in detection_views(config(EVERYTHING))]
    base, small, large = ((96,), 160), ((64,), 200), ((128,), 200)
    mirrored = (Flip(1.0),)
    assert views == [
        (*base, ()), (*base, mirrored), (*small, ()), (*small, mirrored), (*large, ()), (*large, mirrored)
    ]  # fmt: skip
    only_scales = detection_views(config({"scales": [64]}))
    assert [(view.short_sides, view.max_side, view.is_mirrored) for view in only_scales] == [
        (*base, False),
        ((64,), 4000, False),
    ]


@pytest.mark.parametrize("convention", ["continuous", "inclusive"])
def test_mirrored_image_yields_mirrored_detections(convention) -> None:
    augmented = detector(FLIP, box_convention=convention)
    image = picture()
    one, other = augmented.predict(image, threshold=0), augmented.predict(ImageOps.mirror(image), threshold=0)
    x1, y1, x2, y2 = other.boxes.unbind(1)
    other.boxes.copy_(torch.stack([image.width - x2, y1, image.width - x1, y2], dim=1))
    assert_same(one, other)
    assert not torch.equal(one.scores, detector({}, box_convention=convention).predict(image, threshold=0).scores)


def test_masks_and_keypoints_are_those_of_the_merged_boxes_in_the_first_view() -> None:
    details = {"mask": {"enabled": True, "conv_channels": [8]}, "keypoints": {"enabled": True, "conv_channels": [8]}}
    image = picture(133, 90)
    plain = detector({}, name="rcnn", **details).predict(image, threshold=0)
    twice = detector({"scales": [96], "scales_max_side": 160}, name="rcnn", **details).predict(image, threshold=0)
    assert_same(twice, plain)  # the boxes of equal views
    torch.testing.assert_close(twice.mask_grids, plain.mask_grids, rtol=0, atol=1e-5)
    torch.testing.assert_close(twice.keypoints, plain.keypoints, rtol=0, atol=1e-3)
    mirrored = detector(FLIP, name="rcnn", **details).predict(image, threshold=0)
    assert mirrored.mask_grids is not None
    assert mirrored.keypoints is not None
    x, y = mirrored.keypoints[..., :2].unbind(-1)  # they are inside their boxes, so in the same frame
    x1, y1, x2, y2 = mirrored.boxes[:, :, None].unbind(1)
    assert ((x > x1 - 1) & (x < x2 + 1) & (y > y1 - 1) & (y < y2 + 1)).all()


@pytest.mark.parametrize("convention", ["continuous", "inclusive"])
def test_duplicate_view_does_not_change_detections(convention) -> None:
    image = picture(133, 90)
    twice = detector({"scales": [96], "scales_max_side": 160}, box_convention=convention).predict(image, threshold=0)
    assert_same(twice, detector({}, box_convention=convention).predict(image, threshold=0))


def test_boxes_from_another_scale_are_in_original_pixels() -> None:
    """Detections from an image of twice the size are in pixels of the original image."""
    image = picture()
    alone = detector({"scales": [192], "scales_max_side": 400}, score_threshold=0).predict(image, threshold=0)
    assert (alone.boxes >= 0).all()
    assert (alone.boxes[:, [0, 2]] <= image.width).all()
    assert (alone.boxes[:, [1, 3]] <= image.height).all()
    one = detector({}, score_threshold=0, max_detections=1)
    larger = one.config.data.model_copy(update={"short_side": [192], "max_side": 400})
    large = Detector(one.model, one.config.model_copy(update={"data": larger}))
    best = large.predict(image, threshold=0)
    assert len(best) == 1
    assert (alone.boxes - best.boxes).abs().amax(dim=1).min() < 1e-3


@pytest.mark.parametrize("name", DETECTORS)
def test_batched_detections_match_single_image_detections(name: str) -> None:
    augmented = detector(EVERYTHING, name=name)
    pictures = [picture(*size, seed=i) for i, size in enumerate([(120, 80), (80, 120), (120, 83), (118, 80), (64, 64)])]
    for found, image in zip(augmented.predict(pictures, threshold=0), pictures, strict=True):
        assert_same(found, augmented.predict(image, threshold=0))


@pytest.fixture
def data(tmp_path):
    """Return a data set of three images, of which the middle one is missing."""
    images = []
    for i, (width, height) in enumerate([(120, 80), (80, 120), (122, 80)]):
        picture(width, height, seed=i).save(tmp_path / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "width": width, "height": height})
    boxes = [{"id": i, "image_id": i, "category_id": 1 + i, "bbox": [5, 5, 40, 40]} for i in range(3)]
    categories = [{"id": 1 + i, "name": name} for i, name in enumerate(NAMES)]
    (tmp_path / "val.json").write_text(json.dumps({"images": images, "annotations": boxes, "categories": categories}))
    return tmp_path


@pytest.mark.parametrize("name", DETECTORS)
def test_evaluation_scores_match_prediction_scores(data, name: str) -> None:
    augmented = detector(EVERYTHING, name=name)
    places = augmented.config.data.model_copy(update={"root": data})
    annotations = load_annotations(places, "val")
    assert annotations is not None
    settings = augmented.config.model_copy(update={"data": places})
    result = evaluate(augmented.model, annotations, settings, device="cpu")
    for i in range(3):
        expected = augmented.predict(data / f"{i}.png", threshold=0)
        found = [d for d in result.detections if d["image_id"] == i]
        assert [d["score"] for d in found] == pytest.approx(expected.scores.tolist(), abs=1e-5)


def test_unreadable_image_is_left_out_of_every_view(data) -> None:
    settings = config(EVERYTHING)
    places = settings.data.model_copy(update={"root": data})
    annotations = load_annotations(places, "val")
    assert annotations is not None
    (data / "0.png").unlink()
    batches = list(build_test_loader(settings, annotations, batch_size=3))
    assert sorted(int(i) for batch in batches for i in batch.indices) == [1, 2]
    for batch in batches:
        assert {len(view.images) for view in batch.views} == {len(batch.indices)}
        assert [view.flipped for view in batch.views] == [False, True] * 3
