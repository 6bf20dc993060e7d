"""Small videos for tests."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image


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
