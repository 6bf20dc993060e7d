"""Evaluate a checkpoint of another project (the original FCOS, AdelaiDet, detectron2, mmdetection, torchvision).

    python examples/evaluate_checkpoint.py CHECKPOINT DATA [CONFIG]

CONFIG is needed for checkpoints of the original only: its YAML file, or the recipe of the same name. DATA must have the
classes of the checkpoint.
"""

import sys

import fcos


def main(checkpoint: str, data: str, config: str | None = None) -> None:
    """Print the COCO metrics, and convert the checkpoint to our format, which contains its config and classes."""
    evaluation = fcos.evaluate(checkpoint, f"data={data}", config=config)
    for name, value in evaluation.metrics.items():
        print(f"{name:6} {value:.3f}")
    print(fcos.convert(checkpoint, "converted.pt", config=config))
    detector = fcos.load("converted.pt")
    print(f"converted.pt detects {len(detector.class_names)} classes with the same numbers")


if __name__ == "__main__":
    main(*sys.argv[1:])
