"""Targets, losses, decoding, non-maximum suppression and geometry against the recorded numbers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import cases, folder, load, tensor
from ground_truth import objects_of

from fcos.boxes import area, class_wise_nms, clip, limit_detections
from fcos.data.geometry import to_inclusive
from fcos.models.candidates import candidates
from fcos.models.layers import NORMS, DeformConv
from fcos.models.losses import focal_loss, iou_loss
from fcos.models.points import Assigner, assign_targets, centerness_targets, locations
from fcos.models.postprocess import FCOSPostprocess, suppress
from fcos.structures import Instances

RTOL = 1e-6  # the recorded units are bit-identical between two runs of the original
SIZE_RANGES = [(-1, 64), (64, 128), (128, 256), (256, 512), (512, None)]
STRIDES = [8, 16, 32, 64, 128]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    units = folder(metafunc.config) / "units"
    files = {
        "target_case": "targets.npz",
        "focal_case": "focal_loss.npz",
        "limit_case": "detections_limit.npz",
        "deform_case": "deform_conv.npz",
    }
    for name, file in files.items():
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, cases(units / file))
    if "post_case" in metafunc.fixturenames:
        metafunc.parametrize("post_case", cases(units / "postprocess.npz"))
    if "radius" in metafunc.fixturenames:
        radii = {match[1] for key in load(units / "targets.npz") if (match := re.search(r"/r([\d.]+)_n0/", key))}
        metafunc.parametrize("radius", sorted(map(float, radii)))


def test_locations_match_the_original(goldens: Path) -> None:
    recorded = load(goldens / "units" / "locations.npz")
    for key, expected in recorded.items():
        height, width, stride = (int(part[1:]) for part in key.split("_"))
        assert torch.equal(locations((height, width), stride), tensor(expected)), key


def test_targets_match_the_original(goldens: Path, target_case: str, radius: float) -> None:
    assignment, points, recorded = _assign(goldens, target_case, radius)
    key = f"{target_case}/r{radius}_n0"
    first_boxes = [
        value[0] for name, value in recorded.items() if name.startswith(f"{target_case}/boxes") and len(value)
    ]
    if radius and first_boxes and all(box[0] + box[2] == 0 for box in first_boxes):
        # With the centre of the first box at x = 0, the original assigns background to the whole image. This bug is not
        # reproduced here: the other boxes get positives.
        assert len(recorded[f"{key}/pos"]) == 0
        assert (assignment.labels >= 0).any()
        return
    grids = [len(p) for p in points]
    # The original's order: by level, then by image.
    ours = [level.flatten() for level in assignment.labels.split(grids, dim=1)]
    labels = torch.cat(ours)
    ltrb = torch.cat([level.flatten(0, 1) for level in assignment.ltrb.split(grids, dim=1)])
    positive = torch.nonzero(labels >= 0).squeeze(1)

    assert positive.tolist() == recorded[f"{key}/pos"].tolist()
    assert (labels[positive] + 1).tolist() == recorded[f"{key}/labels"].tolist()
    np.testing.assert_array_equal(ltrb[positive].numpy(), recorded[f"{key}/reg"].reshape(-1, 4))
    np.testing.assert_allclose(centerness_targets(ltrb[positive]).numpy(), recorded[f"{key}/centerness"], rtol=RTOL)
    units = torch.cat([p.new_full((len(p) * len(assignment.labels),), s) for p, s in zip(points, STRIDES, strict=True)])
    normalised = ltrb[positive] / units[positive, None]
    if f"{target_case}/r{radius}_n1/reg" in recorded:
        np.testing.assert_array_equal(normalised, recorded[f"{target_case}/r{radius}_n1/reg"].reshape(-1, 4))
    else:
        sums = normalised.double().sum(0)
        np.testing.assert_allclose(sums, recorded[f"{target_case}/r{radius}_n1/reg_sum"], rtol=RTOL)


def _assign(goldens: Path, case: str, radius: float):
    recorded = load(goldens / "units" / "targets.npz")
    images = range(int(recorded[f"{case}/num_images"]))
    targets = objects_of(
        [tensor(recorded[f"{case}/boxes{i}"]).reshape(-1, 4) for i in images],
        [tensor(recorded[f"{case}/labels{i}"]) - 1 for i in images],
    )
    points = [
        locations((int(h), int(w)), s) for (h, w), s in zip(recorded[f"{case}/grids"].tolist(), STRIDES, strict=True)
    ]
    assigner = Assigner(STRIDES, SIZE_RANGES, center_sampling_radius=radius, box_convention="inclusive")
    return assign_targets(points, targets, assigner), points, recorded


def test_focal_loss_and_its_gradient_match_the_original(goldens: Path, focal_case: str) -> None:
    recorded = {key.split("/")[1]: value for key, value in load(goldens / "units" / "focal_loss.npz").items()
                if key.startswith(f"{focal_case}/")}  # fmt: skip
    labels = tensor(recorded["targets"]).long()
    labels = torch.where(labels > 0, labels - 1, torch.where(labels == 0, -1, -2))

    def run(upstream: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        logits = tensor(recorded["logits"]).requires_grad_()
        loss = focal_loss(logits, labels, alpha=float(recorded["alpha"]), gamma=float(recorded["gamma"]))
        (loss.sum() if upstream is None else (loss * upstream).sum()).backward()
        assert logits.grad is not None
        return loss.detach(), logits.grad

    # float32 rounding of two formulas for the same function: log(sigmoid(x)) and -softplus(-x) differ by about 1e-6.
    loss, grad = run(tensor(recorded["upstream"]))
    np.testing.assert_allclose(loss, recorded["loss"], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(grad, recorded["grad_upstream"], rtol=1e-5, atol=1e-7)
    loss, grad = run(None)
    assert float(loss.double().sum()) == pytest.approx(float(recorded["sum"]), rel=RTOL)
    np.testing.assert_allclose(grad, recorded["grad"], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", ["iou", "linear_iou", "giou"])
@pytest.mark.parametrize("weights", ["none", "w", "zeros"])
def test_iou_loss_and_its_gradient_match_the_original(goldens: Path, kind, weights: str) -> None:
    recorded = load(goldens / "units" / "iou_loss.npz")
    predicted = tensor(recorded["pred"]).requires_grad_()
    weight = {"none": None, "w": tensor(recorded["weight"]), "zeros": torch.zeros(len(predicted))}[weights]
    loss = iou_loss(predicted, tensor(recorded["target"]), kind=kind, weight=weight)
    loss.backward()
    assert predicted.grad is not None
    assert loss.item() == pytest.approx(float(recorded[f"{kind}/{weights}/loss"]), rel=RTOL)
    np.testing.assert_allclose(predicted.grad, recorded[f"{kind}/{weights}/grad"], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", ["iou", "linear_iou", "giou"])
def test_iou_loss_of_single_boxes_matches_the_original(goldens: Path, kind) -> None:
    recorded = load(goldens / "units" / "iou_loss.npz")
    predicted, target = tensor(recorded["pred"]), tensor(recorded["target"])
    each = [iou_loss(p[None], t[None], kind=kind).item() for p, t in zip(predicted, target, strict=True)]
    # Linear losses are differences from 1: their rounding error is absolute.
    np.testing.assert_allclose(each, recorded[f"{kind}/each"], rtol=RTOL, atol=1e-7)


def test_postprocessed_detections_match_the_original(goldens: Path, post_case: str) -> None:
    """A case without inputs has those of another case, which is not recorded."""
    recorded = load(goldens / "units" / "postprocess.npz")
    sources = [key.removesuffix("/cls0") for key in recorded if key.endswith("/cls0")]
    sources = [post_case] if post_case in sources else sources
    assert any(detections_match(recorded, post_case, source) for source in sources)


def detections_match(recorded: dict[str, np.ndarray], post_case: str, source: str) -> bool:
    """Return whether the detections are those of a case, from the inputs of the case `source`."""
    levels = range(sum(key.startswith(f"{source}/cls") for key in recorded))
    logits, ltrb, centerness = ([tensor(recorded[f"{source}/{k}{i}"]) for i in levels] for k in ("cls", "reg", "ctr"))
    _, threshold, top_k, nms_threshold, limit = recorded[f"{post_case}/params"].tolist()
    options = FCOSPostprocess(
        score_threshold=threshold,
        pre_nms_top_k=int(top_k),
        nms_threshold=nms_threshold,
        max_detections=int(limit),
        box_convention="inclusive",
    )
    found = candidates(
        logits,
        ltrb,
        centerness,
        [locations((x.shape[2], x.shape[3]), s) for x, s in zip(logits, STRIDES, strict=True)],
        [tuple(size) for size in recorded["sizes_hw"].tolist()],
        options=options,
    )
    for image, every in enumerate(found):
        instances, key = suppress(every, options), f"{post_case}/out{image}"
        if (
            instances.labels.tolist() != (recorded[f"{key}/labels"] - 1).tolist()
            or not np.allclose(instances.scores, recorded[f"{key}/scores"], rtol=RTOL, atol=0)
            or not np.allclose(instances.boxes, recorded[f"{key}/boxes"].reshape(-1, 4), rtol=RTOL, atol=1e-5)
        ):
            return False
    return True


def test_detection_limit_matches_the_original(goldens: Path, limit_case: str) -> None:
    recorded = load(goldens / "units" / "detections_limit.npz")
    scores, limit = tensor(recorded[f"{limit_case}/scores"]), int(recorded[f"{limit_case}/limit"])
    assert limit_detections(scores, limit, keep_ties=True).tolist() == recorded[f"{limit_case}/keep"].tolist()
    ours = limit_detections(scores, limit)
    assert len(ours) == (min(limit, len(scores)) if limit > 0 else len(scores))
    assert set(ours.tolist()) <= set(recorded[f"{limit_case}/keep"].tolist())


def test_nms_matches_the_original(goldens: Path) -> None:
    recorded = load(goldens / "units" / "nms.npz")
    for key, kept in recorded.items():
        match = re.fullmatch(r"(.*/)?((?:ml_)?nms)_([\d.]+)", key)
        if match is None:
            continue
        prefix, kind, threshold = match[1] or "", match[2], match[3]
        boxes, scores, labels = (tensor(recorded[f"{prefix}{column}"]) for column in ("boxes", "scores", "labels"))
        groups = labels if kind == "ml_nms" else torch.zeros_like(labels)
        ours = class_wise_nms(boxes, scores, groups, float(threshold), convention="inclusive")
        assert sorted(ours.tolist()) == kept.tolist(), key


def test_frozen_batch_norm_without_epsilon_matches_the_original(goldens: Path) -> None:
    recorded = load(goldens / "units" / "frozen_bn.npz")
    layer = NORMS["frozen_bn"](recorded["x"].shape[1], eps=0.0)
    layer.load_state_dict({key: tensor(recorded[key]) for key in recorded["state_dict_keys"].tolist()})
    np.testing.assert_allclose(layer(tensor(recorded["x"])), recorded["y"], rtol=1e-5, atol=RTOL)
    assert len(list(layer.parameters())) == int(recorded["num_parameters"]) == 0


def test_deformable_convolution_matches_the_original(goldens: Path, deform_case: str) -> None:
    recorded = {
        key.removeprefix(f"{deform_case}/"): value
        for key, value in load(goldens / "units" / "deform_conv.npz").items()
        if key.startswith(f"{deform_case}/")
    }
    args = json.loads(str(recorded["args"]))
    layer = DeformConv(args.pop("in_channels"), args.pop("out_channels"), **args)
    layer.load_state_dict({k.removeprefix("param/"): tensor(v) for k, v in recorded.items() if k.startswith("param/")})
    x = tensor(recorded["x"]).requires_grad_()
    y = layer(x)
    y.backward(tensor(recorded["upstream"]))
    gradients = {"grad_x": x.grad} | {f"grad/{name}": p.grad for name, p in layer.named_parameters()}
    # The recordings' tolerance: two runs of the original differ by 2.4e-6. Large gradients are rounded more: those
    # computed in float64 differ from the recorded ones by up to 8.2e-7 of the largest value.
    for key, ours in {"y": y.detach(), **gradients}.items():
        atol = max(1e-5, 1e-6 * float(np.abs(recorded[key]).max()))
        np.testing.assert_allclose(ours, recorded[key], rtol=1e-5, atol=atol, err_msg=key)


def test_inclusive_geometry_matches_the_original(goldens: Path) -> None:
    recorded = load(goldens / "units" / "boxlist.npz")
    boxes = tensor(recorded["boxes"])
    width, height = recorded["size_wh"].tolist()

    def close(ours: torch.Tensor, key: str) -> None:
        np.testing.assert_allclose(ours, recorded[key], rtol=RTOL, atol=1e-5, err_msg=key)

    found = Instances(boxes, torch.zeros(len(boxes)).long(), torch.ones(len(boxes)), (height, width))
    close(_xywh(found.to_continuous("inclusive").boxes), "xywh")
    close(area(boxes, convention="inclusive"), "area_xyxy")
    close(clip(boxes, (height, width), convention="inclusive"), "clip_keep")


def _xywh(boxes: torch.Tensor) -> torch.Tensor:
    return torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1)


@pytest.mark.parametrize(("source", "result"), [("raw_xywh", "raw_xywh_to_xyxy"), ("xywh", "xywh_back")])
def test_inclusive_conversion_of_boxes_matches_the_original(goldens: Path, source: str, result: str) -> None:
    recorded = load(goldens / "units" / "boxlist.npz")
    corner, extent = tensor(recorded[source]).split(2, dim=1)
    large = torch.full((len(corner), 2), 1000)  # large enough that no box is clipped, as in the recordings
    boxes, _ = to_inclusive(torch.cat([corner, corner + extent], dim=1), large)
    # x, w and -1 are added in another order: near 100, adjacent float32 numbers are 8e-6 apart.
    np.testing.assert_allclose(boxes, recorded[result], rtol=RTOL, atol=1e-5)


def test_nms_suppresses_only_above_the_iou_of_the_original(goldens: Path) -> None:
    recorded = load(goldens / "units" / "boxlist.npz")
    boxes = tensor(recorded["boxes"])
    overlapping = [(i, j, float(recorded["iou"][i, j])) for i, j in np.argwhere(recorded["iou"] > 0)]
    assert len(overlapping) > 20
    for i, j, iou in overlapping:
        pair = torch.stack([boxes[i], boxes[len(boxes) - 1 - j]])  # recorded for the boxes in reverse order
        for threshold, kept in ((iou * 0.99999, [0]), (iou * 1.00001, [0, 1])):
            ours = class_wise_nms(
                pair, torch.tensor([0.9, 0.8]), torch.tensor([0, 0]), threshold, convention="inclusive"
            )
            assert ours.tolist() == kept, (i, j)
