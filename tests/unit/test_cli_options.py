"""Options of the command line that users of other tools type, run folders, and the list of recipes."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest
import torch
from detectors import CATEGORY_IDS, NAMES, tiny_config, tiny_model
from PIL import Image

import fcos
from fcos import cli
from fcos.checkpoint import save_checkpoint
from fcos.errors import WeightsError
from fcos.recipes import recipe_names


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """Return (exit code, stdout, stderr) of a command."""
    with pytest.raises(SystemExit) as stop:
        cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    code = stop.value.code or 0
    assert isinstance(code, int)
    return code, out, err


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """Return a run folder with best weights."""
    torch.manual_seed(0)
    folder = tmp_path / "run"
    (folder / "weights").mkdir(parents=True)
    config = tiny_config()
    best = folder / "weights" / "best.pt"
    save_checkpoint(best, model=tiny_model(config), config=config, class_names=NAMES, category_ids=CATEGORY_IDS)
    return folder


# -------------------------------------------------------------------------------------------------------------- flags


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("predict w.pt a.jpg --threshold 30", "--threshold: expected a number from 0 to 1, found '30'"),
        ("predict w.pt a.jpg --threshold=-1", "--threshold: expected a number from 0 to 1, found '-1'"),
        ("predict w.pt a.jpg --threshold nan", "--threshold: expected a number from 0 to 1, found 'nan'"),
        ("predict w.pt a.jpg --threshold high", "--threshold: expected a number from 0 to 1, found 'high'"),
        ("convert w.pt new.pt --to onnx", "--to: expected one of fcos, fcos_core, torchvision, found 'onnx'"),
        ("val w.pt --split tset", "--split: expected one of train, val, test, found 'tset'"),
        ("val w.pt --out=", "--out: expected a folder, found an empty value; write . for the current folder"),
        ("predict w.pt a.jpg threshold=0.3", "threshold=0.3: no such option here, did you mean --threshold 0.3?"),
        ("predict w.pt a.jpg conf=0.3", "conf=0.3: no such option here, did you mean --threshold 0.3?"),
        ("val w.pt output_dir=x", "output_dir=x: no such option here, did you mean --out x?"),
        ("val w.pt split=test", "split=test: no such option here, did you mean --split test?"),
        ("convert w.pt o.pt to=fcos_core", "to=fcos_core: no such option here, did you mean --to fcos_core?"),
        ("split data=x val=0.3", "val=0.3: no such option here, did you mean --val 0.3?"),
        ("help", "help: not a command; type: fcos --help"),
        ("help train", "help: not a command; type: fcos train --help"),
        (
            "train data=dig train.lr=1 fcos_mnv2_small",
            "data=dig: expected a recipe or YAML file before the options; type: fcos train fcos_mnv2_small data=dig"
            " train.lr=1",
        ),
        (
            "config show data=dig",
            "data=dig: expected a recipe or YAML file before the options; type: fcos config show fcos_mnv2_small"
            " data=dig",
        ),
        ("split data=x --val x", "--val: expected a number, found 'x'"),
        ("split data=x --test 0,1", "--test: expected a number, found '0,1'"),
        ("samples digits new --size 1.5", "--size: expected an integer, found '1.5'"),
        ("samples digits new --seed x", "--seed: expected an integer, found 'x'"),
        ("samples digits new --classes 11", "samples digits: classes must be 1..10, found 11"),
    ],
)
def test_wrong_values_of_options_are_explained(command: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, *command.split()) == (2, "", f"fcos: {message}\n")


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("train fcos_mnv2_small data=x --epochs 5", "--epochs: no such option, did you mean train.epochs=5?"),
        ("train fcos_mnv2_small --epochs=5", "--epochs=5: no such option, did you mean train.epochs=5?"),
        ("train fcos_mnv2_small --epochs data=x", "--epochs: no such option, did you mean train.epochs=VALUE?"),
        ("train fcos_mnv2_small --train.lr=3", "--train.lr=3: no such option, did you mean train.lr=3?"),
        ("train fcos_mnv2_small --batch-size 3", "did you mean train.batch_size=3 or eval.batch_size=3?"),
        ("train fcos_mnv2_small --data cells", "--data: no such option, did you mean data=cells?"),
        ("train fcos_mnv2_small -e 3", "-e: no such option; options have the form key=value, and `fcos train --help`"),
        ("train fcos_mnv2_small data=x lr=0.1", "lr: no such option, did you mean train.lr=0.1?"),
        ("train fcos_mnv2_small data=x train.epochs=1 train.iterations=5", "give one length of the run"),
        ("val w.pt --splt test", "--splt: no such option, did you mean --split test?"),
        ("val w.pt --imgsz 640", "did you mean data.short_side=640 or data.max_side=640?"),
        ("predict w.pt a.jpg --device cpu", "--device: no such option, did you mean device=cpu?"),
        ("predict w.pt a.jpg --treshold 0.5", "--treshold: no such option, did you mean --threshold 0.5?"),
        ("predict w.pt a.jpg --conf 0.5", "did you mean --threshold 0.5 or model.score_threshold=0.5?"),
        ("predict w.pt a.jpg --jsn yes", "--jsn: no such option, did you mean --json?"),
        ("predict w.pt a.jpg -- --json", "--json: no such option after --; write it before --"),
        ("predict w.pt a.jpg --scores 0.2", "did you mean --threshold 0.2 or model.score_threshold=0.2?"),
        (
            "predict eval.flip=true w.pt a.jpg",
            "eval.flip=true: expected weights before the options; type: fcos predict WEIGHTS ... eval.flip=true",
        ),
        ("val data=x w.pt", "data=x: expected weights before the options; type: fcos val WEIGHTS ... data=x"),
        ("predict --wieghts x y", "--wieghts: no such option; type: fcos predict WEIGHTS SOURCE..."),
        ("predict w.pt --weights", "--weights: no such option; type: fcos predict WEIGHTS SOURCE..."),
        ("predict --out o --treshold w.pt a.jpg", "--treshold: no such option, did you mean --threshold?"),
        ("train --epochs 5 fcos_mnv2_small", "--epochs: no such option, did you mean train.epochs=VALUE?"),
        ("val --splt test w.pt", "--splt: no such option, did you mean --split?"),
        ("report --foo r", "--foo: no such option; options have the form key=value"),
        ("convert a.pt --too fcos b.pt", "--too: no such option, did you mean --to?"),
        ("config show --foo x", "--foo: no such option; options have the form key=value"),
        ("convert a b --foo", "--foo: no such option; options have the form key=value, and `fcos convert --help`"),
        ("doctor --batch 3", "--batch: no such option, did you mean train.batch_size=3?"),
        ("report r --data x", "--data: no such option, did you mean data=x?"),
        ("config show fcos_mnv2_small --lr 3", "--lr: no such option, did you mean train.lr=3?"),
    ],
)
def test_unknown_flag_error_says_what_to_type(command: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, *command.split())
    assert code == 2
    assert told in err
    assert err.count("\n") == 1
    assert not out


def test_negative_value_of_an_original_key_is_no_flag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "old.yaml"
    path.write_text("MODEL: {BACKBONE: {CONV_BODY: R-50-FPN-RETINANET}}\n")
    code, out, err = run(capsys, "config", "show", path, "TEST.DETECTIONS_PER_IMG", "-1")
    assert (code, err) == (0, "")
    assert "max_detections: -1" in out


# --------------------------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("words", [[], ["config"], ["samples"]])
def test_help_lists_commands_with_complete_lines(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "65")
    code, out, _ = run(capsys, *words, "--help")
    assert code == 0
    assert "..." not in out.replace("[ARGS]...", "")
    assert re.search(r"Commands:\n  \w+ +[A-Z].*\.\n", out)


def test_config_list_describes_each_recipe_on_one_line_and_marks_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "config", "list")
    assert code == 0
    lines = out.splitlines()
    assert sorted(line.split()[0] for line in lines) == recipe_names()
    assert all(len(line) < 165 and len(line.split()) > 4 and "#" not in line for line in lines)
    assert lines[0].startswith("fcos_mnv2_small ")
    assert [line.split()[0] for line in lines if "START HERE" in line] == ["fcos_mnv2_small"]


# -------------------------------------------------------------------------------------------------------- run folders


def test_run_folder_stands_for_its_best_weights(run_folder: Path) -> None:
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    loaded, expected = (fcos.load(path, device="cpu") for path in (run_folder, run_folder / "weights" / "best.pt"))
    assert torch.equal(loaded.predict(image).scores, expected.predict(image).scores)


def test_run_folder_without_best_weights_stands_for_the_latest(
    run_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (run_folder / "weights" / "best.pt").rename(run_folder / "weights" / "last.pt")
    caplog.set_level("INFO", "fcos")
    assert fcos.load(run_folder, device="cpu").class_names
    assert f"{run_folder}: no weights/best.pt yet; using weights/last.pt" in caplog.text


def test_folder_without_weights_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"this is a folder without weights/best.pt; expected"):
        fcos.load(tmp_path)


def test_commands_accept_a_run_folder(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    code, _, err = run(capsys, "predict", run_folder, tmp_path / "a.png", "--out", tmp_path / "out", "device=cpu")
    assert (code, err) == (0, "")
    assert (tmp_path / "out" / "a.png").is_file()
    code, _, err = run(capsys, "convert", run_folder, tmp_path / "new.pt")
    assert code == 0
    (tmp_path / "val.json").write_text(
        '{"images": [{"id": 1, "file_name": "a.png", "width": 64, "height": 64}],'
        ' "annotations": [{"id": 1, "image_id": 1, "category_id": 18, "bbox": [8, 8, 30, 30]}], "categories": ['
        + ", ".join(f'{{"id": {i}, "name": "{name}"}}' for i, name in zip(CATEGORY_IDS, NAMES, strict=True))
        + "]}"
    )
    code, _, err = run(capsys, "val", run_folder, f"data={tmp_path}", "device=cpu", "data.workers=0")
    assert (code, err) == (0, "")
    assert (run_folder / "val" / "metrics.json").is_file()


# ------------------------------------------------------------------------------------------------------------ process


def test_library_warnings_are_hidden_in_the_process_of_the_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["fcos", "--version"])
    monkeypatch.setattr("sys.warnoptions", [])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(SystemExit):
            cli.main()
        warnings.warn("of a library", stacklevel=1)
    assert not caught
    capsys.readouterr()


def test_option_longer_than_a_file_name_is_accepted(capsys: pytest.CaptureFixture[str]) -> None:
    classes = [f"class_{i}" for i in range(60)]
    code, out, _ = run(capsys, "config", "show", "fcos_mnv2_small", f"data.classes=[{','.join(classes)}]")
    assert code == 0
    assert "class_59" in out
