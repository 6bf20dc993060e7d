"""Which detections an index selects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, SupportsIndex

import numpy as np
import pytest
import torch
from torch import Tensor

from fcos.structures import Instances

FOUND = Instances(
    boxes=torch.arange(12.0).reshape(3, 4),
    labels=torch.tensor([1, 0, 1]),
    scores=torch.tensor([0.9, 0.7, 0.2]),
    size=(30, 40),
    class_names=("cat", "dog"),
)


@pytest.mark.parametrize(
    ("index", "places"),
    [
        (0, [0]),
        (-1, [2]),
        (torch.tensor(1), [1]),
        (np.int64(1), [1]),
        (np.array(-1), [2]),
        (np.array([2, 0]), [2, 0]),
        (slice(1, None), [1, 2]),
        ([2, 0], [2, 0]),
        ([], []),
        ((), []),
        ([True, False, True], [0, 2]),
        (torch.tensor([False, True, False]), [1]),
        (torch.tensor([False] * 3), []),
        (torch.tensor([2, -2]), [2, 1]),
    ],
)
def test_an_index_selects_detections(index: SupportsIndex | Tensor | slice | Sequence[int], places: list[int]) -> None:
    picked = FOUND[index]
    assert len(picked) == len(places)
    assert torch.equal(picked.boxes, FOUND.boxes[torch.tensor(places, dtype=torch.int64)])
    assert picked.scores.tolist() == [FOUND.scores[place].item() for place in places]
    assert picked.names == [FOUND.names[place] for place in places]
    assert picked.size == FOUND.size


@pytest.mark.parametrize("index", [3, -4, torch.tensor(3), np.int64(3), [3]])
def test_a_detection_that_is_not_there_is_an_index_error(index: SupportsIndex | Tensor | Sequence[int]) -> None:
    with pytest.raises(IndexError):
        FOUND[index]


@pytest.mark.parametrize("index", [True, np.True_, torch.tensor(True), np.array(True), 1.0, torch.tensor(1.0), None])
def test_a_value_that_is_no_whole_number_is_a_type_error(index: Any) -> None:
    with pytest.raises(TypeError):
        FOUND[index]


def test_a_bool_is_told_what_a_mask_is() -> None:
    with pytest.raises(TypeError, match="expected a number or a mask of 3 bools, found True"):
        FOUND[True]


def test_a_loop_yields_every_detection_alone() -> None:
    singles = list(FOUND)
    assert [len(single) for single in singles] == [1, 1, 1]
    assert [single.names for single in singles] == [["dog"], ["cat"], ["dog"]]
    assert torch.equal(torch.cat([single.boxes for single in singles]), FOUND.boxes)


def test_nothing_found_is_an_empty_loop() -> None:
    assert list(FOUND[[]]) == []
