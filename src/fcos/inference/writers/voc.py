"""Pascal VOC data set of the detections."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from ...files import explain_write_errors, write_text
from ..stream import Detected
from .coco import safe_name
from .data_sets import DataSetImages
from .interface import Classes, OpenFiles


class VocWriter:
    """`voc/Annotations` and `voc/JPEGImages`: one XML file per picture, with continuous coordinates in pixels."""

    def __init__(self, out: Path, classes: Classes, files: OpenFiles) -> None:
        self._folder = out / "voc"
        self._pictures = DataSetImages(self._folder / "JPEGImages")
        with explain_write_errors(self._folder):
            (self._folder / "Annotations").mkdir(parents=True, exist_ok=True)

    def write(self, detected: Detected) -> None:
        """Copy a picture and write its objects."""
        instances = detected.instances
        if instances is None:
            return
        path = self._pictures.add(detected)
        root = ElementTree.Element("annotation")
        for tag, text in (("folder", "JPEGImages"), ("filename", safe_name(path.name))):
            ElementTree.SubElement(root, tag).text = text
        size = ElementTree.SubElement(root, "size")
        height, width = instances.size
        for tag, value in (("width", width), ("height", height), ("depth", 3)):
            ElementTree.SubElement(size, tag).text = str(value)
        for name, box in zip(instances.names, instances.boxes.tolist(), strict=True):
            element = ElementTree.SubElement(root, "object")
            ElementTree.SubElement(element, "name").text = safe_name(name)
            ElementTree.SubElement(element, "difficult").text = "0"
            corners = ElementTree.SubElement(element, "bndbox")
            for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True):
                ElementTree.SubElement(corners, tag).text = f"{value:.2f}"
        ElementTree.indent(root)
        text = ElementTree.tostring(root, encoding="unicode") + "\n"
        write_text(self._folder / "Annotations" / f"{path.stem}.xml", text)
