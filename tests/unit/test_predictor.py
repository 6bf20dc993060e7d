"""`Detector`: accepts images in any form and returns boxes in pixels of the original image."""

from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from detectors import CATEGORY_IDS, NAMES, tiny_config, tiny_model
from PIL import Image

import fcos
from fcos import ConfigError, DataError, Detector, WeightsError
from fcos.checkpoint import save_checkpoint


def picture(width=120, height=80, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def assert_same(found, expected, *, pixels=1e-3, score=1e-5):
    assert found.size == expected.size
    assert found.labels.tolist() == expected.labels.tolist()
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=score)
    torch.testing.assert_close(found.boxes, expected.boxes, rtol=0, atol=pixels)


def test_detections_are_named_sorted_and_inside_the_original_image(detector):
    found = detector.predict(picture(123, 77))
    assert len(found) > 5
    assert found.size == (77, 123)
    assert set(found.names) <= set(NAMES)
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    assert (found.boxes >= 0).all()
    assert (found.boxes[:, [0, 2]] <= 123).all()
    assert (found.boxes[:, [1, 3]] <= 77).all()


def test_boxes_are_in_pixels_of_the_original_image(detector):
    """An image of twice the width and height gives the same detections at twice the size."""
    small = picture(120, 96)
    large = small.resize((240, 192), Image.Resampling.NEAREST)
    one, two = detector.predict(small), detector.predict(large)
    best = one.boxes[0] * 2
    distance = (two.boxes - best).abs().amax(dim=1).min()
    assert distance < 4  # resizing changes the pixels slightly


def test_all_image_types_yield_the_same_detections(detector, tmp_path):
    image = picture()
    image.save(tmp_path / "a.png")
    array = np.asarray(image)
    tensor = torch.tensor(array).permute(2, 0, 1)
    forms = [tmp_path / "a.png", str(tmp_path / "a.png"), image, array, tensor, tensor.float() / 255]
    expected = detector.predict(image)
    for found in detector.predict(forms):
        assert_same(found, expected)


def test_all_grayscale_image_types_yield_the_same_detections(detector):
    grey = picture().convert("L")
    array = np.asarray(grey)
    expected = detector.predict(grey)
    for form in (array, array[..., None], torch.tensor(array)[None]):
        assert_same(detector.predict(form), expected, pixels=0, score=0)


def test_predict_of_a_list_returns_a_list(detector):
    assert len(detector.predict([picture()])) == 1
    assert detector.predict([]) == []


@pytest.mark.parametrize("batch_size", [2, 3, 8])
def test_detections_do_not_depend_on_batch_size(detector, batch_size):
    sizes = [(120, 80), (80, 120), (120, 82), (64, 64), (118, 80), (200, 90)]
    pictures = [picture(*size, seed=i) for i, size in enumerate(sizes)]
    together = detector.predict(pictures, batch_size=batch_size)
    for found, image in zip(together, pictures, strict=True):
        assert_same(found, detector.predict(image))


def test_threshold_discards_lower_scores(detector):
    everything = detector.predict(picture(), threshold=0)
    middle = everything.scores.median().item()
    expected = everything[everything.scores >= middle]
    assert 0 < len(expected) < len(everything)
    assert_same(detector.predict(picture(), threshold=middle), expected, pixels=0, score=0)


def test_results_can_be_modified_in_place(detector):
    found = detector.predict(picture())
    found.boxes[:, 0] += 1
    assert not found.boxes.requires_grad


