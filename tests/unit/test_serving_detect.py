"""`POST /v1/detect`: results, forms of the request and of the result, options, limits."""

import asyncio
import base64
import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import numpy as np
import pytest
import torch
from detectors import NAMES, tiny_detector
from exports import small_detector
from PIL import Image
from processes import SECONDS
from serving import encoded, picture, running, shape_detector

import fcos
from fcos.inference.selection import Selection
from fcos.inference.sources import predict_files
from fcos.keypoints import COCO_PERSON
from fcos.serving.problems import Problem
from fcos.serving.service import Service
from fcos.serving.settings import Settings
from fcos.structures import Instances

PNG = {"Content-Type": "image/png"}


@pytest.fixture(scope="module")
def client():
    with running(tiny_detector(), name="tiny") as client:
        yield client


def rows_of_predict(detector, files, out, **options):
    """Return what `fcos predict --save json` writes for files, without the keys that only files have."""
    assert predict_files(
        detector, list(map(str, files)), out, save=("images", "json"), report=lambda _: None, **options
    )
    rows = json.loads((out / "predictions.json").read_text())
    return [{key: row[key] for key in ("width", "height", "detections")} for row in rows]


def exif(orientation):
    data = Image.Exif()
    data[274] = orientation
    return data


FILES = {
    "plain.png": lambda: encoded(picture()),
    "rotated.jpg": lambda: encoded(picture(), "JPEG", exif=exif(6)),
    "grey.png": lambda: encoded(picture().convert("L")),
    "deep.png": lambda: encoded(Image.fromarray(np.asarray(picture().convert("L")).astype(np.uint16) * 200)),
    "transparent.webp": lambda: encoded(picture().convert("RGBA"), "WEBP", lossless=True),
    "large.bmp": lambda: encoded(picture(333, 201, seed=3), "BMP"),
    "moving.gif": lambda: encoded(picture(), "GIF", save_all=True, append_images=[picture(seed=1)]),
    "wide.tif": lambda: encoded(picture(400, 60, seed=4), "TIFF"),
}


@pytest.mark.parametrize("name", FILES)
def test_detections_equal_those_of_fcos_predict(client, tmp_path, name):
    file = tmp_path / name
    file.write_bytes(FILES[name]())
    (expected,) = rows_of_predict(tiny_detector(), [file], tmp_path / "out", threshold=0.5)
    answer = client.post("/v1/detect?threshold=0.5", content=file.read_bytes(), headers=PNG)
    assert answer.status_code == 200, answer.text
    assert answer.json() == {"model": "tiny", "images": [expected]}
    assert len(expected["detections"]) > 5


def test_annotated_image_equals_that_of_fcos_predict(client, tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(picture()))
    rows_of_predict(tiny_detector(), [tmp_path / "a.png"], tmp_path / "out", threshold=0.5)
    content = (tmp_path / "a.png").read_bytes()
    answer = client.post("/v1/detect?threshold=0.5&format=png", content=content, headers=PNG)
    assert answer.headers["Content-Type"] == "image/png"
    expected = np.asarray(Image.open(tmp_path / "out" / "a.png"))
    np.testing.assert_array_equal(np.asarray(Image.open(BytesIO(answer.content))), expected)


def test_masks_and_keypoints_equal_those_of_fcos_predict(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(picture()))
    (expected,) = rows_of_predict(shape_detector(), [tmp_path / "a.png"], tmp_path / "out", threshold=0.2)
    with running(shape_detector()) as client:
        content = (tmp_path / "a.png").read_bytes()
        answer = client.post("/v1/detect?threshold=0.2", content=content, headers=PNG)
        model = client.get("/v1/model").json()
    assert answer.json()["images"] == [expected]
    assert expected["detections"]
    assert all({"segmentation", "keypoints"} <= set(detection) for detection in expected["detections"])
    assert (model["masks"], model["keypoints"]) == (True, True)
    assert model["skeleton"] == [list(pair) for pair in COCO_PERSON.skeleton]


