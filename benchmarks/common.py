"""Functions shared by the benchmarks: machine description, tables, result files, torchvision's FCOS on MobileNetV2."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torchvision.models import mobilenet_v2
from torchvision.models.detection import FCOS
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.fcos import FCOSHead
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

import fcos
from fcos.config import FCOSConfig
from fcos.models.backbones.pretrained import imagenet_weights

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """Describe the machine: date, processor, threads and versions."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [
            line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        processor = names[0] if names else processor
    return {
        "date": date.today().isoformat(),
        "processor": processor,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "torchvision", "fcos-vision")},
    }


def markdown(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Format a Markdown table; all columns but the first are right-aligned."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def write(name: str, title: str, facts: dict[str, Any], table: str, data: dict[str, Any]) -> None:
    """Print the table and save it as results/NAME.md, and the data as results/NAME.json (null for None)."""
    text = f"# {title}\n\n" + ", ".join(f"{key} {value}" for key, value in facts.items()) + f"\n\n{table}\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")
    (RESULTS / f"{name}.json").write_text(json.dumps({"machine": facts, **data}, indent=1) + "\n", encoding="utf-8")
    print(f"\n{text}\nwritten to {RESULTS / name}.md and .json")


def fcos_section(config: fcos.Config) -> FCOSConfig:
    """Return the section `model` of a config for FCOS."""
    assert isinstance(config.model, FCOSConfig)
    return config.model


def torchvision_mobilenet(num_labels: int, *, channels: int, num_convs: int, pretrained: bool) -> FCOS:
    """Build torchvision's FCOS on MobileNetV2 with levels P3 to P7 and the given channels and depth of the head.

    It uses the thresholds of our recipes and does not resize images.
    """
    body = mobilenet_v2()
    if pretrained:
        body.load_state_dict(imagenet_weights("mobilenet_v2", "imagenet"))
    backbone = BackboneWithFPN(
        body.features,
        return_layers={"6": "c3", "13": "c4", "17": "c5"},
        in_channels_list=[32, 96, 320],
        out_channels=channels,
        extra_blocks=LastLevelP6P7(channels, channels),
    )
    head = FCOSHead(channels, 1, num_labels, num_convs)
    return without_resize(FCOS(backbone, num_labels, head=head, score_thresh=0.05, nms_thresh=0.6))


def without_resize(model: FCOS) -> FCOS:
    """Disable torchvision's resizing of images (its option for that has an effect in training only)."""
    model.transform.resize = lambda image, target=None: (image, target)
    return model
