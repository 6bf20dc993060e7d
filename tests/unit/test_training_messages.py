"""The training guide explains the messages of a training, in the words of the message.

Warnings that no situation here causes are not checked.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny_backbone
import torch
from full_disk import files_up_to
from hooks import at_call, before_forward
from launchers import be_second_without_first
from tiny_data import coco_tree, write_coco, write_json

import fcos
from fcos.config import Config
from fcos.data import build_train_loader, load_annotations
from fcos.data.cache import PixelCache
from fcos.models import DetectionModel
from fcos.training.elastic import explain_lost_processes, join_processes
from fcos.training.loop import train

GUIDE = (Path(__file__).parents[2] / "docs/training.md").read_text(encoding="utf-8")
TABLE = GUIDE.split("## What the messages mean")[1]
PHRASES = [
    phrase
    for line in TABLE.splitlines()
    if line.startswith("| `")
    for phrase in re.findall(r"`(.*?)`", line.split("|")[1])
]


SUMMED_UP = "; skipped"
"""Part of the warning for every image that an evaluation cannot read; the guide explains the line that counts them."""


@dataclass
class Setting:
    """Fixtures used by a situation; `configure` builds configs with a very cheap detector."""

    configure: Callable[..., Config]
    data: Path
    run: Path
    monkeypatch: pytest.MonkeyPatch

    def train(self, **options: Any) -> None:
        train(self.configure(**options))

    def change_data(self, **options: Any) -> Config:
        config = self.configure()
        return config.model_copy(update={"data": config.data.model_copy(update=options)})


@pytest.fixture
def setting(configure: Callable[..., Config], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    return Setting(partial(configure, model=tiny_backbone.MODEL), data, tmp_path / "run", monkeypatch)


def change_boxes(data: Path, box: list[float]) -> None:
    tree = coco_tree()
    for annotation in tree["annotations"]:
        annotation["bbox"] = box
    write_coco(data, tree)


def random_frozen_norm(setting: Setting) -> None:
    setting.train(model={"backbone": {"name": "mobilenet_v2", "weights": None, "norm": "frozen_bn"}})


def random_frozen_stages(setting: Setting) -> None:
    setting.train(model={"backbone": {"name": "mobilenet_v2", "weights": None, "norm": "bn", "frozen_stages": 2}})


def random_frozen_parameters(setting: Setting) -> None:
    setting.train(model={"backbone": {"name": "mobilenet_v2", "weights": None}}, freeze=["backbone.*"])


def slow_random_backbone(setting: Setting) -> None:
    setting.train(model={"backbone": {"name": "mobilenet_v2", "weights": None}}, lr_factors={"backbone.*": 0.15})


def odd_options(setting: Setting) -> None:
    tree = coco_tree()
    tree["categories"].append({"id": 9, "name": "owl"})
    write_coco(setting.data, tree)
    setting.train(lr=1e-9, warmup="linear", model={**tiny_backbone.MODEL, "size_ranges": [[-1, 2], [64, None]]})


def one_pixel_boxes(setting: Setting) -> None:
    change_boxes(setting.data, [5.0, 5.0, 1.0, 1.0])
    setting.train()


def transform_without_boxes(setting: Setting) -> None:
    config = setting.configure(iterations=1, batch_size=3)
    train(config.model_copy(update={"data": setting.change_data(transforms="own_transforms:no_objects").data}))


def metric_without_objects(setting: Setting) -> None:
    setting.train(best_metric="APl")


def licensed_weights(setting: Setting) -> None:
    setting.train()
    weights = setting.run / "weights/best.pt"
    torch.save({**torch.load(weights, weights_only=True), "licence": "CC BY-NC 4.0"}, weights)
    model = {**tiny_backbone.MODEL, "channel_order": "bgr"}
    train(setting.configure(weights=str(weights), model=model).model_copy(update={"output_dir": setting.run / "next"}))


def infinite_pixels(setting: Setting) -> None:
    setting.train(on_nonfinite="skip", model={**tiny_backbone.MODEL, "pixel_std": [1e-38, 1.0, 1.0]})


def files_blocking_outputs(setting: Setting) -> None:
    setting.run.mkdir()
    for name in ("val", "pictures"):
        (setting.run / name).touch()
    (setting.run / "report.html").mkdir()
    fcos.train(setting.configure())


def folder_blocking_an_image(setting: Setting) -> None:
    (setting.run / "pictures/a.jpg").mkdir(parents=True)
    setting.train()


def failing_logger(setting: Setting) -> None:
    setting.train(loggers=["own_logger:Failing"])


def missing_checkpoint(setting: Setting) -> None:
    setting.train(checkpoint_every=1)
    (setting.run / "weights/last.pt").unlink()
    setting.train(iterations=3, resume=True)


def an_edited_table(setting: Setting) -> None:
    setting.train()
    (setting.run / "metrics.csv").write_text("time;loss")
    setting.train(resume=True)


def little_shared_memory(setting: Setting) -> None:
    config = setting.change_data(workers=1)
    annotations = load_annotations(config.data, "train")
    assert annotations is not None
    for size in (0, 1000):  # of a file in shared memory
        with files_up_to(size):
            next(iter(build_train_loader(config, annotations)))


def a_cache_on_a_full_disk(setting: Setting) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    setting.monkeypatch.setattr(PixelCache, "_write", fail)
    train(setting.change_data(cache="disk"))


def a_killed_worker(setting: Setting) -> None:
    data = setting.change_data(workers=1, transforms="own_transforms:kill_worker").data
    train(setting.configure(iterations=12).model_copy(update={"data": data}))


def nothing_saved(setting: Setting) -> None:
    setting.run.mkdir()
    (setting.run / "config.yaml").write_text(setting.configure().to_yaml())
    setting.train(resume=True)


def vanishing_image(setting: Setting) -> None:
    def remove(_: DetectionModel) -> None:
        (setting.data / "images/a.png").unlink()

    with before_forward(DetectionModel, at_call(1, remove)):
        setting.train(iterations=3)


def broken_and_protruding_boxes(setting: Setting) -> None:
    tree = coco_tree()
    tree["annotations"][0]["bbox"] = [5, 5, -3, 4]
    tree["annotations"][1]["bbox"] = [5, 5, 90, 20]
    write_coco(setting.data, tree)
    train(setting.change_data(on_error="skip"))


def duplicate_ids(setting: Setting) -> None:
    files = [write_json(setting.data / name, coco_tree()) for name in ("one.json", "two.json")]
    config = setting.configure().to_dict()
    config["data"]["train"] = {"annotations": files, "images": setting.data / "images"}
    train(Config.model_validate(config))


def no_progress(setting: Setting) -> None:
    model = {**tiny_backbone.MODEL, "score_threshold": 0.9}
    setting.train(iterations=9, eval_every=1, patience=2, model=model)


def no_val(setting: Setting) -> None:
    (setting.data / "val.json").unlink()
    setting.train()


def interrupt_signal(setting: Setting) -> None:
    with before_forward(DetectionModel, at_call(1, lambda _: os.kill(os.getpid(), signal.SIGINT))):
        setting.train()


def lost_process(setting: Setting) -> None:
    setting.monkeypatch.setenv("WORLD_SIZE", "2")
    with explain_lost_processes():
        raise RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.1.1]:4711")


def unreachable_rank_0(setting: Setting) -> None:
    be_second_without_first(setting.monkeypatch)
    join_processes(torch.device("cpu"))


SITUATIONS: dict[Callable[[Setting], None], list[str]] = {
    random_frozen_norm: ["the backbone has random weights and frozen batch norm"],
    random_frozen_stages: ["frozen stages, which stay random"],
    random_frozen_parameters: ["freezes some of them"],
    slow_random_backbone: ["multiplies its learning rate by"],
    odd_options: [
        "times the usual value for",
        "classes have no training boxes",
        "boxes have a size that no level covers",
        "ends within the warm-up",
        "have no boxes; they are used as background",
    ],
    transform_without_boxes: ["none of the training images so far has a box", "check the boxes that"],
    metric_without_objects: ["is undefined because val has no objects that this metric counts"],
    one_pixel_boxes: ["are not assigned to any location"],
    licensed_weights: ["trained with", "the licence of these weights may restrict their use"],
    infinite_pixels: ["step skipped"],
    files_blocking_outputs: ["not saved", "no report of the run", "could not draw the detections"],
    folder_blocking_an_image: ["no picture of"],
    failing_logger: ["failed and was closed"],
    missing_checkpoint: [
        "is missing",
        "resuming from the previous checkpoint",
        "options that differ from the run so far",
    ],
    an_edited_table: ["not a table with the columns", "nothing left to train"],
    little_shared_memory: ["(/dev/shm) is too small", "cannot start the loader workers"],
    a_cache_on_a_full_disk: ["the cache cannot be used"],
    a_killed_worker: ["loader worker", "was terminated"],
    nothing_saved: ["nothing was saved in"],
    vanishing_image: [
        "another image is used instead",
        "images could not be read; their objects count as missed",
    ],
    broken_and_protruding_boxes: ["skipped in the", "extends beyond the image; clipped"],
    duplicate_ids: ["new ids assigned"],
    no_progress: ["stopped early"],
    no_val: ["the last weights, no validation"],
    interrupt_signal: ["interrupted"],
    lost_process: ["another process has ended or cannot be reached"],
    unreachable_rank_0: ["process 0 cannot be reached at"],
}
"""Phrases of the guide that appear in the messages of each situation."""


def test_guide_explains_exactly_the_tested_messages() -> None:
    assert sorted(PHRASES) == sorted(phrase for phrases in SITUATIONS.values() for phrase in phrases)


# If a worker is killed while its batch is read, torch opens temporary files without closing them.
@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda situation: situation.__name__)
def test_messages_match_the_guide(
    situation: Callable[[Setting], None],
    setting: Setting,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    error = ""
    try:
        with suppress(KeyboardInterrupt), caplog.at_level(logging.INFO, logger="fcos"):
            situation(setting)
    except fcos.FCOSError as caught:
        error = str(caught)
    out = capsys.readouterr().out
    text = "\n".join([out, *caplog.messages, error])
    assert [phrase for phrase in SITUATIONS[situation] if phrase not in text] == []
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    warnings += [line for line in out.splitlines() if line.startswith("warning: ")]
    explained = [*PHRASES, SUMMED_UP]
    assert [warning for warning in warnings if not any(phrase in warning for phrase in explained)] == []