@pytest.mark.parametrize("options", [pytest.param({}, marks=pytest.mark.slow), {"size": (96, 160), "batch": 2}])
def test_exported_file_is_served_as_it_is_predicted(tmp_path, options):
    exported = small_detector().export(tmp_path / "model.onnx", **options).path
    files = [tmp_path / f"{width}.png" for width in (120, 130, 140)]
    for file in files:
        file.write_bytes(encoded(picture(int(file.stem), 80, seed=int(file.stem))))
    expected = rows_of_predict(fcos.load(exported), files, tmp_path / "out", threshold=0.5)
    assert all(row["detections"] for row in expected)
    with running(fcos.load(exported)) as client:
        contents = [("images", (file.name, file.read_bytes())) for file in files]
        answer = client.post("/v1/detect?threshold=0.5", files=contents)
        high = client.post("/v1/detect", content=encoded(picture(60, 120)), headers=PNG)
        no_option = client.post("/v1/detect?nms_threshold=0.5", files=contents)
        assert answer.json()["images"] == expected
        assert client.get("/v2/health/ready").status_code == 200
    if options:
        assert high.status_code == 422
        assert "does not fit into the 160x96 pixels that the file accepts" in high.json()["detail"]
    else:
        assert high.json()["images"][0]["detections"]
    assert no_option.status_code == 422
    assert no_option.json()["detail"] == "nms_threshold: this detector has no such option"


def test_options_are_those_of_the_python_function(client):
    options = {"threshold": 0.52, "classes": ["owl", "dog"], "max_detections": 4, "nms_threshold": 0.2}
    expected = tiny_detector().predict(picture(), **options)
    answer = client.post("/v1/detect", params=options, content=encoded(picture()), headers=PNG).json()
    boxes = [detection["box"] for detection in answer["images"][0]["detections"]]
    assert boxes == expected.boxes.tolist()
    assert [detection["name"] for detection in answer["images"][0]["detections"]] == expected.names
    assert len(boxes) == 4


def test_concurrent_requests_of_different_sizes_get_their_own_detections(tmp_path):
    sizes = [(120, 80), (80, 120), (120, 80), (96, 96), (118, 80), (200, 60)] * 4
    pictures = [picture(*size, seed=seed) for seed, size in enumerate(sizes)]
    detector = tiny_detector()
    expected = [detector.predict(image, threshold=0.5) for image in pictures]
    with running(tiny_detector(), max_batch=4, max_wait_ms=50) as client, ThreadPoolExecutor(len(sizes)) as pool:

        def send(image):
            return client.post("/v1/detect?threshold=0.5", content=encoded(image), headers=PNG).json()["images"][0]

        answers = list(pool.map(send, pictures))
        metrics = client.get("/metrics").text
    for image, answer, prediction in zip(pictures, answers, expected, strict=True):
        assert (answer["width"], answer["height"]) == image.size
        boxes = torch.tensor([detection["box"] for detection in answer["detections"]])
        torch.testing.assert_close(boxes, prediction.boxes, atol=1e-3, rtol=0)
    batches = float(metrics.partition("fcos_batch_images_count ")[2].split()[0])
    assert batches < len(sizes)  # several images were processed together


@pytest.mark.parametrize("send", ["form", "json"])
def test_several_images_are_answered_in_their_order(client, send):
    files = [encoded(picture(width, 80, seed=width)) for width in (90, 120, 150)]
    if send == "form":
        answer = client.post("/v1/detect", files=[("images", (f"{i}.png", file)) for i, file in enumerate(files)])
    else:
        answer = client.post("/v1/detect", json={"images": [base64.b64encode(file).decode() for file in files]})
    assert [image["width"] for image in answer.json()["images"]] == [90, 120, 150]


def test_annotated_image_of_several_images_is_rejected(client):
    files = [("images", encoded(picture()))] * 2
    answer = client.post("/v1/detect?format=jpeg", files=files)
    assert answer.status_code == 422
    assert answer.json()["detail"] == "format: jpeg is for a single image, found 2; use json"


