"""Loading of weights files (`load_checkpoint`). Only this module detects which project wrote a file."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from ..checkpoint import PIXELS, Checkpoint, Project, check_weights, find_weights, from_ours, is_ours, is_zip, read
from ..config import expand_user
from ..config.detectors import DEFAULT_DETECTOR
from ..config.text import as_option, suggest
from ..downloads import describe_other_scheme, hub_file, is_url, warn_about_licence
from ..errors import WeightsError
from ..formatting import join_some, plural
from ..models.backbones.caffe2 import load_pickle
from ..models.backbones.pretrained import CATALOG
from ..models.backbones.renames import BACKBONE_TENSORS, without_module
from . import adelaidet, detectron2, mmdetection, torchvision
from .architecture import Converted, count_classes, count_region_classes
from .fcos_core import detectron
from .fcos_core import weights as fcos_core
from .fcos_core.solver import solver_state

log = logging.getLogger(__name__)

_FCOS_CORE_CONVENTIONS: dict[str, Any] = {
    "box_convention": "inclusive",
    "channel_order": "bgr",
    "pixel_mean": (102.9801, 115.9465, 122.7717),
    "pixel_std": (1.0, 1.0, 1.0),
}
_ANCHOR_CONVENTIONS = {"anchor_rounding": "base"}
"""Further conventions of the original's detectors with anchors."""
_RESTRICTED_PROJECTS = {"fcos_core": "the original FCOS", "adelaidet": "AdelaiDet"}
_LICENCE = "licence of {} (non-commercial use only) if its authors published these weights"  # no file names the authors
_CATALOG = "catalog://"
_DETECTORS = [name for name in CATALOG if name.startswith(f"{_CATALOG}Caffe2Detectron/")]
"""The original's names of the detectors of Detectron."""
_STATE_DICT_KEYS = ("model", "state_dict", "model_state_dict", "blobs")
_SAFE_GLOBALS: list[Any] = [argparse.Namespace, *mmdetection.DISCARDED_GLOBALS]
"""Entries for `torch.serialization.safe_globals`: options of torchvision's training script, and mmengine's log."""


def load_checkpoint(source: str | Path, *, class_names: Sequence[str] | None = None) -> Checkpoint:
    """Load a detector's weights onto the CPU.

    Args:
        source: run folder, or path or URL of a weights file of this project or of another project (the original,
            AdelaiDet, Detectron, detectron2, mmdetection, torchvision), the name of torchvision's COCO weights, such as
            `torchvision/fcos_resnet50_fpn`, or the original's name of a detector of Detectron, such as
            `catalog://Caffe2Detectron/COCO/35858933/e2e_mask_rcnn_R-50-FPN_1x`. Pickles of the model zoos of Detectron
            and detectron2 (.pkl) are supported. Downloads are cached.
        class_names: [K], for a file of another project or a file of ours without class names; ignored for other files
            of ours. None: the names in the file, or those of COCO if the number of classes matches, see `from_content`.

    Raises:
        WeightsError: the file is missing, damaged or not supported, the download failed, or `class_names` has another
            length than K.
    """
    where = str(source)
    torchvision.reject_unsupported(where)
    named = CATALOG[where].file if where in CATALOG else torchvision.WEIGHTS.get(where, where)
    downloaded = named is not where or is_url(where)
    if downloaded:
        path = hub_file(named, where, otherwise="give the path of other weights")
    else:
        if (reason := describe_other_scheme(where)) and not Path(source).exists():
            if where.startswith(_CATALOG):
                reason = f"no detector of this name in the original's catalogue{suggest(where, _DETECTORS)}"
            raise WeightsError(f"{where}: {reason}")
        path = find_weights(expand_user(source))
    try:
        is_pickle = path.suffix == ".pkl" and path.is_file() and not is_zip(path)  # the others are of torch.save
        content = load_pickle(path) if is_pickle else read(path, safe_globals=_SAFE_GLOBALS)
        ours = from_ours(content, path) if is_ours(content) else None
        state = _state_dict(content)
        if ours is None and _find_dialect(state):
            check_weights(state, where=where)
    except WeightsError as error:
        raise WeightsError(f"{error}{'; delete the file to download it again' if downloaded else ''}") from None
    if ours is None:
        checkpoint = from_content(content, where=where, class_names=class_names)
    elif class_names is None or ours.class_names:
        checkpoint = ours
    else:
        _require_count(class_names, len(ours.category_ids), where=where)
        checkpoint = replace(ours, class_names=tuple(class_names))
    warn_about_licence(checkpoint.licence, where, derived=ours is not None)
    return checkpoint


