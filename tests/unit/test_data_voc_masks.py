"""Instance masks of Pascal VOC: values of SegmentationObject, their lists of images, and values that do not fit."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_data import SIZES, config, voc_xml, write_coco, write_voc

from fcos.data import load_annotations
from fcos.data.conversion import convert
from fcos.data.dataset import Annotations
from fcos.errors import DataError

PALETTE = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128)]
"""First colours of VOC's palette, as its development kit lists them."""
VOID = (224, 224, 192)


def numbers_of_a() -> np.ndarray:
    """Return the numbers of the objects of a.png, whose second object hides a part of the first, with a void border."""
    numbers = np.zeros((30, 40), dtype=np.uint8)
    numbers[3:23, 2:12] = 1
    numbers[10:30, 10:40] = 2
    numbers[10:30, 10] = 255
    return numbers


def numbers_of_b() -> np.ndarray:
    """Return the numbers of b.png, whose only object consists of two parts."""
    numbers = np.zeros((40, 30), dtype=np.uint8)
    numbers[8:14, 0:15] = numbers[18:24, 0:15] = 1
    return numbers


def save_palette(numbers: np.ndarray, path: Path) -> None:
    image = Image.fromarray(numbers, mode="P")
    image.putpalette([9, 8, 7] * 256)  # the colours have no meaning
    image.save(path)


def save_grey(numbers: np.ndarray, path: Path) -> None:
    Image.fromarray(numbers).save(path)


def save_colors(numbers: np.ndarray, path: Path) -> None:
    colors = np.zeros((*numbers.shape, 3), dtype=np.uint8)
    for number, color in {**dict(enumerate(PALETTE)), 255: VOID}.items():
        colors[numbers == number] = color
    Image.fromarray(colors).save(path)


Save = Callable[[np.ndarray, Path], None]


def write(root: Path, *, save: Save = save_palette, split: str = "train", **numbers: np.ndarray) -> Path:
    """Write the data set with the numbers of a.png and b.png, and the list of the images that have any."""
    write_voc(root, split=split)
    for folder in ("SegmentationObject", "ImageSets/Segmentation"):
        (root / folder).mkdir()
    files = {"a": numbers_of_a(), "b": numbers_of_b(), **numbers}
    for name, values in files.items():
        save(values, root / "SegmentationObject" / f"{name}.png")
    (root / f"ImageSets/Segmentation/{split}.txt").write_text("".join(f"{name}\n" for name in files))
    return root


def load(root: Path, **options: Any) -> Annotations:
    annotations = load_annotations(config(root, **options), "train")
    assert annotations is not None
    return annotations


def bitmaps_of(annotations: Annotations, image: int) -> np.ndarray:
    assert annotations.masks is not None
    size = (int(annotations.sizes[image, 0]), int(annotations.sizes[image, 1]))
    return annotations.masks[annotations.span(image)].to_bitmaps(size).numpy()


