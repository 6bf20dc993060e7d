"""`fcos serve` as a process: address, logs, shutdown, load."""

import json
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx
import pytest
import torch
from detectors import CATEGORY_IDS, NAMES, tiny_config, tiny_detector, tiny_model
from no_network import no_requests
from processes import SECONDS, finish
from serving import encoded, picture

from fcos.checkpoint import save_checkpoint

PNG = {"Content-Type": "image/png"}


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "cells" / "weights" / "best.pt"
    path.parent.mkdir(parents=True)
    config = tiny_config()
    save_checkpoint(path, model=tiny_model(config), config=config, class_names=NAMES, category_ids=CATEGORY_IDS)
    return path


@pytest.fixture
def log(tmp_path):
    return tmp_path / "log.jsonl"


@pytest.fixture
def start(weights, log):
    """Return a function that starts the command, waits until it accepts requests, and returns its process and URL."""
    processes = []

    def run(*options):
        command = [sys.executable, "-m", "fcos", "serve", str(weights), "--port", "0", *options]
        with log.open("w") as stderr:  # not a pipe, which would fill up and stop the server
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)
        processes.append(process)
        assert process.stdout
        line = process.stdout.readline()
        assert line.startswith("serving on http://127.0.0.1:"), log.read_text()
        return process, line.split()[2]

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def test_accepted_requests_are_answered_after_sigterm_and_logged_without_secrets(start, log, monkeypatch):
    headers = {"Authorization": "Bearer s3cret"}
    with no_requests(monkeypatch):  # to other machines
        process, url = start("--max-wait-ms", "1500", "--max-batch", "64", "--token", "s3cret")
        assert httpx.get(f"{url}/v1/model", headers=headers).json()["name"] == "cells"
        head = httpx.head(f"{url}/v2/health/live")  # as load balancers ask
        assert (head.status_code, head.content) == (200, b"")
        httpx.get(f"{url}/%0a%1b[31m{{}}\N{SNOWMAN}")
        send = partial(httpx.post, f"{url}/v1/detect", headers={**headers, "X-Request-Id": "r1"}, timeout=600)
        with ThreadPoolExecutor(4) as pool:
            files = [{"images": ("private.png", encoded(picture(seed=i)))} for i in range(4)]
            answers = [pool.submit(send, files=file) for file in files]
            num_accepted = 0.0
            while num_accepted < 4:
                num_done = sum(answer.done() for answer in answers)
                metrics = httpx.get(f"{url}/metrics", headers=headers).text
                num_accepted = num_done + number_in(metrics, "fcos_images_in_progress")
            process.send_signal(signal.SIGTERM)
            assert [answer.result().status_code for answer in answers] == [200] * 4
        code, out, _ = finish(process)
    text = log.read_text()
    assert (code, out) == (0, ""), text
    assert "s3cret" not in text
    assert "private" not in text
    assert "\x1b" not in text
    lines = [line for line in map(json.loads, text.splitlines()) if line["path"] != "/metrics"]
    requests = [("GET", 200), ("HEAD", 200), ("GET", 404), *[("POST", 200)] * 4]
    assert [(line["method"], line["status"]) for line in lines] == requests
    expected = {"id": "r1", "path": "/v1/detect", "images": 1, "client": "127.0.0.1", "level": "info"}
    assert lines[-1] | expected == lines[-1]
    assert lines[-1]["ms"] > 0


def number_in(metrics, name):
    """Return the value of a metric."""
    return float(metrics.partition(f"\n{name} ")[2].split()[0])


def resident_megabytes(process):
    text = Path(f"/proc/{process.pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0]) / 1024


@pytest.mark.parametrize(("clients", "count"), [(16, 200), pytest.param(64, 10_000, marks=pytest.mark.slow)])
def test_concurrent_clients_lose_nothing_and_memory_stays_flat(start, clients, count):
    process, url = start("--timeout", "600")
    pictures = [picture(*size, seed=seed) for seed, size in enumerate([(120, 80), (80, 120), (96, 96), (200, 60)])]
    detector = tiny_detector()
    files = [encoded(image) for image in pictures]
    expected = [detector.predict(image, threshold=0.5).boxes for image in pictures]

    def ask(numbers):
        with httpx.Client(base_url=url, timeout=SECONDS) as client:
            for number in numbers:
                answer = client.post("/v1/detect?threshold=0.5", content=files[number % 4], headers=PNG)
                assert answer.status_code == 200
                boxes = torch.tensor([row["box"] for row in answer.json()["images"][0]["detections"]])
                torch.testing.assert_close(boxes, expected[number % 4], atol=1e-3, rtol=0)
        return len(numbers)

    def ask_all(total):
        with ThreadPoolExecutor(clients) as pool:
            return sum(pool.map(ask, [range(i, total, clients) for i in range(clients)]))

    assert ask_all(count // 4) == count // 4  # the memory of the threads, and of batches of all sizes
    before = resident_megabytes(process)
    assert ask_all(count) == count
    assert resident_megabytes(process) - before < 100
    metrics = httpx.get(f"{url}/metrics").text
    assert number_in(metrics, "fcos_images_total") == count + count // 4
    assert number_in(metrics, "fcos_images_in_progress") == 0
    process.send_signal(signal.SIGINT)
    code, *_ = finish(process)
    assert code == 0
