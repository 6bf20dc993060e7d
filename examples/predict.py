"""Detect objects in images with trained weights.

    python examples/predict.py WEIGHTS IMAGE...    (files, folders or globs)

WEIGHTS is the best.pt of a run, a file of another project, or `torchvision/fcos_resnet50_fpn` (downloaded once).
"""

import sys
from pathlib import Path

import fcos


def main(weights: str, *images: str) -> None:
    """Print the detections of each image and save a picture of them in the current folder."""
    detector = fcos.load(weights)
    for detections in detector.predict(images):
        path = detections.source
        for name, score, box in zip(
            detections.names, detections.scores.tolist(), detections.boxes.tolist(), strict=True
        ):
            print(f"{path}: {name} {score:.2f} at {[round(value) for value in box]}")  # x1, y1, x2, y2 in pixels
        detections.save(f"{Path(path).stem}_detections.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
