"""Exported files detect what PyTorch detects, describe themselves, and are used like weights."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import onnx
import pytest
import torch
from detectors import CATEGORY_IDS, NAMES
from exports import C4, KEYPOINTS, MASKS, ONE_SIZE, batch_of, picture, small_detector
from PIL import Image
from small_backbones import one_block_per_stage

import fcos
from fcos import ConfigError, DataError, Detector, ExportError, Instances, WeightsError
from fcos.choices import ExportFormat
from fcos.config.overrides import validate
from fcos.export import write
from fcos.export.comparison import TOLERANCES
from fcos.export.exported import ExportedModel
from fcos.export.graph import raw_outputs
from fcos.export.onnx import OPSETS, with_constant_threshold
from fcos.export.runtimes import OnnxRuntime, open_exported
from fcos.export.write import Exported
from fcos.extras import import_package
from fcos.keypoints import KeypointLayout

FORMS = {"onnx": "model.onnx", "openvino": "model.xml", "torch_export": "model.pt2"}
OTHER_FORMS = ["openvino", "torch_export"]


@pytest.fixture(scope="module")
def detector() -> Detector:
    return small_detector()


@pytest.fixture
def exported(exported_detector: Exported) -> Path:
    """An ONNX file for any batch and size."""
    return exported_detector.path


def assert_same_boxes(found: Instances, expected: Instances) -> None:
    assert torch.equal(found.labels, expected.labels)
    torch.testing.assert_close(found.boxes, expected.boxes, rtol=0, atol=1e-2)
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-4)


PICTURES = [picture(), picture(90, 131, seed=1), picture(200, 61, seed=2)]
FITTING: dict[str, Any] = {"size": (96, 128), "batch": 1}
"""Options of an export for one size, that of `PICTURES[0]` after resizing; the export takes half of the time."""


def assert_same_predictions(found: Detector, expected: Detector, pictures: Sequence[Image.Image] = PICTURES) -> None:
    pairs = list(zip(*(detector.predict(pictures, threshold=0.0) for detector in (found, expected)), strict=True))
    assert sum(len(b) for _, b in pairs) > 0
    for a, b in pairs:
        assert_same_boxes(a, b)
        assert a.class_names == b.class_names
        torch.testing.assert_close(a.mask_grids, b.mask_grids, rtol=0, atol=1e-4)
        torch.testing.assert_close(a.keypoints, b.keypoints, rtol=0, atol=1e-2)
        assert a.keypoint_layout == b.keypoint_layout
        assert (a.masks is None) == (b.masks is None)
        for one, other in zip(a.mask_probabilities() or (), b.mask_probabilities() or (), strict=True):
            decided = (one - 0.5).abs() > 1e-3  # boxes differ by up to 0.01 pixels, and the grid by up to 1e-4
            assert torch.equal((one > 0.5)[decided], (other > 0.5)[decided])


def test_onnx_file_is_valid_and_has_named_inputs_and_outputs(exported: Path) -> None:
    model = onnx.load(exported)
    onnx.checker.check_model(model, full_check=True)
    shapes = {
        value.name: [side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim]
        for value in [*model.graph.input, *model.graph.output]
    }
    assert shapes == {
        "images": ["batch", 3, "height", "width"],
        "sizes": ["batch", 2],
        "boxes": ["batch", 30, 4],
        "scores": ["batch", 30],
        "labels": ["batch", 30],
        "counts": ["batch"],
    }
    operators = [node.op_type for node in model.graph.node]
    assert operators.count("NonMaxSuppression") == 1
    assert "GroupNormalization" not in operators
    assert [opset.version for opset in model.opset_import if not opset.domain] == [20]


@pytest.mark.parametrize(
    ("opset", "options"), [pytest.param(21, {}, marks=pytest.mark.slow), pytest.param(OPSETS[-1], FITTING)]
)
def test_group_normalisation_is_an_operator_of_later_opsets(
    opset: int, options: dict[str, Any], detector: Detector, tmp_path: Path
) -> None:
    exported = detector.export(tmp_path / "model.onnx", opset=opset, **options)
    assert exported.proof.passed
    model = onnx.load(exported.path)
    onnx.checker.check_model(model, full_check=True)
    assert {node.op_type for node in model.graph.node} >= {"GroupNormalization", "NonMaxSuppression"}
    assert [entry.version for entry in model.opset_import if not entry.domain] == [opset]
    assert_same_predictions(fcos.load(exported.path), detector, PICTURES[:1] if options else PICTURES)


def test_onnx_file_runs_without_this_project(exported: Path, detector: Detector) -> None:
    session = import_package("onnxruntime").InferenceSession(str(exported))
    for sizes in [((16, 16),), ((131, 97), (64, 33), (1, 1), (120, 112))]:
        images, image_sizes = batch_of(*sizes)
        outputs: Any = session.run(None, {"images": images.numpy(), "sizes": image_sizes.numpy()})
        boxes, scores, labels, counts = outputs
        expected = detector.model.detect(images, image_sizes)
        assert counts.tolist() == [len(image) for image in expected]
        for i, image in enumerate(expected):
            assert labels[i, : len(image)].tolist() == image.labels.tolist()
            torch.testing.assert_close(torch.tensor(boxes[i, : len(image)]), image.boxes, rtol=0, atol=1e-2)
            torch.testing.assert_close(torch.tensor(scores[i, : len(image)]), image.scores, rtol=0, atol=1e-4)


def test_exported_file_is_loaded_like_weights(exported: Path, detector: Detector) -> None:
    loaded = fcos.load(exported)
    assert (loaded.class_names, loaded.category_ids) == (NAMES, CATEGORY_IDS)
    assert torch.equal(loaded.thresholds, detector.thresholds)
    assert_same_predictions(loaded, detector)


@pytest.mark.parametrize("form", OTHER_FORMS)
def test_other_formats_predict_the_same(form: Any, tmp_path: Path) -> None:
    detector = small_detector()
    detector.model.to(memory_format=torch.channels_last)  # as of `fcos.load`
    exported = detector.export(tmp_path / FORMS[form], form=form)
    assert exported.proof.passed
    assert_same_predictions(fcos.load(exported.path), detector)


def test_batch_norms_are_folded(tmp_path: Path) -> None:
    detector = small_detector(head={"num_convs": 1, "norm": "bn"})
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in detector.model.modules())
    path = detector.export(tmp_path / "model.pt2", form="torch_export", **ONE_SIZE).path
    operators = {str(node.target) for node in torch.export.load(path).graph.nodes}
    assert any("conv2d" in operator for operator in operators)
    assert not any("batch_norm" in operator for operator in operators)


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("onnx", {}),
        ("openvino", FITTING),
        *(pytest.param(form, {}, marks=pytest.mark.slow) for form in OTHER_FORMS),
    ],
)
def test_masks_and_keypoints_are_exported(form: Any, options: dict[str, Any], tmp_path: Path) -> None:
    masks: dict[str, Any] = {"mask": {**MASKS["mask"], "margin": 1.0}}
    detector = small_detector("rcnn", max_detections=10, **masks, **KEYPOINTS)
    detector.keypoint_layout = KeypointLayout(tuple("abcde"), ((0, 1), (3, 4)), ((1, 2),))
    exported = detector.export(tmp_path / FORMS[form], form=form, **options)
    assert "in masks (limit 0.0001)" in exported.proof.summary()
    assert "px in keypoints (limit 0.01)" in exported.proof.summary()
    loaded = fcos.load(exported.path)
    assert_same_predictions(loaded, detector, PICTURES[:1] if options else PICTURES)
    assert {image.mask_margin for image in loaded.model.detect(*batch_of((50, 60)))} == {1.0}


@pytest.mark.slow
def test_r_cnn_on_c4_is_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mask head shares the last stage of the backbone with the box head."""
    one_block_per_stage(monkeypatch)
    detector = small_detector("rcnn", max_detections=25, **C4)
    assert_same_predictions(fcos.load(detector.export(tmp_path / "model.onnx").path), detector)
    exported = detector.export(tmp_path / "half.onnx", precision="float16")
    assert fcos.load(exported.path).model.detect(*batch_of((50, 60)))[0].mask_grids is not None


