"""Same detections as torchvision's RetinaNet and R-CNN in the same process; names and classes converted both ways."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from model_options import changed_sections
from torch import Tensor, nn
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_fpn
from torchvision_models import OUR_LIMITS, assert_same, network_input, random_model, resizing

import fcos
from fcos.checkpoint import Checkpoint, load_weights
from fcos.config.detectors import DETECTORS
from fcos.config.options import free_options, in_effect, options_of
from fcos.config.overrides import validate
from fcos.config.text import flatten
from fcos.errors import WeightsError
from fcos.interop.checkpoints import from_content, load_checkpoint
from fcos.interop.torchvision import COCO_CLASSES, from_torchvision, to_torchvision
from fcos.interop.torchvision.architectures import ARCHITECTURES
from fcos.masks import paste
from fcos.models import DetectionModel, build_model
from fcos.models.anchors import Sampler, assign_anchors
from fcos.structures import Instances, Objects
from fcos.training.start import start_from

RETINANETS = ("retinanet_resnet50_fpn", "retinanet_resnet50_fpn_v2")
RCNNS = (
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "maskrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn_v2",
    "keypointrcnn_resnet50_fpn",
)
OLD = ("retinanet_resnet50_fpn", "maskrcnn_resnet50_fpn", "keypointrcnn_resnet50_fpn")
NUM_LABELS = 6


def suppress_background(name: str, model: nn.Module) -> nn.Module:
    """Remove the detections of RetinaNet's class "background", which we do not have."""
    if name in RETINANETS:
        model.get_parameter("head.classification_head.cls_logits.bias").data.view(9, -1)[:, 0] = -100.0
        model.get_parameter("head.classification_head.cls_logits.weight").data.unflatten(0, (9, -1))[:, 0] = 0.0
    return model


def detector(checkpoint: Checkpoint) -> DetectionModel:
    section = checkpoint.config["model"]
    limits = OUR_LIMITS[section["name"]]
    proposals = {**section.get("proposals", {}), **limits.get("proposals", {})}
    section = {**section, **limits, **({"proposals": proposals} if proposals else {})}
    config = validate({**checkpoint.config, "model": section}, where="torchvision")
    model = build_model(config.model, num_classes=len(checkpoint.category_ids), pretrained=False)
    load_weights(model, checkpoint.model, where="torchvision")
    return model.eval()


class Pair(NamedTuple):
    """torchvision's model, and ours with the same weights."""

    name: str
    theirs: nn.Module
    ours: DetectionModel

    @torch.inference_mode()
    def detect(self, images: Sequence[Tensor]) -> tuple[list[Instances], list[dict[str, Tensor]]]:
        transform: Any = self.theirs.transform
        found = self.ours.detect(*network_input(transform, images))
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        return [image.resize_to(size) for image, size in zip(found, sizes, strict=True)], self.theirs(images)


def make_pair(name: str, seed: int) -> Pair:
    num_labels = 2 if name.startswith("keypoint") else NUM_LABELS
    theirs = suppress_background(name, random_model(name, num_labels, seed=seed))
    return Pair(name, theirs, detector(from_torchvision(theirs.state_dict())))


@pytest.fixture(scope="module", params=[*RETINANETS, *RCNNS])
def pair(request: pytest.FixtureRequest) -> Pair:
    return make_pair(request.param, 1)


def assert_same_details(found: Instances, expected: dict[str, Tensor]) -> None:
    """Compare boxes and keypoints (0.01 pixels), scores (1e-5) and masks (1e-4) with torchvision's."""
    assert_same(found, expected, found.labels + 1)
    torch.testing.assert_close(found.scores, expected["scores"], rtol=0, atol=1e-5)
    if "masks" in expected:
        # The corners of boxes are truncated to pixels, where the last digit of a float32 can make a difference of one
        # pixel. So torchvision's boxes are used here.
        order = match_boxes(found, expected)
        assert found.mask_grids is not None
        extra = 1 - found.mask_margin
        inclusive = expected["boxes"] - torch.tensor([0.0, 0.0, extra, extra])
        for ours, theirs in zip(paste(found.mask_grids[order], inclusive, found.size), expected["masks"], strict=True):
            torch.testing.assert_close(ours, theirs[0], rtol=0, atol=1e-4)
    if "keypoints" in expected:
        order = match_boxes(found, expected)
        assert found.keypoints is not None
        keypoints = found.keypoints[order]
        torch.testing.assert_close(keypoints[..., :2], expected["keypoints"][..., :2], rtol=0, atol=0.01)
        torch.testing.assert_close(keypoints[..., 2], expected["keypoints_scores"], rtol=0, atol=1e-4)


