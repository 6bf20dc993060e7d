"""COCO files: recognition among other JSON files, categories and ids."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_data import BOXES, CLASSES, coco_tree, config, contents, write_coco, write_json

from fcos.config import DataConfig
from fcos.data import load_annotations
from fcos.data.coco import is_coco
from fcos.data.dataset import Annotations
from fcos.errors import DataError


def _load(data: DataConfig) -> Annotations:
    annotations = load_annotations(data, "train")
    assert annotations is not None
    return annotations


def test_several_coco_files_without_split_are_rejected(tmp_path: Path) -> None:
    write_coco(tmp_path, split="first")
    write_coco(tmp_path, split="second")
    with pytest.raises(DataError, match=r"several COCO files: first\.json, second\.json; choose one with data=.*first"):
        load_annotations(config(tmp_path), "train")


def test_other_files_do_not_hide_a_lone_coco_file(tmp_path: Path) -> None:
    write_coco(tmp_path, split="boxes")
    write_json(tmp_path / "package.json", {"name": "pets"})
    (tmp_path / "scores.csv").write_text("epoch,loss\n1,0.5\n")
    (tmp_path / "notes.xml").write_text("<html>404</html>")
    assert contents(_load(config(tmp_path))) == set(BOXES)


@pytest.mark.parametrize("annotated", [True, False])
def test_roboflow_supercategory_with_the_name_of_its_only_class_is_left_out(annotated: bool, tmp_path: Path) -> None:
    tree = coco_tree()
    tree["categories"] = [
        {"id": 0, "name": "pet", "supercategory": "none"},
        {"id": 1, "name": "pet", "supercategory": "pet"},
    ]
    tree["annotations"] = [{**a, "category_id": 1} for a in tree["annotations"]] if annotated else []
    write_coco(tmp_path, tree)
    annotations = _load(config(tmp_path))
    assert (annotations.class_names, annotations.category_ids) == (("pet",), (1,))


def test_class_with_the_name_of_its_supercategory_is_kept_without_boxes(tmp_path: Path) -> None:
    """COCO has a class person with the supercategory person."""
    tree = coco_tree()
    tree["categories"].append({"id": 1, "name": "person", "supercategory": "person"})
    write_coco(tmp_path, tree)
    assert _load(config(tmp_path)).class_names == (*CLASSES, "person")


@pytest.mark.parametrize("number", ['"000012"', '"12"', "12.0", "1.2e+01", '"1.2e1"'])
def test_ids_may_be_text_or_floats(number: str, tmp_path: Path) -> None:
    write_coco(tmp_path)
    text = (tmp_path / "train.json").read_text()
    for key in ("id", "image_id"):
        text = text.replace(f'"{key}": 10,', f'"{key}": {number},')
    (tmp_path / "train.json").write_text(text.replace('"category_id": 7', '"category_id": "7.0"'))
    annotations = _load(config(tmp_path))
    assert contents(annotations) == set(BOXES)
    assert annotations.image_ids.tolist() == [12, 20, 30]


@pytest.mark.parametrize("length", [70_000, (1 << 20) - 5, (1 << 20) + 5, 3_000_000])
def test_coco_file_whose_lists_come_late_is_recognised(length: int, tmp_path: Path) -> None:
    tree = coco_tree()
    write_coco(tmp_path, {"info": {"description": "x" * length}, **tree}, split="boxes")
    assert contents(_load(config(tmp_path))) == set(BOXES)


@pytest.mark.parametrize("gap", range(-16, 3))
def test_the_key_of_a_late_list_may_be_anywhere(gap: int, tmp_path: Path) -> None:
    """The file is read in chunks of a mebibyte; the key may extend over two."""
    start, end = '{"info": "', '", "images": []}'
    (tmp_path / "boxes.json").write_text(start + "x" * ((1 << 20) - len(start) + gap) + end)
    assert is_coco(tmp_path / "boxes.json")


def test_coco_file_that_starts_with_many_categories_is_recognised(tmp_path: Path) -> None:
    tree = coco_tree()
    tree["categories"] += [{"id": 10 + i, "name": f"class {i}", "supercategory": "thing"} for i in range(1500)]
    write_coco(tmp_path, {key: tree[key] for key in ("categories", "images", "annotations")}, split="boxes")
    assert contents(_load(config(tmp_path))) == set(BOXES)


@pytest.mark.parametrize("start", ['[{"x": "', '{"shapes": [], "x": "', '{"x": "'])
def test_other_large_json_files_are_not_coco(start: str, tmp_path: Path) -> None:
    end = '", "images": [1]}' if start != '{"x": "' else '"}'
    (tmp_path / "boxes.json").write_text(f"{start}{'x' * 70_000}{end}")
    assert not is_coco(tmp_path / "boxes.json")
