"""Measure throughput and latency of `fcos serve` with dynamic batching, compared with unbatched serving.

    python benchmarks/serve_load.py [--weights FILE] [--clients 1 4 16 64] [--requests 200] [--device cpu]

Without --weights, the detector is an untrained one of the recipe `fcos_mnv2_small`. Every client sends its next JPEG
when it has received the answer to the last one. Both servers run in processes of their own, one after the other. With
one client, batching can only add the waiting time.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import httpx
import numpy as np
from common import machine, markdown, write
from PIL import Image

import fcos
from fcos.checkpoint import save_checkpoint

WARM_UP = 20  # requests


def make_weights(path: Path) -> None:
    """Write an untrained detector, which needs as much time as a trained one, except for suppression."""
    detector = fcos.load("fcos_mnv2_small", "model.backbone.weights=null", "model.num_classes=10", device="cpu")
    names = [f"class {i}" for i in range(10)]
    save_checkpoint(path, model=detector.model, config=detector.config, class_names=names, category_ids=range(10))


@contextmanager
def server(weights: str, *options: str) -> Iterator[str]:
    """Run `fcos serve` and yield its URL."""
    command = [sys.executable, "-m", "fcos", "serve", weights, "--port", "0", "--max-queue", "1024", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout
        try:
            yield process.stdout.readline().split()[2]
        finally:
            process.terminate()


def measure(url: str, files: Sequence[bytes], clients: int, requests: int) -> np.ndarray:
    """Send requests from several clients and return [R, 2], start and end of every request in seconds."""

    def ask(numbers: Sequence[int]) -> list[tuple[float, float]]:
        times = []
        with httpx.Client(base_url=url, timeout=600, headers={"Content-Type": "image/jpeg"}) as client:
            for number in numbers:
                start = time.perf_counter()
                client.post("/v1/detect", content=files[number % len(files)]).raise_for_status()
                times.append((start, time.perf_counter()))
        return times

    with ThreadPoolExecutor(clients) as pool:
        answers = pool.map(ask, [range(i, requests, clients) for i in range(clients)])
        return np.concatenate([times for times in answers if times])


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", help="weights file or name; default: an untrained detector")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--requests", type=int, default=200, help="requests per measurement")
    parser.add_argument("--size", type=int, nargs=2, default=[640, 480], metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--max-batch", default="16")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    generator = np.random.default_rng(0)
    files = []
    for _ in range(8):
        file = io.BytesIO()
        noise = Image.fromarray(generator.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        noise.resize(arguments.size, Image.Resampling.BICUBIC).save(file, "JPEG")
        files.append(file.getvalue())
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        weights = arguments.weights
        if weights is None:
            weights = f"{folder}/best.pt"
            make_weights(Path(weights))
        for name, batch in (("unbatched", "1"), ("dynamic batches", arguments.max_batch)):
            with server(weights, "--max-batch", batch, f"device={arguments.device}") as url:
                measure(url, files, 4, WARM_UP)
                for clients in arguments.clients:
                    times = measure(url, files, clients, arguments.requests)
                    seconds = times[:, 1].max() - times[:, 0].min()
                    latencies = np.percentile(times[:, 1] - times[:, 0], [50, 90, 99]) * 1000
                    rows.append((name, clients, len(times) / seconds, *latencies))
                    print(f"{name}, {clients} clients: {rows[-1][2]:.1f} images/s")
    head = ["server", "clients", "images/s", "median (ms)", "90 % (ms)", "99 % (ms)"]
    table = markdown(head, [[row[0], row[1], f"{row[2]:.1f}", *(f"{value:.0f}" for value in row[3:])] for row in rows])
    facts = {
        **machine(),
        **{name: version(name) for name in ("fastapi", "uvicorn")},
        "device": arguments.device,
        "weights": arguments.weights or "untrained fcos_mnv2_small",
        "images": "{}x{}".format(*arguments.size),
        "requests": arguments.requests,
        "batches": f"at most {arguments.max_batch}",
    }
    write(
        "serve_load", "Load on fcos serve", facts, table, {"rows": [dict(zip(head, row, strict=True)) for row in rows]}
    )


if __name__ == "__main__":
    main()
