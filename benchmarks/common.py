"""Functions shared by the benchmarks: machine description, tables, result files."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fcos
from fcos.choices import Precision
from fcos.config import FCOSConfig
from fcos.precision import has_instructions

RESULTS = Path(__file__).parent / "results"
CLASSES = 80  # of detectors with random weights
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
Job = Callable[[], object]


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


def times(run: Job, repeats: int) -> list[float]:
    """Return the seconds of every repetition, after two that are not counted."""
    found = []
    for i in range(repeats + 2):
        start = time.perf_counter()
        run()
        if i >= 2:
            found.append(time.perf_counter() - start)
    return found


def precision_of(side: str) -> Precision:
    """Return the precision that the name of a row of a table contains."""
    return "bfloat16" if "bfloat16" in side else "float32"


def measure_limits() -> dict[str, float]:
    """Measure the operations per second of a large convolution, by precision, and the bytes per second of a copy."""
    rates: dict[str, float] = {}
    with torch.inference_mode():
        for name in filter(has_instructions, PRECISIONS):
            dtype = getattr(torch, name)
            conv = nn.Conv2d(256, 256, 3, padding=1, bias=False).to(dtype).to(memory_format=torch.channels_last)
            image = torch.randn(1, 256, 128, 128).to(dtype).contiguous(memory_format=torch.channels_last)
            operations = 2 * 9 * 256 * 256 * 128 * 128
            rates[name] = operations / min(times(lambda conv=conv, image=image: conv(image), 10))
        source = torch.randn(64 * 2**20)
        target = torch.empty_like(source)
        rates["bandwidth"] = 2 * source.numel() * 4 / min(times(lambda: target.copy_(source), 5))
    return rates


def in_fresh_process(script: str, *options: str) -> Any:
    """Run a script with these options in a process of its own; return the JSON value in its last line."""
    process = subprocess.run([sys.executable, script, *options], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(process.stdout.splitlines()[-1])


def fcos_section(config: fcos.Config) -> FCOSConfig:
    """Return the section `model` of a config for FCOS."""
    assert isinstance(config.model, FCOSConfig)
    return config.model
