"""Open Inference Protocol v2, with the client of Triton and with hand-written requests."""

import base64
import json

import numpy as np
import pytest
import tritonclient.http as triton
from detectors import tiny_detector
from serving import encoded, picture, running, shape_detector
from tritonclient.utils import InferenceServerException


@pytest.fixture(scope="module")
def client():
    with running(tiny_detector(), name="tiny") as client:
        yield client


@pytest.fixture
def server(client):
    server = triton.InferenceServerClient(f"{client.base_url.host}:{client.base_url.port}", network_timeout=600)
    yield server
    server.close()


def tensor(files, shape=None):
    array = np.array(files, dtype=object)
    images = triton.InferInput("images", list(array.shape), "BYTES")
    images.set_data_from_numpy(array)
    if shape is not None:
        images.set_shape(shape)
    return images


def test_client_reads_the_state_and_metadata(server):
    assert server.is_server_live()
    assert server.is_server_ready()
    assert server.is_model_ready("tiny")
    assert server.is_model_ready("tiny", "1")
    assert not server.is_model_ready("other")
    assert server.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    metadata = server.get_model_metadata("tiny")
    assert metadata["inputs"] == [{"name": "images", "datatype": "BYTES", "shape": [-1]}]
    assert [output["name"] for output in metadata["outputs"]] == ["counts", "boxes", "scores", "labels"]


def test_binary_results_equal_those_of_the_python_function(server):
    pictures = [picture(), picture(90, 200, seed=1), picture(seed=2)]
    result = server.infer("tiny", [tensor([encoded(image) for image in pictures])], parameters={"threshold": 0.55})
    counts, boxes = result.as_numpy("counts"), result.as_numpy("boxes")
    assert boxes.shape == (3, counts.max(), 4)
    for i, expected in enumerate(tiny_detector().predict(pictures, threshold=0.55)):
        count = counts[i]
        assert count == len(expected)
        np.testing.assert_allclose(boxes[i, :count], expected.boxes, atol=1e-3)
        np.testing.assert_allclose(result.as_numpy("scores")[i, :count], expected.scores, atol=1e-5)
        np.testing.assert_array_equal(result.as_numpy("labels")[i, :count], expected.labels)
        assert not boxes[i, count:].any()
    assert counts.min() > 0


def test_client_chooses_outputs_and_their_form(server):
    outputs = [triton.InferRequestedOutput("labels", binary_data=False), triton.InferRequestedOutput("scores")]
    result = server.infer("tiny", [tensor([encoded(picture())])], outputs=outputs, request_id="7")
    content = result.get_response()
    assert content["id"] == "7"
    assert [output["name"] for output in content["outputs"]] == ["labels", "scores"]
    assert "data" in content["outputs"][0]
    assert result.as_numpy("labels").shape == result.as_numpy("scores").shape
    assert result.as_numpy("boxes") is None


@pytest.mark.parametrize(
    "options",
    [
        {"priority": 1, "timeout": 1},
        {"sequence_id": 7, "sequence_start": True, "sequence_end": True},
        {"sequence_id": "camera 1"},
        {"sequence_id": 0, "request_id": "7", "timeout": 0, "headers": {"X-Forwarded-For": "10.0.0.1"}},
    ],
)
def test_scheduling_and_sequences_of_the_client_have_no_effect(server, options):
    images = tensor([encoded(picture())])
    expected = server.infer("tiny", [images])
    result = server.infer("tiny", [images], **options)
    np.testing.assert_array_equal(result.as_numpy("boxes"), expected.as_numpy("boxes"))
    assert expected.as_numpy("counts").tolist() == result.as_numpy("counts").tolist() != [0]


def test_image_without_detections_gives_empty_tensors(server):
    result = server.infer("tiny", [tensor([encoded(picture())])], parameters={"threshold": 1.0})
    assert result.as_numpy("boxes").shape == (1, 0, 4)
    assert result.as_numpy("counts").tolist() == [0]