def test_limits_are_reported_as_problems():
    image = encoded(picture())
    with running(tiny_detector(), max_body=len(image) + 500, max_pixels=9600, max_queue=2) as client:
        assert client.post("/v1/detect", content=image, headers=PNG).status_code == 200
        too_large = client.post("/v1/detect", content=image + bytes(501), headers=PNG)
        streamed = client.post("/v1/detect", content=iter([image, bytes(501)]), headers=PNG)
        pixels = client.post("/v1/detect", content=encoded(Image.new("RGB", (121, 80))), headers=PNG)
        files = [("images", encoded(Image.new("RGB", (8, 8))))] * 3
        many = client.post("/v1/detect", files=files)
    for answer in (too_large, streamed, pixels, many):
        assert answer.status_code == 413
        assert answer.headers["Content-Type"] == "application/problem+json"
    assert streamed.json()["detail"] == f"body: this server accepts at most {len(image) + 500:,} bytes"
    assert pixels.json()["detail"] == "image: has 121x80 pixels; this server accepts at most 9,600"
    assert many.json()["detail"] == "3 images; this server accepts at most 2 per request"


class SlowDetector:
    """Detector whose model waits until the test releases it."""

    def __init__(self):
        self.detector = tiny_detector()
        self.released, self.started = threading.Event(), threading.Event()
        self.released.set()
        forward = self.detector.model.forward

        def wait(images, sizes):
            self.started.set()
            self.released.wait()
            return forward(images, sizes)

        self.detector.model.forward = wait  # pyright: ignore[reportAttributeAccessIssue]

    def block(self):
        self.released.clear()
        self.started.clear()


def test_full_queue_is_answered_with_429():
    slow = SlowDetector()
    with running(slow.detector, max_queue=1, timeout=600) as client, ThreadPoolExecutor(1) as pool:
        slow.block()
        first = pool.submit(client.post, "/v1/detect", content=encoded(picture()), headers=PNG)
        try:
            assert slow.started.wait(SECONDS)
            full = client.post("/v1/detect", content=encoded(picture()), headers=PNG)
        finally:
            slow.released.set()
        assert first.result().status_code == 200
        after = client.post("/v1/detect", content=encoded(picture()), headers=PNG)
    assert (full.status_code, full.headers["Retry-After"]) == (429, "1")
    assert after.status_code == 200


def test_late_result_is_answered_with_504():
    async def detect():
        service = Service(tiny_detector(), Settings(timeout=0.0))
        await service.start()
        try:
            async with service.admit() as ticket:
                await service.detect([encoded(picture())], Selection(), ticket)
        finally:
            assert service.in_progress == 0
            await service.stop()

    with pytest.raises(Problem, match="no result within 0 s") as error:
        asyncio.run(detect())
    assert error.value.status == 504


def test_late_encoding_is_answered_with_504(monkeypatch):
    reached, released, convert = threading.Event(), threading.Event(), Instances.to_dict

    def convert_slowly(instances):
        reached.set()
        assert released.wait(SECONDS)
        return convert(instances)

    monkeypatch.setattr(Instances, "to_dict", convert_slowly)
    with running(tiny_detector(), timeout=5.0) as client:
        late = client.post("/v1/detect", content=encoded(picture()), headers=PNG)
        released.set()
        after = client.post("/v1/detect", content=encoded(picture()), headers=PNG)
    assert reached.is_set()
    assert (late.status_code, late.json()["detail"]) == (504, "no result within 5 s")
    assert after.status_code == 200


def test_request_that_outlives_the_service_is_answered_with_503(monkeypatch):
    async def detect():
        service = Service(tiny_detector(), Settings())
        await service.start()
        async with service.admit() as ticket:
            prepared = service._decode(encoded(picture()), "image", False)
            monkeypatch.setattr(service, "run", lambda *_: asyncio.sleep(0, prepared))
            await service.stop()
            await service.detect([b""], Selection(), ticket)

    async def decode():
        service = Service(tiny_detector(), Settings())
        await service.start()
        async with service.admit() as ticket:
            await service.stop()
            await service.detect([encoded(picture())], Selection(), ticket)

    for request in (detect, decode):
        with pytest.raises(Problem, match="the server is starting or stopping") as error:
            asyncio.run(request())
        assert error.value.status == 503