def match_boxes(found: Instances, expected: dict[str, Tensor]) -> Tensor:
    """Return the index of our detection for each of torchvision's, since nearly equal scores may swap places."""
    distance = (found.boxes[:, None] - expected["boxes"]).abs().amax(dim=2)
    return (
        (distance + 1000.0 * (found.labels[:, None] + 1 != expected["labels"])).argmin(dim=0)
        if len(found)
        else torch.zeros(0, dtype=torch.int64)
    )


@pytest.mark.parametrize(
    ("sizes", "min_size"),
    [
        ([(96, 128)], 96),  # not resized
        ([(75, 101)], 96),  # enlarged; sides are not multiples of 32
        ([(160, 90), (96, 70)], 64),  # a batch of two sizes, with padding
    ],
)
def test_detections_match_torchvision(pair: Pair, sizes: list[tuple[int, int]], min_size: int) -> None:
    pair.theirs.transform = resizing(min_size)
    for found, expected in zip(*pair.detect([torch.rand(3, *size) for size in sizes]), strict=True):
        assert len(found) > 10
        assert pair.name.startswith("keypoint") or len(sizes) > 1 or len(found.labels.unique()) > 1
        assert ("masks" in expected, "keypoints" in expected) == (
            found.mask_grids is not None,
            found.keypoints is not None,
        )
        assert_same_details(found, expected)


@pytest.mark.parametrize("name", ["retinanet_resnet50_fpn", "maskrcnn_resnet50_fpn_v2", "keypointrcnn_resnet50_fpn"])
def test_detections_of_other_weights_match_torchvision(name: str) -> None:
    pair = make_pair(name, seed=2)
    for found, expected in zip(*pair.detect([torch.rand(3, 130, 64)]), strict=True):
        assert len(found) > 10
        assert_same_details(found, expected)


