"""The original's commands, word for word, in two processes, on images under the names of its catalogue."""

from __future__ import annotations

import json
import os
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from original_configs import SMALL_FBNET
from processes import SECONDS, free_port

from fcos import cli
from fcos.config.text import nest
from fcos.interop.checkpoints import load_checkpoint

ROOT = Path(__file__).parents[2]
CONFIG = "configs/fcos/fcos_imprv_R_50_FPN_1x.yaml"
RUN = "training_dir/fcos_imprv_R_50_FPN_1x"
TINY = """
    MODEL.DEVICE cpu MODEL.WEIGHT '' MODEL.BACKBONE.CONV_BODY MNV2-FPN-RETINANET MODEL.BACKBONE.FREEZE_CONV_BODY_AT 0
    MODEL.USE_SYNCBN True MODEL.RESNETS.BACKBONE_OUT_CHANNELS 32 MODEL.FCOS.NUM_CONVS 1 MODEL.FCOS.PRIOR_PROB 0.2
    INPUT.MIN_SIZE_TRAIN (96,) INPUT.MIN_SIZE_TEST 96 SOLVER.MAX_ITER 2 SOLVER.IMS_PER_BATCH 4
"""
LAUNCH = "torch.distributed.launch --nproc_per_node=2 --master_port={port}"
TORCHRUN = "torch.distributed.run --nproc_per_node=2 --master_port={port}"


