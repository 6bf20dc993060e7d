"""Conversion of weights files between the formats of projects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from detectors import CATEGORY_IDS, NAMES, tiny_config, tiny_model, tiny_retinanet
from torch import Tensor

from fcos.api import convert
from fcos.checkpoint import save_checkpoint
from fcos.config import Config
from fcos.errors import ConfigError, WeightsError
from fcos.interop.checkpoints import load_checkpoint
from fcos.interop.convert import report
from fcos.interop.fcos_core.weights import to_fcos_core
from fcos.interop.torchvision import model_config
from fcos.models import build_model

ORIGINAL: dict[str, Any] = {
    "box_convention": "inclusive",
    "channel_order": "bgr",
    "pixel_mean": [102.9801, 115.9465, 122.7717],
    "pixel_std": [1, 1, 1],
}


def saved(path: Path, config: Config) -> Path:
    model = tiny_retinanet(config) if config.model.name == "retinanet" else tiny_model(config)
    training = {"state": torch.zeros(2)}
    save_checkpoint(
        path, model=model, config=config, class_names=NAMES, category_ids=CATEGORY_IDS, iteration=7, training=training
    )
    return path


def read(path: Path) -> dict[str, Tensor]:
    content = torch.load(path, weights_only=True)
    return content.get("model", content)


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


ANCHORS = ", ".join(f"rpn.anchor_generator.cell_anchors.{level}" for level in range(5))


@pytest.mark.parametrize("name", ["fcos", "retinanet"])
def test_conversion_to_the_original_and_back_is_the_identity(name: str, tmp_path: Path) -> None:
    options = {"anchor_rounding": "base"} if name == "retinanet" else {}
    config = tiny_config(name=name, fpn={"channels": 64, "extra_level_source": "p5"}, **ORIGINAL, **options)
    ours = saved(tmp_path / "ours.pt", config)
    there, back, again = (tmp_path / name for name in ("there.pth", "back.pt", "again.pth"))
    summary = convert(ours, there, to="fcos_core")
    count = len(load_checkpoint(ours).model)
    assert summary.splitlines()[0] == f"matched: {count - 2} of {count} tensors, {count - 2} renamed"
    assert summary.splitlines()[1] == "skipped: 2: pixel_mean, pixel_std"
    assert summary.splitlines()[2:] == ([f"new: 5: {ANCHORS}"] if name == "retinanet" else [])
    summary = convert(there, back, "data.classes=[dog, cat, owl]", config=config)  # sorted by category id
    assert summary.splitlines()[1:-1] == ([f"skipped: 5: {ANCHORS}"] if name == "retinanet" else [])
    assert summary.splitlines()[-1] == "new: 2: pixel_mean, pixel_std"
    made = load_checkpoint(back)
    assert (made.project, made.class_names, made.category_ids) == ("fcos", ("dog", "cat", "owl"), (1, 2, 3))
    assert made.config["model"] == config.to_dict()["model"]
    convert(back, again, to="fcos_core")
    assert_equal(read(again), read(there))
    assert_equal(read(there), to_fcos_core(load_checkpoint(ours)))


def test_file_of_the_originals_retinanet_needs_the_config_with_its_anchors(tmp_path: Path) -> None:
    conventions = {"name": "retinanet", "anchor_rounding": "base", **ORIGINAL}
    config = tiny_config(fpn={"channels": 64, "extra_level_source": "p5"}, **conventions)
    there = tmp_path / "there.pth"
    convert(saved(tmp_path / "ours.pt", config), there, to="fcos_core")
    with pytest.raises(ConfigError, match=r"the config it was trained with: --config retinanet_r50 \("):
        convert(there, tmp_path / "back.pt")
    with pytest.raises(ConfigError, match="weights of retinanet, but the config is for fcos"):
        convert(there, tmp_path / "back.pt", config="fcos_mnv2_small")
    other = config.model.model_copy(update={"anchor_sizes": [[16.0], [32.0], [64.0], [128.0], [256.0]]})
    with pytest.raises(WeightsError, match="5 with other values: cell_anchors_0, cell_anchors_1"):
        convert(there, tmp_path / "back.pt", config=config.model_copy(update={"model": other}))


def test_original_file_needs_a_config_but_converted_file_does_not(tmp_path: Path) -> None:
    config = tiny_config(**ORIGINAL)
    there, back = tmp_path / "there.pth", tmp_path / "back.pt"
    convert(saved(tmp_path / "ours.pt", config), there, to="fcos_core")
    with pytest.raises(ConfigError, match="give the config it was trained with"):
        convert(there, back)
    assert not back.exists()
    convert(there, back, config=config)
    convert(back, tmp_path / "copy.pt")


def test_conversion_to_torchvision_and_back_is_the_identity(tmp_path: Path) -> None:
    ours, there, back = (tmp_path / name for name in ("ours.pt", "there.pth", "back.pt"))
    config = tiny_config(**model_config("fcos_resnet50_fpn"), fpn={"channels": 256})
    model = build_model(config.model, num_classes=3, pretrained=False)
    ids = tuple(sorted(CATEGORY_IDS))  # torchvision's order of the classes
    save_checkpoint(ours, model=model, config=config, class_names=NAMES, category_ids=ids)
    summary = convert(ours, there, to="torchvision")
    assert (
        "reshaped: 2: head.logits.weight [3, 256, 3, 3] -> head.classification_head.cls_logits.weight [91, 25"
        in summary
    )
    summary = convert(there, back)
    assert (
        "reshaped: 2: head.classification_head.cls_logits.weight [91, 256, 3, 3] -> head.logits.weight [3, 25"
        in summary
    )
    made = load_checkpoint(back)
    assert made.category_ids == ids
    assert_equal(made.model, model.state_dict())


def test_conversion_to_our_format_drops_the_training_state(tmp_path: Path) -> None:
    ours = saved(tmp_path / "ours.pt", tiny_config())
    convert(ours, tmp_path / "small.pt")
    before, after = load_checkpoint(ours), load_checkpoint(tmp_path / "small.pt")
    assert before.training is not None
    assert after.training is None
    assert (after.class_names, after.category_ids, after.iteration) == (NAMES, CATEGORY_IDS, 7)
    assert_equal(after.model, before.model)


def test_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    ours, out = saved(tmp_path / "ours.pt", tiny_config()), tmp_path / "out.pt"
    out.write_text("precious")
    with pytest.raises(WeightsError, match=r"out\.pt: exists already and is not overwritten"):
        convert(ours, out)
    assert out.read_text() == "precious"


def test_missing_output_folder_raises(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"out\.pt: no such folder"):
        convert(tmp_path / "ours.pt", tmp_path / "none" / "out.pt")


def test_unknown_format_raises(tmp_path: Path) -> None:
    to: Any = "onnx"
    with pytest.raises(ConfigError, match="to: expected one of fcos, fcos_core, torchvision, found 'onnx'"):
        convert(saved(tmp_path / "ours.pt", tiny_config()), tmp_path / "out.pt", to=to)
    assert not (tmp_path / "out.pt").exists()


def test_unsupported_detector_raises_and_writes_no_file(tmp_path: Path) -> None:
    ours = saved(tmp_path / "ours.pt", tiny_config())
    for to in ("fcos_core", "torchvision"):
        with pytest.raises(WeightsError, match="cannot reproduce this detector"):
            convert(ours, tmp_path / "out.pt", to=to)
    assert [path.name for path in tmp_path.iterdir()] == ["ours.pt"]


def test_advice_for_detectors_that_a_project_lacks_can_be_followed(tmp_path: Path) -> None:
    """Only options of detection can change after training; for the others, the message gives no advice."""
    options = {**ORIGINAL, "clip_after_nms": True, "threshold_on": "score"}
    ours, other, out = (tmp_path / name for name in ("ours.pt", "other.pt", "out.pth"))
    with pytest.raises(WeightsError) as caught:
        convert(saved(ours, tiny_config(**options)), out, to="fcos_core")
    advice = str(caught.value).partition("; to convert it anyway, add ")[2].split()
    assert sorted(advice) == ["model.clip_after_nms=false", "model.threshold_on=class"]
    convert(ours, out, *advice, to="fcos_core")
    with pytest.raises(WeightsError) as caught:
        convert(saved(other, tiny_config(**options, location="corner")), tmp_path / "out2.pth", to="fcos_core")
    reason = "the weights were trained for model.location, which cannot be changed afterwards"
    assert str(caught.value).endswith(f"model.threshold_on=score (expected class); {reason}")


def test_report_lists_matched_reshaped_skipped_and_new_tensors() -> None:
    a, b = torch.zeros(2, 3), torch.zeros(5)
    summary = report(
        {"x.weight": a, "y.bias": b, "rpn.head.cls_logits.bias": b[:3]},
        {"z.weight": a, "w.bias": torch.ones(1), "head.logits.bias": torch.zeros(2)},
        {"z.weight": "x.weight", "head.logits.bias": "rpn.head.cls_logits.bias"},
    )
    assert summary.splitlines() == [
        "matched: 2 of 3 tensors, 2 renamed",
        "reshaped: 1: rpn.head.cls_logits.bias [3] -> head.logits.bias [2]",
        "skipped: 1: y.bias",
        "new: 1: w.bias",
    ]