def error_of(root: Path, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        load(root, masks=True, **options)
    return str(caught.value)


@pytest.mark.parametrize("save", [save_palette, save_grey, save_colors])
def test_values_number_the_objects_of_the_xml_file(save: Save, tmp_path: Path) -> None:
    annotations = load(write(tmp_path, save=save), masks=True)
    assert [annotations.file_name(i) for i in range(len(annotations))] == ["a.png", "b.png"]
    np.testing.assert_array_equal(bitmaps_of(annotations, 0), [numbers_of_a() == 1, numbers_of_a() == 2])
    np.testing.assert_array_equal(bitmaps_of(annotations, 1), [numbers_of_b() == 1])
    assert annotations.boxes.tolist() == [[2, 3, 12, 23], [10, 10, 40, 30], [0, 8, 15, 24]]


def test_all_images_are_used_without_masks(tmp_path: Path) -> None:
    annotations = load(write(tmp_path))
    assert len(annotations) == len(SIZES)
    assert annotations.masks is None


def test_boxes_of_masks_surround_the_pixels(tmp_path: Path) -> None:
    annotations = load(write(tmp_path), boxes="masks")
    assert annotations.boxes.tolist() == [[2, 3, 12, 23], [11, 10, 40, 30], [0, 8, 15, 24]]


def test_an_image_list_takes_precedence_over_that_of_the_masks(tmp_path: Path) -> None:
    root = write(tmp_path)
    (root / "mine.txt").write_text("b\n")
    annotations = load(root, masks=True, train={"image_list": [root / "mine.txt"]})
    assert [annotations.file_name(i) for i in range(len(annotations))] == ["b.png"]


def test_images_outside_the_list_have_no_masks(tmp_path: Path) -> None:
    root = write(tmp_path)
    (root / "SegmentationObject/b.png").unlink()
    message = error_of(root, train={"image_list": [root / "ImageSets/Main/train.txt"]})
    assert f"{root}/Annotations/b.xml, object 1: has no mask" in message
    assert "a.xml" not in message


def test_data_without_masks_names_the_folder(tmp_path: Path) -> None:
    assert "SegmentationObject in VOC, instances in Cityscapes), found none" in error_of(write_voc(tmp_path))


def test_values_in_another_order_are_reported(tmp_path: Path) -> None:
    numbers = numbers_of_a()
    swapped = numbers.copy()
    swapped[numbers == 1], swapped[numbers == 2] = 2, 1
    message = error_of(write(tmp_path, a=swapped))
    expected = (
        "a.png, value 1: the pixels of object 1 span 11, 10, 40, 30 and do not match its box 2, 3, 12, 23, but match"
        " object 2; the values must number the objects of the XML file in its order"
    )
    assert expected in message
    assert "value 2: the pixels of object 2 span 2, 3, 12, 23 and do not match its box 10, 10, 40, 30" in message


def test_pixels_outside_the_box_are_reported(tmp_path: Path) -> None:
    numbers = np.zeros((40, 30), dtype=np.uint8)
    numbers[30:35, 20:25] = 1
    message = error_of(write(tmp_path, b=numbers))
    assert "value 1: the pixels of object 1 span 20, 30, 25, 35 and do not match its box 0, 8, 15, 24; the" in message


def test_values_without_object_are_reported(tmp_path: Path) -> None:
    numbers = numbers_of_a()
    numbers[0, :3] = 3
    message = error_of(write(tmp_path, a=numbers))
    assert f"{tmp_path}/SegmentationObject/a.png, value 3: marks pixels of object 3, but the XML file has 2" in message


def test_visible_part_of_a_hidden_object_is_its_mask(tmp_path: Path) -> None:
    numbers = numbers_of_a()
    numbers[numbers == 1] = 0
    numbers[3:6, 2:5] = 1  # a small part of the box, nearest to no other object
    assert bitmaps_of(load(write(tmp_path, a=numbers), masks=True), 0)[0].sum() == 9


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no image", "cannot be read"),
        (np.zeros((30, 30), dtype=np.uint8), "expected 40x30 pixels, as in the XML file, found 30x30"),
        (
            np.full((30, 40, 3), 7, dtype=np.uint8),
            "expected numbers of objects or the colours of VOC's palette, found",
        ),
    ],
)
def test_broken_files_are_reported_and_skipped(content: bytes | np.ndarray, message: str, tmp_path: Path) -> None:
    root = write(tmp_path)
    file = root / "SegmentationObject/a.png"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        Image.fromarray(content).save(file)
    assert f"{file}: {message}" in error_of(root)
    annotations = load(root, masks=True, on_error="skip")
    assert [annotations.file_name(i) for i in range(len(annotations))] == ["b.png"]


def test_size_of_the_image_is_required_without_a_size_in_the_xml_file(tmp_path: Path) -> None:
    root = write(tmp_path, b=np.zeros((30, 30), dtype=np.uint8))
    xml = root / "Annotations/b.xml"
    xml.write_text(xml.read_text().replace("<height>40</height>", ""))
    assert f"{root}/JPEGImages/b.png" in error_of(root)


def test_difficult_objects_need_no_mask(tmp_path: Path) -> None:
    root = write(tmp_path, b=np.zeros((40, 30), dtype=np.uint8))
    (root / "Annotations/b.xml").write_text(voc_xml("b.png", [("dog", (0, 8, 15, 24))], difficult=True))
    annotations = load(root, masks=True)
    assert annotations.crowd.tolist() == [False, False, True]


def test_broken_objects_keep_the_numbers_of_the_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write(tmp_path)
    boxes = [("", (2, 3, 12, 23)), ("dog", (10, 10, 40, 30))]
    (root / "Annotations/a.xml").write_text(voc_xml("a.png", boxes))
    with caplog.at_level(logging.WARNING, logger="fcos"):
        annotations = load(root, masks=True, on_error="skip")
    np.testing.assert_array_equal(bitmaps_of(annotations, 0), [numbers_of_a() == 2])
    assert "object 1: has no name" in caplog.text
    assert "mask without object" not in caplog.text


def test_conversion_keeps_masks_and_images_without_masks(tmp_path: Path) -> None:
    convert(config(write(tmp_path / "voc")), tmp_path / "out")
    converted = load(tmp_path / "out")
    assert len(converted) == len(SIZES)
    with_masks = load_annotations(config(tmp_path / "out"), "train", lossless=True)
    assert with_masks is not None
    np.testing.assert_array_equal(bitmaps_of(with_masks, 1), [numbers_of_b() == 1])


def test_conversion_of_masks_that_do_not_fit_names_the_option_without_them(tmp_path: Path) -> None:
    root = write(tmp_path / "voc", b=np.full((40, 30), 9, dtype=np.uint8))
    with pytest.raises(DataError, match=r"value 9: .*(?s:.*)leave out what is broken with data\.masks=false"):
        convert(config(root), tmp_path / "out")


def test_masks_can_be_combined_with_other_formats(tmp_path: Path) -> None:
    root, other = write(tmp_path / "voc"), write_coco(tmp_path / "coco")
    data_sets = {
        "annotations": [root / "Annotations", other / "train.json"],
        "images": [root / "JPEGImages", other / "images"],
        "image_list": [root / "ImageSets/Segmentation/train.txt", None],
    }
    annotations = load_annotations(config(None, train=data_sets, masks=True, on_error="skip"), "train")
    assert annotations is not None
    assert annotations.masks is not None
    assert len(annotations.masks) == 3  # the COCO file has none
