"""Deterministic fill of a state dict from tensor names and shapes (numpy only).

    from fill import fill_state_dict
    new = fill_state_dict({name: shape, ...}, seed)      # -> {name: numpy array}

Rules (also described in README.md):
  * generator: numpy.random.Generator(PCG64(crc32(utf8(name + "|" + str(seed)))))
  * one draw per tensor, in float64, cast to float32 at the end
  * the first matching row of a table decides how the draw is scaled
"""

import re
import zlib

import numpy as np


def generator(name, seed):
    key = zlib.crc32(f"{name}|{seed}".encode())
    return np.random.Generator(np.random.PCG64(key))


# (pattern on the full name, multiplier of the He standard deviation) - first match wins
WEIGHT_GAINS = [
    (r"\.offset\.weight$", 0.1),  # offset/mask conv of a deformable conv
    (r"backbone\.body\.stem\.conv1\.weight$", 1.0 / 64.0),
    (r"backbone\.body\.features\.\d+\.conv\.", 1.0),
    (r"\.pwl\.conv\.weight$", 0.5),  # last convolution of an FBNet block
    (r"\.fpn\.fpn_(inner|layer)\d", 0.6),
    (r"\.top_blocks\.p[67]\.weight$", 0.6),
    (r"\.bbox_pred\.weight$", 0.6),
    (r"\.cls_score\.weight$", 0.4),
]
# the same, only for tensors whose first dimension is above 100 (RetinaNet head: anchors x classes)
WIDE_WEIGHT_GAINS = [
    (r"rpn\.head\.cls_logits\.weight$", 0.3),
]

# (pattern, multiplier) for running variances
VAR_GAINS = [
    (r"backbone\.body\.features\.0\.1\.running_var$", 4096.0),
]

# (pattern, multiplier) for one-dimensional weights (affine norms)
NORM_GAINS = [
    (r"\.bn3\.weight$", 0.35),  # last norm of a residual branch
    (r"backbone\.body\.features\.\d+\.conv\.", 0.8),
]

# (pattern, first dimension or None, constant added to the bias)
BIAS_OFFSETS = [
    (r"rpn\.head\.cls_logits\.bias$", None, -5.8),
    (r"rpn\.head\.bbox_pred\.bias$", 4, 2.5),
]


def first(table, name, default):
    for pattern, value in table:
        if re.search(pattern, name):
            return value
    return default


def fill_array(name, shape, seed):  # noqa: PLR0911 - the rule is a list of cases
    shape = tuple(int(s) for s in shape)
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, dtype=np.int64)
    g = generator(name, seed)
    if name.endswith("running_var"):
        return (first(VAR_GAINS, name, 1.0) * (1.0 + 0.1 * g.random(shape))).astype(np.float32)
    n = g.standard_normal(shape)
    if name.endswith("running_mean"):
        return (0.1 * n).astype(np.float32)
    if name.endswith(".scale"):
        return (1.0 + 0.05 * n).astype(np.float32)
    if name.endswith("bias"):
        offset = 0.0
        for pattern, dim0, value in BIAS_OFFSETS:
            if re.search(pattern, name) and (dim0 is None or shape[0] == dim0):
                offset = value
        return (offset + 0.1 * n).astype(np.float32)
    if len(shape) == 1:  # affine weight of a norm layer
        return (first(NORM_GAINS, name, 1.0) * (1.0 + 0.1 * n)).astype(np.float32)
    fan_in = int(np.prod(shape[1:]))
    gain = first(WEIGHT_GAINS, name, 1.0)
    if shape[0] > 100:
        gain = first(WIDE_WEIGHT_GAINS, name, gain)
    std = gain * np.sqrt(2.0 / fan_in)
    return (std * n).astype(np.float32)


def fill_state_dict(shapes, seed):
    """Fill all tensors of a state dict.

    Anchor buffers (names containing "cell_anchors") are left out, so that a model keeps them.

    Args:
        shapes: mapping from name to shape, or to an object with `.shape`.
    """
    out = {}
    for name, value in shapes.items():
        if "cell_anchors" in name:
            continue
        out[name] = fill_array(name, getattr(value, "shape", value), seed)
    return out
