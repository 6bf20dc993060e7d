"""`fcos doctor` on a small data set with the defects of real ones (BCCD, raccoon), from files to terminal, page, JSON.

Defects that are in the data are reported, and no others.
"""

from __future__ import annotations

import json
import re
import shlex

import numpy as np
import pytest
from doctor_data import SIZE, TRAIN, VAL, Folder, boxes_of, cases, doctor, findings, scene
from PIL import Image


def test_clean_dataset_has_no_findings(folder: Folder) -> None:
    assert findings(folder.write()) == {}


def test_near_duplicate_across_splits_is_reported(folder: Folder) -> None:
    """Like BloodImage_00037 (val) and 00038 (train) of BCCD."""
    folder.pictures["val"][2] = folder.pictures["train"][5].resize((160, 120))
    found = findings(folder.write())
    assert list(found) == ["image in two splits"]
    assert cases(found["image in two splits"]) == [[("train5", []), ("val2", [])]]


def test_exact_and_near_duplicates_within_a_split_are_reported(folder: Folder) -> None:
    """Like raccoon-52 and 74 (identical) and 50 (a near duplicate).

    A mirrored image is a near duplicate; two different grey images are not.
    """
    train = folder.pictures["train"]
    train[7], train[9] = train[3], train[3].resize((64, 48)).resize(SIZE)
    train[11] = train[10].transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    train[0], train[1] = train[0].convert("L"), train[1].convert("L")
    found = findings(folder.write())
    assert list(found) == ["duplicate image", "near-duplicate image"]
    assert cases(found["duplicate image"]) == [[("train3", []), ("train7", [])]]
    names = [[name for name, _ in case] for case in cases(found["near-duplicate image"])]
    assert names == [["train10", "train11"], ["train3", "train9"]]


def test_mislabelled_boxes_and_duplicate_boxes_are_reported(folder: Folder) -> None:
    """Like BloodImage_00113, 00133 and 00135 of BCCD, and its seven near-duplicate boxes of red cells."""
    folder.boxes["train"][4][3][4] = 1
    folder.boxes["val"][0][2][4] = 2
    double = folder.boxes["train"][6][0]
    folder.boxes["train"][6].append([double[0] + 0.4, *double[1:]])
    found = findings(folder.write())
    assert cases(found["unusual size for its class"]) == [[("val0", [2])], [("train4", [19])]]
    notes = [case[0]["note"] for case in found["unusual size for its class"]["cases"]]
    assert [note.split("; ")[1] for note in notes] == ["size fits white", "size fits plate"]
    assert cases(found["duplicate box"]) == [[("train6", [24, 28])]]


def test_incompletely_labelled_image_is_reported(folder: Folder) -> None:
    """Like the images of BCCD in which only the white cell has a box."""
    for image in folder.boxes["train"] + folder.boxes["val"]:
        x, y = image[1][0] - 8, image[1][1] + 22
        image += [[x + 6 * i, y, *(np.array([20, 20]) + i / 10), 0] for i in range(6)]
    folder.boxes["train"][8] = folder.boxes["train"][8][2:3]
    assert cases(findings(folder.write())["image with few boxes"]) == [[("train8", [])]]


def test_class_shift_and_classes_missing_from_a_split_are_reported(folder: Folder) -> None:
    for split, gone in (("train", 2), ("val", 0)):
        folder.boxes[split] = [[box for box in image if box[4] != gone] for image in folder.boxes[split]]
    found = findings(folder.write())
    assert found["different class frequencies"]["severity"] == "warning"
    assert "plate: 0.0% of the boxes in train, 50.0% in val" in found["different class frequencies"]["message"]
    for remedy in ("data.val_fraction=0.2", "`fcos split`"):
        assert remedy in found["different class frequencies"]["remedy"]
    assert found["class without boxes in train"]["message"] == "train has no boxes of plate"
    assert found["class without boxes in val"]["message"] == "val has no boxes of red"


