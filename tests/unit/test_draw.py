"""Drawings of detections."""

import string
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from PIL import Image, ImageDraw
from processes import SECONDS
from skimage.color import rgb2lab

from fcos.boxes import area, intersection
from fcos.inference import fonts, marks
from fcos.inference.draw import class_color, draw, draw_pair
from fcos.inference.marks import Mark, draw_marks
from fcos.structures import Instances

PROGRAM = Path(__file__).parents[1] / "helpers/programs/draw_names.py"


def instances(boxes, *, size, labels=None, scores=None, names=()):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    labels = torch.zeros(len(boxes), dtype=torch.int64) if labels is None else torch.tensor(labels)
    scores = torch.full((len(boxes),), 0.9) if scores is None else torch.tensor(scores)
    return Instances(boxes, labels, scores, size, names)


def changed(before, after):
    """Return a mask [H, W] of the pixels in which two images differ."""
    return (np.asarray(before) != np.asarray(after)).any(axis=2)


GREY = Image.new("RGB", (640, 480), (120, 120, 120))
ONE = instances([[100, 200, 300, 400]], size=(480, 640), names=("cell",))


def test_box_outline_has_the_class_color():
    picture = np.asarray(draw(GREY, ONE))
    assert tuple(picture[300, 100]) == tuple(picture[300, 299]) == tuple(picture[399, 200]) == class_color(0)


def test_draw_does_not_modify_the_image():
    image = GREY.copy()
    draw(image, ONE)
    assert not changed(image, GREY).any()


def test_drawing_no_detections_changes_no_pixels():
    assert not changed(draw(GREY, instances([], size=(480, 640))), GREY).any()


def test_arrays_tensors_and_pil_images_give_the_same_drawing():
    array = np.asarray(GREY)
    expected = draw(GREY, ONE)
    assert not changed(draw(array, ONE), expected).any()
    assert not changed(draw(torch.tensor(array).permute(2, 0, 1), ONE), expected).any()


def test_boxes_are_scaled_to_the_image_size():
    twice = instances([[200, 400, 600, 800]], size=(960, 1280), names=("cell",))
    assert not changed(draw(GREY, twice), draw(GREY, ONE)).any()


def test_small_images_are_enlarged_by_an_integer_factor():
    small = Image.new("RGB", (160, 128))
    assert draw(small, instances([[10, 10, 50, 50]], size=(128, 160))).size == (640, 512)
    assert draw(small, instances([[10, 10, 50, 50]], size=(128, 160)), scale=1).size == (160, 128)


def test_scale_is_limited_by_the_number_of_pixels():
    with pytest.raises(ValueError, match="scale: expected at most 24 for a picture of 640x480 pixels, found 100000;"):
        draw(GREY, ONE, scale=100_000)


@pytest.mark.parametrize("scale", [0, -1, 1.5])
def test_scale_must_be_a_positive_integer(scale):
    with pytest.raises(ValueError, match=f"scale: expected an integer of at least 1, found {scale}"):
        draw(GREY, ONE, scale=scale)


def test_scores_can_be_omitted():
    with_score, without = draw(GREY, ONE), draw(GREY, ONE, scores=False)
    assert changed(with_score, GREY)[:198].sum() > changed(without, GREY)[:198].sum() > 0


@pytest.mark.parametrize("box", [[0, 0, 30, 20], [600, 0, 640, 30], [0, 440, 30, 480], [610, 450, 640, 480]])
def test_tag_of_a_box_in_a_corner_is_not_cut_off(box):
    """A tag that is cut off would have fewer dark pixels than one in the middle of the image."""
    width, height = box[2] - box[0], box[3] - box[1]
    middle = instances([[300, 200, 300 + width, 200 + height]], size=(480, 640), names=("cell",))
    corner = instances([box], size=(480, 640), names=("cell",))

    def ink(found):  # only text is this dark
        return int((np.asarray(draw(GREY, found)) < 30).all(axis=2).sum())

    assert ink(corner) == pytest.approx(ink(middle), rel=0.25)


def test_tags_of_two_equal_boxes_do_not_overlap():
    alone = draw(GREY, instances([[100, 200, 300, 400]], size=(480, 640), labels=[1]))
    both = draw(GREY, instances([[100, 200, 300, 400]] * 2, size=(480, 640), labels=[1, 2], scores=[0.9, 0.8]))
    tag = changed(alone, GREY)[:198]  # of the first box, above it
    assert not changed(alone, both)[:198][tag].any()
    assert changed(both, alone)[402:].any()  # the second tag is below the box


def test_first_thousand_classes_have_mostly_distinct_colors():
    colors = [class_color(label) for label in range(1000)]
    assert len(set(colors)) > 900
    assert all(0 <= value <= 255 for color in colors for value in color)


