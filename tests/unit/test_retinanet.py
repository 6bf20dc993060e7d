"""RetinaNet: sizes and batches, losses, training, options."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from detectors import CATEGORY_IDS, NAMES, tiny_config, tiny_retinanet
from fcos_inputs import noise, sizes_of, two_boxes
from ground_truth import objects_of
from torch import Tensor

from fcos.checkpoint import save_checkpoint
from fcos.config import RetinaNetConfig
from fcos.errors import ConfigError, WeightsError
from fcos.interop.checkpoints import load_checkpoint
from fcos.models import build_model
from fcos.models.anchors import AnchorAssignment, BoxCoder
from fcos.models.losses import RetinaNetLoss, focal_loss, retinanet_loss
from fcos.models.points import BACKGROUND, IGNORED
from fcos.models.retinanet import RetinaNet
from fcos.recipes import load_config
from fcos.training.loop import train
from fcos.training.start import start_from


def build(**options: Any) -> RetinaNet:
    config = tiny_config(name="retinanet", **options)
    model = build_model(config.model, num_classes=len(NAMES), pretrained=False)
    assert isinstance(model, RetinaNet)
    return model


def build_detecting(**options: Any) -> RetinaNet:
    return tiny_retinanet(tiny_config(name="retinanet", **options))


# ---------------------------------------------------------------------------------------------------- sizes and batches


@pytest.mark.parametrize("location", ["center", "corner"])
@pytest.mark.parametrize("size", [(97, 131), (1, 1), (33, 160), (64, 64)])
def test_detector_accepts_any_height_and_width(size: tuple[int, int], location: str) -> None:
    model = build_detecting(location=location)
    images, sizes = noise(1, 3, *size), sizes_of(size)
    outputs = model(images, sizes)
    expected = [(math.ceil(size[0] / s), math.ceil(size[1] / s)) for s in model.anchors.strides]
    for levels, channels in zip(outputs, (27, 36), strict=True):
        assert [tuple(x.shape) for x in levels] == [(1, channels, *grid) for grid in expected]
    (instances,) = model.detect(images, sizes)
    assert instances.size == size
    assert (instances.boxes >= 0).all()
    assert (instances.boxes <= torch.tensor(size).flip(0).repeat(2)).all()


def test_batches_of_any_length_give_the_detections_of_single_images() -> None:
    model = build_detecting()
    images, sizes = noise(3, 3, 64, 96), sizes_of((64, 96), (64, 96), (50, 40))
    assert model.detect(images[:0], sizes[:0]) == []
    for i, instances in enumerate(model.detect(images, sizes)):
        (alone,) = model.detect(images[i : i + 1], sizes[i : i + 1])
        assert len(instances) > 0
        torch.testing.assert_close(instances.scores, alone.scores)
        torch.testing.assert_close(instances.boxes, alone.boxes, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("head", [{"num_convs": 0}, {"num_convs": 1}, {"num_convs": 1, "norm": "bn"}], ids=str)
def test_padding_does_not_change_the_candidates_inside_an_image(head: dict[str, Any]) -> None:
    model = build_detecting(
        head=head, strides=[32], anchor_sizes=[32], pre_nms_top_k=10_000, keep_empty_boxes=True, score_threshold=0.0
    )
    images = torch.zeros(1, 3, 128, 128, dtype=torch.uint8)
    inside = model.candidates(images, sizes_of((64, 64)))[0]
    assert len(inside) == 4 * 9 * 3  # the other twelve locations are in the padding
    everywhere = build_detecting(strides=[32], anchor_sizes=[32], pre_nms_top_k=10_000, detect_in_padding=True,
                                 keep_empty_boxes=True, score_threshold=0.0)  # fmt: skip
    assert len(everywhere.candidates(images, sizes_of((64, 64)))[0]) == 16 * 9 * 3


def test_class_of_an_anchor_has_its_box_and_score() -> None:
    model = build(strides=[32], anchor_sizes=[24], anchor_ratios=[0.5, 2.0], scales_per_octave=1, score_threshold=0.3)
    bias = torch.full((2, 3), -5.0)
    bias[1, 2] = 0.0  # class 2 of the second, tall anchor
    model.head.logits.weight.data.zero_()
    model.head.offsets.weight.data.zero_()
    model.get_parameter("head.logits.bias").data = bias.flatten()
    (found,) = model.eval().detect(noise(1, 3, 32, 64), sizes_of((32, 64)))
    assert (found.labels.tolist(), found.scores.tolist()) == ([2, 2], [0.5, 0.5])
    width = 24 / 2**0.5
    tall = [16 - width / 2, 0.0, 16 + width / 2, 32.0]  # clipped to the image
    torch.testing.assert_close(found.boxes, torch.tensor([tall, [tall[0] + 32, 0, tall[2] + 32, 32]]))


# -------------------------------------------------------------------------------------------------------------- losses


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Return logits [2, 3, 2] and offsets [2, 3, 4] of two images, and three anchors."""
    torch.manual_seed(0)
    logits, offsets = torch.randn(2, 3, 2).double().requires_grad_(), torch.randn(2, 3, 4).double().requires_grad_()
    return logits, offsets, torch.tensor([[0.0, 0, 8, 8], [8, 0, 16, 8], [0, 8, 8, 16]])


