"""Detectors of Detectron (pickles of Caffe2 blobs): names of the blobs, conventions, files, and unsupported blobs."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from original_configs import PYRAMID_PAIRS, read
from torch import Tensor

import fcos
from fcos.checkpoint import save_checkpoint
from fcos.cli import main
from fcos.errors import WeightsError
from fcos.interop.checkpoints import load_checkpoint
from fcos.interop.fcos_core.detectron import convert, is_detector, is_retinanet
from fcos.models import build_model
from fcos.models.backbones import resnet
from fcos.training.start import start_from

GOLDENS = Path(__file__).parents[1] / "parity" / "goldens"
LAST_BLOCKS = {1: 2, 2: 3, 3: 5, 4: 2}
"""Number of the last block of every stage of ResNet-50, which names the blobs of the pyramid."""
_LAYERS = [
    (r"backbone\.fpn\.fpn_inner4", "fpn_inner_res5_2_sum"),
    (r"backbone\.fpn\.fpn_inner(\d)", lambda m: f"fpn_inner_res{int(m[1]) + 1}_{LAST_BLOCKS[int(m[1])]}_sum_lateral"),
    (r"backbone\.fpn\.fpn_layer(\d)", lambda m: f"fpn_res{int(m[1]) + 1}_{LAST_BLOCKS[int(m[1])]}_sum"),
    (r"backbone\.fpn\.top_blocks\.p(\d)", r"fpn_\1"),
    (r"roi_heads\.mask\.feature_extractor\.(mask_fcn\d)", lambda m: "_[mask]_" + m[1].removeprefix("mask_")),
    (r"roi_heads\.box\.feature_extractor\.xconvs\.(\d+)", lambda m: f"head_conv{int(m[1]) // 3 + 1}"),
    (r"roi_heads\.\w+\.(?:feature_extractor|predictor)\.(\w+)", r"\1"),
]


def blob_of(name: str, *, kind: str, has_norm: bool) -> str:
    """Return Detectron's name for a parameter of the original.

    Args:
        name: the original's name.
        kind: `retinanet`; `fpn` or `c4` for the others.
        has_norm: True if the layer is in a sequence with a group norm.
    """
    match = re.fullmatch(r".*?(?:stem\.|layer(\d)\.(\d+)\.)(conv|bn|downsample\.)(\d)\.(weight|bias)", name)
    if match:
        stage, block, layer, number, parameter = match.groups()
        is_norm = layer == "bn" or (layer == "downsample." and number == "1")
        branch = "1" if layer == "downsample." else "2" + "abc"[int(number) - 1]
        start = f"res{int(stage) + 1}_{block}_branch{branch}" if stage else "res_conv1" if is_norm else "conv1"
        return start + (f"_bn_{'s' if parameter == 'weight' else 'b'}" if is_norm else "_w")
    layer, _, parameter = name.rpartition(".")
    is_norm = False
    if has_norm:
        numbers = layer.rpartition(".")
        is_norm = int(numbers[2]) % 3 == 1
        layer = layer if "xconvs" in layer else numbers[0]
    if layer.startswith("rpn.head."):
        layer = layer.removeprefix("rpn.head.")
        tower = re.fullmatch(r"(cls|bbox)_tower\.(\d)", layer)
        if tower:
            layer = f"retnet_{tower[1]}_conv_n{int(tower[2]) // 2}_fpn3"
        elif kind == "retinanet":
            layer = {"cls_logits": "retnet_cls_pred_fpn3", "bbox_pred": "retnet_bbox_pred_fpn3"}[layer]
        else:
            layer = ("conv_rpn" if layer == "conv" else f"rpn_{layer}") + ("_fpn2" if kind == "fpn" else "")
    for pattern, replacement in _LAYERS:
        layer = re.sub(f"^{pattern}$", replacement, layer)
    return layer + (("_gn_s" if parameter == "weight" else "_gn_b") if is_norm else f"_{parameter[0]}")


def recorded_names(manifest: dict[str, Any]) -> list[str]:
    """Return the tensors of the original's detector that Detectron's file contains."""
    derived = ("running_mean", "running_var")
    return [name for name, *_ in manifest["tensors"] if "cell_anchors" not in name and not name.endswith(derived)]


def blobs_of(names: Iterable[str], *, kind: str) -> dict[str, str]:
    """Return Detectron's name of every parameter of the original."""
    names = list(names)
    layers = {name.rpartition(".")[0] for name in names}

    def has_norm(name: str) -> bool:
        layer = name.rpartition(".")[0]
        stack, _, number = layer.rpartition(".")
        is_pair = number in "01" and {f"{stack}.0", f"{stack}.1"} <= layers and not stack.endswith("downsample")
        return is_pair or ("xconvs" in layer and f"{stack}.1" in layers)

    return {name: blob_of(name, kind=kind, has_norm=has_norm(name)) for name in names}