def test_inclusive_model_returns_continuous_boxes():
    config = tiny_config(box_convention="inclusive")
    detector = Detector(tiny_model(config), config)
    found = detector.predict(picture(120, 96), threshold=0)
    # The image is not resized: the last pixel, 119, becomes the edge at 120.
    assert found.boxes[:, 2].max().item() == 120
    assert (found.boxes[:, 2:] - found.boxes[:, :2]).min() >= 1


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((8, 8, 3), np.int32), r"expected an array .* of uint8 .*, found \[8, 8, 3\] of int32"),
        (np.zeros((8, 8, 2), np.uint8), r"expected an array .*, found \[8, 8, 2\] of uint8"),
        (
            np.full((8, 8, 3), 255.0),
            r"expected a float array in 0\.\.1, found 0\.\.255|found 255\.\.255; for 0\.\.255, use",
        ),
        (np.full((8, 8), np.nan, np.float16), r"expected a float array in 0\.\.1, found nan"),
        (np.zeros((3, 8, 8), np.uint8), r"expected an array .*, found \[3, 8, 8\] of uint8"),
        (np.zeros((0, 8, 3), np.uint8), r"found \[0, 8, 3\]"),
        (torch.zeros(8, 8, 3), r"expected a tensor \[3, H, W\].*, found \[8, 8, 3\]"),
        (torch.full((3, 8, 8), 255.0), r"expected a float tensor in 0\.\.1, found 255\.\.255"),
        (torch.full((3, 8, 8), torch.nan), r"expected a float tensor in 0\.\.1, found nan"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), r"expected a tensor of uint8 .*, found torch\.int64"),
        (Image.new("F", (8, 8)), "floating-point pixels"),
        (42, "expected a path, PIL image, array or tensor, found int"),
    ],
)
def test_invalid_image_is_rejected(detector, image, message):
    with pytest.raises(DataError, match=message) as error:
        detector.predict([picture(), image])
    assert str(error.value).startswith("images[1]: ")


def test_missing_file_error_names_the_file(detector, tmp_path):
    with pytest.raises(DataError, match=r"none\.jpg: no such file"):
        detector.predict(tmp_path / "none.jpg")


@pytest.mark.parametrize(("score", "threshold"), [("sqrt", 0.5), ("product", 0.25)])
def test_default_threshold_is_squared_for_product_scores(score, threshold):
    config = tiny_config(score=score, max_detections=0)  # no limit
    detector = Detector(tiny_model(config), config, class_names=NAMES)
    expected = detector.predict(picture(), threshold=threshold)
    assert 0 < len(expected) < len(detector.predict(picture(), threshold=0))
    assert_same(detector.predict(picture()), expected, pixels=0, score=0)


def test_threshold_outside_0_to_1_is_rejected(detector):
    with pytest.raises(ValueError, match=r"threshold: expected a number from 0 to 1, found 30"):
        detector.predict(picture(), threshold=30)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_batch_size_below_1_is_rejected(detector, batch_size):
    with pytest.raises(ValueError, match=f"batch_size: expected an integer of at least 1, found {batch_size}"):
        detector.predict([picture()], batch_size=batch_size)


