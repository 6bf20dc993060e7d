"""The data set of `tiny_data` in the layouts that annotation tools write."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from tiny_data import BOXES, CLASSES, SIZES, coco_tree, voc_xml, write_images, write_json, yolo_line

SPLITS = {"train": ("a.png", "b.png"), "val": ("c.png",)}


def boxes_of(name: str) -> list[tuple[str, tuple[int, ...]]]:
    """Return (class, box XYXY) of an image."""
    return [(label, box) for image, label, box in BOXES if image == name]


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _yolo_files(folder: Path) -> None:
    for name in SIZES:
        _write(folder / f"{Path(name).stem}.txt", "".join(yolo_line(*box) for box in BOXES if box[0] == name))


def _coco_with_prefix(prefix: str) -> dict[str, Any]:
    tree = coco_tree()
    for image in tree["images"]:
        image["file_name"] = prefix + image["file_name"]
    return tree


# ----------------------------------------------------------------------------------------------------- Label Studio


def label_studio_coco(root: Path) -> None:
    """COCO export: result.json; ids start at 0, and the file names contain the folder."""
    tree = _coco_with_prefix("images/")
    tree["info"] = {"year": 2026, "version": "1.0", "description": "", "contributor": "Label Studio", "url": ""}
    for number, annotation in enumerate(tree["annotations"]):
        annotation |= {"id": number, "segmentation": [], "ignore": 0, "iscrowd": 0, "area": 1.5}
    write_json(root / "result.json", tree)
    write_images(root / "images")


def label_studio_coco_on_windows(root: Path) -> None:
    """COCO export on Windows, whose file names contain backslashes."""
    write_json(root / "result.json", _coco_with_prefix("images\\"))
    write_images(root / "images")


def label_studio_coco_without_images(root: Path) -> None:
    """COCO export whose file names are the paths of uploaded files; the images were added by hand."""
    write_json(root / "result.json", _coco_with_prefix("/data/upload/1/"))
    write_images(root / "images")


def label_studio_yolo(root: Path) -> None:
    """YOLO export: classes.txt and notes.json."""
    write_images(root / "images")
    _yolo_files(root / "labels")
    _write(root / "classes.txt", "".join(f"{name}\n" for name in CLASSES))
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES)]
    write_json(root / "notes.json", {"categories": categories, "info": {"year": 2026, "contributor": "Label Studio"}})


def label_studio_voc(root: Path) -> None:
    """Pascal VOC export: Annotations and images."""
    write_images(root / "images")
    for name in SIZES:
        _write(root / "Annotations" / f"{Path(name).stem}.xml", voc_xml(name, boxes_of(name)))


# --------------------------------------------------------------------------------------------------------- LabelImg


def labelimg_yolo(root: Path) -> None:
    """YOLO files and classes.txt next to the images."""
    write_images(root)
    _yolo_files(root)
    _write(root / "classes.txt", "".join(f"{name}\n" for name in CLASSES))


def labelimg_voc(root: Path) -> None:
    """XML files next to the images, with the annotator's absolute paths."""
    write_images(root)
    for name in SIZES:
        xml = voc_xml(name, boxes_of(name))
        more = f"<folder>photos</folder><path>C:\\photos\\{name}</path><source><database>Unknown</database></source>"
        xml = xml.replace("</filename>", f"</filename>{more}").replace(
            "<difficult>", "<pose>Unspecified</pose><difficult>"
        )
        _write(root / f"{Path(name).stem}.xml", f"<?xml version='1.0' ?>\n{xml}")


# ---------------------------------------------------------------------------------------------------------- LabelMe


def labelme_tree(name: str, image_path: str) -> dict[str, Any]:
    """Return the content of a LabelMe file; rectangles are given by any two opposite corners."""
    width, height = SIZES[name]
    shapes = [
        {
            "label": label,
            "points": [[float(x2), float(y1)], [float(x1), float(y2)]],
            "group_id": None,
            "description": "",
            "shape_type": "rectangle",
            "flags": {},
            "mask": None,
        }
        for label, (x1, y1, x2, y2) in boxes_of(name)
    ]
    tree = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": image_path, "imageData": "iVBORw0KGgo="}
    return {**tree, "imageHeight": height, "imageWidth": width}


def labelme(root: Path) -> None:
    """JSON files next to the images."""
    write_images(root)
    for name in SIZES:
        write_json(root / f"{Path(name).stem}.json", labelme_tree(name, name))


def labelme_in_other_folder(root: Path) -> None:
    """JSON files in a folder of their own, written on Windows."""
    write_images(root / "images")
    for name in SIZES:
        write_json(root / "labels" / f"{Path(name).stem}.json", labelme_tree(name, f"..\\images\\{name}"))


