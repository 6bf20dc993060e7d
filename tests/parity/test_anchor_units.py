"""Anchors, matching, sampling, box offsets, smooth L1 loss and selection of detections against the recorded numbers."""

from __future__ import annotations

import json
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden import folder, load, tensor

from fcos.models.anchors import AnchorGrid, AnchorMatcher, BoxCoder, Sampler, match_by_iou, sample_balanced
from fcos.models.candidates import anchor_candidates
from fcos.models.points import BACKGROUND, IGNORED
from fcos.models.postprocess import Postprocess, suppress

RTOL = 1e-6  # the recorded units are bit-identical between two runs of the original


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    units = folder(metafunc.config) / "rcnn_units"
    patterns = {
        "cell": ("anchors.npz", r"(\w+)/args"),
        "grid": ("anchors.npz", r"(\w+)/grids"),
        "match": ("matcher.npz", r"q(\d+)"),
        "weights": ("box_coder.npz", r"w(\d+)"),
        "beta": ("smooth_l1.npz", r"beta([\d.]+)"),
    }
    for name, (file, pattern) in patterns.items():
        if name in metafunc.fixturenames:
            found = [re.fullmatch(pattern, key) for key in load(units / file)]
            metafunc.parametrize(name, [match[1] for match in found if match])


def test_anchors_of_a_cell_match_the_original(goldens: Path, cell: str) -> None:
    recorded = load(goldens / "rcnn_units" / "anchors.npz")
    args = json.loads(str(recorded[f"{cell}/args"]))
    grid = AnchorGrid(
        [args["stride"]], [args["sizes"]], args["aspect_ratios"], rounding="base", box_convention="inclusive"
    )
    # Recorded in float64; anchors are float32.
    np.testing.assert_allclose(grid.cells()[0], recorded[cell], rtol=RTOL, atol=1e-5)


def test_anchors_of_all_levels_match_the_original(goldens: Path, grid: str) -> None:
    recorded = load(goldens / "rcnn_units" / "anchors.npz")
    keys = [key for key in recorded if key.startswith(f"{grid}/cell/")]
    strides = recorded[f"{grid}/strides"].tolist()
    boxes = [recorded[key] + np.array([0.0, 0.0, 1.0, 1.0]) for key in keys]
    widths, heights = ([b[:, i + 2] - b[:, i] for b in boxes] for i in (0, 1))
    ratios = sorted({float(2.0 ** round(np.log2(r))) for r in np.concatenate(heights) / np.concatenate(widths)})
    sizes = [base_sizes(w, stride, len(ratios)) for w, stride in zip(widths, strides, strict=True)]
    options = AnchorGrid(strides, sizes, ratios, rounding="base", box_convention="inclusive")
    for ours, key in zip(options.cells(), keys, strict=True):
        np.testing.assert_allclose(ours, recorded[key], rtol=RTOL, atol=1e-4)
    maps = [(int(height), int(width)) for height, width in recorded[f"{grid}/grids"]]
    np.testing.assert_allclose(torch.cat(options.levels(maps)), recorded[f"{grid}/boxes"], rtol=RTOL, atol=1e-4)


