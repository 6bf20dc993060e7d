from __future__ import annotations

import os
import pickle
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_data import BOXES, SIZES, coco_tree, config, write_coco

from fcos.data import Annotations, DetectionDataset, Transform, checks, load_annotations
from fcos.data.augmentations import Placement, Zoom
from fcos.data.geometry import crop_boxes, resize_boxes, resize_size
from fcos.data.images import ImageCheck
from fcos.data.transforms import MIN_VISIBLE
from fcos.errors import DataError
from fcos.evaluation.coco_metrics import coco_metrics


@pytest.fixture
def train(tmp_path: Path) -> Annotations:
    tree = coco_tree()
    tree["annotations"][0] |= {"iscrowd": 1, "area": 77.0}
    loaded = load_annotations(config(write_coco(tmp_path, tree)), "train")
    assert loaded is not None
    return loaded


def _large_annotations(images: int, boxes: int) -> Annotations:
    names = [f"{i:012}.jpg".encode() for i in range(images)]
    offsets = np.linspace(0, boxes, images + 1).astype(np.int64)
    return Annotations(
        root=Path("images"),
        names=b"".join(names),
        name_offsets=16 * np.arange(images + 1),
        image_ids=np.arange(images),
        sizes=np.full((images, 2), 100, dtype=np.int32),
        offsets=offsets,
        boxes=np.tile(np.array([1, 2, 3, 4], dtype=np.float32), (boxes, 1)),
        labels=np.zeros(boxes, dtype=np.int64),
        crowd=np.zeros(boxes, dtype=bool),
        areas=np.ones(boxes, dtype=np.float32),
        annotation_ids=np.arange(boxes),
        class_names=("x",),
        category_ids=(1,),
    )


def test_image_of_matches_spans_and_boxes_per_class_excludes_crowds(train: Annotations) -> None:
    spans = [train.span(i) for i in range(len(train))]
    assert train.image_of.tolist() == [i for i, span in enumerate(spans) for _ in range(span.stop - span.start)]
    labels = [label for label, crowd in zip(train.labels.tolist(), train.crowd.tolist(), strict=True) if not crowd]
    assert 0 < len(labels) < len(train.labels)  # there is a crowd
    assert train.boxes_per_class().tolist() == [labels.count(label) for label in range(len(train.class_names))]
    more = replace(train, class_names=(*train.class_names, "owl"))
    assert more.boxes_per_class().tolist() == [*train.boxes_per_class().tolist(), 0]


def test_digest_changes_with_everything_that_affects_metrics(train: Annotations) -> None:
    digest = train.digest()
    assert replace(train, root=Path("elsewhere")).digest() == digest
    changed = [replace(train, **{name: getattr(train, name) + 1}) for name in ("image_ids", "sizes", "labels", "areas")]
    changed += [replace(train, boxes=train.boxes * np.float32(0.5)), replace(train, crowd=~train.crowd)]
    changed += [replace(train, offsets=train.offsets[::-1]), replace(train, class_names=("a", "b"))]
    digests = {other.digest() for other in changed}
    assert len(digests) == len(changed)
    assert digest not in digests


def test_to_coco_reproduces_the_annotations(train: Annotations) -> None:
    tree, original = train.to_coco(), coco_tree()
    assert tree["images"] == original["images"]
    assert tree["categories"] == original["categories"]
    own_areas = [77.0, 600.0, 240.0]
    assert tree["annotations"] == [
        {**a, "iscrowd": int(a["id"] == 100), "area": area}
        for a, area in zip(original["annotations"], own_areas, strict=True)
    ]


def test_non_ascii_file_names_load(tmp_path: Path) -> None:
    tree = coco_tree()
    tree["images"][0]["file_name"] = "Bär 1.png"
    write_coco(tmp_path, tree)
    (tmp_path / "images/a.png").rename(tmp_path / "images/Bär 1.png")
    annotations = load_annotations(config(tmp_path), "train")
    assert annotations is not None
    assert [annotations.file_name(i) for i in range(3)] == ["Bär 1.png", "b.png", "c.png"]
    assert annotations.path(0) == tmp_path / "images/Bär 1.png"


