"""`fcos split`: lists of the images of each part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_data import config, write_json
from tool_exports import SINGLE

from fcos.cli import main
from fcos.data import load_annotations
from fcos.data.source import Split

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run the command line in a temporary folder; return the exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run_command(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        streams = capsys.readouterr()
        return int(ended.value.code or 0), streams.out, streams.err

    return run_command


def _write_pets(root: Path, pictures: Sequence[Image.Image], *, is_sequence: bool = False) -> Path:
    """Write a COCO file with a box per picture; unless they are a sequence, the names are letters."""
    names = [f"frame_{i}.png" if is_sequence else f"{chr(ord('a') + i)}.png" for i in range(len(pictures))]
    (root / "images").mkdir(parents=True)
    for name, picture in zip(names, pictures, strict=True):
        picture.save(root / "images" / name)
    boxes = [{"id": i, "image_id": i, "category_id": i % 2, "bbox": [1, 1, 8, 8]} for i in range(len(names))]
    images = [{"id": i, "file_name": name} for i, name in enumerate(names)]
    categories = [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]
    write_json(root / "result.json", {"images": images, "annotations": boxes, "categories": categories})
    return root


def _pictures(count: int) -> list[Image.Image]:
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return [Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC) for pixels in coarse]


def _names(split: Split, *options: Path, root: Path) -> set[str]:
    lists = {file.stem: {"image_list": file} for file in options}
    annotations = load_annotations(config(root, **lists), split)
    assert annotations is not None
    return {annotations.file_name(i) for i in range(len(annotations))}


def test_split_writes_lists_that_train_accepts(run: Run, tmp_path: Path) -> None:
    root = _write_pets(tmp_path / "pets", _pictures(20))
    code, out, _ = run("split", f"data={root}", "--val", "0.2", "--test", "0.1", "--out", "lists")
    assert code == 0
    files = [tmp_path / f"lists/{split}.txt" for split in ("train", "val", "test")]
    parts = [_names(split, *files, root=root) for split in ("train", "val", "test")]
    assert [len(part) for part in parts] == [14, 4, 2]
    assert len(set().union(*parts)) == 20
    assert "val: 4 images; boxes: 2 cat, 2 dog" in out
    assert f"next: fcos train fcos_mnv2_small data={root} data.train.image_list=lists/train.txt" in out


def test_end_of_a_sequence_is_held_out_with_a_note(run: Run, tmp_path: Path) -> None:
    root = _write_pets(tmp_path / "pets", _pictures(20), is_sequence=True)
    _, out, _ = run("split", f"data={root}")
    assert Path("splits/val.txt").read_text().split() == [f"frame_{i}.png" for i in range(16, 20)]
    assert "note: train contains other images of 1 sequence (frame_0.png to frame_19.png)" in out


def test_lists_are_the_same_in_every_run(run: Run, tmp_path: Path) -> None:
    root = _write_pets(tmp_path / "pets", _pictures(20))
    for folder in ("first", "second"):
        run("split", f"data={root}", "--out", folder)
    assert Path("first/val.txt").read_text() == Path("second/val.txt").read_text()
    assert not Path("first/test.txt").exists()


def test_duplicates_and_near_duplicates_stay_in_one_part(run: Run, tmp_path: Path) -> None:
    pictures = _pictures(10)
    brighter = [Image.fromarray(np.asarray(picture).clip(0, 249) + np.uint8(6)) for picture in pictures[:5]]
    root = _write_pets(tmp_path / "pets", [*pictures, *brighter, *pictures[5:]])
    assert run("split", f"data={root}", "--val", "0.3")[0] == 0
    held_out = {"abcdefghijklmnopqrst".index(name[0]) for name in Path("splits/val.txt").read_text().split()}
    assert 4 <= len(held_out) <= 8
    assert all((i in held_out) == (i + 10 in held_out) for i in range(10))


_FORMS = [
    "LabelImg YOLO",
    "Label Studio YOLO",
    "CVAT YOLO 1.1",
    "VOC without lists",
    "CVAT VOC",
    "LabelMe in another folder",
    "CVAT for images",
    "CSV with XYWH",
    "Hugging Face",
]


@pytest.mark.parametrize("form", _FORMS)
def test_lists_select_images_of_every_format(form: str, run: Run, tmp_path: Path) -> None:
    SINGLE[form][1](tmp_path / "pets")
    assert run("split", "data=pets", "--val", "0.4")[0] == 0
    parts = [_names(split, Path("splits/train.txt"), Path("splits/val.txt"), root=Path("pets")) for split in _TRAIN_VAL]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 3


_TRAIN_VAL: tuple[Split, ...] = ("train", "val")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--val", "0"], "expected fractions with 0 < val and val + test < 1, found val 0 and test 0"),
        (["--val", "0.6", "--test", "0.5"], "found val 0.6 and test 0.5"),
        (["data.val_fraction=0.2"], "data: expected data without a val split, found data.val_fraction is set"),
    ],
)
def test_wrong_fractions_are_rejected(options: list[str], message: str, run: Run, tmp_path: Path) -> None:
    root = _write_pets(tmp_path / "pets", _pictures(4))
    code, _, err = run("split", f"data={root}", *options)
    assert code == 2
    assert message in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pets"], "pets: expected KEY=VALUE; did you mean data=pets?"),
        (["my pets"], "my pets: expected KEY=VALUE; did you mean data='my pets'?"),
        (["--data", "pets"], "--data: no such option, did you mean data=pets?"),
        (["--vall", "0.2", "data=pets"], "--vall: no such option, did you mean --val 0.2?"),
        (["data=pets", "--val", "1.5"], "expected fractions with 0 < val and val + test < 1"),
        (["data=pets", "--test", "-1"], "expected fractions with 0 < val and val + test < 1"),
    ],
)
def test_wrong_words_are_rejected_with_the_option_to_type(words: list[str], message: str, run: Run) -> None:
    code, _, err = run("split", *words)
    assert code == 2
    assert message in err


def test_control_characters_in_paths_are_escaped(run: Run, tmp_path: Path) -> None:
    root = _write_pets(tmp_path / "pets", _pictures(10))
    code, out, _ = run("split", f"data={root}", "--out", "l\x1b[31m")
    assert code == 0
    assert "l\\x1b[31m" in out
    assert "\x1b" not in out


def test_existing_lists_are_kept(run: Run, tmp_path: Path) -> None:
    root = _write_pets(tmp_path / "pets", _pictures(4))
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits/val.txt").write_text("a.png\n")
    code, _, err = run("split", f"data={root}")
    assert code == 2
    assert "val.txt: exists already; remove it, or choose another folder with --out" in err
    assert Path("splits/val.txt").read_text() == "a.png\n"


def test_data_with_a_val_split_is_not_divided(run: Run, tmp_path: Path) -> None:
    root = _write_pets(tmp_path / "pets", _pictures(4))
    (root / "val.json").write_text((root / "result.json").read_text())
    (root / "result.json").rename(root / "train.json")
    code, _, err = run("split", f"data={root}")
    assert code == 2
    assert "expected data without a val split, found a split val" in err
