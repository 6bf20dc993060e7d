"""Reader for Pascal VOC: one XML file per image, and lists of the images of each split in ImageSets/Main."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from reprlib import repr as short_repr
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import numpy as np

from ..errors import DataError
from .images import IMAGE_SUFFIXES
from .source import SPLIT_NAMES, Problem, Row, Source, Split, SplitFiles, read_text, source_from_rows
from .values import parse_flag


def find(root: Path, split: Split) -> SplitFiles | None:
    """Find a split in DIR, DIR/VOC2012 or DIR/VOCdevkit/VOC2012 (any year, but only one).

    Raises:
        DataError: several folders match.
    """
    year_folders = [folder for parent in (root, root / "VOCdevkit") for folder in sorted(parent.glob("VOC[0-9]*"))]
    folders = [f for f in (root, *year_folders) if (f / "Annotations").is_dir() and (f / "ImageSets/Main").is_dir()]
    if len(folders) > 1:
        raise DataError(f"{root}: several data sets: {', '.join(map(str, folders))}; choose one with data=FOLDER")
    for folder in folders:
        for name in SPLIT_NAMES[split]:
            image_list = folder / "ImageSets/Main" / f"{name}.txt"
            if image_list.is_file():
                return SplitFiles(folder / "Annotations", (folder / "JPEGImages",), (image_list,))
    return None


def read(files: SplitFiles, class_names: Sequence[str] | None) -> Source:
    """Read the XML files of a split.

    Coordinates are used unchanged as continuous pixels; nothing is subtracted. `difficult` objects become crowd.
    Without `class_names`, the classes are all names in the folder of XML files, sorted, so all splits share them.

    Raises:
        DataError: the list of images or the folder of XML files is missing.
    """
    assert files.annotations is not None
    folder, images = files.annotations, files.images[0]
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of XML files")
    names = list(class_names if class_names is not None else _collect_class_names(folder))
    labels = {name: label for label, name in enumerate(names)}
    by_stem = {p.stem: p.name for p in sorted(images.glob("*")) if p.suffix.lower() in IMAGE_SUFFIXES}
    file_names, sizes, xml_files, rows, problems = [], [], [], [], []
    seen: set[str] = set()
    for name in _read_image_names(files, folder):
        xml_file = folder / f"{name}.xml"
        if name in seen:
            problems.append(Problem("duplicated image", str(files.lists[0]), name, "is listed twice"))
            continue
        seen.add(name)
        try:
            tree = ElementTree.parse(xml_file).getroot()
        except FileNotFoundError:
            problems.append(Problem("missing annotation file", str(xml_file), "", "no such file"))
            continue
        except (OSError, ValueError, ElementTree.ParseError) as error:
            problems.append(Problem("broken XML", str(xml_file), "", f"not valid XML: {error}"))
            continue
        for number, element in enumerate(tree.findall("object"), start=1):
            try:
                row = _read_object(element, len(file_names), number, labels)
            except ValueError as error:
                problems.append(Problem("broken object", str(xml_file), f"object {number}", str(error)))
            else:
                rows.append(row)
        file_names.append(by_stem.get(name) or tree.findtext("filename", "").strip() or f"{name}.jpg")
        sizes.append(_read_size(tree))
        xml_files.append(xml_file)
    return source_from_rows(
        rows,
        root=images,
        file_names=file_names,
        sizes=np.array(sizes, dtype=np.int32).reshape(-1, 2),
        annotation_files=xml_files,
        unit="object",
        class_names=list(labels),
        category_ids=list(range(1, len(labels) + 1)),
        problems=problems,
    )


def _read_image_names(files: SplitFiles, folder: Path) -> list[str]:
    """Return the image names of a split without suffix. As in VOC's per-class lists, a flag may follow the name."""
    if not files.lists:
        return sorted(p.stem for p in folder.glob("*.xml"))
    lines = [line.strip() for path in files.lists for line in read_text(path).splitlines() if line.strip()]
    names = [line if (folder / f"{line}.xml").is_file() else line.split()[0] for line in lines]
    return [name[: -len(Path(name).suffix)] if name.lower().endswith(IMAGE_SUFFIXES) else name for name in names]


def _collect_class_names(folder: Path) -> list[str]:
    names: set[str] = set()
    for path in folder.glob("*.xml"):
        try:
            names.update(
                (e.findtext("name") or "").strip() for e in ElementTree.parse(path).getroot().findall("object")
            )
        except (OSError, ValueError, ElementTree.ParseError):
            continue  # reported when the split that contains the file is read
    return sorted(names - {""})


def _read_object(element: Element, image: int, number: int, labels: dict[str, int]) -> Row:
    """Read one object; a new class is added to `labels`.

    Raises:
        ValueError: the object has no name or no valid box, or its `difficult` is not a flag.
    """
    name = (element.findtext("name") or "").strip()
    if not name:
        raise ValueError("has no name")
    texts = [element.findtext(f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax")]
    try:
        box = [float(text) for text in texts if text is not None]
    except ValueError:
        box = []
    if len(box) != 4:
        raise ValueError(f"bndbox: expected the numbers xmin, ymin, xmax, ymax, found {short_repr(texts)}")
    difficult = element.findtext("difficult")
    try:
        is_difficult = parse_flag(difficult)
    except ValueError:
        raise ValueError(f"expected difficult (0 or 1), found {short_repr(difficult)}") from None
    return Row(image, number, labels.setdefault(name, len(labels)), box, is_difficult)


def _read_size(tree: Element) -> tuple[int, int]:
    """Return (height, width) as annotated, or zeros if absent or invalid; the image file then gives the size."""
    texts = [(tree.findtext(f"size/{key}") or "").strip() for key in ("height", "width")]
    height, width = (int(text) if text.isdecimal() and len(text) < 10 else 0 for text in texts)  # fits into int32
    return (height, width) if height and width else (0, 0)
