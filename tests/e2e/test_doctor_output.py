"""Terminal output, page and arguments of `fcos doctor`."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import pytest
from doctor_data import TRAIN, Folder, doctor, scene
from typer.testing import CliRunner

from fcos.cli import app


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


def test_markup_in_class_names_is_escaped(folder: Folder) -> None:
    names: Sequence[str] = ("<b>red</b>", "[bold]white", "plate")
    folder.class_names = names
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


def test_html_tables_show_the_100_worst_classes(folder: Folder) -> None:
    names = [f"class {i:03d}" for i in range(120)]
    folder.class_names = names
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


def test_control_characters_in_class_names_are_escaped(folder: Folder) -> None:
    folder.class_names = ("a\x1b[31mb", "c\nd", "e\u202ef")
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
    for out in (folder.root, folder.root / "a/b"):
        error = doctor(folder.root / "none", out=out).exception
        assert str(error) == f"--out: {folder.root} is a file; expected a folder"


def test_out_that_is_a_dangling_symlink_fails_before_reading_data(folder: Folder) -> None:
    folder.root.symlink_to("nowhere")
    error = doctor(folder.root / "none", out=folder.root).exception
    assert str(error) == f"{folder.root}: cannot be written: File exists"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("data.val_fraction=0.5", "data.val_fraction: the data has a val split already; remove this option to use it"),
        ("data.val.annotations=none.json", "data.val: none.json does not exist"),
        ("data.test.images=none", "data.test: none does not exist"),
    ],
)
def test_wrong_option_is_an_error_and_not_a_problem_of_the_data(folder: Folder, option: str, message: str) -> None:
    result = CliRunner().invoke(app, ["doctor", f"data={folder.write()}", option])
    assert str(result.exception).startswith(message)


def test_unknown_recipe_suggests_the_closest_name(folder: Folder) -> None:
    result = doctor(folder.write(), "fcos_mnv2_smal")
    assert "did you mean 'fcos_mnv2_small'" in str(result.exception)


# --------------------------------------------------------------------------------------------------- weak or odd splits
