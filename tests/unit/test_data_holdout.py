"""Held-out validation images: `hold_out` and data.val_fraction."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from tiny_data import SIZES, config, voc_xml, write_coco, write_images, write_json
from tool_exports import SINGLE, roboflow_voc

from fcos.data import Annotations, load_annotations
from fcos.data.holdout import describe_cuts, hold_out
from fcos.errors import DataError

_CLASSES = ("cat", "dog", "owl")


def _hold_out(labels_of: Mapping[str, Sequence[int]], *, fraction: float = 0.2, **options: object) -> set[str]:
    """Return the names of the images that are held out; `labels_of` has the labels of each image."""
    names = list(labels_of)
    image_of = np.array([i for i, name in enumerate(names) for _ in labels_of[name]], dtype=np.int64)
    labels = np.array([label for name in names for label in labels_of[name]], dtype=np.int64)
    mask = hold_out(names, image_of, labels, _CLASSES, fraction=fraction, **options)  # pyright: ignore[reportArgumentType]
    return {name for name, is_held_out in zip(names, mask, strict=True) if is_held_out}


def _random_labels(names: Sequence[str], seed: int = 0) -> dict[str, list[int]]:
    """Return labels whose classes have very different frequencies."""
    generator = np.random.default_rng(seed)
    return {name: generator.choice(3, size=generator.integers(0, 4), p=[0.8, 0.17, 0.03]).tolist() for name in names}


def _words(count: int) -> list[str]:
    return [
        f"{number:x}{'abc'[number % 3]}{'gh'[number % 2]}z.jpg".translate(_LETTERS)
        for number in range(1000, 1000 + count)
    ]


_LETTERS = str.maketrans("0123456789", "klmnopqrst")


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5])
@pytest.mark.parametrize("names", [_words(300), [f"IMG_{i:04}.jpg" for i in range(300)]], ids=["words", "numbers"])
def test_fraction_holds_for_images_and_boxes_of_every_class(names: list[str], fraction: float) -> None:
    labels_of = _random_labels(names)
    held_out = _hold_out(labels_of, fraction=fraction)
    assert len(held_out) == pytest.approx(fraction * len(names), rel=0.2)
    for label in range(3):
        total = sum(labels.count(label) for labels in labels_of.values())
        part = sum(labels_of[name].count(label) for name in held_out)
        assert part == pytest.approx(fraction * total, rel=0.25, abs=2)


def test_choice_depends_neither_on_order_of_images_nor_of_classes() -> None:
    labels_of = _random_labels(_words(50))
    held_out = _hold_out(labels_of)
    assert _hold_out(dict(reversed(labels_of.items()))) == held_out
    names, swapped = list(labels_of), {0: 2, 1: 1, 2: 0}
    image_of = np.array([i for i, name in enumerate(names) for _ in labels_of[name]], dtype=np.int64)
    labels = np.array([swapped[label] for name in names for label in labels_of[name]], dtype=np.int64)
    mask = hold_out(names, image_of, labels, _CLASSES[::-1], fraction=0.2)
    assert {name for name, is_held_out in zip(names, mask, strict=True) if is_held_out} == held_out


@pytest.mark.parametrize(("num_sequences", "length"), [(5, 4), (4, 10), (3, 10), (12, 25)])
@pytest.mark.parametrize("pattern", ["{s}_{i:04}.jpg", "{s}/frame{i}.png", "{s}-frame-{i}-left.jpg", "cam{s}\\{i}.jpg"])
def test_frames_of_a_sequence_stay_together(pattern: str, num_sequences: int, length: int) -> None:
    sequences = [[pattern.format(s="abcdefghijkl"[s], i=i) for i in range(length)] for s in range(num_sequences)]
    held_out = _hold_out({name: [0] for names in sequences for name in names})
    assert held_out
    for names in sequences:
        assert held_out.issuperset(names) or held_out.isdisjoint(names)


@pytest.mark.parametrize("length", [3, 7, 20, 50])
@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5, 0.7])
@pytest.mark.parametrize("pattern", ["frame_{:04}.jpg", "{}.png", "video/f{}-left.jpg"])
def test_end_of_a_single_short_sequence_is_held_out(length: int, fraction: float, pattern: str) -> None:
    names = [pattern.format(i) for i in range(1, length + 1)]
    assert _hold_out({name: [0] for name in names}, fraction=fraction) == set(
        names[-max(1, round(fraction * length)) :]
    )


@pytest.mark.parametrize("labels", [[0] * 20, [0, 1] * 10, [0] * 16 + [1, 1, 0, 0]])
def test_no_single_frame_of_a_short_sequence_is_held_out(labels: list[int]) -> None:
    labels_of = {f"frame_{i:04}.jpg": [label] for i, label in enumerate(labels)}
    numbers = sorted(int(name[6:10]) for name in _hold_out(labels_of))
    assert all({number - 1, number + 1} & set(numbers) for number in numbers)


@pytest.mark.parametrize(("num_sequences", "length"), [(2, 10), (2, 20), (3, 15), (10, 1), (7, 3), (2, 50)])
def test_short_sequences_stay_together(num_sequences: int, length: int) -> None:
    sequences = [[f"{'abcdefghij'[s]}/{i}.jpg" for i in range(length)] for s in range(num_sequences)]
    held_out = _hold_out({name: [0] for names in sequences for name in names}, fraction=0.1)
    assert 0 < len(held_out) <= num_sequences * length / 2
    assert all(held_out.issuperset(names) or held_out.isdisjoint(names) for names in sequences)


def test_short_sequences_of_one_class_each_are_cut() -> None:
    """Numbered images in folders of classes, not frames."""
    labels_of = {f"{name}/{i}.jpg": [label] for label, name in enumerate(_CLASSES) for i in range(40)}
    held_out = _hold_out(labels_of, fraction=0.1)
    assert len(held_out) == pytest.approx(12, abs=2)
    assert {labels_of[name][0] for name in held_out} == {0, 1, 2}


def test_classes_in_numbered_images_are_all_held_out() -> None:
    labels_of = {f"photo_{i:02}.jpg": [i // 10] for i in range(30)}
    assert {labels_of[name][0] for name in _hold_out(labels_of)} == {0, 1, 2}


@pytest.mark.parametrize("names", [["a.jpg", "b.jpg"], ["frame_1.jpg", "frame_2.jpg"], ["a1.png", "a.png"]])
def test_half_of_two_images_is_held_out(names: list[str]) -> None:
    assert len(_hold_out({name: [label] for label, name in enumerate(names)}, fraction=0.5)) == 1


def test_note_names_the_sequences_that_are_cut() -> None:
    names = ["a_1.jpg", "a_2.jpg", "a_3.jpg", "b_1.jpg", "b_2.jpg", "c.jpg"]
    note = describe_cuts(names, np.array([False, False, True, True, True, True]))
    assert note.startswith("train contains other images of 1 sequence (a_1.jpg to a_3.jpg)")
    assert not describe_cuts(names, np.array([False, False, False, True, True, True]))


def test_single_sequence_is_cut_into_blocks() -> None:
    held_out = _hold_out({f"video_{i:03}.jpg": [0] for i in range(100)})
    numbers = sorted(int(name[6:9]) for name in held_out)
    num_cuts = sum(after != before + 1 for before, after in pairwise(numbers))
    assert len(numbers) == 20
    assert num_cuts <= 3


def test_blocks_become_smaller_until_every_class_is_held_out() -> None:
    """Images numbered by class, as scripts write them."""
    labels_of = {f"image_{i:03}.jpg": [i // 40] for i in range(120)}
    held_out = _hold_out(labels_of, fraction=0.1)
    assert {labels_of[name][0] for name in held_out} == {0, 1, 2}


def test_augmented_copies_of_roboflow_stay_together() -> None:
    copies = {f"photo_{i}_jpg.rf.{copy * 32}.jpg": [0] for i in range(20) for copy in "abc"}
    held_out = _hold_out(copies)
    origins = {name.partition("_jpg.rf.")[0] for name in held_out}
    assert len(held_out) == 3 * len(origins) == 12


def test_linked_images_stay_together() -> None:
    names = _words(40)
    linked = [(i, i + 20) for i in range(20)]
    held_out = _hold_out({name: [0] for name in names}, linked=linked)
    assert len(held_out) == 8
    assert all((names[a] in held_out) == (names[b] in held_out) for a, b in linked)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_few_images_leave_both_parts_with_at_least_one(count: int) -> None:
    assert 0 < len(_hold_out({f"a{i}.jpg": [] for i in range(count)})) < count


def test_one_image_cannot_be_divided() -> None:
    with pytest.raises(DataError, match=r"cannot hold out 0\.2 of the images: all 1 belong together \(copies"):
        _hold_out({"a.jpg": [0]})


def _write_pets(root: Path, count: int = 10) -> Path:
    names = _words(count)
    write_images(root / "images", dict.fromkeys(names, (16, 16)))
    boxes = [{"id": i, "image_id": i, "category_id": i % 2, "bbox": [1, 1, 8, 8]} for i in range(count)]
    images = [{"id": i, "file_name": name} for i, name in enumerate(names)]
    categories = [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]
    return write_json(root / "result.json", {"images": images, "annotations": boxes, "categories": categories}).parent


def test_val_fraction_divides_the_training_split(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = config(_write_pets(tmp_path), val_fraction=0.2)
    train = load_annotations(data, "train")
    assert train is not None
    with caplog.at_level(logging.INFO, logger="fcos"):
        val = load_annotations(data, "val", class_names=train.class_names)
    assert val is not None
    names = [{part.file_name(i) for i in range(len(part))} for part in (train, val)]
    assert [len(part) for part in names] == [8, 2]
    assert names[0].isdisjoint(names[1])
    assert val.boxes_per_class().tolist() == [1, 1]
    assert load_annotations(data, "test") is None
    assert "data.val_fraction=0.2: 2 of 10 images held out for validation" in caplog.text
    assert "boxes: 1 of 5 cat, 1 of 5 dog" in caplog.text


def test_val_fraction_is_rejected_if_the_data_has_a_val_split(tmp_path: Path) -> None:
    roboflow_voc(tmp_path)
    with pytest.raises(DataError, match=r"data\.val_fraction: the data has a val split already; remove this option"):
        load_annotations(config(tmp_path, val_fraction=0.2), "train")


def test_problems_of_the_files_are_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = _write_pets(tmp_path)
    text = (root / "result.json").read_text()
    (root / "result.json").write_text(text.replace('"category_id": 1', '"category_id": 9', 1))
    data = config(root, val_fraction=0.2, on_error="skip")
    with caplog.at_level(logging.INFO, logger="fcos"):
        load_annotations(data, "train")
        load_annotations(data, "val")
    assert caplog.text.count("category_id 9") == 1


def test_test_split_is_not_affected_by_val_fraction(tmp_path: Path) -> None:
    write_coco(tmp_path)
    write_coco(tmp_path, split="test")
    loaded = load_annotations(config(tmp_path, val_fraction=0.4), "test")
    assert loaded is not None
    assert len(loaded) == 3


def _divide(root: Path | None, convention: str, **options: object) -> tuple[Annotations, Annotations]:
    """Return train and val of a data set, read as a training does: val with the classes of train."""
    data = config(root, val_fraction=0.3, convention=convention, **options)
    train = load_annotations(data, "train")
    assert train is not None
    val = load_annotations(data, "val", class_names=train.class_names, category_ids=train.category_ids)
    assert val is not None
    return train, val


def _file_names(annotations: Annotations) -> list[str]:
    return [str(annotations.path(i)) for i in range(len(annotations))]


@pytest.mark.parametrize("convention", ["fcos", "fcos_core"])
@pytest.mark.parametrize("write", [write for _, write in SINGLE.values()], ids=SINGLE)
def test_train_and_val_are_disjoint_and_complete(
    write: Callable[[Path], None], convention: str, tmp_path: Path
) -> None:
    write(tmp_path)
    whole = load_annotations(config(tmp_path), "train")
    train, val = map(_file_names, _divide(tmp_path, convention))
    assert whole is not None
    assert set(train).isdisjoint(val)
    if convention == "fcos":
        assert sorted([*train, *val]) == sorted(_file_names(whole))
    else:  # the original does not train on images without boxes
        assert {*train, *val} | {name for name in _file_names(whole) if name.endswith("c.png")} == {*_file_names(whole)}


def test_original_trains_on_all_images_with_boxes_that_are_not_held_out(tmp_path: Path) -> None:
    names = _words(60)
    write_images(tmp_path / "images", dict.fromkeys(names, (16, 16)))
    boxes = [
        {"id": i, "image_id": i, "category_id": i % 7 // 6, "bbox": [1, 1, 8, 8], "iscrowd": int(i % 5 == 1)}
        for i in range(60)
        if i % 3
    ]
    images = [{"id": i, "file_name": name} for i, name in enumerate(names)]
    categories = [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]
    write_json(tmp_path / "result.json", {"images": images, "annotations": boxes, "categories": categories})
    ours, original = _divide(tmp_path, "fcos"), _divide(tmp_path, "fcos_core")
    assert _file_names(original[1]) == _file_names(ours[1])
    held_out = {Path(name).name for name in _file_names(original[1])}
    assert {Path(name).name for name in _file_names(original[0])} == set(names[1::3] + names[2::3]) - held_out


def test_original_holds_out_the_same_images_of_voc_with_difficult_objects(tmp_path: Path) -> None:
    names = _words(20)
    write_images(tmp_path / "JPEGImages", dict.fromkeys(names, SIZES["a.png"]))
    (tmp_path / "Annotations").mkdir()
    for i, name in enumerate(names):
        text = voc_xml("a.png", [("cat" if i % 3 else "dog", (2, 2, 9, 9))], difficult=i % 2 == 0)
        (tmp_path / "Annotations" / name).with_suffix(".xml").write_text(text.replace("a.png", name))
    train, val = _divide(tmp_path, "fcos_core")
    assert sorted(Path(name).name for part in (train, val) for name in _file_names(part)) == sorted(names)
    assert not train.crowd.any()
    assert val.crowd.any()


@pytest.mark.parametrize("convention", ["fcos", "fcos_core"])
def test_several_data_sets_are_divided_as_one(convention: str, tmp_path: Path) -> None:
    roots = [_write_pets(tmp_path / name, count) for name, count in (("north", 12), ("south", 3))]
    files = {"annotations": [root / "result.json" for root in roots], "images": [root / "images" for root in roots]}
    train, val = _divide(None, convention, train=files)
    names = [*_file_names(train), *_file_names(val)]
    assert sorted(names) == sorted(str(path) for root in roots for path in (root / "images").iterdir())


def test_original_without_any_box_in_train_is_an_error(tmp_path: Path) -> None:
    tree = json.loads((_write_pets(tmp_path) / "result.json").read_text())
    write_json(tmp_path / "result.json", {**tree, "annotations": []})
    with pytest.raises(DataError, match="contains no usable image for train"):
        load_annotations(config(tmp_path, val_fraction=0.2, convention="fcos_core"), "train")
