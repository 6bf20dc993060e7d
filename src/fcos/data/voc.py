"""Reader for Pascal VOC: one XML file per image, and lists of the images of each split in ImageSets/Main.

Some images have masks in SegmentationObject, see `voc_masks.py`; the lists in ImageSets/Segmentation name them.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from xml.etree.ElementTree import Element

from ..errors import DataError
from ..formatting import join_some, plural, quote
from .files import IMAGE_SUFFIXES, is_hidden, match_key, read_text, read_xml
from .folders import IMAGE_FOLDERS, LABEL_FOLDERS, existing, has_images, list_visible, read_start
from .rows import Row, source_from_rows
from .source import SPLIT_NAMES, Problem, Source, Split, SplitFiles
from .values import parse_flag, parse_size
from .voc_masks import add_masks

_NUM_SAMPLED = 20
"""Number of XML files that are searched for an annotation to recognise a folder."""


def find(root: Path, split: Split) -> SplitFiles | None:
    """Find a split in DIR, DIR/VOC2012 or DIR/VOCdevkit/VOC2012 (any year, but only one).

    The lists of images are in ImageSets/Main, or else next to Annotations; those of the images with masks have the same
    names in ImageSets/Segmentation. If there are no separate lists for training
    and validation, trainval.txt is the training split.

    Raises:
        DataError: several folders match.
    """
    folders = [f for f in _data_folders(root) if (f / "Annotations").is_dir() and _find_lists(f)]
    if len(folders) > 1:
        raise DataError(f"{root}: found several data sets: {', '.join(map(str, folders))}; choose one with data=FOLDER")
    for folder in folders:
        lists = _find_lists(folder)
        image_list = next((lists[name] for name in SPLIT_NAMES[split] if name in lists), None)
        if image_list is None and split == "train" and not any(name in lists for name in SPLIT_NAMES["val"]):
            image_list = lists.get("trainval")
        if image_list is not None:
            mask_list = folder / "ImageSets/Segmentation" / image_list.name
            mask_lists = (mask_list,) if mask_list.is_file() else ()
            images = _image_folder(folder, folder / "JPEGImages")
            return SplitFiles(folder / "Annotations", (images,), (image_list,), mask_lists)
    return None


def _find_lists(folder: Path) -> dict[str, Path]:
    """Return the lists of images by split name, in lower case: train, val, trainval, test and the like."""
    known = {"trainval", *(name for names in SPLIT_NAMES.values() for name in names)}
    for place in (folder / "ImageSets/Main", folder):
        paths = {path.stem.casefold(): path for path in list_visible(place, (".txt",))}
        if lists := {name: path for name, path in paths.items() if name in known}:
            return lists
    return {}


def recognize(path: Path) -> SplitFiles | None:
    """Recognise a folder with XML files next to the images, or in a folder such as Annotations.

    ImageSets/Main/default.txt (CVAT) selects the images, if it exists; otherwise all XML files are used.
    """
    for root in _data_folders(path):
        for folder in (*existing(root, LABEL_FOLDERS), root):
            xml_files = list_visible(folder, (".xml",))
            # Not only the first: it may be damaged, which reading reports.
            if any(re.search(r"<annotation[\s>]", read_start(file)) for file in xml_files[:_NUM_SAMPLED]):
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

    Coordinates are used unchanged as continuous pixels; nothing is subtracted. `difficult` objects become crowd. Masks
    are read from the folder SegmentationObject next to `files.annotations`.
    Without `class_names`, the classes are all names in the folder of XML files, sorted, so all splits share them.

    Raises:
        DataError: the list of images or the folder of XML files is missing.
    """
    assert files.annotations is not None
    folder, images = files.annotations, files.images[0]
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of XML files")
    xml_of, image_of = _Index(folder, (".xml",)), _Index(images, IMAGE_SUFFIXES)
    masks_of = _Index(folder.parent / "SegmentationObject", (".png",))
    given = list(class_names if class_names is not None else _collect_class_names(xml_of.files))
    labels = {name: label for label, name in enumerate(given)}
    file_names, sizes, xml_files = [], [], []
    rows: list[Row] = []
    names, problems = _read_image_names(files, xml_of) if files.lists else (list(xml_of.files), [])
    if not files.lists:
        problems += _check_images(image_of, xml_of)
    for name in names:
        xml_file = xml_of.find(name) or folder / f"{name}.xml"
        try:
            tree = _parse_xml(xml_file)
        except DataError as error:
            message = str(error).removeprefix(f"{xml_file}: ")
            kind = "missing annotation file" if message == "no such file" else "broken XML"
            problems.append(Problem(kind, str(xml_file), "", message))
            continue
        try:
            file_name = _image_name(tree, name, image_of)
        except ValueError as error:
            problems.append(Problem("annotation file of several images", str(xml_file), "", str(error)))
            continue
        new_rows, new_problems = _read_objects(tree, xml_file, len(file_names), labels)
        problems += new_problems
        size = parse_size(tree.findtext("size/height"), tree.findtext("size/width"))
        mask_file = masks_of.find(name) if files.masks else None
        if mask_file is not None:
            num_objects = len(tree.findall("object"))
            try:
                new_rows, new_problems, size = add_masks(new_rows, mask_file, num_objects=num_objects, size=size)
            except DataError as error:
                problems.append(Problem("broken mask", str(mask_file), "", str(error).removeprefix(f"{mask_file}: ")))
                continue
            problems += new_problems
        rows += new_rows
        file_names.append(file_name)
        sizes.append(size)
        xml_files.append(xml_file)
    return source_from_rows(
        rows,
        with_masks=files.masks and bool(masks_of.files),
        root=images,
        file_names=file_names,
        sizes=sizes,
        annotation_files=xml_files,
        unit="object",
        class_names=list(labels),
        category_ids=list(range(1, len(labels) + 1)),
        problems=problems,
    )