# Machado et al., IEEE TVCG 2009: linear RGB as seen without one of the three kinds of cones.
COLOR_VISION = {
    "normal": np.eye(3),
    "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "tritanopia": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}


@pytest.mark.parametrize("kind", COLOR_VISION)
def test_first_classes_are_distinguishable_with_any_color_vision(kind):
    colors = np.array([class_color(label) for label in range(7)]) / 255
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.array(COLOR_VISION[kind]).T, 0, 1)
    encoded = np.where(seen <= 0.0031308, seen * 12.92, 1.055 * seen ** (1 / 2.4) - 0.055)
    lab = rgb2lab(encoded[None])[0]
    distances = np.linalg.norm(lab[:, None] - lab[None], axis=2)[np.triu_indices(7, k=1)]
    assert distances.min() > 15  # a difference of 2.3 is just noticeable


def test_pair_shows_predictions_left_and_ground_truth_right():
    truth = instances([[400, 100, 500, 200]], size=(480, 640), names=("cell",))
    sheet = draw_pair(GREY, ONE, truth)
    strip = sheet.height - 480
    gap = sheet.width - 2 * 640
    left = sheet.crop((0, strip, 640, strip + 480))
    right = sheet.crop((640 + gap, strip, sheet.width, strip + 480))
    assert not changed(left, draw(GREY, ONE)).any()
    assert not changed(right, draw(GREY, truth, scores=False)).any()


def test_pair_without_boxes_is_drawn():
    nothing = instances([], size=(480, 640))
    assert draw_pair(GREY, nothing, nothing).width > 2 * 640


def test_dashed_outline_has_gaps_and_stays_on_the_border():
    picture = GREY.copy()
    draw_marks(picture, [Mark((100, 200, 300, 400), (240, 228, 66), dashed=True)])
    own = (np.asarray(picture) == (240, 228, 66)).all(axis=2)
    for line in (own[200, 100:300], own[399, 100:300], own[200:400, 100], own[200:400, 299]):
        assert 0.3 < line.mean() < 0.7
    assert not own[204:396, 104:296].any()
    assert not own[:200].any()


def test_mark_without_text_has_no_tag():
    picture, box = GREY.copy(), (100, 200, 300, 400)
    draw_marks(picture, [Mark(box, (0, 158, 115))])
    assert not changed(picture, GREY)[:190].any()
    draw_marks(picture, [Mark(box, (0, 158, 115), "cell")])
    assert changed(picture, GREY)[:190].any()


def test_tag_height_follows_text_size():
    heights = []
    for size in (12, 36):
        picture = GREY.copy()
        draw_marks(picture, [Mark((100, 200, 300, 400), (0, 158, 115), "cell")], text_size=size)
        heights.append(int(changed(picture, GREY)[:198].any(axis=1).sum()))
    assert heights[1] > 2 * heights[0]


@pytest.mark.parametrize("letters", ["Äéñß", "Жщя", "Ωλπ", "אבג"])
def test_font_has_glyphs_of_many_alphabets(letters):
    """All letters that the font lacks are drawn as the same empty box."""
    pictures = []
    for letter in (*letters, "\uffff"):  # the last is not a letter
        pictures.append(GREY.copy())
        draw_marks(pictures[-1], [Mark((100, 200, 300, 400), (0, 158, 115), letter)], text_size=40)
    assert len({picture.crop((0, 0, 640, 198)).tobytes() for picture in pictures}) == len(pictures)


