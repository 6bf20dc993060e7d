"""Table of the original's config keys and our options, used for conversion in both directions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import cycle
from typing import Any

from ...config.backbones import ResNetConfig, resnet_shape
from ...config.catalog import build_split_section, has_voc
from ...config.detectors import DEFAULT_DETECTOR, DETECTORS
from ...config.options import in_effect, options_of
from .backbone_files import is_backbone_file
from .bodies import BODIES, STRIDES, Body, End, Kind
from .fbnet_rows import FBNET_ROWS
from .keys import DEFAULTS, NUM_CLASSES, ONE_STAGE, SECTIONS
from .rcnn_rows import RCNN_ROWS
from .rows import Row, kinds_of
from .rows import same as _same

MOBILENET_BLOCKS = 18
"""Number of modules `features.N` of the backbone, stem included."""
BLOCK_NORMS = {
    ("BottleneckWithFixedBatchNorm", "StemWithFixedBatchNorm"): "frozen_bn",
    ("BottleneckWithGN", "StemWithGN"): "gn",
}
"""Our norms by (block function, stem function)."""
_NAMES: dict[Kind, str] = {"mobilenet": "mobilenet_v2", "fbnet": "fbnet"}
"""Names of our backbones other than ResNets by kind, see `Body`."""
_STAGES = ("C2", "C3", "C4", "C5")


def _flag(key: str, option: str, off: str, on: str, only: str = "") -> Row:
    """Map a key that is True or False to an option with two values."""
    return Row((key,), (option,), lambda value: (on if value else off,), lambda value: (value == on,), only)


def _no_frozen_stages(_: int) -> tuple[int]:
    """Return 0: the original freezes MobileNetV2 by blocks, see `_frozen_blocks`."""
    return (0,)


def _frozen_blocks(count: int) -> list[str]:
    return [f"backbone.features.{block}.*" for block in range(count)]


def _one_way(keys: tuple[str, ...] | str, option: str, ours: Callable[..., Any], only: str = "") -> Row:
    """Map keys to an option that weights do not depend on, and that is not converted back."""
    return Row((keys,) if isinstance(keys, str) else keys, (option,), lambda *values: (ours(*values),), only=only)


def _at_least_zero(key: str, option: str, only: str = "") -> Row:
    """Map a key to an option with the same values, except that a negative number means 0."""
    return Row((key,), (option,), lambda value: (max(value, 0),), lambda value: (value,), only)


def _augmentation(key: str, option: str, off: Any) -> Row:
    """Map a key of test-time augmentation to an option, with the value `off` if augmentation is disabled."""
    keys = f"TEST.BBOX_AUG.{key}", "TEST.BBOX_AUG.ENABLED"
    return _one_way(keys, option, lambda value, enabled: value if enabled else off)


def _as_list(sides: int | list[int]) -> list[int]:
    return sides if isinstance(sides, tuple | list) else [sides]


def _convert_pixels(bgr: bool, mean: list[float], std: list[float]) -> tuple[Any, ...]:
    scale = 1.0 if bgr else 255.0  # without TO_BGR255 the original's pixels are 0..1
    return "bgr" if bgr else "rgb", [value * scale for value in mean], [value * scale for value in std]


def _convert_pixels_back(order: str, mean: list[float], std: list[float]) -> tuple[Any, ...]:
    scale = 1.0 if order == "bgr" else 255.0
    return order == "bgr", [round(value / scale, 15) for value in mean], [round(value / scale, 15) for value in std]


def _name_backbone(body: str, groups: int, width: int) -> str:
    kind, _, depth = BODIES[body]
    if kind != "resnet":
        return _NAMES[kind]
    return f"resnet{depth}" if (groups, width) == (1, 64) else f"resnext{depth}_{groups}x{width}d"


def _find_kind(name: str) -> Kind:
    """Return the kind of a backbone, see `Body`, for our name of it."""
    kinds: list[Kind] = [kind for kind, known in _NAMES.items() if known == name]
    return kinds[0] if kinds else "resnet"


def find_end(options: Mapping[str, Any]) -> End:
    """Return `Body.end` for the options of a `model` section of ours."""
    if options.get("name", DEFAULT_DETECTOR) in ONE_STAGE:
        return "retinanet"
    if options["fpn.enabled"]:
        return "fpn"
    if _find_kind(options["backbone.name"]) == "fbnet":
        return "last"
    return "C5" if options["strides"] == STRIDES["C5"] else "C4"


def find_body(options: Mapping[str, Any]) -> str | None:
    """Return MODEL.BACKBONE.CONV_BODY for the options of a `model` section of ours; None: there is none."""
    name = options["backbone.name"]
    depth = resnet_shape(name)[0] if ResNetConfig.claims(name) else 0
    body = Body(_find_kind(name), find_end(options), depth)
    return next((text for text, known in BODIES.items() if known == body), None)


def _find_shape(name: str) -> tuple[Any, ...]:
    """Return the groups of a ResNet and their width; the body is left to `to_keys`."""
    _, *shape = resnet_shape(name) if ResNetConfig.claims(name) else (0, 1, 64)
    return None, *shape


def _choose_extra_level_source(use_c5: bool, channels: int, body: str) -> str:
    """Return the source of P6: C5 if requested and if C5 has other channels than the pyramid, otherwise P5.

    With MobileNetV2, the original always uses P5.
    """
    return "c5" if use_c5 and channels != 2048 and BODIES[body].kind != "mobilenet" else "p5"


def _find_block_functions(norm: str) -> tuple[str, str]:
    """Return the block and stem functions of a norm; those of frozen batch norm if the original lacks it."""
    functions = {block_norm: names for names, block_norm in BLOCK_NORMS.items()}
    return functions.get(norm, functions["frozen_bn"])


def _norm_groups(channels_per_group: int, groups: int) -> tuple[int]:
    return (-channels_per_group if channels_per_group > 0 else groups,)


def _norm_groups_back(groups: int) -> tuple[int, ...]:
    return (-groups, -1) if groups < 0 else (-1, groups)


def _backbone_norm_groups_back(groups: int) -> tuple[int, ...]:
    """Return nothing for the default: the row of the pyramid decides, and `require_same` finds a contradiction."""
    return () if groups == DEFAULTS["MODEL.GROUP_NORM.NUM_GROUPS"] else _norm_groups_back(groups)


def _num_classes() -> list[Row]:
    """Return the rows of the number of classes, in which the original counts background."""
    return [
        Row((key,), ("model.num_classes",), lambda k: (k - 1,), lambda k: (k + 1,), detector)
        for detector, key in NUM_CLASSES.items()
    ]


def _weight(detector: str) -> Row:
    """Return the row of the weights that a detector starts from: those of a backbone or of a detector."""
    return Row(
        ("MODEL.WEIGHT",),
        ("model.backbone.weights", "train.weights"),
        lambda file: (file, None) if is_backbone_file(file, detector) else (None, file or None),
        only=detector,
    )


def _same_in_both(key: str, option: str) -> list[Row]:
    """Map a key of the sections of both detectors to an option with the same values."""
    return [_same(section + key, option, detector) for detector, section in SECTIONS.items()]


def _stages_in(body: str) -> tuple[str, ...]:
    """Return the stages of a ResNet body that may be deformable; a C5 that is a head is never deformable."""
    return _STAGES[:3] if BODIES[body].end == "C4" else _STAGES


_GROUP_KEYS = ("MODEL.GROUP_NORM.DIM_PER_GP", "MODEL.GROUP_NORM.NUM_GROUPS")
ROWS: list[Row] = [
    # The detector.
    *_num_classes(),
    _same("MODEL.RESNETS.BACKBONE_OUT_CHANNELS", "model.fpn.channels"),
    _flag("MODEL.FPN.USE_GN", "model.fpn.norm", off="none", on="gn"),
    Row(_GROUP_KEYS, ("model.fpn.norm_groups",), _norm_groups, _norm_groups_back),
    _same("MODEL.GROUP_NORM.EPSILON", "model.fpn.norm_eps"),
    _same("MODEL.FPN.USE_RELU", "model.fpn.relu"),
    Row(
        ("MODEL.RETINANET.USE_C5", "MODEL.RESNETS.BACKBONE_OUT_CHANNELS", "MODEL.BACKBONE.CONV_BODY"),
        ("model.fpn.extra_level_source",),
        lambda *values: (_choose_extra_level_source(*values),),
        lambda value: (value == "c5",),
        "one_stage",
    ),
    *_same_in_both("NUM_CONVS", "model.head.num_convs"),
    *_same_in_both("PRIOR_PROB", "model.head.prior_probability"),
    *_same_in_both("LOSS_ALPHA", "model.focal_alpha"),
    *_same_in_both("LOSS_GAMMA", "model.focal_gamma"),
    *_same_in_both("INFERENCE_TH", "model.score_threshold"),
    *_same_in_both("PRE_NMS_TOP_N", "model.pre_nms_top_k"),
    *_same_in_both("NMS_TH", "model.nms_threshold"),
    _same("MODEL.FCOS.USE_DCN_IN_TOWER", "model.head.deformable", "fcos"),
    _flag("MODEL.FCOS.CENTERNESS_ON_REG", "model.head.centerness_on", off="cls", on="box", only="fcos"),
    _flag("MODEL.FCOS.NORM_REG_TARGETS", "model.head.regression", off="exp", on="relu_stride", only="fcos"),
    _same("MODEL.FCOS.FPN_STRIDES", "model.strides", "fcos"),
    _at_least_zero("MODEL.FCOS.CENTER_SAMPLING_RADIUS", "model.center_sampling_radius", "fcos"),
    _same("MODEL.FCOS.IOU_LOSS_TYPE", "model.box_loss", "fcos"),
    _same("MODEL.RETINANET.ANCHOR_STRIDES", "model.strides", "retinanet"),
    Row(
        ("MODEL.RETINANET.ANCHOR_SIZES",),
        ("model.anchor_sizes",),
        lambda sizes: ([[size] for size in sizes],),
        lambda sizes: (tuple(level[0] for level in sizes),),
        "retinanet",
    ),
    _same("MODEL.RETINANET.ASPECT_RATIOS", "model.anchor_ratios", "retinanet"),
    _same("MODEL.RETINANET.OCTAVE", "model.octave", "retinanet"),
    _same("MODEL.RETINANET.SCALES_PER_OCTAVE", "model.scales_per_octave", "retinanet"),
    _same("MODEL.RETINANET.FG_IOU_THRESHOLD", "model.foreground_iou", "retinanet"),
    _same("MODEL.RETINANET.BG_IOU_THRESHOLD", "model.background_iou", "retinanet"),
    _same("MODEL.RETINANET.BBOX_REG_BETA", "model.smooth_l1_beta", "retinanet"),
    _same("MODEL.RETINANET.BBOX_REG_WEIGHT", "model.box_loss_divisor", "retinanet"),
    Row((), ("model.anchor_rounding",), lambda: ("base",), only="retinanet"),
    *RCNN_ROWS,
    _same("TEST.DETECTIONS_PER_IMG", "model.max_detections", "one_stage"),
    Row((), ("model.box_convention",), lambda: ("inclusive",)),
    Row(
        ("INPUT.TO_BGR255", "INPUT.PIXEL_MEAN", "INPUT.PIXEL_STD"),
        ("model.channel_order", "model.pixel_mean", "model.pixel_std"),
        _convert_pixels,
        _convert_pixels_back,
    ),
    # The backbone.
    Row(
        ("MODEL.BACKBONE.CONV_BODY", "MODEL.RESNETS.NUM_GROUPS", "MODEL.RESNETS.WIDTH_PER_GROUP"),
        ("model.backbone.name",),
        lambda *shape: (_name_backbone(*shape),),
        _find_shape,
    ),
    *map(_weight, DETECTORS),
    _flag("MODEL.USE_SYNCBN", "model.backbone.norm", off="bn", on="sync_bn", only="mobilenet"),
    Row(
        ("MODEL.BACKBONE.FREEZE_CONV_BODY_AT",),
        ("model.backbone.frozen_stages",),
        _no_frozen_stages,
        _no_frozen_stages,
        "mobilenet",
    ),
    _one_way("MODEL.BACKBONE.FREEZE_CONV_BODY_AT", "train.freeze", _frozen_blocks, "mobilenet"),
    Row(
        ("MODEL.RESNETS.TRANS_FUNC", "MODEL.RESNETS.STEM_FUNC"),
        ("model.backbone.norm",),
        lambda *functions: (BLOCK_NORMS[functions],),
        _find_block_functions,
        "resnet",
    ),
    Row(
        ("MODEL.RESNETS.TRANS_FUNC", "MODEL.RESNETS.STEM_FUNC", "MODEL.GROUP_NORM.EPSILON"),
        ("model.backbone.norm_eps",),
        lambda block, stem, eps: (0.0 if BLOCK_NORMS[block, stem] == "frozen_bn" else eps,),
        only="resnet",
    ),
    Row(_GROUP_KEYS, ("model.backbone.norm_groups",), _norm_groups, _backbone_norm_groups_back, "resnet"),
    _same("MODEL.RESNETS.STRIDE_IN_1X1", "model.backbone.stride_in_1x1", "resnet"),
    _at_least_zero("MODEL.BACKBONE.FREEZE_CONV_BODY_AT", "model.backbone.frozen_stages", "resnet"),
    Row(
        ("MODEL.RESNETS.STAGE_WITH_DCN", "MODEL.BACKBONE.CONV_BODY"),
        ("model.backbone.deformable_stages",),
        lambda flags, body: ([stage for stage in _stages_in(body) if flags[_STAGES.index(stage)]],),
        lambda stages: (tuple(stage in stages for stage in _STAGES),),
        "resnet",
    ),
    _same("MODEL.RESNETS.WITH_MODULATED_DCN", "model.backbone.modulated", "resnet"),
    _same("MODEL.RESNETS.DEFORMABLE_GROUPS", "model.backbone.offset_groups", "resnet"),
    Row(
        ("MODEL.RESNETS.RES5_DILATION", "MODEL.BACKBONE.CONV_BODY"),
        ("model.backbone.head_dilation",),
        lambda dilation, body: (dilation if BODIES[body].end == "C4" else 1,),
        lambda dilation: (dilation,),
        "resnet",
    ),
    *FBNET_ROWS,
    # The data.
    Row((), ("data.convention",), lambda: ("fcos_core",)),
    _one_way("INPUT.MIN_SIZE_TRAIN", "data.short_side", _as_list),
    _one_way("INPUT.MIN_SIZE_RANGE_TRAIN", "data.short_side_range", lambda ends: None if ends[0] == -1 else list(ends)),
    _same("INPUT.MAX_SIZE_TRAIN", "data.max_side"),
    _same("INPUT.MIN_SIZE_TEST", "data.test_short_side"),
    _same("INPUT.MAX_SIZE_TEST", "data.test_max_side"),
    _same("DATALOADER.ASPECT_RATIO_GROUPING", "data.group_by_aspect"),
    _same("DATALOADER.NUM_WORKERS", "data.workers"),
    _one_way("DATALOADER.SIZE_DIVISIBILITY", "data.size_divisor", lambda divisor: max(divisor, 1)),
    _one_way("DATASETS.TRAIN", "data.train", lambda names: build_split_section(names, key="DATASETS.TRAIN")),
    _one_way("DATASETS.TEST", "data.val", lambda names: build_split_section(names, key="DATASETS.TEST")),
    # Training.
    _same("SOLVER.IMS_PER_BATCH", "train.batch_size"),
    _same("SOLVER.MAX_ITER", "train.iterations"),
    _same("SOLVER.BASE_LR", "train.lr"),
    _same("SOLVER.MOMENTUM", "train.momentum"),
    _same("SOLVER.WEIGHT_DECAY", "train.weight_decay"),
    _same("SOLVER.BIAS_LR_FACTOR", "train.bias_lr_factor"),
    _same("SOLVER.WEIGHT_DECAY_BIAS", "train.bias_weight_decay"),
    _same("SOLVER.DCONV_OFFSETS_LR_FACTOR", "train.offset_lr_factor"),
    _same("SOLVER.STEPS", "train.milestones"),
    _same("SOLVER.GAMMA", "train.gamma"),
    _same("SOLVER.WARMUP_METHOD", "train.warmup"),
    _same("SOLVER.WARMUP_ITERS", "train.warmup_iterations"),
    _same("SOLVER.WARMUP_FACTOR", "train.warmup_factor"),
    _same("SOLVER.CHECKPOINT_PERIOD", "train.checkpoint_every"),
    Row((), ("train.schedule",), lambda: ("multistep",)),
    # Tests.
    _same("TEST.IMS_PER_BATCH", "eval.batch_size"),
    _augmentation("H_FLIP", "eval.flip", off=False),
    _augmentation("SCALES", "eval.scales", off=[]),
    _augmentation("MAX_SIZE", "eval.scales_max_side", off=4000),
    _augmentation("SCALE_H_FLIP", "eval.scales_flip", off=False),
    _one_way("DATASETS.TEST", "eval.voc_metrics", has_voc),
    # The run.
    _one_way("OUTPUT_DIR", "output_dir", lambda folder: None if folder in ("", ".") else folder),
    _one_way("MODEL.DEVICE", "device", lambda device: "auto" if device == "cuda" else device),  # original: CUDA only
]
"""Equivalent settings of both projects."""


def option_keys(detector: str, backbone: str) -> dict[str, str]:
    """Return the key of the original that decides each of our options; messages name it instead of the option.

    Args:
        detector: `model.name`.
        backbone: `model.backbone.name`.
    """
    kinds = kinds_of(detector, _find_kind(backbone))
    return {
        option: key
        for row in ROWS
        if row.only in kinds and row.ours is not None
        for option, key in zip(row.options, cycle(row.keys), strict=False)  # one key may decide several options
        if not key.startswith("DATASETS.")  # these decide whole sections
    }


def to_options(get: Callable[[str], Any], *, detector: str, num_classes_given: bool) -> dict[str, Any]:
    """Convert the original's keys to our options, by dotted key.

    Args:
        get: function that returns the value of a key, given or default.
        detector: `model.name`.
        num_classes_given: True if the config gives the number of classes; otherwise the data determines it.
    """
    kinds = kinds_of(detector, BODIES[get("MODEL.BACKBONE.CONV_BODY")].kind)
    options: dict[str, Any] = {"model.name": detector}
    for row in ROWS:
        if row.only in kinds and row.ours is not None:
            options |= zip(row.options, row.ours(*map(get, row.keys)), strict=False)
    if not num_classes_given and "model.num_classes" in options:
        options["model.num_classes"] = None
    return options


def dependent_keys(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys whose values follow from options of ours, which have no option of their own, with these values.

    Args:
        options: result of `to_options`.
    """
    kinds = kinds_of(options["model.name"], _find_kind(options["model.backbone.name"]))
    keys: dict[str, Any] = {}
    for row in ROWS:
        if row.ours is None and row.theirs is not None and row.only in kinds:
            keys |= zip(row.keys, row.theirs(*map(options.__getitem__, row.options)), strict=False)
    return keys


