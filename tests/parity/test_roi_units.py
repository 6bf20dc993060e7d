"""Pooled features and their levels, selected detections, and keypoint heat maps against the recorded numbers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import folder, load, numbered, tensor

from fcos.models.anchors import BoxCoder
from fcos.models.candidates import roi_candidates
from fcos.models.keypoint_head import keypoint_cells
from fcos.models.postprocess import RoIPostprocess, suppress
from fcos.models.roi_heads import Pooler

RTOL = 1e-6  # the recorded units are bit-identical between two runs of the original


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    units = folder(metafunc.config) / "rcnn_units"
    patterns = {"pooler": ("pooler.npz", r"(\w+)/y"), "selection": ("box_head_postprocess.npz", r"(\w+)/args")}
    for name, (file, pattern) in patterns.items():
        if name in metafunc.fixturenames:
            found = [re.fullmatch(pattern, key) for key in load(units / file)]
            metafunc.parametrize(name, [match[1] for match in found if match])


def test_level_of_a_box_matches_the_original(goldens: Path) -> None:
    recorded = json.loads((goldens / "rcnn_units" / "level_mapper.json").read_text())
    sides = torch.tensor(recorded["side"])
    boxes = torch.stack([torch.zeros_like(sides), torch.zeros_like(sides), sides - 1, sides - 1], dim=1)
    assert Pooler(box_convention="inclusive").levels(boxes).tolist() == recorded["level_minus_2"]


def test_pooled_features_match_the_original(goldens: Path, pooler: str) -> None:
    recorded = load(goldens / "rcnn_units" / "pooler.npz")
    features = [feature.clone().requires_grad_() for feature in numbered(recorded, "feat")]
    boxes = numbered(recorded, "boxes")
    expected = recorded[f"{pooler}/y"]
    is_pyramid = f"{pooler}/levels" in recorded
    levels = features if is_pyramid else features[2:3]
    strides = (4, 8, 16, 32) if is_pyramid else (16,)
    poolers = [Pooler(strides, expected.shape[-1], ratio, "inclusive") for ratio in (0, 2)]
    # The sampling ratio is not recorded.
    ours = min(poolers, key=lambda pooler: (pooler(levels, boxes) - tensor(expected)).abs().max().item())
    if is_pyramid:
        assert ours.levels(torch.cat(boxes)).tolist() == recorded[f"{pooler}/levels"].tolist()
    pooled = ours(levels, boxes)
    np.testing.assert_allclose(pooled.detach(), expected, rtol=RTOL, atol=1e-6)
    if recorded[f"{pooler}/upstream"].size:
        (pooled * tensor(recorded[f"{pooler}/upstream"])).sum().backward()
        assert features[2].grad is not None
        # Sums of up to a few hundred terms in another order.
        np.testing.assert_allclose(features[2].grad, recorded[f"{pooler}/grad"], rtol=RTOL, atol=1e-5)


def test_selected_detections_match_the_original(goldens: Path, selection: str) -> None:
    recorded = load(goldens / "rcnn_units" / "box_head_postprocess.npz")
    threshold, nms_threshold, limit, is_class_agnostic = recorded[f"{selection}/args"].tolist()
    options = RoIPostprocess(
        score_threshold=threshold,
        pre_nms_top_k=10**9,
        nms_threshold=nms_threshold,
        max_detections=int(limit),
        box_convention="inclusive",
    )
    width, height = recorded["size_wh"].tolist()
    boxes = numbered(recorded, "boxes")
    counts = [len(of_image) for of_image in boxes]
    offsets = tensor(recorded["reg"])
    # The original uses the last four offsets of all classes.
    offsets = torch.cat([offsets[:, :4], offsets[:, -4:]], dim=1) if is_class_agnostic else offsets
    images = zip(tensor(recorded["logits"]).split(counts), offsets.split(counts), boxes, strict=True)
    for i, (logits, of_image, proposals) in enumerate(images):
        coder = BoxCoder((10.0, 10.0, 5.0, 5.0), "inclusive")
        ours = suppress(
            roi_candidates(logits, of_image, proposals, (height, width), coder=coder, options=options), options
        )
        order = np.argsort(-recorded[f"{selection}/scores{i}"], kind="stable")
        np.testing.assert_allclose(ours.scores, recorded[f"{selection}/scores{i}"][order], rtol=RTOL)
        assert (ours.labels + 1).tolist() == recorded[f"{selection}/labels{i}"][order].tolist()
        np.testing.assert_allclose(ours.boxes, recorded[f"{selection}/boxes{i}"][order], rtol=RTOL, atol=1e-4)


def test_cells_of_keypoints_match_the_original(goldens: Path) -> None:
    recorded = load(goldens / "rcnn_units" / "keypoints.npz")
    cells, valid = keypoint_cells(tensor(recorded["keypoints"]), tensor(recorded["boxes"]), 56)
    assert cells.tolist() == recorded["heat"].tolist()
    assert valid.tolist() == recorded["valid"].astype(bool).tolist()
