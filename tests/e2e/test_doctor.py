"""`fcos doctor` on a small data set with the defects of real ones (BCCD, raccoon), from files to terminal, page, JSON.

Defects that are in the data are reported, and no others.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from fcos.cli import app

SIZE = (128, 96)  # width, height
CLASSES = ("red", "white", "plate")
SIDES = (20, 40, 8)  # usual, pixels
TRAIN, VAL = 24, 20


def scene(seed: int) -> Image.Image:
    """Return an image of smooth blobs that resembles a photograph."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(SIZE, Image.Resampling.BICUBIC)


def boxes_of(seed: int) -> list[list[float]]:
    """Return rows of (x, y, width, height, label): two red, a white and a plate box, of about the usual sizes."""
    generator = np.random.default_rng(1000 + seed)
    boxes = []
    for label, corner in ((0, (2, 2)), (0, (60, 2)), (1, (2, 45)), (2, (100, 70))):
        x, y = np.add(corner, generator.uniform(0, 6, 2)).tolist()
        boxes.append([x, y, *(SIDES[label] * generator.uniform(0.85, 1.15, 2)).tolist(), label])
    return boxes


class Folder:
    """COCO data set that tests can change before it is written."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.boxes = {split: [boxes_of(k) for k in range(start, start + count)] for split, start, count in (
            ("train", 0, TRAIN), ("val", 100, VAL))}  # fmt: skip
        self.pictures = {"train": [scene(k) for k in range(TRAIN)], "val": [scene(100 + k) for k in range(VAL)]}

    def write(self) -> Path:
        (self.root / "images").mkdir(parents=True)
        for split, pictures in self.pictures.items():
            for k, picture in enumerate(pictures):
                picture.save(self.root / f"images/{split}{k}.png")
            rows = [(k, box) for k, image in enumerate(self.boxes[split]) for box in image]
            tree = {
                "images": [
                    {"id": k, "file_name": f"{split}{k}.png", "width": p.width, "height": p.height}
                    for k, p in enumerate(pictures)
                ],
                "annotations": [
                    {"id": i, "image_id": k, "category_id": int(box[4]) + 1, "bbox": box[:4]}
                    for i, (k, box) in enumerate(rows)
                ],
                "categories": [{"id": i, "name": name} for i, name in enumerate(CLASSES, start=1)],
            }
            (self.root / f"{split}.json").write_text(json.dumps(tree))
        return self.root


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "data")


def doctor(root: Path, *words: str, out: Path | None = None) -> Result:
    options = () if out is None else ("--out", str(out))
    return CliRunner().invoke(app, ["doctor", *words, f"data={root}", *options])


def findings(root: Path, *words: str) -> dict[str, dict[str, Any]]:
    result = doctor(root, *words, out=root / "out")
    assert result.exit_code == 0, result.output
    report = json.loads((root / "out/doctor.json").read_text())
    return {finding["kind"]: finding for finding in report["findings"] if finding["kind"] != "level without boxes"}


def cases(finding: dict[str, Any]) -> list[list[tuple[str, list[int]]]]:
    """Return, for every case, a list of (file stem, annotation ids), one per image."""
    return [
        [(Path(p["file"]).stem, [box["annotation"] for box in p["boxes"]]) for p in case] for case in finding["cases"]
    ]


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


def test_html_report_is_self_contained_with_images_and_histograms(folder: Folder) -> None:
    folder.boxes["train"][4][3][4] = 1
    folder.pictures["val"][2] = folder.pictures["train"][5]
    root = folder.write()
    doctor(root, out=root / "out")
    assert sorted(path.name for path in (root / "out").iterdir()) == ["doctor.html", "doctor.json"]
    page = (root / "out/doctor.html").read_text()
    assert page.count("data:image/jpeg") == 2
    assert page.count("<svg") == 5
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)
    for words in ("Image in two splits", "Unusual size for its class", "best possible recall", "stride 64", "plate"):
        assert words in page


def test_markup_in_class_names_is_escaped(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    names: Sequence[str] = ("<b>red</b>", "[bold]white", "plate")
    monkeypatch.setattr(f"{__name__}.CLASSES", names)
    folder.boxes["train"][4][3][4] = 1
    root = folder.write()
    result = doctor(root, out=root / "out")
    assert "[bold]white" in result.output
    assert "<b>" not in (root / "out/doctor.html").read_text()


def test_long_findings_are_truncated_on_the_terminal_only(folder: Folder) -> None:
    for image in folder.boxes["train"]:
        image.append(image[0])
    root = folder.write()
    result = doctor(root, out=root / "out")
    assert "... and 21 more" in result.output
    assert len(result.output.splitlines()) < 80
    (finding,) = [
        f for f in json.loads((root / "out/doctor.json").read_text())["findings"] if f["kind"] == "duplicate box"
    ]
    assert len(finding["cases"]) == TRAIN


def test_tables_are_aligned_if_output_is_not_utf8(folder: Folder) -> None:
    result = CliRunner(charset="latin-1").invoke(app, ["doctor", f"data={folder.write()}"])
    rows = [line for line in result.output.splitlines() if re.search(r"stride \d+ ", line)]
    assert re.findall(r"[^\s|]+", rows[-1]) == ["stride", "128", "0", "-", "0", "-", "-"]
    assert len({len(row) for row in rows}) == 1


def test_long_error_list_is_truncated_on_the_terminal(folder: Folder) -> None:
    root = folder.write()
    for k in range(12):
        (root / f"images/train{k}.png").write_bytes(b"")
    result = doctor(root)
    assert result.exit_code == 1
    assert "train, errors: unreadable image (12)\n" in result.output
    assert "... and 2 more\n" in result.output


def test_large_duplicate_group_names_only_its_first_images(folder: Folder) -> None:
    folder.pictures["train"] = folder.pictures["train"][:1] * TRAIN
    result = doctor(folder.write())
    assert "train train0.png  =  train train1.png  =  train train2.png  =  21 more\n" in result.output


def test_duplicates_across_splits_name_one_image_per_split_first(folder: Folder) -> None:
    """Like frames of a video: the images are also duplicates within their split."""
    folder.pictures["train"][2:6] = [scene(2)] * 4
    folder.pictures["val"][1] = scene(2)
    root = folder.write()
    result = doctor(root, out=root / "out")
    assert "train train2.png  =  val val1.png  =  train train3.png  =  2 more\n" in result.output
    assert "3 images with the same pixels as another image of the same split" in result.output
    assert "nearly identical to another" not in result.output
    page = (root / "out/doctor.html").read_text()
    assert all(f"train{k}.png" in page for k in range(2, 6))


def test_html_tables_show_the_100_worst_classes(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"class {i:03d}" for i in range(120)]
    monkeypatch.setattr(f"{__name__}.CLASSES", tuple(names))
    folder.pictures["val"] = [scene(100 + k) for k in range(TRAIN)]
    for split in ("train", "val"):
        folder.boxes[split] = [[[25 * i, 10, 20, 20, 5 * k + i] for i in range(5)] for k in range(TRAIN)]
    folder.boxes["train"][22:] = [], []
    folder.boxes["train"][21][4][:4] = 0, 0, 0.5, 0.5
    root = folder.write()
    doctor(root, out=root / "out")
    found = {f["kind"]: f for f in json.loads((root / "out/doctor.json").read_text())["findings"]}
    assert found["class without boxes in train"]["classes"] == names[110:]
    assert found["class with low recall"]["classes"] == ["class 109"]
    page = (root / "out/doctor.html").read_text()
    firsts = [re.findall(r"<bdi>(class \d+)</bdi></th>", table) for table in page.split("</table>")]
    recalls, counts = (rows for rows in firsts if rows)
    assert (len(recalls), recalls[:2]) == (100, ["class 109", "class 000"])
    assert (len(counts), counts[:11]) == (100, [*names[110:], "class 000"])
    assert "Classes with the fewest boxes in any split; doctor.json lists 20 more." in page


def test_control_characters_in_class_names_are_escaped(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.CLASSES", ("a\x1b[31mb", "c\nd", "e\u202ef"))
    folder.boxes["train"][4][3][4] = 1
    root = folder.write()
    output = doctor(root, out=root / "out").output + (root / "out/doctor.html").read_text()
    assert not {"\x1b", "\u202e"} & set(output)
    assert all(output.count(name) >= 2 for name in (r"a\x1b[31mb", r"c\nd", r"e\u202ef"))


def test_folder_given_as_recipe_suggests_the_data_option(folder: Folder) -> None:
    root = folder.write()
    result = CliRunner().invoke(app, ["doctor", str(root)])
    assert str(result.exception) == f"{root}: is a folder, not a recipe; did you mean data={root}?"


def test_out_that_is_a_file_is_rejected_before_reading_data(folder: Folder) -> None:
    folder.root.write_text("")
    result = doctor(folder.root / "none", out=folder.root)
    assert result.exit_code == 2
    assert f"{folder.root} is a file; expected a folder" in result.output
    assert f"{folder.root} is a file; expected a folder" in doctor(folder.root / "none", out=folder.root / "a/b").output


def test_out_that_is_a_dangling_symlink_fails_before_reading_data(folder: Folder) -> None:
    folder.root.symlink_to("nowhere")
    assert isinstance(doctor(folder.root / "none", out=folder.root).exception, FileExistsError)


def test_unknown_recipe_suggests_the_closest_name(folder: Folder) -> None:
    result = doctor(folder.write(), "fcos_mnv2_smal")
    assert "did you mean 'fcos_mnv2_small'" in str(result.exception)


# --------------------------------------------------------------------------------------------------- weak or odd splits


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
    assert "train, errors: wrong box format" in result.output
    assert "as x1, y1, x2, y2, 96 of 96 boxes are inside" in result.output
    assert "96 boxes in train extend beyond their images" in result.output


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
