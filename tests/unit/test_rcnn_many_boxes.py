"""R-CNN with many proposals, detections and classes: memory is bounded, results do not change."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from detectors import tiny_config
from fcos_inputs import noise, sizes_of
from ground_truth import objects_of
from torch import Tensor, nn

from fcos.models import build_model, roi_heads
from fcos.models.rcnn import RCNN
from fcos.models.roi_heads import groups_of_boxes

DETAILS: dict[str, Any] = {
    "mask": {"enabled": True, "conv_channels": [16]},
    "keypoints": {"enabled": True, "conv_channels": [16], "num_keypoints": 5},
}
LIMIT = 7


def build(num_classes: int = 3, **options: Any) -> RCNN:
    torch.manual_seed(0)
    config = tiny_config(name="rcnn", **{"score_threshold": 0.0, "max_detections": 0, **DETAILS, **options})
    model = build_model(config.model, num_classes=num_classes, pretrained=False)
    assert isinstance(model, RCNN)
    return model.eval()


def batch_sizes(model: nn.Module) -> list[int]:
    """Return a list that receives the number of boxes in each call of the bodies of the heads."""
    found: list[int] = []
    for name, module in model.named_modules():
        if name in ("box.body", "heads.mask.body", "heads.keypoints.body"):
            module.register_forward_pre_hook(lambda _, inputs: found.append(len(inputs[0])))
    return found


@pytest.mark.parametrize(
    ("counts", "groups"),
    [
        ([], [[]]),
        ([0, 0], [[0, 0]]),
        ([3, 0, 4], [[3, 0, 4]]),
        ([5, 0, 4, 12], [[5, 0, 2, 0], [0, 0, 2, 5], [0, 0, 0, 7]]),
        ([15], [[7], [7], [1]]),
    ],
)
def test_groups_have_all_boxes_in_their_order(
    counts: list[int], groups: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roi_heads, "MAX_BOXES", LIMIT)
    boxes = list(torch.arange(4.0 * sum(counts)).view(-1, 4).split(counts)) if counts else []
    found = list(groups_of_boxes(boxes))
    assert [list(map(len, group)) for group in found] == groups
    together = torch.cat([torch.zeros(0, 4), *(part for group in found for part in group)])
    assert torch.equal(together, torch.cat([torch.zeros(0, 4), *boxes]))


def test_boxes_in_groups_have_the_same_predictions(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(max_detections=9, proposals={"max_proposals": 12})
    images, sizes = noise(2, 3, 64, 96), sizes_of((64, 96), (40, 40))
    expected, outputs = model.detect(images, sizes), model(images, sizes)
    assert min(map(len, expected)) > LIMIT
    monkeypatch.setattr(roi_heads, "MAX_BOXES", LIMIT)
    found = batch_sizes(model)
    # Convolutions and products of matrices of other sizes may sum in another order.
    torch.testing.assert_close(model(images, sizes), outputs, rtol=1e-4, atol=1e-5)
    for ours, whole in zip(model.add_details(outputs, expected), expected, strict=True):
        assert ours.mask_grids is not None
        assert ours.keypoints is not None
        torch.testing.assert_close(ours.mask_grids, whole.mask_grids, rtol=0, atol=1e-5)
        torch.testing.assert_close(ours.keypoints, whole.keypoints, rtol=0, atol=1e-4)
    assert max(found) == LIMIT
    assert sum(found) == sum(map(len, outputs.proposals)) + 2 * sum(map(len, expected))


def test_more_detections_than_a_group_has_get_masks_and_keypoints() -> None:
    model = build(num_classes=20, proposals={"max_proposals": 30}, nms_threshold=0)
    found = batch_sizes(model)
    (detections,) = model.detect(noise(1, 3, 32, 32), sizes_of((32, 32)))
    assert len(detections) > 512  # 20 classes of every proposal
    assert max(found) == roi_heads.MAX_BOXES
    assert detections.mask_grids is not None
    assert len(detections.mask_grids) == len(detections)


def test_training_on_many_proposals_and_1200_classes_pools_the_samples_only() -> None:
    proposals = {"train_pre_nms_top_k": 2000, "train_post_nms_top_k": 2000, "train_max_proposals": 5000}
    model = build(
        num_classes=1200,
        proposals={**proposals, "nms_threshold": 0, "samples_per_image": 64},
        box={"linear_channels": 16, "samples_per_image": 64},
        mask={"enabled": False},
        keypoints={"enabled": False},
    )
    images, sizes, found = noise(2, 3, 128, 128), sizes_of((128, 128), (128, 128)), batch_sizes(model)
    outputs = model.proposals.head(model.features(images, sizes))
    assert [len(image) > 800 for image in model.proposals.propose(outputs, sizes, training=True)] == [True, True]
    box, none = torch.tensor([[4.0, 4, 90, 90]]), torch.zeros(0, 4)
    targets = objects_of([box, none], [torch.tensor([1199]), torch.zeros(0, dtype=torch.int64)])
    losses = model.train()(images, sizes, targets)
    assert found == [2 * 64]
    torch.stack(list(losses.terms.values())).sum().backward()
    gradient = model.box.offsets.weight.grad
    assert gradient is not None
    # Only the object's class: rows of the background, of other classes, and of images without objects get none.
    assert gradient.abs().sum(dim=1).nonzero().flatten().tolist() == [4800, 4801, 4802, 4803]


def test_the_first_stage_provides_the_denominator_of_the_second_in_one_collective(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[Tensor] = []
    monkeypatch.setattr("fcos.models.rpn.mean_over_processes", lambda tensor: calls.append(tensor) or tensor / 2)
    normalizers = build().loss_normalizers(
        objects_of([torch.zeros(0, 4)] * 3, [torch.zeros(0, dtype=torch.int64)] * 3), (64, 64)
    )
    assert [tensor.tolist() for tensor in calls] == [[3.0]]
    assert normalizers is not None
    assert normalizers.tolist() == [1.5]