def labelme_with_splits(root: Path) -> None:
    """JSON files next to the images, in folders named after the splits."""
    for folder, names in SPLITS.items():
        write_images(root / folder, {name: SIZES[name] for name in names})
        for name in names:
            write_json(root / folder / f"{Path(name).stem}.json", labelme_tree(name, name))


# ------------------------------------------------------------------------------------------------------------- CVAT


def cvat_coco(root: Path) -> None:
    """COCO 1.0 of a task without subset: annotations/instances_default.json."""
    write_json(root / "annotations/instances_default.json", {"licenses": [], "info": {}, **coco_tree()})
    write_images(root / "images/default")


def cvat_coco_with_subsets(root: Path) -> None:
    """COCO 1.0 of a project with the subsets Train and Validation."""
    tree = coco_tree()
    for subset, names in (("Train", SPLITS["train"]), ("Validation", SPLITS["val"])):
        images = [image for image in tree["images"] if image["file_name"] in names]
        ids = {image["id"] for image in images}
        annotations = [a for a in tree["annotations"] if a["image_id"] in ids]
        part = {**tree, "images": images, "annotations": annotations}
        write_json(root / f"annotations/instances_{subset}.json", part)
        write_images(root / "images" / subset, {name: SIZES[name] for name in names})


def cvat_yolo(root: Path) -> None:
    """YOLO 1.1: obj.data, obj.names, train.txt; listed paths start with `data/`."""
    write_images(root / "obj_train_data")
    _yolo_files(root / "obj_train_data")
    _write(root / "obj.names", "cat\ndog\n")
    _write(root / "obj.data", "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n")
    _write(root / "train.txt", "".join(f"data/obj_train_data/{name}\n" for name in SIZES))


def cvat_ultralytics(root: Path) -> None:
    """YOLO with data.yaml and a list whose paths start with `data/`."""
    write_images(root / "images/train")
    _yolo_files(root / "labels/train")
    _write(root / "data.yaml", "names:\n  0: cat\n  1: dog\npath: .\ntrain: train.txt\n")
    _write(root / "train.txt", "".join(f"data/images/train/{name}\n" for name in SIZES))


def cvat_voc(root: Path) -> None:
    """Pascal VOC 1.1 of a task without subset: ImageSets/Main/default.txt."""
    write_images(root / "JPEGImages")
    for name in SIZES:
        _write(root / "Annotations" / f"{Path(name).stem}.xml", voc_xml(name, boxes_of(name)))
    _write(root / "ImageSets/Main/default.txt", "".join(f"{Path(name).stem}\n" for name in SIZES))
    _write(root / "labelmap.txt", "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:1,2,3::\ndog:4,5,6::\n")


def cvat_xml(images: Sequence[str]) -> str:
    """Return the file of "CVAT for images 1.1" with these <image> elements."""
    labels = "".join(
        f"<label><name>{name}</name><color>#c06060</color><type>any</type><attributes></attributes></label>"
        for name in CLASSES
    )
    meta = f"<meta><task><id>1</id><name>t</name><mode>annotation</mode><labels>{labels}</labels></task></meta>"
    content = f"<version>1.1</version>{meta}{''.join(images)}"
    return f'<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n{content}</annotations>'


def cvat_image(name: str, number: int, shapes: Sequence[str] | None = None, **attributes: str) -> str:
    """Return an <image> element, by default with the boxes of the image."""
    width, height = SIZES[name]
    boxes = [
        f'<box label="{label}" source="manual" occluded="0" xtl="{x1:.2f}" ytl="{y1:.2f}" xbr="{x2:.2f}" ybr="{y2:.2f}"'
        ' z_order="0"></box>'
        for label, (x1, y1, x2, y2) in boxes_of(name)
    ]
    more = "".join(f" {key}={quoteattr(value)}" for key, value in attributes.items())
    content = "".join(boxes if shapes is None else shapes)
    return f'<image id="{number}" name="{name}"{more} width="{width}" height="{height}">{content}</image>\n'


def cvat_images(root: Path) -> None:
    """CVAT for images 1.1 of a task."""
    write_images(root / "images")
    _write(root / "annotations.xml", cvat_xml([cvat_image(name, i) for i, name in enumerate(SIZES)]))


def cvat_project(root: Path) -> None:
    """CVAT for images 1.1 of a project with the subsets Train and Validation."""
    elements = []
    for subset, names in (("Train", SPLITS["train"]), ("Validation", SPLITS["val"])):
        write_images(root / "images" / subset, {name: SIZES[name] for name in names})
        elements += [cvat_image(name, i, subset=subset, task_id="3") for i, name in enumerate(names)]
    _write(root / "annotations.xml", cvat_xml(elements).replace("task>", "project>"))


