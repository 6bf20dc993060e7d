"""Train with augmentations of your own, from torchvision.transforms.v2.

    python examples/custom_transforms.py DATA [key=value ...]

On the command line, with this folder on PYTHONPATH:

    fcos train fcos_mnv2_small data=DATA data.transforms=custom_transforms:augment
"""

import sys

from torchvision.transforms import v2

import fcos

# Called as augment(image, target) with a uint8 RGB image and {"boxes": ..., "labels": ...}, after resizing.
augment = v2.Compose(
    [
        v2.RandomHorizontalFlip(),
        v2.RandomPhotometricDistort(p=0.5),
        v2.RandomRotation((-10, 10)),
        v2.RandomIoUCrop(),
        v2.SanitizeBoundingBoxes(),
    ]
)


def main(data: str, *options: str) -> None:
    """Train the small recipe with these augmentations instead of its own."""
    replaced = ["data.flip=0", "data.zoom=[1,1]", "data.color_jitter=0", "data.transforms=custom_transforms:augment"]
    result = fcos.train("fcos_mnv2_small", f"data={data}", *replaced, *options)
    print(f"run folder: {result.run}, AP {result.metrics.get('AP', float('nan')):.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
