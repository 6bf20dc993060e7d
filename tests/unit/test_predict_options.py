"""Options of `Detector.predict`, folders and globs, and other properties of `Detector`."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectors import CATEGORY_IDS, NAMES, tiny_config, tiny_model, tiny_two_stage
from hooks import after_forward
from PIL import Image

import fcos
from fcos import ConfigError, DataError, Detector, Instances
from fcos.boxes import class_wise_nms
from fcos.models.mask_head import MaskHead


def make(**model: Any) -> Detector:
    torch.manual_seed(0)
    config = tiny_config(**model)
    return Detector(tiny_model(config), config, class_names=NAMES, category_ids=CATEGORY_IDS)


@pytest.fixture(scope="module")
def detector() -> Detector:
    return make()


@pytest.fixture(scope="module")
def unlimited() -> Detector:
    return make(max_detections=0)


def picture(seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (10, 15, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((120, 80), Image.Resampling.BICUBIC)


def assert_equal(found: Instances, expected: Instances) -> None:
    assert found.labels.tolist() == expected.labels.tolist()
    # Kernels round differently for other batch sizes.
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.boxes, expected.boxes, rtol=0, atol=1e-3)


class TestSelection:
    def test_classes_are_selected_before_the_limit_applies(self, detector: Detector, unlimited: Detector) -> None:
        everything = unlimited.predict(picture())
        for classes in (["owl"], ["owl", "cat"], []):
            labels = torch.tensor([NAMES.index(name) for name in classes], dtype=torch.int64)
            expected = everything[torch.isin(everything.labels, labels)][:20]
            assert_equal(detector.predict(picture(), classes=classes), expected)

    def test_the_best_detections_are_kept(self, detector: Detector, unlimited: Detector) -> None:
        everything = unlimited.predict(picture(), threshold=0.1)
        assert len(everything) > 25
        for limit in (1, 25):
            assert_equal(detector.predict(picture(), threshold=0.1, max_detections=limit), everything[:limit])
        assert_equal(detector.predict(picture(), threshold=0.1, max_detections=0), everything)

    def test_the_limit_applies_to_detections_above_the_thresholds(self) -> None:
        config = tiny_config()
        torch.manual_seed(0)
        model = tiny_model(config)
        probe = Detector(model, config, class_names=NAMES)
        best = NAMES[int(probe.predict(picture(), threshold=0).labels[0])]
        picky = Detector(model, config, class_names=NAMES, thresholds={best: 1.0})
        found = picky.predict(picture(), max_detections=3)
        assert len(found) == 3
        assert best not in found.names

    @pytest.mark.parametrize("iou", [0.1, 0.3, 0.9])
    def test_the_nms_threshold_is_that_of_the_config(self, detector: Detector, iou: float) -> None:
        expected = make(nms_threshold=iou).predict(picture(), threshold=0)
        found = detector.predict(picture(), threshold=0, nms_threshold=iou)
        assert_equal(found, expected)
        kept = class_wise_nms(found.boxes, found.scores, found.labels, iou + 1e-4, convention="continuous")
        assert len(kept) == len(found)

    def test_options_hold_for_one_call(self, detector: Detector) -> None:
        before = detector.predict(picture())
        detector.predict(picture(), classes=["cat"], max_detections=1, nms_threshold=0.1)
        assert_equal(detector.predict(picture()), before)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"threshold": 1.5}, r"threshold: expected a number from 0 to 1, found 1\.5"),
            ({"threshold": "0.5"}, r"threshold: expected a number from 0 to 1, found '0\.5'"),
            ({"threshold": float("nan")}, r"threshold: expected a number from 0 to 1, found nan"),
            ({"nms_threshold": -1}, r"nms_threshold: expected a number from 0 to 1, found -1"),
            ({"max_detections": -1}, "max_detections: expected an integer of at least 0, found -1"),
            ({"max_detections": 2.5}, r"max_detections: expected an integer of at least 0, found 2\.5"),
            ({"max_detections": [5]}, r"max_detections: expected an integer of at least 0, found \[5\]"),
            ({"batch_size": 0}, "batch_size: expected an integer of at least 1, found 0"),
            ({"classes": ["cta"]}, r"classes: no class 'cta'.*did you mean 'cat'.*; the detector has cat, dog, owl"),
            ({"classes": [0]}, "classes: no class 0"),
            ({"classes": "cat"}, "classes: expected a list of class names, found 'cat'"),
            ({"classes": 5}, "classes: expected a list of class names, found 5"),
        ],
    )
    def test_a_wrong_option_is_a_config_error(self, detector: Detector, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            detector.predict(picture(), **options)

    def test_numpy_and_torch_numbers_are_numbers(self, detector: Detector) -> None:
        expected = detector.predict(picture(), threshold=0.25, max_detections=3)
        assert_equal(detector.predict(picture(), threshold=0.25, max_detections=3.0), expected)  # pyright: ignore[reportArgumentType, reportCallIssue]
        found = detector.predict(picture(), threshold=np.float32(0.25), max_detections=np.int64(3))  # pyright: ignore[reportArgumentType, reportCallIssue]
        assert_equal(found, expected)

    def test_masks_are_computed_for_the_selected_detections_only(self) -> None:
        torch.manual_seed(0)
        config = tiny_config(name="rcnn", max_detections=0, mask={"enabled": True, "conv_channels": [8]})
        detector = Detector(tiny_two_stage(config), config, class_names=NAMES)
        everything = detector.predict(picture(), threshold=0)
        options: dict[str, Any] = {"classes": ["owl", "cat"], "threshold": 0.2, "max_detections": 7}
        is_wanted = torch.tensor([name != "dog" for name in everything.names]) & (everything.scores >= 0.2)
        wanted = everything[is_wanted][:7]
        assert len(wanted) == 7 < is_wanted.sum() < len(everything)
        counts: list[int] = []
        with after_forward(MaskHead, lambda _, grids: counts.append(len(grids))):
            found = detector.predict(picture(), **options)
        assert counts == [7]
        assert_equal(found, wanted)
        assert found.mask_grids is not None
        assert wanted.mask_grids is not None
        torch.testing.assert_close(found.mask_grids, wanted.mask_grids, rtol=0, atol=1e-5)

    def test_detections_below_the_thresholds_are_counted(self, detector: Detector) -> None:
        everything = detector.predict(picture(), threshold=0)
        assert (everything.num_below, everything.best_below) == (0, 0.0)
        threshold = float(everything.scores[4])
        found = detector.predict(picture(), threshold=threshold)
        assert found.num_below == len(everything) - len(found) > 0
        assert found.best_below == float(everything.scores[len(found)])

    def test_unnamed_classes_are_selected_by_label(self) -> None:
        config = tiny_config()
        torch.manual_seed(0)
        found = Detector(tiny_model(config), config).predict(picture(), classes=["1"])
        assert set(found.labels.tolist()) == {1}


class TestPictures:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        (tmp_path / "more").mkdir()
        for i, name in enumerate(("b.png", "a.png", "more/c.png")):
            picture(i).save(tmp_path / name)
        (tmp_path / "notes.txt").write_text("no picture")
        return tmp_path

    def test_a_folder_gives_a_result_for_every_picture_in_it(self, detector: Detector, folder: Path) -> None:
        for source in (folder, str(folder)):
            results = detector.predict(source)
            assert [result.image for result in results] == [str(folder / "a.png"), str(folder / "b.png")]
            assert_equal(results[0], detector.predict(picture(1)))

    def test_a_glob_gives_a_result_for_every_match(self, detector: Detector, folder: Path) -> None:
        assert [r.image for r in detector.predict(f"{folder}/[b]*")] == [str(folder / "b.png")]
        assert len(detector.predict(folder / "**" / "*.png")) == 3

    def test_folders_and_pictures_may_be_mixed_in_a_list(self, detector: Detector, folder: Path) -> None:
        image = picture()
        results = detector.predict([image, folder / "more", folder / "a.png"])
        assert [r.image for r in results] == [image, str(folder / "more" / "c.png"), folder / "a.png"]

    def test_a_file_whose_name_looks_like_a_glob_is_a_file(self, detector: Detector, folder: Path) -> None:
        picture().save(folder / "x[1].png")
        assert_equal(detector.predict(folder / "x[1].png"), detector.predict(picture()))

    @pytest.mark.parametrize("source", ["empty", "none*.png", "none.png"])
    def test_a_source_without_pictures_is_a_data_error(self, detector: Detector, folder: Path, source: str) -> None:
        (folder / "empty").mkdir()
        with pytest.raises(DataError, match=r"no images in this folder|no file matches|no such file"):
            detector.predict(folder / source)

    def test_generators_and_tuples_are_lists_of_pictures(self, detector: Detector) -> None:
        expected = [detector.predict(picture(seed)) for seed in (0, 1)]
        for images in ((picture(seed) for seed in (0, 1)), (picture(0), picture(1))):
            for found, one in zip(detector.predict(images), expected, strict=True):
                assert_equal(found, one)

    @pytest.mark.parametrize("wrong", [None, 5, b"\x89PNG", io.BytesIO(b"\x89PNG"), {1: 2}, [None], [b"x"], object()])
    def test_anything_else_is_a_data_error(self, detector: Detector, wrong: Any) -> None:
        with pytest.raises(DataError, match=r"^images\[0\]: expected a path, PIL image, array or tensor, found "):
            detector.predict(wrong)

    def test_float_arrays_are_like_integer_arrays(self, detector: Detector) -> None:
        array = np.asarray(picture())
        expected = detector.predict(array)
        for dtype in (np.float32, np.float64):
            assert_equal(detector.predict((array / 255).astype(dtype)), expected)
        grey = np.asarray(picture().convert("L"))
        assert_equal(detector.predict(grey / 255), detector.predict(grey))

    def test_rgba_arrays_and_tensors_are_like_images(self, detector: Detector) -> None:
        image = picture().convert("RGBA")
        image.putalpha(Image.linear_gradient("L").resize(image.size))
        array = np.array(image)
        expected = detector.predict(image)
        for form in (array, array / 255, torch.tensor(array).permute(2, 0, 1)):
            assert_equal(detector.predict(form), expected)

    def test_half_precision_tensors_are_pictures(self, detector: Detector) -> None:
        assert detector.predict(torch.rand(3, 80, 120).bfloat16()).size == (80, 120)


class TestDetector:
    def test_the_repr_shows_classes_recipe_and_device(self) -> None:
        config = fcos.load_config("fcos_mnv2_small", ["model.backbone.weights=null", "model.max_detections=5"])
        model = fcos.load("fcos_mnv2_small", "model.backbone.weights=null", "model.num_classes=3", device="cpu").model
        assert repr(Detector(model, config, class_names=NAMES)) == (
            "Detector(3 classes: cat, dog, owl; fcos_mnv2_small; cpu)"
        )
        untrained = Detector(model, config, is_trained=False)
        assert repr(untrained) == "Detector(3 classes: without names; fcos_mnv2_small; cpu, untrained)"

    def test_the_repr_of_another_architecture_names_its_backbone(self, detector: Detector) -> None:
        assert repr(detector) == "Detector(3 classes: cat, dog, owl; fcos, mobilenet_v2; cpu)"

    def test_the_repr_shortens_and_escapes_class_names(self) -> None:
        config = tiny_config()
        names = ("a\x1b[31m", "b", "c")
        assert r"3 classes: a\x1b[31m, b, c;" in repr(Detector(tiny_model(config), config, class_names=names))

    def test_to_moves_the_model_and_returns_the_detector(self) -> None:
        detector = make()
        assert detector.to("cpu") is detector
        assert detector.to(torch.device("cpu")).device == torch.device("cpu")

    @pytest.mark.parametrize("device", ["", "abacus"])
    def test_load_rejects_a_device_instead_of_ignoring_it(self, device: str) -> None:
        with pytest.raises(ConfigError, match="device: expected auto, cpu, mps, cuda or cuda:N"):
            fcos.load("fcos_mnv2_small", "model.backbone.weights=null", device=device)

    @pytest.mark.parametrize("device", ["abacus", None, "cuda:99"])
    def test_a_device_that_does_not_exist_is_a_config_error(self, detector: Detector, device: Any) -> None:
        with pytest.raises(ConfigError, match="device"):
            detector.to(device)

    @pytest.mark.parametrize("source", [None, b"best.pt", 5, ["best.pt"]])
    def test_weights_that_are_no_path_are_a_config_error(self, source: Any) -> None:
        for function in (fcos.load, fcos.evaluate):
            with pytest.raises(ConfigError, match="expected a path or name, found "):
                function(source)