# --------------------------------------------------------------------------------------------------------- Roboflow


def roboflow_voc(root: Path) -> None:
    """XML files next to the images, in the folders train and valid."""
    for folder, split in (("train", "train"), ("valid", "val")):
        write_images(root / folder, {name: SIZES[name] for name in SPLITS[split]})
        for name in SPLITS[split]:
            _write(root / folder / f"{Path(name).stem}.xml", voc_xml(name, boxes_of(name)))
    _write(root / "README.roboflow.txt", "Exported with Roboflow\n")
    _write(root / "README.dataset.txt", "pets\n")


def roboflow_coco_without_splits(root: Path) -> None:
    """A lone _annotations.coco.json next to the images."""
    write_images(root)
    write_json(root / "_annotations.coco.json", {"info": {}, "licenses": [], **coco_tree()})


def roboflow_csv(root: Path) -> None:
    """_annotations.csv next to the images, in the folders train and valid."""
    for folder, split in (("train", "train"), ("valid", "val")):
        write_images(root / folder, {name: SIZES[name] for name in SPLITS[split]})
        _write(root / folder / "_annotations.csv", tensorflow_csv(SPLITS[split]))


def roboflow_darknet(root: Path) -> None:
    """YOLO files and _darknet.labels next to the images, in the folder train."""
    write_images(root / "train")
    _yolo_files(root / "train")
    _write(root / "train/_darknet.labels", "cat\ndog")


# -------------------------------------------------------------------------------------------------------------- VOC


def voc_without_lists(root: Path) -> None:
    """Annotations and JPEGImages without ImageSets."""
    write_images(root / "JPEGImages")
    for name in SIZES:
        _write(root / "Annotations" / f"{Path(name).stem}.xml", voc_xml(name, boxes_of(name)))


def voc_trainval(root: Path) -> None:
    """VOC2007 with the lists trainval and test only, and lists of a class."""
    voc_without_lists(root / "VOCdevkit/VOC2007")
    lists = root / "VOCdevkit/VOC2007/ImageSets/Main"
    _write(lists / "trainval.txt", "a\nb\n")
    _write(lists / "test.txt", "c\n")
    _write(lists / "cat_trainval.txt", "a  1\nb -1\n")


def kaggle_voc(root: Path) -> None:
    """Lower-case folders annotations and images."""
    write_images(root / "images")
    for name in SIZES:
        _write(root / "annotations" / f"{Path(name).stem}.xml", voc_xml(name, boxes_of(name)))


# -------------------------------------------------------------------------------------------------------------- CSV


def tensorflow_csv(names: Sequence[str]) -> str:
    """Return the CSV of TensorFlow's object detection tutorial; images without boxes do not occur in it."""
    lines = ["filename,width,height,class,xmin,ymin,xmax,ymax"]
    for name in names:
        size = ",".join(map(str, SIZES[name]))
        lines += [f"{name},{size},{label},{','.join(map(str, box))}" for label, box in boxes_of(name)]
    return "\n".join(lines) + "\n"


def csv_with_splits(root: Path) -> None:
    """train_labels.csv and images/."""
    write_images(root / "images")
    _write(root / "train_labels.csv", tensorflow_csv(list(SIZES)) + "c.png,40,30,,,,,\n")


def csv_with_split_column(root: Path) -> None:
    """One file whose column `split` assigns the rows."""
    write_images(root / "images")
    header, *lines = tensorflow_csv(list(SIZES)).splitlines()
    rows = [f"{header},split", *(f"{line},train" for line in lines), "c.png,40,30,,,,,,val"]
    _write(root / "labels.csv", "\n".join(rows))


def csv_retinanet(root: Path) -> None:
    """Without header; an image without boxes has empty fields."""
    write_images(root / "images")
    rows = [f"images/{name},{','.join(map(str, box))},{label}" for name, label, box in BOXES]
    _write(root / "annotations.csv", "\n".join([*rows, "images/c.png,,,,,"]))


def csv_open_images(root: Path) -> None:
    """OpenImages: image ids without suffix, and fractions."""
    write_images(root / "images")
    lines = ["ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction"]
    for name, label, (x1, y1, x2, y2) in BOXES:
        w, h = SIZES[name]
        lines.append(f"{Path(name).stem},xclick,{label},1,{x1 / w},{x2 / w},{y1 / h},{y2 / h},0,0,0,0")
    _write(root / "boxes.csv", "\n".join([*lines, "c,xclick,,1,,,,,0,0,0,0"]))


