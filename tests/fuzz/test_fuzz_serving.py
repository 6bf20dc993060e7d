"""Malformed and hostile requests to the service: each gets a 4xx answer, and the service goes on."""

from __future__ import annotations

import base64
import io
import json
import random
import socket
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import pytest
import schemathesis
from detectors import tiny_detector
from fuzzing import ODD_TEXTS, fuzz
from hypothesis.errors import Unsatisfiable
from PIL import Image
from schemathesis.checks import CHECKS
from serving import encoded, picture, running

PNG = {"Content-Type": "image/png"}
JSON = {"Content-Type": "application/json"}
TOKEN = {"Authorization": "Bearer t"}


@pytest.fixture(scope="module")
def client():
    with running(tiny_detector(), name="tiny", max_body=3_000_000, max_pixels=1_000_000, max_queue=20) as client:
        yield client
        answer = client.post("/v1/detect", content=encoded(picture()), headers=PNG)  # the service still works
        assert answer.status_code == 200
        assert answer.json()["images"][0]["width"] == 120


def png_bomb(side: int) -> bytes:
    """Return a PNG file of a few kilobytes that decodes to side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compressobj(9)
    data = b"".join(rows.compress(bytes(side // 8 + 1)) for _ in range(side)) + rows.flush()
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def text_bomb() -> bytes:
    """Return a PNG file whose text decompresses to 100 megabytes, which is ignored, with pixels that are cut off."""
    data = encoded(picture())
    text = b"Comment\0\0" + zlib.compress(bytes(100_000_000), 9)
    chunk = struct.pack(">I", len(text)) + b"zTXt" + text + struct.pack(">I", zlib.crc32(b"zTXt" + text))
    return data[:33] + chunk + data[33 : len(data) // 2]


def archive(kind: str) -> bytes:
    file = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("../../a.png", bytes(10_000_000))
    else:
        with tarfile.open(fileobj=file, mode="w:gz") as archive:
            archive.addfile(tarfile.TarInfo("/etc/passwd"))
    return file.getvalue()


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(/tmp/owned) (w) file\n%%EOF\n"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
WRONG_FILES: dict[str, Callable[[], tuple[int, bytes]]] = {
    "empty": lambda: (422, b""),
    "text": lambda: (422, b"hello"),
    "zeros": lambda: (422, bytes(1000)),
    "path": lambda: (422, b"/etc/passwd"),
    "url": lambda: (422, b"http://127.0.0.1/a.png"),
    "svg": lambda: (422, SVG),
    "eps": lambda: (415, EPS),
    "zip": lambda: (422, archive("zip")),
    "tar": lambda: (422, archive("tar")),
    "png of 400 megapixels": lambda: (413, png_bomb(20_000)),
    "png with a huge text": lambda: (422, text_bomb()),
    "png of 1001 x 1000": lambda: (413, encoded(Image.new("1", (1001, 1000)))),
    "float pixels": lambda: (422, encoded(Image.new("F", (8, 8)), "TIFF")),
    "half a png": lambda: (422, encoded(picture())[:2000]),
    "half a jpeg": lambda: (422, encoded(picture(), "JPEG")[:1500]),
    "half a webp": lambda: (422, encoded(picture(), "WEBP")[:700]),
    "half a gif": lambda: (422, encoded(picture(), "GIF")[:900]),
    "half a tiff": lambda: (422, encoded(picture(), "TIFF", compression="tiff_lzw")[:900]),
    "psd": lambda: (415, b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 8, 8, 8, 3) + bytes(200)),
}


@pytest.mark.parametrize("name", WRONG_FILES)
@pytest.mark.parametrize("form", ["raw", "form", "json", "protocol"])
def test_files_that_are_no_images_are_rejected(client, name, form):
    status, data = WRONG_FILES[name]()
    text = base64.b64encode(data).decode()
    if form == "raw":
        answer = client.post("/v1/detect", content=data, headers=PNG)
    elif form == "form":
        answer = client.post("/v1/detect", files=[("a", data), ("b", encoded(picture()))])
    elif form == "json":
        answer = client.post("/v1/detect", json={"images": [text]})
    else:
        tensor = {"name": "images", "shape": [1], "datatype": "BYTES", "data": [text]}
        answer = client.post("/v2/models/tiny/infer", json={"inputs": [tensor]})
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert len(answer.text) < 1000


BOUNDARY = {"Content-Type": "multipart/form-data; boundary=b"}
WRONG_REQUESTS: dict[str, tuple[int, dict[str, Any]]] = {
    "no body": (415, {}),
    "form of a browser": (415, {"data": {"image": "a"}}),
    "text": (415, {"content": b"a", "headers": {"Content-Type": "text/plain"}}),
    "compressed": (415, {"content": b"a", "headers": {**PNG, "Content-Encoding": "gzip"}}),
    "no boundary": (422, {"content": b"a", "headers": {"Content-Type": "multipart/form-data"}}),
    "wrong boundary": (422, {"content": b"--c\r\n\r\na\r\n--c--\r\n", "headers": BOUNDARY}),
    "form without files": (422, {"content": b"--b--\r\n", "headers": BOUNDARY}),
    "form with text": (422, {"files": [("image", (None, "/etc/passwd"))]}),
    "form with a text option": (422, {"files": [("image", encoded(picture())), ("threshold", (None, "0.5"))]}),
    "many parts": (422, {"files": [(f"f{i}", (None, "a")) for i in range(200)]}),
    "many files": (413, {"files": [("f", encoded(picture(8, 8)))] * 21}),
    "form that ends early": (422, {"content": b'--b\r\nContent-Disposition: form-data; name="a"; filename="b"\r\n\r\n',
                                   "headers": BOUNDARY}),
    "no json": (422, {"content": b"{", "headers": JSON}),
    "json list": (422, {"json": []}),
    "json null": (422, {"content": b"null", "headers": JSON}),
    "json number": (422, {"json": {"images": 7}}),
    "json path": (422, {"json": {"images": ["../../etc/passwd"]}}),
    "json url": (422, {"json": {"images": ["http://127.0.0.1/a.png"]}}),
    "json data uri": (422, {"json": {"images": ["data:image/png;base64,AAAA"]}}),
    "json without images": (422, {"json": {"images": []}}),
    "json with another key": (422, {"json": {"images": ["AAAA"], "path": "/etc/passwd"}}),
    "json surrogate": (422, {"content": b'{"images": ["\\ud800"]}', "headers": JSON}),
    "json with invalid utf-8": (422, {"content": b'{"images": ["\xff"]}', "headers": JSON}),
    "json nan": (422, {"content": b'{"images": [NaN]}', "headers": JSON}),
    "deep json": (422, {"content": b"[" * 100_000, "headers": JSON}),
    "long json number": (422, {"content": b'{"images": ' + b"9" * 100_000 + b"}", "headers": JSON}),
    "too many bytes": (413, {"content": bytes(3_000_001), "headers": PNG}),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_REQUESTS)
def test_wrong_bodies_are_rejected(client, name):
    status, request = WRONG_REQUESTS[name]
    answer = client.post("/v1/detect", **request)
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"type", "title", "status", "detail"}


@pytest.mark.parametrize(
    "query",
    [
        *("threshold=nan", "threshold=NaN", "threshold=inf", "threshold=-0.1", "threshold=1.1", "threshold=1e999"),
        *("threshold=", "threshold=a", "threshold=0x1", "threshold=0.5&threshold=a", "nms_threshold=nan"),
        *("max_detections=-1", "max_detections=1.5", "max_detections=" + "9" * 5000, "format=svg", "format="),
        *("classes=", "classes=no", "classes=%00", "classes=%ff%fe", "classes=%F0%9F%90%9F", "classes=" + "a" * 9000),
        *("path=/etc/passwd", "url=http://127.0.0.1", "Threshold=0.5", "%00=1", "&".join(["a=1"] * 500)),
    ],
)
def test_wrong_queries_are_rejected(client, query):
    answer = client.post(f"/v1/detect?{query}", content=encoded(picture()), headers=PNG)
    assert answer.status_code == 422
    assert len(answer.text) < 5000


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "a\0b.png", "a" * 5000, "\x1b[31m.png", "CON", "🐟"]
)
def test_hostile_file_names_are_ignored(client, name):
    quoted = name.encode().replace(b"\0", b"%00")
    body = b'--b\r\nContent-Disposition: form-data; name="i"; filename="' + quoted + b'"\r\n\r\n' + encoded(picture())
    answer = client.post("/v1/detect", content=body + b"\r\n--b--\r\n", headers=BOUNDARY)
    assert answer.status_code == 200
    assert name not in answer.text


@pytest.mark.parametrize(
    "path",
    [
        *("/page/../app.py", "/page/..%2fapp.py", "/page/%2e%2e/%2e%2e/cli.py", "/page//etc/passwd", "/page/", "/page"),
        *("/page/index.html%00.js", "/page/....//app.py", "/page/C:%5Cwindows", "/..%2f..%2fetc%2fpasswd"),
        *("/v2/models/..%2f..", "/v2/models/tiny/versions/2", "/v2/models/%00/ready", "/docs", "/redoc", "/v1/detect/"),
        *("//", "/%ff", "/v1", "/v2/models", "/v2/repository/index", "/favicon.ico", "/" + "a" * 8000),
    ],
)
def test_paths_outside_the_routes_do_not_exist(client, path):
    with socket.create_connection((client.base_url.host, client.base_url.port)) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
        answer = connection.makefile("rb").read()
    assert int(answer.split()[1]) in (307, 404), answer[:100]
    assert b"import" not in answer


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"hello\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: a\r\n" * 20_000 + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX : a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"POST /v1/detect HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/detect HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"POST /v1/detect HTTP/1.1\r\nHost: a\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
        b"POST /v1/detect HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"POST /v1/detect HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300),  # TLS
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_invalid_http_is_rejected(client, request_bytes):
    with socket.create_connection((client.base_url.host, client.base_url.port)) as connection:
        try:
            connection.sendall(request_bytes)
            answer = connection.recv(1000)
        except ConnectionError:  # the answer is lost if the server closes while we still send
            answer = b"HTTP/1.1 400 "
    assert answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 505")), answer


def test_connections_that_end_early_cost_nothing(client):
    head = b"POST /v1/detect HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\nContent-Length: 100000\r\n\r\n"
    for part in (b"", head[:30], head, head + bytes(5000)):
        for _ in range(15):  # more than max_queue in total
            with socket.create_connection((client.base_url.host, client.base_url.port)) as connection:
                connection.sendall(part)
    while float(client.get("/metrics").text.partition("\nfcos_images_in_progress ")[2].split()[0]):
        pass


def malformed(rng: random.Random, images: list[bytes]) -> dict[str, Any]:
    """Return a random request that must be rejected, as keywords of `httpx.Client.request`."""
    image = rng.choice(images)
    cut = image[: rng.randrange(int(0.9 * len(image)))]
    odd = [0, -1, 1.5, True, None, [], {}, "x", [[]], {"a": 1}, 10**30, *ODD_TEXTS]
    tensor = {"name": "images", "shape": [1], "datatype": "BYTES", "data": ["AAAA"]}
    changed = {**tensor, rng.choice([*tensor]): rng.choice(odd)}
    kinds: list[Callable[[], dict[str, Any]]] = [
        lambda: {"content": cut, "headers": PNG},
        lambda: {"content": rng.randbytes(rng.randrange(300)), "headers": PNG},
        lambda: {"files": [("i", image), ("i", cut)]},
        lambda: {"json": {"images": rng.choice(odd)}},
        lambda: {"json": {"images": [rng.choice([value for value in odd if value is not None])]}},
        lambda: {"json": {rng.choice(ODD_TEXTS): [base64.b64encode(image).decode()]}},
        lambda: {"content": json.dumps({"images": ["AAAA"]}).encode()[: rng.randrange(18)], "headers": JSON},
        lambda: {"params": {"threshold": rng.choice([*ODD_TEXTS, "2"])}, "content": cut, "headers": PNG},
        lambda: {"params": {rng.choice(ODD_TEXTS) + "_": 1}, "content": image, "headers": PNG},
        lambda: {"content": image, "headers": {"Content-Type": rng.choice(["x", "text/html", "a/b; c", "", "*/*"])}},
        lambda: {"url": "/v2/models/tiny/infer", "json": {"inputs": rng.choice(odd)}},
        lambda: {"url": "/v2/models/tiny/infer", "json": {"inputs": [changed]}},
        lambda: {"url": "/v2/models/tiny/infer", "json": {"inputs": [tensor], "parameters": {"x": rng.choice(odd)}}},
        lambda: {
            "url": "/v2/models/tiny/infer",
            "content": json.dumps({"inputs": [tensor]}).encode() + rng.randbytes(9),
            "headers": {"Inference-Header-Content-Length": str(rng.randrange(200))},
        },
    ]  # fmt: skip
    return {"method": "POST", "url": "/v1/detect", **rng.choice(kinds)()}


@pytest.mark.parametrize("count", [200, pytest.param(5000, marks=pytest.mark.slow)])
def test_random_malformed_requests_are_rejected(client, count):
    rng = random.Random(count)
    images = [encoded(picture(), form) for form in ("PNG", "JPEG", "WEBP", "GIF", "BMP")]
    for _ in range(count):
        request = malformed(rng, images)
        answer = client.request(**request)
        assert 400 <= answer.status_code < 500, (request, answer.text)
        assert answer.headers["Content-Type"] == "application/problem+json"


@pytest.fixture(scope="module")
def schema():
    with running(tiny_detector(), name="tiny", token="t", max_queue=20) as client:
        yield schemathesis.openapi.from_url(f"{client.base_url}/openapi.json")


@pytest.mark.parametrize("mode", ["positive", "negative"])
@pytest.mark.parametrize("count", [5, pytest.param(100, marks=pytest.mark.slow)])
def test_answers_agree_with_the_openapi_document(schema, mode, count):
    # Random bytes are no image, so that data which the schema permits may be rejected.
    excluded: Any = CHECKS.get_by_names(["positive_data_acceptance"])

    def check(case: schemathesis.Case) -> None:
        case.call_and_validate(headers=TOKEN, excluded_checks=excluded)

    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) >= 9
    for operation in operations:
        try:
            strategy = operation.as_strategy(generation_mode=schemathesis.GenerationMode(mode))
            fuzz(check, strategy, count)
        except Unsatisfiable:
            assert mode == "negative"  # the operation has no options