def test_training_split_without_boxes_is_reported(folder: Folder) -> None:
    folder.boxes["train"] = [[] for _ in folder.boxes["train"]]
    found = findings(folder.write())["class without boxes in train"]
    assert found["severity"] == "warning"
    assert found["message"] == "train has no boxes of red, white, plate"


def test_broken_files_give_exit_code_1_and_keep_other_findings(folder: Folder) -> None:
    folder.boxes["train"][4][3][4] = 1
    folder.boxes["train"][2][1][2] = 0  # an empty box, as in BloodImage_00343
    root = folder.write()
    image = root / "images/train20.png"
    image.write_bytes(image.read_bytes()[:-300])
    (root / "images/val3.png").write_bytes(b"no image")
    result = doctor(root, out=root / "out")
    assert result.exit_code == 1
    assert "train, errors: unreadable image, empty box" in result.output
    assert "1 box far smaller or larger" in result.output
    assert "2 errors in train will stop training unless data.on_error=skip is set.\n" in result.output
    assert "1 error in val will stop training unless data.on_error=skip is set.\n" in result.output
    report = json.loads((root / "out/doctor.json").read_text())
    assert [len(report["problems"][split]) for split in ("train", "val")] == [2, 1]


def test_dataset_with_only_broken_images_gets_a_report(folder: Folder) -> None:
    root = folder.write()
    for image in (root / "images").iterdir():
        image.write_bytes(b"")
    result = doctor(root, out=root / "out")
    assert result.exit_code == 1, result.output
    assert json.loads((root / "out/doctor.json").read_text())["coverage"] is None
    assert "Errors in the data" in (root / "out/doctor.html").read_text()


def test_message_for_test_split_errors_does_not_mention_training(folder: Folder) -> None:
    folder.boxes["test"] = [boxes_of(200 + k) for k in range(VAL)]
    folder.pictures["test"] = [scene(200 + k) for k in range(VAL)]
    folder.boxes["test"][0][0][2] = 0
    result = doctor(folder.write())
    assert result.exit_code == 1
    assert "1 error in test will stop `fcos val --split test` unless data.on_error=skip is set.\n" in result.output
    assert "training" not in result.output


def test_on_error_skip_is_not_advised_if_already_set_or_useless(folder: Folder) -> None:
    folder.boxes["train"][2][1][2] = 0
    folder.boxes["val"], folder.pictures["val"] = [], []
    root = folder.write()
    result = doctor(root, "data.on_error=skip", out=root / "out")
    assert result.exit_code == 1
    assert "1 error in train: skipped, because data.on_error=skip is set.\n" in result.output
    assert "1 error in val will stop training.\n" in result.output
    page = (root / "out/doctor.html").read_text()
    assert "1 error in train: skipped" in page
    assert "in train, val" in page


def test_images_without_boxes_are_notes_not_errors(folder: Folder) -> None:
    folder.boxes["train"][3] = []
    root = folder.write()
    result = doctor(root, out=root / "out")
    assert result.exit_code == 0
    assert "train, notes: image without boxes\n" in result.output
    page = (root / "out/doctor.html").read_text()
    assert "Errors in the data" not in page
    assert "Notes on the data" in page
    tiles = dict(re.findall(r"<dt>(\w+)</dt><dd>(\d+)</dd>", page))
    noted = sum(
        finding["severity"] == "note" for finding in json.loads((root / "out/doctor.json").read_text())["findings"]
    )
    assert (tiles["Errors"], tiles["Warnings"], tiles["Notes"]) == ("0", "0", str(noted + 1))


def test_recommended_options_for_small_objects_reach_the_stated_recall(folder: Folder) -> None:
    root = folder.write()
    result = doctor(root, "fcos_r50_fpn_1x", "data.short_side=32")
    assert result.exit_code == 0
    assert "in train cannot be learned: they lie between the locations" in result.output
    advice = re.search(r"Recommended options\n +(.*)\n +best possible recall ([\d.]+)% -> ([\d.]+)%", result.output)
    assert advice
    again = doctor(root, "fcos_r50_fpn_1x", "data.short_side=32", *shlex.split(advice[1]))
    assert again.exit_code == 0
    recall = re.search(r"best possible recall ([\d.]+)%", again.output)
    assert recall
    assert float(recall[1]) == pytest.approx(float(advice[3]), abs=0.06)  # both numbers are rounded
    assert "Recommended options" not in again.output


