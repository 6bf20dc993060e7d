"""Train torchvision's detectors and ours equally long on the same images and compare their average precision.

    python benchmarks/accuracy_vs_torchvision.py --data DIR [DIR ...] [--recipes NAME [NAME ...]] [--minutes 10]
    python benchmarks/accuracy_vs_torchvision.py --data DIR --recipes NAME --only-ours STEPS

Both are trained one after the other with the same ImageNet-pretrained MobileNetV2 weights, images, image size and
wall-clock time, and evaluated by the same code. torchvision's detector is trained as well as we know how: AdamW, cosine
schedule, warm-up, batches of 4, decoded images kept in memory, and a width that suits small data sets. Its time limit
covers only the training loop; ours covers everything.

On a machine that has other work to do, `--steps THEIRS OURS` gives each side the number of steps that it makes in the
wanted time on an idle machine, as printed by a short run with `--minutes`. After a change of a recipe, `--only-ours
STEPS` trains ours alone, for the recorded number of steps. Images per second are not measured in these two cases.

The results of each recipe and data set replace those in results/accuracy_vs_torchvision.json. Others are kept, and so
are speeds that are not measured again, with their machine.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from common import RESULTS, machine, markdown, write
from torch import Tensor, nn
from torchvision_detectors import Detector, build

import fcos
from fcos.data import build_test_loader, load_annotations
from fcos.data.dataset import Annotations
from fcos.evaluation.coco_metrics import coco_metrics, to_coco_results
from fcos.inference.detect import detect_on_originals
from fcos.interop.checkpoints import load_checkpoint
from fcos.masks import encode
from fcos.models import DetectionModel
from fcos.structures import View

LEARNING_RATE, WEIGHT_DECAY, WARMUP_STEPS, CLIP_NORM = 1e-3, 1e-4, 50, 10.0
NAME = "accuracy_vs_torchvision"
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AP_mask", "AP50_mask")
Sides = dict[str, dict[str, Any]]  # the results by side, "torchvision" and "fcos"


class Example(NamedTuple):
    """Image prepared for the network, with its ground truth."""

    image: Tensor  # uint8 [3, H, W]
    target: dict[str, Tensor]  # boxes [M, 4] XYXY in pixels of `image`, labels [M] in 1..K, masks uint8 [M, H, W]
    index: int


def examples(config: fcos.Config, annotations: Annotations) -> list[Example]:
    """Load every image of a split, resized as for our evaluation."""
    found = []
    for batch in build_test_loader(config, annotations, batch_size=1):
        index, (height, width) = int(batch.indices[0]), batch.sizes[0].tolist()
        old_height, old_width = annotations.sizes[index].tolist()
        scales = width / old_width, height / old_height
        objects = annotations.objects(index)
        objects = objects[~objects.is_crowd]
        target = {"boxes": objects.boxes * torch.tensor(scales * 2), "labels": objects.labels + 1}
        if objects.masks is not None:
            target["masks"] = objects.masks.scale(*scales).to_bitmaps((height, width)).to(torch.uint8)
        found.append(Example(batch.images[0, :, :height, :width].clone(), target, index))
    return found


def batches(data: list[Example], batch_size: int) -> list[list[Example]]:
    """Return the batches of one epoch in random order; landscape and portrait images are separate, to limit padding."""
    shuffled = [data[i] for i in torch.randperm(len(data)).tolist()]
    groups = ([e for e in shuffled if (e.image.shape[1] > e.image.shape[2]) is portrait] for portrait in (False, True))
    found = [group[i : i + batch_size] for group in groups for i in range(0, len(group), batch_size)]
    return [found[i] for i in torch.randperm(len(found)).tolist()]


def flipped(example: Example) -> Example:
    if torch.rand(()) < 0.5:
        return example
    width, target = example.image.shape[2], dict(example.target)
    x1, y1, x2, y2 = target["boxes"].unbind(dim=1)
    target["boxes"] = torch.stack([width - x2, y1, width - x1, y2], dim=1)
    if "masks" in target:
        target["masks"] = target["masks"].flip(2)
    return Example(example.image.flip(2), target, example.index)


def train_torchvision(
    model: Detector,
    data: list[Example],
    *,
    minutes: float,
    max_steps: int | None,
    batch_size: int,
) -> int:
    """Train until the time or the number of steps is reached, with a cosine schedule; return the number of steps."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
    model.train()
    steps, start = 0, time.perf_counter()
    while True:
        for chosen in batches(data, batch_size):
            passed = steps / max_steps if max_steps else (time.perf_counter() - start) / (60 * minutes)
            if passed >= 1:
                return steps
            rate = LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * passed)) * min(1.0, (steps + 1) / WARMUP_STEPS)
            optimizer.param_groups[0]["lr"] = rate
            batch = [flipped(example) for example in chosen]
            images = [example.image.float() / 255 for example in batch]
            loss = sum(model(images, [example.target for example in batch]).values())
            assert isinstance(loss, Tensor)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
            optimizer.step()
            steps += 1
            if steps % 50 == 0:
                print(f"torchvision: step {steps}, {passed:.0%}, loss {loss.item():.3f}", flush=True)