def to_keys(options: Mapping[str, Any], num_classes: int) -> dict[str, Any]:
    """Convert a `model` section of ours to the original's keys, without those at their default.

    Args:
        options: options of the section by dotted key, with a backbone that the original has, see `find_body`.
        num_classes: K, without background.
    """
    detector = options.get("name", DEFAULT_DETECTOR)
    values = {f"model.{key}": value for key, value in options.items()} | {"model.num_classes": num_classes}
    effective = {f"model.{key}" for key in in_effect(options, options_of(DETECTORS[detector]))}
    kinds = kinds_of(detector, _find_kind(options["backbone.name"]))
    keys: dict[str, Any] = {
        "MODEL.FCOS_ON": detector == "fcos",
        "MODEL.RETINANET_ON": detector == "retinanet",
        "MODEL.RPN_ONLY": detector != "rcnn",  # otherwise, the original adds a second stage
    }
    for row in ROWS:
        if row.theirs is not None and row.only in kinds and row.options[0] in effective:
            keys |= zip(row.keys, row.theirs(*(values[option] for option in row.options)), strict=False)
    keys["MODEL.BACKBONE.CONV_BODY"] = find_body(options)
    if find_end(options) == "C5":
        keys["MODEL.RESNETS.BACKBONE_OUT_CHANNELS"] = 2048
    return {key: keys[key] for key in DEFAULTS if key in keys and not _is_default(key, keys[key])}


def _is_default(key: str, value: Any) -> bool:
    default = DEFAULTS[key]
    return (tuple(value) if isinstance(default, tuple) else value) == default
