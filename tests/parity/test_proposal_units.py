"""Visible anchors, selection of proposals, and levels and values of pooled features against the recorded numbers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from golden import folder, load, tensor

from fcos.models.anchors import AnchorGrid, BoxCoder
from fcos.models.proposals import (
    ProposalLimits,
    ProposalSelection,
    anchors_in_image,
    limit_per_batch,
    proposal_candidates,
    select_proposals,
)

RTOL = 1e-6  # the recorded units are bit-identical between two runs of the original


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    units = folder(metafunc.config) / "rcnn_units"
    patterns = {
        "grid": ("anchors.npz", r"(\w+)/grids"),
        "selection": ("rpn_postprocess.npz", r"(\w+)/args"),
    }
    for name, (file, pattern) in patterns.items():
        if name in metafunc.fixturenames:
            found = [re.fullmatch(pattern, key) for key in load(units / file)]
            metafunc.parametrize(name, [match[1] for match in found if match])


def test_anchors_inside_the_image_match_the_original(goldens: Path, grid: str) -> None:
    """The threshold is not recorded: 0, or no limit, with which the original records that all anchors are inside."""
    recorded = load(goldens / "rcnn_units" / "anchors.npz")
    anchors, sizes = tensor(recorded[f"{grid}/boxes"]), recorded[f"{grid}/image_sizes_hw"].tolist()
    visible = np.stack([recorded[f"{grid}/visibility{i}"] for i in range(len(sizes))]).astype(bool)
    threshold = 1e6 if visible.all() else 0.0
    for (height, width), expected in zip(sizes, visible.tolist(), strict=True):
        assert anchors_in_image(anchors, (height, width), straddle_threshold=threshold).tolist() == expected


def test_proposals_match_the_original(goldens: Path, selection: str) -> None:
    recorded = load(goldens / "rcnn_units" / "rpn_postprocess.npz")
    args = json.loads(str(recorded["anchor_args"]))
    sizes = [[size] for size in args["sizes"]]
    grid = AnchorGrid(args["strides"], sizes, args["ratios"], rounding="base", box_convention="inclusive")
    maps = [(int(height), int(width)) for height, width in recorded["grids"]]
    pre_nms, post_nms, threshold, min_size, limit, training = recorded[f"{selection}/args"].tolist()
    # With one level, the original has no limit on the proposals of all levels, and both recorded limits are equal.
    levels = range(1 if limit == post_nms else len(maps))
    per_image = int(post_nms) * len(levels) if training else int(limit)
    limits = ProposalLimits(int(pre_nms), int(post_nms), per_image)
    options = ProposalSelection(nms_threshold=threshold, min_size=min_size, box_convention="inclusive")
    candidates = proposal_candidates(
        [tensor(recorded[f"obj{level}"]) for level in levels],
        [tensor(recorded[f"reg{level}"]) for level in levels],
        grid.levels(maps)[: len(levels)],
        [(int(height), int(width)) for height, width in recorded["sizes_hw"]],
        coder=BoxCoder((1.0, 1.0, 1.0, 1.0), "inclusive"),
        top_k=limits.pre_nms_top_k,
        options=options,
    )
    proposals = [select_proposals(image, limits, options) for image in candidates]
    if training:
        proposals = limit_per_batch(proposals, int(limit))
    for i, image in enumerate(proposals):
        order = np.argsort(-recorded[f"{selection}/scores{i}"], kind="stable")
        np.testing.assert_allclose(image.scores, recorded[f"{selection}/scores{i}"][order], rtol=RTOL)
        np.testing.assert_allclose(image.boxes, recorded[f"{selection}/boxes{i}"][order], rtol=RTOL, atol=1e-4)