def test_a_missing_val_split_is_a_warning(folder: Folder) -> None:
    folder.boxes.pop("val")
    folder.pictures.pop("val")
    root = folder.write()
    found = findings(root)
    assert found["missing val split"]["severity"] == "warning"
    for remedy in ("data.val_fraction=0.2", "`fcos split`"):
        assert remedy in found["missing val split"]["remedy"]
    assert "no val split: a training on this data has no AP" in doctor(root).output


def test_a_val_split_of_few_images_or_boxes_is_a_warning(folder: Folder) -> None:
    folder.boxes["val"], folder.pictures["val"] = folder.boxes["val"][:4], folder.pictures["val"][:4]
    small = findings(folder.write())["small val split"]
    assert small["severity"] == "warning"
    assert small["message"].startswith("val has 4 images with boxes and 16 boxes: too few for a reliable AP")


def test_a_class_with_few_boxes_in_train_or_none_in_val_is_a_warning(folder: Folder) -> None:
    """Only the first three images of train and none of val show a plate; some of val show a white cell."""
    folder.boxes["train"][3:] = [image[:3] for image in folder.boxes["train"][3:]]
    folder.boxes["val"] = [image[: 3 if k < 15 else 2] for k, image in enumerate(folder.boxes["val"])]
    found = findings(folder.write())
    rare, absent = found["class with few boxes in train"], found["class without boxes in val"]
    assert (rare["severity"], rare["classes"]) == ("warning", ["plate"])
    assert rare["message"] == "train has fewer than 20 boxes of plate (3)"
    assert (absent["severity"], absent["classes"]) == ("warning", ["plate"])
    assert (found["class with few boxes in val"]["severity"], found["class with few boxes in val"]["classes"]) == (
        "note",
        ["white"],
    )


def test_corners_in_place_of_sizes_are_an_error(folder: Folder) -> None:
    for split in ("train", "val"):
        for image in folder.boxes[split]:
            for box in image:
                box[2:4] = [box[0] + box[2], box[1] + box[3]]
    result = doctor(folder.write())
    assert result.exit_code == 1
    output = " ".join(result.output.split())  # without line breaks, which depend on the length of the path
    assert "train, errors: wrong box format" in output
    assert "as x1, y1, x2, y2, 96 of 96 boxes are inside" in output
    assert "96 boxes in train extend beyond their images" in output


def test_boxes_for_images_of_another_size_are_reported(folder: Folder) -> None:
    for image in folder.boxes["val"]:
        for box in image:
            box[:4] = [1.6 * value for value in box[:4]]
    result = doctor(folder.write(), "data.on_error=skip")
    assert "boxes in val extend beyond their images" in result.output
    assert "median box sizes (square root of the area after resizing) differ: " in result.output
    sizes = re.search(r"red: (\d+) pixels in train, (\d+) in val", result.output)
    assert sizes
    assert int(sizes[2]) / int(sizes[1]) == pytest.approx(1.6, abs=0.15)  # boxes at the edge are clipped


def test_different_cars_at_night_and_neighbouring_frames(folder: Folder) -> None:
    """Pairs are reported, each of them similar; nobody is asked to delete frames or to make their labels agree."""
    fade = [Image.blend(scene(0), scene(1), share) for share in np.linspace(0, 1, TRAIN)]
    folder.pictures["train"] = fade
    finding = findings(folder.write())["near-duplicate image"]
    pairs = [[name for name, _ in case] for case in cases(finding)]
    assert len(pairs) == TRAIN - 1
    assert all(len(pair) == 2 for pair in pairs)
    assert ["train0", "train23"] not in pairs
    assert all(case[1]["note"].startswith("correlation 0.") or "1.00" in case[1]["note"] for case in finding["cases"])
    assert "Frames of a video and photographs of the same scene need no change" in finding["remedy"]
    assert "annotation is wrong" not in finding["remedy"]
