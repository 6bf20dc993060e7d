"""Small videos for tests, and detection in them."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from fcos import Detector
from fcos.inference.sources import predict_files
from fcos.inference.stream import Detected


def write_video(path: Path, *, num_frames: int = 5, size: tuple[int, int] = (64, 48), codec: str = "mpeg4") -> Path:
    """Write a video of 10 frames per second whose grey level tells the number of the frame, see `frame_number`."""
    with av.open(str(path), "w", format="mpjpeg" if codec == "mjpeg" else None) as container:
        stream = container.add_stream(codec, rate=10)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.gop_size = 1  # so that a damaged frame does not damage the next ones
        for number in range(num_frames):
            frame = av.VideoFrame.from_image(Image.new("RGB", size, (10 * number + 20,) * 3))
            frame.pts, frame.time_base = number, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def frame_number(image: Image.Image) -> int:
    """Return the number of a frame of `write_video`."""
    return round((float(np.asarray(image).mean()) - 20) / 10)


def predict(
    detector: Detector, sources: Sequence[str | Path], out: Path, **options: Any
) -> tuple[bool, list[Detected]]:
    """Call `predict_files` and return its result, and the results of the pictures and frames."""
    results: list[Detected] = []
    success = predict_files(detector, [str(source) for source in sources], out, report=results.append, **options)
    return success, results
