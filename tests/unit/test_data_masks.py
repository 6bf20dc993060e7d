"""Masks and keypoints of COCO files: all forms, mistakes, and their way into training samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask
import pytest
import torch
from PIL import Image
from tiny_data import SIZES, coco_tree, config, write_coco, write_images, write_json, write_voc, write_yolo

from fcos.data import load_annotations
from fcos.data.coco_shapes import parse_segmentation
from fcos.data.dataset import Annotations, DetectionDataset
from fcos.data.loader import _flip_pairs
from fcos.data.transforms import Transform
from fcos.errors import ConfigError, DataError
from fcos.keypoints import flip_order, unpaired_names
from fcos.masks import Masks

reference: Any = pycocotools.mask
NAMES = ["nose", "left_eye", "right_eye"]
POLYGONS = [[2, 3, 12, 3, 12, 23, 2, 23.1]], [[10.1, 10.3, 39.5, 10, 25, 30], [10, 30, 15, 30, 12, 20]]
KEYPOINTS = [5, 6, 2, 9, 10, 1, 0, 0, 0]


def tree_with_shapes() -> dict[str, Any]:
    """Return annotations with polygons, an uncompressed RLE for the box of b.png, and keypoints of the first box."""
    tree = coco_tree()
    width, height = SIZES["b.png"]
    bitmap = np.zeros((height, width), dtype=np.uint8)
    bitmap[8:24, 0:15] = 1
    bitmap[10:12, 3:5] = 0
    changes = np.flatnonzero(np.diff(bitmap.T.reshape(-1), prepend=0))
    runs = np.diff(np.array([0, *changes, bitmap.size])).tolist()
    rle = {"size": [height, width], "counts": runs}
    for annotation, segmentation in zip(tree["annotations"], [*POLYGONS, rle], strict=True):
        annotation["segmentation"] = segmentation
    tree["annotations"][0]["keypoints"] = KEYPOINTS
    for category in tree["categories"]:
        category.update(keypoints=NAMES, skeleton=[[1, 2], [1, 3]])
    return tree


def load(root: Path | None, **options: Any) -> Annotations:
    annotations = load_annotations(config(root, **options), "train")
    assert annotations is not None
    return annotations


def load_with_masks(tmp_path: Path, segmentation: Any, **options: Any) -> Annotations:
    """Load the data whose first box has this segmentation."""
    tree = tree_with_shapes()
    tree["annotations"][0]["segmentation"] = segmentation
    return load(write_coco(tmp_path, tree), masks=True, **options)


# ---------------------------------------------------------------------------------------------------------------- masks


def test_masks_are_rasterised_as_by_pycocotools(tmp_path: Path) -> None:
    annotations = load(write_coco(tmp_path, tree_with_shapes()), masks=True)
    assert annotations.masks is not None
    codes = {a["id"]: a["segmentation"] for a in annotations.to_coco()["annotations"]}
    for annotation in tree_with_shapes()["annotations"]:
        width, height = SIZES["b.png" if annotation["id"] == 98 else "a.png"]
        code = reference.frPyObjects(annotation["segmentation"], height, width)
        code = code if isinstance(code, dict) else reference.merge(code)
        assert codes[annotation["id"]] == {"size": [height, width], "counts": code["counts"].decode()}
    json.dumps(annotations.to_coco())


def test_masks_are_not_read_unless_asked_for(tmp_path: Path) -> None:
    annotations = load(write_coco(tmp_path, tree_with_shapes()))
    assert annotations.masks is None
    assert annotations.keypoints is None
    assert annotations.digest() == load(write_coco(tmp_path / "plain")).digest()


def test_compressed_rle_equals_its_uncompressed_form(tmp_path: Path) -> None:
    bitmap = np.zeros((30, 40), dtype=np.uint8, order="F")
    bitmap[3:23, 2:12] = np.arange(200).reshape(20, 10) % 3 > 0
    code = reference.encode(bitmap)
    annotations = load_with_masks(tmp_path, {"size": [30, 40], "counts": code["counts"].decode()})
    assert annotations.masks is not None
    np.testing.assert_array_equal(annotations.masks[:1].to_bitmaps((30, 40))[0], bitmap)


def test_flat_polygon_is_a_single_polygon(tmp_path: Path) -> None:
    annotations = load_with_masks(tmp_path, [1, 1, 5, 1, 5, 5])
    assert annotations.masks is not None
    assert annotations.masks.polygons()[0][0].tolist() == [[1, 1], [5, 1], [5, 5]]


def test_polygons_without_three_points_are_left_out(tmp_path: Path) -> None:
    annotations = load_with_masks(tmp_path, [[1, 1, 5, 5], [1, 1, 5, 1, 5, 5]])
    assert annotations.masks is not None
    assert len(annotations.masks.polygons()[0]) == 1


@pytest.mark.parametrize(
    "segmentation",
    [
        "polygon",
        [[1, 2, 3, 4, 5, 6, 7]],
        [[1, 2, 3, 4, 5, "x"]],
        [[1, 2, 3, 4, 5, float("nan")]],
        [[1, 2, 3, 4, 5, None]],
        [1, 1, 5, 1, [5], 5],
        [[[1, 1], [5, 1], [5, 5]]],
        {"size": [30, 40]},
        {"size": [30], "counts": "0"},
        {"size": [30, -40], "counts": "0"},
        {"size": [2**40, 2**40], "counts": "0"},
        {"size": [30, 40], "counts": [-1, 2]},
        {"size": [30, 40], "counts": [1, 1200]},
        {"size": [30, 40], "counts": [600, 10]},
        {"size": [30, 40], "counts": []},
        {"size": [30, 40], "counts": "05"},
        {"size": [30, 40], "counts": ""},
        {"size": [30, 40], "counts": "o" * 100},
        {"size": [30, 40], "counts": [0.5]},
        {"size": [30, 40], "counts": "zzzzzzzzzzzzzzzzzzz"},
        {"size": [30, 40], "counts": "∞"},
    ],
)
def test_broken_segmentation_names_the_annotation(segmentation: Any, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"annotation 100: expected segmentation \(polygons \[\[x1, y1, .*RLE.* \(image a.png\)"
    ):
        load_with_masks(tmp_path, segmentation)


@pytest.mark.parametrize("segmentation", [None, [], [[]], [[1, 1, 5, 5]], {"size": [30, 40], "counts": [1200]}])
def test_object_without_mask_is_an_error_or_skipped(segmentation: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="annotation 100: has no mask"):
        load_with_masks(tmp_path / "stop", segmentation)
    annotations = load_with_masks(tmp_path / "skip", segmentation, on_error="skip")
    assert annotations.annotation_ids.tolist() == [99, 98]
    assert annotations.masks is not None
    assert len(annotations.masks) == 2


def test_crowd_needs_no_mask(tmp_path: Path) -> None:
    tree = tree_with_shapes()
    tree["annotations"][0].update(segmentation=[], iscrowd=1)
    assert len(load(write_coco(tmp_path, tree), masks=True).boxes) == 3


def test_mask_of_another_size_than_its_image_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="annotation 100: its mask is 30x40, but its image 40x30"):
        load_with_masks(tmp_path, {"size": [40, 30], "counts": [0, 10, 1190]})


@pytest.mark.parametrize(("write", "file"), [(write_coco, "train.json"), (write_voc, "a.xml")])
def test_data_without_masks_is_one_clear_error(write: Any, file: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"{file}: data.masks=true needs the masks of the objects .*found none"):
        load(write(tmp_path), masks=True)


def test_background_images_need_no_masks(tmp_path: Path) -> None:
    annotations = load(write_coco(tmp_path, coco_tree() | {"annotations": []}), masks=True, keypoints=True)
    assert annotations.objects(0).masks is not None


# --------------------------------------------------------------------------------------------------- boxes of the masks


def test_boxes_may_be_those_of_the_masks(tmp_path: Path) -> None:
    root = write_coco(tmp_path, tree_with_shapes())
    from_masks = load(root, boxes="masks")
    assert from_masks.masks is None
    expected = np.array([[2, 3, 12, 23.1], [10, 10, 39.5, 30], [0, 8, 15, 24]], dtype=np.float32)
    np.testing.assert_array_equal(from_masks.boxes, expected)
    both = load(root, boxes="masks", masks=True)
    np.testing.assert_array_equal(both.boxes, expected)
    assert both.masks is not None
    assert load(root).boxes[0].tolist() == [2, 3, 12, 23]


def test_wrong_boxes_of_the_file_do_not_matter_with_those_of_the_masks(tmp_path: Path) -> None:
    tree = tree_with_shapes()
    tree["annotations"][0]["bbox"] = [500, 500, 0, 0]
    assert load(write_coco(tmp_path, tree), boxes="masks").boxes[0].tolist() == [2, 3, 12, pytest.approx(23.1)]


def test_boxes_of_masks_in_fractions_are_in_pixels(tmp_path: Path) -> None:
    root = write_yolo(tmp_path)
    (root / "labels/train/a.txt").write_text(
        "0 0.1 0.2 0.5 0.2 0.5 0.8 0.3 0.9\n0 0.2 0.1 0.6 0.1 0.4 0.7 0.3 0.7 0.2 0.5\n"
    )
    (root / "labels/train/b.txt").unlink()
    np.testing.assert_allclose(load(root, boxes="masks").boxes, [[4, 6, 20, 27], [8, 3, 24, 21]], rtol=1e-6)


def test_boxes_of_masks_need_masks(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train.json: data.boxes=masks needs the masks of the objects .*found none"):
        load(write_coco(tmp_path), boxes="masks")


def test_object_without_mask_has_no_box_of_its_mask(tmp_path: Path) -> None:
    tree = tree_with_shapes()
    tree["annotations"][0].update(segmentation=[])
    tree["annotations"][1].update(segmentation=[], iscrowd=1)
    root = write_coco(tmp_path, tree)
    with pytest.raises(DataError, match="annotation 100: has no mask"):
        load(root, boxes="masks")
    assert load(root, boxes="masks", on_error="skip").boxes.tolist() == [[10, 10, 40, 30], [0, 8, 15, 24]]


# ------------------------------------------------------------------------------------------------------------ keypoints


def test_keypoints_have_names_and_skeleton(tmp_path: Path) -> None:
    annotations = load(write_coco(tmp_path, tree_with_shapes()), keypoints=True)
    assert annotations.keypoints is not None
    assert annotations.keypoints.names == tuple(NAMES)
    assert annotations.keypoint_layout.skeleton == ((0, 1), (0, 2))
    assert annotations.keypoints.values[0].reshape(-1).tolist() == KEYPOINTS
    assert not annotations.keypoints.values[1:].any()
    tree = annotations.to_coco()
    assert tree["annotations"][0]["keypoints"] == KEYPOINTS
    assert [a["num_keypoints"] for a in tree["annotations"]] == [2, 0, 0]
    assert tree["categories"][0]["skeleton"] == [[1, 2], [1, 3]]


def test_flip_pairs_of_the_file_take_precedence_over_names(tmp_path: Path) -> None:
    tree = tree_with_shapes()
    for category in tree["categories"]:
        category["flip_pairs"] = [[1, 3]]
    root = write_coco(tmp_path, tree)
    annotations = load(root, keypoints=True)
    assert annotations.keypoint_layout.pairs == ((0, 2),)
    assert annotations.to_coco()["categories"][0]["flip_pairs"] == [[1, 3]]
    assert annotations.keypoints is not None
    assert _flip_pairs(config(root), annotations.keypoints) == ((0, 2),)
    assert _flip_pairs(config(root, keypoint_pairs=[[0, 1]]), annotations.keypoints) == [(0, 1)]


def test_flip_pairs_of_the_file_name_a_keypoint_once(tmp_path: Path) -> None:
    tree = tree_with_shapes()
    tree["categories"][0]["flip_pairs"] = [[1, 2], [2, 3]]
    with pytest.raises(DataError, match=r"train.json: flip_pairs of cat, counted from 1: expected pairs of different"):
        load(write_coco(tmp_path, tree), keypoints=True)


@pytest.mark.parametrize(
    ("keypoints", "message"),
    [
        ([1, 2, 2], r"annotation 100: expected 3 keypoints \(nose, left_eye, right_eye\), found 1"),
        ([1, 2, 3] * 3, r"annotation 100: expected keypoints \(a list of x, y and visibility"),
        ([1, 2] * 4, r"annotation 100: expected keypoints \(a list"),
        ([1, "x", 2] * 3, r"annotation 100: expected keypoints \(a list"),
        ({"x": 1}, r"annotation 100: expected keypoints \(a list"),
    ],
)
def test_broken_keypoints_name_the_annotation(keypoints: Any, message: str, tmp_path: Path) -> None:
    tree = tree_with_shapes()
    tree["annotations"][0]["keypoints"] = keypoints
    with pytest.raises(DataError, match=message):
        load(write_coco(tmp_path, tree), keypoints=True)


def test_data_without_keypoints_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train.json: data.keypoints=true needs the keypoints .*found none"):
        load(write_coco(tmp_path), keypoints=True)


def test_keypoints_without_names_are_numbered(tmp_path: Path) -> None:
    tree = tree_with_shapes()
    for category in tree["categories"]:
        del category["keypoints"]
    annotations = load(write_coco(tmp_path, tree), keypoints=True)
    assert annotations.keypoints is not None
    assert annotations.keypoints.names == ("0", "1", "2")


def test_categories_with_different_keypoints_are_an_error(tmp_path: Path) -> None:
    tree = tree_with_shapes()
    tree["categories"][0]["keypoints"] = ["nose"]
    with pytest.raises(
        DataError, match=r"all categories with keypoints need the same ones, found cat \(1\), dog \(3\)"
    ):
        load(write_coco(tmp_path, tree), keypoints=True)


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (("nose", "left_eye", "right_eye"), (0, 2, 1)),
        (("Right-Hand", "Left-Hand"), (1, 0)),
        (("l_ear", "r_ear", "tail"), (1, 0, 2)),
        (("ear.L", "ear.R"), (1, 0)),
        (("leftmost", "lower"), (0, 1)),
        (("0", "1"), (0, 1)),
    ],
)
def test_flip_exchanges_left_and_right_by_name(names: tuple[str, ...], order: tuple[int, ...]) -> None:
    assert flip_order(names) == order


def test_flip_exchanges_given_pairs() -> None:
    assert flip_order(("a", "b", "c"), [(0, 2)]) == (2, 1, 0)
    for pairs in ([(0, 3)], [(0, 1), (1, 2)], [(1, 1)]):
        with pytest.raises(
            ConfigError, match=r"data\.keypoint_pairs: expected pairs of different keypoints from 0 to 2"
        ):
            flip_order(("a", "b", "c"), pairs)


# -------------------------------------------------------------------------------------------------------------- samples


def test_samples_contain_resized_masks_and_keypoints(tmp_path: Path) -> None:
    annotations = load(write_coco(tmp_path, tree_with_shapes()), masks=True, keypoints=True)
    objects = DetectionDataset(annotations, transform=Transform([60], 120))[0].objects
    assert objects.masks is not None
    assert objects.masks.points.dtype == np.float32
    assert objects.masks.boxes()[0].tolist() == [4, 6, 24, pytest.approx(46.2)]
    assert objects.keypoints is not None
    assert objects.keypoints[0].tolist() == [[10, 12, 2], [18, 20, 1], [0, 0, 0]]


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_masks_and_keypoints_follow_the_exif_orientation(orientation: int, tmp_path: Path) -> None:
    tree = tree_with_shapes()
    tree["images"], tree["annotations"] = tree["images"][:1], tree["annotations"][:1]
    tree["annotations"][0].update(bbox=[2, 3, 10, 20], keypoints=[2, 3, 2, 12, 23, 1, 0, 0, 0])
    write_images(tmp_path / "images", {"a.png": SIZES["a.png"]})
    image = Image.open(tmp_path / "images/a.png")
    exif = image.getexif()
    exif[274] = orientation
    image.save(tmp_path / "images/a.png", exif=exif)
    annotations = load(write_json(tmp_path / "train.json", tree).parent, masks=True, keypoints=True)
    box = annotations.boxes[0]
    assert annotations.sizes.tolist() == [[40, 30]]
    assert annotations.masks is not None
    np.testing.assert_allclose(annotations.masks.boxes()[0], box, atol=0.11)  # one corner of the polygon is at 23.1
    assert annotations.keypoints is not None
    corners = annotations.keypoints.values[0, :2, :2]
    assert [*corners.min(axis=0), *corners.max(axis=0)] == box.tolist()
    assert annotations.keypoints.values[0, 2].tolist() == [0, 0, 0]


def test_combined_data_sets_keep_masks(tmp_path: Path) -> None:
    parts = [write_coco(tmp_path / name, tree_with_shapes()) / "train.json" for name in ("one", "two")]
    images = [part.parent / "images" for part in parts]
    annotations = load(None, train={"annotations": parts, "images": images}, masks=True, keypoints=True)
    assert annotations.masks is not None
    assert len(annotations.masks) == 6
    assert torch.equal(annotations.masks[3:].boxes(), annotations.masks[:3].boxes())
    assert annotations.keypoints is not None
    assert annotations.keypoints.values.shape == (6, 3, 3)


def test_combined_data_sets_need_the_same_keypoints(tmp_path: Path) -> None:
    other = tree_with_shapes()
    for category in other["categories"]:
        category["keypoints"] = ["a", "b", "c"]
    trees = {"one": tree_with_shapes(), "two": other}
    parts = [write_coco(tmp_path / name, tree) / "train.json" for name, tree in trees.items()]
    images = [part.parent / "images" for part in parts]
    with pytest.raises(DataError, match="must have the same keypoints"):
        load(None, train={"annotations": parts, "images": images}, keypoints=True)


def test_inclusive_boxes_keep_their_masks(tmp_path: Path) -> None:
    tree = tree_with_shapes()
    tree["annotations"][0]["bbox"] = [2, 3, 1, 20]  # dropped: a pixel wide
    annotations = load(write_coco(tmp_path, tree), masks=True, keypoints=True)
    inclusive = annotations.inclusive()
    assert inclusive.masks is not None
    assert isinstance(inclusive.masks, Masks)
    assert annotations.masks is not None
    assert torch.equal(inclusive.masks.boxes(), annotations.masks[1:].boxes())


# -------------------------------------------------------------------------------------------------------- YOLO, others


def test_yolo_polygons_are_masks(tmp_path: Path) -> None:
    write_yolo(tmp_path)
    lines = ["0 .05 .1 .3 .1 .3 .5 .05 .8\n", "1 .25 .5 .75 .5 .5 .9\n"]
    (tmp_path / "labels/train/a.txt").write_text("".join(lines))
    (tmp_path / "labels/train/b.txt").write_text("0 0 0 .5 0 .5 .5 .2 .4 0 .5\n")
    annotations = load(tmp_path, masks=True)
    assert annotations.masks is not None
    polygons = [rings[0].round(6).tolist() for rings in annotations.masks.polygons()]
    assert polygons[0] == [[2, 3], [12, 3], [12, 15], [2, 24]]  # of 40 x 30 pixels
    assert polygons[2] == [[0, 0], [15, 0], [15, 20], [6, 16], [0, 20]]  # of 30 x 40 pixels
    torch.testing.assert_close(annotations.masks.boxes(), torch.from_numpy(annotations.boxes))


def test_yolo_box_among_polygons_has_no_mask(tmp_path: Path) -> None:
    write_yolo(tmp_path)
    (tmp_path / "labels/train/a.txt").write_text("0 .05 .1 .3 .1 .3 .5 .05 .8\n0 .5 .5 .2 .2\n")
    (tmp_path / "labels/train/b.txt").write_text("")
    with pytest.raises(DataError, match=r"a\.txt, line 2: has no mask"):
        load(tmp_path, masks=True)


def test_labelme_polygons_are_masks(tmp_path: Path) -> None:
    write_images(tmp_path, {"a.png": (40, 30)})
    points = [[2, 3], [12, 3], [12, 23.5]]
    shape = {"label": "cat", "shape_type": "polygon", "points": points}
    write_json(tmp_path / "a.json", {"imagePath": "a.png", "imageHeight": 30, "imageWidth": 40, "shapes": [shape]})
    annotations = load(tmp_path, masks=True)
    assert annotations.masks is not None
    assert annotations.masks.polygons()[0][0].tolist() == points


def test_cvat_polygons_are_masks(tmp_path: Path) -> None:
    write_images(tmp_path / "images", {"a.png": (40, 30)})
    shape = '<polygon label="cat" points="2,3;12,3;12,23.5"/>'
    image = f'<image id="0" name="a.png" width="40" height="30">{shape}</image>'
    (tmp_path / "annotations.xml").write_text(f"<annotations>{image}</annotations>")
    annotations = load(tmp_path, masks=True)
    assert annotations.masks is not None
    assert annotations.masks.polygons()[0][0].tolist() == [[2, 3], [12, 3], [12, 23.5]]


# ----------------------------------------------------------------------------------------------- original and real data


@pytest.mark.parametrize(("num_visible", "num_images"), [(9, 1), (10, 2)])
def test_original_does_not_train_on_images_with_few_keypoints(
    num_visible: int, num_images: int, tmp_path: Path
) -> None:
    tree = tree_with_shapes()
    for category in tree["categories"]:
        category["keypoints"] = [str(i) for i in range(12)]
    first, second, third = tree["annotations"]
    first["keypoints"] = [1, 1, 1] * 5 + [0, 0, 0] * 7
    second["keypoints"] = [1, 1, 2] * 4 + [0, 0, 0] * 7 + [1, 1, int(num_visible == 10)]
    third["keypoints"] = [1, 1, 2] * 12
    annotations = load(write_coco(tmp_path, tree), keypoints=True, convention="fcos_core")
    assert len(annotations) == num_images
    assert len(load(tmp_path, keypoints=True)) == 3


@pytest.mark.data
@pytest.mark.parametrize(("split", "num_images", "num_objects"), [("train", 83, 2559), ("val", 27, 791)])
def test_masks_of_nuclei_equal_pycocotools(split: Any, num_images: int, num_objects: int, data_sets: Path) -> None:
    annotations = load_annotations(config(data_sets / "nuclei", masks=True), split)
    assert annotations is not None
    assert (len(annotations), len(annotations.boxes)) == (num_images, num_objects)
    tree = json.loads((data_sets / "nuclei" / f"{split}.json").read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in tree["images"]}
    codes = {a["id"]: a["segmentation"]["counts"] for a in annotations.to_coco()["annotations"]}
    for annotation in tree["annotations"]:
        code = annotation["segmentation"]
        if isinstance(code, list):
            code = reference.merge(reference.frPyObjects(code, *sizes[annotation["image_id"]]))
            code["counts"] = code["counts"].decode()
        assert codes[annotation["id"]] == code["counts"]


def test_rle_of_a_small_object_in_a_large_frame_is_exact() -> None:
    bitmap = np.zeros((900, 1200), dtype=np.uint8)
    bitmap[700:707, 1100:1109] = 1
    bitmap[702, 1103] = 0
    code = reference.encode(np.asfortranarray(bitmap))
    rings = parse_segmentation({"size": [900, 1200], "counts": code["counts"].decode()}).rings
    assert torch.equal(Masks.from_polygons([rings]).to_bitmaps((900, 1200))[0], torch.from_numpy(bitmap).bool())


def test_message_gives_the_reason_of_an_invalid_segmentation(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"found \[\[10.0, 10.0, 20.0\], .*: expected pairs of finite numbers"):
        load_with_masks(tmp_path, [[10, 10, 20], [1, 2, 3, 4, 5, 6]])


def test_empty_list_of_keypoints_means_that_there_are_none(tmp_path: Path) -> None:
    tree = tree_with_shapes()
    tree["annotations"][1]["keypoints"] = []
    annotations = load(write_coco(tmp_path, tree), keypoints=True)
    assert len(annotations.boxes) == 3
    assert annotations.keypoints is not None
    assert annotations.keypoints.names == tuple(NAMES)


@pytest.mark.parametrize(
    ("names", "order"), [(("p", "p", "p"), (0, 1, 2)), (("Nose", "nose", "left_eye", "right_eye"), (0, 1, 3, 2))]
)
def test_repeated_names_are_not_exchanged(names: tuple[str, ...], order: tuple[int, ...]) -> None:
    assert flip_order(names) == order


def test_names_without_their_other_side_are_listed() -> None:
    assert unpaired_names(("nose", "left_eye", "rigth_eye", "left_ear", "right_ear")) == ["left_eye"]
