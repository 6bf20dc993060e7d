r"""Train FCOS on a backbone of your own.

    python examples/custom_backbone.py DATA [key=value ...]

On the command line, with this folder on PYTHONPATH:

    fcos train fcos_mnv2_small data=DATA model.backbone.name=custom_backbone:TinyNet model.backbone.options.width=32 \
      train.lr_factors={}
"""

import sys

from torch import Tensor, nn

import fcos


class TinyNet(nn.Module):
    """A small network with feature maps of strides 8, 16 and 32.

    A backbone has `channels` and `strides`, two dictionaries with the same keys, finest map first. `forward` returns
    the maps under these keys; the sides of a map are those of the image divided by its stride, rounded up.
    """

    def __init__(self, width: int = 16):
        super().__init__()
        self.stem = nn.Sequential(block(3, width), block(width, width), block(width, width))
        self.stage4 = block(width, 2 * width)
        self.stage5 = block(2 * width, 4 * width)
        self.channels = {"C3": width, "C4": 2 * width, "C5": 4 * width}
        self.strides = {"C3": 8, "C4": 16, "C5": 32}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map normalised images [N, 3, H, W] to feature maps."""
        c3 = self.stem(images)
        c4 = self.stage4(c3)
        return {"C3": c3, "C4": c4, "C5": self.stage5(c4)}


def block(channels: int, out_channels: int) -> nn.Module:
    """Halve the resolution."""
    return nn.Sequential(nn.Conv2d(channels, out_channels, 3, 2, 1), nn.BatchNorm2d(out_channels), nn.ReLU())


def main(data: str, *options: str) -> None:
    """Train a detector on this backbone from random weights."""
    backbone = ["model.backbone.name=custom_backbone:TinyNet", "model.backbone.options.width=32", "train.lr_factors={}"]
    result = fcos.train("fcos_mnv2_small", f"data={data}", *backbone, *options)
    print(f"run folder: {result.run}, AP {result.metrics.get('AP', float('nan')):.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
