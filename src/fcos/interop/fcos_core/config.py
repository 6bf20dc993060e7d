"""Conversion of the configs of the original (`fcos_core`): YAML with UPPER_CASE keys, and `KEY VALUE` overrides.

A converted config selects the original's exact conventions: inclusive boxes, BGR 0..255, frozen batch norm without
epsilon. `keys.py` lists the original's keys, `mapping.py` maps them to our options.
"""

from __future__ import annotations

import ast
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from ...config.detectors import DETECTORS
from ...config.text import flatten, nest, suggest
from ...errors import ConfigError
from ...formatting import printable, quote
from .bodies import BODIES, ONE_STAGE_BODIES, RCNN_BODIES
from .fbnet_rows import FBNET_NORMS
from .keys import DEFAULTS, FIXED, IDLE, NUM_CLASSES, ONE_STAGE, TITLES, is_idle
from .mapping import BLOCK_NORMS, MOBILENET_BLOCKS, dependent_keys, to_options
from .rcnn_rows import OWN_MASK_LAYERS, TWO_LINEARS, WITH_CONVS, find_problems

log = logging.getLogger(__name__)

KNOWN = [*DEFAULTS, *IDLE]
"""All keys of the original."""
_SECTIONS = tuple({f"{key.partition('.')[0]}." for key in KNOWN if "." in key})

_MAX_WIDTH = 9999  # of the names of our ResNeXts
_REGION_SWITCHES = {
    "MODEL.RPN_ONLY": "a region proposal network (RPN)",
    "MODEL.KEYPOINT_ON": "Keypoint R-CNN",
    "MODEL.MASK_ON": "Mask R-CNN",
}
"""Detectors that a key selects if it is True, in the order of precedence."""
_ANY_LENGTH = (
    *(f"MODEL.RPN.{key}" for key in ("ANCHOR_SIZES", "ANCHOR_STRIDE", "ASPECT_RATIOS")),
    *(f"MODEL.ROI_{head}_HEAD.POOLER_SCALES" for head in ("BOX", "MASK", "KEYPOINT")),
    *(f"MODEL.ROI_{head}_HEAD.CONV_LAYERS" for head in ("MASK", "KEYPOINT")),
    *("INPUT.MIN_SIZE_TRAIN", "TEST.BBOX_AUG.SCALES", "MODEL.RETINANET.ASPECT_RATIOS"),
    *(f"MODEL.FBNET.{head}_HEAD_BLOCKS" for head in ("DET", "MASK", "KPTS")),
)

_RESNET_ONLY = (
    *("NUM_GROUPS", "WIDTH_PER_GROUP", "STRIDE_IN_1X1", "TRANS_FUNC", "STEM_FUNC"),
    *("STAGE_WITH_DCN", "WITH_MODULATED_DCN", "DEFORMABLE_GROUPS"),
)
"""Keys of MODEL.RESNETS without effect on other backbones."""
_AUGMENTATION = ("H_FLIP", "SCALES", "MAX_SIZE", "SCALE_H_FLIP")
_OF_CONVS, _OF_LINEARS = ("NUM_STACKED_CONVS", "CONV_HEAD_DIM", "DILATION"), ("MLP_HEAD_DIM", "USE_GN")
"""Keys of MODEL.ROI_BOX_HEAD for its convolutions and for its linear layers."""


def config_from_yaml(tree: Mapping[str, Any], pairs: Sequence[str] = (), *, where: str = "config") -> dict[str, Any]:
    """Convert the original's config to our config tree.

    Args:
        tree: parsed YAML with UPPER_CASE keys.
        pairs: `KEY VALUE KEY VALUE ...` from the command line.
        where: source of the config, for messages.

    Raises:
        ConfigError: keys are unknown or have a value without a counterpart in our config (the message lists all of
            them), or `pairs` has an odd length.
    """
    given = given_keys(tree, pairs, where=where)
    detector = _choose_detector(given, where=where)
    problems, ignored_keys = [], []
    unused = _unused_keys({**DEFAULTS, **given}.__getitem__, detector)
    for key, value in given.items():
        if is_idle(key, detector):
            ignored_keys.append(key)
        elif key in DEFAULTS:
            problems += _check_value(key, value)
            ignored_keys += [key] if key.startswith(unused) else []
        elif any(name.startswith(f"{key}.") for name in KNOWN):
            problems.append(f"{key}={quote(value)}: expected a section with keys")
        else:
            name = printable(key)[:80]
            problems.append(f"{name}: no such key in the config of the original FCOS{suggest(name, KNOWN)}")
    if ignored_keys:
        log.info("%s: ignoring keys without effect on %s: %s", where, TITLES[detector], ", ".join(ignored_keys))
    get = {**DEFAULTS, **given}.__getitem__
    problems += [*_check_backbone(get, detector), *_check_group_norm(get)]
    if detector not in ONE_STAGE and not problems:
        problems += find_problems(get, detector)
    test_names = given.get("DATASETS.TEST", ())
    if not problems and len(test_names) > 1:
        log.info(
            "%s: DATASETS.TEST: %s form one val split; tools/test_net.py evaluates them one by one",
            where,
            ", ".join(test_names),
        )
    options: dict[str, Any] = {}
    if not problems:
        options = to_options(get, detector=detector, num_classes_given=NUM_CLASSES.get(detector) in given)
        problems += _check_heads(get, options) if detector == "rcnn" else []
    if problems:
        raise ConfigError(f"{where}:" + ("\n  " if len(problems) > 1 else " ") + "\n  ".join(problems))
    return nest(options)


