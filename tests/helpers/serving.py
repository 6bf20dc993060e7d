"""A running service for tests, and images to send to it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import httpx
import numpy as np
import torch
from detectors import NAMES, TINY, tiny_config, tiny_two_stage
from PIL import Image
from processes import SECONDS

from fcos import Detector
from fcos.serving.server import Server, open_socket
from fcos.serving.settings import Settings


@contextmanager
def running(detector: Detector, **settings: Any) -> Iterator[httpx.Client]:
    """Run the service of a detector in a thread, and yield a client for it.

    Args:
        detector: the detector.
        settings: options of `Settings`.
    """
    server = Server(detector, Settings(**settings))
    with open_socket("127.0.0.1", 0) as opened:
        url = f"http://127.0.0.1:{opened.getsockname()[1]}"
        thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]})
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        assert server.started
        try:
            with httpx.Client(base_url=url, timeout=SECONDS) as client:
                yield client
        finally:
            server.should_exit = True
            thread.join()


def shape_detector() -> Detector:
    """Build an R-CNN with masks and 17 keypoints, the same in every call."""
    torch.manual_seed(0)
    heads = {"mask": {"enabled": True}, "keypoints": {"enabled": True, "conv_channels": [16]}}
    config = tiny_config(name="rcnn", **TINY["rcnn"], **heads)
    model = tiny_two_stage(config)
    torch.nn.init.constant_(model.get_parameter("heads.mask.logits.bias"), 0.05)  # masks fill most of their boxes
    return Detector(model, config, class_names=NAMES)


def picture(width: int = 120, height: int = 80, *, seed: int = 0) -> Image.Image:
    """Return a picture in which the detectors of the tests find many objects."""
    noise = np.random.default_rng(seed).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, image_format: str = "PNG", **options: Any) -> bytes:
    """Return an image as the content of a file."""
    file = BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()
