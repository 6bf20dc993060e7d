"""Measure how long recipes take to detect, in PyTorch, ONNX Runtime and OpenVINO, from image file to boxes.

    python benchmarks/recipe_speed.py [--threads 2] [--seconds 20]

Every recipe has random weights and its own image size; the images are generated, with 480x640 pixels. The runtimes of a
recipe take turns. On CPUs with instructions for it, bfloat16 is measured, too.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import CLASSES, machine, markdown, write

from fcos import Config, Detector
from fcos.api_inspect import benchmark
from fcos.checkpoint import save_checkpoint
from fcos.choices import Precision
from fcos.models import DetectionModel, build_model
from fcos.recipes import load_config

RECIPES = (
    "fcos_mnv2_nano",
    "fcos_mnv2_small",
    "fcos_lite0_small",
    "fcos_rt_dla34_fpn_4x",
    "fcos_rt_r50_fpn_4x",
    "fcos_imprv_r50_fpn_1x",
)
NAMES = [f"class {number}" for number in range(CLASSES)]


def random_model(config: Config) -> DetectionModel:
    """Build a detector whose scores and boxes differ enough to be compared with those of an exported file."""
    torch.manual_seed(0)
    model = build_model(config.model, num_classes=CLASSES, pretrained=False).to(memory_format=torch.channels_last)
    torch.nn.init.normal_(model.get_parameter("head.logits.weight"), std=0.1)
    torch.nn.init.ones_(model.get_parameter("head.ltrb.bias"))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # statistics of the next batch
    with torch.no_grad():
        model.train()(torch.randint(0, 256, (2, 3, 256, 320)), torch.tensor([[256, 320]] * 2))
    return model.eval()


def measure(recipe: str, *, threads: int, seconds: float, precisions: Sequence[Precision]) -> dict[str, Any]:
    """Return the millions of parameters and the median milliseconds per image, by runtime."""
    config = load_config(recipe, ["model.backbone.weights=null", "device=cpu"])
    model = random_model(config)
    detector = Detector(model, config, class_names=NAMES)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("detector.pt", "detector.onnx", "detector.xml")]
        save_checkpoint(
            files[0], model=model, config=config, class_names=NAMES, category_ids=tuple(range(1, CLASSES + 1))
        )
        detector.export(files[1], form="onnx")
        detector.export(files[2], form="openvino")
        result = benchmark(files, precisions=precisions, threads=threads, seconds=seconds).to_dict()
    times = {}
    for timing in result["results"]:
        precision = "" if timing["precision"] == "exported" else f", {timing['precision']}"
        times[timing["runtime"].split()[0] + precision] = timing["total_ms"]["p50"]
    return {"millions": sum(p.numel() for p in model.parameters()) / 1e6, "milliseconds": times}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=20.0, help="mean time per runtime")
    options = parser.parse_args()
    has_bfloat16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    precisions: list[Precision] = ["float32", "bfloat16"] if has_bfloat16 else ["float32"]
    results, rows = {}, []
    for recipe in RECIPES:
        found = measure(recipe, threads=options.threads, seconds=options.seconds, precisions=precisions)
        results[recipe] = found
        rows.append([f"`{recipe}`", f"{found['millions']:.1f}", *(f"{x:.0f}" for x in found["milliseconds"].values())])
        print(rows[-1], flush=True)
    head = ["recipe", "M parameters", *(f"{name}, ms" for name in next(iter(results.values()))["milliseconds"])]
    facts = {**machine(), "threads": options.threads}
    write("recipe_speed", "Detection with the recipes on a CPU", facts, markdown(head, rows), {"results": results})


if __name__ == "__main__":
    main()
