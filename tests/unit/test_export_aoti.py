"""Files of `fcos export --format aoti`: machine code that detects what PyTorch detects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
import torch
from exports import KEYPOINTS, MASKS, batch_of, small_detector

import fcos
from fcos import ConfigError, WeightsError
from fcos.export.aoti import add_entry, describe_machine, is_package, read_entry


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "nms"),
    [("fcos", {}, "graph"), ("fcos", {}, "matrix"), ("rcnn", {**MASKS, **KEYPOINTS}, "graph")],
    ids=["FCOS", "matrix", "R-CNN"],
)
def test_machine_code_detects_the_same_in_any_batch_and_size(
    name: str, options: dict[str, Any], nms: Any, tmp_path: Path
) -> None:
    detector = small_detector(name, **options)
    exported = detector.export(tmp_path / "model.pt2", form="aoti", nms=nms)
    assert exported.proof.passed
    assert exported.proof.detections > 100
    assert is_package(exported.path)
    loaded = fcos.load(exported.path)
    assert loaded.class_names == detector.class_names
    for sizes in [((16, 16),), ((131, 97), (64, 33), (1, 1), (120, 112))]:
        batch = batch_of(*sizes)
        for found, expected in zip(loaded.model.detect(*batch), detector.model.detect(*batch), strict=True):
            assert torch.equal(found.labels, expected.labels)
            torch.testing.assert_close(found.boxes, expected.boxes, rtol=0, atol=1e-2)
            torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-4)
            torch.testing.assert_close(found.mask_grids, expected.mask_grids, rtol=0, atol=1e-4)
            torch.testing.assert_close(found.keypoints, expected.keypoints, rtol=0, atol=1e-2)


def test_machine_code_of_another_machine_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.pt2"
    with ZipFile(path, "w") as archive:
        archive.writestr("model/data/aotinductor/model/code.so", b"would end the process")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX9")
    add_entry(path, "fcos", json.dumps({"compiled_for": describe_machine()}))
    monkeypatch.undo()
    with pytest.raises(
        WeightsError, match=r'compiled for .*"AVX9".*, and this machine has .*; export the detector again'
    ):
        fcos.load(path)


def test_missing_compiler_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", ("no_such_compiler",))
    with pytest.raises(ConfigError, match=r"--format aoti: no C\+\+ compiler was found; install g\+\+"):
        small_detector().export(tmp_path / "model.pt2", form="aoti")


def test_other_precisions_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--precision bfloat16: .* --format aoti .*; use float32$"):
        small_detector().export(tmp_path / "model.pt2", form="aoti", precision="bfloat16")


def test_content_tells_the_formats_of_pt2_files_apart(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    with ZipFile(path, "w") as archive:
        archive.writestr("model/data/aotinductor/model/code.so", b"nonsense")
    assert is_package(path)
    assert read_entry(path, "fcos") == ""
    with pytest.raises(WeightsError, match=r"model\.pt2: cannot be read: not a file of fcos export"):
        fcos.load(path)
    metadata = json.dumps({"compiled_for": describe_machine()})
    add_entry(path, "fcos", metadata)
    assert read_entry(path, "fcos") == metadata
    with pytest.raises(WeightsError, match=r"model\.pt2: cannot be read"):
        fcos.load(path)
    with ZipFile(tmp_path / "program.pt2", "w") as archive:
        archive.writestr("program/models/model.json", "{}")
    assert not is_package(tmp_path / "program.pt2")
