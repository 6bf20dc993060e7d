"""Conversion of weights of torchvision's FCOS, RetinaNet, Faster, Mask and Keypoint R-CNN, with its exact conventions,
in both directions.

On the same network input the detections are the same. The input itself differs slightly: torchvision downscales images
by bilinear interpolation without antialiasing. This project, like the original FCOS, uses Pillow's bilinear filter,
which averages over all pixels.

torchvision's labels start at 1: row 0 of the class head is "background", which has no positive examples in FCOS and
RetinaNet. Its COCO weights have one row for each of the category ids 0..90, eleven of which are not classes of COCO.
Such rows are removed here, as are the filler rows that `to_torchvision` adds. The category id of each remaining row is
torchvision's label. In R-CNN, whose class scores add up to 1, the removal of a row divides the other scores of a box by
1 minus the score of this row, which the training of the COCO weights drives towards 0.

torchvision's first RetinaNet and R-CNN were trained with a frozen batch norm that had no epsilon. Weights with frozen
batch norm and the tensor names of that time (before torchvision 0.13) get `norm_eps=0`, as in torchvision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection import FCOS_ResNet50_FPN_Weights

from ...checkpoint import Checkpoint
from ...choices import Project
from ...config.detectors import DETECTORS
from ...config.options import free_options, in_effect, options_of
from ...config.text import flatten
from ...errors import WeightsError
from ...formatting import plural
from ...keypoints import COCO_PERSON, UNNAMED, KeypointLayout
from ..architecture import changeable_options, require_same
from .architectures import ARCHITECTURES, PIXELS, WEIGHTS, choose_architecture, find_architecture, recognizes
from .classes import ClassLayout

__all__ = ["COCO_CLASSES", "WEIGHTS", "from_torchvision", "model_config", "recognizes", "to_torchvision"]

COCO_CLASSES = {
    i: name
    for i, name in enumerate(FCOS_ResNet50_FPN_Weights.COCO_V1.meta["categories"])
    if name not in ("__background__", "N/A")
}
"""Category ids and names of the 80 classes of COCO."""
UNSUPPORTED = ("torchvision/fasterrcnn_mobilenet_v3_large_fpn", "torchvision/fasterrcnn_mobilenet_v3_large_320_fpn")
"""Names of torchvision's weights whose backbone this project does not have."""

_NUM_COCO_ROWS = 91
_COCO_LABELS = range(1, _NUM_COCO_ROWS)
_NUM_COCO_KEYPOINTS = 17
_PERSON = {1: COCO_CLASSES[1]}
_EPSILON = 1e-5
"""Epsilon of torchvision's batch norm, also of its frozen one."""
KEYPOINTS = "heads.keypoints.logits.bias"
"""Name of a tensor with one row per keypoint."""


def class_with_keypoints(count: int) -> dict[int, str]:
    """Return category id and name of the class of COCO with this number of keypoints; empty if there is none."""
    return {**_PERSON} if count == _NUM_COCO_KEYPOINTS else {}


def find_keypoint_layout(weights: Mapping[str, Tensor]) -> KeypointLayout:
    """Return the layout of COCO's persons if the weights, under our names, predict 17 keypoints."""
    return COCO_PERSON if len(weights.get(KEYPOINTS, ())) == _NUM_COCO_KEYPOINTS else UNNAMED


def reject_unsupported(name: str) -> None:
    """Raise an error if a name is one of `UNSUPPORTED`.

    Raises:
        WeightsError: weights that torchvision has, but for a backbone that this project lacks.
    """
    if name in UNSUPPORTED:
        raise WeightsError(
            f"{name}: this project has no MobileNetV3, the backbone of these weights; supported names:"
            f" {', '.join(WEIGHTS)}"
        )


def to_our_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename torchvision's tensors to our names. Unknown names and all rows of the class head are kept."""
    architecture = ARCHITECTURES[find_architecture(state)]
    return {architecture.to_our_name(name): tensor for name, tensor in state.items()}