def test_losses_match_values_computed_by_hand() -> None:
    logits, offsets, anchors = inputs()
    boxes = torch.tensor([[50.0, 50, 60, 60], [1, 0, 9, 8], [0, 8, 8, 16]])
    labels, matched = torch.tensor([[1, -1, -2], [-1, -1, 0]]), torch.tensor([[1, 0, 0], [2, 2, 2]])
    assignment = AnchorAssignment(labels, matched, boxes, torch.tensor(0))
    coder, options = BoxCoder(), RetinaNetLoss(smooth_l1_beta=0.5, box_loss_divisor=3.0)
    terms = retinanet_loss(logits, offsets, anchors, assignment, options, coder=coder)
    expected_cls = focal_loss(logits.flatten(0, 1), assignment.labels.flatten()).sum() / (2 + 2)
    torch.testing.assert_close(terms["loss_cls"], expected_cls)
    errors = (torch.stack([offsets[0, 0], offsets[1, 2]]) - torch.tensor([[1.25, 0, 0, 0], [0, 0, 0, 0]])).abs()
    expected = torch.where(errors < 0.5, errors.square() / (2 * 0.5), errors - 0.25).sum() / (2 * 3)
    torch.testing.assert_close(terms["loss_box"], expected)


def test_losses_without_positives_are_finite_and_keep_the_graph() -> None:
    logits, offsets, anchors = inputs()
    labels = torch.tensor([[BACKGROUND, BACKGROUND, IGNORED]] * 2)
    assignment = AnchorAssignment(labels, torch.zeros_like(labels), anchors[:0], torch.tensor(0))
    terms = retinanet_loss(logits, offsets, anchors, assignment, RetinaNetLoss(), coder=BoxCoder())
    assert terms["loss_box"] == 0
    torch.testing.assert_close(terms["loss_cls"], focal_loss(logits.flatten(0, 1), labels.flatten()).sum() / 2)
    gradients = torch.autograd.grad(torch.stack(list(terms.values())).sum(), [logits, offsets])
    assert (gradients[0][:, 2] == 0).all()
    assert (gradients[1] == 0).all()


# ------------------------------------------------------------------------------------------------------------ training