@pytest.mark.parametrize(
    "name",
    # The R-CNN with masks and keypoints above contains the other two.
    ["retinanet", pytest.param("rpn", marks=pytest.mark.slow), pytest.param("rcnn", marks=pytest.mark.slow)],
)
def test_other_detectors_predict_the_same(name: str, tmp_path: Path) -> None:
    detector = small_detector(name)
    exported = detector.export(tmp_path / "model.onnx")
    assert exported.proof.passed
    assert_same_predictions(fcos.load(exported.path), detector)


@pytest.mark.parametrize("options", [FITTING, pytest.param({}, marks=pytest.mark.slow)])
def test_inclusive_boxes_and_ties_are_exported(options: dict[str, Any], tmp_path: Path) -> None:
    detector = small_detector(box_convention="inclusive", max_detections=5)
    exported = detector.export(tmp_path / "model.onnx", **options)
    assert_same_predictions(fcos.load(exported.path), detector, PICTURES[:1] if options else PICTURES)


def test_fixed_sizes_are_static_and_smaller_images_are_padded(detector: Detector, tmp_path: Path) -> None:
    exported = detector.export(tmp_path / "model.onnx", size=(112, 160), batch=2)
    model = onnx.load(exported.path)
    assert [side.dim_value for side in model.graph.input[0].type.tensor_type.shape.dim] == [2, 3, 112, 160]
    loaded = fcos.load(exported.path)
    images, sizes = batch_of((97, 131), (64, 33), (112, 160))
    found = loaded.model.detect(images[:, :, :112], sizes)  # three images in batches of two
    expected = detector.model.detect(images[:, :, :112], sizes)
    small, small_sizes = batch_of((64, 80))
    found += loaded.model.detect(small, small_sizes)
    expected += detector.model.detect(torch.nn.functional.pad(small, (0, 80, 0, 48)), small_sizes)
    for a, b in zip(found, expected, strict=True):
        assert_same_boxes(a, b)
    assert isinstance(loaded.model, ExportedModel)
    assert "All images are padded to 112x160, which the network sees." in loaded.model.runtime.metadata["input"]
    with pytest.raises(DataError, match=r"an image of 160x128 pixels after resizing and padding does not fit into"):
        loaded.model.detect(*batch_of((113, 160)))


