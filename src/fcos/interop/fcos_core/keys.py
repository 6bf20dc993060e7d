"""Config keys of the original FCOS: their defaults, and those without effect here.

Keys and defaults are facts about that project; none of its code or text is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .rcnn_keys import RCNN_DEFAULTS

DEFAULTS: dict[str, Any] = {
    "MODEL.FCOS_ON": True,
    "MODEL.RETINANET_ON": False,
    "MODEL.DEVICE": "cuda",
    "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
    "MODEL.WEIGHT": "",
    "MODEL.USE_SYNCBN": False,
    "MODEL.BACKBONE.CONV_BODY": "R-50-C4",
    "MODEL.BACKBONE.FREEZE_CONV_BODY_AT": 2,
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
    "MODEL.RESNETS.BACKBONE_OUT_CHANNELS": 1024,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 256,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 64,
    "MODEL.RESNETS.STAGE_WITH_DCN": (False, False, False, False),
    "MODEL.RESNETS.WITH_MODULATED_DCN": False,
    "MODEL.RESNETS.DEFORMABLE_GROUPS": 1,
    "MODEL.RESNETS.RES5_DILATION": 1,
    "MODEL.FBNET.ARCH": "default",
    "MODEL.FBNET.ARCH_DEF": "",
    "MODEL.FBNET.BN_TYPE": "bn",
    "MODEL.FBNET.SCALE_FACTOR": 1.0,
    "MODEL.FBNET.WIDTH_DIVISOR": 1,
    "MODEL.FBNET.DW_CONV_SKIP_BN": True,
    "MODEL.FBNET.DW_CONV_SKIP_RELU": True,
    "MODEL.FBNET.DET_HEAD_LAST_SCALE": 1.0,
    "MODEL.FBNET.DET_HEAD_BLOCKS": [],
    "MODEL.FBNET.DET_HEAD_STRIDE": 0,
    "MODEL.FBNET.KPTS_HEAD_LAST_SCALE": 0.0,
    "MODEL.FBNET.KPTS_HEAD_BLOCKS": [],
    "MODEL.FBNET.KPTS_HEAD_STRIDE": 0,
    "MODEL.FBNET.MASK_HEAD_LAST_SCALE": 0.0,
    "MODEL.FBNET.MASK_HEAD_BLOCKS": [],
    "MODEL.FBNET.MASK_HEAD_STRIDE": 0,
    "MODEL.FBNET.RPN_HEAD_BLOCKS": 0,
    "MODEL.FBNET.RPN_BN_TYPE": "",
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
    "MODEL.RETINANET.NUM_CLASSES": 81,
    "MODEL.RETINANET.ANCHOR_SIZES": (32, 64, 128, 256, 512),
    "MODEL.RETINANET.ASPECT_RATIOS": (0.5, 1.0, 2.0),
    "MODEL.RETINANET.ANCHOR_STRIDES": (8, 16, 32, 64, 128),
    "MODEL.RETINANET.OCTAVE": 2.0,
    "MODEL.RETINANET.SCALES_PER_OCTAVE": 3,
    "MODEL.RETINANET.NUM_CONVS": 4,
    "MODEL.RETINANET.BBOX_REG_WEIGHT": 4.0,
    "MODEL.RETINANET.BBOX_REG_BETA": 0.11,
    "MODEL.RETINANET.PRE_NMS_TOP_N": 1000,
    "MODEL.RETINANET.FG_IOU_THRESHOLD": 0.5,
    "MODEL.RETINANET.BG_IOU_THRESHOLD": 0.4,
    "MODEL.RETINANET.LOSS_ALPHA": 0.25,
    "MODEL.RETINANET.LOSS_GAMMA": 2.0,
    "MODEL.RETINANET.PRIOR_PROB": 0.01,
    "MODEL.RETINANET.INFERENCE_TH": 0.05,
    "MODEL.RETINANET.NMS_TH": 0.4,
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
    **RCNN_DEFAULTS,
}
"""Keys that affect a model, with the original's defaults."""
FIXED = {
    "MODEL.META_ARCHITECTURE": "another meta-architecture",
    "MODEL.RESNETS.RES2_OUT_CHANNELS": "another backbone width",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": "another backbone width",
}
"""Keys that are supported with their default only, and the feature that another value would need."""
_IDLE_SECTIONS = {
    "MODEL.BACKBONE": "USE_GN",
    "MODEL.ROI_HEADS": "USE_FPN",
    "MODEL.ROI_MASK_HEAD": "MLP_HEAD_DIM POSTPROCESS_MASKS POSTPROCESS_MASKS_THRESHOLD",
    "MODEL.ROI_KEYPOINT_HEAD": "MLP_HEAD_DIM",
    "MODEL.RETINANET": "STRADDLE_THRESH",
    "TEST": "EXPECTED_RESULTS EXPECTED_RESULTS_SIGMA_TOL",
}
IDLE = ["PATHS_CATALOG", *(f"{section}.{key}" for section, keys in _IDLE_SECTIONS.items() for key in keys.split())]
"""Keys without effect on any detector of this project."""
SECTIONS = {"fcos": "MODEL.FCOS.", "retinanet": "MODEL.RETINANET."}
"""Beginning of the keys of each one-stage detector, by `model.name`."""
NUM_CLASSES = {
    "fcos": "MODEL.FCOS.NUM_CLASSES",
    "retinanet": "MODEL.RETINANET.NUM_CLASSES",
    "rcnn": "MODEL.ROI_BOX_HEAD.NUM_CLASSES",
}
"""Key of the number of classes, by `model.name`."""
_SHARED = ("MODEL.RETINANET.USE_C5",)
TITLES = {"fcos": "FCOS", "retinanet": "RetinaNet", "rpn": "a region proposal network (RPN)", "rcnn": "R-CNN"}
"""Names of the detectors in messages, by `model.name`."""
ONE_STAGE = ("fcos", "retinanet")
"""Detectors without regions, by `model.name`."""
_TWO_STAGE_KEYS = (*RCNN_DEFAULTS, "MODEL.RESNETS.RES5_DILATION")
_REGION_KEYS = ("MODEL.ROI_", "MODEL.CLS_AGNOSTIC_BBOX_REG", "MODEL.MASK_ON", "MODEL.KEYPOINT_ON")
"""Beginnings of keys that have no effect on a region proposal network."""


def is_idle(key: str, detector: str) -> bool:
    """Return whether a known key has no effect on a detector, given by its `model.name`."""
    others = tuple(section for name, section in SECTIONS.items() if name != detector)
    if detector in ONE_STAGE and (key in _TWO_STAGE_KEYS or key.startswith("MODEL.FBNET.")):
        return True
    if detector == "rpn" and key.startswith(_REGION_KEYS):
        return True
    if detector not in ONE_STAGE and key in (*_SHARED, "TEST.DETECTIONS_PER_IMG"):
        return True
    return key in IDLE or (key in DEFAULTS and key.startswith(others) and key not in _SHARED)


def is_text(path: Sequence[str]) -> bool:
    """Return whether a value in a YAML file is a name or path, which is text even if it looks like a number.

    Args:
        path: keys from the root to the value, and any further item for an entry of a list.
    """
    return isinstance(DEFAULTS.get(".".join(path)), str) or tuple(path[:1]) == ("DATASETS",)
