"""R-CNN and its proposal network: sizes and batches, losses, heads, memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fcos_inputs import noise, sizes_of
from tiny_rcnn import DETAILS, FROZEN, build, some_objects, total
from torch import Tensor

from fcos.models.anchors import AnchorMatcher, BoxCoder, Sampler
from fcos.models.candidates import roi_candidates
from fcos.models.keypoint_head import decode_keypoints, keypoint_cells
from fcos.models.mask_head import MaskHead
from fcos.models.points import BACKGROUND
from fcos.models.postprocess import RoIPostprocess
from fcos.models.proposals import ProposalLimits, ProposalSelection, select_proposals
from fcos.models.rcnn import RCNNOutputs
from fcos.models.roi_heads import Pooler, sample_proposals
from fcos.structures import Instances, Objects
from fcos.training.step import _whole_images

# ---------------------------------------------------------------------------------------------------- sizes and batches


@pytest.mark.parametrize("size", [(97, 131), (1, 1), (33, 160), (64, 64)])
def test_detector_accepts_any_height_and_width(size: tuple[int, int]) -> None:
    model = build(**DETAILS).eval()
    (instances,) = model.detect(noise(1, 3, *size), sizes_of(size))
    assert instances.size == size
    assert instances.mask_grids is not None
    assert instances.keypoints is not None
    assert instances.mask_grids.shape == (len(instances), 28, 28)
    assert instances.keypoints.shape == (len(instances), 5, 3)
    assert (instances.boxes >= 0).all()
    assert (instances.boxes <= torch.tensor(size).flip(0).repeat(2)).all()


def test_batches_of_any_length_give_the_detections_of_single_images() -> None:
    model = build(**DETAILS).eval()
    images, sizes = noise(3, 3, 64, 96), sizes_of((64, 96), (64, 96), (50, 40))
    assert model.detect(images[:0], sizes[:0]) == []
    for i, instances in enumerate(model.detect(images, sizes)):
        (alone,) = model.detect(images[i : i + 1], sizes[i : i + 1])
        assert len(instances) > 0
        torch.testing.assert_close(instances.scores, alone.scores)
        torch.testing.assert_close(instances.boxes, alone.boxes, rtol=1e-5, atol=1e-3)
        torch.testing.assert_close(instances.mask_grids, alone.mask_grids, rtol=0, atol=1e-4)


def test_losses_and_details_are_float32_under_autocast() -> None:
    model = build(**DETAILS, **FROZEN)
    images, sizes = noise(2, 3, 64, 64), sizes_of((64, 64), (64, 64))
    exact = model(images, sizes, some_objects()).terms
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(images, sizes, some_objects()).terms
        detections = model.eval().detect(images, sizes)
    details = [x for image in detections for x in (image.boxes, image.mask_grids, image.keypoints)]
    assert {x.dtype for x in details if x is not None} == {torch.float32}
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    for name in ("loss_objectness", "loss_cls"):  # the others also depend on the proposals, which change
        assert losses[name].item() == pytest.approx(exact[name].item(), rel=0.1), name


# -------------------------------------------------------------------------------------------------------------- losses


def test_training_step_updates_every_parameter_of_every_head() -> None:
    model = build(**DETAILS).train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    losses = model(noise(2, 3, 64, 64), sizes_of((64, 64), (64, 64)), some_objects())
    assert tuple(losses.terms) == model.loss_names
    assert all(loss.isfinite() and loss > 0 for loss in losses.terms.values())
    total(losses.terms).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert {name for name in before if name.startswith(("proposals.", "box.", "heads."))} <= moved


@pytest.mark.parametrize("average", ["image", "batch"])
def test_images_without_objects_have_finite_losses_and_gradients_of_all_parameters(average: str) -> None:
    model = build(**DETAILS, **FROZEN, loss_average=average)
    targets = [some_objects()[1]] * 2
    losses = model(noise(2, 3, 64, 64), sizes_of((64, 64), (64, 64)), targets)
    zero = ("loss_rpn_box", "loss_box", "loss_mask", "loss_keypoints")
    assert [losses.terms[name].item() for name in zero] == [0.0] * 4
    assert all(term.isfinite() for term in losses.terms.values())
    total(losses.terms).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert total(model(noise(0, 3, 64, 64), sizes_of(), []).terms) == 0


def test_objects_without_visible_keypoint_are_not_used_for_the_keypoint_loss() -> None:
    model = build(**DETAILS, **FROZEN)
    targets = some_objects()
    invisible = torch.tensor([1.0, 1.0, 0.0])
    hidden = [replace(o, keypoints=None if o.keypoints is None else o.keypoints * invisible) for o in targets]
    images, sizes = noise(2, 3, 64, 64), sizes_of((64, 64), (64, 64))
    assert model(images, sizes, targets).terms["loss_keypoints"] > 0
    assert model(images, sizes, hidden).terms["loss_keypoints"] == 0


def test_crowd_boxes_are_neither_proposals_nor_background() -> None:
    crowd = Objects(torch.tensor([[0.0, 0, 32, 32]]), torch.tensor([0]), torch.tensor([True]))
    proposals = torch.tensor([[2.0, 2, 20, 20], [40, 40, 60, 60]])
    samples = sample_proposals(proposals, crowd, matcher=AnchorMatcher(0.5, 0.5, False), sampler=Sampler())
    assert samples.boxes.tolist() == [[40, 40, 60, 60]]
    assert samples.matched.tolist() == [BACKGROUND]


def test_samples_follow_the_seed_of_the_image() -> None:
    model = build(**FROZEN, proposals={"samples_per_image": 4})
    images, sizes, targets = noise(1, 3, 64, 64), sizes_of((64, 64)), some_objects()[:1]
    first, again, other = (
        model(images, sizes, [replace(targets[0], seed=seed)]).terms["loss_objectness"] for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


@pytest.mark.parametrize("sizes", [(4,), (1, 3), (2, 1, 1)])
def test_micro_batches_sum_to_the_batch(sizes: tuple[int, ...]) -> None:
    model = build(**DETAILS, **FROZEN, box={"samples_per_image": 16, "linear_channels": 16}).double()
    images, shapes, targets = noise(4, 3, 64, 64), sizes_of(*[(64, 64)] * 4), [*some_objects(), *some_objects()]
    whole = model(images, shapes, targets)
    total(whole.terms).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    normalizers, start, terms = model.loss_normalizers(targets, (64, 64)), 0, dict.fromkeys(whole.terms, 0.0)
    for size in sizes:
        part = slice(start, start + size)
        losses = model(images[part], shapes[part], targets[part], normalizers)
        total(losses.terms).backward()
        terms = {name: terms[name] + term.item() for name, term in losses.terms.items()}
        start += size
    assert terms == pytest.approx({name: term.item() for name, term in whole.terms.items()}, rel=1e-9)
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-11)


# ------------------------------------------------------------------------------------------------- classes and memory


@pytest.mark.parametrize("num_classes", [1, 1200])
@pytest.mark.parametrize("class_agnostic", [False, True])
def test_one_and_many_classes_train_and_detect(num_classes: int, class_agnostic: bool) -> None:
    box = {"class_agnostic": class_agnostic, "linear_channels": 16}
    model = build(num_classes=num_classes, box=box, **DETAILS, **FROZEN, max_detections=7)
    images, sizes = noise(2, 3, 64, 64), sizes_of((64, 64), (64, 64))
    targets = [replace(image, labels=image.labels.clamp(max=num_classes - 1)) for image in some_objects()]
    total(model(images, sizes, targets).terms).backward()
    for image in model.eval().detect(images, sizes):
        assert len(image) <= 7
        assert (image.labels < num_classes).all()


def test_candidates_of_many_proposals_and_classes_are_limited() -> None:
    logits, offsets = torch.randn(2000, 1201), torch.zeros(2000, 4 * 1201)
    corners = torch.rand(2000, 2) * 500
    proposals = torch.cat([corners, corners + 50], dim=1)
    options = RoIPostprocess(score_threshold=0.0, pre_nms_top_k=300)
    candidates = roi_candidates(logits, offsets, proposals, (600, 600), coder=BoxCoder(), options=options)
    scores = logits.softmax(dim=1)[:, 1:]
    best, index = scores.flatten().topk(300)
    assert torch.equal(candidates.scores.sort(descending=True).values, best)
    torch.testing.assert_close(candidates.boxes, proposals[index // 1200], rtol=0, atol=1e-4)
    assert torch.equal(candidates.labels, index % 1200)


@pytest.mark.parametrize(
    ("rule", "num_candidates", "num_detections"), [("remove", 1, 1), ("remove_last", 2, 1), ("keep", 2, 2)]
)
def test_boxes_without_area_in_the_image(rule: str, num_candidates: int, num_detections: int) -> None:
    model = build(empty_boxes=rule).eval()
    proposals = torch.tensor([[0.0, 0, 40, 40], [70, 0, 90, 40]])
    logits = torch.tensor([[0.0, 20, 0, 0]] * 2)
    (candidates,) = model.decode(RCNNOutputs([], [proposals], logits, torch.zeros(2, 16)), sizes_of((64, 64)))
    assert (len(candidates), len(model.suppress(candidates))) == (num_candidates, num_detections)


def test_masks_of_all_classes_are_not_computed() -> None:
    model = build(num_classes=1200, **DETAILS).eval()
    shapes: list[tuple[int, ...]] = []

    class Recorder(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                shapes.append(tuple(result.shape))
            return result

    head = model.heads["mask"]
    assert isinstance(head, MaskHead)
    boxes = [torch.tensor([[0.0, 0, 40, 40], [10, 10, 60, 60]])]
    features = model.features(noise(1, 3, 64, 64), sizes_of((64, 64)))
    with Recorder():
        grids = head(features, boxes, torch.tensor([0, 1199]))
    assert grids.shape == (2, 28, 28)
    assert (2, 1201, 28, 28) not in shapes
    every = head.logits(head.upsample(head.body(head.pooler(features, boxes))))
    torch.testing.assert_close(grids, every[[0, 1], [1, 1200]], rtol=1e-5, atol=1e-5)


def test_objects_for_the_measurement_of_memory_have_all_details() -> None:
    model = build(**DETAILS)
    box, label = torch.tensor([[0.0, 0.0, 64.0, 48.0]]), torch.tensor([0])
    objects = _whole_images(box, label, 3, num_keypoints=5)
    losses = model(noise(2, 3, 48, 64), sizes_of((48, 64), (48, 64)), [objects] * 2)
    assert {"loss_mask", "loss_keypoints"} <= losses.terms.keys()
    assert all(term.isfinite() for term in losses.terms.values())


# ------------------------------------------------------------------------------------------------- FCOS as first stage


def test_fcos_proposes_boxes_in_place_of_the_rpn() -> None:
    fcos = {"enabled": True, "head": {"num_convs": 1}, "train_max_proposals": 30, "max_proposals": 20}
    model = build(fcos=fcos, **FROZEN)
    images, sizes, targets = noise(2, 3, 64, 64), sizes_of((64, 64), (64, 64)), some_objects()
    losses = model(images, sizes, targets)
    first = ("loss_proposal_cls", "loss_proposal_box", "loss_proposal_centerness")
    assert tuple(losses.terms) == model.loss_names == (*first, "loss_cls", "loss_box")
    total(losses.terms).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    unused = ("proposals.detector.backbone.", "proposals.detector.fpn.")
    assert not [name for name in model.state_dict() if name.startswith(unused)]
    outputs = model.eval()(images, sizes)
    assert [len(boxes) for boxes in outputs.proposals] == [20, 20]
    assert len(model.detect(images, sizes)[0]) > 0
    normalizers = model.loss_normalizers(targets, (64, 64))
    parts = [model(images[i : i + 1], sizes[i : i + 1], targets[i : i + 1], normalizers).terms for i in range(2)]
    for name, term in losses.terms.items():
        assert sum(part[name].item() for part in parts) == pytest.approx(term.item(), rel=1e-4), name


# ----------------------------------------------------------------------------------------------------------- components


def test_boxes_are_pooled_from_the_level_of_their_size() -> None:
    features = [torch.full((1, 1, 128 // 2**i, 128 // 2**i), float(i)) for i in range(5)]
    boxes = torch.tensor([[0.0, 0, 16, 16], [0, 0, 112, 112], [0, 0, 224, 224], [0, 0, 448, 448], [0, 0, 2000, 2000]])
    pooled = Pooler()(features, [boxes])
    assert pooled.amax(dim=(1, 2, 3)).tolist() == [0, 1, 2, 3, 3]
    assert Pooler()(features, [boxes[:0]]).shape == (0, 1, 7, 7)


def test_limits_on_proposals_apply_per_level_and_per_image() -> None:
    corners = torch.arange(12.0)[:, None] * 20
    boxes = torch.cat([corners, torch.zeros(12, 1), corners + 10, torch.full((12, 1), 10.0)], dim=1)
    candidates = Instances(boxes, torch.tensor([0, 1] * 6), torch.linspace(0.9, 0.1, 12), (300, 300))
    per_level = select_proposals(candidates, ProposalLimits(9, 2, 9), ProposalSelection())
    assert per_level.boxes[:, 0].tolist() == [0, 20, 40, 60]
    per_image = select_proposals(candidates, ProposalLimits(9, 2, 3), ProposalSelection())
    assert per_image.boxes[:, 0].tolist() == [0, 20, 40]


def test_keypoints_are_decoded_where_heat_maps_were_encoded() -> None:
    boxes = torch.tensor([[10.0, 20, 66, 76], [0, 0, 28, 112]])
    keypoints = torch.tensor([[[12.5, 30.5, 2], [60.5, 70.5, 2]], [[14.25, 3, 2], [20.25, 100, 2]]])
    cells, valid = keypoint_cells(keypoints, boxes, 56)
    assert valid.all()
    heat_maps = torch.nn.functional.one_hot(cells, 56 * 56).float().unflatten(2, (56, 56)) * 10
    decoded = decode_keypoints(heat_maps, boxes)
    size_of_cell = (boxes[:, 2:] - boxes[:, :2])[:, None] / 56
    assert ((decoded[..., :2] - keypoints[..., :2]).abs() <= size_of_cell.clamp(min=1)).all()
    assert (decoded[..., 2] > 5).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_does_not_round_the_boxes_that_features_are_pooled_from(dtype: torch.dtype) -> None:
    pooler = Pooler(strides=[4], resolution=4)
    feature = torch.zeros(1, 1, 4, 400)
    feature[..., 322] = 1.0
    boxes = [torch.tensor([[1285.0, 2.0, 1291.0, 10.0]])]
    expected = pooler([feature], boxes)
    assert expected.max() > 0.5
    torch.testing.assert_close(pooler([feature.to(dtype)], boxes).float(), expected, rtol=0, atol=4e-3)
