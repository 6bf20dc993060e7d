"""Changed values for all options of the `model` section, for tests that no option is forgotten."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from operator import attrgetter
from typing import Any, Literal, get_args, get_origin

from fcos.config.detectors import DETECTORS
from fcos.config.options import is_among
from fcos.config.overrides import apply_overrides
from fcos.config.text import as_option, flatten

_OTHERS: dict[str, Any] = {
    "num_classes": 7,
    "strides": [4, 8, 16, 32, 64],
    "size_ranges": [[-1, 32], [32, 64], [64, 128], [128, 256], [256, None]],
    "pixel_mean": [1.5, 2.5, 3.5],
    "pixel_std": [1.5, 2.5, 3.5],
    "anchor_sizes": [[8], [16], [32], [64], [128]],
    "anchor_ratios": [1.0],
    "level_epsilon": 1e-5,
    "offset_weights": [1.0, 1.0, 1.0, 1.0],
    "octave": 3.0,
    "pre_nms_top_k": 9,
    "foreground_iou": 0.6,
    "background_iou": 0.3,
    "backbone.name": "dla34",
    "backbone.weights": "net.pth",
    "backbone.deformable_stages": ["C5"],
    "box.foreground_iou": 0.6,
    "box.background_iou": 0.3,
    "proposals.foreground_iou": 0.6,
    "proposals.background_iou": 0.2,
    **{f"backbone.{head}_head.stride": 1 for head in ("box", "mask", "keypoint")},
    "box.offset_weights": [1.0, 1.0, 1.0, 1.0],
    "mask.conv_channels": [8, 8],
    "keypoints.conv_channels": [8, 8],
    **{f"backbone.{head}_head.blocks": [0] for head in ("box", "mask", "keypoint")},
}
"""Changed values of options for which `_other` cannot derive one from the type."""


def changed_sections(section: Mapping[str, Any], *, skip: Collection[str] = ()) -> dict[str, dict[str, Any]]:
    """Return copies of a section with one changed option each, by the dotted key of this option.

    Args:
        section: section `model`.
        skip: options and sections that cannot change without others.
    """
    detector = DETECTORS[section.get("name", "fcos")]
    model = detector.model_validate(section)
    changed = {}
    for key, value in flatten(model.model_dump(mode="json")).items():
        part, _, name = key.rpartition(".")
        kind = type(attrgetter(part)(model) if part else model).model_fields[name].annotation
        if key != "name" and not is_among(key, skip):
            tree = {"model": model.model_dump(mode="json")}
            apply_overrides(tree, [f"model.{key}={as_option(_other(key, kind, value))}"])
            changed[key] = detector.model_validate(tree["model"]).model_dump(mode="json")
    return changed


def _other(key: str, kind: Any, value: Any) -> Any:
    if key in _OTHERS:
        return _OTHERS[key]
    if get_origin(kind) is Literal:
        return next(choice for choice in get_args(kind)[::-1] if choice != value)
    if type(None) in get_args(kind):
        return _other(key, get_args(kind)[0], value)
    return {bool: lambda: not value, int: lambda: 2 * value or 3, float: lambda: 0.5 if value != 0.5 else 0.25}[kind]()