def from_fcos_core(
    state: Mapping[str, Tensor], *, class_names: Sequence[str] | None = None, where: str = "weights"
) -> Checkpoint:
    """Build a checkpoint from a state dict of the original.

    The tensors do not determine the whole detector: the config they were trained with is needed, too, see `Checkpoint`.

    Args:
        state: state dict without the prefix `module.`.
        class_names: [K], in the original's label order, which is the order of the categories in its JSON file. None:
            names of COCO if there are 80 classes, otherwise unknown.
        where: source of the weights, for messages.

    Raises:
        WeightsError: the class head is damaged, or `class_names` has another length than K.
    """
    detector = fcos_core.find_detector(state)
    assert detector is not None
    names = {fcos_core.rename(name, detector): name for name in state}
    weights = {name: state[old] for name, old in names.items()}
    section = _conventions_of(detector)
    converted = Converted(weights, names, {"model": {"name": detector, **section}})
    if detector == "rpn":  # it does not distinguish classes
        num_classes, class_names = 1, ("object",)
    else:
        num_classes = _count_classes(weights, detector, where=where)
    return _build_checkpoint(converted, "fcos_core", num_classes=num_classes, class_names=class_names, where=where)


def from_detectron(
    state: Mapping[str, Tensor], *, class_names: Sequence[str] | None = None, where: str = "weights"
) -> Checkpoint:
    """Build a checkpoint from the blobs of a detector of Detectron, in the conventions of the original.

    Args:
        state: arrays of the file by name.
        class_names: [K], see `from_fcos_core`.
        where: source of the weights, for messages.

    Raises:
        WeightsError: a blob is not supported, see `detectron.convert`, or as `from_fcos_core`.
    """
    tensors, names = detectron.convert(state, where=where)
    checkpoint = from_fcos_core(tensors, class_names=class_names, where=where)
    blobs_by_ours = {ours: names[name] for ours, name in checkpoint.original_names.items() if name in names}
    return replace(checkpoint, original_names=blobs_by_ours)


def _conventions_of(detector: str) -> dict[str, Any]:
    return {**_FCOS_CORE_CONVENTIONS, **(_ANCHOR_CONVENTIONS if detector != "fcos" else {})}


