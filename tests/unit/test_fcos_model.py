"""The complete detector: sizes, batches, return values of forward, training steps, precision."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from detectors import tiny_config, tiny_model
from fcos_inputs import build, noise, sizes_of, two_boxes
from ground_truth import objects_of
from small_backbones import one_block_per_stage
from torch import Tensor

from fcos.models.fcos import FCOS, FCOSOutputs
from fcos.structures import Losses, Objects

LOSSES = ["loss_cls", "loss_box", "loss_centerness"]


@pytest.fixture(scope="module")
def shared() -> FCOS:
    """Return a detector shared by tests that do not change it."""
    torch.manual_seed(0)
    return tiny_model(tiny_config())


@pytest.fixture
def few_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    one_block_per_stage(monkeypatch)


# ---------------------------------------------------------------------------------------------------- sizes and batches


@pytest.mark.parametrize("size", [(97, 131), (1, 1), (33, 160), (64, 64)])
def test_detector_accepts_any_height_and_width(shared: FCOS, size: tuple[int, int]) -> None:
    images, sizes = noise(1, 3, *size), sizes_of(size)
    outputs = shared(images, sizes)
    expected = [(math.ceil(size[0] / s), math.ceil(size[1] / s)) for s in shared.assigner.strides]
    for levels, channels in zip(outputs, (3, 4, 1), strict=True):
        assert [tuple(x.shape) for x in levels] == [(1, channels, *grid) for grid in expected]
    (instances,) = shared.detect(images, sizes)
    assert instances.size == size
    assert (instances.boxes >= 0).all()
    assert (instances.boxes <= torch.tensor(size).flip(0).repeat(2)).all()


def test_empty_batch_gives_empty_outputs(shared: FCOS) -> None:
    images, sizes = noise(0, 3, 64, 96), sizes_of()
    outputs = shared(images, sizes)
    assert [tuple(x.shape) for x in outputs.logits][:2] == [(0, 3, 8, 12), (0, 3, 4, 6)]
    assert shared.detect(images, sizes) == []


@pytest.mark.parametrize("regression", ["exp", "relu_stride"])
def test_outputs_do_not_depend_on_other_images_in_the_batch(regression: str) -> None:
    model = tiny_model(tiny_config(head={"num_convs": 1, "regression": regression}))
    images, sizes = noise(3, 3, 64, 96), sizes_of((64, 96), (64, 96), (64, 96))
    together = model(images, sizes)
    for i in range(3):
        alone = model(images[i : i + 1], sizes[i : i + 1])
        for levels, own in zip(together, alone, strict=True):
            for level, other in zip(levels, own, strict=True):
                torch.testing.assert_close(level[i : i + 1], other, rtol=1e-5, atol=1e-5)


def test_batch_detections_match_single_image_detections(shared: FCOS) -> None:
    images, sizes = noise(2, 3, 64, 96), sizes_of((64, 96), (64, 96))
    for i, instances in enumerate(shared.detect(images, sizes)):
        (alone,) = shared.detect(images[i : i + 1], sizes[i : i + 1])
        torch.testing.assert_close(instances.scores, alone.scores)
        torch.testing.assert_close(instances.boxes, alone.boxes, rtol=1e-5, atol=1e-3)


# ------------------------------------------------------------------------------------------------------- normalisation


@pytest.mark.parametrize("padding", [0.0, 255.0, -1e30, math.inf, math.nan])
def test_normalization_sets_padding_to_zero(shared: FCOS, padding: float) -> None:
    images = noise(2, 3, 20, 30).float()
    clean = shared.normalize(images, sizes_of((20, 30), (13, 17)))
    assert (clean[1, :, 13:] == 0).all()
    assert (clean[1, :, :, 17:] == 0).all()
    assert (clean[0] != 0).float().mean() > 0.99
    images[1, :, 13:], images[1, :, :, 17:] = padding, padding
    assert torch.equal(shared.normalize(images, sizes_of((20, 30), (13, 17))), clean)


def test_uint8_and_float_images_are_normalized_equally(shared: FCOS) -> None:
    images, sizes = noise(1, 3, 32, 32), sizes_of((32, 32))
    assert torch.equal(shared.normalize(images, sizes), shared.normalize(images.float(), sizes))


def test_pixel_mean_and_std_follow_the_channel_order() -> None:
    options = {"pixel_mean": [10, 20, 30], "pixel_std": [1, 2, 4]}
    image = torch.tensor([110, 120, 130], dtype=torch.uint8).reshape(1, 3, 1, 1)
    rgb = build(**options).normalize(image, sizes_of((1, 1)))
    bgr = build(**options, channel_order="bgr").normalize(image, sizes_of((1, 1)))
    assert rgb.flatten().tolist() == [100, 50, 25]
    assert bgr.flatten().tolist() == [120, 50, 20]


def test_detect_does_not_modify_the_images(shared: FCOS) -> None:
    images = noise(1, 3, 20, 30).float()
    before = images.clone()
    shared.detect(images, sizes_of((10, 10)))
    assert torch.equal(images, before)


# -------------------------------------------------------------------------------------------- return values of forward


@pytest.mark.parametrize("training", [True, False])
def test_forward_output_depends_on_arguments_not_on_training_mode(training: bool) -> None:
    model = build().train(training)
    images, sizes = noise(2, 3, 64, 64), sizes_of((64, 64), (64, 64))
    assert isinstance(model(images, sizes), FCOSOutputs)
    losses = model(images, sizes, two_boxes())
    assert isinstance(losses, Losses)
    assert list(losses.terms) == LOSSES
    assert all(loss.shape == () for loss in losses.terms.values())
    assert len(model.detect(images, sizes)) == 2
    assert model.training == training


def test_steps_of_forward_and_detect_give_the_same_results(shared: FCOS) -> None:
    """A first stage of a two-stage detector takes these steps."""
    images, sizes, targets = noise(2, 3, 64, 64), sizes_of((64, 64), (50, 60)), two_boxes()
    outputs = shared.head(shared.features(images, sizes))
    torch.testing.assert_close(shared.losses(outputs, targets).terms, shared(images, sizes, targets).terms)
    proposals = [shared.suppress(candidates) for candidates in shared.decode(outputs, sizes)]
    for ours, theirs in zip(proposals, shared.detect(images, sizes), strict=True):
        assert len(ours) > 0
        assert not ours.boxes.requires_grad
        torch.testing.assert_close(ours.boxes, theirs.boxes)
        torch.testing.assert_close(ours.scores, theirs.scores)


def test_proposals_can_be_used_in_a_backward_pass(shared: FCOS) -> None:
    images, sizes = noise(1, 3, 64, 64), sizes_of((64, 64))
    (candidates,) = shared.decode(shared(images, sizes), sizes)
    for boxes in (candidates.boxes, shared.suppress(candidates).boxes):
        factor = torch.ones((), requires_grad=True)
        (factor * boxes).sum().backward()  # autograd keeps the boxes for the backward pass
        torch.testing.assert_close(factor.grad, boxes.sum())


def test_detect_has_no_gradient_and_keeps_the_state_dict(shared: FCOS) -> None:
    before = {name: tensor.clone() for name, tensor in shared.state_dict().items()}
    (instances,) = shared.detect(noise(1, 3, 64, 64), sizes_of((64, 64)))
    assert not instances.boxes.requires_grad
    assert all(torch.equal(tensor, before[name]) for name, tensor in shared.state_dict().items())


def test_untrained_head_predicts_the_prior_probability() -> None:
    model = build(head={"num_convs": 1, "prior_probability": 0.02}).eval()
    probability = model(noise(1, 3, 64, 64), sizes_of((64, 64))).logits[0].sigmoid()
    assert probability.mean().item() == pytest.approx(0.02, rel=0.1)


def test_relu_regression_is_in_strides_and_exp_regression_in_pixels() -> None:
    features = [torch.randn(1, 64, 4, 4)] * 5
    head = build(head={"num_convs": 0, "regression": "relu_stride"}).head
    ltrb = head(features).ltrb
    torch.testing.assert_close(ltrb[1], ltrb[0] * 2)
    assert min(level.min().item() for level in ltrb) == 0
    head.regression = "exp"
    torch.testing.assert_close(head(features).ltrb[1], head(features).ltrb[0])


def test_centerness_is_computed_from_the_chosen_tower() -> None:
    features = [torch.randn(1, 64, 4, 4, requires_grad=True) for _ in range(5)]
    for branch in ("cls", "box"):
        head = build(head={"num_convs": 1, "centerness_on": branch}).head
        head(features).centerness[0].sum().backward()
        used = {name.split(".")[0] for name, p in head.named_parameters() if p.grad is not None}
        assert used == {f"{branch}_tower", "centerness"}


def test_tower_batch_norm_is_separate_for_each_level() -> None:
    head = build(head={"num_convs": 1, "norm": "bn"}).head.train()
    head([torch.randn(2, 64, 4, 4) * factor for factor in (1, 2, 3, 4, 5)])
    state = head.state_dict()
    for tower in ("cls_tower", "box_tower"):
        variances = [state[f"{tower}.1.{level}.running_var"].mean().item() for level in range(5)]
        assert variances == sorted(variances)
        assert [int(state[f"{tower}.1.{level}.num_batches_tracked"]) for level in range(5)] == [1] * 5


def test_towers_can_share_convolutions() -> None:
    head = build(head={"num_convs": 0, "num_shared_convs": 2, "deformable": True}).head
    features = [torch.randn(1, 64, 4, 4)] * 5
    assert [type(layer).__name__ for layer in head.shared_tower] == ["Conv2d", "GroupNorm", "ReLU"] * 2
    expected = head.shared_tower(features[0])
    torch.testing.assert_close(head(features).logits[0], head.logits(expected))
    torch.testing.assert_close(head(features).centerness[4], head.centerness(expected))


def test_towers_can_be_separable() -> None:
    head = build(head={"num_convs": 2, "deformable": True, "separable": True}).head
    assert [type(layer).__name__ for layer in head.box_tower] == [
        *("SeparableConv", "GroupNorm", "ReLU"),
        *("DeformConv", "GroupNorm", "ReLU"),
    ]
    conv = head.box_tower[0]
    depthwise, pointwise = conv.children()
    assert isinstance(depthwise, torch.nn.Conv2d)
    assert isinstance(pointwise, torch.nn.Conv2d)
    assert pointwise.bias is not None
    feature = torch.randn(1, 64, 5, 6)
    assert (list(depthwise.weight.shape), list(pointwise.weight.shape)) == ([64, 1, 3, 3], [64, 64, 1, 1])
    assert (depthwise.bias, pointwise.bias.tolist()) == (None, [0.0] * 64)
    # One kernel per pair of channels: the product of both weights.
    kernels = pointwise.weight * depthwise.weight[:, 0]
    torch.testing.assert_close(conv(feature), F.conv2d(feature, kernels, padding=1), rtol=0, atol=1e-5)
    # The depthwise convolution keeps the size of its values; the pointwise one starts like every layer of a head.
    assert depthwise.weight.std().item() == pytest.approx(1 / 3, rel=0.2)
    assert pointwise.weight.std().item() == pytest.approx(0.01, rel=0.1)


def test_tower_convolutions_can_omit_bias() -> None:
    names = {"0.weight", "1.weight", "1.bias"}
    assert build(head={"num_convs": 1, "conv_bias": False}).head.cls_tower.state_dict().keys() == names
    assert build(head={"num_convs": 1}).head.cls_tower.state_dict().keys() == names | {"0.bias"}


def test_unassigned_boxes_are_counted() -> None:
    model = build()
    tiny = torch.tensor([[8.0, 8.0, 9.0, 9.0], [4.0, 4.0, 60.0, 60.0]])
    targets = objects_of([tiny, tiny[:1]], [torch.tensor([0, 1]), torch.tensor([2])])
    unassigned = model(noise(2, 3, 64, 64), sizes_of((64, 64), (64, 64)), targets).stats["unassigned"]
    assert (unassigned.shape, unassigned.dtype) == ((), torch.int64)
    assert unassigned == 2
    assert model(noise(2, 3, 64, 64), sizes_of((64, 64), (64, 64)), two_boxes()).stats["unassigned"] == 0


# ------------------------------------------------------------------------------------------------------------ training


def step(model: FCOS, targets: list[Objects]) -> dict[str, Tensor]:
    images = noise(2, 3, 64, 64)
    losses = model.train()(images, sizes_of((64, 64), (64, 64)), targets).terms
    torch.stack(list(losses.values())).sum().backward()
    return losses


@pytest.mark.usefixtures("few_blocks")
@pytest.mark.parametrize(
    ("backbone", "norm", "regression"),
    [
        ("resnet50", "frozen_bn", "exp"),
        ("resnet50", "gn", "relu_stride"),
        ("resnet50", "bn", "exp"),
        ("mobilenet_v2", "frozen_bn", "relu_stride"),
        ("mobilenet_v2", "bn", "relu_stride"),
        ("mobilenet_v2", "sync_bn", "exp"),
    ],
)
def test_training_step_updates_all_trainable_parameters(backbone: str, norm: str, regression: str) -> None:
    model = build(
        backbone={"name": backbone, "weights": None, "norm": norm, "frozen_stages": 1},
        head={"num_convs": 1, "regression": regression},
    )
    torch.nn.init.constant_(model.state_dict()["head.ltrb.bias"], 0.5)  # keeps relu active
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    losses = step(model, two_boxes())
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01).step()
    for name, parameter in model.named_parameters():
        assert parameter.isfinite().all(), name
        assert (parameter.grad is not None) == parameter.requires_grad, name
        if parameter.grad is None:
            assert torch.equal(parameter, before[name]), name
        elif parameter.grad.abs().max() > 1e-4:  # the step is larger than rounding errors
            assert not torch.equal(parameter, before[name]), name


@pytest.mark.parametrize("regression", ["exp", "relu_stride"])
def test_batch_without_objects_gives_every_parameter_a_gradient(regression: str) -> None:
    model = build(head={"num_convs": 1, "regression": regression})
    losses = step(model, objects_of([torch.zeros(0, 4)] * 2, [torch.zeros(0).long()] * 2))
    assert losses["loss_box"] == losses["loss_centerness"] == 0
    assert losses["loss_cls"] > 0
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("source", ["p5", "c5"])
@pytest.mark.parametrize("strides", [[8, 16], [4], [16, 32, 64]])
def test_every_parameter_gets_a_gradient_for_any_strides(strides: list[int], source: str) -> None:
    ranges = [(-1, None)] * len(strides)
    model = build(
        strides=strides,
        size_ranges=ranges,
        backbone={"name": "mobilenet_v2", "weights": None},
        fpn={"channels": 64, "extra_level_source": source},
    )
    step(model, two_boxes())
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_batch_without_images_has_zero_loss() -> None:
    model = build(backbone={"name": "mobilenet_v2", "weights": None, "norm": "frozen_bn"})
    losses = model(noise(0, 3, 64, 64), sizes_of(), objects_of([], []))
    assert {loss.item() for loss in losses.terms.values()} == {0.0}
    assert losses.stats["unassigned"] == 0
    torch.stack(list(losses.terms.values())).sum().backward()


def test_batch_covered_by_crowds_has_zero_loss() -> None:
    everything = torch.tensor([[-1.0, -1.0, 200.0, 200.0]])
    targets = objects_of([everything] * 2, [torch.tensor([0])] * 2, [torch.tensor([True])] * 2)
    assert all(loss == 0 for loss in step(build(), targets).values())


def test_partly_empty_batch_has_finite_positive_losses() -> None:
    (full,) = two_boxes(1)
    targets = [full, full[:0]]
    assert all(loss.isfinite() and loss > 0 for loss in step(build(), targets).values())


def test_loss_decreases_when_overfitting_one_batch() -> None:
    model = build(
        head={"num_convs": 1, "regression": "relu_stride"}, box_loss="giou", center_sampling_radius=1.5
    ).train()
    images, sizes = noise(2, 3, 64, 64), sizes_of((64, 64), (64, 64))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    totals = []
    for _ in range(8):
        total = torch.stack(list(model(images, sizes, two_boxes()).terms.values())).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < 0.7 * totals[0]


@pytest.mark.parametrize("regression", ["exp", "relu_stride"])
def test_losses_and_boxes_are_float32_under_autocast(regression: str) -> None:
    model = tiny_model(tiny_config(head={"num_convs": 1, "regression": regression}))
    images, sizes = noise(2, 3, 64, 64), sizes_of((64, 64), (64, 64))
    exact = model(images, sizes, two_boxes()).terms
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs, losses = model(images, sizes), model(images, sizes, two_boxes()).terms
        found = model.detect(images, sizes)
    assert {x.dtype for levels in outputs for x in levels} == {torch.float32}
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    assert {instances.boxes.dtype for instances in found} == {torch.float32}
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(exact[name].item(), rel=0.1), name
