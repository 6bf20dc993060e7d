"""YOLO data set of the detections."""

from __future__ import annotations

from pathlib import Path

import yaml

from ...errors import DataError
from ...files import explain_write_errors, write_text
from ...keypoints import flip_order
from ..stream import Detected
from .coco import safe_name, visible_keypoints
from .data_sets import DataSetImages
from .interface import Classes, OpenFiles
from .row_file import RowFile


class YoloWriter:
    """`yolo/data.yaml`, `yolo/labels` and `yolo/images`: boxes, with keypoints if the detector has them; no masks.

    Raises:
        DataError: the folder contains a data set with other classes, whose labels would get the wrong names.
    """

    def __init__(self, out: Path, classes: Classes, files: OpenFiles) -> None:
        self._folder = out / "yolo"
        self._pictures = DataSetImages(self._folder / "images")
        names = dict(enumerate(map(safe_name, classes.names)))
        _require_same_names(self._folder / "data.yaml", names)
        tree: dict[str, object] = {"path": ".", "train": "images", "names": names}
        if classes.num_keypoints:
            order = flip_order(classes.keypoint_layout.names, classes.keypoint_layout.pairs)
            tree |= {"kpt_shape": [classes.num_keypoints, 3]}
            tree |= {"flip_idx": list(order)} if order else {}
        with explain_write_errors(self._folder):
            (self._folder / "labels").mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
        RowFile(self._folder / "data.yaml", files, start=text)

    def write(self, detected: Detected) -> None:
        """Copy a picture and write its labels."""
        instances = detected.instances
        if instances is None:
            return
        path = self._pictures.add(detected)
        boxes = instances.boxes_normalized
        centers, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
        lines: list[str] = []
        for i, label in enumerate(instances.labels.tolist()):
            values = [f"{value:.6f}" for value in (*centers[i].tolist(), *sides[i].tolist())]
            if instances.keypoints is not None:
                height, width = instances.size
                for x, y, visibility in visible_keypoints(instances.keypoints[i]).tolist():
                    values += [f"{x / width:.6f}", f"{y / height:.6f}", f"{visibility:.0f}"]
            lines.append(" ".join([str(label), *values]) + "\n")
        write_text(self._folder / "labels" / f"{path.stem}.txt", "".join(lines))


def _require_same_names(path: Path, names: dict[int, str]) -> None:
    """Raise DataError if a data.yaml of an earlier run has other class names."""
    if not path.is_file():
        return
    try:
        earlier = yaml.safe_load(path.read_text(encoding="utf-8"))["names"]
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
        earlier = None
    if earlier not in (names, list(names.values())):
        raise DataError(
            f"{path}: the folder contains labels of other classes, which would be mixed with new ones; choose another"
            f" folder (--out), or remove {path.parent}"
        )
