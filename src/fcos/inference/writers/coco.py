"""COCO data set of the detections."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from ...files import explain_write_errors
from ...formatting import UNPRINTABLE
from ..stream import Detected
from .data_sets import DataSetImages
from .interface import Classes, OpenFiles
from .row_file import RowFile


class CocoWriter:
    """`coco/annotations.json` and `coco/images`, a data set whose annotations have the scores of the detections.

    The file appears when it is complete.
    """

    def __init__(self, out: Path, classes: Classes, files: OpenFiles) -> None:
        folder = out / "coco"
        self._classes = classes
        self._pictures = DataSetImages(folder / "images")
        with explain_write_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            images = tempfile.TemporaryFile("w+", encoding="utf-8", dir=folder)  # noqa: SIM115 (the next line)
            self._images = files.cleanup.enter_context(images)
        start = '{"annotations": [\n'
        self._file = RowFile(folder / "annotations.json", files, start=start, end=self._end, separator=",\n")
        self._num_images = self._num_annotations = 0

    def write(self, detected: Detected) -> None:
        """Copy a picture and append its annotations."""
        instances = detected.instances
        if instances is None:
            return
        name = self._pictures.add(detected).name
        number, rows = self._num_images + 1, self._annotations(detected)
        height, width = instances.size
        image = {"id": number, "file_name": f"images/{name}", "height": height, "width": width}
        with explain_write_errors(self._file.path):
            self._images.write((",\n" if number > 1 else "") + json.dumps(image))
        self._num_images = number
        if rows:
            self._file.write(",\n".join(json.dumps(row) for row in rows))
            self._num_annotations += len(rows)

    def _end(self) -> str:
        """Return images and categories."""
        layout, keypoints = self._classes.keypoint_layout, {}
        if layout.names:
            keypoints = {"keypoints": layout.names, "skeleton": [[a + 1, b + 1] for a, b in layout.skeleton]}
        elif self._classes.num_keypoints:
            keypoints = {"keypoints": [str(i) for i in range(self._classes.num_keypoints)], "skeleton": []}
        categories = [
            {"id": i, "name": name, **keypoints} for i, name in zip(self._classes.ids, self._classes.names, strict=True)
        ]
        with self._images as file:
            file.seek(0)
            images = file.read()
        return f'\n], "images": [\n{images}\n], "categories": {json.dumps(categories)}}}\n'

    def _annotations(self, detected: Detected) -> list[dict[str, Any]]:
        from hotcoco import mask as rle

        instances = detected.instances
        assert instances is not None
        masks, keypoints = instances.mask_codes(), instances.keypoints
        labels, scores, boxes = instances.labels.tolist(), instances.scores.tolist(), instances.boxes_xywh.tolist()
        rows: list[dict[str, Any]] = []
        for i, (label, score, box) in enumerate(zip(labels, scores, boxes, strict=True)):
            row: dict[str, Any] = {
                "id": self._num_annotations + i + 1,
                "image_id": self._num_images + 1,
                "category_id": self._classes.ids[label],
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": 0,
                "score": score,
            }
            if masks is not None:
                row |= {"segmentation": masks[i], "area": float(rle.area(masks[i]))}
            if keypoints is not None:
                points = visible_keypoints(keypoints[i])
                row |= {"keypoints": points.flatten().tolist(), "num_keypoints": int((points[:, 2] > 0).sum())}
            rows.append(row)
        return rows


def visible_keypoints(keypoints: torch.Tensor) -> torch.Tensor:
    """Return x, y and visibility of keypoints [P, 3]: 2 for those that pictures show, otherwise zeros."""
    is_shown = keypoints[:, 2:] > 0
    return torch.cat([keypoints[:, :2], torch.full_like(keypoints[:, 2:], 2)], dim=1) * is_shown


def safe_name(name: str) -> str:
    """Return a class name without characters that text files cannot hold."""
    return UNPRINTABLE.sub("_", name)
