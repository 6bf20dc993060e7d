"""Compare average precision on large images of small objects with and without tiles.

    python benchmarks/tiling.py --weights RUN/weights/best.pt --data DIR [--side 4] [--tile 640] [--overlap 0.2]

Each large image is a square of `side` x `side` images of the val split, at their own size. They are detected as a
whole, and tile by tile. The average precision on the single images is the best that can be expected.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from common import machine, markdown, write
from PIL import Image

import fcos
from fcos.data import load_annotations
from fcos.data.dataset import Annotations
from fcos.evaluation.coco_metrics import coco_metrics, to_coco_results
from fcos.recipes import load_config

NAME = "tiling"
METRICS = ("AP", "AP50", "APs", "APm", "APl")
LIMIT = 10_000  # detections of an image that count; COCO's 100 are fewer than the objects of a large image


class Mosaics:
    """Large images made of the images of a split, with their annotations in COCO's form."""

    def __init__(self, annotations: Annotations, side: int, count: int):
        self._annotations, self._side = annotations, side
        self._members = [range(i * side**2, (i + 1) * side**2) for i in range(count)]
        height, width = annotations.sizes.max(axis=0).tolist()
        self._cell = width, height
        tree = annotations.to_coco()
        positions = {image["id"]: i for i, image in enumerate(tree["images"])}
        self.truth: dict[str, Any] = {"images": [], "annotations": [], "categories": tree["categories"]}
        for number in range(count):
            self.truth["images"].append({"id": number, "width": side * width, "height": side * height})
        for annotation in tree["annotations"]:
            number, place = divmod(positions[annotation["image_id"]], side**2)
            if number < count:
                left, top = self._corner(place)
                x, y, *extent = annotation["bbox"]
                annotation |= {"image_id": number, "bbox": [x + left, y + top, *extent]}
                self.truth["annotations"].append(annotation)

    def _corner(self, place: int) -> tuple[int, int]:
        row, column = divmod(place, self._side)
        return column * self._cell[0], row * self._cell[1]

    def image(self, number: int) -> Image.Image:
        """Return a large image."""
        width, height = self._cell
        mosaic = Image.new("RGB", (self._side * width, self._side * height))
        for place, index in enumerate(self._members[number]):
            mosaic.paste(self._annotations.open(index), self._corner(place))
        return mosaic

    def single(self, number: int, detect: Callable[[Image.Image], fcos.Instances]) -> list[fcos.Instances]:
        """Detect in each of the images of a large image, and return the detections in its pixels."""
        width, height = (self._side * length for length in self._cell)
        found: list[fcos.Instances] = []
        for place, index in enumerate(self._members[number]):
            left, top = self._corner(place)
            found.append(detect(self._annotations.open(index)).crop(-left, -top, width - left, height - top))
        return found


def evaluate(
    detector: fcos.Detector, mosaics: Mosaics, parts: Sequence[list[fcos.Instances]]
) -> dict[str, float | None]:
    """Return the metrics of detections, a list of parts for every large image; None: no objects of this size."""
    results = [
        row
        for number, of_image in enumerate(parts)
        for part in of_image
        for row in to_coco_results(part, image_id=number, category_ids=detector.category_ids)
    ]
    overall = coco_metrics(mosaics.truth, results, max_detections=LIMIT).overall
    return {name: None if math.isnan(value) else value for name, value in overall.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--side", type=int, default=4, help="images per row and column")
    parser.add_argument("--tile", type=int, default=640, help="pixels")
    parser.add_argument("--overlap", type=float, default=0.2)
    parser.add_argument("--images", type=int, default=8, help="number of large images")
    options = parser.parse_args()
    detector = fcos.load(options.weights)
    annotations = load_annotations(load_config("fcos_mnv2_small", [f"data={options.data}"]).data, "val")
    assert annotations is not None, f"{options.data}: expected data with a val split"
    assert annotations.category_ids == detector.category_ids, "the data has other classes than the weights"
    count = min(options.images, len(annotations) // options.side**2)
    assert count, f"expected at least {options.side**2} val images, found {len(annotations)}"
    mosaics = Mosaics(annotations, options.side, count)
    tiles = {"tile": options.tile, "overlap": options.overlap}

    def predict(image: Image.Image, **more: Any) -> fcos.Instances:
        found: Any = detector.predict(image, threshold=0.0, max_detections=0, **more)
        return found

    sides: dict[str, list[list[fcos.Instances]]] = {
        "single images": [mosaics.single(number, predict) for number in range(count)],
        "as a whole": [[predict(mosaics.image(number))] for number in range(count)],
        f"tiles of {options.tile}, overlap {options.overlap:g}": [
            [predict(mosaics.image(number), **tiles)] for number in range(count)
        ],
    }
    metrics = {name: evaluate(detector, mosaics, parts) for name, parts in sides.items()}
    rows = [
        [name, *("-" if values[key] is None else f"{values[key]:.3f}" for key in METRICS)]
        for name, values in metrics.items()
    ]
    objects = len(mosaics.truth["annotations"]) / count
    title = f"Tiles: {count} images of {options.side}x{options.side} val images, {objects:.0f} objects each"
    area = float(np.median([annotation["area"] for annotation in mosaics.truth["annotations"]]))
    used = {"side": options.side, "images": count, **tiles}
    data = {"options": used, "recipe": repr(detector), "metrics": metrics, "median_area": area}
    write(NAME, title, machine(), markdown(["detected", *METRICS], rows), data)


if __name__ == "__main__":
    main()
