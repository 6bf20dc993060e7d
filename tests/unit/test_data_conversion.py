"""Conversion of data sets to COCO files: nothing is lost or rounded, and nothing is overwritten."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tool_exports
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_data import SIZES, coco_tree, config, contents, write_coco, write_images, write_json, write_voc, write_yolo

from fcos import cli
from fcos.data import load_annotations
from fcos.data.conversion import convert
from fcos.data.layouts import SPLITS
from fcos.errors import DataError
from fcos.masks import encode

CLASSES = {"yolo": ["cat", "dog"]}


def digests(root: Path, **options: Any) -> dict[str, str]:
    """Return the digest of each split, with the classes of the first one."""
    found: dict[str, str] = {}
    names, ids = None, None
    for split in SPLITS:
        annotations = load_annotations(config(root, **options), split, class_names=names, category_ids=ids)
        if annotations is not None:
            found[split], names, ids = annotations.digest(), annotations.class_names, annotations.category_ids
    return found


def read_tree(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text())


def write_two_splits(root: Path, write: Callable[..., Path]) -> Path:
    write(root, split="train")
    write(root, split="val")
    return root


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


@settings(max_examples=25, deadline=None)
@given(objects=st.lists(random_annotations(), min_size=1, max_size=5))
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
    if "masks" in kinds:
        convert(config(source, boxes="masks", **options), folder / "of masks")
        before = digests(source, masks=True, boxes="masks", **options)
        assert digests(folder / "of masks", masks=True, **options) == before


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


# --------------------------------------------------------------------------------------------------------- output files


def test_existing_files_are_not_overwritten_unless_asked(tmp_path: Path) -> None:
    source, out = write_two_splits(tmp_path / "source", write_coco), tmp_path / "out"
    out.mkdir()
    (out / "val.json").write_text("mine")
    with pytest.raises(DataError, match=r"out/val.json: exists already; choose another folder, or .*--overwrite"):
        convert(config(source), out)
    assert [path.name for path in out.iterdir()] == ["val.json"]
    assert (out / "val.json").read_text() == "mine"
    convert(config(source), out, overwrite=True)
    assert digests(out) == digests(source)


def test_existing_images_are_not_overwritten_unless_asked(tmp_path: Path) -> None:
    source, out = write_coco(tmp_path / "source"), tmp_path / "out"
    (out / "images/train").mkdir(parents=True)
    (out / "images/train/b.png").write_text("mine")
    with pytest.raises(DataError, match=r"images/train/b.png: exists already"):
        convert(config(source), out, copy_images=True)
    assert (out / "images/train/b.png").read_text() == "mine"
    assert not (out / "train.json").exists()
    convert(config(source), out, copy_images=True, overwrite=True)
    assert (out / "images/train/b.png").read_bytes() == (source / "images/b.png").read_bytes()


def test_converting_in_place_keeps_the_images(tmp_path: Path) -> None:
    source = write_yolo(tmp_path / "source")
    before = digests(source)
    pixels = (source / "images/train/a.png").read_bytes()
    convert(config(source), source, copy_images=True, overwrite=True)
    assert (source / "images/train/a.png").read_bytes() == pixels
    assert digests(source, format="coco") == before


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Return a function that runs `fcos convert-data` and returns (exit code, stdout, stderr)."""

    def command(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            cli.main(["convert-data", *map(str, words)])
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return command


def test_command_reports_what_it_wrote(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    tree = coco_tree()
    tree["annotations"][0].update(iscrowd=1, segmentation=[[1, 1, 9, 1, 9, 9]], keypoints=[1, 1, 2])
    source = write_coco(tmp_path / "my data", tree)
    code, out, _ = run(source, tmp_path / "out")
    assert code == 0
    assert f"{tmp_path / 'out/train.json'}: 3 images, 2 classes, 2 objects, 1 ignore region, 1 mask, 1 with" in out
    assert f"next: fcos train fcos_mnv2_small data={tmp_path / 'out'}" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere", "out"], "nowhere: no such data folder"),
        (["data", "out", "data.format=coc"], "data.format"),
        (["data", "out", "more"], "more: expected KEY=VALUE; did you mean data=more?"),
        (["data", "out", "--copy"], "--copy: no such option"),
        (["data", "file/out"], "file/out: cannot be written: Not a directory"),
    ],
)
def test_mistakes_get_one_message(
    run: Callable[..., tuple[int, str, str]],
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_coco(tmp_path / "data")
    (tmp_path / "file").write_text("")
    code, _, err = run(*words)
    assert code == 2
    assert message in err
    assert not (tmp_path / "out").exists()


def test_source_may_have_the_form_of_an_option(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    code, _, _ = run(f"data={write_coco(tmp_path / 'data')}", tmp_path / "out")
    assert code == 0
    assert digests(tmp_path / "out") == digests(tmp_path / "data")
