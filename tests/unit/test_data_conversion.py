"""Conversion of data sets to COCO files: nothing is lost or rounded."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tool_exports
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_data import (
    SIZES,
    coco_tree,
    config,
    contents,
    digests,
    write_coco,
    write_images,
    write_json,
    write_voc,
    write_yolo,
)

from fcos.data import load_annotations
from fcos.data.conversion import convert
from fcos.data.layouts import SPLITS
from fcos.errors import DataError
from fcos.masks import encode

CLASSES = {"yolo": ["cat", "dog"]}


def read_tree(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text())


EXPORTS = [
    *(tool_exports.label_studio_coco, tool_exports.label_studio_coco_on_windows, tool_exports.cvat_coco),
    *(tool_exports.cvat_coco_with_subsets, tool_exports.roboflow_coco_without_splits),
    *(tool_exports.label_studio_yolo, tool_exports.labelimg_yolo, tool_exports.cvat_yolo),
    *(tool_exports.roboflow_darknet, tool_exports.cvat_ultralytics),
    *(tool_exports.labelimg_voc, tool_exports.cvat_voc, tool_exports.roboflow_voc, tool_exports.voc_trainval),
    *(tool_exports.labelme, tool_exports.labelme_in_other_folder, tool_exports.labelme_with_splits),
    *(tool_exports.cvat_images, tool_exports.cvat_project),
    *(tool_exports.csv_with_splits, tool_exports.csv_with_split_column, tool_exports.csv_retinanet),
    *(tool_exports.csv_open_images, tool_exports.csv_xywh),
    *(tool_exports.hugging_face, tool_exports.hugging_face_with_splits, tool_exports.hugging_face_with_one_file),
]


@pytest.mark.parametrize("copy_images", [False, True])
@pytest.mark.parametrize("export", EXPORTS, ids=lambda export: export.__name__)
def test_every_layout_is_read_with_the_same_result(
    export: Callable[[Path], None], copy_images: bool, tmp_path: Path
) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    export(source)
    before = digests(source)
    files = convert(config(source), out, copy_images=copy_images)
    assert [file.stem for file in files] == list(before)
    assert digests(out) == before
    old, new = (load_annotations(config(root), "train") for root in (source, out))
    assert old is not None
    assert new is not None
    assert contents(new) == contents(old)


@pytest.mark.parametrize("write", [write_coco, write_yolo, write_voc], ids=lambda write: write.__name__)
def test_copied_images_do_not_need_the_source(write: Callable[..., Path], tmp_path: Path) -> None:
    source = write(tmp_path / "source")
    before = digests(source)
    convert(config(source), tmp_path / "out", copy_images=True)
    source.rename(tmp_path / "elsewhere")
    (tmp_path / "out").rename(tmp_path / "moved")
    assert digests(tmp_path / "moved") == before
    names = [image["file_name"] for image in read_tree(tmp_path / "moved/train.json")["images"]]
    assert sorted(names) == sorted(SIZES)


def test_images_are_named_relative_to_the_output(tmp_path: Path) -> None:
    source = write_coco(tmp_path / "source")
    convert(config(source), tmp_path / "a/out")
    assert read_tree(tmp_path / "a/out/train.json")["images"][0]["file_name"] == "../../source/images/a.png"
    convert(config(source), source / "coco")
    assert read_tree(source / "coco/train.json")["images"][0]["file_name"] == "../images/a.png"


def test_output_behind_a_link_names_existing_images(tmp_path: Path) -> None:
    source = write_coco(tmp_path / "source")
    (tmp_path / "far/away").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far/away")
    before = digests(source)
    convert(config(source), tmp_path / "link/out")
    assert digests(tmp_path / "link/out") == before


@pytest.mark.skipif(os.name == "nt", reason="file names are Unicode")
def test_file_names_that_are_not_unicode_are_found_again(tmp_path: Path) -> None:
    source = write_voc(tmp_path / "source")
    for folder, suffix in (("JPEGImages", "png"), ("Annotations", "xml")):
        os.rename(
            os.fsencode(source / folder / f"a.{suffix}"),
            os.fsencode(source / folder) + f"/\xe9.{suffix}".encode("latin1"),
        )
    (source / "ImageSets/Main/train.txt").unlink()
    before = digests(source, format="voc")
    convert(config(source, format="voc"), tmp_path / "out")
    assert digests(tmp_path / "out") == before


# ---------------------------------------------------------------------------------------------------- exact coordinates


def test_numbers_masks_and_keypoints_are_those_of_the_file(tmp_path: Path) -> None:
    tree = coco_tree()
    bitmap = np.zeros((40, 30), dtype=bool)
    bitmap[8:24, 0:15] = True
    bitmap[10:12, 3:5], bitmap[38, 20] = False, True  # a hole and a second part
    shapes = [[[2.1, 3.3, 12.7, 3, 12.123456789012345, 23, 2, 23.1]], [[10, 11, 39, 10, 25, 30], [1, 2, 3, 4, 5, 9.5]]]
    for annotation, shape in zip(tree["annotations"], [*shapes, encode(bitmap)], strict=True):
        annotation.update(segmentation=shape, iscrowd=0, keypoints=[0] * 6, num_keypoints=0)
    tree["annotations"][0].update(bbox=[10.1, 3.3, 5.7, 17.123456789012345], area=123.45678901234567, iscrowd=1)
    tree["annotations"][1].update(bbox=[-1.7, 3, 30.3, 8], area=77)
    tree["annotations"][2].update(area=300)
    tree["annotations"][1].update(keypoints=[7.123456789012345, 12, 2, 0.1, 30, 1], num_keypoints=2)
    for category in tree["categories"]:
        category.update(keypoints=["head", "tail"], skeleton=[[1, 2]], flip_pairs=[[2, 1]])
    source = write_coco(tmp_path / "source", tree)
    convert(config(source), tmp_path / "out")
    written = read_tree(tmp_path / "out/train.json")
    by_id = {annotation["id"]: annotation for annotation in written["annotations"]}
    assert [by_id[annotation["id"]] for annotation in tree["annotations"]] == tree["annotations"]
    assert written["categories"] == tree["categories"]
    options = {"masks": True, "keypoints": True}
    assert digests(tmp_path / "out", **options) == digests(source, **options)


numbers = st.floats(-5, 60, width=64) | st.integers(-5, 60).map(float) | st.floats(0, 40).map(lambda x: round(x, 2))
lengths = st.floats(1e-3, 60, width=64) | st.integers(1, 60).map(float)


@st.composite
def random_annotations(draw: st.DrawFn) -> dict[str, Any]:
    """Draw an annotation of a 40x30 image."""
    points = st.lists(numbers, min_size=6, max_size=12).filter(lambda values: len(values) % 2 == 0)
    bitmaps = st.lists(st.booleans(), min_size=30, max_size=30).map(
        lambda bits: encode(np.outer(np.resize(bits, 30), np.resize(bits[::-1], 40)))
    )
    drawn: dict[str, Any] = {
        "bbox": [draw(numbers), draw(numbers), draw(lengths), draw(lengths)],
        "category_id": draw(st.sampled_from([6, 7])),
        "iscrowd": draw(st.integers(0, 1)),
    }
    optional = {
        "segmentation": bitmaps | st.lists(points, max_size=3),
        "keypoints": st.lists(numbers, min_size=4, max_size=4).map(lambda v: [*v[:2], 2, *v[2:], 1]),
        "area": st.floats(1e-3, 1200),
    }
    return drawn | {key: draw(values) for key, values in optional.items() if draw(st.booleans())}


BOX = {"bbox": [0.0, 0.0, 1.0, 1.0], "category_id": 6}


@settings(max_examples=25, deadline=None)
@given(objects=st.lists(random_annotations(), min_size=1, max_size=5))
@example(objects=[BOX | {"iscrowd": 1}, BOX | {"iscrowd": 0, "segmentation": [[0.0] * 6]}])
def test_random_annotations_are_read_with_the_same_result(
    objects: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("random")
    tree = {
        "images": [{"id": 3, "file_name": "a.png", "width": 40, "height": 30}],
        "annotations": [{"id": 9 - i, "image_id": 3, **each} for i, each in enumerate(objects)],
        "categories": [{"id": i, "name": name, "keypoints": ["x", "y"]} for i, name in ((7, "cat"), (6, "dog"))],
    }
    source = write_coco(folder / "source", tree)
    options = {"on_error": "skip"}
    convert(config(source, **options), folder / "out")
    usable = load_annotations(config(source, **options), "train", lossless=True)
    assert usable is not None
    has_masks = usable.masks is not None and len(usable.masks.points) > 0
    kinds = [
        *(["masks"] if has_masks else []),
        *(["keypoints"] if usable.keypoints is not None and usable.keypoints.values.any() else []),
    ]
    for kind in ([], *([kind] for kind in kinds), kinds):
        selected = dict.fromkeys(kind, True)
        assert digests(folder / "out", **selected, **options) == digests(source, **selected, **options)
    if "masks" not in kinds:
        return
    of_masks = config(source, boxes="masks", **options)
    convert(of_masks, folder / "of masks")
    with_area = load_annotations(of_masks, "train", lossless=True)
    assert with_area is not None
    assert with_area.masks is not None
    if len(with_area.masks.points):
        before = digests(source, masks=True, boxes="masks", **options)
        assert digests(folder / "of masks", masks=True, **options) == before
    elif len(with_area.boxes):  # of objects without a mask
        with pytest.raises(DataError, match="needs the masks of the objects"):
            digests(folder / "of masks", masks=True, **options)


@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(st.tuples(*[st.floats(0, 1)] * 4), min_size=1, max_size=5),
    size=st.tuples(st.integers(4, 50), st.integers(4, 50)),
)
def test_random_fractions_of_images_are_read_with_the_same_result(
    rows: list[tuple[float, ...]], size: tuple[int, int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("fractions")
    source = folder / "source"
    write_images(source / "images/train", {"a.png": size})
    (source / "labels/train").mkdir(parents=True)
    text = "".join(f"1 {' '.join(map(repr, row))}\n" for row in rows)
    (source / "labels/train/a.txt").write_text(text)
    (source / "data.yaml").write_text("train: images/train\nnames: [cat, dog]\n")
    convert(config(source, on_error="skip"), folder / "out")
    assert digests(folder / "out", on_error="skip") == digests(source, on_error="skip")


def test_boxes_of_rotated_images_are_those_of_the_displayed_image(tmp_path: Path) -> None:
    tree = coco_tree()
    tree["annotations"][0]["segmentation"] = [[2.5, 3, 12, 3, 12, 23.25]]
    source = write_coco(tmp_path / "source", tree)
    image = Image.open(source / "images/a.png")
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(source / "images/a.png", exif=exif)
    before = digests(source)
    convert(config(source), tmp_path / "out")
    assert digests(tmp_path / "out") == before
    assert [image["width"] for image in read_tree(tmp_path / "out/train.json")["images"]][:1] == [30]


# ------------------------------------------------------------------------------------------------------ splits, classes


def test_all_splits_have_the_same_categories(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for split, label in (("train", "dog"), ("val", "cat"), ("test", "owl")):
        write_images(source / split, {"a.png": (40, 30)})
        tree = tool_exports.labelme_tree("a.png", "a.png")
        tree["shapes"][0]["label"] = tree["shapes"][1]["label"] = label
        write_json(source / split / "a.json", tree)
    convert(config(source), tmp_path / "out")
    trees = {split: read_tree(tmp_path / f"out/{split}.json") for split in SPLITS}
    categories = [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}, {"id": 3, "name": "owl"}]
    assert [tree["categories"] for tree in trees.values()] == [categories] * 3
    assert [tree["annotations"][0]["category_id"] for tree in trees.values()] == [1, 2, 3]


def test_images_can_be_held_out_for_validation(tmp_path: Path) -> None:
    source = write_coco(tmp_path / "source")
    options = {"val_fraction": 0.34}
    before = digests(source, **options)
    files = convert(config(source, **options), tmp_path / "out")
    assert [file.name for file in files] == ["train.json", "val.json"]
    assert digests(tmp_path / "out") == before


def test_split_without_objects_is_converted(tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_coco(source)
    write_coco(source, {**coco_tree(), "annotations": []}, split="val")
    convert(config(source), tmp_path / "out")
    assert digests(tmp_path / "out") == digests(source)


def test_data_without_classes_is_an_error(tmp_path: Path) -> None:
    tree = {**coco_tree(), "annotations": [], "categories": []}
    with pytest.raises(DataError, match="source: expected annotations with at least one class, found none"):
        convert(config(write_coco(tmp_path / "source", tree)), tmp_path / "out")


def test_unusable_annotations_stop_the_conversion_or_are_left_out(tmp_path: Path) -> None:
    tree = coco_tree()
    tree["annotations"][0]["bbox"] = [5, 5, 0, 4]
    source = write_coco(tmp_path / "source", tree)
    with pytest.raises(DataError, match=r"annotation 100: box .* has no area\nFix it, or set data.on_error=skip"):
        convert(config(source), tmp_path / "out")
    assert not (tmp_path / "out/train.json").exists()
    convert(config(source, on_error="skip"), tmp_path / "out")
    assert [a["id"] for a in read_tree(tmp_path / "out/train.json")["annotations"]] == [99, 98]


def test_objects_without_mask_are_kept(tmp_path: Path) -> None:
    tree = coco_tree()
    tree["annotations"][1]["segmentation"] = [[10, 10, 40, 10, 25, 30]]
    convert(config(write_coco(tmp_path / "source", tree)), tmp_path / "out")
    shapes = {a["id"]: a["segmentation"] for a in read_tree(tmp_path / "out/train.json")["annotations"]}
    assert shapes == {100: [], 99: [[10, 10, 40, 10, 25, 30]], 98: []}


# -------------------------------------------------------------------------------------------------- masks and keypoints


def test_masks_are_required_of_every_object_if_asked_for(tmp_path: Path) -> None:
    tree = coco_tree()
    tree["annotations"][1]["segmentation"] = [[10, 10, 40, 10, 25, 30]]
    source = write_coco(tmp_path / "source", tree)
    for options in ({"masks": True}, {"boxes": "masks"}):
        with pytest.raises(DataError, match="annotation 100: has no mask"):
            convert(config(source, **options), tmp_path / "out", overwrite=True)
        convert(config(source, on_error="skip", **options), tmp_path / "out", overwrite=True)
        assert [a["id"] for a in read_tree(tmp_path / "out/train.json")["annotations"]] == [99]


@pytest.mark.parametrize(
    ("shape", "option", "message"),
    [
        ({"segmentation": {"size": [30, 40], "counts": [7]}}, "masks", "annotation 99: expected segmentation"),
        ({"segmentation": {"size": [3, 4], "counts": [0, 12]}}, "masks", "annotation 99: its mask is 4x3"),
        ({"keypoints": [1, 2, 9]}, "keypoints", "annotation 99: expected keypoints"),
        ({"keypoints": [1, 2, 2, 3, 4, 2]}, "keypoints", "annotation 99: expected 1 keypoints"),
    ],
)
def test_broken_shapes_can_be_left_out(shape: dict[str, Any], option: str, message: str, tmp_path: Path) -> None:
    tree = coco_tree()
    for annotation in tree["annotations"]:
        annotation.update(segmentation=[[10, 10, 30, 10, 25, 20]], keypoints=[11, 12, 2])
    tree["annotations"][1] |= shape
    source = write_coco(tmp_path / "source", tree)
    with pytest.raises(DataError, match=f"{message}(.|\n)*, or leave out what is broken with data.{option}=false"):
        convert(config(source), tmp_path / "out")
    convert(config(source, on_error="skip", **{option: False}), tmp_path / "out")
    written = read_tree(tmp_path / "out/train.json")["annotations"]
    key = "segmentation" if option == "masks" else "keypoints"
    assert [(a["id"], key in a) for a in written] == [(100, False), (99, False), (98, False)]


def test_boxes_of_masks_are_converted_without_the_masks(tmp_path: Path) -> None:
    tree = coco_tree()
    for annotation in tree["annotations"]:
        annotation["segmentation"] = [[10, 10, 30, 10, 25, 20]]
    convert(config(write_coco(tmp_path / "source", tree), boxes="masks", masks=False), tmp_path / "out")
    written = read_tree(tmp_path / "out/train.json")["annotations"]
    assert [(a["bbox"], "segmentation" in a) for a in written] == [([10, 10, 20, 10], False)] * 3


def test_data_with_different_keypoints_is_converted_without_them(tmp_path: Path) -> None:
    tree = coco_tree()
    tree["annotations"][0]["keypoints"] = [11, 12, 2]
    for category, names in zip(tree["categories"], (["nose"], ["tail"]), strict=True):
        category["keypoints"] = names
    source = write_coco(tmp_path / "source", tree)
    with pytest.raises(DataError, match=r"need the same ones, .*; data.keypoints=false reads the data without"):
        convert(config(source), tmp_path / "out")
    convert(config(source, keypoints=False), tmp_path / "out")
    assert digests(tmp_path / "out") == digests(source)
