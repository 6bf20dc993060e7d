"""Rows of classes in torchvision's weights, whose labels start at 1.

Shape letters: R blocks, K classes, P rows of a class in a block, A anchors per location.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ...errors import WeightsError
from ...formatting import plural
from ...models.detector import ClassRows
from ..architecture import CLASS_HEAD, count_classes, count_region_classes

Weights = dict[str, Tensor]
_BOX_LOGITS = "box.logits."
# Biases of rows without a class in weights for torchvision. Their sigmoid scores are below 0.01 everywhere, and their
# softmax scores are 0, so that those of the classes do not change.
_UNUSED_SIGMOID_BIAS, _UNUSED_SOFTMAX_BIAS = -10.0, -1000.0


class ClassLayout:
    """Layout of the rows of classes in a detector's weights under our names.

    Args:
        weights: tensors by our names, with the class rows of either project.
        where: source of the weights, for messages.

    Attributes:
        num_labels: number of torchvision's labels, background (label 0) included, if the rows are torchvision's.
        first_label: torchvision's label of the first class row. 0: background is a class like all others, and never
            learned (sigmoid scores); 1: it is not a class (softmax scores).

    Raises:
        WeightsError: the class head is damaged.
    """

    def __init__(self, weights: Mapping[str, Tensor], *, where: str):
        self.rows: dict[str, ClassRows] = {}
        if f"{_BOX_LOGITS}bias" in weights:
            self.logits, self.first_label = _BOX_LOGITS, 1
            self.num_labels = 1 + count_region_classes(weights, where=where)
            self.rows = {"box.offsets.": ClassRows(before=4, per_class=4), "heads.mask.logits.": ClassRows(before=1)}
            self.rows[_BOX_LOGITS] = ClassRows(before=1)
        else:
            self.logits, self.first_label = CLASS_HEAD, 0
            offsets = weights.get("head.offsets.weight")
            num_anchors = 1 if offsets is None else len(offsets) // 4
            self.num_labels = count_classes(weights, num_anchors=num_anchors, where=where)
            self.rows[CLASS_HEAD] = ClassRows(repeats=num_anchors)
        for name, rows in self._parameters(weights):
            count, shape = rows.count(self.num_labels - self.first_label), list(weights[name].shape)
            if shape[:1] != [count]:
                raise WeightsError(
                    f"{where}: damaged weights: the class head has {plural(self.num_labels, 'row')}, so {name} must"
                    f" have {count}, found the shape {shape}"
                )

    def _parameters(self, weights: Mapping[str, Tensor]) -> list[tuple[str, ClassRows]]:
        names = [(f"{layer}{kind}", rows) for layer, rows in self.rows.items() for kind in ("weight", "bias")]
        return [(name, rows) for name, rows in names if name in weights]

    @property
    def unused_bias(self) -> float:
        """Bias of class-head rows without a class in weights for torchvision."""
        return _UNUSED_SOFTMAX_BIAS if self.first_label else _UNUSED_SIGMOID_BIAS

    def used_labels(self, weights: Mapping[str, Tensor]) -> list[int]:
        """Return torchvision's labels except background whose rows are not the filler rows of `insert`."""
        blocks = {
            kind: _split(weights[f"{self.logits}{kind}"], self.rows[self.logits])[1] for kind in ("weight", "bias")
        }
        is_used = (blocks["bias"] != self.unused_bias).any(dim=2) | blocks["weight"].flatten(2).any(dim=2)  # [R, K]
        return [label for label in range(1, self.num_labels) if is_used[:, label - self.first_label].any()]

    def select(self, weights: Mapping[str, Tensor], labels: Sequence[int]) -> Weights:
        """Return the parameters with class rows, with those of torchvision's `labels` only."""
        classes = [label - self.first_label for label in labels]
        selected = {}
        for name, rows in self._parameters(weights):
            before, blocks = _split(weights[name], rows)
            selected[name] = _join(before, blocks[:, classes])
        return selected

    def insert(self, weights: Mapping[str, Tensor], labels: Sequence[int]) -> Weights:
        """Return the parameters with class rows at torchvision's `labels`, and filler rows at the others."""
        classes = [label - self.first_label for label in labels]
        inserted = {}
        for name, rows in self._parameters(weights):
            before, blocks = _split(weights[name], rows)
            fill_value = self.unused_bias if name == f"{self.logits}bias" else 0.0
            spread = blocks.new_full((len(blocks), max(classes) + 1, *blocks.shape[2:]), fill_value)
            spread[:, classes] = blocks
            inserted[name] = _join(before, spread)
        return inserted


def _split(tensor: Tensor, rows: ClassRows) -> tuple[Tensor, Tensor]:
    """Return the rows [R, before, ...] of no class and the rows [R, K, P, ...] of classes."""
    blocks = tensor.unflatten(0, (rows.repeats, -1))
    before, classes = blocks.split([rows.before, blocks.shape[1] - rows.before], dim=1)
    return before, classes.unflatten(1, (classes.shape[1] // rows.per_class, rows.per_class))


def _join(before: Tensor, blocks: Tensor) -> Tensor:
    """Concatenate the results of `_split`."""
    return torch.cat([before, blocks.flatten(1, 2)], dim=1).flatten(0, 1)
