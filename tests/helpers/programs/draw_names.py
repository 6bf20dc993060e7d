"""Draw boxes with names where the files *.ttf of a folder are the fonts of the system; warnings go to stdout.

Usage: draw_names.py FOLDER NAME..., which writes the pictures FOLDER/0.png, FOLDER/1.png, ...
"""

import logging
import sys
from pathlib import Path

import torch
from matplotlib import font_manager
from PIL import Image

from fcos.inference.draw import draw
from fcos.structures import Instances


def main(folder: Path, names: list[str]) -> None:
    logging.basicConfig(stream=sys.stdout, format="%(message)s", level=logging.WARNING)
    font_manager.findSystemFonts = lambda: [str(file) for file in folder.glob("*.ttf")]
    for i, name in enumerate(names):
        box = torch.tensor([[100.0, 200.0, 300.0, 400.0]])
        found = Instances(box, torch.tensor([0]), torch.tensor([0.9]), (480, 640), (name,))
        draw(Image.new("RGB", (640, 480), (120, 120, 120)), found).save(folder / f"{i}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
