"""The original FCOS (`fcos_core`): its UPPER_CASE YAML and its `KEY VALUE` overrides.

A config from here selects the original's exact conventions: inclusive boxes, BGR 0..255, frozen batch norm without
epsilon. Keys are facts about that project; none of its code or text is used.
"""

from __future__ import annotations

import ast
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..config_text import suggest
from ..errors import ConfigError
from .fcos_core_data import split_of

log = logging.getLogger(__name__)

# Keys that decide something for FCOS, with the original's defaults.
_DEFAULTS: dict[str, Any] = {
    "MODEL.FCOS_ON": True,
    "MODEL.RETINANET_ON": False,
    "MODEL.MASK_ON": False,
    "MODEL.KEYPOINT_ON": False,
    "MODEL.DEVICE": "cuda",
    "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
    "MODEL.WEIGHT": "",
    "MODEL.USE_SYNCBN": False,
    "MODEL.BACKBONE.CONV_BODY": "R-50-C4",
    "MODEL.BACKBONE.FREEZE_CONV_BODY_AT": 2,
    "MODEL.BACKBONE.USE_GN": False,
    "MODEL.FPN.USE_GN": False,
    "MODEL.FPN.USE_RELU": False,
    "MODEL.GROUP_NORM.DIM_PER_GP": -1,
    "MODEL.GROUP_NORM.NUM_GROUPS": 32,
    "MODEL.GROUP_NORM.EPSILON": 1e-5,
    "MODEL.RESNETS.NUM_GROUPS": 1,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 64,
    "MODEL.RESNETS.STRIDE_IN_1X1": True,
    "MODEL.RESNETS.TRANS_FUNC": "BottleneckWithFixedBatchNorm",
    "MODEL.RESNETS.STEM_FUNC": "StemWithFixedBatchNorm",
    "MODEL.RESNETS.RES5_DILATION": 1,
    "MODEL.RESNETS.BACKBONE_OUT_CHANNELS": 1024,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 256,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 64,
    "MODEL.RESNETS.STAGE_WITH_DCN": (False, False, False, False),
    "MODEL.RESNETS.WITH_MODULATED_DCN": False,
    "MODEL.RESNETS.DEFORMABLE_GROUPS": 1,
    "MODEL.FCOS.NUM_CLASSES": 81,
    "MODEL.FCOS.FPN_STRIDES": [8, 16, 32, 64, 128],
    "MODEL.FCOS.PRIOR_PROB": 0.01,
    "MODEL.FCOS.INFERENCE_TH": 0.05,
    "MODEL.FCOS.NMS_TH": 0.6,
    "MODEL.FCOS.PRE_NMS_TOP_N": 1000,
    "MODEL.FCOS.LOSS_ALPHA": 0.25,
    "MODEL.FCOS.LOSS_GAMMA": 2.0,
    "MODEL.FCOS.NUM_CONVS": 4,
    "MODEL.FCOS.CENTER_SAMPLING_RADIUS": 0.0,
    "MODEL.FCOS.IOU_LOSS_TYPE": "iou",
    "MODEL.FCOS.NORM_REG_TARGETS": False,
    "MODEL.FCOS.CENTERNESS_ON_REG": False,
    "MODEL.FCOS.USE_DCN_IN_TOWER": False,
    "MODEL.RETINANET.USE_C5": True,
    "INPUT.MIN_SIZE_TRAIN": (800,),
    "INPUT.MIN_SIZE_RANGE_TRAIN": (-1, -1),
    "INPUT.MAX_SIZE_TRAIN": 1333,
    "INPUT.MIN_SIZE_TEST": 800,
    "INPUT.MAX_SIZE_TEST": 1333,
    "INPUT.PIXEL_MEAN": [102.9801, 115.9465, 122.7717],
    "INPUT.PIXEL_STD": [1.0, 1.0, 1.0],
    "INPUT.TO_BGR255": True,
    "DATASETS.TRAIN": (),
    "DATASETS.TEST": (),
    "DATALOADER.NUM_WORKERS": 4,
    "DATALOADER.SIZE_DIVISIBILITY": 0,
    "DATALOADER.ASPECT_RATIO_GROUPING": True,
    "SOLVER.MAX_ITER": 40000,
    "SOLVER.BASE_LR": 0.001,
    "SOLVER.BIAS_LR_FACTOR": 2,
    "SOLVER.DCONV_OFFSETS_LR_FACTOR": 1.0,
    "SOLVER.MOMENTUM": 0.9,
    "SOLVER.WEIGHT_DECAY": 0.0005,
    "SOLVER.WEIGHT_DECAY_BIAS": 0,
    "SOLVER.GAMMA": 0.1,
    "SOLVER.STEPS": (30000,),
    "SOLVER.WARMUP_FACTOR": 1 / 3,
    "SOLVER.WARMUP_ITERS": 500,
    "SOLVER.WARMUP_METHOD": "linear",
    "SOLVER.CHECKPOINT_PERIOD": 2500,
    "SOLVER.IMS_PER_BATCH": 16,
    "TEST.IMS_PER_BATCH": 8,
    "TEST.DETECTIONS_PER_IMG": 100,
    "TEST.BBOX_AUG.ENABLED": False,
    "TEST.BBOX_AUG.H_FLIP": False,
    "TEST.BBOX_AUG.SCALES": (),
    "TEST.BBOX_AUG.MAX_SIZE": 4000,
    "TEST.BBOX_AUG.SCALE_H_FLIP": False,
    "OUTPUT_DIR": ".",
}
# Keys (or sections) of the original that decide nothing for an FCOS model.
_NO_EFFECT = (
    "MODEL.RPN_ONLY",
    "MODEL.CLS_AGNOSTIC_BBOX_REG",
    "MODEL.RPN",
    "MODEL.ROI_HEADS",
    "MODEL.ROI_BOX_HEAD",
    "MODEL.ROI_MASK_HEAD",
    "MODEL.ROI_KEYPOINT_HEAD",
    "MODEL.RETINANET",
    "MODEL.FBNET",
    "TEST.EXPECTED_RESULTS",
    "TEST.EXPECTED_RESULTS_SIGMA_TOL",
    "PATHS_CATALOG",
)
# Keys of which we have the default only, and what another value asks for.
_FIXED = {
    "MODEL.FCOS_ON": "another detector than FCOS",
    "MODEL.RETINANET_ON": "RetinaNet",
    "MODEL.MASK_ON": "masks",
    "MODEL.KEYPOINT_ON": "key points",
    "MODEL.META_ARCHITECTURE": "another architecture",
    "MODEL.BACKBONE.USE_GN": "another backbone",
    "MODEL.GROUP_NORM.DIM_PER_GP": "groups by size",
    "MODEL.GROUP_NORM.NUM_GROUPS": "another number of groups",
    "MODEL.GROUP_NORM.EPSILON": "another epsilon",
    "MODEL.RESNETS.RES5_DILATION": "dilated convolutions",
    "MODEL.RESNETS.RES2_OUT_CHANNELS": "another width",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": "another width",
}
_ANY_LENGTH = ("INPUT.MIN_SIZE_TRAIN", "SOLVER.STEPS", "TEST.BBOX_AUG.SCALES")
_MOBILENET = "MNV2-FPN-RETINANET"
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
    given = {key: _literal(value) for key, value in _flatten(tree)}
    if len(pairs) % 2:
        raise ConfigError(f"{where}: expected KEY VALUE pairs after the config, found {' '.join(pairs)!r}")
    given |= {key: _literal(value) for key, value in zip(pairs[::2], pairs[1::2], strict=True)}

    problems, idle = [], []
    for key, value in given.items():
        if key in _DEFAULTS:
            problems += _refusal(key, value)
        elif not key.startswith(tuple(f"{section}." for section in _NO_EFFECT)) and key not in _NO_EFFECT:
            problems.append(f"{key}: no such key in the original{suggest(key, list(_DEFAULTS))}")
        else:
            idle.append(key)
    if idle:
        log.info("%s: without effect on an FCOS model here: %s", where, ", ".join(idle))
    get = {**_DEFAULTS, **given}.__getitem__
    problems += _backbone_refusal(get)
    if problems:
        raise ConfigError(f"{where}:" + ("\n  " if len(problems) > 1 else " ") + "\n  ".join(problems))
    return _translate(get, num_classes_given="MODEL.FCOS.NUM_CLASSES" in given)


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows = []
    for key, value in tree.items():
        rows += _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(f"{prefix}{key}", value)]
    return rows


