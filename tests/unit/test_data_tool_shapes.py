"""Masks and keypoints in the files of YOLO, LabelMe and CVAT."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_data import SIZES, config, write_images, write_json, write_yolo
from tool_exports import cvat_image, labelme_tree

from fcos.data import load_annotations
from fcos.data.conversion import convert
from fcos.data.dataset import Annotations
from fcos.errors import DataError
from fcos.keypoints import COCO_PERSON, flip_order

BITMAP = np.array([[0, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 1]], dtype=bool)


def load(root: Path, **options: Any) -> Annotations:
    annotations = load_annotations(config(root, **options), "train")
    assert annotations is not None
    return annotations


def bitmaps_of(annotations: Annotations, name: str = "a.png") -> np.ndarray:
    width, height = SIZES[name]
    assert annotations.masks is not None
    return annotations.masks.to_bitmaps((height, width)).numpy()


def assert_same_after_conversion(root: Path, out: Path, **options: Any) -> None:
    convert(config(root), out)
    assert load(out, **options).digest() == load(root, **options).digest()


# ----------------------------------------------------------------------------------------------------------- YOLO poses


def write_poses(root: Path, rows: str, shape: str = "[2, 3]", flip: str = "") -> Path:
    write_yolo(root)
    (root / "labels/train/a.txt").write_text(rows)
    (root / "labels/train/b.txt").unlink()
    (root / "data.yaml").write_text(f"train: images/train\nnames: [cat, dog]\nkpt_shape: {shape}\n{flip}")
    return root


BOX = "1 0.5 0.5 0.5 0.5"


def test_poses_have_keypoints_in_pixels(tmp_path: Path) -> None:
    root = write_poses(tmp_path / "data", f"{BOX} 0.3 0.4 2 0.6 0.7 1\n{BOX}\n", flip="flip_idx: [1, 0]\n")
    annotations = load(root, keypoints=True)
    assert annotations.keypoints is not None
    assert annotations.keypoints.values.tolist() == [[[12, 12, 2], [24, 21, 1]], [[0, 0, 0], [0, 0, 0]]]
    assert annotations.keypoint_layout == (("0", "1"), (), ((0, 1),))
    assert annotations.boxes.tolist() == [[10, 7.5, 30, 22.5]] * 2
    assert load(root).keypoints is None
    assert_same_after_conversion(root, tmp_path / "out", keypoints=True)
    assert load(tmp_path / "out", keypoints=True).keypoint_layout == annotations.keypoint_layout


def test_keypoints_without_visibility_are_visible_unless_in_the_corner(tmp_path: Path) -> None:
    annotations = load(write_poses(tmp_path, f"{BOX} 0.3 0.4 0 0\n", shape="[2, 2]"), keypoints=True)
    assert annotations.keypoints is not None
    assert annotations.keypoints.values[0, :, 2].tolist() == [2, 0]


def test_poses_with_the_flips_of_coco_have_its_names(tmp_path: Path) -> None:
    flip = f"flip_idx: {list(flip_order(COCO_PERSON.names))}\n"
    root = write_poses(tmp_path, f"{BOX} {'0.5 0.5 2 ' * 17}\n", shape="[17, 3]", flip=flip)
    assert load(root, keypoints=True).keypoint_layout == COCO_PERSON


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            f"{BOX} 0.3 0.4 2",
            r"line 2: expected 4 numbers of the box and 2 x 3 of the keypoints \(kpt_shape\), found 7",
        ),
        (f"{BOX} 0.3 0.4 2 0.6 0.7 0.5", r"line 2: expected x, y and visibility \(0, 1 or 2\)"),
        (f"{BOX} 0.3 nan 2 0.6 0.7 1", "line 2: expected finite numbers"),
    ],
)
def test_broken_pose_is_reported_and_the_others_are_read(row: str, message: str, tmp_path: Path) -> None:
    root = write_poses(tmp_path, f"{BOX} 0.3 0.4 2 0.6 0.7 1\n{row}\n")
    with pytest.raises(DataError, match=f"a.txt, {message}"):
        load(root, keypoints=True)
    assert len(load(root, keypoints=True, on_error="skip").boxes) == 1


@pytest.mark.parametrize(
    ("shape", "flip", "message"),
    [
        ("[2]", "", r"data.yaml: kpt_shape: expected \[number of keypoints, 2 or 3\], found"),
        ("[2, 4]", "", "data.yaml: kpt_shape: expected"),
        ("many", "", "data.yaml: kpt_shape: expected"),
        ("[3, 3]", "flip_idx: [0, 1]\n", "data.yaml: flip_idx: expected the position, 0 to 2, that every keypoint"),
        ("[3, 3]", "flip_idx: [1, 2, 0]\n", "data.yaml: flip_idx: expected"),
        ("[2, 3]", "flip_idx: [a, b]\n", "data.yaml: flip_idx: expected"),
        ("[2, 3]", "flip_idx: ['1', '0']\n", "data.yaml: flip_idx: expected"),
        ("[2, 3]", "flip_idx: [true, 0]\n", "data.yaml: flip_idx: expected"),
    ],
)
def test_broken_description_of_poses_is_reported(shape: str, flip: str, message: str, tmp_path: Path) -> None:
    root = write_poses(tmp_path, f"{BOX}\n", shape=shape, flip=flip)
    with pytest.raises(DataError, match=f"{message}.*; data.keypoints=false reads"):
        load(root, keypoints=True)
    assert len(load(root).boxes) == 1


def test_rows_without_kpt_shape_have_no_keypoints(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data.keypoints=true needs the keypoints .* kpt_shape .*, found none"):
        load(write_yolo(tmp_path), keypoints=True)


# -------------------------------------------------------------------------------------------------------------- LabelMe


def encode_png(bitmap: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(bitmap.astype(np.uint8)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def write_labelme(root: Path, *shapes: dict[str, Any]) -> Path:
    write_images(root)
    tree = labelme_tree("a.png", "a.png")
    tree["shapes"] = [{"label": "cat", **shape} for shape in shapes]
    write_json(root / "a.json", tree)
    return root


def test_mask_of_labelme_includes_its_last_pixels(tmp_path: Path) -> None:
    shape = {"shape_type": "mask", "points": [[5, 6], [8, 8]], "mask": encode_png(BITMAP)}
    root = write_labelme(tmp_path / "data", shape)
    annotations = load(root, masks=True)
    expected = np.zeros((30, 40), dtype=bool)
    expected[6:9, 5:9] = BITMAP
    np.testing.assert_array_equal(bitmaps_of(annotations)[0], expected)
    assert annotations.boxes.tolist() == load(root).boxes.tolist() == [[5, 6, 9, 9]]
    assert_same_after_conversion(root, tmp_path / "out", masks=True)


def test_rectangles_and_circles_of_labelme_have_masks(tmp_path: Path) -> None:
    rectangle = {"shape_type": "rectangle", "points": [[12, 3], [2, 23]]}
    circle = {"shape_type": "circle", "points": [[20, 15], [20, 25]]}
    root = write_labelme(tmp_path / "data", rectangle, circle)
    annotations = load(root, masks=True)
    bitmaps = bitmaps_of(annotations)
    assert bitmaps[0].sum() == bitmaps[0, 3:23, 2:12].sum() == 200
    assert bitmaps[1].sum() == pytest.approx(np.pi * 100, rel=0.02)
    assert annotations.boxes.tolist() == [[2, 3, 12, 23], [10, 5, 30, 25]]
    assert_same_after_conversion(root, tmp_path / "out", masks=True)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ("?", "mask: expected a PNG image in base64, found '?'"),
        (7, "mask: expected a PNG image in base64, found 7"),
        (encode_png(BITMAP)[:40], "mask: expected a PNG image in base64"),
        (encode_png(BITMAP[:2]), "mask: expected an image of 4x3 pixels between its points, found 4x2"),
    ],
)
def test_broken_mask_of_labelme_is_reported_and_the_others_are_read(mask: Any, message: str, tmp_path: Path) -> None:
    points = [[5, 6], [8, 8]]
    shapes = [{"shape_type": "mask", "points": points, "mask": text} for text in (encode_png(BITMAP), mask)]
    root = write_labelme(tmp_path, *shapes)
    with pytest.raises(DataError) as caught:
        load(root, masks=True)
    assert f"a.json, shape 2: {message}" in str(caught.value)
    assert len(load(root, masks=True, on_error="skip").boxes) == 1


# ----------------------------------------------------------------------------------------------------------------- CVAT

SKELETON = """<label><name>person</name><type>skeleton</type><svg>
&lt;line x1="1" y1="1" x2="2" y2="2" data-type="edge" data-node-from="2" data-node-to="1"&gt;&lt;/line&gt;
&lt;circle r="1" data-type="element node" data-element-id="1" data-node-id="1" data-label-name="head"&gt;&lt;/circle&gt;
&lt;circle r="1" data-type="element node" data-element-id="2" data-node-id="2" data-label-name="tail"&gt;&lt;/circle&gt;
</svg></label>
<label><name>tail</name><type>points</type><parent>person</parent></label>
<label><name>head</name><type>points</type><parent>person</parent></label>"""


def write_cvat(root: Path, *shapes: str, labels: str = "<label><name>cat</name></label>") -> Path:
    write_images(root / "images")
    image = cvat_image("a.png", 0, shapes)
    meta = f"<meta><task><labels>{labels}</labels></task></meta>"
    (root / "annotations.xml").write_text(f"<annotations><version>1.1</version>{meta}{image}</annotations>")
    return root


def mask_of_cvat(rle: str) -> str:
    return f'<mask label="cat" rle="{rle}" left="5" top="6" width="4" height="3"></mask>'


def test_runs_of_cvat_go_along_rows(tmp_path: Path) -> None:
    root = write_cvat(tmp_path / "data", mask_of_cvat("1, 2, 1, 2, 5, 1"))
    annotations = load(root, masks=True)
    expected = np.zeros((30, 40), dtype=bool)
    expected[6:9, 5:9] = BITMAP
    np.testing.assert_array_equal(bitmaps_of(annotations)[0], expected)
    assert annotations.boxes.tolist() == [[5, 6, 9, 9]]
    assert_same_after_conversion(root, tmp_path / "out", masks=True)


@pytest.mark.parametrize("rle", ["1, 2, 1", "1, 20", "1, -2, 13", "x", ""])
def test_runs_that_do_not_fill_their_box_are_reported_and_the_others_are_read(rle: str, tmp_path: Path) -> None:
    root = write_cvat(tmp_path, mask_of_cvat("0, 12"), mask_of_cvat(rle))
    message = "image a.png, shape 2: invalid mask: expected an rle whose runs fill its box of 4x3 pixels, found"
    with pytest.raises(DataError, match=message):
        load(root, masks=True)
    assert len(load(root, masks=True, on_error="skip").boxes) == 1


def test_boxes_and_ellipses_of_cvat_have_masks(tmp_path: Path) -> None:
    box = '<box label="cat" xtl="10" ytl="5" xbr="30" ybr="25"></box>'
    turned = '<box label="cat" xtl="10" ytl="10" xbr="30" ybr="20" rotation="90"></box>'
    ellipse = '<ellipse label="cat" cx="20" cy="15" rx="12" ry="4" rotation="90"></ellipse>'
    annotations = load(write_cvat(tmp_path, box, turned, ellipse), masks=True)
    bitmaps = bitmaps_of(annotations)
    assert bitmaps[0].sum() == bitmaps[0, 5:25, 10:30].sum() == 400
    assert bitmaps[1].sum() == pytest.approx(bitmaps[1, 5:25, 15:25].sum(), abs=20) == pytest.approx(200, abs=20)
    assert bitmaps[2].sum() == pytest.approx(np.pi * 48, rel=0.05)
    np.testing.assert_allclose(annotations.boxes[2], [16, 3, 24, 27], atol=1e-5)


def test_skeletons_of_cvat_have_keypoints(tmp_path: Path) -> None:
    points = (
        '<points label="head" outside="0" occluded="0" points="10.5,6.25"></points>'
        '<points label="tail" outside="0" occluded="1" points="20.5,16"></points>'
    )
    hidden = points.replace('outside="0" occluded="1" points="20.5,16"', 'outside="1" occluded="0" points="0,0"')
    hidden += '<points label="tail" outside="0" occluded="0" points="12,9"></points>'
    shapes = [f'<skeleton label="person">{text}</skeleton>' for text in (points, hidden)]
    root = write_cvat(tmp_path / "data", *shapes, labels=SKELETON)
    annotations = load(root, keypoints=True)
    assert annotations.class_names == ("person",)
    assert annotations.keypoint_layout == (("tail", "head"), ((0, 1),), None)
    assert annotations.keypoints is not None
    assert annotations.keypoints.values[0].tolist() == [[20.5, 16, 1], [10.5, 6.25, 2]]
    assert annotations.keypoints.values[1].tolist() == [[12, 9, 2], [10.5, 6.25, 2]]
    assert annotations.boxes.tolist() == load(root).boxes.tolist() == [[10.5, 6.25, 20.5, 16], [10.5, 6.25, 12, 9]]
    assert_same_after_conversion(root, tmp_path / "out", keypoints=True)


def test_skeletons_with_different_points_are_an_error(tmp_path: Path) -> None:
    other = "<label><name>dog</name></label><label><name>ear</name><parent>dog</parent></label>"
    shape = '<skeleton label="dog"><points label="ear" points="1,1"></points></skeleton>'
    with pytest.raises(DataError, match=r"all skeletons need the same points, found person \(2\), dog \(1\)"):
        load(write_cvat(tmp_path, shape, labels=SKELETON + other), keypoints=True)


HEAD, TAIL = '<points label="head" points="1,2"/>', '<points label="tail" points="9,8" occluded="1"/>'


def skeleton(points: str) -> str:
    return f'<skeleton label="person">{points}</skeleton>'


@pytest.mark.parametrize("labels", ["", "<label><name>person</name></label>"])
def test_points_without_description_have_the_names_of_their_labels(labels: str, tmp_path: Path) -> None:
    root = write_cvat(tmp_path, skeleton(HEAD + TAIL), skeleton(TAIL + HEAD), labels=labels)
    annotations = load(root, keypoints=True)
    assert annotations.keypoint_layout == (("head", "tail"), (), None)
    assert annotations.keypoints is not None
    assert annotations.keypoints.values[1].tolist() == [[1, 2, 2], [9, 8, 1]]


def test_skeleton_outside_the_image_is_no_object(tmp_path: Path) -> None:
    outside = skeleton('<points label="head" outside="1"/><points label="tail" outside="1" points="1,1"/>')
    partly = skeleton(f'{HEAD}<points label="tail" outside="1"/><points label="tail" points="7,8"/>')
    root = write_cvat(tmp_path, outside, partly, labels=SKELETON)
    for options in ({}, {"keypoints": True}):
        assert load(root, **options).boxes.tolist() == [[1, 2, 7, 8]]


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (skeleton(""), "has no points"),
        (
            skeleton('<points label="head"/>'),
            "invalid coordinates of a skeleton: point head: expected x,y .* found None",
        ),
        (skeleton('<points label="head" points="1,2,3"/>'), "point head: expected x,y in numbers, found '1,2,3'"),
        (
            skeleton(f'{HEAD}<points label="tail" points="nan,2"/>'),
            "point tail: expected x,y in numbers, found 'nan,2'",
        ),
        (skeleton('<points label="ear" points="1,2"/>'), "unknown label 'ear'; expected one of tail, head"),
        (
            '<ellipse label="person" cx="9" cy="9" rx="nan" ry="2"/>',
            'invalid coordinates of a ellipse: expected numbers, found label="person" cx="9" cy="9" rx="nan" ry="2"',
        ),
        ('<polygon label="person" points="1,1;2,inf;3,4"/>', "invalid coordinates of a polygon"),
        ('<box label="person" xtl="1" ytl="2" xbr="9"/>', "invalid coordinates of a box"),
        ('<mask label="person" rle="1" left="1" top="x" width="1" height="1"/>', "invalid coordinates of a mask"),
    ],
)
def test_broken_shape_of_cvat_is_reported_with_its_reason(shape: str, message: str, tmp_path: Path) -> None:
    root = write_cvat(tmp_path, shape, skeleton(HEAD + TAIL), labels=SKELETON)
    with pytest.raises(DataError, match=f"image a.png, shape 1: .*{message}"):
        load(root, masks=True, keypoints=True)
    assert len(load(root, keypoints=True, on_error="skip").boxes) == 1
