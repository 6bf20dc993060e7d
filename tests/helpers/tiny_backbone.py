"""Very cheap backbones: `model.backbone.name=tiny_backbone:Tiny`, or `tiny_backbone:plain` without batch norm.

The environment variable KILL_AT="RANK:CALL" kills the process of this rank in this forward call, unless the launcher
has restarted it.
"""

from __future__ import annotations

import os
import signal

from torch import Tensor, nn

MODEL = {
    "backbone": {"name": "tiny_backbone:Tiny"},
    "fpn": {"channels": 32},
    "head": {"num_convs": 1, "prior_probability": 0.2},
    "strides": [8, 16],
    "size_ranges": [[-1, 32], [32, None]],
}
"""`model` config section of a detector with the backbone `Tiny`."""


class Tiny(nn.Module):
    """Backbone of two convolutions with maps of strides 8 and 16."""

    def __init__(self, *, norm: bool = True):
        super().__init__()
        norms = [nn.BatchNorm2d(8) if norm else nn.Identity() for _ in range(2)]
        self.c3 = nn.Sequential(nn.Conv2d(3, 8, 8, stride=8), norms[0], nn.ReLU())
        self.c4 = nn.Sequential(nn.Conv2d(8, 8, 2, stride=2), norms[1], nn.ReLU())
        self.channels = {"C3": 8, "C4": 8}
        self.strides = {"C3": 8, "C4": 16}
        self.calls = 0

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        self.calls += 1
        here = f"{os.environ.get('RANK')}:{self.calls}"
        if os.environ.get("KILL_AT") == here and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        c3 = self.c3(images)
        return {"C3": c3, "C4": self.c4(c3)}


def plain() -> Tiny:
    return Tiny(norm=False)