def test_images_without_detections_match_torchvision(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of two images has no detections, then none of them."""
    pair.theirs.transform = resizing(64)
    images = [torch.rand(3, 64, 64), torch.rand(3, 64, 90) * 0.1]
    low, high = sorted(float(image["scores"][0]) for image in pair.detect(images)[1])
    settings: Any = pair.theirs if pair.name in RETINANETS else pair.theirs.roi_heads
    for threshold in ((low + high) / 2, high + 1e-4):
        monkeypatch.setattr(settings, "score_thresh", threshold)
        assert pair.ours.postprocess is not None
        monkeypatch.setattr(pair.ours, "postprocess", replace(pair.ours.postprocess, score_threshold=threshold))
        results = pair.detect(images)
        assert min(len(image) for image in results[0]) == 0
        for found, expected in zip(*results, strict=True):
            assert_same_details(found, expected)


def test_weights_survive_a_round_trip(pair: Pair) -> None:
    """Only RetinaNet's rows of the background, which are not used, change."""
    state = pair.theirs.state_dict()
    checkpoint = from_torchvision(state)
    back = to_torchvision(checkpoint)
    pair.theirs.load_state_dict(back)
    again = from_torchvision(back)
    pair.theirs.load_state_dict(state)
    assert_equal(again.model, checkpoint.model)
    assert replace(again, model={}) == replace(checkpoint, model={})
    is_head = [name.startswith("head.classification_head.cls_logits.") for name in state]
    same = [name for name, skipped in zip(state, is_head, strict=True) if not skipped]
    assert_equal({name: back[name] for name in same}, {name: state[name] for name in same})


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def old_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename tensors as in torchvision before 0.13, with frozen batch norm."""
    old = {}
    for name, tensor in state.items():
        new = re.sub(r"(inner|layer)_blocks\.(\d)\.0\.", r"\1_blocks.\2.", name)
        new = re.sub(r"(head\.\w+_head\.conv)\.(\d)\.0\.", lambda m: f"{m[1]}.{2 * int(m[2])}.", new)
        new = new.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
        new = re.sub(r"mask_head\.(\d)\.0\.", lambda m: f"mask_head.mask_fcn{int(m[1]) + 1}.", new)
        if not name.endswith("num_batches_tracked"):
            old[new] = tensor
    return old


@pytest.mark.parametrize("name", OLD)
def test_names_before_torchvision_0_13_are_supported(name: str) -> None:
    state = random_model(name, 2).state_dict()
    old = old_names(state)
    assert not (state.keys() - old.keys()).isdisjoint({"backbone.fpn.layer_blocks.0.0.weight"})
    expected = from_torchvision(state).model
    found = from_torchvision(old).model
    assert_equal(found, {k: v for k, v in expected.items() if not k.endswith("num_batches_tracked")})


def test_old_weights_have_no_epsilon_in_batch_norm() -> None:
    """torchvision sets the epsilon to 0 when it loads its first COCO weights; later models have 1e-5."""
    name = "fasterrcnn_resnet50_fpn"
    theirs = random_model(name)
    for key, tensor in theirs.state_dict().items():
        if key.endswith("running_var"):
            tensor.mul_(1e-4)  # so that the epsilon matters
    state = old_names(theirs.state_dict())
    checkpoint = from_torchvision(state)
    assert checkpoint.config["model"]["backbone"]["norm_eps"] == 0
    images = [torch.rand(3, 96, 128)]
    back = to_torchvision(checkpoint)
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.0
    found, expected = Pair(name, theirs, detector(checkpoint)).detect(images)
    assert_same_details(found[0], expected[0])
    plain = random_model(name)
    plain.load_state_dict(back, strict=False)
    with torch.inference_mode():
        (again,) = plain(images)
    assert_same_details(found[0], again)


def class_rows(name: str, num_labels: int) -> dict[str, Tensor]:
    """Return the parameters with class rows of a state dict, each row filled with its label."""
    labels = torch.arange(float(num_labels))
    if name in RETINANETS:
        rows = labels.repeat(9)
        head = "head.classification_head.cls_logits"
        state = {f"{head}.weight": rows[:, None, None, None].expand(-1, 2, 3, 3).clone(), f"{head}.bias": rows}
        box = "head.regression_head.bbox_reg"
        state |= {f"{box}.weight": torch.zeros(36, 2, 3, 3), f"{box}.bias": torch.zeros(36)}
        return state | ({"head.classification_head.conv.0.1.weight": torch.zeros(2)} if name.endswith("v2") else {})
    state = {"roi_heads.box_head.0.0.weight": torch.zeros(2, 2, 3, 3)} if name.endswith("v2") else {}
    for head, rows in (("cls_score", labels), ("bbox_pred", labels.repeat_interleave(4))):
        state[f"roi_heads.box_predictor.{head}.weight"] = rows[:, None].expand(-1, 2).clone()
        state[f"roi_heads.box_predictor.{head}.bias"] = rows
    if name.startswith("mask"):
        state["roi_heads.mask_predictor.mask_fcn_logits.weight"] = labels[:, None, None, None].expand(-1, 2, 1, 1)
        state["roi_heads.mask_predictor.mask_fcn_logits.bias"] = labels
    if name.startswith("keypoint"):
        state["roi_heads.keypoint_predictor.kps_score_lowres.weight"] = torch.zeros(8, 17, 4, 4)
        state["roi_heads.keypoint_predictor.kps_score_lowres.bias"] = torch.zeros(17)
    return state


def test_91_rows_are_those_of_the_coco_classes() -> None:
    retinanet = from_torchvision(class_rows("retinanet_resnet50_fpn", 91))
    assert dict(zip(retinanet.category_ids, retinanet.class_names, strict=True)) == COCO_CLASSES
    assert retinanet.model["head.logits.bias"].tolist() == [float(i) for _ in range(9) for i in COCO_CLASSES]
    mask = from_torchvision(class_rows("maskrcnn_resnet50_fpn", 91))
    assert dict(zip(mask.category_ids, mask.class_names, strict=True)) == COCO_CLASSES
    rows = [0.0, *map(float, COCO_CLASSES)]  # with the background
    assert mask.model["box.logits.weight"][:, 1].tolist() == rows
    assert mask.model["box.offsets.bias"].tolist() == [row for row in rows for _ in range(4)]
    assert mask.model["heads.mask.logits.weight"][:, 0, 0, 0].tolist() == rows


def test_the_class_with_17_keypoints_is_person() -> None:
    checkpoint = from_torchvision(class_rows("keypointrcnn_resnet50_fpn", 2))
    assert (checkpoint.category_ids, checkpoint.class_names) == ((1,), ("person",))
    assert checkpoint.config["model"]["keypoints"] == {"enabled": True, "num_keypoints": 17}
    named = from_torchvision(class_rows("keypointrcnn_resnet50_fpn", 2), class_names=["cow"])
    assert named.class_names == ("cow",)


@pytest.mark.parametrize("name", ["retinanet_resnet50_fpn", "maskrcnn_resnet50_fpn"])
def test_category_ids_become_labels(name: str) -> None:
    before = replace(from_torchvision(class_rows(name, 4)), category_ids=(2, 7, 90))
    state = to_torchvision(before)
    head = "head.classification_head.cls_logits" if name in RETINANETS else "roi_heads.box_predictor.cls_score"
    blocks = state[f"{head}.bias"].view(-1, 91)
    assert blocks[:, [2, 7, 90]].tolist() == [[1, 2, 3]] * len(blocks)
    assert set(blocks[:, [3, 50, 89]].flatten().tolist()) == {-10.0 if name in RETINANETS else -1000.0}
    after = from_torchvision(state)
    assert after.category_ids == (2, 7, 90)
    assert_equal(after.model, before.model)


def test_filler_rows_do_not_change_softmax_scores() -> None:
    name = "fasterrcnn_resnet50_fpn"
    checkpoint = replace(from_torchvision(random_model(name).state_dict()), category_ids=(1, 3, 7, 8, 30))
    theirs = random_model(name, 31)
    theirs.load_state_dict(to_torchvision(checkpoint))
    (found,), (expected,) = Pair(name, theirs, detector(checkpoint)).detect([torch.rand(3, 96, 128)])
    labels = torch.tensor(checkpoint.category_ids)[found.labels]
    assert_same_details(replace(found, labels=labels - 1), expected)


@pytest.mark.parametrize("name", RETINANETS)
def test_effective_options_of_retinanet_raise_unless_exempt(name: str) -> None:
    checkpoint = from_torchvision(class_rows(name, 3))
    section = validate(checkpoint.config, where="torchvision").model.model_dump(mode="json")
    options = options_of(DETECTORS[section["name"]])
    free = free_options(options, "torchvision")
    for key, changed in changed_sections(section).items():
        other = replace(checkpoint, config={"model": changed})
        if key in free or changed == section or key not in in_effect(flatten(changed), options):
            assert to_torchvision(other)
        else:
            with pytest.raises(WeightsError, match=r": torchvision's \w+ cannot reproduce this detector: model\."):
                to_torchvision(other)


@pytest.mark.parametrize(
    ("name", "options", "expected_text"),
    [
        ("retinanet_resnet50_fpn", {"offset_weights": (10, 10, 5, 5)}, "offset_weights=[10,10,5,5] (expected [1,1,1,1"),
        ("fasterrcnn_resnet50_fpn", {"location": "center"}, "location=center (expected corner)"),
        ("fasterrcnn_resnet50_fpn", {"anchor_rounding": "none"}, "anchor_rounding=none (expected corners)"),
        ("fasterrcnn_resnet50_fpn", {"proposals": {"in_padding": False}}, "proposals.in_padding=false"),
        ("fasterrcnn_resnet50_fpn", {"box": {"class_agnostic": True}}, "box.class_agnostic=true"),
        ("fasterrcnn_resnet50_fpn", {"box": {"num_convs": 4}}, "fpn.norm=none (expected bn)"),
        ("fasterrcnn_resnet50_fpn_v2", {"fpn": {"norm": "gn"}}, "fpn.norm=gn (expected bn)"),
        ("fasterrcnn_resnet50_fpn_v2", {"keypoints": {"enabled": True}}, "fpn.norm=bn (expected none)"),
        ("maskrcnn_resnet50_fpn", {"mask": {"enabled": True, "margin": 0}}, "mask.margin=0 (expected 1)"),
        ("maskrcnn_resnet50_fpn", {"keypoints": {"enabled": True}}, "keypoints.enabled=true (expected false)"),
        ("keypointrcnn_resnet50_fpn", {"box": {"num_linears": 1}}, "box.num_linears=1 (expected 2)"),
    ],
)
def test_options_that_torchvision_lacks_raise(name: str, options: dict[str, Any], expected_text: str) -> None:
    checkpoint = from_torchvision(class_rows(name, 3))
    section = checkpoint.config["model"]
    merged = {k: {**section.get(k, {}), **v} if isinstance(v, dict) else v for k, v in options.items()}
    with pytest.raises(WeightsError) as caught:
        to_torchvision(replace(checkpoint, config={"model": {**section, **merged}}), where="best.pt")
    assert str(caught.value).startswith("best.pt: torchvision's ")
    assert f"model.{expected_text}" in str(caught.value)


def test_class_heads_of_wrong_shape_raise() -> None:
    state = class_rows("maskrcnn_resnet50_fpn", 3)
    box = "roi_heads.box_predictor."
    for changed, expected in (
        ({f"{box}cls_score.weight": torch.zeros(4, 2)}, r"found weight: \[4, 2\], bias: \[3\]"),
        ({f"{box}cls_score.bias": torch.zeros(())}, r"found weight: \[3, 2\], bias: none"),
        ({f"{box}bbox_pred.bias": torch.zeros(9)}, r"box\.offsets\.bias must have 12, found the shape \[9\]"),
    ):
        with pytest.raises(WeightsError, match=rf"x\.pth: damaged weights.*{expected}"):
            from_content({**state, **changed}, where="x.pth")


def test_mobilenet_v3_raises() -> None:
    state = fasterrcnn_mobilenet_v3_large_fpn(weights=None, weights_backbone=None, num_classes=2).state_dict()
    with pytest.raises(WeightsError, match=r"x\.pth: expected .* with a ResNet-50 .*, found another backbone"):
        from_content(state, where="x.pth")
    for name in ("torchvision/fasterrcnn_mobilenet_v3_large_fpn", "torchvision/fasterrcnn_mobilenet_v3_large_320_fpn"):
        with pytest.raises(WeightsError, match=rf"^{name}: this project has no MobileNetV3, .*fasterrcnn_resnet50"):
            fcos.load(name)
        with pytest.raises(WeightsError, match="no MobileNetV3"):
            load_checkpoint(name)


def test_rpn_cannot_be_converted() -> None:
    checkpoint = replace(from_torchvision(class_rows("fasterrcnn_resnet50_fpn", 3)), config={"model": {"name": "rpn"}})
    with pytest.raises(WeightsError, match=r"x\.pt: weights of rpn, but torchvision supports only FCOS, RetinaNet and"):
        to_torchvision(checkpoint, where="x.pt")


def test_weights_by_name_predict_and_convert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way from the name, with a file of the same names and shapes in the cache instead of torchvision's."""
    name = "maskrcnn_resnet50_fpn_v2"
    theirs = random_model(name, 91, box_score_thresh=0.01)
    head = theirs.get_submodule("roi_heads.box_predictor.cls_score")
    no_class = [row for row in range(1, 91) if row not in COCO_CLASSES]
    head.get_parameter("bias").data[no_class] = -1000.0
    file = tmp_path / "checkpoints" / Path(ARCHITECTURES[name].coco.url).name
    file.parent.mkdir()
    torch.save(theirs.state_dict(), file)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    options = ["data.test_short_side=96", "data.test_max_side=192", "model.score_threshold=0.01"]
    options += ["model.proposals.max_proposals=100", "model.max_detections=20"]
    ours = fcos.load(f"torchvision/{name}", *options, device="cpu")
    image = torch.randint(0, 16, (3, 48, 64), dtype=torch.uint8) * 16  # doubled without rounding
    with torch.inference_mode():
        (expected,) = theirs([image / 255])
    found = ours.predict(image, threshold=0)
    assert len(found) == 20
    labels = torch.tensor(ours.category_ids)[found.labels]
    assert_same_details(replace(found, labels=labels - 1), expected)
    assert [found.class_names[i] for i in found.labels] == [COCO_CLASSES[int(i)] for i in labels]
    fcos.convert(f"torchvision/{name}", tmp_path / "ours.pt")
    summary = fcos.convert(tmp_path / "ours.pt", tmp_path / "back.pth", to="torchvision")
    assert "new:" not in summary
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    rows = [0, *COCO_CLASSES]
    for key, tensor in theirs.state_dict().items():
        if ".cls_score." in key or ".mask_fcn_logits." in key:
            assert torch.equal(back[key][rows], tensor[rows])
        elif ".bbox_pred." not in key:
            assert torch.equal(back[key], tensor)


def test_fine_tuning_keeps_the_rows_of_shared_classes() -> None:
    checkpoint = from_torchvision(random_model("maskrcnn_resnet50_fpn", 91).state_dict())
    config = validate(checkpoint.config, where="torchvision").model
    names = ("robot", "toothbrush", "person")
    model = build_model(config, num_classes=3, pretrained=False)
    summary = start_from(model, checkpoint, config, names, where="tv.pth")
    assert "loaded 2 of 3 rows by class name (toothbrush, person); newly initialised: robot" in summary
    last = len(checkpoint.class_names)
    for name, size in (("box.logits.weight", 1), ("box.offsets.weight", 4), ("heads.mask.logits.weight", 1)):
        ours = model.get_parameter(name).unflatten(0, (-1, size))
        theirs = checkpoint.model[name].unflatten(0, (-1, size))
        assert torch.equal(ours[[0, 2, 3]], theirs[[0, last, 1]])  # with the background
        assert not (ours[1] == theirs).flatten(1).all(dim=1).any()


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({}, ""),
        # Not in the config that the conversion of torchvision's weights writes, since it has our default.
        ({"anchor_ratios": [1.0, 2.0, 3.0]}, "model.anchor_ratios=[0.5,1,2]"),
        ({"mask": {"enabled": True, "resolution": 28}}, "model.mask.resolution=14"),
        ({"mask": {"enabled": False, "resolution": 28}}, ""),
        ({"location": "center", "anchor_rounding": "none"}, "model.location=corner model.anchor_rounding=corners"),
    ],
)
def test_fine_tuning_names_all_options_with_another_meaning(changed: dict[str, Any], told: str) -> None:
    checkpoint = from_torchvision(random_model("maskrcnn_resnet50_fpn").state_dict(), class_names=list("abcde"))
    section = {**checkpoint.config["model"], **changed}
    config = validate({**checkpoint.config, "model": section}, where="torchvision").model
    model = build_model(config, num_classes=5, pretrained=False)
    if not config.predicts_masks:
        checkpoint = replace(checkpoint, model={k: v for k, v in checkpoint.model.items() if "mask" not in k})
    summary = start_from(model, checkpoint, config, checkpoint.class_names, where="tv.pth")
    expected = f"; they were trained with {told}; use the same options" if told else ""
    assert summary == f"weights: all {len(model.state_dict()) - 2} tensors from tv.pth{expected}"