def _literal(value: Any) -> Any:
    """Text that is a Python literal is that literal, as in the original: "(60000, 80000)"."""
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value


def _refusal(key: str, value: Any) -> list[str]:
    """What is wrong with a value, looked at alone."""
    default = _DEFAULTS[key]
    if key in _FIXED:
        plain = tuple(value) if isinstance(value, list) else value
        needs = f"{key}={value!r}: needs {_FIXED[key]}, which is not here; only {default!r} is"
        return [] if plain == default else [needs]
    expected = None
    if isinstance(default, tuple | list):
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
    flags = any(isinstance(item, bool) for item in _DEFAULTS[key])
    fitting = isinstance(value, tuple | list) and all(
        isinstance(item, bool) if flags else _is_number(item) for item in value
    )
    if key in _ANY_LENGTH:
        return None if fitting else "a list of numbers"
    length = len(_DEFAULTS[key])
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
    if shape not in _RESNETS:
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
    """The one table of counterparts."""
    strides = list(get("MODEL.FCOS.FPN_STRIDES"))
    to_bgr = get("INPUT.TO_BGR255")
    scale = 1.0 if to_bgr else 255.0  # without TO_BGR255 the original's pixels are 0..1
    low, high = get("INPUT.MIN_SIZE_RANGE_TRAIN")
    sides = get("INPUT.MIN_SIZE_TRAIN")
    weight = get("MODEL.WEIGHT")
    from_backbone = weight.startswith("catalog://") or weight.endswith(_BACKBONE_FILES)
    model = {
        "name": "fcos",
        "num_classes": get("MODEL.FCOS.NUM_CLASSES") - 1 if num_classes_given else None,
        "backbone": _backbone(get, weight if from_backbone else None),
        "fpn": {
            "channels": get("MODEL.RESNETS.BACKBONE_OUT_CHANNELS"),
            "extra_level_source": _extra_level_source(get),
            "norm": "gn" if get("MODEL.FPN.USE_GN") else "none",
            "relu": get("MODEL.FPN.USE_RELU"),
        },
        "head": {
            "num_convs": get("MODEL.FCOS.NUM_CONVS"),
            "deformable": get("MODEL.FCOS.USE_DCN_IN_TOWER"),
            "centerness_on": "box" if get("MODEL.FCOS.CENTERNESS_ON_REG") else "cls",
            "regression": "relu_stride" if get("MODEL.FCOS.NORM_REG_TARGETS") else "exp",
            "prior_probability": get("MODEL.FCOS.PRIOR_PROB"),
        },
        "strides": strides,
        "center_sampling_radius": get("MODEL.FCOS.CENTER_SAMPLING_RADIUS"),
        "box_loss": get("MODEL.FCOS.IOU_LOSS_TYPE"),
        "focal_alpha": get("MODEL.FCOS.LOSS_ALPHA"),
        "focal_gamma": get("MODEL.FCOS.LOSS_GAMMA"),
        "score_threshold": get("MODEL.FCOS.INFERENCE_TH"),
        "pre_nms_top_k": get("MODEL.FCOS.PRE_NMS_TOP_N"),
        "nms_threshold": get("MODEL.FCOS.NMS_TH"),
        "max_detections": get("TEST.DETECTIONS_PER_IMG"),
        "box_convention": "inclusive",
        "channel_order": "bgr" if to_bgr else "rgb",
        "pixel_mean": [value * scale for value in get("INPUT.PIXEL_MEAN")],
        "pixel_std": [value * scale for value in get("INPUT.PIXEL_STD")],
    }
    data = {
        "short_side": [sides] if isinstance(sides, int) else list(sides),
        "short_side_range": None if low == -1 else [low, high],
        "max_side": get("INPUT.MAX_SIZE_TRAIN"),
        "test_short_side": get("INPUT.MIN_SIZE_TEST"),
        "test_max_side": get("INPUT.MAX_SIZE_TEST"),
        "size_divisor": max(get("DATALOADER.SIZE_DIVISIBILITY"), 1),
        "group_by_aspect": get("DATALOADER.ASPECT_RATIO_GROUPING"),
        "workers": get("DATALOADER.NUM_WORKERS"),
        **{
            split: split_of(get(key), key=key) for split, key in (("train", "DATASETS.TRAIN"), ("val", "DATASETS.TEST"))
        },
    }
    train = {
        "batch_size": get("SOLVER.IMS_PER_BATCH"),
        "iterations": get("SOLVER.MAX_ITER"),
        "lr": get("SOLVER.BASE_LR"),
        "momentum": get("SOLVER.MOMENTUM"),
        "weight_decay": get("SOLVER.WEIGHT_DECAY"),
        "bias_lr_factor": get("SOLVER.BIAS_LR_FACTOR"),
        "bias_weight_decay": get("SOLVER.WEIGHT_DECAY_BIAS"),
        "offset_lr_factor": get("SOLVER.DCONV_OFFSETS_LR_FACTOR"),
        "schedule": "multistep",
        "milestones": list(get("SOLVER.STEPS")),
        "gamma": get("SOLVER.GAMMA"),
        "warmup": get("SOLVER.WARMUP_METHOD"),
        "warmup_iterations": get("SOLVER.WARMUP_ITERS"),
        "warmup_factor": get("SOLVER.WARMUP_FACTOR"),
        "checkpoint_every": get("SOLVER.CHECKPOINT_PERIOD"),
        "weights": None if from_backbone or not weight else weight,
    }
    device, folder = get("MODEL.DEVICE"), get("OUTPUT_DIR")
    return {
        "model": model,
        "data": data,
        "train": train,
        "eval": {"batch_size": get("TEST.IMS_PER_BATCH"), **_augmentation(get)},
        "output_dir": None if folder == "." else folder,
        "device": "auto" if device == "cuda" else device,  # the original had no other default to run anywhere
    }


def _augmentation(get: Callable[[str], Any]) -> dict[str, Any]:
    if not get("TEST.BBOX_AUG.ENABLED"):
        return {}
    return {
        "flip": get("TEST.BBOX_AUG.H_FLIP"),
        "scales": list(get("TEST.BBOX_AUG.SCALES")),
        "scales_max_side": get("TEST.BBOX_AUG.MAX_SIZE"),
        "scales_flip": get("TEST.BBOX_AUG.SCALE_H_FLIP"),
    }


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
    deformable = zip(("C2", "C3", "C4", "C5"), get("MODEL.RESNETS.STAGE_WITH_DCN"), strict=True)
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


def _extra_level_source(get: Callable[[str], Any]) -> str:
    """P6 comes from C5 only when asked for and when C5 has other channels than the pyramid."""
    c5_channels = 320 if get("MODEL.BACKBONE.CONV_BODY") == _MOBILENET else 2048
    use_c5 = get("MODEL.RETINANET.USE_C5") and c5_channels != get("MODEL.RESNETS.BACKBONE_OUT_CHANNELS")
    return "c5" if use_c5 else "p5"