def detect_torchvision(model: Detector, example: Example, size: tuple[int, int]) -> dict[str, Tensor]:
    """Return the detections in pixels of the original image, whose size is (height, width)."""
    transform: Any = model.transform
    postprocess = transform.postprocess
    transform.postprocess = lambda detections, sizes, _: postprocess(detections, sizes, [size])
    try:
        return model([example.image.float() / 255])[0]
    finally:
        transform.postprocess = postprocess


@torch.inference_mode()
def evaluate_torchvision(model: Detector, data: list[Example], annotations: Annotations) -> dict[str, float]:
    model.eval()
    results, has_masks = [], annotations.masks is not None
    for example in data:
        height, width = annotations.sizes[example.index].tolist()
        found = detect_torchvision(model, example, (height, width))
        instances = fcos.Instances(found["boxes"], found["labels"] - 1, found["scores"], (height, width))
        image_id = int(annotations.image_ids[example.index])
        rows = to_coco_results(instances, image_id=image_id, category_ids=annotations.category_ids)
        if has_masks:
            for row, mask in zip(rows, found["masks"], strict=True):
                row["segmentation"] = encode(mask[0] > 0.5)
        results += rows
    outputs = ("boxes", "masks") if has_masks else ("boxes",)
    return coco_metrics(annotations.to_coco(), results, outputs=outputs).overall


@torch.inference_mode()
def images_per_second(
    theirs: Detector, ours: DetectionModel, data: list[Example], sizes: np.ndarray
) -> tuple[float, float]:
    """Measure single images from the network input to detections, masks included; the two sides take turns."""
    seconds = np.zeros((len(data), 2))
    for row, example in zip(seconds, data, strict=True):
        height, width = sizes[example.index].tolist()
        shape = torch.tensor([example.image.shape[1:]])
        times = [time.perf_counter()]
        detect_torchvision(theirs, example, (height, width))
        times.append(time.perf_counter())
        found = detect_on_originals(ours, [View(example.image[None], shape)], [(height, width)])[0]
        _ = found.masks
        times.append(time.perf_counter())
        row[:] = np.diff(times)
    their_seconds, our_seconds = np.median(seconds, axis=0)
    return 1 / their_seconds, 1 / our_seconds


