"""Backbones of the original by MODEL.BACKBONE.CONV_BODY."""

from __future__ import annotations

from typing import Literal, NamedTuple

Kind = Literal["resnet", "mobilenet", "fbnet"]
End = Literal["retinanet", "fpn", "C4", "C5", "last"]


class Body(NamedTuple):
    """Backbone of the original.

    Attributes:
        kind: kind of network, which decides the keys that configure it.
        end: maps that the heads get. `retinanet`: pyramid from C3 on with convolved extra levels; `fpn`: pyramid from
            C2 on with a max-pooled extra level; `C4`, `C5` or `last`: this map only.
        depth: depth of a ResNet or ResNeXt; 0 for other networks.
    """

    kind: Kind
    end: End
    depth: int = 0


BODIES = {
    "R-50-FPN-RETINANET": Body("resnet", "retinanet", 50),
    "R-101-FPN-RETINANET": Body("resnet", "retinanet", 101),
    "MNV2-FPN-RETINANET": Body("mobilenet", "retinanet"),
    "R-50-C4": Body("resnet", "C4", 50),
    "R-50-C5": Body("resnet", "C5", 50),
    "R-101-C4": Body("resnet", "C4", 101),
    "R-101-C5": Body("resnet", "C5", 101),
    "R-50-FPN": Body("resnet", "fpn", 50),
    "R-101-FPN": Body("resnet", "fpn", 101),
    "R-152-FPN": Body("resnet", "fpn", 152),
    "FBNet": Body("fbnet", "last"),
}
"""All backbones of the original."""
ONE_STAGE_BODIES = [name for name, body in BODIES.items() if body.end == "retinanet"]
"""Backbones with the levels of FCOS and RetinaNet."""
RCNN_BODIES = [name for name, body in BODIES.items() if body.end != "retinanet"]
"""Backbones of the original's R-CNN configs, which have no levels for FCOS."""
STRIDES: dict[End, list[int]] = {
    "retinanet": [8, 16, 32, 64, 128],
    "fpn": [4, 8, 16, 32, 64],
    "C4": [16],
    "C5": [32],
}
"""Strides of the maps that the heads get, by `Body.end`; `last` has the stride of the network's last map."""