def test_body_that_does_not_arrive_is_answered_with_408():
    head = b"POST /v1/detect HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\nContent-Length: 9\r\n\r\n"
    with running(tiny_detector(), timeout=0.2) as client:
        address = client.base_url.host, client.base_url.port
        with socket.create_connection(address) as connection:
            connection.sendall(head + b"1")
            assert connection.recv(100).startswith(b"HTTP/1.1 408 ")


def test_image_that_makes_the_detector_fail_does_not_affect_others():
    detector = tiny_detector()
    forward = detector.model.forward

    def fail(images, sizes):
        if (images[:, :, :64, :64] == 255).flatten(1).all(dim=1).any():
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return forward(images, sizes)

    detector.model.forward = fail  # pyright: ignore[reportAttributeAccessIssue]
    white = encoded(Image.new("RGB", (120, 80), "white"))
    with running(detector, max_batch=4, max_wait_ms=300) as client, ThreadPoolExecutor(4) as pool:
        answers = list(
            pool.map(
                lambda content: client.post("/v1/detect", content=content, headers=PNG),
                [encoded(picture()), white, encoded(picture(seed=1)), encoded(picture(seed=2))],
            )
        )
    assert [answer.status_code for answer in answers] == [200, 503, 200, 200]
    assert answers[1].json()["detail"] == "not enough memory at the moment"


def test_unexpected_failure_is_a_problem_with_the_id_of_the_request(caplog):
    detector = tiny_detector()
    with running(detector) as client:
        detector.model.forward = lambda images, sizes: 1 / 0  # pyright: ignore[reportAttributeAccessIssue]
        answer = client.post("/v1/detect", content=encoded(picture()), headers={**PNG, "X-Request-Id": "mine"})
    assert answer.status_code == 500
    assert answer.headers["X-Request-Id"] == "mine"
    assert answer.json()["detail"] == "internal error; the log of the server has the details under id mine"
    assert "ZeroDivisionError" in caplog.text


def test_requests_need_the_token():
    with running(tiny_detector(), token="s3cret", name="tiny") as client:
        open_routes = ["/", "/page/app.js", "/v2/health/live", "/v2/health/ready", "/openapi.json"]
        assert {client.get(route).status_code for route in open_routes} == {200}
        for route in ("/v1/model", "/metrics", "/v2", "/v2/models/tiny"):
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic s3cret"}):
                answer = client.get(route, headers=headers)
                assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
            assert client.get(route, headers={"Authorization": "Bearer s3cret"}).status_code == 200
        assert client.post("/v1/detect?threshold=9", content=encoded(picture()), headers=PNG).status_code == 401


def test_model_description_has_classes_thresholds_and_colours(client):
    model = client.get("/v1/model").json()
    assert [entry["name"] for entry in model["classes"]] == list(NAMES)
    assert [entry["category_id"] for entry in model["classes"]] == [18, 3, 90]
    assert model["classes"][0] == {"name": "cat", "category_id": 18, "threshold": 0.5, "color": "#e69f00"}


def test_openapi_document_describes_bodies_results_and_problems(client):
    document = client.get("/openapi.json").json()
    detect = document["paths"]["/v1/detect"]["post"]
    assert set(detect["requestBody"]["content"]) >= {"multipart/form-data", "application/json", "image/png"}
    assert {"200", "413", "415", "422", "429", "503", "504"} <= set(detect["responses"])
    example = detect["requestBody"]["content"]["application/json"]["example"]
    answer = client.post("/v1/detect", json=example)
    assert answer.status_code == 200  # the example can be sent
    assert "/v2/models/{model}/infer" in document["paths"]
    assert "$defs" not in json.dumps(document)


def test_long_headers_and_urls_are_rejected(client):
    for answer in (client.get("/v1/model", headers={"X": "a" * 33_000}), client.get("/v1/model?" + "a" * 33_000)):
        assert answer.status_code == 431
        assert answer.json()["detail"] == "the URL and the headers have more than 32,768 bytes"


def test_responses_have_security_headers(client):
    for answer in (client.get("/"), client.get("/nothing"), client.post("/v1/detect")):
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert client.post("/v1/detect").headers["Cache-Control"] == "no-store"