def given_keys(tree: Mapping[str, Any], pairs: Sequence[str] = (), *, where: str = "config") -> dict[str, Any]:
    """Return the values of all keys that a config of the original and `KEY VALUE` pairs give, by dotted key.

    Raises:
        ConfigError: `pairs` has an odd length.
    """
    if len(pairs) % 2:
        raise ConfigError(f"{where}: expected KEY VALUE pairs after the config, found {quote(' '.join(pairs))}")
    given = flatten(tree) | dict(zip(pairs[::2], pairs[1::2], strict=True))
    return {key: _parse_literal(key, value) for key, value in given.items()}


def split_pairs(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split the words of a command line into `KEY VALUE` pairs and other words.

    A value may be any text. A word that is not a key but starts like one ("TEST.") counts as a key, unless a file of
    that name exists, such as TEST.jpg.
    """
    pairs: list[str] = []
    other_words: list[str] = []
    remaining = iter(words)
    for word in remaining:
        if word in KNOWN or (word.startswith(_SECTIONS) and not Path(word).exists()):
            pairs += [word, *islice(remaining, 1)]
        else:
            other_words.append(word)
    return pairs, other_words


def _choose_detector(given: Mapping[str, Any], *, where: str) -> str:
    """Return the detector (`model.name`) of a config.

    An explicit MODEL.FCOS_ON is obeyed. Its default in the original is True, which its own configs of other detectors
    do not change, so their other keys decide.
    """
    fcos, is_retinanet = given.get("MODEL.FCOS_ON"), given.get("MODEL.RETINANET_ON") is True
    if is_retinanet and fcos is not True:
        note = "" if fcos is False else "; the original would train FCOS, unless MODEL.FCOS_ON is set to False"
        log.info("%s: a config for RetinaNet (MODEL.RETINANET_ON)%s", where, note)
        return "retinanet"
    if is_retinanet:
        log.info("%s: a config for FCOS (MODEL.FCOS_ON), although MODEL.RETINANET_ON is also set", where)
    title = next((name for key, name in _REGION_SWITCHES.items() if given.get(key) is True), "")
    body = given.get("MODEL.BACKBONE.CONV_BODY", DEFAULTS["MODEL.BACKBONE.CONV_BODY"])
    if fcos is False or (fcos is None and (body in RCNN_BODIES or (title and body not in ONE_STAGE_BODIES))):
        note = "" if fcos is False else "; the original would train FCOS, unless MODEL.FCOS_ON is set to False"
        log.info("%s: a config for %s (MODEL.BACKBONE.CONV_BODY %s)%s", where, title or "Faster R-CNN", body, note)
        return "rpn" if given.get("MODEL.RPN_ONLY") is True else "rcnn"
    if not is_retinanet:
        log.info("%s: a config for FCOS (MODEL.%s)", where, "FCOS_ON" if fcos else f"BACKBONE.CONV_BODY {body}")
    return "fcos"


def _unused_keys(get: Callable[[str], Any], detector: str) -> tuple[str, ...]:
    """Return the beginnings of keys that have no effect on a detector, because of the values of other keys."""
    body = BODIES.get(get("MODEL.BACKBONE.CONV_BODY"))
    if body is None:
        return ()
    used = {
        "MODEL.RESNETS.": body.kind != "fbnet",
        **{f"MODEL.RESNETS.{key}": body.kind == "resnet" for key in _RESNET_ONLY},
        "MODEL.RESNETS.RES5_DILATION": body.end == "C4",
        "MODEL.BACKBONE.FREEZE_CONV_BODY_AT": body.kind != "fbnet",
        "MODEL.RETINANET.USE_C5": body.kind != "mobilenet",  # it always builds P6 from P5
        "MODEL.USE_SYNCBN": body.kind != "resnet",  # its batch norm is frozen
        "TEST.BBOX_AUG.ENABLED": get("TEST.BBOX_AUG.H_FLIP") or get("TEST.BBOX_AUG.SCALES"),
        **{f"TEST.BBOX_AUG.{key}": get("TEST.BBOX_AUG.ENABLED") for key in _AUGMENTATION},
    }
    if detector not in ONE_STAGE:
        extractor = get("MODEL.ROI_BOX_HEAD.FEATURE_EXTRACTOR")
        has_mask_layers = get("MODEL.ROI_MASK_HEAD.FEATURE_EXTRACTOR") == OWN_MASK_LAYERS
        used |= {
            "MODEL.FPN.": body.end == "fpn",
            "MODEL.FBNET.": body.kind == "fbnet",
            "MODEL.RPN.FPN_POST_NMS_TOP_N_": get("MODEL.RPN.USE_FPN"),
            **{f"MODEL.ROI_BOX_HEAD.{key}": extractor == WITH_CONVS for key in _OF_CONVS},
            **{f"MODEL.ROI_BOX_HEAD.{key}": extractor in (WITH_CONVS, TWO_LINEARS) for key in _OF_LINEARS},
            **{f"MODEL.ROI_MASK_HEAD.{key}": has_mask_layers for key in ("USE_GN", "DILATION")},
            "MODEL.ROI_MASK_HEAD.": get("MODEL.MASK_ON"),
            "MODEL.ROI_KEYPOINT_HEAD.": get("MODEL.KEYPOINT_ON"),
        }
    return tuple(start for start, is_used in used.items() if not is_used)


def _parse_literal(key: str, value: Any) -> Any:
    """Evaluate text that is a Python literal, as the original does: "(60000, 80000)". Other values are unchanged.

    Names and paths stay text even if they look like numbers.
    """
    if not isinstance(value, str):
        return value
    try:
        with warnings.catch_warnings():  # the compiler warns about text such as "1if"
            warnings.simplefilter("ignore")
            literal = ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # all that literal_eval documents
        return value
    return literal if isinstance(literal, str) or not isinstance(DEFAULTS.get(key), str) else value


def _check_value(key: str, value: Any) -> list[str]:
    """Return error messages for the value of a single key; empty if it is valid."""
    default = DEFAULTS[key]
    if key in FIXED:
        as_default = tuple(value) if isinstance(value, list) else value
        problem = f"{key}={quote(value)}: expected {default!r} (not supported: {FIXED[key]})"
        return [] if as_default == default else [problem]
    expected = None
    if key.endswith(".NUM_CLASSES"):
        is_integer = isinstance(value, int) and not isinstance(value, bool)
        expected = (
            None if is_integer and value > 1 else "an integer of at least 2, because background counts as a class"
        )
    elif isinstance(default, tuple | list):
        expected = _describe_expected_list(key, value)
    elif isinstance(default, bool | str) and type(value) is not type(default):
        expected = "text" if isinstance(default, str) else "True or False"
    elif not isinstance(default, bool | str) and not _is_number(value):
        expected = "a number"
    return [f"{key}={quote(value)}: expected {expected}"] if expected else []


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _describe_expected_list(key: str, value: Any) -> str | None:
    """Return a description of the list that `key` expects; None if `value` is valid."""
    if key == "INPUT.MIN_SIZE_TRAIN" and _is_number(value):
        return None
    if key.startswith("DATASETS."):
        is_names = isinstance(value, tuple | list) and all(isinstance(name, str) for name in value)
        return None if is_names else "a list of names"
    if key == "SOLVER.STEPS":
        is_integers = isinstance(value, tuple | list) and all(type(item) is int and item >= 1 for item in value)
        return None if is_integers and list(value) == sorted(value) else "a list of increasing integers of at least 1"
    is_flags = any(isinstance(item, bool) for item in DEFAULTS[key])
    is_valid = isinstance(value, tuple | list) and all(
        isinstance(item, bool) if is_flags else _is_number(item) for item in value
    )
    if key in _ANY_LENGTH:
        return None if is_valid else "a list of numbers"
    length = len(DEFAULTS[key])
    items = "values, each True or False" if is_flags else "numbers"
    return None if is_valid and len(value) == length else f"a list of {length} {items}"


def _check_backbone(get: Callable[[str], Any], detector: str) -> list[str]:
    """Return error messages for the combination of the backbone's keys; empty if it is valid."""
    body, frozen = get("MODEL.BACKBONE.CONV_BODY"), get("MODEL.BACKBONE.FREEZE_CONV_BODY_AT")
    bodies = ONE_STAGE_BODIES if detector in ONE_STAGE else RCNN_BODIES
    if body not in bodies:
        problem = (
            f"MODEL.BACKBONE.CONV_BODY={quote(body)}: expected one of {', '.join(bodies)}; for another backbone, keep"
            " one of these and add model.backbone.name=timm/NAME, or package.module:function for a backbone of your own"
        )
        if body in ONE_STAGE_BODIES:
            problem += "; for FCOS or RetinaNet, set MODEL.FCOS_ON or MODEL.RETINANET_ON to True"
        elif body in RCNN_BODIES:
            problem += "; for R-CNN, set MODEL.FCOS_ON and MODEL.RETINANET_ON to False"
        return [problem]
    if BODIES[body].kind == "fbnet":
        return [
            f"MODEL.FBNET.{key}={quote(get(f'MODEL.FBNET.{key}'))}: expected {', '.join(filter(None, norms))}"
            for key, norms in FBNET_NORMS.items()
            if get(f"MODEL.FBNET.{key}") not in norms
        ]
    if BODIES[body].kind == "mobilenet":
        expected = f"an integer up to {MOBILENET_BLOCKS}, the number of blocks of {body}"
        is_valid = type(frozen) is int and frozen <= MOBILENET_BLOCKS
        return [] if is_valid else [f"MODEL.BACKBONE.FREEZE_CONV_BODY_AT={quote(frozen)}: expected {expected}"]
    problems = []
    for key in ("MODEL.RESNETS.NUM_GROUPS", "MODEL.RESNETS.WIDTH_PER_GROUP"):
        value = get(key)
        if _is_number(value) and not (isinstance(value, int) and 1 <= value <= _MAX_WIDTH):
            problems.append(f"{key}={quote(value)}: expected an integer from 1 to {_MAX_WIDTH}")
    functions = get("MODEL.RESNETS.TRANS_FUNC"), get("MODEL.RESNETS.STEM_FUNC")
    if functions not in list(BLOCK_NORMS):
        expected = " or ".join(f"{block}, {stem}" for block, stem in BLOCK_NORMS)
        problems.append(f"MODEL.RESNETS.TRANS_FUNC, STEM_FUNC={quote(functions)[1:-1]}: expected {expected}")
    return problems


def _check_heads(get: Callable[[str], Any], options: Mapping[str, Any]) -> list[str]:
    """Return error messages for keys of the mask and keypoint heads whose values follow from those of others.

    Args:
        get: function that returns the value of a key.
        options: options of ours that all keys give.
    """
    try:
        DETECTORS["rcnn"].model_validate(nest(options)["model"])
    except ValueError:  # reported with the whole config
        return []
    problems = []
    for head, section in (("MASK", "mask"), ("KEYPOINT", "keypoints")):
        if not get(f"MODEL.{head}_ON"):
            continue
        side, is_shared = f"MODEL.ROI_{head}_HEAD.RESOLUTION", f"MODEL.ROI_{head}_HEAD.SHARE_BOX_FEATURE_EXTRACTOR"
        is_own = options[f"model.{section}.layers"] == "own"
        expected = dependent_keys(options)[side] if is_own or head == "MASK" else get(side)
        if get(side) != expected:
            problems.append(f"{side}={quote(get(side))}: expected {expected}, the side of the predictions of this head")
        if get(is_shared) and is_own:
            extractor = get(f"MODEL.ROI_{head}_HEAD.FEATURE_EXTRACTOR")
            problems.append(f"{is_shared}=True: expected False with the FEATURE_EXTRACTOR {extractor}")
    return problems


def _check_group_norm(get: Callable[[str], Any]) -> list[str]:
    """Return error messages for the groups of group norm, of which the original wants exactly one number."""
    keys = ("MODEL.GROUP_NORM.DIM_PER_GP", "MODEL.GROUP_NORM.NUM_GROUPS")
    values = [get(key) for key in keys]
    is_used = get("MODEL.FPN.USE_GN") is True or get("MODEL.RESNETS.TRANS_FUNC") == "BottleneckWithGN"
    if not is_used or (-1 in values and all(type(value) is int for value in values) and max(values) > 0):
        return []
    return [f"{keys[0]}, NUM_GROUPS={values[0]!r}, {values[1]!r}: expected one of them -1, and the other at least 1"]
