"""Reader for Pascal VOC: one XML file per image, and lists of the images of each split in ImageSets/Main."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import numpy as np

from ..errors import DataError
from ..files import open_file
from ..formatting import join_some, plural, quote
from .files import IMAGE_SUFFIXES, is_hidden, match_key, read_text
from .folders import IMAGE_FOLDERS, LABEL_FOLDERS, existing, has_images, list_visible, read_start
from .source import SPLIT_NAMES, Problem, Row, Source, Split, SplitFiles, source_from_rows
from .values import parse_flag, parse_size


def find(root: Path, split: Split) -> SplitFiles | None:
    """Find a split in DIR, DIR/VOC2012 or DIR/VOCdevkit/VOC2012 (any year, but only one).

    If there are no separate lists for training and validation, trainval.txt is the training split.

    Raises:
        DataError: several folders match.
    """
    folders = [f for f in _data_folders(root) if (f / "Annotations").is_dir() and (f / "ImageSets/Main").is_dir()]
    if len(folders) > 1:
        raise DataError(f"{root}: several data sets: {', '.join(map(str, folders))}; choose one with data=FOLDER")
    for folder in folders:
        lists = {path.stem.casefold(): path for path in list_visible(folder / "ImageSets/Main", (".txt",))}
        image_list = next((lists[name] for name in SPLIT_NAMES[split] if name in lists), None)
        if image_list is None and split == "train" and not any(name in lists for name in SPLIT_NAMES["val"]):
            image_list = lists.get("trainval")
        if image_list is not None:
            return SplitFiles(folder / "Annotations", (_image_folder(folder, folder / "JPEGImages"),), (image_list,))
    return None


def recognize(path: Path) -> SplitFiles | None:
    """Recognise a folder with XML files next to the images, or in a folder such as Annotations.

    ImageSets/Main/default.txt (CVAT) selects the images, if it exists; otherwise all XML files are used.
    """
    for root in _data_folders(path):
        for folder in (*existing(root, LABEL_FOLDERS), root):
            xml_files = list_visible(folder, (".xml",))
            if xml_files and re.search(r"<annotation[\s>]", read_start(xml_files[0])):
                image_list = root / "ImageSets/Main/default.txt"
                lists = (image_list,) if image_list.is_file() else ()
                return SplitFiles(folder, (_image_folder(root, folder),), lists)
    return None


def _data_folders(root: Path) -> list[Path]:
    year_folders = [folder for parent in (root, root / "VOCdevkit") for folder in sorted(parent.glob("VOC[0-9]*"))]
    return [root, *year_folders] if root.is_dir() else []


def _image_folder(root: Path, xml_folder: Path) -> Path:
    """Return the folder with the images: `xml_folder`, or one with a usual name; `root` if there is no such folder."""
    folders = (xml_folder, *existing(root, IMAGE_FOLDERS))
    return next((folder for folder in folders if has_images(folder)), root)


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
    xml_of, image_of = _Index(folder, (".xml",)), _Index(images, IMAGE_SUFFIXES)
    names = list(class_names if class_names is not None else _collect_class_names(xml_of.files))
    labels = {name: label for label, name in enumerate(names)}
    file_names, sizes, xml_files, rows = [], [], [], []
    problems = [] if files.lists else _check_images(image_of, xml_of)
    seen: set[str] = set()
    for name in _read_image_names(files, xml_of):
        xml_file = xml_of.find(name) or folder / f"{name}.xml"
        if name in seen:
            problems.append(Problem("duplicated image", str(files.lists[0]), name, "is listed twice"))
            continue
        seen.add(name)
        try:
            tree = _parse_xml(xml_file)
        except FileNotFoundError:
            problems.append(Problem("missing annotation file", str(xml_file), "", "no such file"))
            continue
        except (OSError, ValueError) as error:
            problems.append(Problem("broken XML", str(xml_file), "", str(error)))
            continue
        for number, element in enumerate(tree.findall("object"), start=1):
            try:
                row = _read_object(element, len(file_names), number, labels)
            except ValueError as error:
                problems.append(Problem("broken object", str(xml_file), f"object {number}", str(error)))
            else:
                rows.append(row)
        image = image_of.find(name)
        file_names.append(image.name if image else tree.findtext("filename", "").strip() or f"{name}.jpg")
        sizes.append(parse_size(tree.findtext("size/height"), tree.findtext("size/width")))
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


class _Index:
    """Files of a folder by name without suffix. Unicode form does not matter, but an exact match is preferred."""

    def __init__(self, folder: Path, suffixes: Sequence[str]) -> None:
        paths = sorted(folder.glob("*"))
        self.files = {_stem(p): p for p in paths if p.suffix.lower() in suffixes and not is_hidden(p.name)}
        self._by_key = {match_key(stem): path for stem, path in self.files.items()}

    def find(self, stem: str) -> Path | None:
        """Return the file with a name, or None."""
        return self.files.get(stem) or self._by_key.get(match_key(stem))


def _stem(path: Path) -> str:
    """Return a file name without suffix: `x` for x.jpg, x.xml and x.jpg.xml."""
    return _without_image_suffix(path.stem if path.suffix.lower() == ".xml" else path.name)


def _without_image_suffix(name: str) -> str:
    return name[: -len(Path(name).suffix)] if name.lower().endswith(IMAGE_SUFFIXES) else name


def _check_images(image_of: _Index, xml_of: _Index) -> list[Problem]:
    """Report images without an XML file if most images have one."""
    without_xml = [str(path) for stem, path in image_of.files.items() if xml_of.find(stem) is None]
    if not 0 < 2 * len(without_xml) < len(image_of.files):
        return []
    message = f"{plural(len(without_xml), 'image')} without an XML file, not used: {join_some(without_xml)}"
    return [Problem("image without annotation file", str(Path(without_xml[0]).parent), "", message, "warning")]


def _read_image_names(files: SplitFiles, xml_of: _Index) -> list[str]:
    """Return the image names of a split without suffix. As in VOC's per-class lists, a flag may follow the name."""
    if not files.lists:
        return list(xml_of.files)
    lines = [line.strip() for path in files.lists for line in read_text(path).splitlines() if line.strip()]
    return [
        _without_image_suffix(line if xml_of.find(_without_image_suffix(line)) else line.split()[0]) for line in lines
    ]


def _parse_xml(path: Path) -> Element:
    """Return the root element of an annotation file.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is not XML in a known encoding, or not an annotation.
    """
    try:
        with open_file(path) as file:
            root = ElementTree.parse(file).getroot()
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # LookupError: unknown encoding
        raise ValueError(f"not valid XML: {error}") from None
    if root.tag != "annotation":
        raise ValueError(f"expected the root element <annotation>, found <{root.tag:.60}>")
    if any(child.tag.startswith("{") for child in root):
        raise ValueError("expected elements without XML namespaces")
    return root


def _collect_class_names(xml_files: Mapping[str, Path]) -> list[str]:
    names: set[str] = set()
    for path in xml_files.values():
        try:
            names.update((e.findtext("name") or "").strip() for e in _parse_xml(path).findall("object"))
        except (OSError, ValueError):
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
        raise ValueError(f"bndbox: expected the numbers xmin, ymin, xmax, ymax, found {quote(texts)}")
    difficult = element.findtext("difficult")
    try:
        is_difficult = parse_flag(difficult)
    except ValueError:
        raise ValueError(f"expected difficult (0 or 1), found {quote(difficult)}") from None
    return Row(image, number, labels.setdefault(name, len(labels)), box, is_difficult)