def model_config(name: str, *, frozen_norm: bool = True, norm_eps: float = _EPSILON) -> dict[str, Any]:
    """Return a `model` section that reproduces a detector of torchvision.

    Args:
        name: name of the function that builds it, such as `fcos_resnet50_fpn`.
        frozen_norm: freeze batch norm, stem and C2, as torchvision does when it starts from ImageNet weights.
        norm_eps: epsilon of the batch norm of the backbone.
    """
    backbone = {
        "name": "resnet50",
        "weights": None,
        "norm": "frozen_bn" if frozen_norm else "bn",
        "frozen_stages": 2 if frozen_norm else 0,
        "norm_eps": norm_eps,
    }
    return {"backbone": backbone, **ARCHITECTURES[name].section}


def from_torchvision(
    state: Mapping[str, Tensor], *, class_names: Sequence[str] | None = None, where: str = "weights"
) -> Checkpoint:
    """Build a checkpoint from a state dict of one of torchvision's detectors with a ResNet-50-FPN.

    Args:
        state: state dict with any number of classes.
        class_names: [K], in label order. None: names of COCO if the class head has 91 rows, as in torchvision's own
            weights, and uses the rows of all COCO classes, or if it has a single class with 17 keypoints (person);
            otherwise unknown.
        where: source of the weights, for messages.

    Raises:
        WeightsError: the backbone is not supported, the class head is damaged or has no class, or `class_names` has
            another length than K.
    """
    _require_resnet(state, where=where)
    name = find_architecture(state)
    architecture = ARCHITECTURES[name]
    weights = to_our_names(state)
    layout = ClassLayout(weights, where=where)
    classes = _find_classes(weights, layout, class_names, where=where)
    weights |= layout.select(weights, tuple(classes))
    weights |= {key: torch.tensor(values).view(3, 1, 1) for key, values in PIXELS.items()}
    is_frozen = not any(key.startswith("backbone.body.") and key.endswith(".num_batches_tracked") for key in state)
    is_old = architecture.had_no_epsilon and "backbone.fpn.inner_blocks.0.weight" in state
    section = model_config(name, frozen_norm=is_frozen, norm_eps=0.0 if is_frozen and is_old else _EPSILON)
    data = {"short_side": [800], "max_side": 1333}
    if "mask" in section:
        data["masks"] = True
    if KEYPOINTS in weights:
        data["keypoints"] = True
        section["keypoints"] = {**section["keypoints"], "num_keypoints": len(weights[KEYPOINTS])}
    return Checkpoint(
        model=weights,
        config={"model": section, "data": data},
        class_names=tuple(name for name in classes.values() if name is not None),
        category_ids=tuple(classes),
        keypoint_layout=find_keypoint_layout(weights),
        project="torchvision",
        original_names={architecture.to_our_name(name): name for name in state},
    )


def _require_resnet(state: Mapping[str, Tensor], *, where: str) -> None:
    """Raise a WeightsError if the backbone is a MobileNet or a deeper ResNet, the others that torchvision builds."""
    if "backbone.body.0.0.weight" in state or "backbone.body.layer3.6.conv1.weight" in state:
        raise WeightsError(
            f"{where}: expected a detector of torchvision with a ResNet-50 and a feature pyramid, found another"
            " backbone; torchvision's names of supported detectors: " + ", ".join(ARCHITECTURES)
        )


def _find_classes(
    weights: Mapping[str, Tensor], layout: ClassLayout, class_names: Sequence[str] | None, *, where: str
) -> dict[int, str | None]:
    """Return the names, or None, of the classes by torchvision's label."""
    labels = layout.used_labels(weights)
    num_rows = plural(layout.num_labels, "row")
    if not labels:
        raise WeightsError(
            f"{where}: expected at least one class besides background, found a class head with background only"
            f" ({num_rows})"
        )
    if class_names is not None:
        if len(class_names) != len(labels):
            raise WeightsError(
                f"{where}: the weights have {plural(len(labels), 'class')} (the class head has {num_rows}; row 0 is"
                f" background), but data.classes has {plural(len(class_names), 'name')}"
            )
        return dict(zip(labels, class_names, strict=True))
    if layout.num_labels == _NUM_COCO_ROWS and COCO_CLASSES.keys() <= set(labels):
        return {**COCO_CLASSES}
    if labels == list(_PERSON) and (person := class_with_keypoints(len(weights.get(KEYPOINTS, ())))):
        return {**person}
    return dict.fromkeys(labels)