def _convert_with_conventions(
    project: Project,
    convert: Callable[..., Converted],
    state: Mapping[str, Tensor],
    *,
    class_names: Sequence[str] | None,
    where: str,
    stored: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """Build a checkpoint of a project whose config follows from the tensors; log the options that do not.

    Args:
        project: project of the weights.
        convert: function that converts them.
        state: tensors of the file by name.
        class_names: [K], see `from_content`.
        where: source of the weights, for messages.
        stored: options of section `model` that the file states, by dotted key.
    """
    converted = convert(state, where=where)
    weights, model = converted.weights, converted.config["model"]
    stored = stored or {}
    for key, value in stored.items():
        section, _, name = key.rpartition(".")
        part = model[section] if section else model
        part |= {name: value} if name in part else {}
    assumed = {
        "backbone.stride_in_1x1": model["backbone"].get("stride_in_1x1"),
        "channel_order": model["channel_order"],
    }
    for key in PIXELS:
        if key in weights and weights[key].numel() == 3:
            weights[key] = weights[key].reshape(3, 1, 1)
            model[key] = [round(value, 4) for value in weights[key].flatten().tolist()]  # without float32 noise
        else:
            assumed[key] = model[key]
    missing = {key: value for key, value in assumed.items() if value is not None and key not in stored}
    if missing:
        options = " ".join(f"model.{key}={as_option(value)}" for key, value in missing.items())
        log.info(
            "%s: using the values of %s's configs for options that weights do not determine: %s; if the detector was"
            " trained with others, give them",
            where,
            project,
            options,
        )
    num_classes = _count_classes(weights, model.get("name", DEFAULT_DETECTOR), where=where)
    return _build_checkpoint(converted, project, num_classes=num_classes, class_names=class_names, where=where)


def _count_classes(weights: Mapping[str, Tensor], detector: str, *, where: str) -> int:
    """Return the number of classes of a detector that distinguishes them."""
    if detector == "rcnn":
        return count_region_classes(weights, where=where)
    num_anchors = 1
    if detector == "retinanet":
        offsets = weights.get("head.offsets.weight")
        num_anchors = 0 if offsets is None else len(offsets) // 4
    return count_classes(weights, num_anchors=num_anchors, where=where)


def _build_checkpoint(
    converted: Converted,
    project: Project,
    *,
    num_classes: int,
    class_names: Sequence[str] | None,
    where: str,
) -> Checkpoint:
    """Build a checkpoint of converted weights for K classes."""
    if class_names is not None:
        _require_count(class_names, num_classes, where=where)
    classes = dict(enumerate(class_names or (), 1))
    coco_names = tuple(torchvision.COCO_CLASSES.values())
    if num_classes == len(coco_names) and (class_names is None or tuple(class_names) == coco_names):
        classes = torchvision.COCO_CLASSES
    keypoints = converted.weights.get(torchvision.KEYPOINTS)
    if class_names is None and num_classes == 1 and keypoints is not None:
        classes = torchvision.class_with_keypoints(len(keypoints))
    return Checkpoint(
        model=converted.weights,
        config=converted.config,
        class_names=tuple(classes.values()),
        category_ids=tuple(classes) or tuple(range(1, num_classes + 1)),
        keypoint_layout=torchvision.find_keypoint_layout(converted.weights),
        project=project,
        original_names=converted.names,
    )


def _require_count(class_names: Sequence[str], num_classes: int, *, where: str) -> None:
    if len(class_names) != num_classes:
        raise WeightsError(
            f"{where}: the weights have {plural(num_classes, 'class')}, but data.classes has"
            f" {plural(len(class_names), 'name')}"
        )


class _Converter(Protocol):
    def __call__(self, state: Mapping[str, Tensor], *, class_names: Sequence[str] | None, where: str) -> Checkpoint: ...


class _Dialect(NamedTuple):
    """Functions that recognise and convert the weights of one project."""

    recognizes: Callable[[Mapping[str, Tensor]], bool]
    convert: _Converter


_DIALECTS = [  # detectron2 comes first: its R-CNN also has the names by which torchvision's is recognised
    _Dialect(detectron2.recognizes, partial(_convert_with_conventions, "detectron2", detectron2.convert)),
    _Dialect(detectron.is_detector, from_detectron),
    _Dialect(torchvision.recognizes, torchvision.from_torchvision),
    _Dialect(lambda state: fcos_core.find_detector(state) is not None, from_fcos_core),
    _Dialect(adelaidet.recognizes, partial(_convert_with_conventions, "adelaidet", adelaidet.convert)),
    _Dialect(mmdetection.recognizes, partial(_convert_with_conventions, "mmdetection", mmdetection.convert)),
]


def from_content(content: Any, *, where: str, class_names: Sequence[str] | None = None) -> Checkpoint:
    """Build a checkpoint from the content of another project's weights file, as returned by `torch.load`.

    Args:
        content: state dict, or a dictionary that contains one. A prefix `module.` of all names is removed.
        where: source of the weights, for messages.
        class_names: [K], in the project's label order. None: the names in the file (mmdetection), or those of COCO if
            the number of classes matches, which is logged, otherwise unknown.

    Raises:
        WeightsError: the file is of no supported project or damaged, or `class_names` has another length than K.
    """
    state = _state_dict(content)
    dialect = _find_dialect(state)
    if dialect is None:
        raise WeightsError(f"{where}: {_describe_unknown(content, state)}")
    if class_names is None:
        class_names = mmdetection.class_names(content, state)
    convert, stored = dialect.convert, mmdetection.stored_options(content)
    if stored and dialect.recognizes is mmdetection.recognizes:
        convert = partial(_convert_with_conventions, "mmdetection", mmdetection.convert, stored=stored)
    checkpoint = convert(state, class_names=class_names, where=where)
    is_known = where in torchvision.WEIGHTS or checkpoint.config["model"].get("name") == "rpn"  # an RPN has no classes
    if checkpoint.class_names and class_names is None and not is_known:
        log.info(
            "%s: assuming that the %s those of COCO; if they are not, save the correct names with: fcos"
            " convert %s OUT data.classes=[NAME, ...]",
            where,
            "class is one of" if len(checkpoint.class_names) == 1 else f"{len(checkpoint.class_names)} classes are",
            where,
        )
    project_title = "" if detectron.is_detector(state) else _RESTRICTED_PROJECTS.get(checkpoint.project)
    training = solver_state(content)
    return replace(
        checkpoint,
        original=state,
        licence=_LICENCE.format(project_title) if project_title else "",
        iteration=training["iteration"] if training else 0,
        training=training,
    )


def _find_dialect(state: Mapping[str, Tensor]) -> _Dialect | None:
    return next((dialect for dialect in _DIALECTS if dialect.recognizes(state)), None)


def _state_dict(content: Any) -> dict[str, Tensor]:
    """Return the tensors of a file by name, taken out of any wrapper; empty if there are none."""
    if not isinstance(content, Mapping):
        return {}
    tensors = next((content[key] for key in _STATE_DICT_KEYS if isinstance(content.get(key), Mapping)), content)
    return without_module({str(name): tensor for name, tensor in tensors.items() if isinstance(tensor, Tensor)})


def _describe_unknown(content: Any, state: Mapping[str, Tensor]) -> str:
    expected = (
        "expected a file that `fcos train` wrote, a checkpoint of AdelaiDet's FCOS, of the FCOS, RetinaNet or R-CNN of"
        " detectron2, mmdetection or the original (fcos_core), a detector of Detectron (.pkl), or a state dict of"
        " torchvision's fcos_resnet50_fpn, or of its RetinaNet, Faster, Mask or Keypoint R-CNN with a ResNet-50"
    )
    if any(name in state for name in (*BACKBONE_TENSORS, "res2_0_branch2a_w")):
        return f"weights of a backbone: {expected}; to start from these weights, set model.backbone.weights=PATH"
    if state:
        return f"unknown weights format: {expected}, found the tensors {join_some(list(state))}"
    if isinstance(content, Mapping):
        found = f"the keys {join_some([str(key) for key in content])}" if content else "an empty dictionary"
    else:
        found = f"a {type(content).__name__}"
    return f"not the weights of a detector: {expected}, found {found}"


def with_fcos_core_conventions(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return a complete config of ours with the original FCOS's conventions, which its own YAML already implies."""
    model = {**tree["model"], **_conventions_of(tree["model"].get("name", DEFAULT_DETECTOR))}
    backbone = model["backbone"]
    if backbone["norm"] == "frozen_bn" and "norm_eps" in backbone:  # stride_in_1x1 as in its ImageNet weights
        resnet = {"norm_eps": 0.0, "stride_in_1x1": not backbone["name"].startswith("resnext")}
        model["backbone"] = {**backbone, **resnet}
    return {**tree, "model": model, "data": {**tree.get("data", {}), "convention": "fcos_core"}}
