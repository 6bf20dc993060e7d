"""Files that `fcos convert-data` writes: none is overwritten or hidden unless asked. Mistakes get one message."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_data import coco_tree, config, digests, write_coco, write_two_splits, write_voc, write_yolo

from fcos import cli
from fcos.data.conversion import convert
from fcos.errors import DataError


def read_tree(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text())


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
    source = tmp_path / "source"
    convert(config(write_coco(tmp_path / "original")), source, copy_images=True)
    before = digests(source)
    pixels = (source / "images/train/a.png").read_bytes()
    convert(config(source), source, copy_images=True, overwrite=True)
    assert (source / "images/train/a.png").read_bytes() == pixels
    assert digests(source) == before


@pytest.mark.parametrize("write", [write_yolo, write_voc], ids=lambda write: write.__name__)
def test_data_in_another_layout_is_not_hidden(write: Callable[..., Path], tmp_path: Path) -> None:
    source, other = write(tmp_path / "source"), write_coco(tmp_path / "other")
    before = digests(source)
    for root in (source, other):
        with pytest.raises(DataError, match=r"source: holds a data set already .* such as .*source/coco"):
            convert(config(root), source, overwrite=True)
    assert digests(source) == before
    convert(config(source), source / "coco")
    assert digests(source / "coco") == before
    assert digests(source) == before


def test_output_with_another_coco_file_of_a_split_is_an_error(tmp_path: Path) -> None:
    source = write_coco(tmp_path / "source")
    (source / "annotations").mkdir()
    (source / "train.json").rename(source / "annotations/instances_train2017.json")
    with pytest.raises(DataError, match=r"source: holds a data set already \(coco: .*instances_train2017.json\)"):
        convert(config(source), source, overwrite=True)


def test_files_of_an_earlier_conversion_are_not_mixed_in(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    earlier, source = write_two_splits(tmp_path / "earlier", write_coco), write_coco(tmp_path / "source")
    out = tmp_path / "out"
    convert(config(earlier), out)
    (out / "train.json").unlink()
    with pytest.raises(DataError, match=r"out/val.json: exists already"):
        convert(config(source), out)
    broken = coco_tree()
    broken["annotations"][0]["bbox"] = [5, 5, 0, 4]
    with pytest.raises(DataError, match="has no area"):
        convert(config(write_coco(tmp_path / "broken", broken)), out, overwrite=True)
    assert (out / "val.json").exists()  # nothing is removed before the new files are complete
    with caplog.at_level(logging.INFO, logger="fcos"):
        convert(config(source), out, overwrite=True)
    assert digests(out) == digests(source)
    assert "out/val.json: removed, as the data has no such split" in caplog.text


def test_files_of_the_source_are_not_removed(tmp_path: Path) -> None:
    source = write_coco(tmp_path / "source")
    (source / "train.json").rename(source / "val.json")
    paths = {"annotations": str(source / "val.json"), "images": str(source / "images")}
    with pytest.raises(DataError, match=r"val.json: is read by this conversion under another name"):
        convert(config(None, train=paths), source, overwrite=True)
    assert (source / "val.json").exists()


def test_error_leaves_no_empty_folders(tmp_path: Path) -> None:
    tree = coco_tree()
    tree["annotations"][0]["bbox"] = [5, 5, 0, 4]
    source = write_coco(tmp_path / "source", tree)
    (tmp_path / "existing").mkdir()
    for out in (tmp_path / "new/a/b", tmp_path / "existing/a"):
        with pytest.raises(DataError, match="has no area"):
            convert(config(source), out)
    assert not (tmp_path / "new").exists()
    assert list((tmp_path / "existing").iterdir()) == []


# -------------------------------------------------------------------------------------------------------------- command


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
        (["data", "out", "data.format=coc"], "fcos_mnv2_small: data.format: should be"),
        (["data", "out", "more"], "more: expected KEY=VALUE; did you mean data=more?"),
        (["data", "out", "--copy"], "--copy: no such option"),
        (["data", "--copy-image"], "--copy-image: no such option, did you mean --copy-images?"),
        (["--copy-image", "data", "out"], "--copy-image: no such option, did you mean --copy-images?"),
        (["data", "out", "--overwrit"], "--overwrit: no such option, did you mean --overwrite?"),
        (["data", "--out", "out"], "--out: no such option; type: fcos convert-data SOURCE OUT [KEY=VALUE]"),
        (
            ["data", "data.masks=true"],
            "data.masks=true: expected a path, found an option; type: fcos convert-data SOURCE",
        ),
        (["data", "out=out"], "out=out: expected a path, found an option"),
        (["data.format=coco", "data", "out"], "data.format=coco: expected a path, found an option"),
        (["data", ""], "OUT: expected a folder, found an empty value"),
        (["", "out"], "SOURCE: expected the folder or file of a data set, found an empty value"),
        (["data=", "out"], "SOURCE: expected the folder or file of a data set, found an empty value"),
        (["data", "file"], "OUT: file is a file; expected a folder"),
        (["data", "file/out"], "OUT: file is a file; expected a folder"),
        (["data", "out", "data=other"], "data=other: SOURCE is already given"),
        (["data", "out", "data.root=other"], "data.root=other: SOURCE is already given"),
        (
            ["data", "out", "train.lr=3", "data.flip=0"],
            "train.lr, data.flip: no effect on a conversion of data; remove",
        ),
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
    assert f"fcos: {message}" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "file"]


def test_source_may_have_the_form_of_an_option(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    code, _, _ = run(f"data={write_coco(tmp_path / 'data')}", tmp_path / "out")
    assert code == 0
    assert digests(tmp_path / "out") == digests(tmp_path / "data")
