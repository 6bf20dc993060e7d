"""Options of `fcos serve` and their messages; the batches of the thread that owns the detector."""

import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import torch
from detectors import tiny_detector
from processes import SECONDS
from serving import encoded, picture

from fcos import ConfigError, cli
from fcos.inference.selection import Selection
from fcos.serving.batcher import Batcher
from fcos.serving.server import Server, open_socket, serve
from fcos.serving.settings import Settings, model_name


def run(monkeypatch, capsys, *arguments):
    """Run `fcos serve` with wrong arguments and return its message."""
    monkeypatch.setattr(sys, "argv", ["fcos", "serve", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-batch", "0"], "--max-batch: expected an integer from 1 to 4096, found '0'"),
        (["--max-wait-ms", "nan"], "--max-wait-ms: expected a number from 0 to 60000, found 'nan'"),
        (["--max-queue", "many"], "--max-queue: expected an integer from 1 to 1000000, found 'many'"),
        (["--port", "70000"], "--port: expected an integer from 0 to 65535, found '70000'"),
        (["--timeout", "0"], "--timeout: expected a number from 0.001 to 86400, found '0'"),
        (["--name", "a/b"], "--name: expected letters, digits, and - _ . only, found 'a/b'"),
        (["--token", ""], "--token: expected ASCII characters without spaces, at least one"),
        (["--host", "no.such.host.invalid"], "--host no.such.host.invalid --port 8000: "),
        (["--port", "0"], "missing.pt"),
        (["--prot", "1"], "--prot: no such option, did you mean --port 1"),
    ],
)
def test_wrong_options_are_explained(monkeypatch, capsys, arguments, message):
    assert message in run(monkeypatch, capsys, "missing.pt", *arguments)