def losses_of(pair: Pair, boxes: Tensor, labels: Tensor) -> tuple[Mapping[str, Tensor], dict[str, Tensor]]:
    """Return our losses and torchvision's of an image, with batch norm in evaluation mode."""
    pair.theirs.transform = resizing(96)
    pair.theirs.train()
    for module in pair.theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    images = [torch.rand(3, 96, 128)]
    with torch.no_grad():
        theirs = pair.theirs(images, [{"boxes": boxes, "labels": labels + 1}])
        losses = pair.ours(*network_input(pair.theirs.transform, images), [Objects(boxes, labels)])
    return losses.terms, theirs


BOXES = torch.tensor([[4.0, 8, 60, 70], [50, 20, 120, 90], [30, 30, 62, 62]])


@pytest.mark.parametrize("name", RETINANETS)  # with L1 and with GIoU loss
def test_losses_of_retinanet_match_torchvision_up_to_the_denominator(name: str) -> None:
    """torchvision divides the class loss of an image by its positives; ours has one more, as in the original."""
    pair = make_pair(name, 1)
    ours, theirs = losses_of(pair, BOXES, torch.tensor([0, 3, 2]))
    torch.testing.assert_close(ours["loss_box"], theirs["bbox_regression"], rtol=1e-5, atol=0)
    model: Any = pair.ours
    anchors = torch.cat(model.anchors.levels(model.anchors.maps((96, 128))))
    positives = int((assign_anchors(anchors, [Objects(BOXES, torch.zeros(3).long())], model.matcher).labels >= 0).sum())
    expected = theirs["classification"] * positives / (positives + 1)
    torch.testing.assert_close(ours["loss_cls"], expected, rtol=1e-5, atol=0)


def test_losses_of_faster_rcnn_match_torchvision_if_nothing_is_sampled() -> None:
    """Both use all anchors and proposals here; otherwise, they draw other random samples."""
    everything = 10**6
    options = {"rpn_batch_size_per_image": everything, "box_batch_size_per_image": everything}
    theirs = random_model("fasterrcnn_resnet50_fpn", NUM_LABELS, **options)
    ours: Any = detector(from_torchvision(theirs.state_dict()))
    ours.proposals.sampler = Sampler(everything, 0.5)
    ours.box.sampler = Sampler(everything, 0.25)
    found, expected = losses_of(Pair("fasterrcnn_resnet50_fpn", theirs, ours), BOXES, torch.tensor([0, 3, 2]))
    for name, their_name in {
        "loss_objectness": "loss_objectness",
        "loss_rpn_box": "loss_rpn_box_reg",
        "loss_cls": "loss_classifier",
        "loss_box": "loss_box_reg",
    }.items():
        torch.testing.assert_close(found[name], expected[their_name], rtol=1e-4, atol=0)
