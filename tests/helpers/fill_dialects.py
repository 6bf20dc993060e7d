"""Synthetic weights and head outputs for models of other projects, from names and shapes (numpy only).

Each tensor is one draw from `PCG64(crc32(name|seed))` in float64, cast to float32 at the end. The first matching row of
a table decides how it is scaled. Rows of a manifest's `fill.extra`, [kind, pattern, value], precede the tables.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

TABLES: dict[str, list[tuple[str, float]]] = {
    # multiplier of the He standard deviation (tensors with more than one dimension)
    "gain": [
        (r"(conv2_offset|\.offset|conv_offset)\.weight$", 0.1),
        (r"(^|\.)(stem\.conv1|backbone\.conv1|base_layer\.0)\.weight$", 1.0 / 64.0),
        (r"fpn_(lateral|output)\d\.weight$", 0.6),
        (r"neck\.(lateral_convs|fpn_convs)\.\d\.conv\.weight$", 0.6),
        (r"top_block\.p[67]\.weight$", 0.6),
        (r"(bbox_pred|conv_reg)\.weight$", 0.6),
    ],
    # multiplier of one-dimensional weights (affine norms)
    "norm": [(r"\.(conv3\.norm|bn3)\.weight$", 0.35), (r"\.tree[12]\.bn2\.weight$", 0.35)],
    # multiplier of running variances
    "var": [],
    # constant added to biases
    "bias": [(r"(cls_logits|cls_score|conv_cls)\.bias$", -5.8), (r"(bbox_pred|conv_reg)\.bias$", 2.5)],
}


def generator(name: str, seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(zlib.crc32(f"{name}|{seed}".encode())))


def fill_array(name: str, shape: Sequence[int], seed: int, extra: Sequence[Sequence[Any]] = ()) -> np.ndarray:
    """Return the synthetic values of the tensor with the given name."""

    def setting(kind: str, default: float) -> float:
        rows = [(pattern, value) for its_kind, pattern, value in extra if its_kind == kind] + TABLES[kind]
        return next((value for pattern, value in rows if re.search(pattern, name)), default)

    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, dtype=np.int64)
    draws = generator(name, seed)
    if name.endswith("running_var"):
        return (setting("var", 1.0) * (1.0 + 0.1 * draws.random(shape))).astype(np.float32)
    normal = draws.standard_normal(shape)
    if name.endswith("running_mean"):
        values = 0.1 * normal
    elif name.endswith(".scale"):
        values = 1.0 + 0.05 * normal
    elif name.endswith("bias"):
        values = setting("bias", 0.0) + 0.1 * normal
    elif len(shape) == 1:
        values = setting("norm", 1.0) * (1.0 + 0.1 * normal)
    else:
        values = setting("gain", 1.0) * np.sqrt(2.0 / np.prod(shape[1:])) * normal
    return np.asarray(values).astype(np.float32)


def head_outputs(grids: Sequence[Sequence[int]], seed: int, params: Sequence[float]) -> list[list[np.ndarray]]:
    """Return the class logits [1, C, h, w], regression before its activation, and quality logits of each level.

    Args:
        grids: (h, w) of each level.
        seed: seed of the draws.
        params: number of classes, then mean and standard deviation of each of the three outputs.
    """
    kinds = [("cls", int(params[0]), *params[1:3]), ("reg", 4, *params[3:5]), ("ctr", 1, *params[5:7])]
    return [
        [
            (mean + std * generator(f"post/{key}/{i}", seed).standard_normal((1, count, *grid))).astype(np.float32)
            for key, count, mean, std in kinds
        ]
        for i, grid in enumerate(grids)
    ]