MANIFESTS = [
    *sorted((GOLDENS / "manifests" / "caffe2").glob("*.json")),
    *(GOLDENS / "manifests" / f"{name}.json" for name in ("rpn_R_50_FPN_1x", "rpn_R_50_C4_1x")),
    *sorted((GOLDENS / "manifests" / "retinanet").glob("*R-50*1x.json")),
    *(GOLDENS / "manifests/gn_baselines" / f"e2e_mask_rcnn_R_50_FPN_{name}1x_gn.json" for name in ("", "Xconv1fc_")),
]


@pytest.mark.parametrize("file", MANIFESTS, ids=lambda file: file.stem)
def test_blobs_get_the_names_of_the_original(file: Path) -> None:
    manifest = json.loads(file.read_text())
    kind = "retinanet" if "retinanet" in file.stem else "c4" if "C4" in file.stem else "fpn"
    names = blobs_of(recorded_names(manifest), kind=kind)
    has_bn = any(name.endswith("running_mean") for name, *_ in manifest["tensors"])
    if not has_bn:
        names = {name: blob.replace("_bn_", "_gn_").replace("res_conv1", "conv1") for name, blob in names.items()}
    shapes = {name: shape for name, shape, *_ in manifest["tensors"]}
    blobs = {blob: torch.zeros(shapes[name][:1] + [1] * (len(shapes[name]) - 1)) for name, blob in names.items()}
    assert is_detector(blobs)
    assert is_retinanet(blobs) == (kind == "retinanet")
    momentum = {f"{blob}_momentum": tensor for blob, tensor in blobs.items()}
    unused = {name: torch.zeros(1) for name in ("fc1000_w", "conv1_b", "res2_0_branch2a_b", "kps_score_w")}
    state, origin = convert({**blobs, **momentum, **unused}, where="x.pkl")
    assert origin == names
    moved = {name for name in names if kind == "retinanet" and re.search(r"head\.(cls_logits|bbox_pred)\.", name)}
    assert all(state[name] is blobs[blob] for name, blob in names.items() if name not in moved)
    statistics = {name for name in shapes if name.endswith(("running_mean", "running_var"))}
    assert state.keys() - names.keys() == statistics
    assert all(bool((state[name] == name.endswith("var")).all()) for name in statistics)


@pytest.mark.parametrize(
    ("blob", "name"),
    [
        ("conv_rpn_w", "rpn.head.conv.weight"),
        ("conv_rpn_fpn2_b", "rpn.head.conv.bias"),
        ("rpn_cls_logits_fpn2_w", "rpn.head.cls_logits.weight"),
        ("rpn_bbox_pred_b", "rpn.head.bbox_pred.bias"),
        ("fpn_inner_res5_2_sum_w", "backbone.fpn.fpn_inner4.weight"),
        ("fpn_inner_res4_35_sum_lateral_b", "backbone.fpn.fpn_inner3.bias"),
        ("fpn_res2_2_sum_w", "backbone.fpn.fpn_layer1.weight"),
        ("fc6_w", "roi_heads.box.feature_extractor.fc6.weight"),
        ("cls_score_b", "roi_heads.box.predictor.cls_score.bias"),
        ("bbox_pred_w", "roi_heads.box.predictor.bbox_pred.weight"),
        ("_[mask]_fcn1_w", "roi_heads.mask.feature_extractor.mask_fcn1.weight"),
        ("conv5_mask_b", "roi_heads.mask.predictor.conv5_mask.bias"),
        ("mask_fcn_logits_w", "roi_heads.mask.predictor.mask_fcn_logits.weight"),
        ("conv_fcn8_b", "roi_heads.keypoint.feature_extractor.conv_fcn8.bias"),
        ("kps_score_lowres_w", "roi_heads.keypoint.predictor.kps_score_lowres.weight"),
        ("res5_0_branch1_w", "roi_heads.box.feature_extractor.head.layer4.0.downsample.0.weight"),
    ],
)
def test_names_of_single_blobs(blob: str, name: str) -> None:
    assert convert({"cls_score_w": torch.zeros(1), blob: torch.zeros(1)}, where="x")[1][name] == blob


