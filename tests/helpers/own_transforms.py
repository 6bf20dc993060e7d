"""User-defined transforms for `data.transforms=own_transforms:FUNCTION`."""

from __future__ import annotations

import math
import os
import random
import signal
from collections import Counter
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info
from torchvision import tv_tensors
from torchvision.transforms import v2

Target = dict[str, Any]

# --------------------------------------------------------------------------------------------------- valid transforms

flip = v2.RandomHorizontalFlip(1.0)
pipeline = v2.Compose(
    [
        v2.RandomHorizontalFlip(),
        v2.RandomRotation((-20, 20)),
        v2.ScaleJitter((48, 48), (0.5, 1.5), antialias=True),
        v2.SanitizeBoundingBoxes(),
    ]
)


def identity(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    return image, target


def noise(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    """Replace the image by three bands of noise from the random generators of torch, numpy and Python."""
    _, height, width = image.shape
    bands = [
        torch.randint(256, (3, height, width), dtype=torch.uint8),
        torch.from_numpy(np.random.randint(0, 256, (3, height, width), dtype=np.uint8)),
        torch.tensor(random.choices(range(256), k=3 * height * width), dtype=torch.uint8).view(3, height, width),
    ]
    return torch.cat([bands[i][:, i * height // 3 : (i + 1) * height // 3] for i in range(3)], dim=1), target


def lists(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    """Return boxes and labels as lists, which are empty for images without objects."""
    return image, {"boxes": target["boxes"].tolist(), "labels": target["labels"].tolist()}


def moved(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    """Crop 20 pixels at the left and shift the boxes without clipping them."""
    boxes = target["boxes"].as_subclass(Tensor) - torch.tensor([20.0, 0.0, 20.0, 0.0])
    return image[:, :, 20:], {**target, "boxes": boxes}


def only_crowd(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    kept = target["labels"] < 0
    return image, {"boxes": target["boxes"][kept], "labels": target["labels"][kept]}


# ------------------------------------------------------------------------------------------------- invalid transforms

not_callable = 3


def without_target(image: Tensor) -> Tensor:
    return image


def raises(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    raise RuntimeError("the third augmentation is broken")


def raises_on_portraits(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    if image.shape[1] > image.shape[2]:
        raise RuntimeError("too tall")
    return image, target


def returns_none(image: Tensor, target: Target) -> None:
    return None


def image_alone(image: Tensor, target: Target) -> Tensor:
    return image


def other_keys(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    return image, {"bboxes": target["boxes"], "labels": target["labels"]}


def dictionary(image: Tensor, target: Target) -> Target:
    return {"image": image, "boxes": target["boxes"]}


def float_image(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    return image / 255, target


def channels_last(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    return image.permute(1, 2, 0), target


def array_image(image: Tensor, target: Target) -> tuple[np.ndarray, Target]:
    return image.numpy(), target


def huge_image(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    return torch.zeros(3, 2000, 2001, dtype=torch.uint8), target


def large_image(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    return torch.zeros(3, 2000, 2000, dtype=torch.uint8), target


def image_elsewhere(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    return image.to("meta"), target


def boxes_elsewhere(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    return image, {**target, "boxes": target["boxes"].to("meta")}


def no_pixels(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    return image[:, :0], target


def label_missing(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    return image, {**target, "labels": target["labels"][1:]}


def box_missing(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    return image, {**target, "boxes": target["boxes"][1:]}


def float_labels(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    return image, {**target, "labels": target["labels"].float()}


def labels_from_one(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    return image, {**target, "labels": target["labels"] + 1}


def no_boxes(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    return image, {**target, "boxes": None}


def boxes_with_scores(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    return image, {**target, "boxes": torch.cat([target["boxes"], target["boxes"][:, :1]], dim=1)}


def no_objects(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    return image, {"boxes": target["boxes"][:0], "labels": target["labels"][:0]}


def fractions(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    """Boxes in 0..1 instead of pixels."""
    height, width = image.shape[1:]
    return image, {**target, "boxes": target["boxes"] / torch.tensor([width, height, width, height])}


def infinite(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    return image, {**target, "boxes": target["boxes"] + torch.tensor([0.0, 0.0, math.inf, math.inf])}


def not_a_number(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    return image, {**target, "boxes": target["boxes"] / torch.tensor([1.0, 0.0, 1.0, 1.0])}


def xywh(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    boxes = v2.ConvertBoundingBoxFormat(tv_tensors.BoundingBoxFormat.XYWH)(target["boxes"])
    return image, {**target, "boxes": boxes}


def plain_xywh(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    _, converted = xywh(image, target)
    return image, {**target, "boxes": converted["boxes"].as_subclass(Tensor)}


def is_wrapped(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    """Check that the arguments have the types that torchvision's transforms expect."""
    boxes = target["boxes"]
    assert isinstance(image, tv_tensors.Image)
    assert image.dtype == torch.uint8
    assert image.is_contiguous()
    assert isinstance(boxes, tv_tensors.BoundingBoxes)
    assert boxes.format == tv_tensors.BoundingBoxFormat.XYXY
    assert boxes.canvas_size == tuple(image.shape[1:])
    assert boxes.dtype == torch.float32
    assert target["labels"].dtype == torch.int64
    assert sorted(target) == ["boxes", "labels"]
    return image, target


# ------------------------------------------------------------------------------------------------- transforms that fail

_calls: Counter[int] = Counter()  # by process, because forked workers inherit it


def kill_worker(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    """Kill the loader worker in its 13th call, as the system does if it runs out of memory."""
    _calls[os.getpid()] += 1
    if get_worker_info() is not None and _calls[os.getpid()] == 13:
        os.kill(os.getpid(), signal.SIGKILL)
    return image, target