def to_torchvision(checkpoint: Checkpoint, *, where: str = "weights") -> dict[str, Tensor]:
    """Build a state dict for one of torchvision's functions, called with `num_classes=ROWS`.

    ROWS is the number of labels, including background: the length of the bias of the class head, divided by the number
    of anchors (9) for RetinaNet.

    Args:
        checkpoint: detector with torchvision's conventions, for example one fine-tuned from its weights. Its category
            ids become torchvision's labels if all are in 1..90; otherwise the labels are 1..K in our order.
        where: source of the weights, for messages.

    Raises:
        WeightsError: torchvision's model cannot compute this detector.
    """
    section = checkpoint.config["model"]
    config = DETECTORS[section.get("name", "fcos")].model_validate(section).model_dump()
    name = choose_architecture(config)
    if name is None:
        raise WeightsError(
            f"{where}: weights of {config['name']}, but torchvision supports only FCOS, RetinaNet and R-CNN"
        )
    weights = {key: tensor for key, tensor in checkpoint.model.items() if key not in PIXELS}
    if ARCHITECTURES[name].had_no_epsilon and config["backbone"].get("norm_eps") == 0:
        weights |= _with_epsilon(weights)
        config["backbone"]["norm_eps"] = _EPSILON
    _require_same(config, name, project=checkpoint.project, where=where)
    category_ids = checkpoint.category_ids
    labels = category_ids if all(i in _COCO_LABELS for i in category_ids) else range(1, len(category_ids) + 1)
    weights |= ClassLayout(weights, where=where).insert(weights, labels)
    return {ARCHITECTURES[name].to_torchvision_name(key): tensor for key, tensor in weights.items()}


def _with_epsilon(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the factors of the backbone's batch norm with which it computes the same with torchvision's epsilon."""
    factors = {}
    for name, variance in weights.items():
        if name.startswith("backbone.") and name.endswith(".running_var"):
            factor = name.removesuffix("running_var") + "weight"
            ratio = (variance + _EPSILON) / variance.clamp(min=torch.finfo(variance.dtype).tiny)
            factors[factor] = weights[factor] * ratio.sqrt()
    return factors


def torchvision_name(name: str, section: Mapping[str, Any]) -> str:
    """Return torchvision's name of a tensor of the detector with this complete `model` section."""
    architecture = choose_architecture(section)
    return name if architecture is None else ARCHITECTURES[architecture].to_torchvision_name(name)


def _require_same(config: Mapping[str, Any], name: str, *, project: Project, where: str) -> None:
    """Raise an error unless a detector of torchvision computes the same.

    Args:
        config: complete `model` section of our detector.
        name: name of torchvision's function.
        project: project that wrote the weights.
        where: source of the weights, for messages.

    Raises:
        WeightsError: an option differs.
    """
    config_class = DETECTORS[config["name"]]
    ours = flatten(config)
    theirs = flatten(config_class.model_validate(model_config(name)).model_dump())
    for values in (ours, theirs):
        values["backbone.norm"] = "gn" if values["backbone.norm"] == "gn" else "bn"  # frozen or trainable
    options = options_of(config_class)
    free = [*free_options(options, "torchvision"), "keypoints.num_keypoints"]  # an argument of torchvision's function
    require_same(
        in_effect(ours, options),
        theirs,
        free=free,
        changeable=changeable_options(options, project),
        where=where,
        project=f"torchvision's {name}",
    )
