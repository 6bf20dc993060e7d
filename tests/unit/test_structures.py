"""Ground truth and detections: their columns, joining and splitting, indices, clipping."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import FrozenInstanceError, replace
from typing import Any, SupportsIndex

import numpy as np
import pytest
import torch
from hotcoco import mask as coco_mask
from torch import Tensor

from fcos.keypoints import KeypointLayout
from fcos.masks import Masks, paste
from fcos.structures import Instances, Objects

BOXES, LABELS, SCORES = torch.zeros(2, 4), torch.tensor([0, 1]), torch.tensor([0.5, 0.25])
FOUND = Instances(
    boxes=torch.arange(12.0).reshape(3, 4),
    labels=torch.tensor([1, 0, 1]),
    scores=torch.tensor([0.9, 0.7, 0.2]),
    size=(30, 40),
    class_names=("cat", "dog"),
)


# -------------------------------------------------------------------------------------------------------------- indices


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
def test_index_selects_detections(index: SupportsIndex | Tensor | slice | Sequence[int], places: list[int]) -> None:
    picked = FOUND[index]
    assert len(picked) == len(places)
    assert torch.equal(picked.boxes, FOUND.boxes[torch.tensor(places, dtype=torch.int64)])
    assert picked.scores.tolist() == [FOUND.scores[place].item() for place in places]
    assert picked.names == [FOUND.names[place] for place in places]
    assert picked.size == FOUND.size


@pytest.mark.parametrize("index", [3, -4, torch.tensor(3), np.int64(3), [3]])
def test_out_of_range_index_raises_index_error(index: SupportsIndex | Tensor | Sequence[int]) -> None:
    with pytest.raises(IndexError):
        FOUND[index]


@pytest.mark.parametrize("index", [True, np.True_, torch.tensor(True), np.array(True), 1.0, torch.tensor(1.0), None])
def test_non_integer_index_raises_type_error(index: Any) -> None:
    with pytest.raises(TypeError):
        FOUND[index]


def test_bool_index_error_explains_the_expected_mask() -> None:
    with pytest.raises(TypeError, match="expected an integer or a mask of 3 bools, found True"):
        FOUND[True]


def test_iteration_yields_single_detections() -> None:
    singles = list(FOUND)
    assert [len(single) for single in singles] == [1, 1, 1]
    assert [single.names for single in singles] == [["dog"], ["cat"], ["dog"]]
    assert torch.equal(torch.cat([single.boxes for single in singles]), FOUND.boxes)


def test_iteration_over_no_detections_yields_nothing() -> None:
    assert list(FOUND[[]]) == []


# -------------------------------------------------------------------------------------------------------------- columns


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"boxes": torch.zeros(2, 5)}, "Objects.boxes: expected [2, 4] floating-point, found [2, 5] float32"),
        ({"boxes": torch.zeros(8)}, "Objects.boxes: expected [8, 4] floating-point, found [8] float32"),
        ({"boxes": BOXES[None]}, "Objects.boxes: expected [1, 4] floating-point, found [1, 2, 4] float32"),
        ({"boxes": BOXES.long()}, "Objects.boxes: expected [2, 4] floating-point, found [2, 4] int64"),
        ({"boxes": BOXES[:1]}, "Objects.labels: expected [1] int64, found [2] int64"),
        ({"labels": LABELS.float()}, "Objects.labels: expected [2] int64, found [2] float32"),
        ({"labels": LABELS.int()}, "Objects.labels: expected [2] int64, found [2] int32"),
        ({"labels": LABELS[:, None]}, "Objects.labels: expected [2] int64, found [2, 1] int64"),
        ({"is_crowd": LABELS}, "Objects.is_crowd: expected [2] bool, found [2] int64"),
        ({"is_crowd": LABELS[:1] > 0}, "Objects.is_crowd: expected [2] bool, found [1] bool"),
        ({"boxes": torch.tensor(1.0)}, "Objects.boxes: expected [0, 4] floating-point, found [] float32"),
        ({"boxes": [[0.0] * 4]}, "Objects.boxes: expected a tensor [0, 4] floating-point, found list"),
        ({"labels": [0, 1]}, "Objects.labels: expected a tensor [2] int64, found list"),
    ],
)
def test_objects_reject_invalid_fields(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Objects(**{"boxes": BOXES, "labels": LABELS, **columns})


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"boxes": torch.zeros(2, 5)}, "Instances.boxes: expected [2, 4] floating-point, found [2, 5] float32"),
        ({"boxes": BOXES.int()}, "Instances.boxes: expected [2, 4] floating-point, found [2, 4] int32"),
        ({"labels": LABELS[:1]}, "Instances.labels: expected [2] int64, found [1] int64"),
        ({"labels": SCORES}, "Instances.labels: expected [2] int64, found [2] float32"),
        ({"scores": SCORES[:, None]}, "Instances.scores: expected [2] floating-point, found [2, 1] float32"),
        ({"scores": LABELS}, "Instances.scores: expected [2] floating-point, found [2] int64"),
        ({"scores": torch.zeros(3)}, "Instances.scores: expected [2] floating-point, found [3] float32"),
        ({"size": (30,)}, "Instances.size: expected (height, width), two positive integers, found (30,)"),
        ({"size": (30.0, 40)}, "Instances.size: expected (height, width), two positive integers, found (30.0, 40)"),
        ({"size": (0, 40)}, "Instances.size: expected (height, width), two positive integers, found (0, 40)"),
        ({"class_names": "cat"}, "Instances.class_names: expected a tuple of strings, found 'cat'"),
        ({"class_names": (1, 2)}, "Instances.class_names: expected a tuple of strings, found (1, 2)"),
    ],
)
def test_instances_reject_invalid_fields(columns: dict[str, Any], message: str) -> None:
    given = {"boxes": BOXES, "labels": LABELS, "scores": SCORES, "size": (30, 40), **columns}
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Instances(**given)


def test_columns_cannot_be_reassigned() -> None:
    for made in (Objects(BOXES, LABELS), FOUND):
        with pytest.raises(FrozenInstanceError):
            made.boxes = BOXES  # pyright: ignore[reportAttributeAccessIssue]


def test_is_crowd_defaults_to_false() -> None:
    assert Objects(BOXES, LABELS).is_crowd.tolist() == [False, False]
    assert Objects(BOXES, LABELS, LABELS > 0).is_crowd.tolist() == [False, True]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_boxes_and_scores_accept_any_floating_point_dtype(dtype: torch.dtype) -> None:
    assert Objects(BOXES.to(dtype), LABELS).boxes.dtype == dtype
    assert Instances(BOXES.to(dtype), LABELS, SCORES.to(dtype), (30, 40)).scores.dtype == dtype


# --------------------------------------------------------------------------------------------------- joining, splitting


def random_objects(count: int) -> Objects:
    return Objects(torch.rand(count, 4), torch.randint(5, (count,)), torch.rand(count) < 0.5)


def columns_of(objects: Objects) -> tuple[list[list[float]], list[int], list[bool]]:
    return objects.boxes.tolist(), objects.labels.tolist(), objects.is_crowd.tolist()


@pytest.mark.parametrize("counts", [[3], [2, 4, 1], [0, 3, 0], [0], [0, 0]])
def test_split_is_the_inverse_of_concatenate(counts: list[int]) -> None:
    images = [random_objects(count) for count in counts]
    together = Objects.concatenate(images)
    assert len(together) == sum(counts)
    assert together.boxes.shape == (sum(counts), 4)
    assert [columns_of(image) for image in together.split(counts)] == [columns_of(image) for image in images]


def test_concatenate_keeps_the_order() -> None:
    first, second = random_objects(2), random_objects(3)
    together = Objects.concatenate([first, second])
    assert columns_of(together[:2]) == columns_of(first)
    assert columns_of(together[torch.arange(5) >= 2]) == columns_of(second)


@pytest.mark.parametrize("counts", [[2, 2], [2, 4]])
def test_split_counts_must_sum_to_the_number_of_objects(counts: list[int]) -> None:
    with pytest.raises(RuntimeError, match="split_with_sizes expects split_sizes to sum exactly to 5"):
        random_objects(5).split(counts)


# ------------------------------------------------------------------------------------------------------------- clipping


def test_clip_moves_corners_into_the_image() -> None:
    boxes = torch.tensor([[-5.0, -6.0, 500.0, 600.0], [10.0, 11.0, 12.5, 13.0], [70.0, -9.0, 90.0, -1.0]])
    found = replace(FOUND, boxes=boxes, size=(30, 40))
    clipped = found.clip()
    assert clipped.boxes.tolist() == [[0, 0, 40, 30], [10, 11, 12.5, 13], [40, 0, 40, 0]]
    assert clipped.scores.tolist() == found.scores.tolist()
    assert (clipped.names, clipped.size) == (found.names, found.size)
    assert torch.equal(found.boxes, boxes)


def test_clip_of_no_detections_returns_no_detections() -> None:
    assert FOUND[[]].clip().boxes.shape == (0, 4)


# ------------------------------------------------------------------------------------------------- masks and keypoints

WITH_ALL = replace(
    FOUND,
    boxes=torch.tensor([[2.0, 2.0, 20.0, 10.0], [10.0, 5.0, 40.0, 30.0], [30.0, 20.0, 40.0, 30.0]]),
    mask_grids=torch.ones(3, 28, 28),
    keypoints=torch.arange(18.0).reshape(3, 2, 3),
)


def test_masks_of_detections_are_pasted_into_the_frame() -> None:
    assert WITH_ALL.masks is not None
    last_pixels = WITH_ALL.boxes - torch.tensor([0.0, 0.0, 1.0, 1.0])
    pasted = torch.stack(list(paste(torch.ones(3, 28, 28), last_pixels, (30, 40))))
    assert torch.equal(WITH_ALL.masks, pasted > 0.5)
    empty = WITH_ALL[:0].masks
    assert empty is not None
    assert empty.shape == (0, 30, 40)
    assert FOUND.masks is None
    assert FOUND.mask_codes() is None


def test_masks_and_keypoints_follow_their_detections() -> None:
    picked = WITH_ALL[[2, 0]]
    assert picked.keypoints is not None
    assert picked.keypoints[:, 0, 0].tolist() == [12, 0]
    joined = Instances.concatenate([WITH_ALL[:1], WITH_ALL[1:]])
    assert joined.keypoints is not None
    assert torch.equal(joined.keypoints, torch.arange(18.0).reshape(3, 2, 3))
    assert joined.mask_grids is not None
    assert len(joined.mask_grids) == 3
    with pytest.raises(ValueError, match="same columns in all parts"):
        Instances.concatenate([WITH_ALL, FOUND])


def test_resizing_scales_keypoints_and_masks() -> None:
    resized = WITH_ALL.resize_to((60, 40))
    assert resized.keypoints is not None
    assert resized.keypoints[0].tolist() == [[0, 2, 2], [3, 8, 5]]
    assert resized.masks is not None
    larger = replace(WITH_ALL, boxes=WITH_ALL.boxes * torch.tensor([1.0, 2.0, 1.0, 2.0]), size=(60, 40)).masks
    assert larger is not None
    assert torch.equal(resized.masks, larger)


def test_dictionary_contains_masks_and_keypoints_in_coco_form() -> None:
    first = WITH_ALL.to_dict()["detections"][0]
    assert first["keypoints"] == [0, 1, 2, 3, 4, 5]
    assert WITH_ALL.masks is not None
    np.testing.assert_array_equal(coco_mask.decode(first["segmentation"]), WITH_ALL.masks[0])
    assert "segmentation" not in FOUND.to_dict()["detections"][0]
    assert "keypoints" not in FOUND.to_dict()["detections"][0]
    assert json.loads(WITH_ALL.to_json()) == WITH_ALL.to_dict()


def test_ground_truth_keeps_masks_and_keypoints_with_their_boxes() -> None:
    masks = Masks.from_polygons([[[0, 0, 4, 0, 0, 4]], [[5, 5, 9, 5, 5, 9]]])
    objects = Objects(BOXES, LABELS, masks=masks, keypoints=torch.arange(12.0).reshape(2, 2, 3))
    second = objects[torch.tensor([False, True])]
    assert second.masks is not None
    assert second.masks.boxes().tolist() == [[5, 5, 9, 9]]
    parts = Objects.concatenate([objects, second]).to("cpu").split([2, 1])
    assert parts[1].masks is not None
    assert parts[1].masks.boxes().tolist() == [[5, 5, 9, 9]]
    assert parts[1].keypoints is not None
    assert parts[1].keypoints.tolist() == [[[6, 7, 8], [9, 10, 11]]]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"masks": Masks.empty(3)}, "Objects.masks: expected Masks of 2 objects, found 3"),
        ({"masks": torch.zeros(2, 3, 3)}, "Objects.masks: expected Masks of 2 objects, found Tensor"),
        ({"keypoints": torch.zeros(2, 5, 2)}, "Objects.keypoints: expected [2, P, 3] floating-point, found [2, 5, 2]"),
    ],
)
def test_wrong_masks_and_keypoints_are_errors(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Objects(BOXES, LABELS, **columns)


def test_mask_grids_must_be_square() -> None:
    with pytest.raises(ValueError, match=re.escape("Instances.mask_grids: expected [3, S, S]")):
        replace(FOUND, mask_grids=torch.zeros(3, 28, 14))


def test_supervision_gets_masks_and_keypoints() -> None:
    pytest.importorskip("supervision")
    detections = WITH_ALL.to_supervision()
    assert detections.mask is not None
    assert WITH_ALL.masks is not None
    np.testing.assert_array_equal(detections.mask, WITH_ALL.masks)
    assert np.shape(detections.data["keypoints"]) == (3, 2, 3)
    assert detections.metadata == {}
    layout = KeypointLayout(("head", "tail"), ((0, 1),))
    metadata = replace(WITH_ALL, keypoint_layout=layout).to_supervision().metadata
    assert metadata == {"keypoint_names": ["head", "tail"], "skeleton": [(0, 1)]}


@pytest.mark.parametrize(
    ("box", "rows", "columns"),
    [
        ([1.6, 2.2, 7.4, 8.8], slice(2, 9), slice(2, 7)),
        ([-5, -5, 4, 4], slice(0, 4), slice(0, 4)),
        ([8, 9, 12, 13], slice(9, 12), slice(8, 10)),
        ([20, 20, 30, 30], slice(0, 0), slice(0, 0)),
        ([3, 3, 3, 5], slice(0, 0), slice(0, 0)),
    ],
)
def test_exact_pasting_covers_the_pixels_with_their_centre_in_the_box(
    box: list[float], rows: slice, columns: slice
) -> None:
    grids = torch.ones(1, 4, 4)
    labels, scores = torch.zeros(1, dtype=torch.int64), torch.ones(1)
    found = Instances(
        torch.tensor([box], dtype=torch.float32), labels, scores, (12, 10), mask_grids=grids, mask_pasting="exact"
    )
    expected = torch.zeros(1, 12, 10, dtype=torch.bool)
    expected[0, rows, columns] = True
    assert found.masks is not None
    assert torch.equal(found.masks, expected)
