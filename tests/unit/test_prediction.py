"""Results of `Detector.predict`: summaries, plain data, drawing, saving and display."""

from __future__ import annotations

import io
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageShow
from raw_server import raw_server, response

import fcos
from fcos import ConfigError, DataError, Detector, Instances
from fcos.errors import FCOSError
from fcos.inference.prediction import Prediction


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (10, 15, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((120, 80), Image.Resampling.BICUBIC).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def instances(labels: list[int], *, class_names: tuple[str, ...] = ("RBC", "WBC")) -> Instances:
    boxes = torch.tensor([[64.0, 48.0, 320.0, 240.0]] * len(labels)).reshape(-1, 4)
    scores = torch.linspace(0.9, 0.5, len(labels)) if labels else torch.zeros(0)
    return Instances(boxes, torch.tensor(labels, dtype=torch.int64), scores, (480, 640), class_names)


class TestData:
    @pytest.mark.parametrize(
        ("labels", "class_names", "text"),
        [
            ([0, 1, 0, 0], ("RBC", "WBC"), "Instances(3 RBC, 1 WBC in 640x480)"),
            ([1, 1, 0], ("RBC", "WBC"), "Instances(2 WBC, 1 RBC in 640x480)"),
            ([], ("RBC", "WBC"), "Instances(nothing in 640x480)"),
            ([1], (), "Instances(1 1 in 640x480)"),
            ([0], ("a\x1b[31m\n",), r"Instances(1 a\x1b[31m\n in 640x480)"),
        ],
    )
    def test_the_repr_is_a_summary(self, labels: list[int], class_names: tuple[str, ...], text: str) -> None:
        assert repr(instances(labels, class_names=class_names)) == text
        assert len(instances(labels, class_names=class_names)) == len(labels)

    def test_boxes_have_widths_and_heights_and_fractions(self) -> None:
        found = instances([0])
        assert found.boxes_xywh.tolist() == [[64.0, 48.0, 256.0, 192.0]]
        assert found.boxes_normalized.flatten().tolist() == pytest.approx([0.1, 0.1, 0.5, 0.5])
        assert instances([]).boxes_xywh.shape == instances([]).boxes_normalized.shape == (0, 4)

    def test_plain_data_and_json_hold_everything(self) -> None:
        expected = {
            "width": 640,
            "height": 480,
            "detections": [
                {"name": "WBC", "label": 1, "score": pytest.approx(0.9), "box": [64.0, 48.0, 320.0, 240.0]},
            ],
        }
        assert instances([1]).to_dict() == expected
        assert json.loads(instances([1]).to_json()) == expected
        assert instances([1]).to_json(indent=2).startswith('{\n  "width": 640')
        assert json.loads(instances([]).to_json()) == {"width": 640, "height": 480, "detections": []}

    def test_a_data_frame_has_a_row_per_detection(self) -> None:
        frame = instances([1, 0]).to_dataframe()
        assert list(frame.columns) == ["name", "label", "score", "x1", "y1", "x2", "y2"]
        assert frame["name"].tolist() == ["WBC", "RBC"]
        assert frame["y2"].tolist() == [240.0, 240.0]

    def test_a_data_frame_without_pandas_is_an_import_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "pandas", None)
        with pytest.raises(ImportError, match="pip install pandas"):
            instances([1]).to_dataframe()