def test_annotations_of_a_million_boxes_create_few_python_objects() -> None:
    """Loader workers share arrays. Python objects would be copied into each, as their reference counts change."""
    annotations = _large_annotations(100_000, 1_000_000)
    values = [getattr(annotations, f.name) for f in fields(annotations)]
    arrays = [v for v in values if isinstance(v, np.ndarray)]
    assert all(v.dtype != object for v in arrays)
    content = sum(v.nbytes for v in arrays) + len(annotations.names)
    assert len(pickle.dumps(DetectionDataset(annotations, transform=Transform((32,), 64)))) < content + 5000
    assert annotations.file_name(99_999) == "000000099999.jpg"


def test_sample_has_the_pixels_and_boxes_of_its_image(train: Annotations) -> None:
    dataset = DetectionDataset(train, transform=Transform((30,), 100))
    sample = dataset[1]
    with Image.open(train.path(1)) as image:
        resized = np.asarray(image.resize((30, 40)))
    assert np.array_equal(sample.image.permute(1, 2, 0).numpy(), resized)
    assert sample.objects.boxes.tolist() == [list(BOXES[2][2])]
    assert sample.objects.labels.tolist() == [1]
    assert sample.index == 1
    assert dataset[0].objects.is_crowd.tolist() == [True, False]


def test_image_without_boxes_gives_empty_targets(train: Annotations) -> None:
    sample = DetectionDataset(train, transform=Transform((30,), 100))[2]
    assert sample.objects.boxes.shape == (0, 4)
    assert sample.objects.boxes.dtype == torch.float32
    assert sample.objects.labels.dtype == torch.int64
    assert sample.objects.is_crowd.dtype == torch.bool


def test_inclusive_boxes_end_at_their_last_pixel(train: Annotations) -> None:
    dataset = DetectionDataset(train, transform=Transform((30,), 100), box_convention="inclusive")
    assert dataset[0].objects.boxes.tolist() == [[2, 3, 11, 22], [10, 10, 39, 29]]
    assert len(train.boxes) == len(BOXES)


def test_image_with_changed_size_raises_data_error(train: Annotations) -> None:
    Image.new("RGB", (12, 12)).save(train.path(0))
    with pytest.raises(DataError, match=r"a\.png: is 12x12, but was 40x30 when the data was checked"):
        DetectionDataset(train, transform=Transform((30,), 100))[0]


def test_non_unicode_file_and_class_names_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only some file systems allow such names, so no file is written."""
    odd = os.fsdecode(b"caf\xe9.png")
    tree = coco_tree()
    tree["images"][0]["file_name"] = odd
    tree["categories"][0]["name"] = "caf\udce9"
    sound = [ImageCheck((height, width)) for width, height in SIZES.values()]
    monkeypatch.setattr(checks, "check_images", lambda *_, **__: sound)
    annotations = load_annotations(config(write_coco(tmp_path, tree)), "train")
    assert annotations is not None
    assert annotations.path(0) == tmp_path / "images" / odd
    assert annotations.class_names == ("caf\\udce9", "dog")
    assert sorted(coco_metrics(annotations.to_coco(), []).per_class) == ["caf\\udce9", "dog"]


def test_images_without_boxes_are_kept(train: Annotations) -> None:
    assert len(train) == len(SIZES)
    assert train.span(2) == slice(3, 3)


def test_objects_cropped_by_zoom_are_ignored_or_dropped(train: Annotations) -> None:
    """The expected objects are computed from the boxes alone, with the same arithmetic."""
    zoom = Zoom((1.5, 4.0))
    transform = Transform((30,), 100, (zoom,))
    dataset = DetectionDataset(train, transform=transform)
    boxes, labels = torch.from_numpy(train.boxes[train.span(1)]), torch.from_numpy(train.labels[train.span(1)])
    height, width = train.sizes[1].tolist()
    seen = set()
    for seed in range(100):
        sample = dataset.load(1, seed)
        short_side, (drawn,) = transform.draw(seed)
        placement = zoom.place(Placement.whole_of(resize_size(height, width, short_side, 100)), drawn)
        enlarged = resize_boxes(boxes, (height, width), placement.whole)
        cut, visible = crop_boxes(enlarged, placement.origin, placement.size, "continuous")
        assert torch.equal(sample.objects.boxes, cut[visible > 0])
        assert torch.equal(sample.objects.labels, labels[visible > 0])
        assert torch.equal(sample.objects.is_crowd, visible[visible > 0] < MIN_VISIBLE)
        seen |= {"gone" if v == 0 else "ignored" if v < MIN_VISIBLE else "kept" for v in visible.tolist()}
    assert seen == {"gone", "ignored", "kept"}
