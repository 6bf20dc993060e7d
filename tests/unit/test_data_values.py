"""Numbers and flags of COCO and VOC files in all forms that annotation tools write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_data import BOXES, SIZES, coco_tree, config, write_coco, write_images, write_json, write_voc
from tool_exports import cvat_image, cvat_xml, labelme_tree

from fcos.data import Annotations, load_annotations
from fcos.data.splits import read_split
from fcos.errors import DataError
from fcos.evaluation.coco_metrics import coco_metrics

SET = [1, True, "1", "true", "True", 1.0, "1.0", " 1 "]
NOT_SET = [0, False, "0", "false", "False", 0.0, "0.0", "", None, "Unspecified"]
NO_FLAG = [2, -1, 0.5, "0.5", "maybe", [], {}, [1], "nan"]
FLAGS = ("iscrowd", "ignore", "difficult")


def load(root: Path, tree: dict[str, Any], **options: str) -> Annotations:
    annotations = load_annotations(config(write_coco(root, tree), **options), "train")
    assert annotations is not None
    return annotations


def with_value(key: str, value: Any, *, section: str = "annotations") -> dict[str, Any]:
    tree = coco_tree()
    tree[section][0][key] = value
    return tree


@pytest.mark.parametrize("key", FLAGS)
def test_coco_flags_mark_ignore_regions(key: str, tmp_path: Path) -> None:
    tree = coco_tree()
    for value in (SET, NOT_SET):
        for number, flag in enumerate(value):
            tree["annotations"][0][key] = flag
            crowd = load(tmp_path / f"{len(value)}{number}", tree).crowd.tolist()
            assert crowd == [value is SET, False, False], flag


def test_one_flag_of_several_suffices(tmp_path: Path) -> None:
    tree = coco_tree()
    tree["annotations"][0] |= {"iscrowd": 0, "ignore": 1}
    tree["annotations"][1] |= {"iscrowd": 1, "ignore": 0}
    assert load(tmp_path, tree).crowd.tolist() == [True, True, False]


def test_ignored_objects_do_not_count_in_the_evaluation(tmp_path: Path) -> None:
    """A converter of Pascal VOC marks difficult objects with `ignore`."""
    tree = with_value("ignore", 1)
    truth = load(tmp_path, tree).to_coco()
    found = [{**a, "score": 0.9} for a in truth["annotations"] if not a["iscrowd"]]
    assert coco_metrics(truth, found).overall["AP"] == pytest.approx(1.0)  # dog; cat has no other object


@pytest.mark.parametrize("key", FLAGS)
@pytest.mark.parametrize("value", NO_FLAG, ids=repr)
def test_values_that_are_no_flags_are_reported(key: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"train\.json, annotation 100: expected {key} \(0 or 1\), found"):
        load(tmp_path, with_value(key, value))
    assert len(load(tmp_path, with_value(key, value), on_error="skip").boxes) == len(BOXES) - 1


def voc(root: Path, difficult: str, **options: str) -> Annotations:
    xml = write_voc(root) / "Annotations/b.xml"
    xml.write_text(xml.read_text().replace("<difficult>0</difficult>", difficult))
    annotations = load_annotations(config(root, **options), "train")
    assert annotations is not None
    return annotations


@pytest.mark.parametrize("value", ["1", "true", "True", "TRUE", "1.0", "\n 1 \n"])
def test_difficult_may_be_written_in_several_forms(value: str, tmp_path: Path) -> None:
    assert voc(tmp_path, f"<difficult>{value}</difficult>").crowd.tolist() == [False, False, True]


@pytest.mark.parametrize("element", ["", "<difficult/>", "<difficult>false</difficult>", "<difficult>0.0</difficult>"])
def test_objects_are_not_difficult_by_default(element: str, tmp_path: Path) -> None:
    assert not voc(tmp_path, element).crowd.any()


@pytest.mark.parametrize("value", ["2", "maybe", "0.5", "-1"])
def test_a_difficult_that_is_no_flag_is_reported(value: str, tmp_path: Path) -> None:
    element = f"<difficult>{value}</difficult>"
    with pytest.raises(DataError, match=rf"b\.xml, object 1: expected difficult \(0 or 1\), found '{value}'"):
        voc(tmp_path / "a", element)
    assert len(voc(tmp_path / "b", element, on_error="skip").boxes) == len(BOXES) - 1


def test_numbers_may_be_text_or_whole_decimals(tmp_path: Path) -> None:
    tree = coco_tree()
    for image, form in zip(tree["images"], ("000010", 20.0, "3.000e+01"), strict=True):
        image |= {"id": form, "width": str(image["width"]), "height": float(image["height"])}
    for annotation in tree["annotations"]:
        annotation["image_id"] = str(annotation["image_id"])
        annotation["category_id"] = float(annotation["category_id"])
        annotation["bbox"] = [str(value) for value in annotation["bbox"]]
        annotation |= {"id": f"{annotation['id']:06}", "area": "12.5"}
    for category in tree["categories"]:
        category["id"] = f"{category['id']}.0"
    annotations = load(tmp_path, tree)
    assert annotations.image_ids.tolist() == [10, 20, 30]
    assert annotations.annotation_ids.tolist() == [100, 99, 98]
    assert annotations.category_ids == (7, 6)
    assert annotations.boxes.tolist() == [list(box) for _, _, box in BOXES]
    assert annotations.areas.tolist() == [12.5] * 3
    assert [annotations.file_name(i) for i in range(3)] == list(SIZES)


@pytest.mark.parametrize("other", [None, [1, 2, 3], "text"])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("bbox", [1, 2, value, 4]) for value in (True, "wide", None, [], {}, "")],
        *[("bbox", value) for value in ("1 2 3 4", {}, 7, [], [1, 2, 3, 4, 5])],
        *[(key, value) for key in ("id", "image_id", "category_id") for value in (True, 1.5, "1.5", "a", [], {}, "")],
        *[("area", value) for value in (True, "large", [], {})],
    ],
)
def test_values_that_are_no_numbers_are_reported(key: str, value: Any, other: Any, tmp_path: Path) -> None:
    tree = with_value(key, value)
    if other is not None:  # another broken box must not change the result
        tree["annotations"][1]["bbox"] = other
    write_coco(tmp_path, tree)
    with pytest.raises(DataError, match=rf"train\.json, annotation (\S+|at position 0): expected {key} \(.*\), found"):
        load(tmp_path, tree)


@pytest.mark.parametrize("value", [True, 1.5, "wide", [], {}, -40, 2**31, "nan"])
@pytest.mark.parametrize("key", ["width", "height"])
def test_image_sizes_that_are_no_integers_are_reported(key: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"image 10: expected {key} \(an integer >= 0\), found"):
        load(tmp_path, with_value(key, value, section="images"))


@pytest.mark.parametrize("area", [1e300, 1e38, 1e10, "1e300", 40 * 30 + 1, 10**400])
def test_an_area_larger_than_the_image_is_not_used(area: Any, tmp_path: Path) -> None:
    loaded = read_split(config(write_coco(tmp_path, with_value("area", area))), "train", class_names=None, decode=False)
    assert loaded is not None
    annotations, problems = loaded
    assert annotations.areas[0] == 10 * 20  # area of the box
    assert [(p.id, p.severity) for p in problems if p.kind == "wrong area"] == [("annotation 100", "warning")]
    assert coco_metrics(annotations.to_coco(), []).overall["AP"] == 0


@pytest.mark.parametrize("area", [0, -1, None, float("nan")])
def test_an_area_that_is_missing_or_not_positive_is_that_of_the_box(area: Any, tmp_path: Path) -> None:
    assert load(tmp_path, with_value("area", area)).areas[0] == 10 * 20


@pytest.mark.parametrize("section", ["images", "annotations", "categories"])
def test_the_largest_id_leaves_room_for_others(section: str, tmp_path: Path) -> None:
    """Repeated and missing ids and the ids of missing classes must not exceed int64."""
    largest, tree = 2**63 - 1, coco_tree()
    old, tree[section][0]["id"] = tree[section][0]["id"], largest
    for annotation in tree["annotations"]:
        for key, name in (("image_id", "images"), ("category_id", "categories")):
            if section == name and annotation[key] == old:
                annotation[key] = largest
    del tree["annotations"][1]["id"]
    write_coco(tmp_path / "one", tree)
    write_coco(tmp_path / "two", tree)
    folders = [tmp_path / name for name in ("one", "two")]
    data = config(train={"annotations": [f / "train.json" for f in folders], "images": [f / "images" for f in folders]})
    annotations = load_annotations(data, "train", class_names=["bird", "cat", "dog"])
    assert annotations is not None
    assert len(set(annotations.image_ids.tolist())) == 2 * len(SIZES)
    assert len(set(annotations.annotation_ids.tolist())) == 2 * len(BOXES)
    assert len(set(annotations.category_ids)) == 3
    truth = annotations.to_coco()
    found = [{**a, "score": 0.9} for a in truth["annotations"]]
    assert coco_metrics(truth, found).overall["AP"] == pytest.approx(1.0)


@pytest.mark.parametrize("value", [[], {}, [["a"]], 7, None, True])
@pytest.mark.parametrize("key", ["supercategory", "name", "id", "color"])
def test_a_category_with_odd_values_is_read_or_reported(key: str, value: Any, tmp_path: Path) -> None:
    tree = with_value(key, value, section="categories")
    if key in ("supercategory", "color"):
        assert load(tmp_path, tree).class_names == ("cat", "dog")
    elif (key, value) == ("id", 7):
        assert load(tmp_path, tree).category_ids == (7, 6)
    else:
        with pytest.raises(DataError, match=rf"train\.json: every category needs an id and a name, .*expected {key}"):
            load(tmp_path, tree)


@pytest.mark.parametrize("length", [300, 5000])
def test_a_file_name_that_is_too_long_is_reported(length: int, tmp_path: Path) -> None:
    tree = with_value("file_name", "n" * length + ".png", section="images")
    with pytest.raises(DataError, match=r"image 10: .*[Ff]ile name too long"):
        load(tmp_path, tree)
    assert len(load(tmp_path, tree, on_error="skip")) == 2


@pytest.mark.parametrize("name", ["a\x1b[31m.png", "a\n.png", "a\u202e.png", "a\ud800.png"], ids=ascii)
def test_file_names_cannot_control_the_terminal(name: str, tmp_path: Path) -> None:
    escaped = name.encode("unicode_escape").decode()
    with pytest.raises(DataError) as caught:
        load(tmp_path, with_value("file_name", name, section="images"))
    assert name not in str(caught.value)
    assert escaped in str(caught.value)


@pytest.mark.parametrize("size", [{"width": 0}, {"height": 0}, {"width": None}])
def test_a_size_with_an_unknown_side_is_read_from_the_image(size: dict[str, int | None], tmp_path: Path) -> None:
    tree = coco_tree()
    tree["images"][0] |= size
    assert load(tmp_path, tree).sizes[0].tolist() == [30, 40]


@pytest.mark.parametrize("box", [[1e308] * 4, [-1e308, -1e308, 1e308, 1e308], [-1e308, 0, 1e308, 5], [10**30] * 4])
def test_huge_boxes_are_reported_or_clipped(box: list[float], tmp_path: Path) -> None:
    annotations = load(tmp_path, with_value("bbox", box), on_error="skip")
    assert len(annotations.boxes) == len(BOXES) - 1


def test_huge_voc_boxes_are_clipped(tmp_path: Path) -> None:
    xml = write_voc(tmp_path) / "Annotations/b.xml"
    xml.write_text(xml.read_text().replace("<xmin>0<", "<xmin>-1.5e308<").replace("<xmax>15<", "<xmax>1.5e308<"))
    annotations = load_annotations(config(tmp_path), "train")
    assert annotations is not None
    assert annotations.boxes[2].tolist() == [0, 8, 30, 24]


def _write_flag(form: str, root: Path, flag: str) -> None:
    """Write one image with two boxes; the first one has a flag."""
    write_images(root, {"a.png": SIZES["a.png"]})
    if form == "coco":
        tree = coco_tree()
        tree["images"], tree["annotations"] = tree["images"][:1], tree["annotations"][:2]
        tree["annotations"][0][flag] = 1
        write_json(root / "train.json", tree)
    elif form == "labelme":
        labelme = labelme_tree("a.png", "a.png")
        labelme["shapes"][0]["flags"] = {flag: True}
        write_json(root / "a.json", labelme)
    elif form == "cvat":
        box = '<box label="cat" xtl="0" ytl="0" xbr="9" ybr="9">'
        shapes = [f'{box}<attribute name="{flag}">true</attribute></box>', f"{box}</box>"]
        (root / "annotations.xml").write_text(cvat_xml([cvat_image("a.png", 0, shapes)]))
    elif form == "csv":
        rows = "a.png,cat,2,3,12,23,1\na.png,dog,10,10,40,30,0\n"
        (root / "boxes.csv").write_text(f"filename,class,xmin,ymin,xmax,ymax,{flag}\n{rows}")
    else:
        objects = {"bbox": [[2, 3, 10, 20], [10, 10, 30, 20]], "categories": ["cat", "dog"], flag: [1, 0]}
        write_json(root / "metadata.jsonl", {"file_name": "a.png", "objects": objects})


@pytest.mark.parametrize("flag", ["iscrowd", "is_crowd", "ignore", "difficult", "isgroupof"])
@pytest.mark.parametrize("form", ["coco", "labelme", "cvat", "csv", "huggingface"])
def test_all_formats_know_the_same_flags(form: str, flag: str, tmp_path: Path) -> None:
    _write_flag(form, tmp_path, flag)
    annotations = load_annotations(config(tmp_path), "train")
    assert annotations is not None
    assert annotations.crowd.tolist() == [True, False]


def test_one_flag_of_several_suffices_in_hugging_face_data(tmp_path: Path) -> None:
    write_images(tmp_path, {"a.png": SIZES["a.png"]})
    boxes = [[2, 3, 10, 20], [10, 10, 30, 20], [0, 0, 9, 9]]
    objects = {"bbox": boxes, "categories": ["cat"] * 3, "iscrowd": [0, 1, 0], "ignore": [1, 0, 0]}
    write_json(tmp_path / "metadata.jsonl", {"file_name": "a.png", "objects": objects})
    annotations = load_annotations(config(tmp_path), "train")
    assert annotations is not None
    assert annotations.crowd.tolist() == [True, True, False]


@pytest.mark.parametrize(("label", "names"), [(3, ("3",)), (" cat ", ("cat",))])
def test_labelme_labels_may_be_integers(label: object, names: tuple[str, ...], tmp_path: Path) -> None:
    labelme(tmp_path, label)
    annotations = load_annotations(config(tmp_path), "train")
    assert annotations is not None
    assert annotations.class_names == names
    assert annotations.boxes.tolist() == [[1, 1, 9, 9]]


@pytest.mark.parametrize(
    ("label", "message"),
    [(3.5, "expected text as label, found 3.5"), (True, "expected text as label, found True"), (None, "has no label")],
)
def test_other_labelme_labels_are_reported(label: object, message: str, tmp_path: Path) -> None:
    labelme(tmp_path, label)
    with pytest.raises(DataError, match=f"shape 1: {message}"):
        load_annotations(config(tmp_path), "train")


def labelme(folder: Path, label: object) -> None:
    write_images(folder)
    shape = {"label": label, "points": [[1, 1], [9, 9]], "shape_type": "rectangle"}
    write_json(folder / "a.json", {"shapes": [shape], "imagePath": "a.png"})


@pytest.mark.parametrize("kind", ["robndbox", "polygon"])
def test_voc_object_without_bounding_box_is_reported_by_its_kind(kind: str, tmp_path: Path) -> None:
    write_images(tmp_path)
    shape = f"<{kind}><x1>1</x1><cx>5</cx></{kind}>"
    (tmp_path / "a.xml").write_text(f"<annotation><object><name>cat</name>{shape}</object></annotation>")
    with pytest.raises(DataError, match=rf"a\.xml, object 1: has a {kind}, but no bndbox; export the bounding boxes"):
        load_annotations(config(tmp_path), "train")
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    (tmp_path / "a.xml").write_text(f"<annotation><object><name>cat</name>{box}{shape}</object></annotation>")
    annotations = load_annotations(config(tmp_path), "train")
    assert annotations is not None
    assert annotations.boxes.tolist() == [[1, 1, 9, 9]]


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_null_in_place_of_a_coco_list_is_named(key: str, tmp_path: Path) -> None:
    write_coco(tmp_path, {**coco_tree(), key: None})
    data = config(train={"annotations": tmp_path / "train.json", "images": tmp_path / "images"})
    with pytest.raises(
        DataError, match=rf"train\.json: {key}: expected a list, found null; for no entries, write \[\]"
    ):
        load_annotations(data, "train")
