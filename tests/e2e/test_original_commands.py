"""The original's commands, word for word, in two processes, on pictures under its catalogue's names."""

from __future__ import annotations

import json
import os
import runpy
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fcos.training.checkpoint import load_checkpoint

ROOT = Path(__file__).parents[2]
CONFIG = "configs/fcos/fcos_imprv_R_50_FPN_1x.yaml"
RUN = "training_dir/fcos_imprv_R_50_FPN_1x"
TINY = """
    MODEL.DEVICE cpu MODEL.WEIGHT '' MODEL.BACKBONE.CONV_BODY MNV2-FPN-RETINANET MODEL.BACKBONE.FREEZE_CONV_BODY_AT 0
    MODEL.RESNETS.BACKBONE_OUT_CHANNELS 32 MODEL.FCOS.NUM_CONVS 1 MODEL.FCOS.PRIOR_PROB 0.2
    INPUT.MIN_SIZE_TRAIN (96,) INPUT.MIN_SIZE_TEST 96 SOLVER.MAX_ITER 2 SOLVER.IMS_PER_BATCH 4
"""
LAUNCH = "torch.distributed.launch --nproc_per_node=2 --master_port={port}"
TORCHRUN = "torch.distributed.run --nproc_per_node=2 --master_port={port}"


def command(line: str) -> str:
    """Run `python -m LINE`; returns its output."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", *shlex.split(line.format(port=port))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def folder(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory like the original's: its commands and configs, `datasets/coco`."""
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


def test_training_and_testing_with_one_launcher_each(folder: Path) -> None:
    train = f"tools/train_net.py --config-file {CONFIG} --skip-test DATALOADER.NUM_WORKERS 2 OUTPUT_DIR {RUN}"
    assert "AP" not in command(f"{LAUNCH} {train} {TINY}")
    checkpoint = load_checkpoint(folder / RUN / "weights/best.pt")
    assert (checkpoint.iteration, checkpoint.class_names) == (2, ("red", "blue"))
    assert checkpoint.config["data"]["train"]["annotations"] == [
        "datasets/coco/annotations/instances_train2014.json",
        "datasets/coco/annotations/instances_valminusminival2014.json",
    ]
    assert checkpoint.config["data"]["val"]["annotations"] == []
    test = f"tools/test_net.py --config-file {CONFIG} MODEL.WEIGHT {RUN}/weights/best.pt TEST.IMS_PER_BATCH 4"
    assert "AP50" in command(f"{TORCHRUN} {test} INPUT.MIN_SIZE_TEST 96")
    detections = json.loads((folder / RUN / "val/detections.json").read_text())
    assert {d["image_id"] for d in detections} <= set(range(12))
    assert len(detections) > 0


def test_weights_must_be_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["test_net.py", "--config-file", str(ROOT / CONFIG), "TEST.IMS_PER_BATCH", "4"])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(ROOT / "tools/test_net.py"), run_name="__main__")
    assert "MODEL.WEIGHT FILE is missing" in capsys.readouterr().err
