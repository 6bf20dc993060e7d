"""Damaged images and annotations: either usable annotations or one clean DataError, within time and memory limits."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fuzzing import ODD_TEXTS, damaged_bytes, damaged_tree, examples, fuzz, limits, result_or_message
from hypothesis import strategies as st
from PIL import Image
from tiny_data import (
    BOXES,
    SIZES,
    coco_tree,
    config,
    voc_xml,
    write_coco,
    write_images,
    write_voc,
    write_yolo,
    yolo_line,
)
from tool_exports import cvat_image, cvat_xml, hugging_face_lines, labelme, labelme_tree, tensorflow_csv

from fcos import DataError
from fcos.data import load_annotations
from fcos.data.dataset import Annotations, DetectionDataset
from fcos.data.images import check_image, open_rgb
from fcos.data.transforms import Transform
from fcos.doctor.shapes import shape_findings
from fcos.evaluation.coco_metrics import coco_metrics

FORMATS = ("JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP")


def encoded(form: str, mode: str = "RGB") -> bytes:
    """Return a small image file."""
    file = io.BytesIO()
    Image.radial_gradient("L").resize((24, 16)).convert(mode).save(file, form)
    return file.getvalue()


@examples(400)
def test_damaged_images_are_read_or_rejected(count: int, tmp_path: Path) -> None:
    files = [encoded(form) for form in FORMATS] + [encoded("PNG", mode) for mode in ("L", "LA", "P", "RGBA", "I;16")]
    path = tmp_path / "image"

    def check(content: bytes) -> None:
        path.write_bytes(content)
        with limits():
            quick, full = (check_image(path, decode=decode) for decode in (False, True))
            problem = None
            try:
                image = open_rgb(path)
            except DataError as error:
                problem = str(error)
        if problem is None:
            assert image.mode == "RGB"
            assert full.problem is quick.problem is None
            assert full.size == quick.size == (image.height, image.width)
        else:
            assert problem == f"{path}: {full.problem}"

    fuzz(check, damaged_bytes(files), count)


def use(root: Path, on_error: str, **options: Any) -> None:
    """Read a data set, check what was read, and do with it what training and evaluation do."""
    annotations = result_or_message(lambda: load_annotations(config(root, on_error=on_error, **options), "train"))
    if annotations is None:
        return
    check_annotations(annotations)
    with limits():
        ground_truth = annotations.to_coco()
        json.dumps(ground_truth, allow_nan=False)
        detections = [
            {"image_id": image["id"], "category_id": annotations.category_ids[0], "bbox": [1, 2, 8, 9], "score": 0.5}
            for image in ground_truth["images"]
        ]
        for detection, annotation in zip(detections, ground_truth["annotations"], strict=False):
            detection |= {key: annotation[key] for key in ("segmentation", "keypoints") if key in annotation}
        coco_metrics(
            ground_truth,
            detections,
            outputs=[
                "boxes",
                *(["masks"] if annotations.masks is not None else []),
                *(["keypoints"] if annotations.keypoints is not None else []),
            ],
            sigmas=[0.1] * (0 if annotations.keypoints is None else len(annotations.keypoints.names)),
        )
        shape_findings({"train": annotations})
        dataset = DetectionDataset(annotations, transform=Transform(short_sides=(32,), max_side=64))
        for index in range(len(dataset)):
            objects = dataset.load(index, seed=1).objects
            if objects.masks is not None:
                objects.masks.crop(objects.boxes, 28)


def check_annotations(annotations: Annotations) -> None:
    """Check the promises of the class `Annotations`."""
    boxes, frames = annotations.boxes, annotations.sizes[annotations.image_of][:, [1, 0, 1, 0]]
    assert len(annotations) > 0
    assert np.isfinite(boxes).all()
    assert (boxes >= 0).all()
    assert (boxes <= frames).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert np.isfinite(annotations.areas).all()
    assert (annotations.areas > 0).all()
    assert annotations.labels.min(initial=0) >= 0
    assert annotations.labels.max(initial=0) < len(annotations.class_names)
    assert len(set(annotations.class_names)) == len(annotations.class_names) > 0
    for ids in (annotations.image_ids, annotations.annotation_ids, np.array(annotations.category_ids)):
        assert ids.dtype == np.int64
        assert len(np.unique(ids)) == len(ids)
    assert all(annotations.path(i).is_file() for i in range(len(annotations)))


def fuzz_files(
    inputs: st.SearchStrategy[Any], count: int, write: Callable[[Any], object], root: Path, **options: Any
) -> None:
    """Write each input into the data set `root`, then read it with both values of data.on_error."""

    def check(drawn: tuple[Any, str]) -> None:
        content, on_error = drawn
        write(content)
        use(root, on_error, **options)

    fuzz(check, st.tuples(inputs, st.sampled_from(["stop", "skip"])), count)


@examples(200)
def test_damaged_coco_values_are_used_or_rejected(count: int, tmp_path: Path) -> None:
    root = write_coco(tmp_path)
    tree = coco_tree()
    for annotation in tree["annotations"]:
        annotation.update(iscrowd=0, area=12.5, ignore=0, segmentation=[[1, 1, 5, 1, 5, 5]])
    fuzz_files(
        damaged_tree(tree), count, lambda damaged: (root / "train.json").write_text(json.dumps(damaged.tree)), root
    )


@examples(200)
def test_damaged_masks_and_keypoints_are_used_or_rejected(count: int, tmp_path: Path) -> None:
    root = write_coco(tmp_path)
    tree = coco_tree()
    segmentations = [[[1, 1, 5, 1, 5, 5]], {"size": [30, 40], "counts": [5, 20]}, {"size": [40, 30], "counts": "52PU1"}]
    for annotation, segmentation in zip(tree["annotations"], segmentations, strict=True):
        annotation.update(segmentation=segmentation, keypoints=[2, 3, 2, 8, 9, 1, 0, 0, 0])
    for category in tree["categories"]:
        category.update(keypoints=["nose", "left", "right"], skeleton=[[1, 2], [1, 3]])

    def write(damaged: Any) -> None:
        (root / "train.json").write_text(json.dumps(damaged.tree))

    fuzz_files(damaged_tree(tree), count, write, root, masks=True, keypoints=True)


@examples(60)
def test_damaged_coco_bytes_are_used_or_rejected(count: int, tmp_path: Path) -> None:
    root = write_coco(tmp_path)
    content = (root / "train.json").read_bytes()
    fuzz_files(damaged_bytes([content]), count, (root / "train.json").write_bytes, root)


@examples(100)
def test_damaged_voc_files_are_used_or_rejected(count: int, tmp_path: Path) -> None:
    root = write_voc(tmp_path)
    xml = voc_xml("a.png", [box[1:] for box in BOXES[:2]])
    texts = [xml.replace(old, new) for old in (">cat<", ">2<", ">40<", ">0<", "a.png") for new in _xml_values()]
    files = [text.encode("utf-8", "surrogatepass") for text in texts]
    inputs = st.one_of(st.sampled_from(files), damaged_bytes([xml.encode()]))
    fuzz_files(inputs, count, (root / "Annotations/a.xml").write_bytes, root)


def _xml_values() -> list[str]:
    return [text if text in ("a.png", "") else f">{text}<" for text in (*ODD_TEXTS, "1e300", "-1e300", "inf", "1e-320")]


@st.composite
def yolo_rows(draw: st.DrawFn) -> str:
    """Draw label files of valid, shortened, extended and odd rows."""
    numbers = st.one_of(
        st.sampled_from(["0", "1", "0.5", ".25", "1.0", "17"]), st.sampled_from(ODD_TEXTS), st.just("1e300")
    )
    valid = [yolo_line(*box).split() for box in BOXES]
    rows = []
    for _ in range(draw(st.integers(1, 4))):
        row = list(draw(st.sampled_from(valid)))
        row += draw(st.lists(st.sampled_from(["0.5", "0.25", "2", "17"]), max_size=9))
        if draw(st.booleans()):
            row[draw(st.integers(0, len(row) - 1))] = draw(numbers)
        rows.append(" ".join(row))
    return draw(st.sampled_from(["\n", "\r\n", "\n\n"])).join(rows)


@examples(150)
def test_odd_yolo_rows_are_used_or_rejected(count: int, tmp_path: Path) -> None:
    root = write_yolo(tmp_path)
    path = root / "labels/train/a.txt"
    fuzz_files(yolo_rows(), count, lambda text: path.write_bytes(text.encode("utf-8", "surrogatepass")), root)


@examples(80)
def test_damaged_data_yaml_is_used_or_rejected(count: int, tmp_path: Path) -> None:
    root = write_yolo(tmp_path)
    tree = {"path": ".", "train": "images/train", "names": {0: "cat", 1: "dog"}, "nc": 2, "kpt_shape": [4, 2]}
    text = "path: .\ntrain: images/train\nnames: [cat, dog]\n"
    inputs = st.one_of(
        damaged_tree(tree).map(lambda damaged: json.dumps(damaged.tree).encode()), damaged_bytes([text.encode()])
    )
    fuzz_files(inputs, count, (root / "data.yaml").write_bytes, root)


def damaged_json(tree: Any) -> st.SearchStrategy[bytes]:
    """Draw JSON text with odd values or damaged bytes."""
    trees = damaged_tree(tree).map(lambda damaged: json.dumps(damaged.tree).encode())
    return st.one_of(trees, damaged_bytes([json.dumps(tree).encode()]))


def odd_fields(text: str, fields: Sequence[str]) -> st.SearchStrategy[bytes]:
    """Draw a text in which one field has an odd value, or bytes are damaged."""
    values = (*ODD_TEXTS, "1e300", "-1e300", "inf", "1e-320")
    texts = [text.replace(field, value) for field in fields for value in values]
    files = [text.encode("utf-8", "surrogatepass") for text in texts]
    return st.one_of(st.sampled_from(files), damaged_bytes([text.encode()]))


@examples(40)
def test_damaged_csv_files_are_used_or_rejected(count: int, tmp_path: Path) -> None:
    write_images(tmp_path)
    inputs = odd_fields(tensorflow_csv(list(SIZES)), ["xmin", "class", "a.png", "cat", "23", ","])
    fuzz_files(inputs, count, (tmp_path / "boxes.csv").write_bytes, tmp_path)


@examples(40)
def test_damaged_cvat_files_are_used_or_rejected(count: int, tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    fields = ['"a.png"', '"cat"', '"2.00"', "points", "<box", "width"]
    inputs = odd_fields(cvat_xml([cvat_image(name, i) for i, name in enumerate(SIZES)]), fields)
    fuzz_files(inputs, count, (tmp_path / "annotations.xml").write_bytes, tmp_path)


@examples(40)
def test_damaged_labelme_files_are_used_or_rejected(count: int, tmp_path: Path) -> None:
    labelme(tmp_path)
    inputs = damaged_json(labelme_tree("a.png", "a.png"))
    fuzz_files(inputs, count, (tmp_path / "a.json").write_bytes, tmp_path)


@examples(40)
def test_damaged_hugging_face_lines_are_used_or_rejected(count: int, tmp_path: Path) -> None:
    write_images(tmp_path)
    write_images(tmp_path / "train")
    first, *others = hugging_face_lines(list(SIZES), prefix="train/").encode().splitlines()
    inputs = damaged_json({**json.loads(first), "width": 40, "height": 30})
    path = tmp_path / "metadata.jsonl"
    fuzz_files(inputs, count, lambda line: path.write_bytes(b"\n".join([line, *others])), tmp_path)


@st.composite
def file_names(draw: st.DrawFn) -> str:
    names = st.sampled_from(
        [
            "._a.png",
            ".hidden.png",
            "A.PNG",
            "a.jpeg",
            "e\u0301.png",
            "é.png",
            "n" * 200 + ".png",
            "a b#2.png",
            "no.png",
        ]
    )
    return draw(names)


@examples(40)
def test_odd_file_names_are_used_or_rejected(count: int, tmp_path: Path) -> None:
    def check(drawn: tuple[list[str], str]) -> None:
        names, form = drawn
        root = tmp_path / "data"
        shutil.rmtree(root, ignore_errors=True)
        {"coco": write_coco, "voc": write_voc, "yolo": write_yolo}[form](root)
        folder = next(p for p in (root / "JPEGImages", root / "images/train", root / "images") if p.is_dir())
        write_images(folder, dict.fromkeys(names, (20, 10)))
        use(root, "skip")

    fuzz(check, st.tuples(st.lists(file_names(), max_size=4), st.sampled_from(["coco", "voc", "yolo"])), count)
