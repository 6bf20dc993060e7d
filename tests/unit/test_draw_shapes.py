"""Pictures with masks and keypoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tiny_data import coco_tree, config, write_coco

from fcos.data import load_annotations
from fcos.data.dataset import Annotations
from fcos.evaluation.evaluate import Evaluation
from fcos.inference.draw import class_color, draw
from fcos.inference.draw_shapes import skeleton_of
from fcos.keypoints import COCO_PERSON, KeypointLayout
from fcos.reporting import examples
from fcos.reporting.analysis import analyse
from fcos.structures import Instances
from fcos.training.validation_pictures import save_pictures

GRAY = Image.new("RGB", (600, 500), (128, 128, 128))


def one(**columns: Any) -> Instances:
    boxes = torch.tensor([[100.0, 100.0, 500.0, 400.0]])
    return Instances(boxes, torch.tensor([1]), torch.tensor([0.5]), (500, 600), **columns)


def test_mask_is_filled_with_its_class_color() -> None:
    picture = np.asarray(draw(GRAY, one(mask_grids=torch.ones(1, 28, 28)))).astype(int)
    color = np.array(class_color(1))
    np.testing.assert_allclose(picture[250, 300], 128 + 0.4 * (color - 128), atol=1)
    assert picture[50, 50].tolist() == [128] * 3
    plain = np.asarray(draw(GRAY, one())).astype(int)
    assert plain[250, 300].tolist() == [128] * 3


def test_hole_of_a_mask_stays_and_has_an_outline() -> None:
    grid = torch.ones(1, 28, 28)
    grid[:, 8:20, 8:20] = 0
    picture = np.asarray(draw(GRAY, one(mask_grids=grid))).astype(int)
    assert picture[250, 300].tolist() == [128] * 3
    row = picture[250, 150:300].tolist()  # from the filled part into the hole
    assert list(class_color(1)) in row
    assert min(map(sum, row)) < 3 * 128 - 60  # the dark rim


def test_keypoints_are_dots_connected_by_the_skeleton() -> None:
    keypoints = torch.tensor([[[200.0, 200.0, 2.0], [400.0, 200.0, 0.5], [300.0, 300.0, 0.0]]])
    connected = np.asarray(draw(GRAY, one(keypoints=keypoints), skeleton=[(0, 1), (1, 2)]))
    alone = np.asarray(draw(GRAY, one(keypoints=keypoints)))
    for picture in (connected, alone):
        assert picture[200, 200].tolist() == list(class_color(1))
        assert picture[200, 400].tolist() == list(class_color(1))
        assert picture[300, 300].tolist() == [128] * 3  # not annotated
        assert picture[250, 350].tolist() == [128] * 3
    assert connected[200, 300].tolist() == list(class_color(1))
    assert alone[200, 300].tolist() == [128] * 3


def test_the_skeleton_is_that_of_the_instances() -> None:
    keypoints = torch.tensor([[[200.0, 200.0, 2.0], [400.0, 200.0, 0.5]]])
    layout = KeypointLayout(("a", "b"), ((0, 1),))
    picture = np.asarray(draw(GRAY, one(keypoints=keypoints, keypoint_layout=layout)))
    assert picture[200, 300].tolist() == list(class_color(1))


def test_named_keypoints_without_skeleton_are_not_connected() -> None:
    keypoints = torch.tensor([[[30.0 * i + 50, 200.0, 1.0] for i in range(17)]])
    layout = KeypointLayout(tuple(map(str, range(17))))
    named = np.asarray(draw(GRAY, one(keypoints=keypoints, keypoint_layout=layout)))
    assert (named[200, 60:75] == 128).any()
    assert not (np.asarray(draw(GRAY, one(keypoints=keypoints)))[200, 60:75] == 128).all(axis=1).any()


def test_persons_of_coco_have_a_skeleton() -> None:
    persons = one(keypoints=torch.zeros(1, 17, 3))
    assert skeleton_of(persons) == COCO_PERSON.skeleton
    assert skeleton_of(one(keypoints=torch.zeros(1, 16, 3))) == ()


def with_shapes(folder: Path) -> Annotations:
    tree = coco_tree()
    for annotation in tree["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["segmentation"], annotation["keypoints"] = [[x, y, x + w, y, x, y + h]], [x + 1, y + 1, 2]
    write_coco(folder, tree)
    annotations = load_annotations(config(folder, masks=True, keypoints=True), "train")
    assert annotations is not None
    return annotations


def test_examples_of_reports_show_masks_and_keypoints_in_the_colors_of_their_boxes(tmp_path: Path) -> None:
    annotations = with_shapes(tmp_path)
    truth = annotations.to_coco()["annotations"]
    evaluation = Evaluation({}, {}, [{**truth[0], "score": 0.9}], {})  # one object is correct, the others are missed
    analysis = analyse(annotations, evaluation, default_threshold=0.5)
    image = int(annotations.image_of[0])
    picture = np.asarray(examples._draw(analysis, image)).astype(int)
    original = annotations.open(image)
    plain = np.asarray(original.resize((picture.shape[1], picture.shape[0]), Image.Resampling.BICUBIC)).astype(int)
    x1, y1, x2, y2 = (annotations.boxes[0] * (picture.shape[1] / original.width)).tolist()
    y, x = round(y1 + 0.6 * (y2 - y1)), round(x1 + 0.15 * (x2 - x1))  # in the triangle, away from box and keypoint
    expected = plain[y, x] + 0.4 * (np.array(examples._CORRECT) - plain[y, x])
    np.testing.assert_allclose(picture[y, x], expected, atol=2)


def test_validation_pictures_show_masks_and_keypoints(tmp_path: Path) -> None:
    annotations = with_shapes(tmp_path)
    truth = annotations.to_coco()["annotations"]
    detections = [{**a, "score": 0.9} for a in truth]
    pictures = {}
    for name, shown in {"none": [], "masks": detections}.items():
        (tmp_path / name).mkdir()
        save_pictures(tmp_path / name, annotations, shown, {}, default_threshold=0.5)
        pictures[name] = np.asarray(Image.open(tmp_path / name / "a.jpg")).astype(int)
    half = pictures["none"].shape[1] // 2
    assert np.abs(pictures["none"][:, half + 20 :] - pictures["masks"][:, half + 20 :]).max() < 3  # the ground truth
    assert np.abs(pictures["none"][:, : half - 20] - pictures["masks"][:, : half - 20]).max() > 100
