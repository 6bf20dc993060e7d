"""Same detections and losses as torchvision's RetinaNet and R-CNN in the same process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision_models import (
    NUM_LABELS,
    RCNNS,
    RETINANETS,
    Pair,
    assert_equal,
    assert_same_details,
    initial_model,
    make_pair,
    network_input,
    old_names,
    our_detector,
    random_model,
    resizing,
)

from fcos.interop.torchvision import from_torchvision, to_torchvision
from fcos.models.anchors import Sampler, assign_anchors
from fcos.structures import Objects

PAIRS = [
    # Mask R-CNN contains Faster R-CNN.
    pytest.param(name, marks=[pytest.mark.slow] if name.startswith("faster") else [])
    for name in [*RETINANETS, *RCNNS]
]


@pytest.fixture(scope="module", params=PAIRS)
def pair(request: pytest.FixtureRequest) -> Pair:
    return make_pair(request.param, 1)


@pytest.mark.parametrize(
    ("sizes", "min_size"),
    [
        ([(96, 128)], 96),  # not resized
        ([(75, 101)], 96),  # enlarged; sides are not multiples of 32
        ([(160, 90), (96, 70)], 64),  # a batch of two sizes, with padding
    ],
)
def test_detections_match_torchvision(pair: Pair, sizes: list[tuple[int, int]], min_size: int) -> None:
    pair.theirs.transform = resizing(min_size)
    for found, expected in zip(*pair.detect([torch.rand(3, *size) for size in sizes]), strict=True):
        assert len(found) > 10
        assert pair.name.startswith("keypoint") or len(sizes) > 1 or len(found.labels.unique()) > 1
        assert ("masks" in expected, "keypoints" in expected) == (
            found.mask_grids is not None,
            found.keypoints is not None,
        )
        assert_same_details(found, expected)


@pytest.mark.parametrize(
    "name",
    [
        "retinanet_resnet50_fpn",
        pytest.param("maskrcnn_resnet50_fpn_v2", marks=pytest.mark.slow),
        "keypointrcnn_resnet50_fpn",
    ],
)
def test_detections_of_other_weights_match_torchvision(name: str) -> None:
    pair = make_pair(name, seed=2)
    for found, expected in zip(*pair.detect([torch.rand(3, 130, 64)]), strict=True):
        assert len(found) > 10
        assert_same_details(found, expected)


def test_images_without_detections_match_torchvision(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of two images has no detections, then none of them."""
    pair.theirs.transform = resizing(64)
    images = [torch.rand(3, 64, 64), torch.rand(3, 64, 90) * 0.1]
    low, high = sorted(float(image["scores"][0]) for image in pair.detect(images)[1])
    settings: Any = pair.theirs if pair.name in RETINANETS else pair.theirs.roi_heads
    for threshold in ((low + high) / 2, high + 1e-4):
        monkeypatch.setattr(settings, "score_thresh", threshold)
        assert pair.ours.postprocess is not None
        monkeypatch.setattr(pair.ours, "postprocess", replace(pair.ours.postprocess, score_threshold=threshold))
        results = pair.detect(images)
        assert min(len(image) for image in results[0]) == 0
        for found, expected in zip(*results, strict=True):
            assert_same_details(found, expected)


def test_weights_survive_a_round_trip(pair: Pair) -> None:
    """Only RetinaNet's rows of the background, which are not used, change."""
    state = pair.theirs.state_dict()
    checkpoint = from_torchvision(state)
    back = to_torchvision(checkpoint)
    pair.theirs.load_state_dict(back)
    again = from_torchvision(back)
    pair.theirs.load_state_dict(state)
    assert_equal(again.model, checkpoint.model)
    assert replace(again, model={}) == replace(checkpoint, model={})
    is_head = [name.startswith("head.classification_head.cls_logits.") for name in state]
    same = [name for name, skipped in zip(state, is_head, strict=True) if not skipped]
    assert_equal({name: back[name] for name in same}, {name: state[name] for name in same})