def test_candidates_are_exported_for_runtimes_without_nms(detector: Detector, tmp_path: Path) -> None:
    exported = detector.export(tmp_path / "model.onnx", nms="none", size=(112, 144), batch=2)
    assert "NonMaxSuppression" not in {node.op_type for node in onnx.load(exported.path).graph.node}
    images, sizes = batch_of((97, 131), (64, 33))
    outputs = OnnxRuntime(exported.path)(images, sizes)
    assert outputs["boxes"].shape == (2, 200 + 63 * 3, 4)  # the second level has 63 locations and 3 classes
    assert outputs["valid"].sum(dim=1).tolist() == [len(image) for image in detector.model.candidates(images, sizes)]
    with pytest.raises(WeightsError, match=r"exported with --nms none, so it returns no detections"):
        fcos.load(exported.path)


@pytest.mark.parametrize("form", ["onnx", *(pytest.param(form, marks=pytest.mark.slow) for form in OTHER_FORMS)])
def test_raw_outputs_are_exported(form: Any, detector: Detector, tmp_path: Path) -> None:
    exported = detector.export(tmp_path / FORMS[form], form=form, raw=True)
    assert re.fullmatch(r"10 images: largest difference \S+ of outputs \(limit 0\.0001\)", exported.proof.summary())
    images, sizes = batch_of((97, 131), (64, 33))
    outputs = open_exported(exported.path)(images, sizes)
    expected = raw_outputs(detector.model(images, sizes))
    assert list(outputs) == list(expected)
    for name, output in outputs.items():
        torch.testing.assert_close(output, expected[name], rtol=0, atol=1e-3)
    with pytest.raises(WeightsError, match=r"exported with --raw, so it returns no detections"):
        fcos.load(exported.path)


