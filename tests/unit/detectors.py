"""A detector that is small, untrained and talkative, for tests of what is around it."""

import torch

from fcos.config import Config
from fcos.config.overrides import validate
from fcos.models import FCOS, build_model

NAMES = ("cat", "dog", "owl")
CATEGORY_IDS = (18, 3, 90)


def tiny_config(**model) -> Config:
    return validate(
        {
            "model": {
                "backbone": {"name": "mobilenet_v2", "weights": None},
                "fpn": {"channels": 64},
                "head": {"num_convs": 1},
                "max_detections": 20,
                **model,
            },
            "data": {"short_side": 96, "max_side": 160, "workers": 0},
        },
        where="test",
    )


def tiny_model(config: Config) -> FCOS:
    """Its logits spread over positive and negative values, so that it detects something everywhere."""
    model = build_model(config.model, num_classes=len(NAMES), pretrained=False)
    torch.nn.init.normal_(model.head.logits.weight, std=0.2)
    state = model.state_dict()
    state["head.logits.bias"].zero_()
    state["head.ltrb.bias"].fill_(3.0)  # boxes of about 40 pixels
    return model.eval()
