"""The command `fcos`: arguments, messages, exit codes."""

import json
import logging
import subprocess
import sys

import pytest
import torch
import yaml
from detectors import CATEGORY_IDS, NAMES, tiny_config, tiny_model
from PIL import Image
from typer.main import get_command

from fcos import cli
from fcos.checkpoint import save_checkpoint
from fcos.recipes import load_config


@pytest.fixture
def fcos(monkeypatch, capsys):
    """Return a function that runs the command and returns (exit code, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["fcos", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        code = stop.value.code
        return (code or 0, *capsys.readouterr())

    return run


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "run" / "weights" / "best.pt"
    path.parent.mkdir(parents=True)
    return save(path, tiny_config())


def save(path, config):
    save_checkpoint(path, model=tiny_model(config), config=config, class_names=NAMES, category_ids=CATEGORY_IDS)
    return path


@pytest.fixture
def data(tmp_path):
    """Return a COCO folder with the same annotated image in train and val."""
    folder = tmp_path / "data"
    folder.mkdir()
    Image.radial_gradient("L").convert("RGB").resize((120, 80)).save(folder / "a.png")
    content = {
        "images": [{"id": 5, "file_name": "a.png", "width": 120, "height": 80}],
        "annotations": [{"id": 1, "image_id": 5, "category_id": 18, "bbox": [30, 10, 60, 60]}],
        "categories": [{"id": i, "name": name} for i, name in zip(CATEGORY_IDS, NAMES, strict=True)],
    }
    for split in ("train", "val"):
        (folder / f"{split}.json").write_text(json.dumps(content))
    return folder


def test_version_option_prints_the_version(fcos):
    code, out, _ = fcos("--version")
    assert code == 0
    assert out.startswith("fcos 0.")


COMMANDS = vars(get_command(cli.app))["commands"]


@pytest.mark.parametrize("verb", COMMANDS)
def test_every_command_has_help(fcos, verb):
    code, out, _ = fcos(verb, "--help")
    assert code == 0
    assert f"fcos {verb}" in out


@pytest.mark.parametrize("verb", sorted(set(COMMANDS) - {"config", "samples"}))  # these two have commands of their own
def test_help_shows_each_example_on_one_line(fcos, monkeypatch, verb):
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = fcos(verb, "-h")
    examples = out.partition("For example:\n")[2].partition("\n\n")[0].splitlines()
    written = COMMANDS[verb].callback.__doc__.partition("For example:\n")[2].splitlines()
    assert [line.strip() for line in examples] == [line.strip() for line in written if line.strip()]
    assert all(line.startswith(f"    fcos {verb} ") for line in examples)
    assert examples


@pytest.mark.parametrize("words", [["val", "none.pt"], ["predict", "none.pt", "a.png"], ["doctor", "data=x"]])
def test_out_that_is_a_file_is_rejected_first(fcos, tmp_path, words):
    (tmp_path / "notes").write_text("mine")
    code, _, err = fcos(*words, "--out", tmp_path / "notes")
    assert code == 2
    assert f"{tmp_path / 'notes'} is a file; expected a folder" in err


def test_python_m_fcos_reports_errors_without_traceback():
    result = subprocess.run(
        [sys.executable, "-m", "fcos", "train", "fcos_mnv2_smal", "data=x"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert result.stdout == ""
    assert "did you mean 'fcos_mnv2_small'?" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("first", [True, False])
def test_only_one_of_several_processes_reports_an_error(fcos, monkeypatch, first):
    asked = []

    def is_first_report(message):
        asked.append(message)
        return first

    monkeypatch.setenv("RANK", "3")
    monkeypatch.setattr("fcos.training.elastic.is_first_report", is_first_report)
    code, _, err = fcos("train", "fcos_mnv2_smal")
    assert code == 2
    assert err == (f"fcos: {asked[0]}\n" if first else "")


@pytest.mark.parametrize("rank", [0, 1])
def test_only_the_first_process_shows_warnings_that_concern_all(fcos, monkeypatch, rank):
    monkeypatch.setenv("RANK", str(rank))
    fcos("--version")
    shared = ["fcos.config.overrides", "fcos.evaluation.evaluate", "fcos.downloads", "fcos.precision"]
    own = ["fcos.data.loader", "fcos.data.workers"]
    try:
        shown = [name for name in shared + own if logging.getLogger(name).isEnabledFor(logging.WARNING)]
    finally:
        for name in ("fcos", *own):
            logging.getLogger(name).setLevel(logging.NOTSET)
    assert shown == (own if rank else shared + own)


def test_unknown_command_is_rejected(fcos):
    code, _, err = fcos("prdict")
    assert code == 2
    assert "prdict" in err


class TestVal:
    def test_prints_metrics_and_writes_files_into_the_run_folder(self, fcos, weights, data):
        code, out, _ = fcos("val", weights, f"data={data}", "device=cpu")
        assert code == 0
        assert "AP50" in out.split()
        assert "owl" in out.split()
        folder = weights.parents[1] / "val"
        assert set(json.loads((folder / "metrics.json").read_text())) == {
            "metrics",
            "per_class",
            "boxes_per_class",
            "thresholds",
            "annotations_digest",
            "changed_options",
        }
        assert {d["image_id"] for d in json.loads((folder / "detections.json").read_text())} == {5}

    def test_split_and_out_options_are_used(self, fcos, weights, data, tmp_path):
        code, _, _ = fcos("val", weights, f"data={data}", "device=cpu", "--split", "train", "--out", tmp_path / "here")
        assert code == 0
        assert (tmp_path / "here" / "metrics.json").is_file()

    def test_missing_split_is_rejected(self, fcos, weights, data):
        code, _, err = fcos("val", weights, f"data={data}", "--split", "test")
        assert code == 2
        assert "no split 'test'" in err

    def test_missing_weights_file_is_reported(self, fcos, tmp_path):
        code, out, err = fcos("val", tmp_path / "none.pt")
        assert (code, out) == (2, "")
        assert "none.pt: no such file" in err


class TestPredict:
    def test_prints_image_paths_and_writes_detections_as_json(self, fcos, weights, data, tmp_path):
        out = tmp_path / "out"
        code, text, _ = fcos("predict", weights, data, "--out", out, "--threshold", "0.1", "--json", "device=cpu")
        assert code == 0
        assert str(out / "a.png") in text
        (row,) = json.loads((out / "predictions.json").read_text())
        assert len(row["detections"]) > 0

    def test_missing_image_gives_exit_code_1_but_others_are_processed(self, fcos, weights, data, tmp_path):
        out = tmp_path / "out"
        code, text, err = fcos("predict", weights, data / "none.png", data / "a.png", "--out", out)
        assert code == 1
        assert "none.png: no such file" in err
        assert "a.png" in text
        assert (out / "a.png").is_file()

    def test_control_characters_in_class_names_are_escaped(self, fcos, weights, data, tmp_path):
        names = ["a\n\x1b[31mb\u202e", *NAMES[1:]]
        config = tiny_config()
        save_checkpoint(weights, model=tiny_model(config), config=config, class_names=names, category_ids=CATEGORY_IDS)
        code, out, _ = fcos("predict", weights, data, "--out", tmp_path, "--threshold", "0", "device=cpu")
        assert code == 0
        assert r"a\n\x1b[31mb\u202e" in out
        assert len(out.splitlines()) == 1

    def test_options_may_be_mixed_with_sources(self, fcos, weights, data, tmp_path):
        fcos("predict", weights, "model.max_detections=2", data, "--out", tmp_path, "--threshold", "0", "--json")
        (row,) = json.loads((tmp_path / "predictions.json").read_text())
        assert len(row["detections"]) == 2

    def test_key_value_pairs_of_the_original_may_be_mixed_with_sources(self, fcos, weights, data, tmp_path):
        config = tmp_path / "old.yaml"
        config.write_text("MODEL: {BACKBONE: {CONV_BODY: R-50-FPN-RETINANET}}")
        pairs = ["TEST.DETECTIONS_PER_IMG", "2", "OUTPUT_DIR", "a=b"]
        more = ["data.test_short_side=96", "--out", tmp_path, "--threshold", "0", "--json"]
        code, _, err = fcos("predict", weights, *pairs, data, "--config", config, *more)
        assert (code, err) == (0, "")
        (row,) = json.loads((tmp_path / "predictions.json").read_text())
        assert len(row["detections"]) == 2

    @pytest.mark.parametrize("more", [[], ["--config", "old.yaml"]])
    def test_image_named_like_a_key_of_the_original_is_read_as_image(self, fcos, weights, data, monkeypatch, more):
        monkeypatch.chdir(data)
        (data / "old.yaml").write_text("MODEL: {BACKBONE: {CONV_BODY: R-50-FPN-RETINANET}}")
        (data / "TEST.png").write_bytes((data / "a.png").read_bytes())
        code, out, err = fcos("predict", weights, "TEST.png", "a.png", "data.test_short_side=64", *more)
        assert (code, err) == (0, "")
        assert [line.partition(":")[0] for line in out.splitlines()] == ["TEST.png", "a.png"]

    def test_missing_image_named_like_a_key_is_reported(self, fcos, weights, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        code, _, err = fcos("predict", weights, "TEST.png")
        assert (code, err) == (2, "fcos: TEST.png: no such file or folder\n")

    @pytest.mark.parametrize(
        "options", [["data.test_short_side=64"], ["--config", "old.yaml", "INPUT.MIN_SIZE_TEST", "64"]]
    )
    def test_missing_sources_are_reported_before_loading_weights(self, fcos, options):
        code, out, err = fcos("predict", "missing.pt", *options)
        assert (code, out) == (2, "")
        assert err.startswith("fcos: no images given, only options: ")


class TestConvert:
    def test_writes_the_file_and_reports_matched_tensors(self, fcos, tmp_path):
        weights = save(tmp_path / "own.pt", tiny_config(box_convention="inclusive"))
        code, out, _ = fcos("convert", weights, tmp_path / "out.pth", "--to", "fcos_core")
        assert code == 0
        assert out.startswith("matched: ")
        assert out.endswith(f"written: {tmp_path / 'out.pth'}\n")
        assert "rpn.head.cls_logits.bias" in torch.load(tmp_path / "out.pth", weights_only=True)["model"]

    def test_options_that_contradict_the_weights_are_rejected(self, fcos, weights, tmp_path):
        code, _, err = fcos("convert", weights, tmp_path / "out.pth", "model.box_convention=inclusive")
        assert code == 2
        assert "was trained with model.box_convention=continuous" in err
        assert not (tmp_path / "out.pth").exists()

    def test_existing_output_file_is_rejected(self, fcos, weights):
        code, out, err = fcos("convert", weights, weights)
        assert (code, out) == (2, "")
        assert "exists already" in err

    def test_unknown_target_project_is_rejected(self, fcos, weights, tmp_path):
        code, _, err = fcos("convert", weights, tmp_path / "out.pth", "--to", "keras")
        assert code == 2
        assert "torchvision" in err


class TestDoctor:
    def test_good_data_lists_classes_and_gives_exit_code_0(self, fcos, data):
        code, out, _ = fcos("doctor", f"data={data}")
        assert code == 0
        assert "cat" in out.split()

    def test_bad_data_lists_every_problem_and_gives_exit_code_1(self, fcos, data):
        content = json.loads((data / "val.json").read_text())
        content["annotations"][0]["bbox"][2] = -5
        content["images"].append({"id": 6, "file_name": "gone.png", "width": 10, "height": 10})
        (data / "val.json").write_text(json.dumps(content))
        code, out, _ = fcos("doctor", f"data={data}")
        assert code == 1
        assert "gone.png" in out
        assert "annotation 1" in out

    def test_missing_data_folder_gives_exit_code_2(self, fcos, tmp_path):
        code, out, err = fcos("doctor", f"data={tmp_path / 'nowhere'}")
        assert (code, out) == (2, "")
        assert "nowhere" in err


class TestConfig:
    def test_list_names_the_recipes(self, fcos):
        code, out, _ = fcos("config", "list")
        assert code == 0
        assert "fcos_mnv2_small" in out.split()

    def test_show_prints_a_config_that_loads_unchanged(self, fcos, tmp_path):
        code, out, _ = fcos("config", "show", "fcos_mnv2_small", "train.lr=1e-5", "data=some folder")
        assert code == 0
        expected = load_config("fcos_mnv2_small", ["train.lr=1e-5", "data=some folder"])
        path = tmp_path / "shown.yaml"
        path.write_text(out)
        assert load_config(path) == expected
        assert yaml.safe_load(out)["data"]["root"] == "some folder"

    def test_show_prints_option_descriptions_as_comments(self, fcos):
        _, out, _ = fcos("config", "show", "fcos_mnv2_small")
        assert "  # Training: probability of a horizontal flip.\n  flip: " in out

    def test_values_may_begin_with_a_dash(self, fcos, tmp_path):
        config = tmp_path / "old.yaml"
        config.write_text("MODEL: {BACKBONE: {CONV_BODY: R-50-FPN-RETINANET}}")
        code, out, _ = fcos("config", "show", config, "TEST.DETECTIONS_PER_IMG", "-1")
        assert code == 0
        assert yaml.safe_load(out)["model"]["max_detections"] == -1

    def test_diff_prints_the_options_that_differ(self, fcos, tmp_path):
        for name, lr, backbone in (("a", 0.01, "resnet50"), ("b", 0.02, "mobilenet_v2")):
            tree = {"train": {"lr": lr}, "model": {"backbone": {"name": backbone}}}
            (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(tree))
        code, out, _ = fcos("config", "diff", tmp_path / "a.yaml", tmp_path / "b.yaml")
        assert code == 0
        lines = out.splitlines()
        assert "train.lr: 0.01 -> 0.02" in lines
        assert "model.backbone.name: resnet50 -> mobilenet_v2" in lines
        assert "model.backbone.stride_in_1x1: false -> -" in lines
        assert not any(line.startswith("data.") for line in lines)

    def test_all_config_errors_are_reported_together(self, fcos):
        code, _, err = fcos("config", "show", "fcos_mnv2_small", "train.lrr=1", "data.flip=2")
        assert code == 2
        assert "did you mean 'lr'?" in err
        assert "data.flip" in err


def test_samples_writes_a_dataset(fcos, tmp_path):
    code, out, _ = fcos(
        "samples", "digits", tmp_path / "digits", "--train-images", "2", "--val-images", "1", "--size", "64"
    )
    assert code == 0
    assert f"data={tmp_path / 'digits'}" in out
    assert len(json.loads((tmp_path / "digits" / "train.json").read_text())["images"]) == 2


def test_train_passes_on_recipe_and_options(fcos, monkeypatch, tmp_path):
    from fcos import api
    from fcos.training.loop import TrainResult

    calls = []

    def train(*arguments):
        calls.append(arguments)
        return TrainResult(tmp_path, {})

    monkeypatch.setattr(api, "train", train)
    code, out, _ = fcos("train", "fcos_mnv2_small", "data=x", "TEST.DETECTIONS_PER_IMG", "-1")
    assert code == 0
    assert calls == [("fcos_mnv2_small", "data=x", "TEST.DETECTIONS_PER_IMG", "-1")]
    assert str(tmp_path / "weights" / "best.pt") in out


@pytest.mark.parametrize("words", [["photo.jpg"], ["a/b.PNG", "--out", "found"], ["https://a.org/x"], ["./photos"]])
def test_an_image_without_a_command_names_the_command_to_type(fcos, words):
    code, out, err = fcos(*words)
    assert (code, out) == (2, "")
    assert err.startswith(f"fcos: {words[0]}: not a command; to detect objects in images, type: fcos predict WEIGHTS")
    assert " ".join(words) in err


def test_an_unknown_command_is_no_image(fcos):
    code, _, err = fcos("trian")
    assert code == 2
    assert "predict WEIGHTS" not in err
