"""The original FCOS (`fcos_core`): its UPPER_CASE YAML and its `KEY VALUE` overrides.

A config from here selects the original's exact conventions: inclusive boxes, BGR 0..255, frozen batch norm without
epsilon. `keys.py` lists the keys.
"""

from __future__ import annotations

import ast
import logging
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from ...config.catalog import split_of
from ...config.text import flat, suggest
from ...errors import ConfigError
from .keys import COPIED, DEFAULTS, FIXED, IDLE

log = logging.getLogger(__name__)

KNOWN = [*DEFAULTS, *IDLE]
"""All keys of the original."""
_SECTIONS = tuple({f"{key.partition('.')[0]}." for key in KNOWN if "." in key})

_ANY_LENGTH = ("INPUT.MIN_SIZE_TRAIN", "TEST.BBOX_AUG.SCALES")
_MOBILENET = "MNV2-FPN-RETINANET"
_STAGES = ("C2", "C3", "C4", "C5")
_BACKBONE_FILES = (".pkl", "mobilenet_v2-ecbe2b5.pth")
"""How a MODEL.WEIGHT that is not from the catalogue ends when it is a backbone's; all others are a detector's."""
_RESNETS = {
    ("R-50-FPN-RETINANET", 1, 64): "resnet50",
    ("R-101-FPN-RETINANET", 1, 64): "resnet101",
    ("R-101-FPN-RETINANET", 32, 8): "resnext101_32x8d",
    ("R-101-FPN-RETINANET", 64, 4): "resnext101_64x4d",
}
"""Backbones by body, groups and width of a group."""
_BLOCK_NORMS = {
    ("BottleneckWithFixedBatchNorm", "StemWithFixedBatchNorm"): "frozen_bn",
    ("BottleneckWithGN", "StemWithGN"): "gn",
}


def config_from_yaml(tree: Mapping[str, Any], pairs: Sequence[str] = (), *, where: str = "config") -> dict[str, Any]:
    """Our config tree from the original's.

    Args:
        tree: the parsed YAML with UPPER_CASE keys.
        pairs: `KEY VALUE KEY VALUE ...` from the command line.
        where: for messages.

    Raises:
        ConfigError: every key that is unknown, or has a value we have no counterpart for.
    """
    given = {key: _literal(value) for key, value in flat(tree).items()}
    if len(pairs) % 2:
        raise ConfigError(f"{where}: expected KEY VALUE pairs after the config, found {' '.join(pairs)!r}")
    given |= {key: _literal(value) for key, value in zip(pairs[::2], pairs[1::2], strict=True)}

    problems, idle = [], []
    for key, value in given.items():
        if key in DEFAULTS:
            problems += _refusal(key, value)
        elif key in IDLE:
            idle.append(key)
        elif any(known.startswith(f"{key}.") for known in KNOWN):
            problems.append(f"{key}={value!r}: expected a section with keys")
        else:
            problems.append(f"{key}: no such key in the original{suggest(key, KNOWN)}")
    if idle:
        log.info("%s: without effect on an FCOS model here: %s", where, ", ".join(idle))
    get = {**DEFAULTS, **given}.__getitem__
    problems += _backbone_refusal(get)
    if problems:
        raise ConfigError(f"{where}:" + ("\n  " if len(problems) > 1 else " ") + "\n  ".join(problems))
    return _translate(get, num_classes_given="MODEL.FCOS.NUM_CLASSES" in given)