def test_a_mask_head_with_its_own_c5_does_not_share_that_of_the_box_head() -> None:
    blobs = ["cls_score_w", "conv5_mask_w", "res5_0_branch2a_w", "_[mask]_res5_0_branch2a_w"]
    names = convert({blob: torch.zeros(1) for blob in blobs}, where="x")[1]
    heads = {kind: f"roi_heads.{kind}.feature_extractor.head.layer4.0.conv1.weight" for kind in ("box", "mask")}
    assert {kind: names[name] for kind, name in heads.items()} == {"box": blobs[2], "mask": blobs[3]}


def test_predictions_of_retinanet_are_reordered_and_scaled() -> None:
    """Row ((scale * 3 + ratio) * K + class) of Detectron is row ((ratio * 3 + scale) * K + class) of the original."""
    num_classes = 2
    blobs = {
        "retnet_cls_pred_fpn3_b": torch.arange(9.0 * num_classes),
        "retnet_bbox_pred_fpn3_b": torch.arange(36.0),
        "retnet_cls_pred_fpn3_w": torch.arange(9.0 * num_classes).reshape(-1, 1, 1, 1).expand(-1, 5, 3, 3),
        "retnet_bbox_pred_fpn3_w": torch.arange(36.0).reshape(-1, 1, 1, 1).expand(-1, 5, 3, 3),
    }
    state, _ = convert(blobs, where="x.pkl")
    for ratio in range(3):
        for scale in range(3):
            for label in range(num_classes):
                row = state["rpn.head.cls_logits.bias"][(ratio * 3 + scale) * num_classes + label]
                assert row == (scale * 3 + ratio) * num_classes + label
            start = (ratio * 3 + scale) * 4
            expected = [((scale * 3 + ratio) * 4 + i) * (10.0, 10.0, 5.0, 5.0)[i] for i in range(4)]
            assert state["rpn.head.bbox_pred.bias"][start : start + 4].tolist() == expected
    for layer in ("cls_logits", "bbox_pred"):
        weight = state[f"rpn.head.{layer}.weight"]
        assert torch.equal(weight[:, 4, 2, 1], state[f"rpn.head.{layer}.bias"])


@pytest.mark.parametrize("rows", [(None, 36), (17, 36), (18, 24), (18, 720)])
def test_other_numbers_of_anchors_have_a_clear_message(rows: tuple[int | None, int]) -> None:
    logits, offsets = rows
    blobs: dict[str, Tensor] = {"retnet_bbox_pred_fpn3_b": torch.zeros(offsets)}
    blobs |= {f"retnet_{name}_pred_fpn3_w": torch.zeros(36, 1, 3, 3) for name in ("cls", "bbox")}
    blobs |= {"retnet_cls_pred_fpn3_b": torch.zeros(logits)} if logits else {}
    with pytest.raises(WeightsError, match=r"x\.pkl: expected predictions for 9 anchors per location \(3 scales of 3"):
        convert(blobs, where="x.pkl")


# --------------------------------------------------------------------------------------------------------------- files


@pytest.fixture
def pickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, dict[str, Tensor]]:
    """Return a file of a small Faster R-CNN as Detectron writes it, and its blobs."""
    monkeypatch.setitem(resnet.SHAPES, "resnet50", resnet.SHAPES["resnet50"]._replace(blocks=(1, 1, 1, 1)))
    for stage in LAST_BLOCKS:
        monkeypatch.setitem(LAST_BLOCKS, stage, 0)
    torch.manual_seed(0)
    (tmp_path / "original.yaml").write_text("MODEL:\n  FCOS_ON: false\n")
    config = read(body=PYRAMID_PAIRS)
    weights = tmp_path / "seed.pt"
    model = build_model(config.model, num_classes=2, pretrained=False)
    save_checkpoint(weights, model=model, config=config, class_names=("a", "b"), category_ids=(1, 2))
    fcos.convert(weights, tmp_path / "theirs.pth", to="fcos_core")
    state = torch.load(tmp_path / "theirs.pth")["model"]
    names = blobs_of(
        [n for n in state if not n.endswith(("running_mean", "running_var")) and "anchors" not in n], kind="fpn"
    )
    names["backbone.fpn.fpn_inner4.weight"] = "fpn_inner_res5_0_sum_w"
    names["backbone.fpn.fpn_inner4.bias"] = "fpn_inner_res5_0_sum_b"
    blobs = {blob: state[name] for name, blob in names.items()}
    path = tmp_path / "model_final.pkl"
    content = {"blobs": {blob: tensor.numpy() for blob, tensor in blobs.items()}, "cfg": "MODEL: {}"}
    path.write_bytes(pickle.dumps(content, 2))
    return path, blobs


