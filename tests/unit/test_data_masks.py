"""Masks of COCO files: all forms, mistakes, and their way into training samples, with keypoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask
import pytest
import torch
from PIL import Image
from tiny_data import (
    SIZES,
    coco_tree,
    config,
    tree_with_shapes,
    write_coco,
    write_images,
    write_json,
    write_voc,
    write_yolo,
)

from fcos.data import load_annotations
from fcos.data.coco_shapes import parse_segmentation
from fcos.data.dataset import Annotations, DetectionDataset
from fcos.data.transforms import Transform
from fcos.errors import DataError
from fcos.masks import Masks

reference: Any = pycocotools.mask


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


@pytest.mark.parametrize("frame", [(30, 40), (40, 30)])
def test_rle_tells_the_size_of_an_image_without_size(frame: tuple[int, int], tmp_path: Path) -> None:
    tree = tree_with_shapes()
    for image in tree["images"]:
        del image["width"], image["height"]
    tree["annotations"][0]["segmentation"] = {"size": list(frame), "counts": [0, 10, 1190]}
    root = write_coco(tmp_path, tree)
    if frame == (30, 40):
        assert len(load(root, masks=True).boxes) == 3
    else:
        with pytest.raises(DataError, match=r"a\.png, image 10: .*train\.json says 30x40 but the image is 40x30"):
            load(root, masks=True)


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
    with pytest.raises(
        DataError, match=r"train.json: data.boxes=masks needs the masks .*found none; .*remove data.boxes"
    ):
        load(write_coco(tmp_path), boxes="masks")


def test_object_without_mask_has_no_box_of_its_mask(tmp_path: Path) -> None:
    tree = tree_with_shapes()
    tree["annotations"][0].update(segmentation=[])
    tree["annotations"][1].update(segmentation=[], iscrowd=1)
    root = write_coco(tmp_path, tree)
    with pytest.raises(DataError, match="annotation 100: has no mask"):
        load(root, boxes="masks")
    assert load(root, boxes="masks", on_error="skip").boxes.tolist() == [[10, 10, 40, 30], [0, 8, 15, 24]]


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


# ------------------------------------------------------------------------------------------------------------ real data


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