@pytest.mark.parametrize("norm", ["none", "gn"])
def test_training_step_updates_every_parameter(norm: str) -> None:
    model = build(head={"num_convs": 1, "norm": norm}).train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    losses = model(noise(2, 3, 64, 64), sizes_of((64, 64), (64, 64)), two_boxes())
    assert all(loss.isfinite() and loss > 0 for loss in losses.terms.values())
    torch.stack(list(losses.terms.values())).sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    moved = [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
    assert {name for name in before if name.startswith("head.")} <= set(moved)


@pytest.mark.parametrize(
    ("targets", "box_loss"),
    [
        (objects_of([], []), 0.0),
        (objects_of([torch.zeros(0, 4)] * 2, [torch.zeros(0).long()] * 2), 0.0),
        (objects_of([torch.tensor([[0.0, 0, 64, 64]])], [torch.tensor([0])], [torch.tensor([True])]), 0.0),
        ([*two_boxes(1), objects_of([torch.zeros(0, 4)], [torch.zeros(0).long()])[0]], None),
    ],
    ids=["no images", "no objects", "crowds", "an image without objects"],
)  # fmt: skip
def test_batches_with_few_objects_have_finite_losses(targets: list, box_loss: float | None) -> None:
    model = build(backbone={"name": "mobilenet_v2", "weights": None, "norm": "frozen_bn"})
    size = (64, 64)
    losses = model(noise(len(targets), 3, *size), sizes_of(*[size] * len(targets)), targets)
    assert all(term.isfinite() for term in losses.terms.values())
    assert losses.terms["loss_box"] > 0 if box_loss is None else losses.terms["loss_box"] == box_loss
    torch.stack(list(losses.terms.values())).sum().backward()


def test_one_pixel_objects_are_matched_and_objects_without_anchor_are_counted() -> None:
    boxes = torch.tensor([[30.0, 30, 31, 31], [2, 36, 28, 62]])
    targets = objects_of([boxes], [torch.tensor([0, 1])])
    arguments = noise(1, 3, 64, 64), sizes_of((64, 64)), targets
    assert build()(*arguments).stats["unassigned"] == 0
    assert build(low_quality_matches=False)(*arguments).stats["unassigned"] == 1


def test_losses_and_boxes_are_float32_under_autocast() -> None:
    model = build_detecting()
    images, sizes = noise(2, 3, 64, 64), sizes_of((64, 64), (64, 64))
    exact = model(images, sizes, two_boxes()).terms
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs, losses = model(images, sizes), model(images, sizes, two_boxes()).terms
        detections = model.detect(images, sizes)
    assert {x.dtype for levels in outputs for x in levels} == {torch.float32}
    assert {instances.boxes.dtype for instances in detections} == {torch.float32}
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(exact[name].item(), rel=0.1), name


def test_untrained_head_predicts_the_prior_probability() -> None:
    model = build(head={"num_convs": 1, "prior_probability": 0.02}).eval()
    probability = model(noise(1, 3, 64, 64), sizes_of((64, 64))).logits[0].sigmoid()
    assert probability.mean().item() == pytest.approx(0.02, rel=0.1)


def test_fine_tuning_keeps_the_rows_of_classes_with_the_same_names(tmp_path: Path) -> None:
    config = tiny_config(name="retinanet")
    save_checkpoint(tmp_path / "a.pt", model=build(), config=config, class_names=NAMES, category_ids=CATEGORY_IDS)
    checkpoint = load_checkpoint(tmp_path / "a.pt")
    model = build_model(config.model, num_classes=2, pretrained=False)
    initial = model.get_parameter("head.logits.weight").detach().clone()
    summary = start_from(model, checkpoint, config.model, ("fox", NAMES[1]), where="a.pt")
    assert "loaded 1 of 2 rows by class name (dog); newly initialised: fox" in summary
    weight, trained = model.get_parameter("head.logits.weight"), checkpoint.model["head.logits.weight"]
    assert torch.equal(weight[1::2], trained[1::3])  # nine anchors each
    assert torch.equal(weight[::2], initial[::2])
    with pytest.raises(WeightsError, match=r"do not fit the model.*: model\.name=retinanet"):
        start_from(
            build_model(tiny_config().model, num_classes=3), checkpoint, tiny_config().model, NAMES, where="a.pt"
        )


# ------------------------------------------------------------------------------------------------------------- options


def test_sizes_are_numbers_or_lists_and_octaves_add_scales() -> None:
    options = ["model.name=retinanet", "model.strides=[8,16]"]
    config = load_config(None, [*options, "model.anchor_sizes=[16,32]", "model.scales_per_octave=2"]).model
    assert isinstance(config, RetinaNetConfig)
    assert config.anchor_sizes == [[16], [32]]
    assert config.level_sizes == [[16, 16 * 2**0.5], [32, 32 * 2**0.5]]
    listed = load_config(None, [*options, "model.anchor_sizes=[[16,20],[32,40]]", "model.scales_per_octave=1"]).model
    assert isinstance(listed, RetinaNetConfig)
    assert listed.level_sizes == [[16, 20], [32, 40]]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("anchor_sizes=[8,16]", "strides has 5 levels but anchor_sizes has 2; give one size, or one list of"),
        ("anchor_sizes=[[8,9],16,32,64,128]", "anchor_sizes must have equally many sizes per level"),
        ("anchor_sizes=[0,16,32,64,128]", "model.anchor_sizes.0.0: should be greater than 0, found 0"),
        ("anchor_sizes=[[],[],[],[],[]]", "model.anchor_sizes.0: should have at least 1 value"),
        ("anchor_sizes=8", "model.anchor_sizes: should be a list"),
        ("anchor_ratios=[]", "model.anchor_ratios: should have at least 1 value"),
        ("anchor_ratios=[-1]", "model.anchor_ratios.0: should be at least 0.01"),
        ("scales_per_octave=0", "model.scales_per_octave: should be at least 1"),
        ("scales_per_octave=16 model.anchor_ratios=[1,2,3,4,5]", "anchors per location must be at most 64, found 80"),
        ("background_iou=0.6", "background_iou must be at most foreground_iou, found 0.6 and 0.5"),
        ("strides=[8,16,32,64,100]", "strides must double from level to level"),
        ("head.norm=gn model.fpn.channels=100", "fpn.channels must be a multiple of 32 with norm gn, found 100"),
        ("size_ranges=[]", "model.size_ranges: no such option"),
    ],
)  # fmt: skip
def test_invalid_options_have_a_clear_message(option: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, ["model.name=retinanet", *f"model.{option}".split()])
    assert message in str(caught.value)


@pytest.mark.parametrize("recipe", ["retinanet_r50", "retinanet_mnv2_small"])
def test_recipes_build_and_train(recipe: str, tmp_path: Path, data: Path) -> None:
    options = """
        data.workers=0 data.short_side=64 data.max_side=96 model.backbone.weights=null model.fpn.channels=32
        train.batch_size=2 train.iterations=2 device=cpu
    """
    result = train(load_config(recipe, [f"data={data}", f"output_dir={tmp_path / 'run'}", *options.split()]))
    assert (result.run / "weights/best.pt").is_file()
    assert "AP" in result.metrics