def pairs(*more: str) -> list[str]:
    return [*PYRAMID_PAIRS, *more]


def test_a_file_is_loaded_completely(pickled: tuple[Path, dict[str, Tensor]]) -> None:
    path, blobs = pickled
    folder = path.parent
    summary = fcos.convert(path, folder / "ours.pt", *pairs(), "data.classes=[a, b]", config=folder / "original.yaml")
    assert summary.splitlines()[0].startswith(f"matched: {len(blobs)} of {len(blobs)} tensors")
    seed, ours = (torch.load(folder / name) for name in ("seed.pt", "ours.pt"))
    assert ours["class_names"] == ["a", "b"]
    assert ours["licence"] == ""
    assert ours["model"].keys() == seed["model"].keys()
    assert all(torch.equal(tensor, ours["model"][name]) for name, tensor in seed["model"].items())


def test_weight_of_a_config_is_a_detector_or_only_its_backbone(pickled: tuple[Path, dict[str, Tensor]]) -> None:
    path = str(pickled[0])
    config = read("MODEL.WEIGHT", path, body=PYRAMID_PAIRS)
    assert (config.model.backbone.weights, config.train.weights) == (None, path)
    config = read("MODEL.WEIGHT", path)  # FCOS
    assert (config.model.backbone.weights, config.train.weights) == (path, None)


def test_training_of_a_detector_with_masks_starts_from_a_file_without(pickled: tuple[Path, dict[str, Tensor]]) -> None:
    mask = ["MODEL.MASK_ON", "True", "MODEL.ROI_MASK_HEAD.FEATURE_EXTRACTOR", "MaskRCNNFPNFeatureExtractor"]
    mask += ["MODEL.ROI_MASK_HEAD.POOLER_SCALES", "(0.25, 0.125, 0.0625, 0.03125)"]
    mask += ["MODEL.ROI_MASK_HEAD.RESOLUTION", "28", "MODEL.ROI_MASK_HEAD.SHARE_BOX_FEATURE_EXTRACTOR", "False"]
    config = read(*mask, body=PYRAMID_PAIRS).model
    model = build_model(config, num_classes=2, pretrained=False)
    path, blobs = pickled
    summary = start_from(model, load_checkpoint(path), config, ("x", "y"), where="model_final.pkl")
    assert "newly initialised, because the weights do not contain them" in summary
    assert torch.equal(model.state_dict()["box.body.linears.1.weight"], blobs["fc6_w"])


def test_unsupported_blobs_are_named_and_end_with_exit_code_2(
    pickled: tuple[Path, dict[str, Tensor]], capsys: pytest.CaptureFixture[str]
) -> None:
    path, _ = pickled
    content = pickle.loads(path.read_bytes())
    content["blobs"]["body_conv_fcn1_w"] = content["blobs"]["fc6_b"]
    path.write_bytes(pickle.dumps(content, 2))
    with pytest.raises(SystemExit) as end:
        main(
            [
                "convert",
                str(path),
                str(path.parent / "out.pt"),
                "--config",
                str(path.parent / "original.yaml"),
                *pairs(),
            ]
        )
    assert end.value.code == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "model_final.pkl: unsupported blobs: body_conv_fcn1_w; expected those of Detectron's RPN" in error
    assert not (path.parent / "out.pt").exists()


def test_a_backbone_is_no_detector(tmp_path: Path) -> None:
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps({"res2_0_branch2a_w": torch.zeros(1).numpy()}))
    with pytest.raises(
        WeightsError, match=r"R-50\.pkl: weights of a backbone: expected .* set model\.backbone\.weights"
    ):
        load_checkpoint(path)
