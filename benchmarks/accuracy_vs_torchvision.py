"""Train torchvision's FCOS and ours for the same time on the same images and compare their average precision.

    python benchmarks/accuracy_vs_torchvision.py --data DIR [DIR ...] [--minutes 10]

Both are trained one after the other with the same ImageNet-pretrained MobileNetV2 weights, images, image size and
wall-clock time, and evaluated by the same code. torchvision's detector is trained as well as we know how: AdamW, cosine
schedule, warm-up, batches of 4, decoded images kept in memory, and a width that suits small data sets. Its time limit
covers only the training loop; ours covers everything.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import fcos_section, machine, markdown, torchvision_mobilenet, write
from torch import Tensor, nn

import fcos
from fcos.data import build_test_loader, load_annotations
from fcos.data.dataset import Annotations
from fcos.evaluation.coco_metrics import METRICS, coco_metrics, to_coco_results

RECIPE = "fcos_mnv2_small"
LEARNING_RATE, WEIGHT_DECAY, WARMUP_STEPS, CLIP_NORM = 1e-3, 1e-4, 50, 10.0


class Example(NamedTuple):
    """Image prepared for the network, with its ground truth."""

    image: Tensor  # uint8 [3, H, W]
    boxes: Tensor  # float32 [M, 4] XYXY in pixels of `image`
    labels: Tensor  # int64 [M], 1..K: in torchvision 0 is the background
    index: int


def examples(config: fcos.Config, annotations: Annotations) -> list[Example]:
    """Load every image of a split, resized as for our evaluation."""
    found = []
    for batch in build_test_loader(config, annotations, batch_size=1):
        index, (height, width) = int(batch.indices[0]), batch.sizes[0].tolist()
        start, end = annotations.offsets[index : index + 2]
        objects = ~torch.from_numpy(annotations.crowd[start:end])
        old_height, old_width = annotations.sizes[index].tolist()
        scale = torch.tensor([width / old_width, height / old_height] * 2)
        boxes = torch.from_numpy(annotations.boxes[start:end])[objects] * scale
        labels = torch.from_numpy(annotations.labels[start:end])[objects] + 1
        found.append(Example(batch.images[0, :, :height, :width].clone(), boxes, labels, index))
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
    width = example.image.shape[2]
    boxes = example.boxes.clone()
    boxes[:, 0], boxes[:, 2] = width - example.boxes[:, 2], width - example.boxes[:, 0]
    return example._replace(image=example.image.flip(2), boxes=boxes)


def train_torchvision(model: nn.Module, data: list[Example], *, minutes: float, batch_size: int) -> int:
    """Train until the time is over, with a cosine schedule over the elapsed time; return the number of steps."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
    model.train()
    steps, start = 0, time.perf_counter()
    while True:
        for chosen in batches(data, batch_size):
            passed = (time.perf_counter() - start) / (60 * minutes)
            if passed >= 1:
                return steps
            rate = LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * passed)) * min(1.0, (steps + 1) / WARMUP_STEPS)
            optimizer.param_groups[0]["lr"] = rate
            batch = [flipped(example) for example in chosen]
            images = [example.image.float() / 255 for example in batch]
            loss = sum(model(images, [{"boxes": e.boxes, "labels": e.labels} for e in batch]).values())
            assert isinstance(loss, Tensor)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
            optimizer.step()
            steps += 1
            if steps % 50 == 0:
                print(f"torchvision: step {steps}, {passed:.0%} of the time, loss {loss.item():.3f}", flush=True)


@torch.inference_mode()
def evaluate_torchvision(model: nn.Module, data: list[Example], annotations: Annotations) -> dict[str, float]:
    model.eval()
    results = []
    for example in data:
        found = model([example.image.float() / 255])[0]
        height, width = example.image.shape[1:]
        instances = fcos.Instances(found["boxes"], found["labels"] - 1, found["scores"], (height, width))
        old_height, old_width = annotations.sizes[example.index].tolist()
        results += to_coco_results(
            instances.resize_to((old_height, old_width)),
            image_id=int(annotations.image_ids[example.index]),
            category_ids=annotations.category_ids,
        )
    return coco_metrics(annotations.to_coco(), results).overall


def compare(data: Path, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Train and evaluate both detectors on one data set."""
    fixed = [f"data={data}", f"train.max_minutes={options.minutes}", "train.eval_every=null"]
    config = fcos.load_config(RECIPE, [*fixed, *options.overrides])
    annotations = load_annotations(config.data, "train")
    assert annotations is not None
    val = load_annotations(config.data, "val", class_names=annotations.class_names)
    assert val is not None

    torch.manual_seed(config.train.seed)
    section = fcos_section(config)
    model = torchvision_mobilenet(
        len(annotations.class_names) + 1,
        channels=options.channels or section.fpn.channels,
        num_convs=options.convs or section.head.num_convs,
        pretrained=True,
    )
    batch_size = options.batch_size
    steps = train_torchvision(model, examples(config, annotations), minutes=options.minutes, batch_size=batch_size)
    theirs = evaluate_torchvision(model, examples(config, val), val)
    del model

    start = time.perf_counter()
    result = fcos.train(config)
    elapsed = (time.perf_counter() - start) / 60
    ours = fcos.evaluate(result.run / "weights" / "best.pt").metrics
    theirs, ours = ({k: None if math.isnan(v) else v for k, v in found.items()} for found in (theirs, ours))
    return {
        "torchvision FCOS": {"metrics": theirs, "minutes": options.minutes, "steps": steps, "batch_size": batch_size},
        f"fcos ({RECIPE})": {"metrics": ours, "minutes": elapsed, "run": result.run.name},
    }


def _text(figure: float | None) -> str:
    return "-" if figure is None else f"{figure:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders in COCO, VOC or YOLO layout")
    parser.add_argument("--minutes", type=float, default=10.0, help="wall-clock time for each training")
    parser.add_argument("--channels", type=int, help="of torchvision's pyramid and head; default: as in our recipe")
    parser.add_argument("--convs", type=int, help="in each tower of torchvision's head; default: as in our recipe")
    parser.add_argument("--batch-size", type=int, default=4, help="torchvision's")
    parser.add_argument("--overrides", nargs="*", default=[], help="key=value of our recipe; data.* holds for both")
    options = parser.parse_args()
    facts = {**machine(), "minutes": options.minutes}
    print(facts)
    found = {}
    for data in options.data:
        found[data.name] = compare(data, options)
    shown = ("AP", "AP50", "AP75", "APs", "APm", "APl")
    assert set(shown) <= set(METRICS)
    rows = [
        [f"{name}: {detector}", *map(_text, (entry["metrics"][figure] for figure in shown)), f"{entry['minutes']:.1f}"]
        for name, detectors in found.items()
        for detector, entry in detectors.items()
    ]
    write(
        "accuracy_vs_torchvision",
        f"Average precision on val after {options.minutes:g} minutes of training",
        facts,
        markdown(["data: detector", *shown, "minutes"], rows),
        {"results": found},
    )


if __name__ == "__main__":
    main()
