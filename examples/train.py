"""Train a detector on a folder of annotated images, then evaluate it.

    python examples/train.py DATA [key=value ...]

DATA is a folder in COCO, Pascal VOC or YOLO layout. Options override those of the recipe: `train.max_minutes=30`.
"""

import sys

import fcos


def main(data: str, *options: str) -> None:
    """Train the small recipe and print the metrics of the best weights."""
    result = fcos.train("fcos_mnv2_small", f"data={data}", *options)
    print(f"run folder: {result.run}")

    evaluation = fcos.evaluate(result.run / "weights" / "best.pt")
    print(f"AP {evaluation.metrics['AP']:.3f}, AP50 {evaluation.metrics['AP50']:.3f}")
    for name, metrics in evaluation.per_class.items():
        print(f"  {name}: AP {metrics['AP']:.3f}, {evaluation.boxes_per_class[name]} objects")


if __name__ == "__main__":
    main(*sys.argv[1:])
