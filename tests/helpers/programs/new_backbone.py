"""Train and load a detector on the backbone `patches`, which has been added to the package.

Usage: new_backbone.py FOLDER; prints facts as JSON.
"""

import json
import sys
from pathlib import Path

from tiny_data import write_coco

import fcos
from fcos.config import FCOSConfig
from fcos.config.backbones import BACKBONES
from fcos.config.options import options_of
from fcos.config.text import annotated_yaml
from fcos.models import build_model
from fcos.training.loop import train

OPTIONS = [
    "model.backbone.name=patches",
    "model.backbone.width=6",
    "model.fpn.channels=32",
    "model.head.num_convs=1",
    "model.strides=[8,16]",
    "model.size_ranges=[[-1,32],[32,null]]",
]


def mistake(*overrides: str) -> str:
    try:
        fcos.load_config(None, list(overrides))
    except fcos.ConfigError as error:
        return str(error)
    raise AssertionError("no mistake was found")


def main(folder: Path) -> None:
    data = write_coco(folder / "data")
    write_coco(data, split="val")
    run = [f"data={data}", "data.workers=0", "train.iterations=2", "train.batch_size=2", "device=cpu"]
    config = fcos.load_config(None, [*OPTIONS, *run, "data.short_side=32", f"output_dir={folder / 'run'}"])
    backbone = config.model.backbone
    weights = train(config).run / "weights" / "last.pt"
    facts = {
        "package": str(Path(fcos.__file__).parent),
        "channels": build_model(config.model, num_classes=2).get_submodule("backbone").channels,
        "options": backbone.model_dump(),
        "loaded": fcos.load(weights, device="cpu").config.model.backbone.model_dump(),
        "known": list(BACKBONES),
        "wrong_name": mistake("model.backbone.name=patch"),
        "wrong_option": mistake("model.backbone.name=patches", "model.backbone.height=3"),
        "roles": sorted(options_of(FCOSConfig)["backbone.width"].roles),
        "explained": "# Channels of every map." in annotated_yaml(config),
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