class TestLoad:
    @pytest.fixture
    def weights(self, detector, tmp_path):
        path = tmp_path / "best.pt"
        save_checkpoint(
            path,
            model=detector.model,
            config=detector.config.model_copy(update={"device": "cuda:7"}),
            class_names=NAMES,
            category_ids=CATEGORY_IDS,
            thresholds={"cat": 0.36},
        )
        return path

    def test_loaded_weights_reproduce_the_detections(self, detector, weights):
        loaded = fcos.load(weights, device="cpu")
        assert loaded.class_names == NAMES
        assert loaded.category_ids == CATEGORY_IDS
        assert_same(loaded.predict(picture()), detector.predict(picture()))

    def test_overrides_change_detection_options(self, weights):
        loaded = fcos.load(weights, "model.max_detections=3", "data.test_short_side=64", device="cpu")
        assert len(loaded.predict(picture(), threshold=0)) == 3
        assert loaded.config.data.detection_short_side == 64

    def test_thresholds_are_converted_between_sqrt_and_product_scores(self, weights, tmp_path):
        squared = fcos.load(weights, "model.score=product", device="cpu")
        assert squared.thresholds.tolist() == pytest.approx([0.36**2, 0.25, 0.25])
        config, again = squared.config, tmp_path / "again.pt"
        own = {"class_names": NAMES, "category_ids": CATEGORY_IDS, "thresholds": {"cat": 0.36**2}}
        save_checkpoint(again, model=squared.model, config=config, **own)
        assert fcos.load(again, device="cpu").thresholds.tolist() == pytest.approx([0.36**2, 0.25, 0.25])
        rooted = fcos.load(again, "model.score=sqrt", device="cpu")
        assert rooted.thresholds.tolist() == pytest.approx([0.36, 0.5, 0.5])

    def test_evaluate_without_data_raises(self, weights):
        with pytest.raises(DataError, match="no data"):
            fcos.evaluate(weights, "data=", "device=cpu")

    def test_evaluate_rejects_a_recipe_instead_of_weights(self):
        with pytest.raises(WeightsError, match="a recipe or config; expected weights that were trained with it"):
            fcos.evaluate("fcos_mnv2_small")

    def test_override_that_changes_the_network_is_rejected(self, weights):
        with pytest.raises(ConfigError, match="determines the shapes of the weights; remove it"):
            fcos.load(weights, "model.head.num_convs=2", device="cpu")

    def test_misspelled_override_suggests_the_closest_option(self, weights):
        with pytest.raises(ConfigError, match=r"did you mean 'nms_threshold'"):
            fcos.load(weights, "model.nms_treshold=0.5", device="cpu")

    def test_recipe_loads_as_an_untrained_detector(self):
        loaded = fcos.load("fcos_mnv2_small", "model.backbone.weights=null", "model.num_classes=5", device="cpu")
        assert loaded.model.num_classes == 5
        assert loaded.category_ids == (0, 1, 2, 3, 4)

    def test_unknown_name_error_lists_the_recipes(self):
        with pytest.raises(WeightsError, match=r"fcos_mnv2_smal: .*recipes: .*fcos_mnv2_small"):
            fcos.load("fcos_mnv2_smal")


@contextmanager
def served(folder: Path):
    """Serve a folder with a local web server and yield its URL."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class TestUrls:
    def test_image_url_yields_the_same_detections_as_the_file(self, detector, tmp_path):
        picture().save(tmp_path / "a b.png")
        with served(tmp_path) as address:
            found = detector.predict(f"{address}/a%20b.png")
        assert_same(found, detector.predict(tmp_path / "a b.png"), pixels=0, score=0)

    def test_http_error_status_is_reported(self, detector, tmp_path):
        with served(tmp_path) as address, pytest.raises(DataError, match=r"none\.jpg: the server responded with 404"):
            detector.predict(f"{address}/none.jpg")

    def test_url_of_an_html_page_is_rejected(self, detector, tmp_path):
        (tmp_path / "page.html").write_text("<p>Hello")
        with (
            served(tmp_path) as address,
            pytest.raises(DataError, match=r"page\.html: not an image.*text/html, 8 bytes"),
        ):
            detector.predict(f"{address}/page.html")

    def test_unreachable_server_is_reported(self, detector, tmp_path):
        with served(tmp_path) as address:
            pass
        with pytest.raises(DataError, match=r"cannot be downloaded: .*refused"):
            detector.predict(f"{address}/a.jpg")


@pytest.mark.filterwarnings("ignore:OpenCV:UserWarning")  # supervision's import warns without OpenCV
def test_to_supervision_keeps_boxes_scores_classes_and_names(detector):
    found = detector.predict(picture())
    detections = found.to_supervision()
    np.testing.assert_array_equal(detections.xyxy, found.boxes.numpy())
    np.testing.assert_array_equal(detections.confidence, found.scores.numpy())
    np.testing.assert_array_equal(detections.class_id, found.labels.numpy())
    assert detections.data["class_name"].tolist() == found.names