def test_masks_and_keypoints_are_outputs_of_detectors_that_have_them():
    detector = shape_detector()
    expected = detector.predict(picture(), threshold=0.2)
    with running(detector) as client:
        server = triton.InferenceServerClient(f"{client.base_url.host}:{client.base_url.port}", network_timeout=600)
        names = [entry["name"] for entry in server.get_model_metadata("detector")["outputs"]]
        result = server.infer("detector", [tensor([encoded(picture())])], parameters={"threshold": 0.2})
        server.close()
    assert names == ["counts", "boxes", "scores", "labels", "segmentations", "keypoints"]
    masks, keypoints = result.as_numpy("segmentations"), result.as_numpy("keypoints")
    assert masks is not None
    assert keypoints is not None
    assert expected.keypoints is not None
    assert len(expected)
    assert [json.loads(text) for text in masks[0]] == expected.mask_codes()
    np.testing.assert_allclose(keypoints[0], expected.keypoints.numpy(), atol=1e-3)


def test_json_without_binary_data(client):
    data = [base64.b64encode(encoded(picture())).decode()] * 2
    body = {"inputs": [{"name": "images", "shape": [2, 1], "datatype": "BYTES", "data": data}]}
    answer = client.post("/v2/models/tiny/versions/1/infer", json=body).json()
    boxes = next(output for output in answer["outputs"] if output["name"] == "boxes")
    assert len(boxes["data"]) == np.prod(boxes["shape"])
    assert boxes["shape"][0] == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parameters": {"threshold": 2}}, "parameters.threshold: Input should be less than or equal to 1"),
        ({"parameters": {"treshold": 0.5}}, "parameters.treshold: unknown name"),
        ({"parameters": {"priority": "high"}}, "parameters.priority: Input should be a valid integer"),
        ({"outputs": [{"name": "shapes"}]}, "outputs: expected one of counts, boxes, scores, labels"),
        ({"name": "pixels"}, "inputs.0.name: Input should be 'images'"),
        ({"datatype": "UINT8"}, "inputs.0.datatype: Input should be 'BYTES'"),
        (
            {"datatype": "FP32", "data": [0.5]},
            "inputs.0.datatype: Input should be 'BYTES'; inputs.0.data.0: Input should be a valid string",
        ),
        ({"shape": [2]}, "inputs.0.shape: expected [1], the number of elements, and at least one"),
        ({"shape": [0], "data": []}, "inputs.0.shape: expected [0], the number of elements, and at least one"),
        ({"data": ["/etc/passwd"]}, "image: expected an image file in base64, without line breaks or a `data:` prefix"),
        ({"data": ["AAAA"]}, "image: not an image, or the start of the file is damaged"),
        ({"data": None}, "inputs.0: expected either data or parameters.binary_data_size"),
        (
            {"parameters_of_input": {"binary_data_size": 5}},
            "inputs.0.parameters.binary_data_size: expected 0, the bytes after the JSON",
        ),
        (
            {"parameters_of_input": {"shared_memory_region": "a"}},
            "inputs.0.parameters.shared_memory_region: unknown name",
        ),
    ],
)
def test_wrong_requests_are_explained(client, changes, message):
    entry = {
        "name": "images",
        "shape": [1],
        "datatype": "BYTES",
        "data": [base64.b64encode(encoded(picture())).decode()],
    }
    changes = dict(changes)
    entry |= {key: changes.pop(key) for key in ("name", "shape", "datatype", "data") if key in changes}
    if "parameters_of_input" in changes:
        entry["parameters"] = changes.pop("parameters_of_input")
    answer = client.post("/v2/models/tiny/infer", json={"inputs": [entry], **changes})
    assert answer.status_code == 422
    assert answer.json()["error"] == answer.json()["detail"] == message


@pytest.mark.parametrize("length", ["-1", "x", "9" * 30, "100000", "", "3"])
def test_wrong_length_of_the_json_part_is_rejected(client, length):
    headers = {"Inference-Header-Content-Length": length}
    assert client.post("/v2/models/tiny/infer", content=b'{"inputs": []}', headers=headers).status_code == 422


def test_truncated_binary_tensor_is_rejected(client):
    entry = {"name": "images", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 5}}
    header = json.dumps({"inputs": [entry]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(header))}
    answer = client.post("/v2/models/tiny/infer", content=header + b"\xff\0\0\0a", headers=headers)
    assert answer.json()["error"] == "inputs.0: an element of the binary tensor is longer than the tensor"


def test_client_shows_the_explanation_of_an_error(server):
    with pytest.raises(InferenceServerException, match=r"image: not an image"):
        server.infer("tiny", [tensor([b"text"])])
    with pytest.raises(InferenceServerException, match="the only model is tiny, version 1"):
        server.get_model_metadata("tiny", "2")