def split_pairs(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The `KEY VALUE` pairs among words of a command line, and the other words.

    A value may be any text. A word that only begins like a key is one unless there is such a file: TEST.jpg.
    """
    pairs: list[str] = []
    others: list[str] = []
    rest = iter(words)
    for word in rest:
        if word in KNOWN or (word.startswith(_SECTIONS) and not Path(word).exists()):
            pairs += [word, *islice(rest, 1)]
        else:
            others.append(word)
    return pairs, others


def _literal(value: Any) -> Any:
    """Text that is a Python literal is that literal, as in the original: "(60000, 80000)"."""
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # all that it documents
        return value


def _refusal(key: str, value: Any) -> list[str]:
    """What is wrong with a value, looked at alone."""
    default = DEFAULTS[key]
    if key in FIXED:
        plain = tuple(value) if isinstance(value, list) else value
        needs = f"{key}={value!r}: needs {FIXED[key]}, which is not here; only {default!r} is"
        return [] if plain == default else [needs]
    expected = None
    if key == "MODEL.FCOS.NUM_CLASSES":
        whole = isinstance(value, int) and not isinstance(value, bool)
        expected = None if whole and value > 1 else "a whole number of at least 2, since background counts, too"
    elif isinstance(default, tuple | list):
        expected = _expected_list(key, value)
    elif isinstance(default, bool | str) and type(value) is not type(default):
        expected = "text" if isinstance(default, str) else "True or False"
    elif not isinstance(default, bool | str) and not _is_number(value):
        expected = "a number"
    return [f"{key}={value!r}: expected {expected}"] if expected else []


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _expected_list(key: str, value: Any) -> str | None:
    """What was expected instead of a value that is no fitting list; None: it fits."""
    if key == "INPUT.MIN_SIZE_TRAIN" and _is_number(value):
        return None
    if key.startswith("DATASETS."):
        named = isinstance(value, tuple | list) and all(isinstance(name, str) for name in value)
        if named and key == "DATASETS.TEST" and len(value) > 1:
            return "one name: data sets are tested one at a time"
        return None if named else "a list of names"
    if key == "SOLVER.STEPS":
        listed = isinstance(value, tuple | list) and all(type(item) is int and item >= 1 for item in value)
        return None if listed and list(value) == sorted(value) else "increasing whole numbers of at least 1"
    flags = any(isinstance(item, bool) for item in DEFAULTS[key])
    fitting = isinstance(value, tuple | list) and all(
        isinstance(item, bool) if flags else _is_number(item) for item in value
    )
    if key in _ANY_LENGTH:
        return None if fitting else "a list of numbers"
    length = len(DEFAULTS[key])
    return None if fitting and len(value) == length else f"{length} {'times True or False' if flags else 'numbers'}"


def _backbone_refusal(get: Callable[[str], Any]) -> list[str]:
    """What is wrong with the keys of the backbone together."""
    body, frozen = get("MODEL.BACKBONE.CONV_BODY"), get("MODEL.BACKBONE.FREEZE_CONV_BODY_AT")
    bodies = [*dict.fromkeys(name for name, _, _ in _RESNETS), _MOBILENET]
    if body not in bodies:
        return [f"MODEL.BACKBONE.CONV_BODY={body!r}: expected one of {', '.join(bodies)}"]
    if body == _MOBILENET:
        wrong = f"MODEL.BACKBONE.FREEZE_CONV_BODY_AT={frozen!r}: MobileNetV2 has a counterpart for 0 only"
        return [wrong] if frozen else []
    problems = []
    shape = body, get("MODEL.RESNETS.NUM_GROUPS"), get("MODEL.RESNETS.WIDTH_PER_GROUP")
    if shape not in list(_RESNETS):
        known = " or ".join(f"{groups}, {width}" for other, groups, width in _RESNETS if other == body)
        problems.append(
            f"MODEL.RESNETS.NUM_GROUPS, WIDTH_PER_GROUP={shape[1]}, {shape[2]}: expected {known} with {body}"
        )
    functions = get("MODEL.RESNETS.TRANS_FUNC"), get("MODEL.RESNETS.STEM_FUNC")
    if functions not in list(_BLOCK_NORMS):
        known = " or ".join(f"{block}, {stem}" for block, stem in _BLOCK_NORMS)
        problems.append(f"MODEL.RESNETS.TRANS_FUNC, STEM_FUNC={functions[0]!r}, {functions[1]!r}: expected {known}")
    return problems


def _translate(get: Callable[[str], Any], *, num_classes_given: bool) -> dict[str, Any]:
    """Our options with the values that belong to the original's."""
    to_bgr = get("INPUT.TO_BGR255")
    scale = 1.0 if to_bgr else 255.0  # without TO_BGR255 the original's pixels are 0..1
    low, high = get("INPUT.MIN_SIZE_RANGE_TRAIN")
    sides = get("INPUT.MIN_SIZE_TRAIN")
    weight = get("MODEL.WEIGHT")
    from_backbone = weight.startswith("catalog://") or weight.endswith(_BACKBONE_FILES)
    device, folder = get("MODEL.DEVICE"), get("OUTPUT_DIR")
    options = {option: get(key) for key, option in COPIED.items()} | {
        "model.num_classes": get("MODEL.FCOS.NUM_CLASSES") - 1 if num_classes_given else None,
        "model.backbone": _backbone(get, weight if from_backbone else None),
        "model.fpn.extra_level_source": _extra_level_source(get),
        "model.fpn.norm": "gn" if get("MODEL.FPN.USE_GN") else "none",
        "model.head.centerness_on": "box" if get("MODEL.FCOS.CENTERNESS_ON_REG") else "cls",
        "model.head.regression": "relu_stride" if get("MODEL.FCOS.NORM_REG_TARGETS") else "exp",
        "model.box_convention": "inclusive",
        "model.channel_order": "bgr" if to_bgr else "rgb",
        "model.pixel_mean": [value * scale for value in get("INPUT.PIXEL_MEAN")],
        "model.pixel_std": [value * scale for value in get("INPUT.PIXEL_STD")],
        "data.short_side": [sides] if _is_number(sides) else sides,
        "data.short_side_range": None if low == -1 else [low, high],
        "data.size_divisor": max(get("DATALOADER.SIZE_DIVISIBILITY"), 1),
        "data.train": split_of(get("DATASETS.TRAIN"), key="DATASETS.TRAIN"),
        "data.val": split_of(get("DATASETS.TEST"), key="DATASETS.TEST"),
        "train.schedule": "multistep",
        "train.weights": None if from_backbone or not weight else weight,
        "output_dir": None if folder in ("", ".") else folder,
        "device": "auto" if device == "cuda" else device,  # the original had no other default to run anywhere
    }
    if get("TEST.BBOX_AUG.ENABLED"):
        options |= {
            "eval.flip": get("TEST.BBOX_AUG.H_FLIP"),
            "eval.scales": get("TEST.BBOX_AUG.SCALES"),
            "eval.scales_max_side": get("TEST.BBOX_AUG.MAX_SIZE"),
            "eval.scales_flip": get("TEST.BBOX_AUG.SCALE_H_FLIP"),
        }
    return _nested(options)


def _nested(options: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for option, value in options.items():
        *sections, last = option.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[last] = value
    return tree


def _backbone(get: Callable[[str], Any], weights: str | None) -> dict[str, Any]:
    body, frozen = get("MODEL.BACKBONE.CONV_BODY"), get("MODEL.BACKBONE.FREEZE_CONV_BODY_AT")
    if body == _MOBILENET:
        return {
            "name": "mobilenet_v2",
            "weights": weights,
            "norm": "sync_bn" if get("MODEL.USE_SYNCBN") else "bn",
            "frozen_stages": 0,
        }
    norm = _BLOCK_NORMS[get("MODEL.RESNETS.TRANS_FUNC"), get("MODEL.RESNETS.STEM_FUNC")]
    deformable = zip(_STAGES, get("MODEL.RESNETS.STAGE_WITH_DCN"), strict=True)
    return {
        "name": _RESNETS[body, get("MODEL.RESNETS.NUM_GROUPS"), get("MODEL.RESNETS.WIDTH_PER_GROUP")],
        "weights": weights,
        "norm": norm,
        "norm_eps": 0.0 if norm == "frozen_bn" else 1e-5,
        "stride_in_1x1": get("MODEL.RESNETS.STRIDE_IN_1X1"),
        "frozen_stages": frozen,
        "deformable_stages": [stage for stage, wanted in deformable if wanted],
        "modulated": get("MODEL.RESNETS.WITH_MODULATED_DCN"),
        "offset_groups": get("MODEL.RESNETS.DEFORMABLE_GROUPS"),
    }


def settings_for(options: Mapping[str, Any], num_classes: int) -> dict[str, Any]:
    """The keys that say a section `model` to the original, but for those whose value is its default.

    Args:
        options: of the section, by their dotted keys; with a backbone of the original.
        num_classes: K.
    """
    bgr = options["channel_order"] == "bgr"
    scale = 1.0 if bgr else 255.0  # see `_translate`
    settings = {key: options.get(option.removeprefix("model.")) for key, option in COPIED.items()} | {
        "MODEL.FCOS.NUM_CLASSES": num_classes + 1,
        "MODEL.FPN.USE_GN": options["fpn.norm"] == "gn",
        "MODEL.RETINANET.USE_C5": options["fpn.extra_level_source"] == "c5",
        "MODEL.FCOS.CENTERNESS_ON_REG": options["head.centerness_on"] == "box",
        "MODEL.FCOS.NORM_REG_TARGETS": options["head.regression"] == "relu_stride",
        "INPUT.TO_BGR255": bgr,
        "INPUT.PIXEL_MEAN": [round(value / scale, 15) for value in options["pixel_mean"]],
        "INPUT.PIXEL_STD": [round(value / scale, 15) for value in options["pixel_std"]],
        **_backbone_settings({key.removeprefix("backbone."): value for key, value in options.items()}),
    }
    given = {key: settings.get(key) for key in DEFAULTS}
    return {key: value for key, value in given.items() if value not in (None, DEFAULTS[key])}


def _backbone_settings(backbone: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `_backbone`; of a norm that the original has not, the keys of frozen batch norm."""
    if backbone["name"] == "mobilenet_v2":
        return {
            "MODEL.BACKBONE.CONV_BODY": _MOBILENET,
            "MODEL.BACKBONE.FREEZE_CONV_BODY_AT": 0,
            "MODEL.USE_SYNCBN": backbone["norm"] == "sync_bn",
        }
    body, groups, width = next(shape for shape, name in _RESNETS.items() if name == backbone["name"])
    functions = {norm: names for names, norm in _BLOCK_NORMS.items()}
    block, stem = functions.get(backbone["norm"], functions["frozen_bn"])
    deformable = {
        "MODEL.RESNETS.WITH_MODULATED_DCN": backbone["modulated"],
        "MODEL.RESNETS.DEFORMABLE_GROUPS": backbone["offset_groups"],
    }
    return {
        "MODEL.BACKBONE.CONV_BODY": body,
        "MODEL.BACKBONE.FREEZE_CONV_BODY_AT": backbone["frozen_stages"],
        "MODEL.RESNETS.NUM_GROUPS": groups,
        "MODEL.RESNETS.WIDTH_PER_GROUP": width,
        "MODEL.RESNETS.TRANS_FUNC": block,
        "MODEL.RESNETS.STEM_FUNC": stem,
        "MODEL.RESNETS.STRIDE_IN_1X1": backbone["stride_in_1x1"],
        "MODEL.RESNETS.STAGE_WITH_DCN": tuple(stage in backbone["deformable_stages"] for stage in _STAGES),
        **(deformable if backbone["deformable_stages"] else {}),
    }


def _extra_level_source(get: Callable[[str], Any]) -> str:
    """P6 comes from C5 only when asked for and when C5 has other channels than the pyramid."""
    c5_channels = 320 if get("MODEL.BACKBONE.CONV_BODY") == _MOBILENET else 2048
    use_c5 = get("MODEL.RETINANET.USE_C5") and c5_channels != get("MODEL.RESNETS.BACKBONE_OUT_CHANNELS")
    return "c5" if use_c5 else "p5"