class TestPicture:
    def test_detections_are_drawn_on_their_picture_whatever_its_form(self, detector: Detector, photo: Path) -> None:
        image = Image.open(photo).convert("RGB")
        expected = np.asarray(fcos.draw(photo, detector.predict(photo)))
        for form in (photo, str(photo), image, np.asarray(image), torch.tensor(np.asarray(image)).permute(2, 0, 1)):
            np.testing.assert_array_equal(np.asarray(detector.predict(form).plot()), expected)

    def test_plot_has_the_options_of_draw(self, detector: Detector, photo: Path) -> None:
        found = detector.predict(photo)
        assert found.plot(scale=2).size == (240, 160)
        assert found.plot(scores=False).tobytes() != found.plot().tobytes()

    def test_a_picture_from_a_url_is_downloaded_once(
        self, detector: Detector, photo: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        with raw_server({"/photo": response(photo.read_bytes())}) as address:
            found = detector.predict(f"{address}/photo")
        assert found.plot().size == (720, 480)
        assert found.source == f"{address}/photo"

    def test_the_source_is_the_path(self, detector: Detector, photo: Path) -> None:
        assert [found.source for found in detector.predict([photo, str(photo), Image.open(photo)])] == [
            str(photo),
            str(photo),
            "",
        ]

    def test_selected_detections_keep_the_picture(self, detector: Detector, photo: Path) -> None:
        found = detector.predict(photo)
        assert isinstance(found[:2], Prediction)
        assert found[:2].image == photo
        assert [one.image for one in found] == [photo] * len(found)

    @pytest.mark.parametrize(
        ("suffix", "expected"), [("jpg", "JPEG"), ("JPEG", "JPEG"), ("png", "PNG"), ("webp", "WEBP"), ("tif", "TIFF")]
    )
    def test_save_writes_the_format_of_the_suffix(
        self, detector: Detector, photo: Path, tmp_path: Path, suffix: str, expected: str
    ) -> None:
        path = detector.predict(photo).save(str(tmp_path / f"out.{suffix}"))
        assert path == tmp_path / f"out.{suffix}"
        with Image.open(path) as picture:
            assert (picture.format, picture.size) == (expected, (720, 480))

    def test_save_creates_missing_folders(self, detector: Detector, photo: Path, tmp_path: Path) -> None:
        assert detector.predict(photo).save(tmp_path / "new/folder/out.png").is_file()

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("out", "out: expected a file name that ends in .jpg, .jpeg, .png, .bmp, .webp, .tif, .tiff, found ''"),
            ("missing/out.zzz", "out.zzz: expected a file name that ends in .jpg"),
            ("folder.png", "folder.png: cannot be written: Is a directory"),
            ("photo.png", "photo.png: this is the picture itself, which would be overwritten; give another name"),
            ("./folder.png/../photo.png", "photo.png: this is the picture itself"),
            ("link.png", "link.png: this is the picture itself"),
            ("photo.png/out.png", "photo.png/out.png: cannot be written: "),
            (None, "path: expected a path or name, found None"),
            (3, "path: expected a path or name, found 3"),
        ],
    )
    def test_a_picture_that_cannot_be_saved_is_a_user_error(
        self, detector: Detector, photo: Path, tmp_path: Path, name: Any, message: str
    ) -> None:
        (tmp_path / "folder.png").mkdir()
        (tmp_path / "link.png").symlink_to(photo)
        before, content = sorted(tmp_path.iterdir()), photo.read_bytes()
        with pytest.raises(FCOSError) as caught:
            detector.predict(photo).save(tmp_path / name if isinstance(name, str) else name)
        assert message in str(caught.value)
        assert (sorted(tmp_path.iterdir()), photo.read_bytes()) == (before, content)

    def test_a_picture_that_is_gone_is_a_data_error(self, detector: Detector, photo: Path) -> None:
        found = detector.predict(photo)
        photo.unlink()
        for action in (found.plot, found.show, lambda: found.save(photo.parent / "out.png")):
            with pytest.raises(DataError, match="no such file"):
                action()

    def test_show_opens_a_viewer(self, detector: Detector, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
        monkeypatch.setenv("DISPLAY", ":0")
        shown: list[Image.Image] = []
        has_viewer = True
        monkeypatch.setattr(ImageShow, "show", lambda image: shown.append(image) or has_viewer)
        detector.predict(photo).show()
        assert [image.size for image in shown] == [(720, 480)]
        has_viewer = False
        with pytest.raises(FCOSError, match=r"no display or no image viewer; write the picture with save\(PATH\)"):
            detector.predict(photo).show()

    @pytest.mark.skipif(sys.platform != "linux", reason="other systems always have a display")
    def test_show_without_a_display_is_a_user_error(
        self, detector: Detector, photo: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("DISPLAY", "WAYLAND_DISPLAY"):
            monkeypatch.delenv(name, raising=False)
        with pytest.raises(FCOSError, match="no display"):
            detector.predict(photo).show()

    @pytest.mark.parametrize("device", ["zzz", None, ["cpu"], ""])
    def test_unknown_devices_are_a_user_error(self, detector: Detector, device: Any) -> None:
        with pytest.raises(FCOSError, match="device: expected auto, cpu, mps, cuda or cuda:N, found "):
            detector.to(device)

    def test_notebooks_display_the_picture(
        self, detector: Detector, photo: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        found = detector.predict(photo)
        content = found._repr_png_()
        assert content is not None
        with Image.open(io.BytesIO(content)) as picture:
            assert picture.tobytes() == found.plot().tobytes()
        shown: list[Image.Image] = []
        display: Any = types.ModuleType("IPython.display")
        display.display = shown.append
        for name, module in (("ipykernel", display), ("IPython", display), ("IPython.display", display)):
            monkeypatch.setitem(sys.modules, name, module)
        found.show()
        assert [image.size for image in shown] == [(720, 480)]

    def test_detections_without_a_picture_cannot_be_plotted(self) -> None:
        unknown = Prediction(**vars(instances([0])))
        assert unknown._repr_png_() is None
        with pytest.raises(DataError, match=r"the picture of these detections is unknown; use fcos\.draw"):
            unknown.plot()

    @pytest.mark.parametrize("wrong", [None, [], "photo.png"])
    def test_drawing_something_else_is_a_config_error(self, photo: Path, wrong: Any) -> None:
        with pytest.raises(ConfigError, match=r"instances: expected the result of Detector\.predict, found "):
            fcos.draw(photo, wrong)


def test_reused_array_is_drawn_as_it_was_detected_on(detector: Detector) -> None:
    frame = np.full((60, 80, 3), 200, dtype=np.uint8)
    prediction = detector.predict(frame, threshold=1.0)
    frame[:] = 0
    assert np.asarray(prediction.plot(scale=1)).min() == 200


def test_picture_of_twelve_bits_is_drawn_as_it_was_detected_on(detector: Detector, tmp_path: Path) -> None:
    Image.fromarray(np.full((60, 80), 4095, dtype=np.uint16)).save(tmp_path / "white.png")
    data = detector.config.data.model_copy(update={"bit_depth": 12})
    config = detector.config.model_copy(update={"data": data})
    prediction = Detector(detector.model, config).predict(tmp_path / "white.png", threshold=1.0)
    assert np.asarray(prediction.plot(scale=1)).min() == 255
