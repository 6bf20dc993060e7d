"""`fcos explain` and `fcos.explain`: page, annotations of data sets, wrong arguments."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from exports import small_detector
from PIL import Image
from tiny_data import SIZES, coco_tree, write_coco, write_images

import fcos
from fcos import cli
from fcos.checkpoint import save_checkpoint
from fcos.errors import ConfigError, DataError
from fcos.explanation.explain import require_fcos

OWN_CODE = "model.backbone.name=tiny_backbone:Tiny"
SECTIONS = ["Detections", "Missed objects", "Scores", "Centerness", "Candidates and suppression"]


def save(path: Path, name: str = "fcos", **model: object) -> Path:
    """Save a detector of cats and dogs that detects something everywhere."""
    detector = small_detector(name, classes=("cat", "dog"), data={"short_side": 40, "max_side": 60}, **model)
    thresholds = {"cat": 0.65, "dog": 0.65}
    save_checkpoint(
        path,
        model=detector.model,
        config=detector.config,
        class_names=detector.class_names,
        category_ids=[7, 6],
        thresholds=thresholds,
    )
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("weights") / "best.pt")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_coco(tmp_path_factory.mktemp("data"), coco_tree(), split="val")


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """Return (exit code, stdout, stderr) of `fcos explain`."""
    with pytest.raises(SystemExit) as stop:
        cli.main(["explain", *map(str, arguments)])
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


def test_page_shows_all_sections_and_loads_nothing(
    weights: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    code, out, err = run(capsys, weights, "a.png", f"data={data}", OWN_CODE, "--out", page)
    assert (code, err) == (0, "")
    assert out.startswith("a.png: ")
    assert re.search(r"^missed: \d ", out, re.MULTILINE)
    assert f"written: {page}" in out
    html = page.read_text()
    assert re.findall(r"<h2>(.*?)</h2>", html) == SECTIONS
    assert html.count("<svg") == 2 * 2  # a score and a centerness map of two levels
    assert "40 x 30 pixels, resized to 53 x 40" in html
    sources = re.findall(r'(?:src|href)="([^"#]+)"', html)
    assert sources
    assert all(source.startswith("data:image/") for source in sources)
    assert "<script" not in html


@pytest.mark.parametrize("threshold", [None, 0.3])
def test_explained_detections_are_those_of_predict(weights: Path, data: Path, threshold: float | None) -> None:
    file = data / "images/b.png"
    explanation = fcos.explain(weights, file, OWN_CODE, threshold=threshold)
    expected = fcos.load(weights, OWN_CODE).predict(file, threshold=threshold)
    found = explanation.detections
    assert len(expected) > 0
    torch.testing.assert_close(found.boxes, expected.boxes, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.scores, expected.scores)
    assert found.names == expected.names
    assert explanation.objects is None
    assert [tuple(level.shape) for level in explanation.scores] == [(2, 8, 6), (2, 4, 3)]  # 60 x 45, padded to 64 x 48


def test_detector_with_separable_towers_and_batch_norm_is_explained(data: Path, tmp_path: Path) -> None:
    fpn = {"channels": 32, "norm": "bn", "separable": True}
    file = save(tmp_path / "best.pt", fpn=fpn, head={"num_convs": 1, "norm": "bn", "separable": True})
    explanation = fcos.explain(file, data / "images/b.png", OWN_CODE, threshold=0.0)
    expected = fcos.load(file, OWN_CODE).predict(data / "images/b.png", threshold=0.0)
    assert len(expected) > 0
    torch.testing.assert_close(explanation.detections.scores, expected.scores)
    torch.testing.assert_close(explanation.detections.boxes, expected.boxes, atol=1e-4, rtol=0)


def test_image_of_a_data_set_is_found_by_path_and_by_name(weights: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "link.png").symlink_to(data / "images/a.png")
    for image in (data / "images/a.png", tmp_path / "link.png", "a.png"):
        explanation = fcos.explain(weights, image, f"data={data}", OWN_CODE)
        assert explanation.objects is not None
        assert explanation.objects.labels.tolist() == [0, 1]
        assert len(explanation.detection_of) == 2
    assert fcos.explain(weights, data / "images/c.png", f"data={data}", OWN_CODE).misses == []  # without objects


def test_every_missed_object_is_explained(weights: Path, data: Path) -> None:
    explanation = fcos.explain(weights, "a.png", f"data={data}", OWN_CODE, threshold=1.0)
    assert [miss.index for miss in explanation.misses] == [0, 1]
    assert all(miss.text for miss in explanation.misses)


def test_image_without_detections_has_a_page(weights: Path, tmp_path: Path) -> None:
    image = Image.new("RGB", (50, 40))
    page = tmp_path / "page.html"
    fcos.explain(weights, image, OWN_CODE, "model.score_threshold=0.999", threshold=1.0, class_name="dog", out=page)
    html = page.read_text()
    assert "Explanation of an image" in html
    assert "Score of the class dog" in html
    assert "No detection reaches the score threshold of its class." in html
    assert "suppressed boxes" not in html  # no table of detections without rows
    assert "Missed objects" not in html


def test_detector_with_predicted_iou_is_described_as_such(tmp_path: Path) -> None:
    write_images(tmp_path / "images", {"a.png": SIZES["a.png"]})
    page = tmp_path / "page.html"
    weights = save(tmp_path / "iou.pt", quality="iou")
    fcos.explain(weights, tmp_path / "images/a.png", OWN_CODE, out=page)
    assert "<h2>Predicted IoU</h2>" in page.read_text()


@pytest.mark.parametrize("name", ["retinanet", "rcnn"])
def test_other_detectors_are_rejected_in_one_message(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = save(tmp_path / "best.pt", name)
    code, _, err = run(capsys, weights, "a.png", OWN_CODE, "--out", tmp_path / "page.html")
    assert code == 2
    assert (
        f"explain: expected weights of FCOS, whose locations are explained, found a detector with model.name={name}"
        in err
    )
    assert not (tmp_path / "page.html").exists()


def test_exported_file_is_rejected() -> None:
    detector = small_detector()
    detector.model.postprocess = None  # as in `ExportedModel`
    with pytest.raises(
        ConfigError, match="expected weights of FCOS, whose locations are explained, found an exported file"
    ):
        require_fcos(detector.model, detector.config)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["missing.png"], "missing.png: no such file"),
        (["missing.png", "data=DATA"], "missing.png: not an image of the data set in DATA"),
        (["a.png", "--class", "dgo"], "--class: no class 'dgo', did you mean 'dog'"),
        (["a.png", "--threshold", "2"], "--threshold: expected a number from 0 to 1, found '2'"),
        (["a.png", "--out", "."], "--out: . is a folder"),
        (["a.png", "--out", "a.png"], "--out: expected the path of a new file that ends in .html, found 'a.png'"),
        (["a.png", "--out", "no/a.html"], "--out: no/a.html cannot be written, because there is no folder no"),
        (["a.png", "--out", "/proc/a.html"], "/proc/a.html: cannot be written: "),
        ([], "expected one image and KEY=VALUE options, found no image"),
        (["a.png", "b.png"], "expected one image and KEY=VALUE options, found a.png, b.png"),
        (["a.png", "data=nowhere"], "nowhere"),
        (["a.png", "train.lr=1"], "train.lr: no effect"),
        (["a.png", "--split", "val"], "--split: no such option"),
    ],
)
def test_wrong_arguments_are_explained(
    weights: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    *,
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path, {"a.png": SIZES["a.png"]})
    code, _, err = run(capsys, weights, OWN_CODE, *(word.replace("DATA", str(data)) for word in words))
    assert code == 2
    assert message.replace("DATA", str(data)) in err
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_image_names_that_occur_twice_need_the_path(weights: Path, data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "data")
    tree = coco_tree()
    for number, image in enumerate(tree["images"][:2]):
        (tmp_path / f"data/images/{number}").mkdir()
        (tmp_path / "data/images" / image["file_name"]).rename(tmp_path / f"data/images/{number}/same.png")
        image["file_name"] = f"{number}/same.png"
    write_coco(tmp_path / "other", tree, split="val")
    shutil.copy(tmp_path / "other/val.json", tmp_path / "data/val.json")
    with pytest.raises(DataError, match=r"same\.png: 2 images of the data set have this name"):
        fcos.explain(weights, "same.png", f"data={tmp_path / 'data'}", OWN_CODE)
    explanation = fcos.explain(weights, "1/same.png", f"data={tmp_path / 'data'}", OWN_CODE)
    assert explanation.objects is not None
    assert len(explanation.objects) == 1


def test_annotations_need_an_image_of_the_data_set(weights: Path, data: Path) -> None:
    with pytest.raises(ConfigError, match="data: allowed with the path or the file name of an image only"):
        fcos.explain(weights, Image.new("RGB", (50, 40)), f"data={data}", OWN_CODE)