def compare(data: Path, recipe: str, facts: dict[str, Any], options: argparse.Namespace) -> Sides:
    """Train and evaluate both detectors, or ours alone, on one data set."""
    their_steps, our_steps = options.steps or (None, options.only_ours)
    fixed = [f"data={data}", "train.eval_every=null"]
    fixed.append(f"train.iterations={our_steps}" if our_steps else f"train.max_minutes={options.minutes}")
    config = fcos.load_config(recipe, [*fixed, *options.overrides])
    annotations = load_annotations(config.data, "train")
    assert annotations is not None
    val = load_annotations(config.data, "val", class_names=annotations.class_names)
    assert val is not None

    theirs = None
    if options.only_ours is None:
        torch.manual_seed(config.train.seed)
        theirs = build(config.model, len(annotations.class_names))
        settings = {"minutes": options.minutes, "max_steps": their_steps, "batch_size": options.batch_size}
        start = time.perf_counter()
        steps = train_torchvision(theirs, examples(config, annotations), **settings)
        minutes = (time.perf_counter() - start) / 60
        their_entry = {"machine": facts, "minutes": minutes, "steps": steps, "batch_size": options.batch_size}

    start = time.perf_counter()
    weights = fcos.train(config).run / "weights" / "best.pt"
    minutes, steps = (time.perf_counter() - start) / 60, load_checkpoint(weights).iteration
    our_entry = {"machine": facts, "minutes": minutes, "steps": steps, "batch_size": config.train.batch_size}
    our_entry["metrics"] = _without_nan(fcos.evaluate(weights).metrics)
    if theirs is None:
        return {"fcos": our_entry}

    test_data = examples(config, val)
    their_entry["metrics"] = _without_nan(evaluate_torchvision(theirs, test_data, val))
    if options.steps is None:
        speeds = images_per_second(theirs, fcos.load(weights).model, test_data, val.sizes)
        for entry, speed in zip((their_entry, our_entry), speeds, strict=True):
            entry["speed"] = {"machine": facts, "images_per_second": speed}
    return {"torchvision": their_entry, "fcos": our_entry}


def _without_nan(metrics: dict[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in metrics.items()}


def save(results: dict[str, dict[str, Sides]]) -> None:
    """Write the table and the data of all results, by data set, recipe and side."""
    rows = [
        [f"{data}: {recipe}, {side}", *(_text(entry["metrics"].get(metric)) for metric in METRICS),
         _text(entry["steps"], digits=0), entry["batch_size"], _text(entry["minutes"], digits=1),
         entry["machine"]["threads"], entry["machine"]["date"],
         _text(entry["speed"]["images_per_second"], digits=1) if "speed" in entry else "-",
         entry["speed"]["machine"]["date"] if "speed" in entry else "-"]
        for data, recipes in results.items()
        for recipe, sides in recipes.items()
        for side, entry in sides.items()
    ]  # fmt: skip
    head = [
        "data: recipe, side",
        *METRICS,
        "steps",
        "batch",
        "minutes",
        "threads",
        "date",
        "images/s",
        "date of images/s",
    ]
    entries = [entry for recipes in results.values() for sides in recipes.values() for entry in sides.values()]
    processors = ", ".join(sorted({entry["machine"]["processor"] for entry in entries}))
    title = "Metrics on val after equally long trainings"
    write(NAME, title, {"processors": processors}, markdown(head, rows), {"results": results})


def _text(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders in COCO, VOC or YOLO layout")
    parser.add_argument("--recipes", nargs="+", default=["fcos_mnv2_small"], help="our small recipes")
    parser.add_argument("--minutes", type=float, default=10.0, help="wall-clock time for each training")
    steps = parser.add_mutually_exclusive_group()
    steps.add_argument("--steps", type=int, nargs=2, metavar=("THEIRS", "OURS"), help="steps, in place of the time")
    steps.add_argument("--only-ours", type=int, metavar="STEPS", help="train ours alone, torchvision's are recorded")
    parser.add_argument("--batch-size", type=int, default=4, help="torchvision's")
    parser.add_argument("--overrides", nargs="*", default=[], help="key=value of our recipe; data.* holds for both")
    options = parser.parse_args()
    facts = machine()
    print(facts)
    file = RESULTS / f"{NAME}.json"
    for data in options.data:
        for recipe in options.recipes:
            sides = compare(data, recipe, facts, options)
            results = json.loads(file.read_text(encoding="utf-8"))["results"] if file.is_file() else {}
            recorded = results.setdefault(data.name, {}).setdefault(recipe, {})
            for side, entry in sides.items():
                recorded[side] = recorded.get(side, {}) | entry
            save(results)


if __name__ == "__main__":
    main()
