"""Synthetic run folders for tests of reports, and extraction of text from the HTML page."""

from __future__ import annotations

import html
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluations import random_task
from PIL import Image
from torch import nn

from fcos.checkpoint import save_checkpoint
from fcos.config import Config
from fcos.data import load_annotations
from fcos.evaluation.coco_metrics import coco_metrics
from fcos.evaluation.evaluate import Evaluation
from fcos.evaluation.results import save_evaluation
from fcos.reporting.report import write_report

ROWS = [
    "iteration,minutes,split,loss,loss_cls,loss_box,lr,images_per_second,data_share,grad_norm,AP,AP50,AP75",
    "10,0.5,train,3.0,2.0,1.0,0.001,20,0.25,5.0,,,",
    "20,1.0,train,2.0,1.5,0.5,0.002,30,0.35,2.0,,,",
    "20,1.5,val,,,,,,,,0.1,0.2,0.3",
]


@dataclass
class Made:
    """Synthetic run folder, its data and its evaluation."""

    folder: Path
    data: Path
    task: tuple[dict[str, Any], list[dict[str, Any]]]
    evaluation: Evaluation
    config: Config

    def page(self, **options: Any) -> str:
        return write_report(self.folder, **options).read_text(encoding="utf-8")

    def save_best(self, **other: Any) -> None:
        own = {"metrics": self.evaluation.metrics, "thresholds": self.evaluation.thresholds, "iteration": 20, **other}
        categories = self.task[0]["categories"]
        save_checkpoint(
            self.folder / "weights/best.pt",
            model=nn.Linear(1, 1),
            config=self.config,
            class_names=[c["name"] for c in categories],
            category_ids=[c["id"] for c in categories],
            **own,
        )


def made_run(
    root: Path, *, classes: int = 4, rename: str | None = None, detections: bool = True, objects: bool = True
) -> Made:
    """Write a run with random detections to `root/runs/mine`, and its data to `root/data`.

    Args:
        root: empty folder.
        classes: number of classes.
        rename: new name of the first class; None: unchanged.
        detections: False: no detections.
        objects: False: all ground-truth boxes are crowd boxes.
    """
    truth, found = random_task(1, classes=classes)
    found = found if detections else []
    for row in (*truth["categories"], *truth["annotations"], *found):  # makes the ids positive
        row["id" if "name" in row else "category_id"] += 13 * classes
    if rename is not None:
        truth["categories"][0]["name"] = rename
    if not objects:
        truth["annotations"] = [{**a, "iscrowd": 1} for a in truth["annotations"]]
    data, folder = root / "data", root / "runs/mine"
    (folder / "weights").mkdir(parents=True)
    data.mkdir()
    for image in truth["images"]:
        Image.new("RGB", (640, 480), "grey").save(data / image["file_name"])
    for split in ("train", "val"):
        (data / f"{split}.json").write_text(json.dumps(truth))
    config = Config.model_validate({"data": {"root": data}, "output_dir": folder})
    (folder / "config.yaml").write_text(config.to_yaml())
    (folder / "metrics.csv").write_text("\n".join(ROWS) + "\n")
    val = load_annotations(config.data, "val")
    assert val is not None
    truth = val.to_coco()  # boxes are clipped to the images on loading
    figures = coco_metrics(truth, found)
    boxes = {
        c["name"]: sum(a["category_id"] == c["id"] and not a["iscrowd"] for a in truth["annotations"])
        for c in truth["categories"]
    }
    evaluation = Evaluation(figures.overall, figures.per_class, found, boxes, figures.thresholds, val.digest())
    made = Made(folder, data, (truth, found), evaluation, config)
    made.save_best()
    save_evaluation(evaluation, folder / "val")
    return made


def section(page: str, title: str) -> str:
    """Return the HTML of the section with the given heading."""
    return page.partition(f"<h2>{title}</h2>")[2].partition("</section>")[0]


def table(page: str) -> dict[str, list[str]]:
    """Return the cells of the first table in a section by row name."""
    body = page.partition("<tbody>")[2].partition("</tbody>")[0]
    rows = {}
    for row in body.split("<tr>")[1:]:
        name, *cells = (re.sub("<.*?>", "", cell).strip() for cell in re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row))
        rows[html.unescape(name)] = cells
    return rows