def drawn_tags(monkeypatch, found, **options):
    """Return the texts of the drawn tags, from the last one to the first, and their XYXY."""
    texts, boxes, rendered = [], [], {}

    def note(text, font, height):
        strip = fonts.render(text, font, height)
        rendered[id(strip)] = text
        return strip

    class Canvas(ImageDraw.ImageDraw):
        def bitmap(self, xy, bitmap, fill=None):
            texts[-1].append(rendered[id(bitmap)])
            super().bitmap(xy, bitmap, fill)

        def rounded_rectangle(self, xy, *args, **kwargs):
            texts.append([])
            boxes.append((xy[0], xy[1], xy[2] + 1, xy[3] + 1))
            super().rounded_rectangle(xy, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(ImageDraw, "Draw", Canvas)
        patch.setattr(marks, "render", note)
        draw(GREY, found, **options)
    return texts, boxes


@pytest.mark.parametrize(
    ("name", "written"), [("a\nb", r"a\nb"), ("a\x1b[31m", r"a\x1b[31m"), ("a\u202eb", r"a\u202eb")]
)
def test_control_characters_in_names_are_escaped(monkeypatch, name, written):
    texts, _ = drawn_tags(monkeypatch, instances([[100, 200, 300, 400]], size=(480, 640), names=(name,)))
    assert texts == [[written, "0.90"]]


@pytest.mark.parametrize("scores", [True, False])
def test_long_name_is_truncated_but_the_score_is_kept(monkeypatch, scores):
    name = "a very long name of a class " * 20
    found = instances([[100, 200, 300, 400]], size=(480, 640), names=(name,))
    ((text, *score),), ((left, _, right, _),) = drawn_tags(monkeypatch, found, scores=scores)
    start, dots, end = text.partition("...")
    assert name.startswith(start)
    assert len(start) > 20
    assert (dots, end, score) == ("...", "", ["0.90"] if scores else [])
    assert left >= 0
    assert GREY.width - 30 < right - left <= GREY.width


def test_name_that_fits_is_not_truncated(monkeypatch):
    found = instances([[100, 200, 300, 400]], size=(480, 640), names=("red blood cell",), scores=[0.999])
    assert drawn_tags(monkeypatch, found)[0] == [["red blood cell", "1.00"]]


def hidden_parts(tags, boxes):
    """Return the part of every box that every tag hides, [tags, boxes]."""
    tags, boxes = torch.tensor(tags), torch.tensor(boxes)
    return intersection(tags.float(), boxes.float()) / area(boxes.float())


def crowd(count, *, side):
    generator = np.random.default_rng(0)
    corners = generator.uniform(0, 1, (count, 2)) * (640 - side, 480 - side)
    return np.concatenate([corners, corners + side], axis=1).tolist()


def test_tags_hide_little_of_the_boxes_in_a_crowded_picture(monkeypatch):
    boxes, scores = crowd(200, side=14), torch.linspace(1, 0.1, 200).tolist()
    found = instances(boxes, size=(480, 640), names=("cell",), scores=scores)
    texts, tags = drawn_tags(monkeypatch, found)
    assert 20 < len(tags) < 200
    assert texts[-1] == ["cell", "1.00"]  # the best one has a tag
    assert hidden_parts(tags, boxes).sum(dim=1).max() < 0.4  # 0.25 with coordinates rounded to whole cells
    overlaps = hidden_parts(tags, tags)
    assert overlaps.fill_diagonal_(0).max() == 0
    assert len({bottom - top for _, top, _, bottom in tags}) == 2  # two font sizes


def test_every_box_of_a_sparse_picture_has_a_tag_of_the_same_size(monkeypatch):
    boxes = [[x, y, x + 60, y + 50] for x in range(20, 600, 150) for y in range(40, 400, 110)]
    _, tags = drawn_tags(monkeypatch, instances(boxes, size=(480, 640), names=("cell",)))
    assert len(tags) == len(boxes)
    assert len({bottom - top for _, top, _, bottom in tags}) == 1


@pytest.mark.parametrize("size", [(3, 4000), (4000, 3), (1, 1)])
def test_very_flat_and_tiny_pictures_are_drawn(size):
    height, width = size
    picture = draw(Image.new("RGB", (width, height)), instances([[0, 0, width, height]], size=size, names=("cell",)))
    assert np.asarray(picture).any()


def write_font(path, letters):
    """Write a font that draws each letter as a box, whose width is proportional to the letter's index."""
    builder = FontBuilder(unitsPerEm=1000)
    names = [".notdef", *(f"letter{i}" for i in range(len(letters)))]
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap(dict(zip(map(ord, letters), names[1:], strict=True)))
    shapes = {}
    for i, name in enumerate(names):
        pen = TTGlyphPen(None)
        pen.moveTo((0, 0))
        for point in ((0, 700), (5 * i + 5, 700), (5 * i + 5, 0)):
            pen.lineTo(point)
        pen.closePath()
        shapes[name] = pen.glyph()
    builder.setupGlyf(shapes)
    builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Boxes", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)


def draw_names(folder, *names):
    """Draw names as 0.png, 1.png, ... in a folder, in a process that uses the folder's fonts as system fonts.

    Returns the lines of the process's warnings.
    """
    run = subprocess.run(
        [sys.executable, "-X", "utf8", str(PROGRAM), str(folder), *names],
        stdout=subprocess.PIPE, encoding="utf-8", check=True, timeout=SECONDS,
    )  # fmt: skip
    return run.stdout.splitlines()


def test_missing_glyphs_come_from_system_fonts(tmp_path):
    write_font(tmp_path / "ascii.ttf", string.printable)
    write_font(tmp_path / "chinese.ttf", string.printable + "红细胞")
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    assert draw_names(tmp_path, "红", "胞") == []
    assert changed(*(Image.open(tmp_path / f"{i}.png") for i in range(2))).any()


def test_first_name_without_a_suitable_font_warns(tmp_path):
    (warning,) = draw_names(tmp_path, "cell", "血小板", "红 细", "血小板")
    assert "no installed font has all characters of 血小板 (other" in warning