def test_port_in_use_is_reported_before_the_detector_is_loaded(monkeypatch, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = run(monkeypatch, capsys, "missing.pt", "--port", port)
    assert f"--host 127.0.0.1 --port {port}: Address already in use; choose another host or port" in message


def test_missing_package_names_the_extra(monkeypatch, capsys):
    monkeypatch.setattr("fcos.serving.find_spec", lambda name: None if name == "prometheus_client" else name)
    message = run(monkeypatch, capsys, "missing.pt")
    assert message == 'fcos: fcos serve: not installed: prometheus_client; type: pip install "fcos-vision[serve]"\n'


def test_untrained_recipe_is_rejected(monkeypatch, capsys):
    message = run(monkeypatch, capsys, "fcos_mnv2_small", "--port", "0")
    assert "a recipe or config without trained weights" in message


@pytest.mark.parametrize(
    ("weights", "name"),
    [
        ("runs/cells/weights/best.pt", "cells"),
        ("runs/cells", "cells"),
        ("FCOS_R_50_FPN_1x.pth", "FCOS_R_50_FPN_1x"),
        ("detector.onnx", "detector"),
        ("torchvision/fcos_resnet50_fpn", "fcos_resnet50_fpn"),
        ("runs/blood cells/weights/best.pt", "blood_cells"),
        ("http://example.org/a.pt", "a"),
        ("细胞.pt", "detector"),
    ],
)
def test_model_name_is_that_of_the_run_or_file(weights, name):
    assert model_name(weights) == name


def test_help_shows_the_options(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fcos", "serve", "--help"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    out = capsys.readouterr().out
    assert "fcos serve runs/cells/weights/best.pt\n" in out
    for option in ("--host", "--port", "--max-batch", "--max-wait-ms", "--token"):
        assert option in out


def test_detector_that_cannot_run_ends_the_command(capsys):
    detector = tiny_detector()
    detector.model.forward = lambda images, sizes: 1 / 0  # pyright: ignore[reportAttributeAccessIssue]
    with (
        open_socket("127.0.0.1", 0) as opened,
        pytest.raises(ConfigError, match="the detector failed on its first image"),
    ):
        serve(detector, Settings(), opened)
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_missing_token_is_only_reported_for_other_machines(capsys):
    detector = tiny_detector()
    detector.model.forward = lambda images, sizes: 1 / 0  # pyright: ignore[reportAttributeAccessIssue]
    for host, is_reported in (("127.0.0.1", False), ("0.0.0.0", True)):
        with open_socket(host, 0) as opened, pytest.raises(ConfigError):
            serve(detector, Settings(), opened)
        assert ("other machines can use this service" in capsys.readouterr().err) == is_reported


def batches_of(items, *, max_batch, max_wait):
    """Return the sizes of the batches that process (picture, selection) pairs which are submitted at once."""
    sizes: list[int] = []
    detector = tiny_detector()
    batcher = Batcher(detector, max_batch=max_batch, max_wait=max_wait, on_batch=lambda size, _: sizes.append(size))
    futures = [batcher.submit(detector.resize(image), selection) for image, selection in items]
    batcher.start()
    detections = [future.result() for future in futures]
    batcher.close()
    return sizes, detections


def test_batches_contain_pictures_of_one_padded_shape():
    wide, high, default = picture(), picture(80, 120), Selection()
    sizes, _ = batches_of([(wide, default), (high, default)] * 3, max_batch=8, max_wait=0)
    assert sizes == [3, 3]


def test_batches_are_limited():
    sizes, _ = batches_of([(picture(), Selection())] * 5, max_batch=2, max_wait=0)
    assert sizes == [2, 2, 1]


def test_pictures_with_different_thresholds_share_a_batch_but_not_with_another_suppression():
    options: list[dict[str, Any]] = [{"threshold": 0.5}, {"threshold": 0.6}, {"nms_threshold": 0.3}]
    items = [(picture(), Selection(**each)) for each in options]
    sizes, detections = batches_of(items, max_batch=8, max_wait=0)
    assert sizes == [2, 1]
    for each, found in zip(options, detections, strict=True):
        expected = tiny_detector().predict(picture(), **each)
        torch.testing.assert_close(found.boxes, expected.boxes, atol=1e-3, rtol=0)


def test_complete_batch_does_not_wait_for_an_older_picture():
    detector = tiny_detector()
    batcher = Batcher(detector, max_batch=2, max_wait=3600)
    batcher.start()
    lonely = batcher.submit(detector.resize(picture(80, 120)), Selection())
    pair = [batcher.submit(detector.resize(picture()), Selection()) for _ in range(2)]
    assert all(len(future.result()) for future in pair)
    assert not lonely.done()
    batcher.close()  # processes what is in the queue
    assert lonely.done()


def test_pictures_do_not_wait_while_the_server_stops():
    settings = Settings(max_wait_ms=60_000, timeout=50)  # if pictures waited, the answer would be 504
    server = Server(tiny_detector(), settings)
    with open_socket("127.0.0.1", 0) as opened, ThreadPoolExecutor(2) as pool:
        url = f"http://127.0.0.1:{opened.getsockname()[1]}"
        running = pool.submit(server.run, sockets=[opened])
        while not server.started and not running.done():
            time.sleep(0.01)
        headers = {"Content-Type": "image/png"}
        answer = pool.submit(
            httpx.post, f"{url}/v1/detect", content=encoded(picture()), headers=headers, timeout=SECONDS
        )
        while not answer.done() and not server.server_state.tasks:
            time.sleep(0.01)
        server.should_exit = True
        assert answer.result().status_code == 200
        running.result()


def test_cancelled_pictures_are_not_processed():
    sizes: list[int] = []
    detector = tiny_detector()
    batcher = Batcher(detector, on_batch=lambda size, _: sizes.append(size))
    futures = [batcher.submit(detector.resize(picture()), Selection()) for _ in range(3)]
    assert futures[1].cancel()
    batcher.start()
    batcher.close()
    assert sizes == [2]
    with pytest.raises(RuntimeError, match="closed"):
        batcher.submit(detector.resize(picture()), Selection())


def test_only_one_thread_runs_the_detector():
    detector = tiny_detector()
    threads = set()
    forward = detector.model.forward

    def forward_and_note(images, sizes):
        threads.add(threading.current_thread().name)
        return forward(images, sizes)

    detector.model.forward = forward_and_note  # pyright: ignore[reportAttributeAccessIssue]
    batcher = Batcher(detector, max_batch=1)
    batcher.start()
    for future in [batcher.submit(detector.resize(picture()), Selection()) for _ in range(4)]:
        future.result()
    batcher.close()
    assert threads == {"fcos-detector"}