@pytest.mark.parametrize(("form", "precision"), [("onnx", "float16"), ("torch_export", "bfloat16")])
def test_network_computes_in_half_precision(form: Any, precision: Any, detector: Detector, tmp_path: Path) -> None:
    exported = detector.export(tmp_path / FORMS[form], form=form, precision=precision, size=(96, 128), batch=1)
    assert exported.proof.tolerances == TOLERANCES[precision]
    assert exported.proof.differences.scores > 1e-5
    if form == "onnx":
        kernels = [weights for weights in onnx.load(exported.path).graph.initializer if len(weights.dims) == 4]
        assert {weights.data_type for weights in kernels} == {onnx.TensorProto.FLOAT16}
    loaded = fcos.load(exported.path)
    assert isinstance(loaded.model, ExportedModel)
    assert loaded.model.metadata.precision == precision
    found, expected = (x.predict(picture(), threshold=0.0) for x in (loaded, detector))
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=TOLERANCES[precision].scores)


def test_precision_that_a_runtime_has_not_is_rejected(detector: Detector, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--precision bfloat16: .* --format onnx .*; use float32 or float16$"):
        detector.export(tmp_path / "model.onnx", precision="bfloat16")


def test_metadata_describes_the_file(exported: Path) -> None:
    texts = {entry.key: entry.value for entry in onnx.load(exported).metadata_props}
    assert json.loads(texts["class_names"]) == list(NAMES)
    assert json.loads(texts["category_ids"]) == list(CATEGORY_IDS)
    assert json.loads(texts["thresholds"]) == {"dog": 0.2}
    assert "uint8 RGB" in texts["input"]
    assert "sides that 16 divides" in texts["input"]
    assert "continuous" in texts["output"]
    assert json.loads(texts["config"])["model"]["max_detections"] == 30
    figures = json.loads(exported.with_name(f"{exported.name}.proof.json").read_text())
    assert json.loads(texts["proof"]) == figures["low_threshold"]
    assert figures["as_written"]["images"] == 10
    assert figures["as_written"]["detections"] > 0
    assert len(texts["weights_sha256"]) == 64
    assert json.loads(texts["versions"]) == {"fcos": fcos.__version__, "torch": torch.__version__}


def test_failed_proof_leaves_no_file(detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = OnnxRuntime.__call__

    def wrong(self: OnnxRuntime, *arguments: Any) -> dict[str, torch.Tensor]:
        outputs = run(self, *arguments)
        return outputs | {"boxes": outputs["boxes"] + 0.02}

    monkeypatch.setattr(OnnxRuntime, "__call__", wrong)
    with pytest.raises(ExportError, match=r"model\.onnx does not detect what PyTorch detects, so it is not written"):
        detector.export(tmp_path / "model.onnx", **ONE_SIZE)
    assert list(tmp_path.iterdir()) == []


def test_too_few_detections_are_found_before_the_conversion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    captures: list[object] = []
    monkeypatch.setattr(write, "capture", lambda *_, **__: captures.append(None))
    with pytest.raises(ExportError, match="at least 20 are needed; give images with --data DIR"):
        small_detector(pre_nms_top_k=5).export(tmp_path / "model.onnx")
    assert captures == []


def test_file_itself_is_compared_too(detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The score threshold is an input of the model that is compared first, and a constant of the file."""

    def wrong(model: onnx.ModelProto, threshold: torch.Tensor) -> onnx.ModelProto:
        return with_constant_threshold(model, threshold + 0.94)

    monkeypatch.setattr(write, "with_constant_threshold", wrong)
    with pytest.raises(ExportError, match=r"model\.onnx does not detect what PyTorch detects, so it is not written"):
        detector.export(tmp_path / "model.onnx", **ONE_SIZE)
    assert list(tmp_path.iterdir()) == []


def test_missing_package_is_named_with_its_extra(detector: Detector, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(ConfigError, match=r'onnxscript is not installed; type: pip install "fcos-vision\[export\]"'):
        detector.export(tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("out", "options", "message"),
    [
        ("model.pt", {}, r"files of the format onnx end in \.onnx; for example .*model\.onnx$"),
        ("model.xml", {}, r"end in \.onnx; for example .*model\.onnx; for \.xml, add --format openvino$"),
        ("model.pt2", {}, r"model\.onnx; for \.pt2, add --format torch_export or --format aoti$"),
        ("missing/model.onnx", {}, "no such folder"),
        (
            "model.onnx",
            {"size": (100, 160)},
            r"--size: expected multiples of data\.size_divisor=16, found 100x160; .*112",
        ),
        ("model.onnx", {"batch": 0}, "batch: expected an integer of at least 1"),
        ("model.onnx", {"batch": 10**11}, "--batch: expected at most 1024 images, found 100000000000"),
        ("model.onnx", {"opset": 26}, "--opset: expected an integer from 20 to 25, found 26"),
        ("model.onnx", {"form": "tflite"}, "--format: expected one of onnx, openvino, torch_export, aoti, found 'tf"),
    ],
)
def test_wrong_arguments_are_explained(
    detector: Detector, tmp_path: Path, out: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(fcos.FCOSError, match=message):
        detector.export(tmp_path / out, **options)


def test_existing_file_is_not_overwritten(detector: Detector, exported: Path) -> None:
    with pytest.raises(WeightsError, match="exists already"):
        detector.export(exported)


def test_file_beside_an_openvino_file_is_not_overwritten(detector: Detector, tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_text("mine")
    with pytest.raises(WeightsError, match=r"model\.bin: exists already"):
        detector.export(tmp_path / "model.xml", form="openvino")
    assert (tmp_path / "model.bin").read_text() == "mine"
    assert len([*tmp_path.iterdir()]) == 1


def test_exported_file_is_not_exported_again(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(fcos.FCOSError, match=r"is already exported; export the weights"):
        fcos.export_detector(exported, tmp_path / "again.onnx")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.nms_threshold=0.5"], r"model\.nms_threshold=0\.5: .* was exported with other values"),
        (["data.size_divisor=64"], "export it again"),
        (["train.lr=1"], "no effect on predictions"),
        (["eval.compile=true"], "exported file, which torch.compile cannot compile"),
    ],
)
def test_options_that_a_file_contains_cannot_change(exported: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fcos.load(exported, *overrides)


def test_exported_file_of_a_compiled_detector_needs_no_compiler(
    detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = Detector(
        detector.model, validate({**detector.config.to_dict(), "eval": {"compile": True}}, where="test")
    )
    file = compiled.export(tmp_path / "model.onnx", **ONE_SIZE).path
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert not fcos.load(file).config.eval.compile


def test_test_time_augmentation_needs_the_weights(exported: Path) -> None:
    with pytest.raises(ConfigError, match=r"eval\.flip, eval\.scales.* need the weights"):
        fcos.load(exported, "eval.flip=true").predict(picture())
    detector = small_detector()
    augmented = Detector(detector.model, validate({**detector.config.to_dict(), "eval": {"flip": True}}, where="test"))
    with pytest.raises(ConfigError, match=r"eval\.flip, eval\.scales: exported files detect without test-time augm"):
        augmented.export(exported.with_name("other.onnx"))


@pytest.mark.parametrize("name", FORMS.values())
def test_damaged_file_is_explained(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"nonsense")
    with pytest.raises(WeightsError, match=r"cannot be read|export the detector again") as raised:
        fcos.load(tmp_path / name)
    assert ".cpp" not in str(raised.value)


def test_weights_with_the_suffix_of_a_program_are_explained(
    detector: Detector, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(detector.model.state_dict(), tmp_path / "model.pt2")
    with pytest.raises(WeightsError, match=r"not a complete file of torch\.export\.save; export the detector again"):
        fcos.load(tmp_path / "model.pt2")
    assert not caplog.records


def test_file_of_another_program_is_explained(exported: Path, tmp_path: Path) -> None:
    model = onnx.load(exported)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(WeightsError, match="not a file of this version of fcos export"):
        fcos.load(tmp_path / "other.onnx")


def test_exported_file_cannot_be_exported(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ExportedModel: this detector cannot be exported"):
        fcos.load(exported).export(tmp_path / "again.onnx")


def test_packages_of_every_format_are_known() -> None:
    assert set(write._PACKAGES) == set(get_args(ExportFormat))
