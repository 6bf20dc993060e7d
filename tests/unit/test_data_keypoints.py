"""Keypoints of COCO files: their names, pairs and mistakes, and their exchange by a flip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_data import KEYPOINT_NAMES, KEYPOINTS, config, tree_with_shapes, write_coco

from fcos.data import load_annotations
from fcos.data.dataset import Annotations
from fcos.data.loader import _flip_pairs
from fcos.errors import ConfigError, DataError
from fcos.keypoints import flip_order, unpaired_names


def load(root: Path | None, **options: Any) -> Annotations:
    annotations = load_annotations(config(root, **options), "train")
    assert annotations is not None
    return annotations


def test_keypoints_have_names_and_skeleton(tmp_path: Path) -> None:
    annotations = load(write_coco(tmp_path, tree_with_shapes()), keypoints=True)
    assert annotations.keypoints is not None
    assert annotations.keypoints.names == tuple(KEYPOINT_NAMES)
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


@pytest.mark.parametrize(
    ("key", "value", "found"),
    [
        ("flip_pairs", [[1, 2], [2, 3]], r"\[\[1, 2\], \[2, 3\]\]"),
        ("flip_pairs", [[2, 2]], r"\[\[2, 2\]\]"),
        ("flip_pairs", [[1, 4]], r"\[\[1, 4\]\]"),
        ("flip_pairs", [[0, 1]], r"\[\[0, 1\]\]"),
        ("flip_pairs", [[1, 2, 3]], r"\[\[1, 2, 3\]\]"),
        ("flip_pairs", [["nose", 2]], r"\[\['nose', 2\]\]"),
        ("flip_pairs", [1, 2], r"\[1, 2\]"),
        ("flip_pairs", "no", "'no'"),
        ("flip_pairs", 0, "0"),
        ("skeleton", [[1, 2], [3, 4]], r"\[\[1, 2\], \[3, 4\]\]"),
        ("skeleton", {"a": 1}, r"\{'a': 1\}"),
        ("skeleton", [[1, None]], r"\[\[1, None\]\]"),
    ],
)
@pytest.mark.parametrize("category", [0, 1])
def test_wrong_pairs_are_reported_with_the_numbers_of_the_file(
    category: int, key: str, value: Any, found: str, tmp_path: Path
) -> None:
    tree = tree_with_shapes()
    tree["categories"][category][key] = value
    root, name = write_coco(tmp_path, tree), tree["categories"][category]["name"]
    expected = rf"pairs \[a, b\] of keypoints from 1 to 3 \(nose, left_eye, right_eye\).*, found {found}"
    with pytest.raises(DataError, match=f"train.json: {key} of {name}: expected {expected}; data.keypoints=false"):
        load(root, keypoints=True)
    assert len(load(root).boxes) == 3


def test_one_category_may_have_the_pairs_of_all(tmp_path: Path) -> None:
    tree = tree_with_shapes()
    tree["categories"][0].update(skeleton=[], flip_pairs=None)
    tree["categories"][1].update(flip_pairs=[["2", 3.0]])
    layout = load(write_coco(tmp_path, tree), keypoints=True).keypoint_layout
    assert (layout.skeleton, layout.pairs) == (((0, 1), (0, 2)), ((1, 2),))


@pytest.mark.parametrize(
    ("keypoints", "message"),
    [
        ([1, 2, 2], r"annotation 100: expected 3 keypoints \(nose, left_eye, right_eye\), found 1"),
        ([1, 2, 3] * 3, r"annotation 100: expected keypoints \(a list of x, y and visibility"),
        ([1, 2] * 4, r"annotation 100: expected keypoints \(a list.*: expected three numbers for every .*, found 8"),
        ([1, "x", 2] * 3, r"annotation 100: expected keypoints \(a list"),
        ({"x": 1}, r"annotation 100: expected keypoints \(a list.*: expected a list of numbers"),
        (5, r"annotation 100: expected keypoints \(a list.*: expected three numbers"),
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


def test_names_that_cannot_be_encoded_are_escaped(tmp_path: Path) -> None:
    tree = tree_with_shapes()
    for category in tree["categories"]:
        category["keypoints"] = ["nose", "\udce9", "left_eye"]
    annotations = load(write_coco(tmp_path, tree), keypoints=True)
    assert annotations.keypoint_layout.names == ("nose", "\\udce9", "left_eye")


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


def test_combined_data_sets_need_the_same_keypoints(tmp_path: Path) -> None:
    other = tree_with_shapes()
    for category in other["categories"]:
        category["keypoints"] = ["a", "b", "c"]
    trees = {"one": tree_with_shapes(), "two": other}
    parts = [write_coco(tmp_path / name, tree) / "train.json" for name, tree in trees.items()]
    images = [part.parent / "images" for part in parts]
    with pytest.raises(DataError, match="must have the same keypoints"):
        load(None, train={"annotations": parts, "images": images}, keypoints=True)


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


def test_empty_list_of_keypoints_means_that_there_are_none(tmp_path: Path) -> None:
    tree = tree_with_shapes()
    tree["annotations"][1]["keypoints"] = []
    annotations = load(write_coco(tmp_path, tree), keypoints=True)
    assert len(annotations.boxes) == 3
    assert annotations.keypoints is not None
    assert annotations.keypoints.names == tuple(KEYPOINT_NAMES)


@pytest.mark.parametrize(
    ("names", "order"), [(("p", "p", "p"), (0, 1, 2)), (("Nose", "nose", "left_eye", "right_eye"), (0, 1, 3, 2))]
)
def test_repeated_names_are_not_exchanged(names: tuple[str, ...], order: tuple[int, ...]) -> None:
    assert flip_order(names) == order


def test_names_without_their_other_side_are_listed() -> None:
    assert unpaired_names(("nose", "left_eye", "rigth_eye", "left_ear", "right_ear")) == ["left_eye"]
