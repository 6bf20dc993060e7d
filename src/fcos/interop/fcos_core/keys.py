"""The keys of the original FCOS' config: their defaults, what they are called here, and which decide nothing here.

Keys and defaults are facts about that project; none of its code or text is used.
"""

from __future__ import annotations

from typing import Any

DEFAULTS: dict[str, Any] = {
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
"""Keys that decide something for FCOS, with the original's defaults."""
COPIED = {
    "MODEL.RESNETS.BACKBONE_OUT_CHANNELS": "model.fpn.channels",
    "MODEL.FPN.USE_RELU": "model.fpn.relu",
    "MODEL.FCOS.NUM_CONVS": "model.head.num_convs",
    "MODEL.FCOS.USE_DCN_IN_TOWER": "model.head.deformable",
    "MODEL.FCOS.PRIOR_PROB": "model.head.prior_probability",
    "MODEL.FCOS.FPN_STRIDES": "model.strides",
    "MODEL.FCOS.CENTER_SAMPLING_RADIUS": "model.center_sampling_radius",
    "MODEL.FCOS.IOU_LOSS_TYPE": "model.box_loss",
    "MODEL.FCOS.LOSS_ALPHA": "model.focal_alpha",
    "MODEL.FCOS.LOSS_GAMMA": "model.focal_gamma",
    "MODEL.FCOS.INFERENCE_TH": "model.score_threshold",
    "MODEL.FCOS.PRE_NMS_TOP_N": "model.pre_nms_top_k",
    "MODEL.FCOS.NMS_TH": "model.nms_threshold",
    "TEST.DETECTIONS_PER_IMG": "model.max_detections",
    "INPUT.MAX_SIZE_TRAIN": "data.max_side",
    "INPUT.MIN_SIZE_TEST": "data.test_short_side",
    "INPUT.MAX_SIZE_TEST": "data.test_max_side",
    "DATALOADER.ASPECT_RATIO_GROUPING": "data.group_by_aspect",
    "DATALOADER.NUM_WORKERS": "data.workers",
    "SOLVER.IMS_PER_BATCH": "train.batch_size",
    "SOLVER.MAX_ITER": "train.iterations",
    "SOLVER.BASE_LR": "train.lr",
    "SOLVER.MOMENTUM": "train.momentum",
    "SOLVER.WEIGHT_DECAY": "train.weight_decay",
    "SOLVER.BIAS_LR_FACTOR": "train.bias_lr_factor",
    "SOLVER.WEIGHT_DECAY_BIAS": "train.bias_weight_decay",
    "SOLVER.DCONV_OFFSETS_LR_FACTOR": "train.offset_lr_factor",
    "SOLVER.STEPS": "train.milestones",
    "SOLVER.GAMMA": "train.gamma",
    "SOLVER.WARMUP_METHOD": "train.warmup",
    "SOLVER.WARMUP_ITERS": "train.warmup_iterations",
    "SOLVER.WARMUP_FACTOR": "train.warmup_factor",
    "SOLVER.CHECKPOINT_PERIOD": "train.checkpoint_every",
    "TEST.IMS_PER_BATCH": "eval.batch_size",
}
"""Keys whose value is that of one of our options."""
_CONVERTED = {
    "MODEL.FCOS.NUM_CLASSES": "model.num_classes",
    "MODEL.BACKBONE.FREEZE_CONV_BODY_AT": "model.backbone.frozen_stages",
    "MODEL.RESNETS.DEFORMABLE_GROUPS": "model.backbone.offset_groups",
    "INPUT.PIXEL_STD": "model.pixel_std",
    "INPUT.MIN_SIZE_TRAIN": "data.short_side",
    "INPUT.MIN_SIZE_RANGE_TRAIN": "data.short_side_range",
    "TEST.BBOX_AUG.SCALES": "eval.scales",
    "TEST.BBOX_AUG.MAX_SIZE": "eval.scales_max_side",
}
KEYS = {option: key for key, option in (COPIED | _CONVERTED).items()}
"""What messages call our options."""
FIXED = {
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
"""Keys of which we have the default only, and what another value asks for."""
_IDLE_SECTIONS = {
    "MODEL": "RPN_ONLY CLS_AGNOSTIC_BBOX_REG",
    "MODEL.RPN": """
        USE_FPN ANCHOR_SIZES ANCHOR_STRIDE ASPECT_RATIOS STRADDLE_THRESH FG_IOU_THRESHOLD BG_IOU_THRESHOLD
        BATCH_SIZE_PER_IMAGE POSITIVE_FRACTION PRE_NMS_TOP_N_TRAIN PRE_NMS_TOP_N_TEST POST_NMS_TOP_N_TRAIN
        POST_NMS_TOP_N_TEST NMS_THRESH MIN_SIZE FPN_POST_NMS_TOP_N_TRAIN FPN_POST_NMS_TOP_N_TEST RPN_HEAD
    """,
    "MODEL.ROI_HEADS": """
        USE_FPN FG_IOU_THRESHOLD BG_IOU_THRESHOLD BBOX_REG_WEIGHTS BATCH_SIZE_PER_IMAGE POSITIVE_FRACTION SCORE_THRESH
        NMS DETECTIONS_PER_IMG
    """,
    "MODEL.ROI_BOX_HEAD": """
        FEATURE_EXTRACTOR PREDICTOR POOLER_RESOLUTION POOLER_SAMPLING_RATIO POOLER_SCALES NUM_CLASSES MLP_HEAD_DIM
        USE_GN DILATION CONV_HEAD_DIM NUM_STACKED_CONVS
    """,
    "MODEL.ROI_MASK_HEAD": """
        FEATURE_EXTRACTOR PREDICTOR POOLER_RESOLUTION POOLER_SAMPLING_RATIO POOLER_SCALES MLP_HEAD_DIM CONV_LAYERS
        RESOLUTION SHARE_BOX_FEATURE_EXTRACTOR POSTPROCESS_MASKS POSTPROCESS_MASKS_THRESHOLD DILATION USE_GN
    """,
    "MODEL.ROI_KEYPOINT_HEAD": """
        FEATURE_EXTRACTOR PREDICTOR POOLER_RESOLUTION POOLER_SAMPLING_RATIO POOLER_SCALES MLP_HEAD_DIM CONV_LAYERS
        RESOLUTION NUM_CLASSES SHARE_BOX_FEATURE_EXTRACTOR
    """,
    "MODEL.RETINANET": """
        NUM_CLASSES ANCHOR_SIZES ASPECT_RATIOS ANCHOR_STRIDES STRADDLE_THRESH OCTAVE SCALES_PER_OCTAVE NUM_CONVS
        BBOX_REG_WEIGHT BBOX_REG_BETA PRE_NMS_TOP_N FG_IOU_THRESHOLD BG_IOU_THRESHOLD LOSS_ALPHA LOSS_GAMMA PRIOR_PROB
        INFERENCE_TH NMS_TH
    """,
    "MODEL.FBNET": """
        ARCH ARCH_DEF BN_TYPE SCALE_FACTOR WIDTH_DIVISOR DW_CONV_SKIP_BN DW_CONV_SKIP_RELU DET_HEAD_LAST_SCALE
        DET_HEAD_BLOCKS DET_HEAD_STRIDE KPTS_HEAD_LAST_SCALE KPTS_HEAD_BLOCKS KPTS_HEAD_STRIDE MASK_HEAD_LAST_SCALE
        MASK_HEAD_BLOCKS MASK_HEAD_STRIDE RPN_HEAD_BLOCKS RPN_BN_TYPE
    """,
    "TEST": "EXPECTED_RESULTS EXPECTED_RESULTS_SIGMA_TOL",
}
IDLE = ["PATHS_CATALOG", *(f"{section}.{key}" for section, keys in _IDLE_SECTIONS.items() for key in keys.split())]
"""Keys that decide nothing for an FCOS model."""