class _Index:
    """Files of a folder by name without suffix. Unicode form does not matter, but an exact match is preferred."""

    def __init__(self, folder: Path, suffixes: Sequence[str]) -> None:
        paths = [p for p in sorted(folder.glob("*")) if p.suffix.lower() in suffixes and not is_hidden(p.name)]
        self.files = {_stem(path): path for path in paths}
        self._by_key = {match_key(stem): path for stem, path in self.files.items()}
        self._names: dict[str, list[str]] = defaultdict(list)
        for path in paths:
            self._names[_stem(path)].append(path.name)

    def find(self, stem: str) -> Path | None:
        """Return the file with a name, or None."""
        return self.files.get(stem) or self._by_key.get(match_key(stem))

    def find_names(self, stem: str) -> list[str]:
        """Return the names of all files with this name without suffix."""
        return self._names.get(stem, [])


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


def _read_image_names(files: SplitFiles, xml_of: _Index) -> tuple[list[str], list[Problem]]:
    """Return the listed image names of a split without folder and suffix, and a problem for each repeated name.

    As in VOC's per-class lists, a flag may follow the name.
    """
    names: dict[str, Path] = {}
    problems = []
    for path in files.lists:
        for line in filter(None, map(str.strip, read_text(path).splitlines())):
            # Also with an XML file as the name: `Annotations/a.xml`.
            candidates = [_stem(Path(text.replace("\\", "/"))) for text in (line, line.split()[0])]
            name = next((candidate for candidate in candidates if xml_of.find(candidate)), candidates[1])
            if name in names:
                problems.append(
                    Problem("duplicated image", str(path), name, "is listed twice; remove one of the lines")
                )
            names.setdefault(name, path)
    return list(names), problems


def _image_name(tree: Element, name: str, image_of: _Index) -> str:
    """Return the file name of an image: that of the image named like the XML file, or else the annotated one.

    Raises:
        ValueError: several images are named like the XML file, and the annotated one is none of them.
    """
    annotated = tree.findtext("filename", "").strip()
    images = image_of.find_names(name)
    if len(images) < 2:
        image = image_of.find(name)
        return image.name if image else annotated or f"{name}.jpg"
    annotated_name = PurePosixPath(annotated.replace("\\", "/")).name
    same = [image for image in images if image.casefold() == annotated_name.casefold()]
    if annotated_name in same or len(same) == 1:
        return annotated_name if annotated_name in same else same[0]
    raise ValueError(
        f"belongs to {join_some(images, ' and ')}; expected the name of one of them in <filename>, found"
        f" {quote(annotated)}"
    )


def _parse_xml(path: Path) -> Element:
    """Return the root element of an annotation file.

    Raises:
        DataError: the file cannot be read, is not XML, or not an annotation.
    """
    root = read_xml(path)
    if root.tag != "annotation":
        raise DataError(f"{path}: expected the root element <annotation>, found <{root.tag:.60}>")
    if any(child.tag.startswith("{") for child in root):
        raise DataError(f"{path}: expected elements without XML namespaces")
    return root


def _collect_class_names(xml_files: Mapping[str, Path]) -> list[str]:
    names: set[str] = set()
    for path in xml_files.values():
        try:
            names.update((e.findtext("name") or "").strip() for e in _parse_xml(path).findall("object"))
        except DataError:
            continue  # reported when the split that contains the file is read
    return sorted(names - {""})


def _read_objects(tree: Element, file: Path, image: int, labels: dict[str, int]) -> tuple[list[Row], list[Problem]]:
    """Read the objects of a file; new classes are added to `labels`."""
    rows, problems = [], []
    for number, element in enumerate(tree.findall("object"), start=1):
        try:
            rows.append(_read_object(element, image, number, labels))
        except ValueError as error:
            problems.append(Problem("broken object", str(file), f"object {number}", str(error)))
    return rows, problems


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
    other = next((kind for kind in ("robndbox", "polygon") if element.find(kind) is not None), None)
    if element.find("bndbox") is None and other is not None:
        raise ValueError(f"has a {other}, but no bndbox; export the bounding boxes (xmin, ymin, xmax, ymax), too")
    if len(box) != 4:
        raise ValueError(f"bndbox: expected the numbers xmin, ymin, xmax, ymax, found {quote(texts)}")
    difficult = element.findtext("difficult")
    try:
        is_difficult = parse_flag(difficult)
    except ValueError:
        raise ValueError(f"expected difficult (0 or 1), found {quote(difficult)}") from None
    return Row(image, number, labels.setdefault(name, len(labels)), box, is_difficult)
