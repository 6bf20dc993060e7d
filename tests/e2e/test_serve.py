"""`fcos serve` as a process: address, logs, shutdown, load."""

import json
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
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


def test_accepted_requests_are_answered_after_sigterm(start, log):
    process, url = start("--max-wait-ms", "1500", "--max-batch", "64")
    with ThreadPoolExecutor(4) as pool:
        answers = [
            pool.submit(httpx.post, f"{url}/v1/detect", content=encoded(picture(seed=i)), headers=PNG, timeout=600)
            for i in range(4)
        ]
        while float(httpx.get(f"{url}/metrics").text.partition("\nfcos_images_in_progress ")[2].split()[0]) < 4:
            pass
        process.send_signal(signal.SIGTERM)
        assert [answer.result().status_code for answer in answers] == [200] * 4
    code, *_ = finish(process)
    assert code == 0, log.read_text()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["status"] for line in lines if line["path"] == "/v1/detect"] == [200] * 4


def test_logs_are_json_without_names_or_tokens_of_clients(start, log, monkeypatch):
    with no_requests(monkeypatch):  # to other machines
        process, url = start("--token", "s3cret")
        check_logs(process, url, log)


def check_logs(process, url, log):
    headers = {"Authorization": "Bearer s3cret"}
    model = httpx.get(f"{url}/v1/model", headers=headers).json()
    httpx.post(
        f"{url}/v1/detect",
        files={"images": ("private.png", encoded(picture()))},
        headers={**headers, "X-Request-Id": "r1"},
    )
    httpx.get(f"{url}/%0a%1b[31m{{}}\N{SNOWMAN}")
    process.send_signal(signal.SIGINT)
    code, out, _ = finish(process)
    err = log.read_text()
    assert (code, out, model["name"]) == (0, "", "cells")
    lines = [json.loads(line) for line in err.splitlines()]
    assert [(line["method"], line["status"]) for line in lines] == [("GET", 200), ("POST", 200), ("GET", 404)]
    assert (
        lines[1] | {"id": "r1", "path": "/v1/detect", "images": 1, "client": "127.0.0.1", "level": "info"} == lines[1]
    )
    assert lines[1]["ms"] > 0
    assert "s3cret" not in err
    assert "private" not in err
    assert "\x1b" not in err


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
    assert float(metrics.partition("\nfcos_images_total ")[2].split()[0]) == count + count // 4
    assert float(metrics.partition("\nfcos_images_in_progress ")[2].split()[0]) == 0
