"""EXIF orientation of images, and of boxes that were annotated before or after it."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_data import config, write_json

from fcos.data import Annotations
from fcos.data.images import check_image, open_rgb, to_rgb
from fcos.data.source import Problem
from fcos.data.splits import read_split

WIDTH, HEIGHT = 40, 20
BOX = (4, 2, 12, 18)
"""Object in stored pixels, XYXY."""
ORIENTATION = (0x112, 3, struct.pack("<H", 6))
ODD_TAGS = {
    "text as resolution": (0x11A, 2, b"abcd\0"),
    "negative rational": (0x11A, 10, struct.pack("<ii", -1, 1)),
    "zero denominator": (0x11A, 5, struct.pack("<II", 1, 0)),
    "negative byte": (0x100, 6, struct.pack("<b", -3)),
    "negative short": (0x100, 8, struct.pack("<h", -3)),
    "double as size": (0x100, 12, struct.pack("<d", 1e300)),
    "number as text": (0x10F, 3, struct.pack("<H", 5)),
    "text as pointer": (0x8769, 2, b"abcd\0"),
    "unknown type": (0x9286, 99, b"abcd"),
}
LENGTHS = {1: 1, 2: 1, 3: 2, 5: 8, 6: 1, 8: 2, 10: 8, 12: 8, 99: 4}


def exif(*tags: tuple[int, int, bytes]) -> bytes:
    """Return EXIF data with the given tags, types and values."""
    entries, values, start = b"", b"", 8 + 2 + 12 * len(tags) + 4
    for tag, kind, value in tags:
        place = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack("<I", start + len(values))
        values += value if len(value) > 4 else b""
        entries += struct.pack("<HHI", tag, kind, len(value) // LENGTHS[kind]) + place
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + values


def picture(size: tuple[int, int] = (WIDTH, HEIGHT)) -> Image.Image:
    """Return a black image with a white object at `BOX`."""
    image = Image.new("RGB", size)
    image.paste((255, 255, 255), BOX)
    return image


def orientation_exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x112] = orientation
    return tags


def white_box(path: Path) -> list[float]:
    """Return the bounding box of the white pixels of an image as displayed, XYXY."""
    ys, xs = np.nonzero(np.asarray(open_rgb(path).convert("L")) > 127)
    return [float(v) for v in (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)]


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow warns of damaged EXIF data
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
@pytest.mark.parametrize("tag", ODD_TAGS)
def test_an_odd_exif_tag_does_not_prevent_the_orientation(tag: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    tags = sorted([ORIENTATION, ODD_TAGS[tag]])
    picture().save(path, exif=exif(*tags))
    assert open_rgb(path).size == (HEIGHT, WIDTH)
    for decode in (False, True):
        assert check_image(path, decode=decode) == ((WIDTH, HEIGHT), 6, None)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("content", [b"", b"II", b"garbage", b"II*\0\xff\xff\0\0", exif((0x112, 3, b"\x09\0"))[6:]])
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_images_with_damaged_exif_data_are_used_as_stored(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    picture().save(path, exif=b"Exif\0\0" + content)
    assert open_rgb(path).size == (WIDTH, HEIGHT)
    for decode in (False, True):
        assert check_image(path, decode=decode) == ((HEIGHT, WIDTH), 1, None)


@pytest.mark.parametrize("name", ["x.jpg", "x.png", "x.webp", "x.tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_applied_once(orientation: int, name: str, tmp_path: Path) -> None:
    picture().save(tmp_path / name, exif=orientation_exif(orientation))
    displayed = open_rgb(tmp_path / name)
    assert np.array_equal(np.asarray(to_rgb(displayed)), np.asarray(displayed))


def read(
    root: Path, orientation: int, declared: tuple[int, int] | None, *, size: tuple[int, int] = (WIDTH, HEIGHT)
) -> tuple[Annotations, list[Problem]]:
    """Read a COCO file with one image of an orientation, with `BOX` as annotation and a declared (width, height)."""
    root.mkdir(parents=True, exist_ok=True)
    picture(size).save(root / "a.png", exif=orientation_exif(orientation))
    x1, y1, x2, y2 = BOX
    image = {"id": 1, "file_name": "a.png", **dict(zip(("width", "height"), declared or (), strict=False))}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1]}
    tree = {"images": [image], "annotations": [box], "categories": [{"id": 1, "name": "x"}]}
    write_json(root / "train.json", tree)
    loaded = read_split(config(root), "train", class_names=None, decode=False)
    assert loaded is not None
    return loaded


@pytest.mark.parametrize("orientation", range(5, 9))
def test_boxes_annotated_at_the_stored_size_follow_the_orientation(orientation: int, tmp_path: Path) -> None:
    annotations, problems = read(tmp_path, orientation, (WIDTH, HEIGHT))
    assert annotations.sizes.tolist() == [[WIDTH, HEIGHT]]
    assert annotations.boxes.tolist() == [white_box(tmp_path / "a.png")]
    message = "1 image annotated before the EXIF orientation; boxes are converted: a.png"
    assert [(p.kind, p.message, p.severity) for p in problems] == [("converted orientation", message, "warning")]


@pytest.mark.parametrize("orientation", range(5, 9))
def test_boxes_annotated_at_the_displayed_size_stay(orientation: int, tmp_path: Path) -> None:
    annotations, problems = read(tmp_path, orientation, (HEIGHT, WIDTH))
    assert annotations.boxes.tolist() == [list(BOX)]
    assert not problems


def _yolo(root: Path) -> None:
    (root / "a.txt").write_text("0 .5 .5 .2 .2")
    (root / "data.yaml").write_text("train: .\nnames: [x]\n")
    (root / "train.json").unlink()


@pytest.mark.parametrize(
    ("orientation", "declared", "size", "prepare"),
    [
        *[(orientation, (WIDTH, HEIGHT), (WIDTH, HEIGHT), None) for orientation in (2, 3, 4)],
        (6, None, (WIDTH, HEIGHT), None),
        (8, (0, 0), (WIDTH, HEIGHT), None),
        (6, (40, 40), (40, 40), None),
        (6, (WIDTH, HEIGHT), (WIDTH, HEIGHT), _yolo),
    ],
)
def test_a_size_that_does_not_tell_the_orientation_of_boxes_is_reported(
    orientation: int,
    declared: tuple[int, int] | None,
    size: tuple[int, int],
    prepare: Callable[[Path], None] | None,
    tmp_path: Path,
) -> None:
    annotations, problems = read(tmp_path, orientation, declared, size=size)
    if prepare is None:
        assert annotations.boxes.tolist() == [list(BOX)]
    else:
        prepare(tmp_path)
        loaded = read_split(config(tmp_path), "train", class_names=None, decode=False)
        assert loaded is not None
        problems = loaded[1]
    (problem,) = problems
    assert (problem.kind, problem.severity) == ("unclear orientation", "warning")
    assert problem.message.startswith("1 image with an EXIF orientation, and no annotated size that tells whether")
    assert problem.message.endswith(": a.png")


def test_images_as_stored_and_images_without_boxes_are_not_reported(tmp_path: Path) -> None:
    assert not read(tmp_path / "a", 1, None)[1]
    read(tmp_path / "b", 3, None)
    text = (tmp_path / "b/train.json").read_text()
    (tmp_path / "b/train.json").write_text(text.replace('"image_id": 1', '"image_id": 2'))
    loaded = read_split(config(tmp_path / "b"), "train", class_names=None, decode=False)
    assert loaded is not None
    assert "unclear orientation" not in {p.kind for p in loaded[1]}


def test_voc_boxes_follow_the_orientation_too(tmp_path: Path) -> None:
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    picture().save(tmp_path / "JPEGImages/a.png", exif=orientation_exif(8))
    corners = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), BOX, strict=True))
    (tmp_path / "Annotations/a.xml").write_text(
        f"<annotation><size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
        f"<object><name>x</name><bndbox>{corners}</bndbox></object></annotation>"
    )
    (tmp_path / "ImageSets/Main/train.txt").write_text("a\n")
    loaded = read_split(config(tmp_path), "train", class_names=None, decode=False)
    assert loaded is not None
    assert loaded[0].boxes.tolist() == [white_box(tmp_path / "JPEGImages/a.png")]


@pytest.mark.parametrize("orientation", range(5, 9))
@pytest.mark.parametrize("is_stored", [True, False])
def test_boxes_in_fractions_follow_the_orientation(is_stored: bool, orientation: int, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    picture().save(path, exif=orientation_exif(orientation))
    width, height = (WIDTH, HEIGHT) if is_stored else (HEIGHT, WIDTH)
    x1, y1, x2, y2 = BOX if is_stored else white_box(path)
    values = (x1 / width, y1 / height, x2 / width, y2 / height, width, height)
    header = "filename,class,xmin,ymin,xmax,ymax,width,height"
    (tmp_path / "train.csv").write_text(f"{header}\na.png,x,{','.join(map(str, values))}\n")
    loaded = read_split(config(tmp_path), "train", class_names=None, decode=False)
    assert loaded is not None
    annotations, problems = loaded
    assert annotations.boxes.round(3).tolist() == [white_box(path)]
    assert [p.kind for p in problems] == ["converted orientation"] * is_stored