def command(line: str) -> str:
    """Run `python -m LINE` and return its output."""
    done = run(line)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run(line: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", *shlex.split(line.format(port=free_port()))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, check=False, env=environment)


@pytest.fixture
def folder(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a working directory like the original's, with its commands and configs and `datasets/coco`."""
    for name in ("tools", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    coco = tmp_path / "datasets/coco"
    (coco / "annotations").mkdir(parents=True)
    for images, split in (("train2014", "train"), ("val2014", "valminusminival"), ("val2014", "minival")):
        (coco / "annotations" / f"instances_{split}2014.json").symlink_to(data / "train.json")
        if not (coco / images).exists():
            (coco / images).symlink_to(data / "images")
    monkeypatch.delenv("FCOS_DATASETS", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_original_commands_train_and_evaluate_in_two_processes(folder: Path) -> None:
    train = f"tools/train_net.py --config-file {CONFIG} --skip-test DATALOADER.NUM_WORKERS 2 OUTPUT_DIR {RUN}"
    assert "AP" not in command(f"{LAUNCH} {train} {TINY}")
    checkpoint = load_checkpoint(folder / RUN / "weights/best.pt")
    assert (checkpoint.iteration, checkpoint.class_names) == (2, ("red", "blue"))
    assert checkpoint.config["data"]["train"]["annotations"] == [
        "datasets/coco/annotations/instances_train2014.json",
        "datasets/coco/annotations/instances_valminusminival2014.json",
    ]
    assert checkpoint.config["model"]["backbone"]["norm"] == "sync_bn"
    assert checkpoint.config["data"]["val"]["annotations"] == []
    test = f"tools/test_net.py --config-file {CONFIG} MODEL.WEIGHT {RUN}/weights/best.pt TEST.IMS_PER_BATCH 4"
    assert "AP50" in command(f"{TORCHRUN} {test} INPUT.MIN_SIZE_TEST 96 OUTPUT_DIR tested")
    detections = json.loads((folder / "tested/val/detections.json").read_text())
    assert {d["image_id"] for d in detections} <= set(range(12))
    assert len(detections) > 0


def test_original_commands_train_and_evaluate_mask_rcnn(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The config does not set FCOS_ON, like the files of the original."""
    for path in (folder / "datasets/coco/annotations").iterdir():
        tree = json.loads(path.read_text())
        for annotation in tree["annotations"]:
            x, y, width, height = annotation["bbox"]
            annotation["segmentation"] = [[x, y, x + width, y, x + width, y + height]]
        path.unlink()
        path.write_text(json.dumps(tree))
    keys = SMALL_FBNET | {
        "MODEL.DEVICE": "cpu",
        "DATASETS.TRAIN": ["coco_2014_train"],
        "DATASETS.TEST": ["coco_2014_minival"],
        "DATALOADER.NUM_WORKERS": 0,
        "INPUT.MIN_SIZE_TRAIN": [96],
        "INPUT.MIN_SIZE_TEST": 96,
        "SOLVER.MAX_ITER": 2,
        "SOLVER.IMS_PER_BATCH": 4,
    }
    (folder / "mask_rcnn.yaml").write_text(yaml.safe_dump(nest(keys)))

    def run_tool(name: str, *pairs: str) -> None:
        monkeypatch.setattr(sys, "argv", [name, "--config-file", "mask_rcnn.yaml", *pairs])
        with pytest.raises(SystemExit, match="0"):
            runpy.run_path(str(ROOT / "tools" / name), run_name="__main__")

    run_tool("train_net.py", "OUTPUT_DIR", "run")
    note = "mask_rcnn.yaml: a config for Mask R-CNN (MODEL.BACKBONE.CONV_BODY FBNet); the original would train FCOS"
    assert sum(message.startswith(note) for message in caplog.messages) == 1
    assert load_checkpoint(folder / "run/weights/best.pt").iteration == 2
    run_tool("test_net.py", "MODEL.WEIGHT", "run/weights/best.pt", "OUTPUT_DIR", "tested")
    metrics = json.loads((folder / "tested/val/metrics.json").read_text())
    assert {"AP", "AP_mask"} <= metrics["metrics"].keys()


@pytest.mark.slow  # an error of the data is reported once in test_lost_processes.py
def test_unknown_key_is_reported_once_by_two_processes(folder: Path) -> None:
    done = run(f"{TORCHRUN} tools/test_net.py --config-file {CONFIG} SOLVER.BASE_RL 1")
    assert done.returncode == 1
    assert (
        done.stderr.count(
            "SOLVER.BASE_RL: no such key in the config of the original FCOS, did you mean 'SOLVER.BASE_LR'?"
        )
        == 1
    )


@pytest.mark.parametrize("word", ["data=cells", "data.root=cells", "data.val.annotations=val.json"])
def test_skip_test_rejects_a_val_split(
    word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train_net.py", "--config-file", CONFIG, "--skip-test", word])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(ROOT / "tools/train_net.py"), run_name="__main__")
    assert f"--skip-test skips DATASETS.TEST, but {word} adds a val split" in capsys.readouterr().err


@pytest.fixture
def evaluation_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run the evaluation command in this process, check exit code 2, and return its stderr."""

    def run(*words: str | Path) -> str:
        monkeypatch.setattr(sys, "argv", ["test_net.py", "--config-file", *map(str, words)])
        with pytest.raises(SystemExit, match="2"):
            runpy.run_path(str(ROOT / "tools/test_net.py"), run_name="__main__")
        return capsys.readouterr().err

    return run


def test_evaluation_without_weights_is_rejected(evaluation_command: Callable[..., str]) -> None:
    told = evaluation_command(ROOT / CONFIG, "TEST.IMS_PER_BATCH", "4")
    assert told == f"fcos: {ROOT / CONFIG}: no detector weights; set MODEL.WEIGHT FILE\n"


def test_evaluation_command_suggests_the_closest_key(evaluation_command: Callable[..., str]) -> None:
    assert "did you mean 'MODEL.WEIGHT'?" in evaluation_command(ROOT / CONFIG, "MODEL.WIEGHT", "MODEL.WEIGHT")


@pytest.mark.parametrize(
    ("pairs", "passed"),
    [((), ("old.pth",)), (("MODEL.WEIGHT", "new.pth", "OUTPUT_DIR", "run"), ("new.pth", "run/val"))],
)
def test_key_value_pairs_override_weights_and_output_folder(
    pairs: tuple[str, ...], passed: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "own.yaml"
    config.write_text("MODEL: {WEIGHT: old.pth, BACKBONE: {CONV_BODY: R-50-FPN-RETINANET}}\n")
    calls: list[list[str]] = []
    monkeypatch.setattr(cli, "main", calls.append)
    monkeypatch.setattr(sys, "argv", ["test_net.py", "--config-file", str(config), *pairs])
    runpy.run_path(str(ROOT / "tools/test_net.py"), run_name="__main__")
    weights, *out = passed
    folder = ["--out", *out] if out else []
    assert calls == [["val", weights, "--config", str(config), *folder, "--", *pairs]]
