"""The Python examples of docs/serving.md run as they are written."""

import re
from pathlib import Path

import pytest
from detectors import tiny_detector
from fastapi import FastAPI
from serving import encoded, picture, running

import fcos

GUIDE = Path(__file__).parents[2] / "docs" / "serving.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def photo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photo.jpg").write_bytes(encoded(picture(), "JPEG"))


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the examples leave closing the file to Python
def test_python_clients(photo, capsys):
    clients = [example for example in EXAMPLES if "127.0.0.1:8000" in example]
    assert len(clients) == 2
    with running(tiny_detector(), name="cells") as client:
        address = f"127.0.0.1:{client.base_url.port}"
        for example in clients:
            exec(example.replace("127.0.0.1:8000", address), {})
            assert re.search(r"\d+\.\d+", capsys.readouterr().out)


def test_application_in_python(monkeypatch):
    monkeypatch.setattr(fcos, "load", lambda weights: tiny_detector())
    (example,) = [example for example in EXAMPLES if "create_app" in example]
    names = {}
    exec(example, names)
    assert isinstance(names["app"], FastAPI)


def test_status_codes_of_the_guide_are_those_of_the_openapi_document():
    rows = re.findall(r"^\| (\d{3}) \|", GUIDE.read_text(encoding="utf-8"), re.MULTILINE)
    with running(tiny_detector()) as client:
        document = client.get("/openapi.json").json()
    statuses = set(document["paths"]["/v1/detect"]["post"]["responses"]) - {"200"}
    assert statuses - {"400"} == set(rows)  # 400: the client has closed the connection