def base_sizes(widths: np.ndarray, stride: int, num_ratios: int) -> list[float]:
    """Return the sizes of the anchors of a cell; with the ratio 1, in the middle, their width is their size."""
    squares = widths.reshape(num_ratios, -1)[num_ratios // 2]
    assert squares.min() >= stride
    return squares.tolist()


def test_matches_agree_with_the_original(goldens: Path, match: str) -> None:
    recorded = load(goldens / "rcnn_units" / "matcher.npz")
    overlaps = tensor(recorded[f"q{match}"])
    foreground, background, low_quality = recorded[f"args{match}"].tolist()
    matcher = AnchorMatcher(foreground, background, bool(low_quality))
    ours = match_by_iou(overlaps, overlaps.amax(1) if low_quality else None, matcher)
    assert ours.tolist() == recorded[f"m{match}"].tolist()


def test_numbers_of_samples_match_the_original(goldens: Path) -> None:
    for case in json.loads((goldens / "rcnn_units" / "balanced_sampler_counts.json").read_text()):
        counts = {0: case["positives"], BACKGROUND: case["negatives"], IGNORED: 7}
        labels = torch.cat([torch.full((count,), label) for label, count in counts.items()])
        samples = labels[sample_balanced(labels, Sampler(case["batch_size"], case["fraction"]), seed=0)]
        found = [int((samples == label).sum()) for label in counts]
        assert found == [case["sampled_positive"], case["sampled_negative"], 0], case


def test_box_offsets_match_the_original(goldens: Path, weights: str) -> None:
    recorded = load(goldens / "rcnn_units" / "box_coder.npz")
    boxes, references = tensor(recorded["targets"]), tensor(recorded["proposals"])
    dx, dy, dw, dh = recorded[f"w{weights}"].tolist()
    coder = BoxCoder((dx, dy, dw, dh), "inclusive")
    assert coder.max_log_ratio == pytest.approx(float(recorded["clip"]), rel=1e-15)
    offsets = coder.encode(boxes, references)
    # Offsets near 0 are differences of coordinates up to 250, whose last place is 1.5e-5.
    np.testing.assert_allclose(offsets, recorded[f"encode{weights}"], rtol=RTOL, atol=2e-5)
    np.testing.assert_allclose(
        coder.decode(offsets, references), recorded[f"decode_encode{weights}"], rtol=RTOL, atol=1e-4
    )
    decoded = coder.decode(tensor(recorded[f"codes{weights}"]), references)
    np.testing.assert_allclose(decoded, recorded[f"decode{weights}"], rtol=RTOL, atol=1e-4)


def test_smooth_l1_loss_matches_the_original(goldens: Path, beta: str) -> None:
    recorded = load(goldens / "rcnn_units" / "smooth_l1.npz")
    a, b = tensor(recorded["a"]), tensor(recorded["b"])
    fraction = float(Fraction(beta).limit_denominator(20))
    # The name has four digits; 0.1111 stands for 1 / 9.
    exact = fraction if f"{fraction:.4f}" == beta else float(beta)
    losses = [F.smooth_l1_loss(a, b, beta=exact, reduction=kind).item() for kind in ("sum", "mean")]
    assert losses == pytest.approx(recorded[f"beta{beta}"].tolist(), rel=RTOL)


def test_selected_detections_match_the_original(goldens: Path) -> None:
    recorded = load(goldens / "rcnn_units" / "retinanet_postprocess.npz")
    args = json.loads(str(recorded["args"]))
    grid = AnchorGrid(
        args["strides"], args["anchor_sizes"], args["ratios"], rounding="base", box_convention="inclusive"
    )
    maps = [(int(height), int(width)) for height, width in recorded["grids"]]
    levels = range(len(maps))
    options = Postprocess(
        score_threshold=args["score"],
        pre_nms_top_k=args["pre_nms_top_n"],
        nms_threshold=args["nms"],
        max_detections=args["limit"],
        box_convention="inclusive",
    )
    images = anchor_candidates(
        [tensor(recorded[f"cls{level}"]) for level in levels],
        [tensor(recorded[f"reg{level}"]) for level in levels],
        grid.levels(maps),
        grid.locations(maps),
        [(int(height), int(width)) for height, width in recorded["sizes_hw"]],
        coder=BoxCoder(tuple(args["coder"]), "inclusive"),
        options=options,
    )
    for image, candidates in enumerate(images):
        ours = suppress(candidates, options)
        np.testing.assert_allclose(ours.scores, recorded[f"scores{image}"], rtol=RTOL)
        assert (ours.labels + 1).tolist() == recorded[f"labels{image}"].tolist()
        np.testing.assert_allclose(ours.boxes, recorded[f"boxes{image}"], rtol=RTOL, atol=1e-4)