def csv_xywh(root: Path) -> None:
    """Semicolons, and boxes as x, y, width, height."""
    write_images(root)
    rows = [f"{name};{label};{x1};{y1};{x2 - x1};{y2 - y1}" for name, label, (x1, y1, x2, y2) in BOXES]
    _write(
        root / "boxes.csv",
        "\ufeffimage_name;label;bbox_x;bbox_y;bbox_width;bbox_height\r\n" + "\r\n".join([*rows, "c.png;;;;;"]),
    )


# ----------------------------------------------------------------------------------------------------- Hugging Face


def hugging_face_lines(names: Sequence[str], *, prefix: str = "", numbers: bool = False) -> str:
    """Return the lines of metadata.jsonl."""
    lines = []
    for name in names:
        boxes = [[x1, y1, x2 - x1, y2 - y1] for _, (x1, y1, x2, y2) in boxes_of(name)]
        classes = [CLASSES.index(label) if numbers else label for label, _ in boxes_of(name)]
        lines.append(json.dumps({"file_name": prefix + name, "objects": {"bbox": boxes, "categories": classes}}))
    return "\n".join(lines) + "\n"


def hugging_face(root: Path) -> None:
    """metadata.jsonl next to the images."""
    write_images(root)
    _write(root / "metadata.jsonl", hugging_face_lines(list(SIZES)))


def hugging_face_with_splits(root: Path) -> None:
    """metadata.jsonl in the folders train and validation."""
    for folder, split in (("train", "train"), ("validation", "val")):
        write_images(root / folder, {name: SIZES[name] for name in SPLITS[split]})
        _write(root / folder / "metadata.jsonl", hugging_face_lines(SPLITS[split]))


def hugging_face_with_one_file(root: Path) -> None:
    """One metadata.jsonl for the folders train and test."""
    write_images(root / "train", {name: SIZES[name] for name in SPLITS["train"]})
    write_images(root / "test", {name: SIZES[name] for name in SPLITS["val"]})
    lines = hugging_face_lines(SPLITS["train"], prefix="train/") + hugging_face_lines(SPLITS["val"], prefix="test/")
    _write(root / "metadata.jsonl", lines)


SINGLE: dict[str, tuple[str, Callable[[Path], None]]] = {
    "Label Studio COCO": ("coco", label_studio_coco),
    "Label Studio COCO on Windows": ("coco", label_studio_coco_on_windows),
    "Label Studio COCO without images": ("coco", label_studio_coco_without_images),
    "Label Studio YOLO": ("yolo", label_studio_yolo),
    "Label Studio VOC": ("voc", label_studio_voc),
    "LabelImg YOLO": ("yolo", labelimg_yolo),
    "LabelImg VOC": ("voc", labelimg_voc),
    "LabelMe": ("labelme", labelme),
    "LabelMe in another folder": ("labelme", labelme_in_other_folder),
    "CVAT COCO": ("coco", cvat_coco),
    "CVAT YOLO 1.1": ("yolo", cvat_yolo),
    "CVAT Ultralytics YOLO": ("yolo", cvat_ultralytics),
    "CVAT VOC": ("voc", cvat_voc),
    "CVAT for images": ("cvat", cvat_images),
    "Roboflow COCO": ("coco", roboflow_coco_without_splits),
    "Roboflow Darknet": ("yolo", roboflow_darknet),
    "VOC without lists": ("voc", voc_without_lists),
    "VOC in lower case": ("voc", kaggle_voc),
    "CSV of a split": ("csv", csv_with_splits),
    "CSV of keras-retinanet": ("csv", csv_retinanet),
    "CSV of OpenImages": ("csv", csv_open_images),
    "CSV with XYWH": ("csv", csv_xywh),
    "Hugging Face": ("huggingface", hugging_face),
}
"""Exports without splits: the format that is recognised, and a function that writes them to a folder."""

DIVIDED: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "LabelMe": ("labelme", labelme_with_splits, "val"),
    "CVAT COCO": ("coco", cvat_coco_with_subsets, "val"),
    "CVAT for images": ("cvat", cvat_project, "val"),
    "Roboflow VOC": ("voc", roboflow_voc, "val"),
    "VOC trainval": ("voc", voc_trainval, "test"),
    "CSV with a column": ("csv", csv_with_split_column, "val"),
    "Hugging Face": ("huggingface", hugging_face_with_splits, "val"),
    "Hugging Face, one file": ("huggingface", hugging_face_with_one_file, "test"),
}
"""Exports with a.png and b.png in train: format, function, and the split that contains c.png."""