def losses_of(pair: Pair, boxes: Tensor, labels: Tensor) -> tuple[Mapping[str, Tensor], dict[str, Tensor]]:
    """Return our losses and torchvision's of an image, with batch norm in evaluation mode."""
    pair.theirs.transform = resizing(96)
    pair.theirs.train()
    for module in pair.theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    images = [torch.rand(3, 96, 128)]
    with torch.no_grad():
        theirs = pair.theirs(images, [{"boxes": boxes, "labels": labels + 1}])
        losses = pair.ours(*network_input(pair.theirs.transform, images), [Objects(boxes, labels)])
    return losses.terms, theirs


BOXES = torch.tensor([[4.0, 8, 60, 70], [50, 20, 120, 90], [30, 30, 62, 62]])


@pytest.mark.parametrize("name", RETINANETS)  # with L1 and with GIoU loss
def test_losses_of_retinanet_match_torchvision_up_to_the_denominator(name: str) -> None:
    """torchvision divides the class loss of an image by its positives; ours has one more, as in the original."""
    pair = make_pair(name, 1)
    ours, theirs = losses_of(pair, BOXES, torch.tensor([0, 3, 2]))
    torch.testing.assert_close(ours["loss_box"], theirs["bbox_regression"], rtol=1e-5, atol=0)
    model: Any = pair.ours
    anchors = torch.cat(model.anchors.levels(model.anchors.maps((96, 128))))
    positives = int((assign_anchors(anchors, [Objects(BOXES, torch.zeros(3).long())], model.matcher).labels >= 0).sum())
    expected = theirs["classification"] * positives / (positives + 1)
    torch.testing.assert_close(ours["loss_cls"], expected, rtol=1e-5, atol=0)


def test_losses_of_faster_rcnn_match_torchvision_if_nothing_is_sampled() -> None:
    """Both use all anchors and proposals here; otherwise, they draw other random samples."""
    everything = 10**6
    options = {"rpn_batch_size_per_image": everything, "box_batch_size_per_image": everything}
    theirs = random_model("fasterrcnn_resnet50_fpn", NUM_LABELS, **options)
    ours: Any = our_detector(from_torchvision(theirs.state_dict()))
    ours.proposals.sampler = Sampler(everything, 0.5)
    ours.box.sampler = Sampler(everything, 0.25)
    found, expected = losses_of(Pair("fasterrcnn_resnet50_fpn", theirs, ours), BOXES, torch.tensor([0, 3, 2]))
    for name, their_name in {
        "loss_objectness": "loss_objectness",
        "loss_rpn_box": "loss_rpn_box_reg",
        "loss_cls": "loss_classifier",
        "loss_box": "loss_box_reg",
    }.items():
        torch.testing.assert_close(found[name], expected[their_name], rtol=1e-4, atol=0)


def test_filler_rows_do_not_change_softmax_scores() -> None:
    name = "fasterrcnn_resnet50_fpn"
    checkpoint = replace(from_torchvision(random_model(name).state_dict()), category_ids=(1, 3, 7, 8, 30))
    theirs = initial_model(name, 31)
    theirs.load_state_dict(to_torchvision(checkpoint))
    (found,), (expected,) = Pair(name, theirs, our_detector(checkpoint)).detect([torch.rand(3, 96, 128)])
    labels = torch.tensor(checkpoint.category_ids)[found.labels]
    assert_same_details(replace(found, labels=labels - 1), expected)


def test_old_weights_have_no_epsilon_in_batch_norm() -> None:
    """torchvision sets the epsilon to 0 when it loads its first COCO weights; later models have 1e-5."""
    name = "fasterrcnn_resnet50_fpn"
    theirs = random_model(name)
    for key, tensor in theirs.state_dict().items():
        if key.endswith("running_var"):
            tensor.mul_(1e-4)  # so that the epsilon matters
    state = old_names(theirs.state_dict())
    checkpoint = from_torchvision(state)
    assert checkpoint.config["model"]["backbone"]["norm_eps"] == 0
    images = [torch.rand(3, 96, 128)]
    back = to_torchvision(checkpoint)
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.0
    found, expected = Pair(name, theirs, our_detector(checkpoint)).detect(images)
    assert_same_details(found[0], expected[0])
    plain = initial_model(name)
    plain.load_state_dict(back, strict=False)
    with torch.inference_mode():
        (again,) = plain(images)
    assert_same_details(found[0], again)
